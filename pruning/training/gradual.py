"""Gradual pruning: neurons leave a few at a time while the model trains, chosen by training's own gradients."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from pruning.core.neurons import Keep, NeuronLayer, Slice, cut, gather, named_tensors, select
from pruning.core.progress import Track, silently
from pruning.data.windows import Windows
from pruning.models.base import LanguageModel, State, expect_ready
from pruning.selection.allocation import Allocation
from pruning.selection.retention import keep_of, retention
from pruning.signals.gradients import gate_sums
from pruning.training.loop import (
    Loop,
    Trained,
    after_epoch,
    expect_learning,
    optimizer_of,
    restore,
    steps_an_epoch,
    under,
    validated,
)
from pruning.training.recipes import Recipe
from pruning.training.thinning import Thinning

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW remembers in the shape of each parameter."""
Importance = Mapping[str, Tensor]
"""Layer name → a number for each of its neurons, (width,) float64; larger is more important."""


def prune_gradually(
    model: LanguageModel,
    windows: Windows,
    valid: Windows,
    *,
    recipe: Recipe,
    thinning: Thinning,
    seed: int,
    resume: Trained | None = None,
    track: Track = silently,
) -> Iterator[Trained]:
    """Train a smaller and smaller copy of `model` and yield where that stands after each epoch.

    At each step the importance of a neuron becomes momentum × what it was + (1 − momentum) × (∂L/∂m)², where
    ∂L/∂m = Σ w · ∂L/∂w over its outgoing weights (Molchanov et al. 2019, with a gate m on the neuron's output): the
    gradients that training has anyway. Whenever the schedule asks for fewer neurons, the least important leave, all
    layers in one ranking relative to each layer's mean (see `retention`). Weights, the optimizer's moments and the
    carried state lose their rows and columns, so that later steps are faster.

    A run resumed after epoch n ends with the bytes of a run that was never interrupted; as in `train`, dropout is
    drawn from the seed and the epoch's number, and the global random state is left as it was.

    Frozen parameters lose rows and columns with the neurons, and stay as they are otherwise; their gradients, too, tell
    the importance.

    >>> import torch, pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> text = pruning.Windows(torch.arange(160) % 9, first=0, batch=2, bptt=8)
    >>> recipe = pruning.Recipe(
    ...     epochs=1, portion=1.0, learning_rate=0.01, warmup=0.1, weight_decay=0.0, clip=1.0, patience=1
    ... )
    >>> schedule = pruning.Schedule(begin=0.0, end=0.5, every=1)
    >>> thinning = pruning.Thinning(retain=0.5, floor=1, schedule=schedule, momentum=0.9, penalty=0.0)
    >>> *_, last = prune_gradually(model, text, text, recipe=recipe, thinning=thinning, seed=1)
    >>> last.history["neurons"].iloc[-1].item()
    3

    Args:
        model: A dense language model whose layers have readers of their own; it is left as it was.
        windows: Training windows.
        valid: Validation windows.
        recipe: How to train. Best epoch and patience count only epochs that end with the final number of neurons.
        thinning: How many neurons leave, when, and by what importance.
        seed: Seed of dropout.
        resume: The last state that an interrupted run yielded.
        track: Shows the progress of each epoch.

    Yields:
        The state as `train` has it. Its history also says how many `neurons` are left after each step, its tensors
        also hold `kept.*` (each layer's neurons by their numbers in `model`) and `importance.*`.

    Raises:
        TypeError: For a network of one's own.
        ValueError: If every parameter is frozen.
        FloatingPointError: If the loss or a gradient stops being a number.
    """
    expect_ready(model)
    if not isinstance(model, LanguageModel):
        raise TypeError(
            "Expected a language model of the library to prune while it is trained, got "
            f"{type(model).__name__}; `pruning.prune_iteratively` takes any network."
        )
    expect_learning(model)
    state = resume or Trained({}, pd.DataFrame(), finished=False)
    layers, steps = model.layers(), recipe.epochs * steps_an_epoch(recipe, windows)
    left = partial(thinning.neurons_left, steps=steps, widths=[layer.width for layer in layers])
    companion = _Companion(
        recipe=recipe,
        thinning=thinning,
        neurons_left=left,
        last=left(steps),
        kept={layer.name: torch.arange(layer.width) for layer in layers} | under("kept", state.tensors),
        importance={layer.name: torch.zeros(layer.width, dtype=torch.float64) for layer in layers}
        | under("importance", state.tensors),
        step=len(state.history),
        frozen={name for name, parameter in model.named_parameters() if not parameter.requires_grad},
    )
    smaller = select(model, companion.kept).requires_grad_(True)
    loop = Loop(smaller, optimizer_of(smaller, recipe), windows, recipe, None, seed, track, companion=companion)
    if resume:
        restore(loop.model, loop.optimizer, resume.tensors)
    for _ in range(len(_ends(state)), recipe.epochs):
        if state.finished:
            return
        state = _epoch(loop, companion, state, valid)
        yield state


def pruned(model: LanguageModel, state: Trained) -> LanguageModel:
    """Return the smaller model that `prune_gradually` has made of `model`, as it was at its best epoch."""
    smaller = select(model, under("kept", state.tensors))
    smaller.load_state_dict(state.best())
    return smaller


def most_important(importance: Importance, *, neurons: int, floor: int) -> Keep:
    """Return the `neurons` most important ones, in one ranking over all layers.

    Layers are made comparable by dividing by their mean importance (see `retention`), since scores of gates are larger
    the nearer a layer is to the loss.

    Args:
        importance: Of each neuron.
        neurons: How many to keep in all.
        floor: Fewest neurons that a layer keeps.
    """
    frames = [
        pd.DataFrame({"layer": name, "neuron": range(len(values)), "importance": values.numpy()})
        for name, values in importance.items()
    ]
    table = pd.concat(frames, ignore_index=True)
    share = neurons / len(table)
    allocation = Allocation(retain=share, floor=floor, scope="global")
    return keep_of(retention(table, allocation, variant="gradual", by="importance"))


def renewed(importance: Importance, gates: Mapping[str, Tensor], *, momentum: float) -> dict[str, Tensor]:
    """Return momentum × importance + (1 − momentum) × gate², (width,) float64 for each layer."""
    return {
        name: momentum * before + (1 - momentum) * gates[name].cpu().double().square()
        for name, before in importance.items()
    }


def without(
    model: LanguageModel, optimizer: torch.optim.AdamW, state: State, keep: Keep, recipe: Recipe
) -> tuple[LanguageModel, torch.optim.AdamW, State]:
    """Return a smaller model, an optimizer that remembers of it what it did before, and the state to carry on from.

    Args:
        model: It is left as it was; likewise `optimizer`.
        optimizer: AdamW of the model, after a step.
        state: What the model's last window left.
        keep: Kept neurons of each layer.
        recipe: How the optimizer was made.
    """
    layers = model.layers()
    smaller = select(model, keep)
    successor = optimizer_of(smaller, recipe)
    parameters = dict(model.named_parameters())
    before = {name: optimizer.state[tensor] for name, tensor in parameters.items() if tensor in optimizer.state}
    none = {name: torch.zeros_like(tensor) for name, tensor in named_tensors(model).items() if name not in before}
    moments = {
        what: cut(layers, keep, none | {name: memory[what] for name, memory in before.items()}) for what in MOMENTS
    }
    for name, parameter in smaller.named_parameters():
        if name not in before:  # it is frozen
            continue
        remembered = {what: moments[what][name].clone() for what in MOMENTS}
        successor.state[parameter] = {"step": before[name]["step"].clone(), **remembered}
    return smaller, successor, state_without(state, layers, keep)


def state_without(state: State, layers: Sequence[NeuronLayer], keep: Keep) -> State:
    """Return the carried state of the kept neurons.

    Raises:
        ValueError: If the state does not hold each layer's neurons along its last dimension.
    """
    shapes = [[tensor.shape[-1] for tensor in parts] for parts in state]
    if len(state) != len(layers) or any(set(s) - {layer.width} for s, layer in zip(shapes, layers, strict=True)):
        widths = [layer.width for layer in layers]
        raise ValueError(f"Expected a state with neurons of layers of {widths} along its last dimension, got {shapes}.")
    return [
        tuple(tensor.index_select(-1, keep[layer.name].to(tensor.device)) for tensor in parts)
        for parts, layer in zip(state, layers, strict=True)
    ]


def group_lasso(layers: Sequence[NeuronLayer], tensors: Mapping[str, Tensor]) -> Tensor:
    """Return Σ over neurons of ‖w‖₂, w being all weights that compute or read the neuron (Wen et al. 2018).

    Such a group is what leaves with a neuron (an "intrinsic sparse structure"), so that a group at zero can leave at
    no cost. Vectors (biases and the like) are not penalised, as weight decay does not; a neuron's weights to itself,
    which compute and read it, count twice in its norm.
    """
    return torch.stack([_norms(layer, tensors).sum() for layer in layers]).sum()


def shrink_groups(
    layers: Sequence[NeuronLayer], tensors: Mapping[str, Tensor], amount: float, *, frozen: Collection[str] = ()
) -> None:
    """Move the weights, in place, by `amount` against the gradient of `group_lasso`, none past zero.

    w ← w · max(0, 1 − amount × Σ 1/‖g‖₂ over the groups g that hold w). A step of its own, as AdamW's weight decay is,
    so that neither the moments nor the importance see the penalty. Where groups share no weight it is the penalty's
    proximal operator, the block soft threshold; a recurrent weight belongs to two neurons and obeys both.

    Args:
        layers: Whose neurons are the groups.
        tensors: Parameters by name.
        amount: Learning rate × λ.
        frozen: Parameters that stay as they are.
    """
    pulls: dict[str, Tensor] = {}
    for layer in layers:
        norms = _norms(layer, tensors)
        inverse = torch.where(norms > 0, 1 / norms, 0)[:, None, None]
        for piece in _weights(layer, tensors):
            before = pulls.get(piece.parameter, torch.zeros_like(tensors[piece.parameter]))
            pulls[piece.parameter] = piece.join(piece.split(before) + inverse, before)
    for name, pull in pulls.items():
        if name not in frozen:
            tensors[name].mul_((1 - amount * pull).clamp(min=0))


def _norms(layer: NeuronLayer, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the norm of each neuron's group, (width,)."""
    norms: Tensor = torch.linalg.vector_norm(gather(_weights(layer, tensors), tensors), dim=1)
    return norms


def _weights(layer: NeuronLayer, tensors: Mapping[str, Tensor]) -> list[Slice]:
    """Return the slices of matrices that compute or read the layer's neurons."""
    return [piece for piece in (*layer.owned, *layer.read) if tensors[piece.parameter].ndim > 1]


@dataclass(kw_only=True)
class _Companion:
    """The companion that takes neurons out of a model in training.

    Attributes:
        neurons_left: Step → how many neurons are left once it is taken.
        last: How many are left in the end.
        kept: The neurons that are left, by their numbers in the dense model.
        importance: Theirs.
        step: Steps taken.
        frozen: Parameters that do not learn. They have gradients here, which tell the importance and are then dropped.
        counts: Neurons left after each step of this epoch.
    """

    recipe: Recipe
    thinning: Thinning
    neurons_left: Callable[[int], int]
    last: int
    kept: dict[str, Tensor]
    importance: dict[str, Tensor]
    step: int
    frozen: set[str]
    counts: list[int] = field(default_factory=list)

    def see(self, model: LanguageModel) -> None:
        """Renew the importance from the gradients of a step."""
        layers = model.layers()
        read = {piece.parameter for layer in layers for piece in layer.read}
        weights = {name: parameter for name, parameter in model.named_parameters() if name in read}
        products = {name: weight.detach() * weight.grad for name, weight in weights.items() if weight.grad is not None}
        self.importance = renewed(self.importance, gate_sums(layers, products), momentum=self.thinning.momentum)
        for name, parameter in model.named_parameters():
            if name in self.frozen:
                parameter.grad = None

    def after(
        self, model: LanguageModel, optimizer: torch.optim.AdamW, state: State, rate: float
    ) -> tuple[LanguageModel, torch.optim.AdamW, State]:
        """Shrink the groups and, if it is time, remove neurons."""
        self.step += 1
        wanted, left = self.neurons_left(self.step), sum(model.widths())
        if self.thinning.penalty and left > self.last:
            shrink_groups(model.layers(), named_tensors(model), rate * self.thinning.penalty, frozen=self.frozen)
        if wanted < left:
            model, optimizer, state = without(model, optimizer, state, self._leave(wanted), self.recipe)
        self.counts.append(sum(model.widths()))
        return model, optimizer, state

    def _leave(self, wanted: int) -> Keep:
        """Return which neurons stay, and forget the others."""
        if not all(values.isfinite().all() for values in self.importance.values()):
            raise FloatingPointError(
                f"Expected finite gradients, got others by step {self.step}; lower learning_rate or clip."
            )
        keep = most_important(self.importance, neurons=wanted, floor=self.thinning.floor)
        self.kept = {name: numbers[keep[name]] for name, numbers in self.kept.items()}
        self.importance = {name: values[keep[name]] for name, values in self.importance.items()}
        return keep

    def tensors(self) -> dict[str, Tensor]:
        """Return what is needed to go on, beside model and optimizer."""
        kept = {f"kept.{name}": numbers for name, numbers in self.kept.items()}
        return kept | {f"importance.{name}": values for name, values in self.importance.items()}


def _epoch(loop: Loop, companion: _Companion, before: Trained, valid: Windows) -> Trained:
    """Make one more pass and return the state after it."""
    ends, companion.counts = _ends(before), []
    rows = loop.epoch(len(ends)).assign(neurons=lambda _: companion.counts)
    rows.loc[rows.index[-1], "valid_loss"] = validated(loop.model, valid, rows["step"].iloc[-1])
    larger = sum(neurons > companion.last for neurons in ends)
    after = after_epoch(loop.model, loop.optimizer, before, rows, loop.recipe, since=larger)
    return replace(after, tensors=after.tensors | companion.tensors())


def _ends(state: Trained) -> list[int]:
    """Return how many neurons were left at the end of each epoch so far."""
    rows = state.history
    return [] if rows.empty else rows["neurons"][rows["valid_loss"].notna()].tolist()
