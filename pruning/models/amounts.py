"""Numbers or labels for each output: squares, absolute and other distances, Gaussians, Bernoulli variables."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.core.devices import moved
from pruning.core.nested import parts_of
from pruning.core.words import described
from pruning.data.batches import Unlabelled
from pruning.models.answers import amounts_in, as_real, main_of
from pruning.models.objectives import Direction, Objective, counting_all, is_one_of, single

SHARES = (nn.BCELoss, F.binary_cross_entropy)
"""Criteria of labels that read probabilities; the others read logits."""
MEANS, VARIANCES = ("mean", "mu", "loc"), ("var", "variance")
"""What a Gaussian's outputs are called, where they have names."""


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

    def guess(self, outputs: Any) -> Tensor:
        """Return what the targets are compared with."""
        return main_of(outputs)

    def rows(self, outputs: Any, targets: Any) -> Tensor:
        """See `Objective.rows`."""
        guess = self.guess(outputs)
        if isinstance(targets, Tensor):
            targets = targets if guess.is_complex() else as_real(targets)
            _expect_alike(guess, targets)
            return guess.reshape(self._targets_in(targets.shape), -1)
        return guess.reshape(self._targets_in(guess.shape), -1)

    def counted(self, targets: Any) -> Tensor:
        """Return that every target counts, (n,)."""
        if isinstance(targets, Unlabelled):
            return counting_all(targets)
        if not isinstance(targets, Tensor):
            raise ValueError(f"Expected one tensor of targets for the loss {self.name}, got {described(targets)}.")
        return torch.ones(self._targets_in(targets.shape), dtype=torch.bool, device=targets.device)

    def _targets_in(self, shape: torch.Size) -> int:
        """Return how many targets a batch of this shape has."""
        if len(shape) > 3:
            return shape[0]
        return math.prod(shape[:2]) if len(shape) == 3 or self.steps_first else shape[0]

    def numbers_each(self, outputs: Any, targets: Any) -> float:
        """Return how many numbers one target has."""
        numbers = as_real(targets) if isinstance(targets, Tensor) else self.guess(outputs)
        return numbers.numel() / max(1, self._targets_in(numbers.shape))

    def mean(self, outputs: Any, targets: Any) -> Tensor:
        """See `Objective.mean`."""
        self.expect_labelled(targets)
        guess = self.guess(outputs)
        return single(self.criterion(guess, like(guess, targets)))

    def divergence(self, outputs: Any, taught: Any, targets: Any, **_: Any) -> Tensor:  # noqa: ARG002 - all count
        """Return the criterion's loss with the teacher's outputs as targets."""
        return single(self.criterion(self.guess(outputs), self.guess(taught)))

    def totals(self, outputs: Any, targets: Any) -> dict[str, float]:
        """Return the mean absolute error of each target, summed."""
        guess = self.guess(outputs)
        errors = (guess - like(guess, targets)).abs()
        return {"mean_absolute_error": float(errors.cpu().double().mean() * self.weight(targets))}


@dataclass(frozen=True)
class Squared(Amounts):
    """Numbers by their mean squared error, which is twice the negative logarithm of a Gaussian of unit variance.

    A complex number is two, its real and its imaginary part, for PyTorch has no squared error of complex ones.
    """

    metrics: ClassVar[Mapping[str, Direction]] = {"mean_squared_error": "lower", "mean_absolute_error": "lower"}
    drawn = "Gaussian"

    def guess(self, outputs: Any) -> Tensor:
        """Return what the targets are compared with, real numbers."""
        return as_real(main_of(outputs))

    def fisher_loss(self, outputs: Any, targets: Any, generator: torch.Generator) -> Tensor:
        """Return Σ √(2/d) · ½ (f − y)², y drawn from a Gaussian of unit variance around f, d numbers in a target.

        The gradient by f has the covariance 2/d, which is the Hessian of the mean squared error of a target.
        """
        guess = self.guess(outputs)
        return math.sqrt(2 / self.numbers_each(outputs, targets)) * squares_from_drawn(guess, generator)

    def totals(self, outputs: Any, targets: Any) -> dict[str, float]:
        """Return the mean squared and the mean absolute error of each target, summed."""
        guess = self.guess(outputs)
        squares = (guess - like(guess, targets)).cpu().double().square()
        errors = {"mean_squared_error": float(squares.mean() * self.weight(targets))}
        return errors | super().totals(outputs, targets)


@dataclass(frozen=True)
class Gaussian(Squared):
    """Numbers with how sure they are: a mean and a variance of the same shape, by the Gaussian's likelihood.

    Outputs are (mean, variance), or both by name.
    """

    whole = True

    def both(self, outputs: Any) -> tuple[Tensor, Tensor]:
        """Return mean and variance.

        Raises:
            TypeError: If the outputs are not these two.
        """
        parts = parts_of(outputs) or {}
        by_name = [parts[name] for names in (MEANS, VARIANCES) for name in names if name in parts]
        pair: list[Any] = by_name if len(by_name) == 2 else list(parts.values())[:2]
        if len(pair) != 2 or not all(isinstance(part, Tensor) for part in pair):
            raise TypeError(
                f"Expected (mean, variance) from the network for the loss {self.name}, got {described(outputs)}; "
                "let `call` return both."
            )
        return pair[0], pair[1]

    def guess(self, outputs: Any) -> Tensor:
        """Return the mean."""
        return self.both(outputs)[0]

    def mean(self, outputs: Any, targets: Any) -> Tensor:
        """See `Objective.mean`."""
        self.expect_labelled(targets)
        mean, variance = self.both(outputs)
        return single(self.criterion(mean, like(mean, targets), variance))

    def fisher_loss(self, outputs: Any, targets: Any, generator: torch.Generator) -> Tensor:
        """Return Σ √(1/d) · ½ (log v + (m − y)² / v), y drawn from the Gaussian of mean m and variance v.

        The gradient's covariance is the Fisher information of m and v over d, the Gauss–Newton part of a target's mean
        loss.
        """
        mean, variance = self.both(outputs)
        noise = torch.randn(mean.shape, generator=generator, dtype=torch.float64).to(mean)
        drawn = mean.detach() + variance.detach().sqrt() * noise
        loss = 0.5 * (variance.log() + (mean - drawn).square() / variance)
        return math.sqrt(1 / self.numbers_each(outputs, targets)) * loss.sum()

    def divergence(self, outputs: Any, taught: Any, targets: Any, **_: Any) -> Tensor:  # noqa: ARG002 - all count
        """Return the mean of KL(taught ‖ own) over numbers: ½ (log v/v_t + (v_t + (m − m_t)²) / v − 1)."""
        (mean, variance), (taught_mean, taught_variance) = self.both(outputs), self.both(taught)
        ratio = (taught_variance + (mean - taught_mean).square()) / variance
        return 0.5 * (variance.log() - taught_variance.log() + ratio - 1).mean()


@dataclass(frozen=True)
class Labels(Amounts):
    """Any number of labels for each target, each there or not: targets (…, labels) from 0 to 1.

    Outputs are logits, or probabilities where the criterion is one of `SHARES`.
    """

    metrics: ClassVar[Mapping[str, Direction]] = {"accuracy": "higher"}
    tempered = True
    drawn = "Bernoulli"

    def logits(self, outputs: Any) -> Tensor:
        """Return the logits of the labels."""
        shares = main_of(outputs)
        return shares.logit(eps=torch.finfo(shares.dtype).eps) if is_one_of(self.criterion, SHARES) else shares

    def mean(self, outputs: Any, targets: Any) -> Tensor:
        """See `Objective.mean`.

        Raises:
            ValueError: For a criterion of probabilities and numbers that are none.
        """
        if is_one_of(self.criterion, SHARES):
            least, most = main_of(outputs).detach().aminmax()
            if least < 0 or most > 1:
                raise ValueError(
                    f"Expected probabilities for {self.name}, got numbers from {least:.3g} to {most:.3g}; end the "
                    "network with a sigmoid, or judge its logits by nn.BCEWithLogitsLoss()."
                )
        return super().mean(outputs, targets)

    def fisher_loss(self, outputs: Any, targets: Any, generator: torch.Generator) -> Tensor:
        """Return Σ √(1/d) · BCE(f, y), y drawn from Bernoulli(p), p = sigmoid(f), with d labels in a target.

        The gradient by f has the variance p (1 − p) / d, which is the Hessian of a target's mean loss by one logit
        (positive and other weights left out, as those of classes are).
        """
        logits = self.logits(outputs)
        chance = torch.rand(logits.shape, generator=generator, dtype=torch.float64)
        drawn = (chance < logits.detach().cpu().double().sigmoid()).to(logits)
        loss = F.binary_cross_entropy_with_logits(logits, drawn, reduction="sum")
        return math.sqrt(1 / self.numbers_each(outputs, targets)) * loss

    def divergence(self, outputs: Any, taught: Any, targets: Any, *, temperature: float = 1.0, **_: Any) -> Tensor:  # noqa: ARG002
        """Return the binary cross-entropy with the teacher's probabilities, the divergence but for their entropy."""
        shares = (self.logits(taught) / temperature).sigmoid()
        return F.binary_cross_entropy_with_logits(self.logits(outputs) / temperature, shares)

    def totals(self, outputs: Any, targets: Any) -> dict[str, float]:
        """Return the share of each target's labels that are on their side of one half, summed."""
        logits = self.logits(outputs)
        right = (logits > 0) == (like(logits, targets) > 0.5)
        return {"accuracy": float(right.cpu().double().mean() * self.weight(targets))}


def squares_from_drawn(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """Return Σ ½ (f − y)², y drawn from a Gaussian of unit variance around each output f."""
    noise = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
    return 0.5 * (outputs - (outputs.detach() + noise)).square().sum()


def squared_distance(outputs: Any, taught: Any, example_dim: int = 0) -> Tensor | None:
    """Return the mean squared distance of all numbers in two answers; None if they are not of the same shapes."""
    ours, theirs = amounts_in(outputs, example_dim), amounts_in(taught, example_dim)
    if not ours or [part.shape for part in ours] != [part.shape for part in theirs]:
        return None
    squares = [(one - two).square().flatten() for one, two in zip(ours, theirs, strict=True)]
    return torch.cat(squares).mean()


def like(outputs: Tensor, targets: Any) -> Tensor:
    """Return the targets where the outputs are, of their kind and shape.

    Raises:
        ValueError: If they are of another shape.
    """
    if not isinstance(targets, Tensor):
        raise ValueError(f"Expected targets of the outputs' shape {tuple(outputs.shape)}, got {described(targets)}.")
    targets = targets if outputs.is_complex() else as_real(targets)
    _expect_alike(outputs, targets)
    return moved(targets, outputs.device).to(outputs.dtype).reshape(outputs.shape)


def _expect_alike(outputs: Tensor, targets: Tensor) -> None:
    """Refuse shapes that differ in more than dimensions of size 1: PyTorch would compare a target with many outputs.

    Raises:
        ValueError: If they do.
    """
    ours, theirs = ([size for size in tensor.shape if size != 1] for tensor in (outputs, targets))
    if ours != theirs:
        raise ValueError(
            f"Expected targets of the outputs' shape {tuple(outputs.shape)}, got {tuple(targets.shape)}; "
            "give one number for each output."
        )
