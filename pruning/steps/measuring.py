"""Importance in one line: every signal that data and loss allow, fused, and what the repair needs."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from pruning.core.avoiding import avoided_in
from pruning.core.devices import expect_seed, seeded
from pruning.core.finite import expect_finite
from pruning.core.hearing import front_door
from pruning.core.modes import NOT_FINITE, ONCE, once_alone
from pruning.core.neurons import Keep
from pruning.core.options import FIRING, expect_known
from pruning.core.progress import Track, silently
from pruning.core.tables import NotFinite
from pruning.core.words import described, table_of, wrapped
from pruning.core.workers import Map, in_turn
from pruning.experiment.measuring import USUAL, measure
from pruning.fusion.fused import fuse
from pruning.fusion.fusing import Fusing
from pruning.fusion.schemas import CHOICES
from pruning.models.base import Measurable
from pruning.pictures.card import NeuronCard
from pruning.pictures.cooperation import cooperation, cooperation_edges
from pruning.pictures.correlations import correlations
from pruning.pictures.importance import importance_by_layer
from pruning.pictures.neuron import card_of
from pruning.pictures.retention import error_by_share
from pruning.selection.allocation import Allocation
from pruning.selection.budgets import Budget, budget_of
from pruning.selection.retention import keep_of, retention
from pruning.signals.activations import Covariances
from pruning.signals.schemas import SIGNALS
from pruning.steps.choosing import MEASURED, STRATEGIES, measured_by, ordered_otherwise
from pruning.steps.given import limited, prunable, read_once

logger = logging.getLogger(__name__)

PICTURES = ("importance", "correlations", "cooperation", "error")
"""What `Importance.plot` draws."""
SHARES = (0.9, 0.75, 0.5, 0.25)
"""Shares of the neurons at which it measures errors."""


@dataclass(frozen=True)
class Importance:
    """How important each neuron is, by what, and what the repair needs.

    >>> import pruning
    >>> network = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> data = [torch.randn(8, 2, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    >>> found = pruning.importance(network, data, signals=["weights"])
    >>> found.by, len(found.table), len(found.keep(0.5)["0"])
    ('fused', 6, 3)

    Attributes:
        table: The `importance` table: one column for each signal, `fused`, and `surgeon`.
        by: The column that neurons are chosen by.
        model: The network that was measured, with its loss.
        data: The batches that it was measured on.
        covariances: Of each layer's outputs, in groups of batches.
        left_out: Signal → why it was not measured.
    """

    table: pd.DataFrame
    by: str
    model: Measurable
    data: Any = field(repr=False)
    covariances: Covariances = field(repr=False)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def fisher(self) -> str:
        """What targets are drawn from for the Fisher information; the true ones if from nothing."""
        with torch.random.fork_rng(devices=[]):
            _, targets = next(iter(self.data))
        return self.model.objective(targets).drawn

    def keep(
        self,
        share: float | Mapping[str, float],
        *,
        scope: str = "layer",
        layers: Sequence[str] | None = None,
        floor: int | Mapping[str, int] = 1,
        multiple: int = 1,
        budget: Any = None,
    ) -> Keep:
        """Return which neurons stay; those of a layer of which `by` has no numbers are chosen by `fused`.

        Args:
            share: Of the neurons; or layer → its own share, those that are not named staying whole.
            scope: `layer`: each layer keeps that share; `global` or `absolute`: all are ranked together.
            layers: Those that neurons may be taken from, by default all that are `exact`, or all if none is.
            floor: Fewest neurons of a layer.
            multiple: What every width is a multiple of, unless a layer stays whole.
            budget: In place of the share: what `pruning.budget_of` gave, or its arguments by name, such as
                `{"kind": "memory", "value": "512KiB", "target": "int8"}`.

        Raises:
            TypeError: For what is no share.
            ValueError: For an unknown layer, scope, or a share outside (0, 1].
        """
        _expect_shares(share)
        named = list(share) if isinstance(share, Mapping) else layers
        taken = self._layers(named)
        rows = self.table[self.table["layer"].isin(taken)]
        how: dict[str, Any] = {"floor": floor, "multiple": multiple, "otherwise": "fused"}
        if budget is not None:
            budget = self.budget(budget)
            whole = {layer.name: layer.width for layer in self.model.layers() if layer.name not in taken}
            floors = floor if isinstance(floor, Mapping) else dict.fromkeys(taken, floor)
            how["floor"] = {**floors, **whole}  # which a budget pays for, too
            retain = 1.0 if isinstance(share, Mapping) else share  # what the budget lets stay
            kept = keep_of(self._retained(self.table, Allocation(retain=retain, scope=scope, budget=budget, **how)))
            return {name: neurons for name, neurons in kept.items() if name in taken}
        if isinstance(share, Mapping):
            parts = [
                self._retained(rows[rows["layer"] == name], Allocation(retain=one, scope="layer", **how))
                for name, one in share.items()
            ]
            return keep_of(pd.concat(parts, ignore_index=True))
        return keep_of(self._retained(rows, Allocation(retain=share, scope=scope, **how)))

    def budget(self, asked: Budget | Mapping[str, Any]) -> Budget:
        """Return the budget of these arguments of `budget_of`; firing rates are those on the data by default.

        Raises:
            TypeError: If it is no budget, and these are no arguments.
            ValueError: For arguments that it does not have, or without its kind or value.
        """
        if isinstance(asked, Budget):
            return asked
        if not isinstance(asked, Mapping):
            raise TypeError(
                "Expected what `pruning.budget_of` gave, or its arguments by name, such as {'kind': 'parameters', "
                f"'value': 10_000}}, got {described(asked)}."
            )
        known = list(signature(budget_of).parameters)[1:]
        for name in asked:
            if name not in known:
                raise ValueError(f"Unknown setting {name!r} of a budget; known: {known}.")
        if "kind" not in asked or "value" not in asked:
            raise ValueError(f"Expected a budget with `kind` and `value`, got {described(dict(asked))}.")
        if asked["kind"] != "memory" and not isinstance(asked["value"], Real):
            raise TypeError(f"Expected a number as the value of a budget, got {asked['value']!r}.")
        return budget_of(self.model, **({"data": self.data} if asked.get("kind") in FIRING else {}) | dict(asked))

    def _retained(self, rows: pd.DataFrame, allocation: Allocation) -> pd.DataFrame:
        kinds = {layer.name: layer.kind for layer in self.model.layers()}
        how: dict[str, Any] = {"by": self.by, "kinds": kinds, "avoided": avoided_in(self.model)}
        return retention(rows.reset_index(drop=True), allocation, variant="kept", **how)

    def _layers(self, named: Sequence[str] | None) -> list[str]:
        every = self.model.layers()
        if isinstance(named, str) or (named is not None and not named):
            raise ValueError(f"Expected a list of layers that neurons may be taken from, got {described(named)}.")
        if named is None:
            exact = [layer.name for layer in every if layer.exact]
            return exact or [layer.name for layer in every]
        known = [layer.name for layer in every]
        expect_known("layer", known, *named)
        return list(named)

    def plot(
        self,
        what: str = "importance",
        keep: float | Mapping[str, float] | Keep | None = None,
        *,
        by: str | Sequence[str] | None = None,
        layers: Sequence[str] | None = None,
        shares: Sequence[float] = SHARES,
        data: Any = None,
    ) -> Any:
        """Return a picture, a figure of matplotlib's, which a notebook shows; its `image("svg")` is a file's content.

        Args:
            what: `importance`: by layer and signal, with what is kept and what is removed;
                `correlations`: how alike signals rank neurons;
                `cooperation`: the graph of the signal `cooperative`;
                `error`: what the network loses at each of the `shares`, removed and repaired, measured now.
            keep: A share, as `keep` takes it, or kept neurons of each layer, to mark what is removed.
            by: The column or columns that are shown, by default all signals, `fused` and `surgeon`.
            layers: Which layers are shown, or, of `error`, may lose neurons.
            shares: Of `error`: which shares of the neurons are kept.
            data: Of `error`: batches that it is measured on, by default those of the importance.

        Raises:
            ValueError: For an unknown picture, column or layer.
            ModuleNotFoundError: Without matplotlib, which the extra `plots` brings.
        """
        expect_known("picture", PICTURES, what)
        columns = [by] if isinstance(by, str) else by
        if what == "correlations":
            return correlations(self.table, columns=columns)
        if what == "error":
            from pruning.steps.losing import errors_by_share, unit_of  # which prunes, and so knows this module

            errors = errors_by_share(self, shares, data=data, layers=layers)
            return error_by_share(errors, unit_of(self))
        chosen: Any = keep if keep is None or _is_keep(keep) else self.keep(keep)  # type: ignore[arg-type]
        if what == "cooperation":
            return cooperation(cooperation_edges(self.model.decoupled(), self.covariances), chosen, layers=layers)
        return importance_by_layer(self.table, chosen, columns=columns, layers=layers)

    def card(
        self,
        layer: str | int,
        neuron: int,
        *,
        keep: float | Mapping[str, float] | None = None,
        words: Sequence[str] | None = None,
    ) -> NeuronCard:
        """Return all that is known of one neuron; `print` shows it, and its `plot()` is a picture.

        Args:
            layer: Its layer, by name or by place.
            neuron: Its number.
            keep: A share, as `keep` takes it, to say whether the neuron stays.
            words: The text of each token, of a language model of `pruning.build`.

        Raises:
            ValueError: For an unknown layer or neuron.
        """
        kept = {}
        if keep is not None:
            stays = self.keep(keep)
            ranked = self.table.assign(
                rank=self.table.groupby("layer")[self.by].rank(method="first", ascending=False, na_option="bottom"),
                kept=True,
            )
            for name, numbers in stays.items():
                here = ranked["layer"] == name
                ranked.loc[here, "kept"] = ranked.loc[here, "neuron"].isin(numbers.tolist())
            kept = {f"keep={keep}": ranked}
        return card_of(
            self.model.decoupled(), layer, neuron, importance=self.table, covariances=self.covariances,
            batches=self.data, kept=kept, words=words,
        )  # fmt: skip

    def __str__(self) -> str:
        """Return a line on each layer."""
        fisher = f"targets drawn from a {self.fisher} distribution" if self.fisher else "the empirical one"
        lines = [f"importance of {len(self.table):,} neurons by `{self.by}`", f"Fisher information: {fisher}"]
        rows = []
        for layer in self.model.layers():
            values = self.table.loc[self.table["layer"] == layer.name, self.by].to_numpy(dtype=float)
            low, middle, high = np.quantile(values, [0.1, 0.5, 0.9]) if np.isfinite(values).all() else (np.nan,) * 3
            exact = "yes" if layer.exact else "no"
            rows.append([layer.name, layer.kind, str(layer.width), exact, *(f"{x:.3g}" for x in (low, middle, high))])
        lines += table_of(["layer", "kind", "neurons", "exact", "10%", "median", "90%"], rows)
        lines += wrapped(f"not measured: {name}, because {reason}" for name, reason in self.left_out.items())
        return "\n".join(lines)


@front_door
def importance(
    found: nn.Module,
    data: Any,
    loss: Any = None,
    *,
    signals: Sequence[str] | None = None,
    by: str | None = None,
    strategy: str = "adaptive",
    batches: int = 50,
    rank: int | None = None,
    seed: int = 1,
    call: Any = None,
    split: Any = None,
    example_dim: int | None = None,
    labelled: Any = None,
    track: Track = silently,
    map: Map = in_turn,
) -> Importance:
    """Return how important each neuron of a network is to its loss, by every signal that data and loss allow.

    >>> import torch, pruning
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> network = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 3))
    >>> data = [(torch.randn(8, 2), torch.arange(8) % 3) for _ in range(4)]
    >>> found = pruning.discover(network, data[0][0])
    >>> pruning.importance(found, data, nn.CrossEntropyLoss()).by
    'surgeon'

    Args:
        found: What `discover` found, or a network.
        data: Any iterable of batches, a `DataLoader` for example: (inputs, targets), dictionaries, inputs alone, and
            what else `pruning.adapt` says. Read several times; what can be read only once is kept in memory, as are
            those of a `DataLoader` with workers, up to 256 MB.
        loss: (outputs, targets) → mean loss, see `pruning.adapt`. None: the network's own, if it gives one; else what
            needs no labels is measured, and what counts is that the outputs stay as they are.
        signals: Which to measure: of `weights`, `hessian`, `activations`, `gradients`, `cooperative` (which are fused)
            and `surgeon` (the order that knows the repair), by default all that the data allow; and `intervention`,
            which removes every neuron in turn, and the field's `criteria`, which are measured only if they are named.
        by: The column of the table that neurons are chosen by, a criterion such as `taylor_first` among them; what it
            needs is measured. By default `surgeon` where it was measured, else `fused`.
        strategy: How signals are fused, `simple` or `adaptive`.
        batches: At most this many are read.
        rank: Directions that are kept of the covariances of layers more than twice as wide, for little memory, here and
            in the repair (see `pruning.activations`); None for exact ones.
        seed: Of what is drawn: probes, sampled targets, the order of a `DataLoader` that shuffles.
        call: See `pruning.adapt`; likewise `split` and `example_dim`.
        split: Batch → (inputs, targets).
        example_dim: The dimension of inputs that runs over examples.
        labelled: Batches for signals that look at targets, which the network was not trained on: on those that it was
            they tell what was overfitted. By default `data`.
        track: Shows progress.
        map: Who computes; the numbers do not depend on it.

    Raises:
        ValueError: For an unknown signal, fewer than two batches, or a signal that needs labels and has none.
    """
    expect_seed(seed)
    expect_known("importance", CHOICES, *([] if by is None else [by]))
    expect_known("fusion", STRATEGIES, strategy, where=" without measured removals")
    data = read_once(data, batches, seed)
    with torch.random.fork_rng(devices=[]):  # whoever reads a `DataLoader` draws
        model = prunable(found, data, loss, call=call, split=split, example_dim=example_dim)
        pairs = limited(model, data, batches, seed)
        if not model.layers():
            expect_finite(model)
            advice = "print(pruning.discover(network, inputs)) tells why"
            raise ValueError(f"Expected a network with a layer that can be pruned, got none; {advice}.")
        judged = pairs if labelled is None else limited(model, labelled, batches, seed)
        names, left_out = measured_by(model, pairs, signals, by)
    tables: dict[str, pd.DataFrame] = {}
    covariances: Covariances = {}
    effort = {**USUAL, "activations": {**USUAL["activations"], "rank": rank}}
    with seeded(model, seed):
        for name in (each for each in MEASURED if each in names or each == "activations"):
            if name in tables:
                continue
            try:
                tables[name], covariances = measure(
                    name, model, pairs, covariances, effort=effort, seed=seed, labelled=judged, track=track, map=map
                )
            except (RuntimeError, NotImplementedError, NotFinite) as error:
                left_out[name] = _left_out(name, error)
                logger.warning("Not measured: %s, because %s.", name, left_out[name])
    if "criteria" in tables:
        left_out |= tables["criteria"].attrs.get("left_out", {})
    fused = [name for name in SIGNALS if name in tables and (name in names or len(tables) == 1)]
    fusing = Fusing(strategy=strategy, seed=seed, signals=fused or None)
    table = fuse(tables, fusing)
    measured = "surgeon" in tables and bool(tables["surgeon"]["importance"].notna().any())
    by = ("surgeon" if measured else "fused") if by is None else by
    if table[by].isna().all() and by != "surgeon":  # which says by itself why it has no numbers
        why = next((reason for name, reason in left_out.items() if name in (by, "criteria")), "no layer has any")
        raise ValueError(f"Expected numbers of {by!r} to choose by, got none: {why}.")
    if otherwise := ordered_otherwise(table, by, fused or [name for name in SIGNALS if name in tables]):
        logger.warning(otherwise)
    return Importance(table, by, model, pairs, covariances, left_out)


def _left_out(name: str, error: Exception) -> str:
    """Return why a signal is left out that stopped with this error; raise it if others would stop as well."""
    if isinstance(error, NotFinite):
        if name != "hessian":
            raise error
        return NOT_FINITE
    if name == "hessian" and once_alone(error):
        return ONCE
    if "does not require grad" not in str(error):
        raise error
    raise ValueError(
        f"Expected a loss whose gradient {name} can follow to the weights, got one that does not depend on them; "
        "detach nothing, and freeze nothing that is measured."
    ) from error


def _expect_shares(keep: Any) -> None:
    """Refuse what is neither a share of the neurons nor shares by layer."""
    if isinstance(keep, Mapping) and not keep:
        raise ValueError("Expected a share to keep of some layer, got an empty dict.")
    for where, share in keep.items() if isinstance(keep, Mapping) else [("", keep)]:
        of = f" of layer {where!r}" if where else ""
        if not isinstance(share, Real) or isinstance(share, bool):
            raise TypeError(
                f"Expected a share{of} to keep, such as 0.5, or shares by layer, got {described(share)}; "
                "pruning.select takes kept neurons by their numbers."
            )
        if not 0 < float(share) <= 1:
            advice = f"; {share}% is {share / 100:g}" if 1 < float(share) <= 100 else ""
            raise ValueError(f"Expected a share{of} to keep in (0, 1], got {share}{advice}.")


def _is_keep(keep: Any) -> bool:
    """Return whether these are kept neurons and no shares."""
    return isinstance(keep, Mapping) and all(hasattr(kept, "__len__") for kept in keep.values())
