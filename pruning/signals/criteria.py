"""The table of the field's criteria: each layer's evidence from one reading of the text, and estimates' errors."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pruning.core.devices import twice_differentiable
from pruning.core.modes import NOT_FINITE, ONCE, evaluating, thawed
from pruning.core.neurons import NeuronLayer, PrunableModule, gather, named_tensors
from pruning.core.progress import Track, silently
from pruning.core.statistics import entropy, jackknife_error, merged
from pruning.core.tables import missing, table, unmeasured
from pruning.core.workers import Map, in_stretches, in_turn
from pruning.data.windows import Batches
from pruning.models.base import Measurable, expect_ready
from pruning.signals.cooperative import edges_of, recurrent_coupling
from pruning.signals.drawing import Drawn, drawing_passed
from pruning.signals.evidence import Evidence, Partition, gather_evidence, partition
from pruning.signals.formulas import CRITERIA, Known
from pruning.signals.jackknife import by_layer, expect_several, filled, groups_that_fit
from pruning.signals.schemas import CRITERIA_TABLE
from pruning.signals.sensitivity import EMPIRICAL, tappable

logger = logging.getLogger(__name__)

TWICE = "grasp"
"""The criterion that differentiates the loss twice; the others need one derivative at most."""


def criteria(
    model: Measurable,
    windows: Batches,
    *,
    batches: int,
    bins: int,
    classes: int,
    ridge: float,
    seed: int,
    rank: int | None = None,
    track: Track = silently,
    map: Map = in_turn,
) -> pd.DataFrame:
    """Return the `criteria` table: one column for each criterion, and the standard error of those that are estimates.

    Each criterion's meaning, unit and source stand with its formula, in `formulas` by the column's name. The text is
    read once: one forward and three backward passes a window serve them all (see `gather_evidence`). Every estimate's
    standard error is the jackknife over eight consecutive groups of windows (fewer of wide layers, see
    `groups_that_fit`). Of a layer whose outputs cannot be tapped there are no numbers, and a warning says why; nor are
    there of `grasp`, the one that differentiates twice, where PyTorch cannot.

    >>> import torch, pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> text = pruning.Windows(torch.arange(160) % 9, first=0, batch=2, bptt=8)
    >>> unread = pruning.mask(model, {"rnn.0": torch.arange(1, 6)})  # nobody reads neuron 0
    >>> found = criteria(unread, text, batches=4, bins=4, classes=3, ridge=1e-4, seed=1)
    >>> found.loc[0, ["magnitude_out", "gate_fisher", "kfac_obs"]].tolist()
    [0.0, 0.0, 0.0]

    Args:
        model: Any model whose layers can be tapped (`Measurable.tapped`).
        windows: Calibration text (or other batches), read in order with carried state.
        batches: At most this many windows are read.
        bins: Bins of each neuron's outputs, for `mutual_information`.
        classes: Groups of predicted token types, for `mutual_information`.
        ridge: Added to the diagonal of the outputs' covariance, relative to its mean, for `kfac_obs`.
        seed: Seed of the labels sampled from the model.
        rank: Of layers more than twice as wide, how many directions of the outputs' covariance are kept, beside exact
            variances (see `Sketch`), and as many times width numbers instead of width² for each group of text. It
            changes `kfac_obs` and `pagerank` alone, and errors where the groups are more. None: exact covariances.
        track: Shows progress.
        map: Who computes: each worker reads some groups.

    Raises:
        ValueError: If there is only one window, whose spread nothing tells, or none that runs one of the layers.
    """
    expect_ready(model)
    windows = model.pairs(windows)
    count = min(batches, len(windows))
    expect_several(count, "criteria")
    layers = tappable(model, windows, "criteria")
    left_out = [(layer.name, layer.width) for layer in model.layers() if layer not in layers]
    if not layers:
        return unmeasured(CRITERIA_TABLE, left_out)
    most = min(groups_that_fit(layers, rank), count)
    with evaluating(model), thawed(model):
        batches_read = islice(windows, count)
        first: Any = next((batch for batch in batches_read if model.count(batch[1])), None)
        if first is None:
            filled([], "criteria")  # which says so
        parts = partition(model, first, bins=bins, classes=classes, layers=layers, later=batches_read)
        fisher = model.objective(first[1]).drawn
        reading = _Reading(model, layers, parts, seed, rank)
        read = [*in_stretches(map, reading, windows, count, most, track=track, what="criteria")]
    groups = by_layer(layers, read)
    rows = [_rows(model, layer, filled(groups[layer.name], "criteria"), ridge) for layer in layers]
    rows = [frame.assign(fisher=fisher or EMPIRICAL) for frame in rows]
    rows += [unmeasured(CRITERIA_TABLE, left_out)] if left_out else []
    found, schema = pd.concat(rows, ignore_index=True), CRITERIA_TABLE
    reason = _why_not_twice(found, [evidence for parts in groups.values() for evidence in parts])
    if reason:
        logger.warning("Not measured by criteria: %s, because %s.", TWICE, reason)
        columns = {name: schema.columns[name] for name in (TWICE, f"{TWICE}_error")}
        found = found.assign(**dict.fromkeys(columns, float("nan")))
        schema = replace(schema, columns={**schema.columns, **missing(reason, columns)})
    made = table(schema, found)
    made.attrs["left_out"] = {TWICE: reason} if reason else {}
    return made


def _why_not_twice(found: pd.DataFrame, read: Sequence[Evidence]) -> str:
    """Return why there are no second derivatives; empty if there are."""
    if not all(TWICE in evidence.totals for evidence in read):
        return ONCE
    return "" if np.isfinite(found.loc[found["samples"] > 0, TWICE]).all() else NOT_FINITE


@dataclass(frozen=True)
class _Reading:
    """Evidence by layer that runs, none where no target counts; the carry is a `Drawn`.

    Attributes:
        model: The model.
        layers: Those that are measured.
        partition: How outputs and predictions are binned.
        seed: Of the labels sampled from the model.
        rank: Of the covariances of wide layers.
    """

    model: Measurable
    layers: Sequence[NeuronLayer]
    partition: Partition
    seed: int
    rank: int | None

    @contextmanager
    def running(self) -> Iterator[None]:
        with evaluating(self.model), thawed(self.model):
            yield

    def read(self, batches: Iterable[Any], carry: Drawn | None) -> tuple[dict[str, Evidence], Drawn]:
        carry, found = carry or Drawn.of(self.seed), dict[str, Evidence]()
        state, generator = carry.state, carry.generator()
        for batch in batches:
            if not self.model.count(batch[1]):
                state = self.model.passed(batch[0], state)
                continue
            evidence, state = gather_evidence(
                self.model,
                self.layers,
                batch,
                state,
                partition=self.partition,
                generator=generator,
                rank=self.rank,
            )
            found |= {name: found[name].merge(new) if name in found else new for name, new in evidence.items()}
        return found, Drawn(state, generator.get_state())

    def passed(self, batches: Iterable[Any], carry: Drawn | None) -> Drawn:
        with twice_differentiable():
            return drawing_passed(self.model, batches, carry or Drawn.of(self.seed))


@dataclass(frozen=True)
class Wiring:
    """What the weights say of one layer.

    Attributes:
        own: Each neuron's own weights, (width, n).
        columns: Each neuron's outgoing weights, in every reader, (width, m).
        coupling: How strongly each pair is wired, (width, width), or None.
    """

    own: Tensor
    columns: Tensor
    coupling: Tensor | None


def wiring_of(model: PrunableModule, layer: NeuronLayer) -> Wiring:
    """Return what the weights say of one layer."""
    tensors = named_tensors(model)
    own, columns = (gather(pieces, tensors).cpu().double() for pieces in (layer.owned, layer.read))
    return Wiring(own, columns, recurrent_coupling(layer, tensors))


def known_of(wiring: Wiring, evidence: Evidence, ridge: float) -> Known:
    """Return what the weights and the evidence say of one layer.

    Args:
        wiring: What the weights say.
        evidence: What the text has told.
        ridge: Relative addition to the diagonal of the covariance before it is inverted.
    """
    states, joint = evidence.states, evidence.joint
    alone = states.moments
    return Known(
        own=wiring.own,
        columns=wiring.columns,
        totals=evidence.totals,
        tokens=evidence.tokens,
        mean_square=alone.squares / states.count + alone.mean.square(),
        variance=alone.variance,
        reading=evidence.readers / evidence.tokens,
        precision=states.precision(ridge),
        entropies=(entropy(joint.sum(2)), entropy(joint.sum(1)), entropy(joint.flatten(1))),
        edges=edges_of(states.correlation.abs(), wiring.coupling),
    )


def _rows(model: PrunableModule, layer: NeuronLayer, groups: list[Evidence], ridge: float) -> pd.DataFrame:
    """Return one layer's rows of the table."""
    wiring, evidence = wiring_of(model, layer), merged(groups)
    estimated = {name: one.formula for name, one in CRITERIA.items() if not one.exact}

    def estimates(part: Evidence) -> Tensor:
        known = known_of(wiring, part, ridge)
        return torch.stack([formula(known) for formula in estimated.values()])

    errors = dict(zip(estimated, jackknife_error(groups, estimates), strict=True))
    whole, columns = known_of(wiring, evidence, ridge), {}
    for name, one in CRITERIA.items():
        columns[name] = one.formula(whole).numpy()
        if name in errors:
            columns[f"{name}_error"] = errors[name].numpy()
    place = {"layer": layer.name, "neuron": range(layer.width)}
    return pd.DataFrame({**place, **columns, "samples": evidence.tokens})
