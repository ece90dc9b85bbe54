"""What users want to see beside the loss: metrics by name, functions, and objects that are updated and computed."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from pruning.core.devices import moved
from pruning.core.nested import mapped
from pruning.core.options import expect_known
from pruning.core.words import described
from pruning.models.amounts import like
from pruning.models.answers import detached, main_of
from pruning.models.objectives import Direction

DIRECTIONS = get_args(Direction)


@dataclass(frozen=True)
class Metric:
    """A number that says how good outputs are.

    >>> Metric(lambda outputs, targets: (outputs - targets).abs().max(), better="lower").better
    'lower'

    Attributes:
        measure: (outputs, targets) → its mean over the examples of a batch; or an object with `update(outputs,
            targets)`, `compute()` and `reset()`, as those of `torchmetrics`.
        better: Whether `higher` or `lower` numbers are better.
    """

    measure: Any
    better: Direction

    def __post_init__(self) -> None:
        """Refuse another direction, and what measures nothing."""
        expect_known("direction", DIRECTIONS, self.better, where=" of a metric")
        if not callable(self.measure) and not _is_updated(self.measure):
            raise TypeError(
                "Expected a metric that is a function of (outputs, targets), or has update and compute, got "
                f"{type(self.measure).__name__}."
            )


class Running:
    """A metric over batches: the mean of a function's numbers, each weighed by its batch's targets, or `compute()`."""

    def __init__(self, metric: Metric) -> None:
        self.metric, self.total, self.count = metric, 0.0, 0.0
        if _is_updated(metric.measure):
            metric.measure.reset()

    def update(self, outputs: Any, targets: Any, count: float) -> None:
        """Take in a batch with so many targets."""
        outputs, measure = detached(outputs), self.metric.measure
        if _is_updated(measure):
            device = getattr(measure, "device", None)
            if isinstance(device, torch.device):  # where it keeps its state, and takes nothing from elsewhere
                outputs, targets = (mapped(lambda part: moved(part, device), value) for value in (outputs, targets))
            measure.update(outputs, _shaped(targets, outputs))
        else:
            self.total += _one_number(measure(outputs, targets)) * count
            self.count += count

    def result(self) -> float:
        """Return the metric over all batches."""
        if not _is_updated(self.metric.measure):
            return self.total / self.count
        return _one_number(self.metric.measure.compute())


def _one_number(number: Any) -> float:
    """Return what a metric gave as a number.

    Raises:
        TypeError: If it is more than one.
    """
    if isinstance(number, Tensor) and number.numel() != 1:
        what = f"a tensor of shape {tuple(number.shape)}"
        raise TypeError(f"Expected one number from a metric, got {what}; let it give the mean over the examples.")
    return float(number)


def _shaped(targets: Any, outputs: Any) -> Any:
    """Return targets of numbers in the outputs' shape where these differ in dimensions of size 1 alone."""
    known = isinstance(targets, Tensor) and isinstance(outputs, Tensor)
    if known and targets.is_floating_point() and targets.squeeze().shape == outputs.squeeze().shape:
        return targets.reshape(outputs.shape)
    return targets


def _is_updated(measure: Any) -> bool:
    return all(callable(getattr(measure, name, None)) for name in ("update", "compute", "reset"))


def _accuracy(outputs: Any, targets: Any) -> Tensor:
    logits = main_of(outputs)
    likeliest = logits.argmax(1 if targets.shape == logits[:, 0].shape else -1)
    right: Tensor = likeliest.flatten() == targets.flatten()
    return right.cpu().double().mean()


def _error(power: int) -> Callable[[Any, Any], Tensor]:
    def error(outputs: Any, targets: Any) -> Tensor:
        guess = main_of(outputs)
        mean: Tensor = (guess - like(guess, targets)).abs().cpu().double().pow(power).mean()
        return mean

    return error


def _cosine(outputs: Any, targets: Any) -> Tensor:
    guess = main_of(outputs)
    cosines: Tensor = F.cosine_similarity(guess, like(guess, targets), dim=-1)
    return cosines.cpu().double().mean()


NAMED: Mapping[str, Metric] = {
    "accuracy": Metric(_accuracy, "higher"),
    "mean_squared_error": Metric(_error(2), "lower"),
    "mean_absolute_error": Metric(_error(1), "lower"),
    "cosine_similarity": Metric(_cosine, "higher"),
}
"""Metrics that a name is enough for."""


def metrics_of(given: Mapping[str, Any] | Iterable[Any] | str | None) -> dict[str, Metric]:
    """Return metrics by name, in whatever way they were given.

    >>> sorted(metrics_of(["accuracy"]))
    ['accuracy']

    Args:
        given: A name of `NAMED`, several in a list, or name → `Metric`, a pair (function, direction), or an object
            with `update`, `compute` and `higher_is_better`. Those may stand in a list, too, under their class's name,
            or in a `torchmetrics.MetricCollection`.

    Raises:
        ValueError: For an unknown name, or a metric whose better direction is not said.
    """
    if given is None:
        return {}
    several: Any = given if isinstance(given, Mapping) or callable(getattr(given, "items", None)) else None
    if several is not None:
        return {str(name): _metric(str(name), measure) for name, measure in several.items()}
    each = [given] if isinstance(given, str) or callable(given) or _is_updated(given) else list(given)
    named = {one if isinstance(one, str) else _name_of(one): one for one in each}
    return {name: _metric(name, measure) for name, measure in named.items()}


def _name_of(measure: Any) -> str:
    measure = measure.measure if isinstance(measure, Metric) else measure
    return getattr(measure, "__name__", type(measure).__name__)


def _metric(name: str, measure: Any) -> Metric:
    if isinstance(measure, Metric):
        return measure
    if isinstance(measure, str):
        if measure not in NAMED:
            raise ValueError(f"Unknown metric {measure!r}; known: {list(NAMED)}, or give a function of your own.")
        return NAMED[measure]
    if isinstance(measure, tuple) and len(measure) == 2:
        return Metric(*measure)
    better = getattr(measure, "higher_is_better", None)
    if better is None:
        raise ValueError(
            f"Expected which numbers of the metric {name!r} are better, got {described(measure)} alone; give "
            f"pruning.Metric({name}, better='lower') or better='higher'."
        )
    return Metric(measure, "higher" if better else "lower")
