"""One class for each target, by number or as shares of all: cross-entropies, and whatever else judges logits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from pruning.core.devices import moved
from pruning.core.words import described
from pruning.data.batches import Unlabelled
from pruning.data.windows import IGNORED
from pruning.models.answers import main_of, several
from pruning.models.likelihood import cross_entropy
from pruning.models.objectives import (
    Criterion,
    Direction,
    Objective,
    counting_all,
    first_taken,
    is_one_of,
    setting,
    single,
)

WEIGHTED = (nn.CrossEntropyLoss, nn.NLLLoss, F.cross_entropy, F.nll_loss)
"""Criteria of classes, whose mean is one over the weights of classes, should they have some."""


@dataclass(frozen=True)
class Classes(Objective):
    """One class for each target: logits (…, classes) or, as PyTorch has them for images, (examples, classes, …).

    Attributes:
        shape: Of the network's outputs for other examples, where a loss of a user's own judges them. Such a loss is
            the one to say which numbers it ignores: those that no logit is of are taken for them.
        ignored: Further numbers that it was seen to ignore, see `pruning.models.asking`.
    """

    shape: torch.Size | None = None
    ignored: frozenset[int] = frozenset()
    metrics: ClassVar[Mapping[str, Direction]] = {"accuracy": "higher"}
    tempered = True
    drawn = "categorical"

    @property
    def likelihood(self) -> bool:
        """See `Objective.likelihood`; smoothed labels or weights of classes make it another loss."""
        plain = setting(self.criterion, "label_smoothing", 0.0) == 0 and _weights(self.criterion) is None
        return plain and is_one_of(self.criterion, WEIGHTED)

    def rows(self, outputs: Any, targets: Any) -> Tensor:
        """See `Objective.rows`; of outputs without targets, a row for each place along the last dimension.

        Raises:
            TypeError: If the outputs have no dimension of classes.
        """
        outputs = main_of(outputs)
        if outputs.ndim < 2:
            raise TypeError(
                f"Expected logits (…, classes) from the network, got {tuple(outputs.shape)}; "
                "`call` can say where they are."
            )
        rows: Tensor = outputs.movedim(self.dim_of(outputs, targets), -1).flatten(0, -2)
        return rows

    def dim_of(self, outputs: Tensor, targets: Any) -> int:
        """Return the dimension of outputs that runs over classes: the last, or the second as PyTorch has it."""
        several = outputs.ndim > 2 and isinstance(targets, Tensor) and targets.shape != outputs.shape[:-1]
        return 1 if several and targets.shape == outputs[:, 0].shape else -1

    def labels(self, targets: Any) -> Tensor:
        """Return the targets as class numbers (n,) where they are, `IGNORED` where the criterion ignores them.

        Raises:
            ValueError: If the targets are no class numbers.
        """
        flat = class_numbers(targets)
        ignored = flat == setting(self.criterion, "ignore_index", IGNORED)
        if self.shape is not None:
            ignored |= (flat < 0) | (flat >= _most_classes(self.shape, targets))
        for number in self.ignored:
            ignored |= flat == number
        return flat.masked_fill(ignored, IGNORED)

    def counted(self, targets: Any) -> Tensor:
        """See `Objective.counted`."""
        return counting_all(targets) if isinstance(targets, Unlabelled) else self.labels(targets) != IGNORED

    def weight(self, targets: Any) -> float:
        """Return the sum of the weights of the targets' classes, where PyTorch's criterion has weights; else how many.

        That is what its mean is divided by. Another criterion's mean is taken as one over the targets that count.
        """
        weights = _weights(self.criterion)
        if weights is None or isinstance(targets, Unlabelled):
            return super().weight(targets)
        wanted = self.labels(targets)
        return float(weights.cpu()[wanted[wanted != IGNORED].cpu()].double().sum())

    def mean(self, outputs: Any, targets: Any) -> Tensor:
        """See `Objective.mean`."""
        self.expect_labelled(targets)
        rows, flat = self.rows(outputs, targets), moved(class_numbers(targets), main_of(outputs).device)
        if len(flat) != len(rows):
            raise ValueError(f"Expected a row of logits for each of {len(flat)} targets, got {len(rows)} rows.")
        if is_one_of(self.criterion, WEIGHTED):
            if is_one_of(self.criterion, WEIGHTED[1::2]):
                _expect_logarithms(self.name, rows)
            return single(_judged(self.criterion, rows, flat.long()))
        whole = moved(targets, rows.device)
        alone, given = [(rows, flat), (main_of(outputs), whole)], (outputs, whole)
        if several(outputs):  # of which a loss that looks for its part would also find some in a tensor
            return single(first_taken(self.criterion, given, *alone))
        return single(first_taken(self.criterion, *alone, given, blamed=2))

    def likelihood_loss(self, outputs: Any, targets: Any) -> Tensor:
        """Return the cross-entropy, nat, whatever the criterion makes of it."""
        self.expect_labelled(targets)
        rows = self.rows(outputs, targets)
        return cross_entropy(rows, moved(self.labels(targets), rows.device), reduction="sum")

    def fisher_loss(self, outputs: Any, targets: Any, generator: torch.Generator) -> Tensor:
        """Return the cross-entropy of classes drawn from the softmax."""
        rows = self.rows(outputs, targets)
        labels = sampled_labels(rows.detach().softmax(-1), self._wanted(rows, targets), generator)
        return cross_entropy(rows, labels, reduction="sum")

    def _wanted(self, rows: Tensor, targets: Any) -> Tensor:
        """Return `labels` where the rows are; without targets, some class for each row."""
        if isinstance(targets, Unlabelled):
            return torch.zeros(len(rows), dtype=torch.long, device=rows.device)
        return moved(self.labels(targets), rows.device)

    def logarithms(self, outputs: Any, targets: Any) -> Tensor:
        """Return the log-softmax, (n, classes)."""
        return self.rows(outputs, targets).log_softmax(-1)

    def divergence(
        self, outputs: Any, taught: Any, targets: Any, *, temperature: float, logarithms: Tensor | None = None
    ) -> Tensor:
        """Return the cross-entropy with the teacher's softmax: the divergence, but for the teacher's entropy."""
        with torch.no_grad():
            shares = (self.rows(taught, targets) / temperature).softmax(-1)
        if temperature == 1:
            softened = self.logarithms(outputs, targets) if logarithms is None else logarithms
        else:
            softened = (self.rows(outputs, targets) / temperature).log_softmax(-1)
        distance: Tensor = torch.linalg.vecdot(shares, softened)  # one product, no copy of the logits
        if not isinstance(targets, Unlabelled):
            distance = distance[moved(self.counted(targets), distance.device)]
        return -distance.mean()

    def totals(self, outputs: Any, targets: Any) -> dict[str, float]:
        """Return how many targets have the highest logit; of equal ones the first counts.

        Where it is highest is looked for in the few rows whose target reaches it, for that takes five times as long.
        """
        rows = self.rows(outputs, targets)
        labels = moved(self.labels(targets), rows.device)
        if not rows.numel():
            return {"accuracy": 0}
        known = labels.clamp(0, rows.shape[1] - 1)
        reached = (rows.gather(1, known[:, None])[:, 0] == rows.amax(1)) & (known == labels)
        return {"accuracy": int((rows[reached].argmax(1) == labels[reached]).sum())}


@dataclass(frozen=True)
class Shares(Classes):
    """As `Classes`, each target being the share of every class: of the outputs' shape, as mixed labels have it."""

    @property
    def likelihood(self) -> bool:
        """See `Objective.likelihood`: of shares there is none."""
        return False

    def rows(self, outputs: Any, targets: Any) -> Tensor:  # noqa: ARG002
        """See `Objective.rows`: classes are the second dimension, as PyTorch has them."""
        return self._flat(main_of(outputs))

    def _flat(self, tensor: Tensor) -> Tensor:
        return tensor.movedim(1, -1).flatten(0, -2)

    def labels(self, targets: Any) -> Tensor:
        """Return the class of the largest share, (n,)."""
        return self._flat(targets).argmax(-1)

    def counted(self, targets: Any) -> Tensor:
        """Return that every target counts, (n,)."""
        if isinstance(targets, Unlabelled):
            return counting_all(targets)
        if targets.ndim < 2:
            raise ValueError(
                f"Expected class numbers, or shares of all classes, as targets, got {targets.dtype} of shape "
                f"{tuple(targets.shape)}; use `targets.long()` if they are class numbers."
            )
        return torch.ones(targets.numel() // targets.shape[1], dtype=torch.bool, device=targets.device)

    def weight(self, targets: Any) -> float:
        """Return how many targets there are, which is what PyTorch's mean over shares is divided by."""
        return int(self.counted(targets).sum())

    def mean(self, outputs: Any, targets: Any) -> Tensor:
        """See `Objective.mean`."""
        self.expect_labelled(targets)
        logits = main_of(outputs)
        if logits.shape != targets.shape:
            raise ValueError(
                f"Expected class numbers, or shares of the logits' shape {tuple(logits.shape)}, as targets, got "
                f"{targets.dtype} of shape {tuple(targets.shape)}; use `targets.long()` if they are class numbers."
            )
        return single(self.criterion(logits, moved(targets, logits.device).to(logits.dtype)))

    def likelihood_loss(self, outputs: Any, targets: Any) -> Tensor:
        """Return the criterion's loss, summed over targets."""
        return self.mean(outputs, targets) * self.weight(targets)


def sampled_labels(probabilities: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return one class drawn for each row, (n,), the same for the same generator on any device.

    Args:
        probabilities: Of each class, (n, classes).
        labels: The true ones, (n,); `IGNORED` stays `IGNORED`.
        generator: On the CPU.
    """
    reached = probabilities.cumsum(1)
    chance = chances(len(reached), generator, reached.dtype).to(reached.device)
    drawn = torch.searchsorted(reached, chance * reached[:, -1:], right=True).flatten()
    return torch.where(labels == IGNORED, labels, drawn.clamp(max=reached.shape[1] - 1))


def chances(rows: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Return what classes are drawn by, a number in [0, 1) for each row, (rows, 1)."""
    return torch.rand(rows, 1, generator=generator, dtype=dtype)


def class_numbers(targets: Any) -> Tensor:
    """Return class numbers (n,).

    Raises:
        ValueError: If the targets are none.
    """
    if isinstance(targets, PackedSequence):
        targets = targets.data
    if not isinstance(targets, Tensor):
        raise ValueError(
            f"Expected class numbers in one tensor as targets, got {described(targets)}; `split` can make one of them."
        )
    if targets.is_floating_point():
        raise ValueError(
            f"Expected class numbers as targets, got {targets.dtype}; use `targets.long()`, or a loss of numbers, "
            "such as nn.MSELoss()."
        )
    return targets.flatten()


def _most_classes(shape: torch.Size, targets: Any) -> int:
    """Return how many logits rows of outputs of this shape have, the most that may be where both ends fit."""
    inner = targets.shape[1:] if isinstance(targets, Tensor) else ()
    last, second = (inner == rest for rest in (shape[1:-1], shape[2:]))
    return max(shape[-1:] if last > second else shape[1:2] if second > last else (shape[-1], shape[1]))


def _expect_logarithms(name: str, rows: Tensor) -> None:
    """Refuse scores for log-probabilities, which a negative log-likelihood takes for them without a word.

    Raises:
        ValueError: If their exponents do not sum to one.
    """
    largest = rows.detach().float().logsumexp(-1).abs().max() if rows.numel() else rows.new_zeros(())
    if largest > 0.1:
        raise ValueError(
            f"Expected log-probabilities for {name}, got numbers whose exponents sum to {largest.exp():.3g}; end the "
            "network with log_softmax(-1), or judge its logits by nn.CrossEntropyLoss()."
        )


def _judged(criterion: Criterion, rows: Tensor, labels: Tensor) -> Tensor:
    """Return what one of PyTorch's criteria gives.

    Raises:
        ValueError: If a label is no class, which is noticed on a CPU.
    """
    try:
        return criterion(rows, labels)
    except IndexError as error:
        wrong = labels[(labels < 0) | (labels >= rows.shape[1])]
        wrong = wrong[wrong != setting(criterion, "ignore_index", IGNORED)]
        raise ValueError(
            f"Expected class numbers from 0 to {rows.shape[1] - 1}, one for each of the {rows.shape[1]} logits, got "
            f"{wrong[:1].tolist()[0] if len(wrong) else error}; padding is told by `ignore_index` of the loss."
        ) from error


def _weights(criterion: Criterion) -> Tensor | None:
    """Return the weights of classes that one of PyTorch's criteria has."""
    weights: Tensor | None = setting(criterion, "weight", None) if is_one_of(criterion, WEIGHTED) else None
    return weights
