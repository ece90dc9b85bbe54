"""A network of any kind taught to answer as another does, without labels: by its loss's own distance, or by squares."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pruning.core.devices import states_of, twin_of
from pruning.core.modes import carried, evaluating
from pruning.core.neurons import NeuronLayer, PrunableModule
from pruning.core.reading import Read, Reading
from pruning.discovery import Discovered
from pruning.discovery.running import tensors_in
from pruning.models.adapted import Adapted
from pruning.models.answers import has_main, main_of
from pruning.models.base import Measurable
from pruning.models.calling import answered
from pruning.models.objectives import Objective

States = tuple[Any, Any]
ANSWERS = 2**29
"""Bytes of a teacher's answers that are kept where the same batches come again, so that it answers them once."""


class Pupil:
    """A network and the one that it learns from, run side by side.

    Attributes:
        learner: A copy of the network that is to learn.
        teacher: A copy of the one that it learns from.
        features: Share of what readers read in what is minimised.
    """

    def __init__(self, student: PrunableModule, teacher: PrunableModule, features: float) -> None:
        self.learner, self.teacher, self.features = twin_of(student), twin_of(teacher), features
        self._kept = _kept_of(student, teacher) if features else {}
        self._answers: dict[int | None, tuple[Any, Any, list[list[Read]]]] = {}
        self._room = ANSWERS

    def size(self, batch: Any) -> int:
        """Return how many targets a batch has; without any, how many examples it is inputs of."""
        inputs, targets = _parted(self.teacher, batch)
        if isinstance(self.teacher, Measurable) and targets is not None:
            return max(1, self.teacher.count(targets))
        first = next(iter(tensors_in(inputs)), torch.zeros(1))
        dim = self.teacher.example_dim if isinstance(self.teacher, Measurable) else 0
        return max(1, first.shape[dim] if first.ndim > dim else 1)

    def distance(self, batch: Any, states: States, place: int | None = None) -> tuple[Tensor | None, States]:
        """Return how far the learner's answer is from the teacher's, None where no target counts, and both states.

        Args:
            batch: What both read.
            states: The learner's, and the teacher's, to carry on from.
            place: Where in the data the batch stands, if the same one comes again there: what the teacher answers is
                then kept, as long as all of it together takes less than `ANSWERS` bytes.
        """
        inputs, targets = _parted(self.teacher, batch)
        wanted, taught, read = self._taught(inputs, states[1], place)
        answer, own, reads = self._run(self.learner, inputs, carried(states[0]))
        loss = _distance(self.teacher, answer, wanted, targets)
        if loss is not None and self.features:
            loss = (1 - self.features) * loss + self.features * self._apart(reads, read)
        return loss, (own, carried(taught))

    def _taught(self, inputs: Any, state: Any, place: int | None) -> tuple[Any, Any, list[list[Read]]]:
        """Return what the teacher answers, its state, and what each reader of the shared layers read."""
        if place in self._answers:
            return self._answers[place]
        before = states_of(self.teacher)
        with torch.no_grad(), evaluating(self.teacher), before.again():
            answer = self._run(self.teacher, inputs, state)
            same = before.untouched()  # one that draws answers otherwise the next time, as the learner does
        if same and place is not None and not self.features:
            self._room -= sum(part.numel() * part.element_size() for part in tensors_in(answer[:2]))
            if self._room >= 0:
                self._answers[place] = answer
        return answer

    def _run(self, model: PrunableModule, inputs: Any, state: Any) -> tuple[Any, Any, list[list[Read]]]:
        """Return what a network answers, its state, and what each reader of the shared layers read."""
        if not self.features:
            return *_answered(model, inputs, state), []
        pieces = [piece for layer in _shared(model, self._kept) for piece in layer.read]
        reads: list[list[Read]] = [[] for _ in pieces]
        with Reading(model, pieces, lambda number, read: reads[number].append(read)):
            answer, after = _answered(model, inputs, state)
        return answer, after, reads

    def _apart(self, reads: Sequence[list[Read]], wanted: Sequence[list[Read]]) -> Tensor:
        """Return the mean squared distance between what both networks' readers read of the kept neurons, relative."""
        pairs = []
        layers = zip(_shared(self.learner, self._kept), _shared(self.teacher, self._kept), strict=True)
        pieces = [(a, b, self._kept[one.name]) for one, two in layers for a, b in zip(one.read, two.read, strict=True)]
        for (own, other, kept), one, two in zip(pieces, reads, wanted, strict=True):
            for a, b in zip(one, two, strict=False):
                values, target = a.of(own)[0], b.of(other)[0][:, kept.to(b.values.device)]
                if len(values) == len(target):
                    pairs.append((values - target).square().mean() / _spread(target))
        return torch.stack(pairs).mean()


def _shared(model: PrunableModule, kept: Mapping[str, Tensor]) -> list[NeuronLayer]:
    return [layer for layer in model.layers() if layer.name in kept]


def _kept_of(student: PrunableModule, teacher: PrunableModule) -> dict[str, Tensor]:
    """Return which of the teacher's neurons the student has, by layer.

    Raises:
        ValueError: If they do not say.
    """
    own, other = (_chosen(model) for model in (student, teacher))
    if own is None or other is None:
        raise ValueError(
            "Expected networks whose neurons `discover` found, to compare what is read of them, got others; "
            "imitate the outputs alone (features 0)."
        )
    found = {}
    for name, neurons in own.items():
        places = {int(neuron): place for place, neuron in enumerate(other[name].tolist())}
        found[name] = torch.tensor([places[neuron] for neuron in neurons.tolist()])
    return found


def _chosen(model: PrunableModule) -> dict[str, Tensor] | None:
    inner = model.network if isinstance(model, Adapted) else model
    return inner.chosen if isinstance(inner, Discovered) else None


def _parted(model: PrunableModule, batch: Any) -> tuple[Any, Any]:
    """Return a batch's inputs and targets; None for targets of a network that does not know any."""
    if isinstance(model, Adapted):
        return model.pair_of(batch)
    return tuple(batch) if isinstance(model, Measurable) else (batch, None)


def _answered(model: PrunableModule, inputs: Any, state: Any) -> tuple[Any, Any]:
    """Return what a network gives in whatever form, and the state to carry on from."""
    if isinstance(model, Adapted):
        return model.answered(inputs, state)
    if isinstance(model, Measurable):
        return model.predicted(inputs, state)
    return answered(model, inputs), None


def _distance(model: PrunableModule, answer: Any, wanted: Any, targets: Any) -> Tensor | None:
    """Return how far an answer is from the one wanted, by the loss's divergence; by squares where it has none."""
    if isinstance(model, Measurable):
        objective = model.objective(targets)
        if not model.count(targets):
            return None
        known = objective.whole or (has_main(answer) and main_of(answer).is_floating_point())
        if known and type(objective).divergence is not Objective.divergence:
            return objective.divergence(answer, wanted, targets, temperature=1.0)
    pairs = zip(_floats(answer), _floats(wanted), strict=True)
    return torch.stack([(one - other).abs().square().mean() / _spread(other) for one, other in pairs]).mean()


def _floats(answer: Any) -> list[Tensor]:
    """Return the tensors of numbers in an answer."""
    return [part for part in tensors_in(answer) if part.is_floating_point() or part.is_complex()]


def _spread(values: Tensor) -> Tensor:
    """Return the mean square of values, which distances are compared with."""
    return values.abs().square().mean().clamp(min=torch.finfo(values.abs().dtype).tiny)
