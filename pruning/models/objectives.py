"""What a network is for: its loss, targets drawn from its own outputs, how far two outputs are apart, and metrics."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.core.devices import moved
from pruning.data.windows import IGNORED

Criterion = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) → their mean loss, such as `nn.CrossEntropyLoss()`, `nn.MSELoss()`, or a function."""
Direction = Literal["higher", "lower"]
"""Which numbers of a metric are better."""


@dataclass(frozen=True)
class Objective(ABC):
    """What signals, repair, training and evaluation ask about a network's outputs and targets.

    Outputs are as the network gives them and targets as they stand in the batch; `rows` says what of them is one
    target. Losses are summed over targets that count, so that a sum divided by their `weight` is the mean.

    Attributes:
        criterion: (outputs, targets) → mean loss.
    """

    criterion: Criterion
    metrics: ClassVar[Mapping[str, Direction]] = {}
    """The metrics that `totals` gives, and which direction is better."""
    tempered: ClassVar[bool] = False
    """Whether outputs are logits, which a temperature can divide before they are compared."""
    drawn: ClassVar[bool] = False
    """Whether `fisher_loss` draws targets from the outputs; else it takes the true ones (the empirical Fisher)."""

    @property
    def name(self) -> str:
        """What the criterion is called."""
        function = self.criterion.func if isinstance(self.criterion, partial) else self.criterion
        return getattr(function, "__name__", type(function).__name__)

    @abstractmethod
    def rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the outputs, one row for each target, (n, values)."""

    @abstractmethod
    def counted(self, targets: Tensor) -> Tensor:
        """Return which targets count, (n,), where the targets are."""

    def weight(self, targets: Tensor) -> float:
        """Return what the mean loss is a mean over; the number of targets that count unless they have weights."""
        return int(self.counted(targets).sum())

    @abstractmethod
    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the criterion's loss.

        Raises:
            ValueError: If targets and outputs do not fit each other, or there is no single loss.
        """

    @abstractmethod
    def likelihood_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss that the true targets are scored by, summed over those that count."""

    def fisher_loss(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Return a sum over the targets that count whose gradient's second moment is the Fisher information.

        With targets drawn from the distribution of which the loss is the negative logarithm, that moment is the
        Gauss–Newton part of the loss's Hessian, in the loss's own units. Without such a distribution, it is the
        empirical Fisher information: the gradient by the true targets.

        Args:
            outputs: What the network gave.
            targets: The true ones.
            generator: On the CPU, so that draws are the same on any device.
        """
        return self.likelihood_loss(outputs, targets)

    def logarithms(self, outputs: Tensor, targets: Tensor) -> Tensor | None:  # noqa: ARG002
        """Return log-probabilities that loss and divergence both need; None where they need none."""
        return None

    def divergence(
        self,
        outputs: Tensor,  # noqa: ARG002 - for those who know one
        taught: Tensor,  # noqa: ARG002
        targets: Tensor,  # noqa: ARG002
        *,
        temperature: float,  # noqa: ARG002
        logarithms: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Return how far outputs are from a teacher's, the mean over the targets that count, but for a constant.

        Args:
            outputs: What the network gave.
            taught: What the teacher gave.
            targets: The true ones, which say what counts.
            temperature: Divides both outputs before they are compared, where they are logits (`tempered`).
            logarithms: `logarithms(outputs, targets)`, where it is at hand already.

        Raises:
            ValueError: If the loss knows no divergence.
        """
        raise ValueError(
            f"Expected a loss that tells how far two outputs are apart, to learn from a teacher, got {self.name}; "
            "train without a teacher (share 0)."
        )

    def totals(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:  # noqa: ARG002
        """Return the sum of each of `metrics` over the targets that count."""
        return {}


@dataclass(frozen=True)
class Classes(Objective):
    """One class for each target: logits (…, classes) or, as PyTorch has them for images, (examples, classes, …)."""

    metrics: ClassVar[Mapping[str, Direction]] = {"accuracy": "higher"}
    tempered = drawn = True

    def rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `Objective.rows`.

        Raises:
            TypeError: If the outputs have no dimension of classes.
        """
        if outputs.ndim < 2:
            raise TypeError(
                f"Expected logits (…, classes) from the network, got {tuple(outputs.shape)}; "
                "`call` can say where they are."
            )
        if outputs.ndim > 2 and targets.shape != outputs.shape[:-1]:
            outputs = outputs.movedim(1, -1) if targets.shape == outputs[:, 0].shape else outputs
        return outputs.flatten(0, -2)

    def labels(self, targets: Tensor) -> Tensor:
        """Return the targets as class numbers (n,) where they are, `IGNORED` where the criterion ignores them.

        Raises:
            ValueError: If the targets are no class numbers.
        """
        flat = class_numbers(targets)
        return flat.masked_fill(flat == setting(self.criterion, "ignore_index", IGNORED), IGNORED)

    def counted(self, targets: Tensor) -> Tensor:
        """See `Objective.counted`."""
        return self.labels(targets) != IGNORED

    def weight(self, targets: Tensor) -> float:
        """Return the sum of the weights of the targets' classes, where PyTorch's criterion has weights; else how many.

        That is what its mean is divided by. Another criterion's mean is taken as one over the targets that count.
        """
        weights = setting(self.criterion, "weight", None) if _is_one_of(self.criterion, WEIGHTED) else None
        if weights is None:
            return super().weight(targets)
        wanted = self.labels(targets)
        return float(weights.cpu()[wanted[wanted != IGNORED].cpu()].double().sum())

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `Objective.mean`."""
        rows, flat = self.rows(outputs, targets), moved(class_numbers(targets), outputs.device)
        if len(flat) != len(rows):
            raise ValueError(f"Expected a row of logits for each of {len(flat)} targets, got {len(rows)} rows.")
        return _single(self.criterion(rows, flat))

    def likelihood_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy, nat, whatever the criterion makes of it."""
        wanted = moved(self.labels(targets), outputs.device)
        return F.cross_entropy(self.rows(outputs, targets), wanted, ignore_index=IGNORED, reduction="sum")

    def fisher_loss(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Return the cross-entropy of classes drawn from the softmax."""
        rows, wanted = self.rows(outputs, targets), moved(self.labels(targets), outputs.device)
        labels = sampled_labels(rows.detach().softmax(-1), wanted, generator)
        return F.cross_entropy(rows, labels, ignore_index=IGNORED, reduction="sum")

    def logarithms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the log-softmax, (n, classes)."""
        return self.rows(outputs, targets).log_softmax(-1)

    def divergence(
        self, outputs: Tensor, taught: Tensor, targets: Tensor, *, temperature: float, logarithms: Tensor | None = None
    ) -> Tensor:
        """Return the cross-entropy with the teacher's softmax: the divergence, but for the teacher's entropy."""
        with torch.no_grad():
            shares = (self.rows(taught, targets) / temperature).softmax(-1)
        if temperature == 1:
            softened = self.logarithms(outputs, targets) if logarithms is None else logarithms
        else:
            softened = (self.rows(outputs, targets) / temperature).log_softmax(-1)
        wanted = moved(self.counted(targets), outputs.device)
        distance: Tensor = torch.linalg.vecdot(shares, softened)[wanted]  # one product, no copy of the logits
        return -distance.mean()

    def totals(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return how many targets have the highest logit."""
        likeliest = self.rows(outputs, targets).argmax(-1)
        return {"accuracy": int((likeliest == moved(self.labels(targets), outputs.device)).sum())}


@dataclass(frozen=True)
class Amounts(Objective):
    """Numbers for each target, as many as outputs, whose mean distance is the loss; here any such distance.

    A target is the last dimension's numbers, of an image all of the example's: (n,) are n targets of one number each,
    (n, d) n of d, (examples, steps, d) one for each step, (examples, channels, rows, columns) one for each example.

    Attributes:
        steps_first: Whether the network carries a state, so that (n, d) are n steps of d examples: n · d targets.
    """

    steps_first: bool = False

    metrics: ClassVar[Mapping[str, Direction]] = {"mean_absolute_error": "lower"}

    def rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `Objective.rows`."""
        _expect_alike(outputs, targets)
        return outputs.reshape(self._targets_in(targets.shape), -1)

    def counted(self, targets: Tensor) -> Tensor:
        """Return that every target counts, (n,)."""
        return torch.ones(self._targets_in(targets.shape), dtype=torch.bool, device=targets.device)

    def _targets_in(self, shape: torch.Size) -> int:
        """Return how many targets a batch of this shape has."""
        if len(shape) > 3:
            return shape[0]
        return math.prod(shape[:2]) if len(shape) == 3 or self.steps_first else shape[0]

    def _numbers_each(self, targets: Tensor) -> float:
        return targets.numel() / max(1, self._targets_in(targets.shape))

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `Objective.mean`."""
        return _single(self.criterion(outputs, _like(outputs, targets)))

    def likelihood_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the criterion's loss, summed over targets."""
        return self.mean(outputs, targets) * self.weight(targets)

    def divergence(
        self,
        outputs: Tensor,
        taught: Tensor,
        targets: Tensor,  # noqa: ARG002 - all count
        *,
        temperature: float,  # noqa: ARG002 - there is nothing to soften
        logarithms: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Return the criterion's loss with the teacher's outputs as targets."""
        return _single(self.criterion(outputs, taught))

    def totals(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the mean absolute error of each target, summed."""
        errors = (outputs - _like(outputs, targets)).abs()
        return {"mean_absolute_error": float(errors.double().mean() * self.weight(targets))}


@dataclass(frozen=True)
class Squared(Amounts):
    """Numbers by their mean squared error, which is twice the negative logarithm of a Gaussian of unit variance."""

    metrics: ClassVar[Mapping[str, Direction]] = {"mean_squared_error": "lower", "mean_absolute_error": "lower"}
    drawn = True

    def fisher_loss(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Return Σ √(2/d) · ½ (f − y)², y drawn from a Gaussian of unit variance around f, d numbers in a target.

        The gradient by f has the covariance 2/d, which is the Hessian of the mean squared error of a target.
        """
        noise = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
        drawn = outputs.detach() + noise
        return math.sqrt(2 / self._numbers_each(targets)) * 0.5 * (outputs - drawn).square().sum()

    def totals(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the mean squared and the mean absolute error of each target, summed."""
        squares = (outputs - _like(outputs, targets)).double().square()
        own = {"mean_squared_error": float(squares.mean() * self.weight(targets))}
        return own | super().totals(outputs, targets)


@dataclass(frozen=True)
class Labels(Amounts):
    """Any number of labels for each target, each there or not: logits and targets (…, labels) from 0 to 1."""

    metrics: ClassVar[Mapping[str, Direction]] = {"accuracy": "higher"}
    tempered = drawn = True

    def fisher_loss(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Return Σ √(1/d) · BCE(f, y), y drawn from Bernoulli(p), p = sigmoid(f), with d labels in a target.

        The gradient by f has the variance p (1 − p) / d, which is the Hessian of a target's mean loss by one logit
        (positive and other weights left out, as those of classes are).
        """
        chance = torch.rand(outputs.shape, generator=generator, dtype=torch.float64).to(outputs.device)
        drawn = (chance < outputs.detach().double().sigmoid()).to(outputs)
        loss = F.binary_cross_entropy_with_logits(outputs, drawn, reduction="sum")
        return math.sqrt(1 / self._numbers_each(targets)) * loss

    def divergence(
        self,
        outputs: Tensor,
        taught: Tensor,
        targets: Tensor,  # noqa: ARG002 - all count
        *,
        temperature: float,
        logarithms: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Return the binary cross-entropy with the teacher's probabilities, the divergence but for their entropy."""
        shares = (taught / temperature).sigmoid()
        return F.binary_cross_entropy_with_logits(outputs / temperature, shares)

    def totals(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the share of each target's labels that are on their side of one half, summed."""
        right = (outputs > 0) == (_like(outputs, targets) > 0.5)
        return {"accuracy": float(right.double().mean() * self.weight(targets))}


@dataclass(frozen=True)
class Examples(Objective):
    """Whatever a callable makes of outputs and targets: a mean over the examples of a batch, which all count.

    Attributes:
        example_dim: The dimension of outputs and targets that runs over examples; the first where they have fewer.
    """

    example_dim: int = 0

    def rows(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG002 - outputs have examples, too
        """Return all numbers of an example as one row."""
        dim = self._dim(outputs)
        return outputs.movedim(dim, 0).reshape(outputs.shape[dim], -1)

    def counted(self, targets: Tensor) -> Tensor:
        """Return that every example counts, (n,)."""
        return torch.ones(targets.shape[self._dim(targets)], dtype=torch.bool, device=targets.device)

    def _dim(self, tensor: Tensor) -> int:
        return self.example_dim if tensor.ndim > self.example_dim else 0

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `Objective.mean`."""
        return _single(self.criterion(outputs, moved(targets, outputs.device)))

    def likelihood_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the criterion's loss, summed over examples."""
        return self.mean(outputs, targets) * self.weight(targets)


WEIGHTED = (nn.CrossEntropyLoss, nn.NLLLoss, F.cross_entropy, F.nll_loss)
"""Criteria of classes, whose mean is one over the weights of classes, should they have some."""
KNOWN: tuple[tuple[tuple[Any, ...], type[Objective]], ...] = (
    (WEIGHTED, Classes),
    ((nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits), Labels),
    ((nn.MSELoss, F.mse_loss), Squared),
    ((nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, F.l1_loss, F.smooth_l1_loss, F.huber_loss), Amounts),
)
"""Criteria by class or function, and what a network is for that is judged by them."""


def objective_of(
    criterion: Criterion, targets: Tensor, *, example_dim: int = 0, steps_first: bool = False
) -> Objective:
    """Return what a network is for that is judged by this criterion on such targets.

    A criterion that is not known judges classes where targets are whole numbers, else examples.

    >>> objective_of(nn.MSELoss(), torch.zeros(3)).metrics
    {'mean_squared_error': 'lower', 'mean_absolute_error': 'lower'}
    """
    for known, kind in KNOWN:
        if _is_one_of(criterion, known):
            return kind(criterion, steps_first) if issubclass(kind, Amounts) else kind(criterion)
    return Examples(criterion, example_dim) if targets.is_floating_point() else Classes(criterion)


def sampled_labels(probabilities: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return one class drawn for each row, (n,), the same for the same generator on any device.

    Args:
        probabilities: Of each class, (n, classes).
        labels: The true ones, (n,); `IGNORED` stays `IGNORED`.
        generator: On the CPU.
    """
    reached = probabilities.cumsum(1)
    chance = torch.rand(len(reached), 1, generator=generator, dtype=reached.dtype).to(reached.device)
    drawn = torch.searchsorted(reached, chance * reached[:, -1:], right=True).flatten()
    return torch.where(labels == IGNORED, labels, drawn.clamp(max=reached.shape[1] - 1))


def class_numbers(targets: Tensor) -> Tensor:
    """Return class numbers (n,).

    Raises:
        ValueError: If the targets are none.
    """
    if targets.is_floating_point():
        raise ValueError(f"Expected class numbers as targets, got {targets.dtype}.")
    return targets.flatten()


def setting(criterion: Criterion, name: str, usual: Any) -> Any:
    """Return a setting of a criterion, also where it is a function with some arguments given (`functools.partial`)."""
    if isinstance(criterion, partial):
        return criterion.keywords.get(name, usual)
    return getattr(criterion, name, usual)


def _is_one_of(criterion: Criterion, known: tuple[Any, ...]) -> bool:
    """Return whether the criterion is an instance of one of these classes, or one of these functions."""
    function = criterion.func if isinstance(criterion, partial) else criterion
    kinds = tuple(kind for kind in known if isinstance(kind, type))
    return isinstance(criterion, kinds) or any(function is kind for kind in known)


def _single(loss: Tensor) -> Tensor:
    if loss.ndim:
        raise ValueError(f"Expected a criterion that gives one number, got {tuple(loss.shape)}.")
    return loss


def _like(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the targets where the outputs are, of their kind and shape."""
    _expect_alike(outputs, targets)
    return moved(targets, outputs.device).to(outputs.dtype).reshape(outputs.shape)


def _expect_alike(outputs: Tensor, targets: Tensor) -> None:
    """Refuse shapes that differ in more than dimensions of size 1: PyTorch would compare a target with many outputs.

    Raises:
        ValueError: If they do.
    """
    own, other = ([size for size in tensor.shape if size != 1] for tensor in (outputs, targets))
    if own != other:
        raise ValueError(
            f"Expected targets of the outputs' shape {tuple(outputs.shape)}, got {tuple(targets.shape)}; "
            "give one number for each output."
        )
