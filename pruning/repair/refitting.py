"""Each reader refitted on what it reads in the pruned network, layer after layer, towards what it read in the dense."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pruning.core.devices import states_of
from pruning.core.modes import carried, evaluating
from pruning.core.nested import tensors_in
from pruning.core.neurons import (
    Keep,
    Model,
    NeuronLayer,
    PrunableModule,
    Slice,
    cut,
    frozen_as,
    gather,
    named_buffers,
    named_tensors,
    narrowed,
    removed_neurons,
    select,
)
from pruning.core.progress import Track
from pruning.core.reading import Read, Reading
from pruning.core.sketches import covariance_of
from pruning.core.statistics import Covariance, merged
from pruning.data.windows import Batches
from pruning.discovery import Discovered
from pruning.models.base import Measurable
from pruning.models.calling import answered, own_module
from pruning.repair.fitting import cross_validated, fit_of

logger = logging.getLogger(__name__)

UNREPAIRED = "Cut and not repaired: layer %s, because %s."
"""What is said of a layer that has no readers to refit."""

FOLDS = 4
"""Parts of the data, of which each in turn is held out while the strength of the ridge is chosen."""
ALIKE = 1e-5
"""Relative difference up to which two networks' readers read the same."""


@dataclass
class Sample:
    """What one reader reads in both networks: moments of (d, x'), in parts of the data.

    d is how the dense network's numbers differ from the pruned one's, of all neurons or the removed ones, and x' are
    those of the kept ones in the pruned network.

    Attributes:
        folds: The moments.
        constant: Whether a bias can give what is always the same.
        beside: A parameter whose product is added to the reader's, so that what it reads in the pruned network stands
            in too and lies behind x'; and by how much that was multiplied, to vary as much.
    """

    folds: list[Covariance]
    constant: bool
    beside: tuple[str, Tensor] | None = None


def refitted(model: Model, keep: Keep, data: Batches, *, repair: str, rank: int | None, track: Track) -> Model:
    """Return the smaller model, each reader refitted on what it reads; see `reconstruct`.

    Layers are cut one after the other. While one is, both networks read the same batches, and the moments of each of
    its readers' own inputs are kept: x of the dense network, x' of the kept neurons in the network cut so far. Where
    its own cut changes these (a recurrence, a normalisation, an attention that compares neurons), they are taken once
    more from the network in which it is cut and refitted. What no weights read is only cut.
    """
    if not len(data):
        raise ValueError("Expected at least one batch to refit readers on, got none.")
    layers = [layer for layer in model.layers() if len(removed_neurons(layer, keep))]
    repaired = _copy(model)
    done: dict[str, Tensor] = {}
    for layer in track(layers, "repair, layers"):
        if layer.unread:
            logger.warning(UNREPAIRED, layer.name, layer.obstacle)
            done[layer.name] = keep[layer.name]
            continue
        refit = _Refit(model, repaired, layer, keep[layer.name].cpu(), done, repair, rank)
        refit.learn(data, cut=False)
        if refit.moves(data):
            for readers in refit.in_turn():
                refit.learn(data, cut=True, only=readers)
        refit.report()
        done[layer.name] = keep[layer.name]
    return select(frozen_as(model, repaired).train(model.training), keep)


class _Refit:
    """One layer's readers while they are refitted, in place, in a model of the dense one's size."""

    def __init__(
        self,
        dense: PrunableModule,
        repaired: PrunableModule,
        layer: NeuronLayer,
        kept: Tensor,
        done: Mapping[str, Tensor],
        repair: str,
        rank: int | None = None,
    ) -> None:
        self.dense, self.repaired, self.layer, self.kept, self.repair = dense, repaired, layer, kept, repair
        self.rank = rank
        self.done = dict(done)
        self.removed = removed_neurons(layer, {layer.name: kept})
        names = {name for piece in layer.read for name in (piece.parameter, piece.bias) if name}
        whole = {name: dense.get_parameter(name).detach().cpu() for name in names}
        self.tensors = {name: tensor.double() for name, tensor in whole.items() if not tensor.is_complex()}
        self.seen: set[int] = set()
        self.read: set[int] = set()
        self.used: dict[str, set[str]] = {}
        self._added: dict[int, dict[str, Tensor]] = {}  # by each reader's fit to each parameter
        self._first: list[Tensor] = []

    def learn(self, data: Batches, *, cut: bool, only: Sequence[int] = ()) -> None:
        """Refit the readers, or only some, on what they read in the network so far, this layer cut or not."""
        everything = cut or bool(self.done)
        rows = torch.arange(self.layer.width) if everything else self.removed
        readers = [number for number in only or range(len(self.layer.read)) if self._is_real(number)]
        samples = self._samples(data, rows, readers, cut=cut) if readers else {}
        self.seen |= set(samples)
        for number, sample in samples.items():
            self._fit(number, sample, rows)

    def _is_real(self, number: int) -> bool:
        """Return whether a reader's weights are real numbers: complex ones are cut, and not refitted."""
        return self.layer.read[number].parameter in self.tensors

    def in_turn(self) -> list[list[int]]:
        """Return the readers by turns: first those that compute the layer's neurons, for what others read follows."""
        own = {piece.parameter for piece in self.layer.owned}
        first = [number for number, piece in enumerate(self.layer.read) if piece.parameter in own]
        others = [number for number in range(len(self.layer.read)) if number not in first]
        return [readers for readers in (first, others) if readers]

    def moves(self, data: Batches) -> bool:
        """Return whether the readers read something else once the layer is cut."""
        pruned = self._network(cut=True)
        _, inputs = next(iter(_inputs(self.dense, data)))
        readers = self._readers(pruned)
        with torch.no_grad(), evaluating(pruned):
            by_reader, *_ = _read(pruned, readers, inputs, None)
        now = [read.of(piece)[0] for reads, piece in zip(by_reader, readers, strict=True) for read in reads]
        return len(now) != len(self._first) or any(
            one.shape != other.shape or not torch.allclose(one, other, rtol=0, atol=ALIKE * float(other.abs().max()))
            for one, other in zip(now, self._first, strict=True)
        )

    def report(self) -> None:
        """Say which readers are only cut."""
        for number, piece in enumerate(self.layer.read):
            if piece in self.layer.tied:
                why = "it computes the neurons as well as reading them"
            elif not self._is_real(number):
                why = "its weights are complex numbers"
            elif number not in self.seen:
                why = self._unseen(number)
            else:
                continue
            message = "Cut and not refitted: %s, which reads layer %s, because %s."
            logger.warning(message, self._own(piece.parameter), self.layer.name, why)

    def _unseen(self, number: int) -> str:
        """Return why there is nothing that a reader was seen to read."""
        if number in self.read:
            return "it read other samples once neurons were gone"
        if used := self.used.get(self.layer.read[number].parameter):
            return f"it is used by {' and '.join(sorted(used))}, of which it is not known what is read by it"
        return "in none of the batches it read anything"

    def _own(self, name: str) -> str:
        """Return what the user's own module calls a parameter."""
        inner, own = own_module(self.dense), self.dense.get_parameter(name)
        while (within := own_module(inner)) is not inner:
            inner = within
        return next((called for called, parameter in inner.named_parameters() if parameter is own), name)

    def _left(self, name: str) -> Tensor:
        """Return which columns of a parameter the network so far still has, in its order."""
        readers = [
            replace(layer, owned=(), buffers=(), read=tuple(p for p in layer.read if (p.parameter, p.dim) == (name, 1)))
            for layer in self.dense.layers()
        ]
        places = torch.arange(self.dense.get_parameter(name).shape[1]).expand(1, -1).clone()
        done = [layer for layer in readers if layer.read]
        return cut(done, self.done, {name: places})[name][0]

    def _network(self, *, cut: bool) -> PrunableModule:
        return narrowed(self.repaired, {**self.done, **({self.layer.name: self.kept} if cut else {})})

    def _samples(self, data: Batches, rows: Tensor, readers: Sequence[int], *, cut: bool) -> dict[int, Sample]:
        """Return the moments of what each of some readers reads, by its number."""
        dense, pruned = _copy(self.dense), self._network(cut=cut)
        pieces, count = self._readers(pruned), len(data)
        samples: dict[int, Sample] = {}
        with torch.no_grad(), evaluating(dense), evaluating(pruned):
            for index, wanted, given in self._reads(dense, pruned, readers, data):
                if index == 0 and not cut:
                    self._first = []
                for number, (x, y) in enumerate(zip(wanted, given, strict=True)):
                    besides = self._besides(pieces[number], y)
                    for target, source, beside in zip(x, y, besides, strict=False):
                        values, repeats = target.of(self.layer.read[number])
                        kept, _ = source.of(pieces[number])
                        kept = kept if cut else kept[:, self.kept]
                        if index == 0 and not cut:
                            self._first.append(kept.clone())
                        suits = beside or getattr(samples.get(number), "beside", None) is None
                        if number in readers and len(kept) == len(values) and suits:
                            if number not in samples:
                                samples[number] = _sample(len(rows), kept, target.constant, beside, self.rank)
                            sample, joint = samples[number], self._joint(values, kept, rows)
                            if beside is not None and sample.beside is not None:
                                joint = torch.cat([joint, beside[1] * sample.beside[1]], 1)
                            _take(sample.folds, joint, repeats, _fold_of(index, count))
        if not all(fold.mean.isfinite().all() for sample in samples.values() for fold in sample.folds):
            raise FloatingPointError(
                f"Expected finite numbers of layer {self.layer.name} to refit its readers by, got others; "
                "look for inputs that are not finite."
            )
        return samples

    def _reads(
        self, dense: PrunableModule, pruned: PrunableModule, readers: Sequence[int], data: Batches
    ) -> Iterator[tuple[int, list[list[Read]], list[list[Read]]]]:
        """Yield each batch's number, and what this layer's readers read in the dense network and in the pruned one.

        The first batch runs to its end. Where nothing is carried on from it, and each reader has read once, others of
        its shapes run only until they have, which halves what a deep network takes. A reader that did not read may do
        so in another batch (an expert), and others may read more often in a longer one, or where the code asks for a
        number (a loop).
        """
        states: tuple[Any, Any] = (None, None)
        alike: list[torch.Size] | None = None
        for index, inputs in _inputs(self.dense, data):
            shapes = [part.shape for part in tensors_in(inputs)]
            enough = set(readers) if shapes == alike else None
            with states_of(dense).again():
                wanted, one, reading = _read(dense, self.layer.read, inputs, states[0], enough)
            given, other, _ = _read(pruned, self._readers(pruned), inputs, states[1], enough)
            states = carried(one), carried(other)
            self.read |= {number for number, reads in enumerate(wanted) if reads}
            self.used |= reading.used
            alone = all(len(wanted[each]) == 1 for each in readers)
            if index == 0 and one is None and alone and not reading.asked and not _keeps(dense):
                alike = shapes
            yield index, wanted, given

    def _readers(self, network: PrunableModule) -> Sequence[Slice]:
        """Return where a network holds the readers of this layer."""
        (layer,) = [layer for layer in network.layers() if layer.name == self.layer.name]
        return layer.read

    def _beside(self, piece: Slice, read: Read) -> tuple[str, Tensor] | None:
        """Return another parameter whose product is added to a reader's, and what it reads, (samples, places)."""
        if read.beside is None or piece.size > 1 or piece.blocks > 1 or read.repeats is not None:
            return None
        (name, _), values = read.beside
        own = any(name == other.parameter for other in self.layer.read)
        return None if own else (name, values.flatten(0, -2).cpu().double())

    def _besides(self, piece: Slice, reads: Sequence[Read]) -> list[tuple[str, Tensor] | None]:
        """Return `_beside` of each read; none of any where code reads by the parameter elsewhere, too."""
        found = [self._beside(piece, read) for read in reads]
        return found if all(found) else [None] * len(found)

    def _joint(self, values: Tensor, kept: Tensor, rows: Tensor) -> Tensor:
        """Return (d, x') of some samples, float64."""
        values, kept = values.cpu().double(), kept.cpu().double()
        difference = values.clone()
        difference[:, self.kept] -= kept
        return torch.cat([difference[:, rows], kept], dim=1)

    def _fit(self, number: int, sample: Sample, rows: Tensor) -> None:
        """Let a reader's kept columns and its bias stand in for what it lost, and what is read beside it."""
        piece, whole = self.layer.read[number], merged(sample.folds)
        if not whole.count:
            return
        lost, kept = torch.arange(len(rows)), torch.arange(len(rows), len(whole.mean))
        biased = bool(piece.bias) and sample.constant and _fits(self.tensors, piece)
        if self.repair == "ridge" and piece not in self.layer.tied:
            readers = gather([piece], self.tensors)[rows]
            fit = cross_validated(sample.folds, kept, lost, readers, intercept=biased)
        else:
            fit = fit_of(whole, kept, lost, ridge=0.0, slopes=False, intercept=biased)
        old = piece.split(self.tensors[piece.parameter])
        columns = torch.zeros_like(old)
        columns[self.kept] = fit.moved(old[rows], slice(len(self.kept)))
        added = {piece.parameter: piece.join(columns, torch.zeros_like(self.tensors[piece.parameter]))}
        if sample.beside is not None:
            name, scale = sample.beside
            more = fit.moved(old[rows], slice(len(self.kept), None)).sum(1).T * scale
            nothing = torch.zeros(self.dense.get_parameter(name).shape, dtype=more.dtype)
            added[name] = nothing.index_add_(1, self._left(name), more)
        if biased:
            shift = torch.einsum("p,pbn->n", fit.intercept, old[rows])
            added[piece.bias] = shift.view(piece.size, len(self.tensors[piece.bias]), -1).sum((0, 2))
        before = self._added.get(number, {})
        with torch.no_grad():
            for name in {**before, **added}:
                parameter, none = self.repaired.get_parameter(name), torch.zeros(())
                parameter.add_((added.get(name, none) - before.get(name, none)).to(parameter))
        self._added[number] = added


def _fits(tensors: Mapping[str, Tensor], piece: Slice) -> bool:
    """Return whether a reader's bias has one number for each of its rows, which come first of all that is no column."""
    rows = [size for dim, size in enumerate(tensors[piece.parameter].shape) if dim != piece.dim]
    return tensors[piece.bias].ndim == 1 and rows[:1] == [len(tensors[piece.bias])]


def _sample(rows: int, kept: Tensor, constant: bool, beside: tuple[str, Tensor] | None, rank: int | None) -> Sample:
    """Return an empty sample of a reader, of whose kept neurons some values are given, and of what is read beside."""
    if beside is None:
        return Sample([covariance_of(rows + kept.shape[1], rank) for _ in range(FOLDS)], constant)
    name, values = beside
    spread, other = (part.cpu().double().var(0, correction=0).mean() for part in (kept, values))
    scale = (spread / other).sqrt() if spread > 0 and other > 0 else torch.ones((), dtype=torch.float64)
    size = rows + kept.shape[1] + values.shape[1]
    return Sample([covariance_of(size, rank) for _ in range(FOLDS)], constant, (name, scale))


def _fold_of(index: int, count: int) -> int | None:
    """Return which fold a batch belongs to, each of two stretches of the data; None if there is but one batch."""
    groups = min(2 * FOLDS, count)
    return None if count == 1 else index * groups // count % FOLDS


def _take(folds: Sequence[Covariance], values: Tensor, repeats: Tensor | None, fold: int | None) -> None:
    """Take in some samples; those of a single batch are parted, neighbouring ones together."""
    each = [slice(fold * len(values) // FOLDS, (fold + 1) * len(values) // FOLDS) for fold in range(FOLDS)]
    for number, part in enumerate(each) if fold is None else [(fold, slice(None))]:
        if len(values[part]):
            folds[number].update(values[part], None if repeats is None else repeats[part])


def _copy(model: Model) -> Model:
    """Return a model that runs without touching what the given one keeps."""
    twin = model.resized([layer.width for layer in model.layers()])
    twin.load_state_dict({**named_tensors(model), **named_buffers(model)})
    return twin


class _Enough(BaseException):
    """What was asked for has been read; no exception that a user's code would catch."""


def _read(
    model: PrunableModule, pieces: Sequence[Slice], inputs: Any, state: Any, enough: set[int] | None = None
) -> tuple[list[list[Read]], Any, Reading]:
    """Return what each of the pieces reads while the model runs, the state to carry on from, and what was seen.

    Args:
        model: It runs on a batch.
        pieces: What reads.
        inputs: The batch.
        state: To carry on from.
        enough: The model need not run on once these have read; None where it has to.
    """
    by_piece: list[list[Read]] = [[] for _ in pieces]

    def observe(number: int, read: Read) -> None:
        by_piece[number].append(read)
        if enough is not None and all(by_piece[each] for each in enough):
            raise _Enough

    reading = Reading(model, pieces, observe)
    try:
        with reading:
            return by_piece, _run(model, inputs, state), reading
    except _Enough:
        return by_piece, None, reading


def _keeps(model: PrunableModule) -> bool:
    """Return whether a model's modules keep something of a call, or write into its parameters."""
    network = next((module for module in model.modules() if isinstance(module, Discovered)), None)
    return network is None or bool(network.remembered or network.written)


def _run(model: PrunableModule, inputs: Any, state: Any) -> Any:
    if isinstance(model, Measurable):
        return model.read(inputs, state)
    answered(model, inputs)
    return None


def _inputs(model: PrunableModule, data: Batches) -> Iterator[tuple[int, Any]]:
    """Yield each batch's number and inputs."""
    for index, batch in enumerate(data):
        yield index, model.inputs_in(batch) if isinstance(model, Measurable) else batch
