"""What a model is worth and what it costs: loss over a whole split, and sizes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pruning.core.finite import expect_finite
from pruning.core.modes import evaluating
from pruning.core.progress import Track, silently
from pruning.data.windows import Batches
from pruning.models.base import LanguageModel, Measurable, State, expect_measurable
from pruning.models.metrics import NAMED, Running
from pruning.models.objectives import Direction, placed


@dataclass(frozen=True)
class Loss:
    """A model's loss over a split.

    Attributes:
        total: Summed negative log-likelihood, nat (or whatever else the model's own criterion gives).
        tokens: How many targets were predicted; tokens of a language model.
        correct: How many of them have the highest logit; of several labels, the share that is right, summed.
        weight: What the mean is one over, where classes have weights; None where that is `tokens`.
        metrics: By name, the mean over the targets of each of the objective's metrics (`Objective.metrics`), and those
            that were asked for (`adapt`).
        better: Which numbers of each metric are better, `higher` or `lower`.
        likelihood: Whether the loss is a class's negative log-likelihood, so that there is a perplexity.
    """

    total: float
    tokens: int
    correct: float = 0
    weight: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    better: Mapping[str, Direction] = field(default_factory=dict)
    likelihood: bool = True

    @property
    def mean(self) -> float:
        """Cross-entropy, nat/token, or whatever else the loss is, per target."""
        return self.total / (self.tokens if self.weight is None else self.weight)

    @property
    def accuracy(self) -> float:
        """Share of the targets that have the highest logit, in [0, 1]; not a number where targets are amounts."""
        return self.correct / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(cross-entropy); not a number where the loss is no log-likelihood of classes."""
        return math.exp(min(self.mean, 700.0)) if self.likelihood else math.nan

    def __str__(self) -> str:
        """Return the loss, the perplexity if there is one, and each metric with which direction is better."""
        shown = [f"loss {self.mean:.4g}", *([f"perplexity {self.perplexity:.4g}"] if self.likelihood else [])]
        shown += [f"{name} {value:.4g} ({self.better[name]} is better)" for name, value in self.metrics.items()]
        return ", ".join(shown)


def loss_of(
    model: Measurable, windows: Batches, *, finite: bool = True, track: Track = silently, what: str = "evaluate"
) -> Loss:
    """Return the model's loss over all batches: state carried from window to window, every token predicted once.

    The model is evaluated without dropout and left in the mode it was in. Targets that are ignored count nowhere, and
    classes by their weights, where the criterion has some.

    >>> import torch, pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> text = pruning.Windows(torch.arange(160) % 9, first=0, batch=2, bptt=8)
    >>> for parameter in model.parameters():
    ...     _ = parameter.data.zero_()
    >>> round(loss_of(model, text).perplexity, 3)  # all nine tokens are as likely
    9.0

    Args:
        model: Any model that knows its loss.
        windows: The batches, in order.
        finite: Whether to refuse a loss that is no finite number; else it is returned.
        track: Shows progress.
        what: What the progress is called.

    Raises:
        ValueError: If there is no batch, or no target counts.
        FloatingPointError: If a weight or the loss is not finite.
    """
    expect_measurable(model)
    if finite:
        expect_finite(model)
    windows = model.pairs(windows)
    if not len(windows):
        raise ValueError("Expected at least one batch to evaluate on, got none.")
    total, tokens, weight, state = 0.0, 0, 0.0, None
    totals: dict[str, float] = {}
    running = {name: Running(metric) for name, metric in model.measured_by().items()}
    better: dict[str, Direction] = {name: each.metric.better for name, each in running.items()}
    likelihood = True
    with evaluating(model), torch.no_grad():
        for _, (inputs, targets) in zip(track(range(len(windows)), f"{what}, batches"), windows, strict=False):
            outputs, state = model.predicted(inputs, state)
            total += model.judged(outputs, targets, reduction="sum").item()
            tokens += model.count(targets)
            weight += model.weight(targets)
            objective = model.objective(targets)
            likelihood, better = likelihood and objective.likelihood, {**objective.metrics, **better}
            for name, own in objective.totals(outputs, targets).items():
                totals[name] = totals.get(name, 0) + own
                if name in NAMED and name in running and running[name].metric is NAMED[name]:
                    del running[name]  # the loss knows which targets count
            for each in running.values():
                each.update(outputs, placed(targets, model.device), model.count(targets))
    if finite and not math.isfinite(total):
        raise FloatingPointError(f"Expected a finite loss, got {total}; look for inputs that are not finite.")
    if not weight:
        raise ValueError(f"Expected targets that count in some of {len(windows)} batches, got none; all are ignored.")
    metrics = {name: own / tokens for name, own in totals.items()}
    metrics |= {name: each.result() for name, each in running.items()}
    return Loss(
        total,
        tokens,
        totals.get("accuracy", math.nan),
        None if weight == tokens else weight,
        metrics,
        {name: better[name] for name in metrics},
        likelihood,
    )


def next_token_loss(
    model: LanguageModel, tokens: Tensor, targets: Tensor, state: State | None, *, reduction: str = "mean"
) -> tuple[Tensor, State]:
    """Return the cross-entropy of one window, padding left out, and the state; see `Measurable.loss`."""
    return model.loss(tokens, targets, state, reduction=reduction)


@dataclass(frozen=True)
class Size:
    """What a model costs to hold and to run.

    Attributes:
        neurons: Neurons of all layers.
        parameters: Stored numbers, shared ones once.
        multiply_adds: Multiply-adds for one token (one example).
    """

    neurons: int
    parameters: int
    multiply_adds: int


def size_of(model: Measurable) -> Size:
    """Return what the model costs to hold and to run.

    >>> import torch, pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> size_of(model)
    Size(neurons=6, parameters=171, multiply_adds=114)
    """
    expect_measurable(model)
    return Size(sum(model.widths()), sum(p.numel() for p in model.parameters()), model.multiply_adds())
