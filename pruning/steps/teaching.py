"""Fine-tuning in one line: a pruned network trained on its loss, the best epoch kept."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from pruning.core.hearing import front_door
from pruning.core.progress import Track, silently
from pruning.core.words import described
from pruning.evaluation.measures import Loss, loss_of
from pruning.models.adapted import Adapted
from pruning.models.base import Measurable
from pruning.models.calling import Caller, own_module
from pruning.steps.given import found_again, measurable
from pruning.training.distillation import Teacher
from pruning.training.loop import Trained, train
from pruning.training.recipes import Recipe

USUAL = Recipe(epochs=3, learning_rate=1e-3, portion=1.0, warmup=0.1, weight_decay=0.01, clip=1.0, patience=3)
"""How a pruned network is trained where nothing else is said."""


@front_door
def finetune(
    smaller: nn.Module,
    data: Any,
    loss: Any = None,
    *,
    valid: Any = None,
    epochs: int | None = None,
    learning_rate: float | None = None,
    recipe: Recipe = USUAL,
    teacher: nn.Module | Teacher | None = None,
    seed: int = 1,
    track: Track = silently,
) -> Measurable:
    """Train a network in place and leave it as its best epoch was; return it.

    >>> import torch, pruning
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> network = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1))
    >>> data = [(x := torch.randn(8, 2), x[:, :1]) for _ in range(4)]
    >>> smaller = pruning.finetune(pruning.discover(network, data[0][0]), data, nn.MSELoss(), learning_rate=0.01)
    >>> smaller.history["valid_loss"].dropna().is_monotonic_decreasing
    True

    Args:
        smaller: What `prune` gave, what `discover` found, or a network.
        data: Batches to train on, as `importance` takes them, with targets; read once an epoch.
        loss: See `pruning.adapt`; by default the one that the importance was measured with.
        valid: Batches that the best epoch is chosen by; by default those to train on, which prefers the last.
        epochs: Passes over the data, in place of the recipe's (3).
        learning_rate: The highest, in place of the recipe's (0.001).
        recipe: How to learn in all else.
        teacher: The dense network, to learn from its outputs beside the targets, half of what is minimised being
            theirs; or a `pruning.Teacher` with another share and temperature. None learns from targets alone.
        seed: Of dropout and of the order of a `DataLoader` that shuffles.
        track: Shows progress.

    Returns:
        The network; `history` has the loss of each step.

    Raises:
        ValueError: If there is no loss, or a loss without targets.
        FloatingPointError: If the loss stops being a number; the network is then as it was, as it is after any error.
        KeyboardInterrupt: If its user stops it; the network is then as its best finished epoch was, and another call
            goes on from there.
    """
    if not isinstance(recipe, Recipe):
        raise TypeError(f"Expected a pruning.Recipe to train by, got {described(recipe)}.")
    model: Any = measurable(smaller, data, loss)
    if epochs is not None:
        recipe = replace(recipe, epochs=epochs, patience=epochs)
    if learning_rate is not None:
        recipe = replace(recipe, learning_rate=learning_rate)
    if recipe.epochs < 1:
        raise ValueError(f"Expected at least 1 epoch to fine-tune for, got {recipe.epochs}.")
    for name in ("learning_rate", "clip"):
        if not getattr(recipe, name):
            raise ValueError(f"Expected {name} above 0 to fine-tune by, got 0, by which nothing is learnt.")
    guide = None if teacher is None else _guide(teacher, model, data)
    result = smaller if isinstance(smaller, Measurable) else model
    windows = data if valid is None else valid
    result.history = _learnt(model, train(model, data, windows, recipe=recipe, seed=seed, teacher=guide, track=track))
    if isinstance(smaller, Adapted):
        smaller.use = model.use  # the loss that it has learnt is its own from now on
    return result


def _learnt(model: Measurable, epochs: Iterator[Trained]) -> Any:
    """Let a model learn, leave it as its best epoch was, and return its history.

    After an error it is as it was. Where its user stops it, it is as the best finished epoch was.
    """
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    modes = [(module, module.training) for module in model.modules()]
    last: Trained | None = None
    try:
        for each in epochs:
            last = each
            model.history = each.history
    except Exception:  # by now its weights may be no numbers, or half learnt
        last = None
        raise
    finally:
        model.load_state_dict(before if last is None else last.best())
        for module, mode in modes:
            module.training = mode and last is None
    return model.history


def _guide(teacher: nn.Module | Teacher, model: Measurable, data: Any) -> Teacher | None:
    """Return the teacher with how much it says, its network as a model with the same loss."""
    of: Any = teacher.model if isinstance(teacher, Teacher) else teacher
    if isinstance(of, nn.Module) and own_module(of) is own_module(model):
        raise ValueError(
            "Expected the dense network as teacher, got the one that is trained, which agrees with itself; give what "
            "it was pruned from, or none."
        )
    if isinstance(teacher, Teacher):
        return Teacher.of(_taught(teacher.model, model, data), share=teacher.share, temperature=teacher.temperature)
    return Teacher.of(_taught(teacher, model, data), share=0.5, temperature=1.0)


def _taught(teacher: Any, model: Measurable, data: Any) -> Measurable:
    """Return the teacher as a model with the same loss."""
    if isinstance(teacher, Measurable):
        return teacher
    use: Any = getattr(model, "use", None)
    if not isinstance(teacher, nn.Module) or use is None:
        raise TypeError(f"Expected the dense network as teacher, got {type(teacher).__name__}.")
    if not isinstance(use.call, Caller) and isinstance(model, Adapted):  # which is not given what forward takes
        return Adapted(found_again(teacher, model), replace(use))
    return measurable(teacher, data, use.criterion, call=use.call, split=use.split, example_dim=use.example_dim)


@front_door
def evaluate(network: nn.Module, data: Any, loss: Any = None, *, metrics: Any = None, track: Track = silently) -> Loss:
    """Return a network's loss and metrics over data, see `pruning.loss_of`; `print` shows them.

    >>> import torch
    >>> data = [(torch.ones(2, 3), torch.zeros(2, 1))] * 2
    >>> network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    >>> for parameter in network.parameters():
    ...     _ = parameter.data.zero_()
    >>> print(evaluate(network, data, nn.MSELoss()))
    loss 0, mean_squared_error 0 (lower is better), mean_absolute_error 0 (lower is better)

    Args:
        network: What `prune` gave, what `discover` found, or a network.
        data: Batches with targets.
        loss: See `pruning.adapt`; by default the one that the network was given before.
        metrics: What to report beside the loss; see `pruning.adapt`.
        track: Shows progress.
    """
    return loss_of(measurable(network, data, loss, metrics=metrics), data, track=track)
