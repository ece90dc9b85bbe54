"""Losses over whole examples: a user's own function, distances between embeddings, a network's own loss, or none."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.core.nested import parts_of, tensors_in
from pruning.core.words import described
from pruning.data.batches import Unlabelled
from pruning.models.amounts import squared_distance, squares_from_drawn
from pruning.models.answers import amounts_in, main_of, several
from pruning.models.arranging import forms_of, refusal, takes
from pruning.models.classes import Classes
from pruning.models.objectives import Direction, Objective, counting_all, first_taken, is_one_of, placed, single

PAIRED = (nn.CosineEmbeddingLoss, F.cosine_embedding_loss, nn.MarginRankingLoss, F.margin_ranking_loss)
"""Criteria of two outputs and a target."""
TRIPLE = (
    nn.TripletMarginLoss,
    nn.TripletMarginWithDistanceLoss,
    F.triplet_margin_loss,
    F.triplet_margin_with_distance_loss,
)
"""Criteria of three outputs: an anchor, one that is near, one that is far."""
COSINE = PAIRED[:2]


@dataclass(frozen=True)
class Examples(Objective):
    """Whatever a callable makes of outputs and targets: a mean over the examples of a batch, which all count.

    It is given all that the network gives where that is more than one output; if it cannot take that, what else its
    arguments allow (see `forms_of`), or the main output.

    Attributes:
        example_dim: The dimension of outputs and targets that runs over examples; the first where they have fewer.
    """

    example_dim: int = 0

    whole = True

    def rows(self, outputs: Any, targets: Any) -> Tensor:
        """Return all numbers of an example as one row."""
        examples = len(self.counted(targets))
        parts = []
        for part in amounts_in(outputs, self.example_dim):
            dim = self._dim(part)
            if part.shape[dim] % max(1, examples) == 0:  # as many rows for each example, of other outputs left out
                parts.append(part.movedim(dim, 0).reshape(max(1, examples), -1))
        if not parts:
            raise TypeError(f"Expected outputs with a row for each of {examples} examples, got {described(outputs)}.")
        return torch.cat(parts, dim=1)

    def counted(self, targets: Any) -> Tensor:
        """Return that every example counts, (n,)."""
        if isinstance(targets, Unlabelled):
            return counting_all(targets)
        first = next(tensors_in(targets), None)
        if first is None:
            raise ValueError(f"Expected tensors as targets for the loss {self.name}, got {described(targets)}.")
        count = first.shape[self._dim(first)] if first.ndim else 1
        return torch.ones(count, dtype=torch.bool, device=first.device)

    def _dim(self, tensor: Tensor) -> int:
        return self.example_dim if tensor.ndim > self.example_dim else 0

    def mean(self, outputs: Any, targets: Any) -> Tensor:
        """See `Objective.mean`."""
        first = next(tensors_in(outputs), None)  # a distribution holds none that is known
        unlabelled = isinstance(targets, Unlabelled)
        wanted = None if unlabelled else targets if first is None else placed(targets, first.device)
        forms = forms_of(self.criterion, outputs, wanted)
        if several(outputs) and takes(self.criterion, 2):
            forms += _main(outputs, wanted)
        if not forms:
            raise TypeError(refusal(self.criterion, outputs, wanted))
        return single(first_taken(self.criterion, *forms))

    def divergence(
        self, outputs: Any, taught: Any, targets: Any, *, temperature: float, logarithms: Tensor | None = None
    ) -> Tensor:
        """Return the mean squared distance of the outputs; where these are no numbers, what the loss is larger by."""
        distance = squared_distance(outputs, taught, self.example_dim)
        if distance is None:
            return super().divergence(outputs, taught, targets, temperature=temperature, logarithms=logarithms)
        return distance


def _main(outputs: Any, wanted: Any) -> list[tuple[Any, Any]]:
    """Return the main output with the targets, if there is one."""
    try:
        return [(main_of(outputs), wanted)]
    except TypeError:
        return []


@dataclass(frozen=True)
class Embeddings(Examples):
    """Distances between what a network makes of two or three inputs, which it reads together or one after the other.

    Outputs are a tuple of embeddings, or one tensor in which they follow each other along the examples.
    """

    def _parts(self, outputs: Any) -> list[Tensor]:
        count = 3 if is_one_of(self.criterion, TRIPLE) else 2
        embeddings = list(tensors_in(outputs))
        if len(embeddings) == 1 and len(embeddings[0]) % count == 0:
            return list(embeddings[0].chunk(count))
        if len(embeddings) < count:
            raise TypeError(
                f"Expected {count} embeddings from the network for the loss {self.name}, got {described(outputs)}; "
                f"give it a batch of {count} inputs, or let `call` return them."
            )
        return embeddings[:count]

    def rows(self, outputs: Any, targets: Any) -> Tensor:
        """Return the embeddings of an example as one row; of inputs that are read one after the other, each its own."""
        parts = self._parts(outputs)
        alone = sum(1 for _ in tensors_in(outputs)) == 1
        return torch.cat(parts) if alone else super().rows(outputs, targets)

    def mean(self, outputs: Any, targets: Any) -> Tensor:
        """See `Objective.mean`."""
        parts = self._parts(outputs)
        if is_one_of(self.criterion, TRIPLE):
            return single(self.criterion(*parts))
        self.expect_labelled(targets)
        return single(self.criterion(*parts, placed(targets, parts[0].device)))

    def divergence(
        self, outputs: Any, taught: Any, targets: Any, *, temperature: float, logarithms: Tensor | None = None
    ) -> Tensor:
        """Return one less the cosine to the teacher's embeddings for a loss of cosines; else the squared distance."""
        if not is_one_of(self.criterion, COSINE):
            return super().divergence(outputs, taught, targets, temperature=temperature, logarithms=logarithms)
        ours, theirs = (torch.cat(amounts_in(answer)) for answer in (outputs, taught))
        return 1 - F.cosine_similarity(ours, theirs, dim=-1).mean()


@dataclass(frozen=True)
class Unjudged(Examples):
    """No loss: what the network gives is to stay as it is, by the squared distance of its outputs."""

    drawn = "Gaussian"

    @property
    def name(self) -> str:
        """What there is in place of a criterion."""
        return "none"

    def mean(self, outputs: Any, targets: Any) -> Tensor:  # noqa: ARG002
        """Refuse to judge.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "Expected a loss, got none; give `loss`, such as nn.CrossEntropyLoss(), or use what needs none: weights, "
            "activations, cooperative, surgeon, reconstruct."
        )

    def fisher_loss(self, outputs: Any, targets: Any, generator: torch.Generator) -> Tensor:
        """Return Σ √(2/d) · ½ (f − y)², y drawn from a Gaussian of unit variance around f, d numbers in an example."""
        parts = amounts_in(outputs, self.example_dim)
        each = sum(part.numel() for part in parts) / max(1, len(self.counted(targets)))
        losses = [squares_from_drawn(part, generator) for part in parts]
        loss: Tensor = (2 / each) ** 0.5 * torch.stack(losses).sum()
        return loss


def _loss_in(answer: Any) -> Any:
    """Return the loss that a network gives beside its outputs, None if it gives none."""
    parts = parts_of(answer) or {}
    numbers = [part for part in parts.values() if isinstance(part, Tensor) and not part.ndim]
    return parts.get("loss", getattr(answer, "loss", numbers[0] if len(numbers) == 1 else None))


def has_own_loss(answer: Any) -> bool:
    """Return whether a network gives a loss beside its outputs."""
    return isinstance(_loss_in(answer), Tensor)


def names_loss(answer: Any) -> bool:
    """Return whether one number that a network gives is called its loss, whatever its inputs are called."""
    loss = (parts_of(answer) or {}).get("loss", getattr(answer, "loss", None))
    return isinstance(loss, Tensor) and not loss.ndim and loss.is_floating_point()


def own_loss(answer: Any, _: Any = None) -> Tensor:
    """Return the loss that a network gives beside its outputs.

    Raises:
        ValueError: If it gives none.
    """
    loss = _loss_in(answer)
    if not isinstance(loss, Tensor):
        raise ValueError(
            f"Expected a network that gives its own loss, got {described(answer)}; give `loss`, or batches with the "
            "labels under the name that the network's forward has for them; what gives it in training alone needs a "
            "`call` that puts it there."
        )
    return loss if not loss.ndim else loss.mean()


@dataclass(frozen=True)
class OwnClasses(Classes):
    """A network's own loss on class numbers: `loss` in what it gives; its `logits` tell how far two outputs are apart.

    The mean is one over the labels that count, which is what the losses of `transformers` are but for the last step.
    """

    metrics: ClassVar[Mapping[str, Direction]] = {}
    whole = True

    @property
    def likelihood(self) -> bool:
        """Whether it is one of classes is not known."""
        return False

    def rows(self, outputs: Any, targets: Any) -> Tensor:  # noqa: ARG002
        """Return the logits, one row for each place."""
        return main_of(outputs).flatten(0, -2)

    def mean(self, outputs: Any, targets: Any) -> Tensor:  # noqa: ARG002
        """Return the network's own loss."""
        return own_loss(outputs)

    def likelihood_loss(self, outputs: Any, targets: Any) -> Tensor:
        """Return the network's own loss, summed over the labels that count."""
        return own_loss(outputs) * self.weight(targets)

    def totals(self, outputs: Any, targets: Any) -> dict[str, float]:  # noqa: ARG002
        """Return none: which label belongs to which logit is the network's own business."""
        return {}


@dataclass(frozen=True)
class OwnExamples(Examples):
    """A network's own loss on whatever else."""

    def mean(self, outputs: Any, targets: Any) -> Tensor:  # noqa: ARG002
        """Return the network's own loss."""
        return own_loss(outputs)
