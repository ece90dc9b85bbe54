"""Distillation from the dense model, without labels, as a repair (beside labels: `training`)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from pruning.core.devices import moved, twin_of
from pruning.core.finite import expect_finite
from pruning.core.modes import carried, differentiating, evaluating
from pruning.core.neurons import PrunableModule, expect_neurons
from pruning.core.optimizers import Adam, clip
from pruning.core.options import expect_known
from pruning.core.progress import Track, silently
from pruning.data.windows import IGNORED, Batches, Window, Windows, endless
from pruning.models.base import LanguageModel, State
from pruning.repair.following import Pupil
from pruning.training.loop import AT_ONCE, UNREAD
from pruning.training.schedule import paces_of, rate_at

METRIC_WINDOWS = 8
"""Windows that the metric of the features is measured on: with a thousand tokens each, its error is below 1%."""
RIDGE = 1e-10
"""Added to the Gram matrix of a decoder with dependent columns, relative to its mean square."""
OPTIMIZERS = ("adam", "muon")
Model = TypeVar("Model", bound=PrunableModule)


@dataclass(frozen=True, kw_only=True)
class Imitation:
    """How a pruned model learns from the dense one.

    >>> Imitation(tokens=1000, learning_rate=0.01, warmup=0.1, clip=1.0).tokens
    1000

    Attributes:
        tokens: The budget: how many calibration tokens (or other targets; without any, examples) are read.
        learning_rate: Highest learning rate of Adam (Kingma & Ba 2015), reached after the warm-up and lowered to zero
            along a half cosine.
        warmup: Share of all steps over which the learning rate rises linearly.
        clip: Largest norm of the whole gradient.
        features: Of networks whose neurons were discovered: the share that what readers read has in what is minimised,
            beside the outputs.
        optimizer: `adam`, or `muon`: matrices but for embeddings by Muon (Jordan et al. 2024), which gives the singular
            values of an update one size, as large as Adam's updates are; all else by Adam.
    """

    tokens: int
    learning_rate: float
    warmup: float
    clip: float
    features: float = 0.0
    optimizer: str = "adam"

    def __post_init__(self) -> None:
        """Refuse an unknown optimizer."""
        expect_known("optimizer", OPTIMIZERS, self.optimizer, where=" to imitate by")


def imitate(
    student: Model, teacher: Model, windows: Batches, *, imitation: Imitation, track: Track = silently
) -> Model:
    """Return the student after it has learnt to answer as the teacher does, without a label.

    A network that `adapt` made ready learns from the teacher's outputs by the loss's own divergence
    (`Objective.divergence`): that of classes or labels, or the distance of numbers. Where a loss has none, and where
    the answer is not one tensor, it is the squared distance of all numbers in it, relative to their mean square. With
    `features`, what readers read of the neurons that are left is compared likewise (FitNets, Romero et al. 2015).

    For a language model of the library that is cheaper: feature distillation in the metric of what follows the
    features. The loss is the second-order expansion of KL(teacher ‖ student) in what the decoder D reads, f,

        ½ (f_s − f_t)ᵀ F (f_s − f_t),   F = Dᵀ E[diag(p) − p pᵀ] D,

    with p the teacher's next-token distribution (nat/token). It needs no logits and no vocabulary-sized product at any
    step, so a token costs a tenth of a training token. Embedding and decoder stay; everything between them learns that
    is not frozen. Where the student's decoder is its own, it is replaced by the teacher's behind a linear map, which is
    multiplied back into it at the end; a frozen one stays, and so does the map.

    >>> import torch, pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> text = pruning.Windows(torch.arange(160) % 9, first=0, batch=2, bptt=8)
    >>> smaller = pruning.select(model, {"rnn.0": torch.arange(3)})
    >>> imitation = pruning.Imitation(tokens=64, learning_rate=0.01, warmup=0.1, clip=1.0)
    >>> taught = imitate(smaller, model, text, imitation=imitation)
    >>> taught.widths(), torch.equal(taught.encoder.weight, model.encoder.weight)
    ((3,), True)

    Args:
        student: A pruned model, as `reconstruct` left it; neither model is changed.
        teacher: The dense model.
        windows: Calibration text (or other batches; inputs alone suffice, see `reconstruct`), read in order with
            carried state; from its start again where the budget is larger.
        imitation: How to learn.
        track: Shows progress.

    Raises:
        FloatingPointError: If a weight or the loss is not finite.
        ValueError: If everything that could learn is frozen, or what readers read is to be compared of networks whose
            neurons were not discovered.
    """
    for model in (student, teacher):
        expect_neurons(model)
    expect_finite(student)
    expect_finite(teacher)
    if not (isinstance(student, LanguageModel) and isinstance(teacher, LanguageModel)):
        return _followed(student, teacher, windows, imitation, track)
    text = cast(Windows, windows)
    learner = twin_of(student)
    alignment = _alignment(student, teacher)
    metric = feature_metric(teacher, [text[index] for index in range(min(METRIC_WINDOWS, len(text)))])
    _learn(learner, alignment, teacher, text, metric, imitation, track)
    if any(parameter.requires_grad for parameter in alignment.parameters()):
        _fold(learner, alignment, teacher)
    return learner


def feature_metric(teacher: LanguageModel, windows: Sequence[Window]) -> Tensor:
    """Return F = Dᵀ E[diag(p) − p pᵀ] D over the tokens that are no padding, (features, features), nat/token."""
    decoder = teacher.decoder_weight.detach()
    shares, outer = decoder.new_zeros(len(decoder)), decoder.new_zeros(decoder.shape[1], decoder.shape[1])
    state: State | None = None
    count = 0
    with torch.no_grad(), evaluating(teacher):
        for window in windows:
            features, state = teacher.features(moved(window.tokens, decoder.device), state)
            p = _counted(teacher.decode(features).flatten(0, 1), window).softmax(-1)
            mean = p @ decoder
            shares, outer, count = shares + p.sum(0), outer + mean.T @ mean, count + len(p)
    return (decoder.T * (shares / count)) @ decoder - outer / count


def _counted(values: Tensor, window: Window) -> Tensor:
    """Return the rows, one for each place of a window, that are no padding."""
    counted = window.targets.flatten() != IGNORED
    return values if counted.all() else values[counted.to(values.device)]


def _alignment(student: LanguageModel, teacher: LanguageModel) -> nn.Module:
    """Return what turns the student's features into ones for the teacher's decoder, as well as its own decodes them."""
    ours, theirs = (model.decoder_weight.detach().cpu().double() for model in (student, teacher))
    if ours.shape == theirs.shape and torch.equal(ours, theirs):
        return nn.Identity()
    wanted = torch.cat([ours, (student.decoder.bias - teacher.decoder.bias).detach().cpu()[:, None]], dim=1)
    gram = theirs.T @ theirs
    spectrum, precision = torch.linalg.eigvalsh(gram), torch.finfo(gram.dtype)
    if spectrum[0] <= len(gram) * precision.eps * spectrum[-1]:  # the teacher's columns depend on each other
        ridge = (RIDGE * gram.diagonal().mean()).clamp(min=precision.tiny)
        gram = gram + ridge * torch.eye(len(gram), dtype=gram.dtype)
    solution = torch.linalg.solve(gram, theirs.T @ wanted)  # not lstsq, whose last bits differ between calls
    alignment = nn.Linear(ours.shape[1], theirs.shape[1], device="meta").to_empty(device=student.device)
    alignment = alignment.to(student.decoder_weight.dtype)
    with torch.no_grad():
        alignment.weight.copy_(solution[:, :-1])
        alignment.bias.copy_(solution[:, -1])
    return alignment.requires_grad_(all(parameter.requires_grad for parameter in student.decoder.parameters()))


def _learn(
    learner: LanguageModel,
    alignment: nn.Module,
    teacher: LanguageModel,
    windows: Windows,
    metric: Tensor,
    imitation: Imitation,
    track: Track,
) -> None:
    """Train the learner and the alignment in place, one window a step, both states carried to the end of the text."""
    between = [p for name, p in learner.named_parameters() if name.partition(".")[0] not in ("encoder", "decoder")]
    learning = [parameter for parameter in (*between, *alignment.parameters()) if parameter.requires_grad]
    if not learning:
        raise ValueError(
            "Expected parameters between embedding and decoder that can learn to imitate, got frozen ones alone; "
            "call `requires_grad_(True)` on those that are to learn, or repair by 'ridge' alone."
        )
    steps = max(1, imitation.tokens // windows[0].tokens.numel())
    states: tuple[State | None, State | None] = (None, None)

    def loss_of(step: int) -> Tensor:
        nonlocal states
        place = step % len(windows)
        states = states if place else (None, None)  # the text begins again
        loss, states = _imitation_loss(learner, alignment, teacher, windows[place], metric, states)
        return loss

    with differentiating(learner), evaluating(teacher):
        _descend(learner, learning, loss_of, steps, imitation, track)


def _followed(student: Model, teacher: Model, data: Batches, imitation: Imitation, track: Track) -> Model:
    """Return a network of any kind after it has learnt to answer as the teacher does."""
    pupil = Pupil(student, teacher, imitation.features)
    learning = [p for p in pupil.learner.parameters() if p.requires_grad]
    if not learning:
        raise ValueError(
            "Expected parameters that can learn to imitate, got frozen ones alone; "
            "call `requires_grad_(True)` on those that are to learn, or repair by 'ridge' alone."
        )
    batches, states = endless(data), (None, None)
    steps = max(1, imitation.tokens // pupil.size(next(endless(data))))
    fixed = isinstance(data, Sequence) and steps > len(data)  # so that the same batch comes again at its place

    def loss_of(step: int) -> Tensor | None:
        nonlocal states
        states = states if step % len(data) else (None, None)  # the data begin again
        loss, states = pupil.distance(next(batches), states, step % len(data) if fixed else None)
        return loss

    with differentiating(pupil.learner):
        _descend(pupil.learner, learning, loss_of, steps, imitation, track)
    return cast(Model, pupil.learner)


def _descend(
    learner: nn.Module,
    learning: Sequence[nn.Parameter],
    loss_of: Callable[[int], Tensor | None],
    steps: int,
    imitation: Imitation,
    track: Track,
) -> None:
    """Lower a loss by the asked for optimizer, one batch a step; a batch without a loss is passed over."""
    optimizers = _optimizers(learner, learning, imitation)
    unread: list[Tensor] = []
    every = 1 if learning[0].device.type in AT_ONCE else UNREAD
    for step in track(range(steps), "imitation, steps"):
        loss = loss_of(step)
        if loss is None:
            continue
        unread.append(loss.detach())
        if len(unread) == every or step + 1 == steps:
            _expect_finite_losses(unread, step, imitation.learning_rate)
            unread = []
        gradients = torch.autograd.grad(loss, learning, materialize_grads=True)
        for parameter, gradient in zip(learning, gradients, strict=True):
            parameter.grad = gradient
        clip(learning, imitation.clip)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate_at(imitation, step, steps) * group["pace"]
            optimizer.step()
    if unread:
        _expect_finite_losses(unread, steps - 1, imitation.learning_rate)
    for parameter in learning:
        parameter.grad = None


def _optimizers(
    learner: nn.Module, learning: Sequence[nn.Parameter], imitation: Imitation
) -> list[torch.optim.Optimizer]:
    """Return what lowers the loss, each parameter a group of its own that knows its pace."""
    paces = paces_of(learner)
    tables = {id(m.weight) for m in learner.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    mixing = [p for p in learning if imitation.optimizer == "muon" and p.ndim == 2 and id(p) not in tables]
    known = {id(p) for p in mixing}
    others = [p for p in learning if id(p) not in known]
    groups = [[{"params": [p], "pace": paces.get(p, 1.0)} for p in some] for some in (others, mixing)]
    optimizers: list[torch.optim.Optimizer] = []
    if others:
        optimizers.append(Adam(groups[0]))
    if mixing:
        optimizers.append(torch.optim.Muon(groups[1], weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def _expect_finite_losses(losses: Sequence[Tensor], last: int, rate: float) -> None:
    """Refuse the first of some steps' losses, up to that of step `last` (from 0), that is no finite number."""
    for step, loss in enumerate(torch.stack(list(losses)).tolist(), start=last + 2 - len(losses)):
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"Expected a finite imitation loss, got {loss} at step {step} (highest learning rate {rate:.3g}); "
                "lower learning_rate or clip."
            )


def _imitation_loss(
    learner: LanguageModel,
    alignment: nn.Module,
    teacher: LanguageModel,
    window: Window,
    metric: Tensor,
    states: tuple[State | None, State | None],
) -> tuple[Tensor, tuple[State, State]]:
    """Return the mean of ½ (f_s − f_t)ᵀ F (f_s − f_t) over tokens that are no padding, nat/token, and both states."""
    tokens = moved(window.tokens, metric.device)
    with torch.no_grad():
        wanted, after = teacher.features(tokens, states[1])
    features, before = learner.features(tokens, carried(states[0]))
    difference = alignment(features) - wanted
    loss = 0.5 * _counted(((difference @ metric) * difference).sum(-1).flatten(), window).mean()
    return loss, (before, after)


def _fold(learner: LanguageModel, alignment: nn.Module, teacher: LanguageModel) -> None:
    """Multiply the alignment into the learner's own decoder."""
    if isinstance(alignment, nn.Linear):
        with torch.no_grad():
            learner.decoder.weight.copy_(teacher.decoder_weight @ alignment.weight)
            learner.decoder.bias.copy_(teacher.decoder.bias + teacher.decoder_weight @ alignment.bias)
