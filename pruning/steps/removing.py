"""Pruning in one line: blocks and neurons chosen, cut, their readers repaired, and what came of it as a short table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, get_args

from torch import nn

from pruning.core.devices import seeded
from pruning.core.hearing import front_door, heard_once
from pruning.core.neurons import Keep, NeuronLayer
from pruning.core.options import Repair, Scope, expect_known
from pruning.core.progress import Track, silently
from pruning.core.sketches import rank_of
from pruning.core.words import described, table_of, wrapped
from pruning.evaluation.measures import Size, size_of
from pruning.models.adapted import Adapted
from pruning.models.base import Measurable
from pruning.repair import reconstruction, refitting
from pruning.repair.imitation import Imitation, imitate
from pruning.repair.reconstruction import reconstruct
from pruning.selection.budgets import Budget
from pruning.selection.spending import met
from pruning.steps.comparing import COMPARED, differences, distance
from pruning.steps.given import like, limited
from pruning.steps.measuring import Importance
from pruning.steps.shallow import gone_of, remaining, shortened_model

SCOPES = ("measured", *get_args(Scope))
REPAIRS = get_args(Repair)
REPAIRING = (reconstruction.logger, refitting.logger)
"""What says which readers are only cut, in each of the networks that are compared."""
READINGS, RATE = 20, 2e-3
"""How often data are read to imitate, and the highest learning rate."""


@dataclass(frozen=True)
class Report:
    """What pruning did.

    Attributes:
        keep: Kept neurons of each layer that lost some, as `pruning.select` takes them.
        widths: Layer → (neurons before, neurons after).
        before: Size of the dense model.
        after: Size of the pruned one.
        gone: Residual blocks that went as a whole.
        by: What neurons were chosen by.
        scope: How they were shared out.
        repair: How the readers of what is returned were repaired: what was asked for, or, where that left the outputs
            further from the dense network's, what came before it (`imitate` → `ridge` → `none`).
        apart: Scope → how far outputs then are from the dense network's, in units of the loss; of those compared, once
            the network has `imitated`, and `unrepaired` where the repair took them further off than the cut alone did.
    """

    keep: Keep
    widths: Mapping[str, tuple[int, int]]
    before: Size
    after: Size
    by: str
    scope: str
    repair: str
    apart: Mapping[str, float]
    gone: Sequence[str] = ()

    def __str__(self) -> str:
        """Return a line on each layer, and what the whole costs."""
        how = f"chosen by `{self.by}`, scope `{self.scope}`, repair `{self.repair}`"
        rows = [[name, str(old), str(new), f"{new / old:.0%}"] for name, (old, new) in self.widths.items()]
        sizes = (("neurons", "neurons"), ("parameters", "parameters"), ("multiply_adds", "multiply-adds"))
        for name, words in sizes:
            old, new = getattr(self.before, name), getattr(self.after, name)
            rows.append([words, f"{old:,}", f"{new:,}", f"{new / max(old, 1):.0%}"])
        lines = [f"pruned, {how}", *table_of(["layer", "before", "after", "kept"], rows)]
        if self.gone:
            lines += wrapped([f"blocks that are gone: {', '.join(self.gone)}"])
        if self.apart:
            compared = ", ".join(f"{scope} {value:.3g}" for scope, value in self.apart.items())
            lines += wrapped([f"apart from the dense network's outputs: {compared}"])
        return "\n".join(lines)


@front_door
def prune(
    found: nn.Module,
    importance: Importance,
    keep: float | Mapping[str, float] = 0.5,
    *,
    depth: float | Sequence[str] = 1.0,
    repair: str = "ridge",
    data: Any = None,
    scope: str = "measured",
    layers: Sequence[str] | None = None,
    floor: int | Mapping[str, int] = 1,
    multiple: int = 1,
    budget: Any = None,
    imitation: Imitation | None = None,
    seed: int = 1,
    track: Track = silently,
) -> Measurable:
    """Return the network with fewer neurons, its readers repaired; `print` shows what came of it.

    >>> import torch, pruning
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> network = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 3))
    >>> data = [(torch.randn(8, 2), torch.arange(8) % 3) for _ in range(4)]
    >>> found = pruning.discover(network, data[0][0])
    >>> smaller = pruning.prune(found, pruning.importance(found, data, nn.CrossEntropyLoss()), keep=0.5)
    >>> smaller.widths(), smaller.module
    ((3,), Sequential(
      (0): Linear(in_features=2, out_features=3, bias=True)
      (1): ReLU()
      (2): Linear(in_features=3, out_features=3, bias=True)
    ))

    Args:
        found: What `discover` found; it is left as it was.
        importance: What `importance` gave for it.
        keep: Share of the neurons that stay; or layer → share, the others staying whole.
        depth: Share of the residual blocks that stay, see `pruning.depth`, or names of those that go. They go first,
            and the neurons are then taken from what is left, in the order that was measured on the whole network.
        repair: `none`, `mean`, `ridge` (in closed form), or `imitate` (ridge, then the dense network's outputs). Where
            the outputs are further from the dense network's on the data than without it, the readers stay as they were.
        data: Batches for the repair, labels or none, by default those that the importance was measured on.
        scope: `layer`: each layer keeps that share; `global` or `absolute`: all layers are ranked together, by
            importance relative to the layer's mean, or as it is; `measured`: whichever of one share a layer and one
            ranking leaves the outputs, once repaired, closer to the dense network's on the data.
        layers: Those that neurons may be taken from; by default those in which removed equals masked (`exact`), all
            if there is none.
        floor: Fewest neurons of a layer.
        multiple: What every width is a multiple of, unless a layer stays whole.
        budget: What the kept neurons may cost, in place of a share: what `pruning.budget_of` gave, or its arguments by
            name, such as `{"kind": "memory", "value": "512KiB", "target": "int8"}`. Synaptic operations and energy are
            met as they are measured on the data in the network that is returned.
        imitation: How to imitate; by default `READINGS` times through the data at a learning rate of `RATE`.
        seed: Of the order of a `DataLoader` that shuffles, and of imitation.
        track: Shows progress.

    Returns:
        A model that is called as the network is; `module` is the user's own, `report` what was done.

    Raises:
        ValueError: For an unknown scope, repair or layer, or a network with other layers than those measured.
    """
    expect_known("scope", SCOPES, scope)
    expect_known("repair", REPAIRS, repair)
    if not isinstance(importance, Importance):
        raise TypeError(f"Expected what `pruning.importance` gave, got {described(importance)}.")
    dense = like(importance.model, found).decoupled()
    pairs = importance.data if data is None else limited(dense, data, COMPARED, seed)
    start, gone = dense, list[str]()
    if not isinstance(depth, int | float) or depth != 1:
        with seeded(dense, seed):
            gone = gone_of(replace(importance, model=dense), depth, track)
        start, cut = shortened_model(dense, gone)
        importance = remaining(importance, start, cut)
    how: dict[str, Any] = {"layers": layers, "floor": floor, "multiple": multiple}
    states = importance.covariances
    adapted = isinstance(dense, Adapted)
    read: dict[str, Any] = {"data": pairs, "rank": rank_of(states)} if adapted else {"covariances": states}
    tried = _compared(importance, keep, scope)
    closed = "ridge" if repair == "imitate" else repair
    budget = None if budget is None else importance.budget(budget)

    def made(budget: Budget | None) -> _Cut:
        candidates = {each: importance.keep(keep, scope=each, budget=budget, **how) for each in tried}
        smaller = {
            each: reconstruct(start, kept, repair=closed, **read)
            for each, kept in track([*candidates.items()], "repair, choices")
        }
        distances = {each: apart(model, dense, pairs) for each, model in smaller.items()}
        best = min(distances, key=distances.__getitem__)
        pruned, nearest, repaired = smaller[best], distances[best], closed
        if repair != "none":  # of few examples a refit may learn what is not so
            cut = reconstruct(start, candidates[best], repair="none", **read)
            plain = apart(cut, dense, pairs)
            if plain < nearest:
                pruned, nearest, repaired = cut, plain, "none"
                distances["unrepaired"] = plain
        if repair == "imitate":
            taught = imitate(pruned, dense, pairs, imitation=imitation or _usual(dense, pairs), track=track)
            distances["imitated"] = apart(taught, dense, pairs)
            if distances["imitated"] <= nearest:
                pruned, repaired = taught, "imitate"
        return _Cut(pruned, candidates[best], best, repaired, distances)

    with seeded(dense, seed), heard_once(*REPAIRING):
        pruned, kept, best, repaired, distances = made(budget) if budget is None else met(made, budget, pairs)
    ordered = [layer.name for layer in start.layers()]
    widths = dict(zip(ordered, zip(start.widths(), pruned.widths(), strict=True), strict=True))
    sizes = size_of(dense), size_of(pruned)
    pruned.report = Report(kept, widths, *sizes, importance.by, best, repaired, distances, gone)
    return pruned


class _Cut(NamedTuple):
    """A network without some neurons; which it kept, how they were shared out and repaired, and the distances."""

    model: Measurable
    kept: Keep
    scope: str
    repair: str
    apart: dict[str, float]


def _usual(dense: Measurable, pairs: Any) -> Imitation:
    """Return how a network imitates where nothing else is said."""
    targets = sum(dense.count(targets) for _, targets in pairs)
    return Imitation(tokens=READINGS * targets, learning_rate=RATE, warmup=0.1, clip=1.0)


def _compared(importance: Importance, keep: float | Mapping[str, float], scope: str) -> list[str]:
    """Return the scopes to choose from."""
    if scope != "measured":
        return [scope]
    several = [layer for layer in importance.model.layers() if _counts(layer)]
    if isinstance(keep, Mapping) or len(several) < 2:
        return ["layer"]
    return ["layer", "absolute" if importance.by == "surgeon" else "global"]


def _counts(layer: NeuronLayer) -> bool:
    return layer.width > 1


def apart(model: Measurable, dense: Measurable, pairs: Any) -> float:
    """Return how far a model's outputs are from the dense one's, in units of the loss: 0 where they are the same.

    The mean over batches of the loss's own divergence (see `Objective.divergence`), less what it is between equals.

    Args:
        model: With the same outputs.
        dense: What it is compared with.
        pairs: Batches; of labels nothing is read but which targets count.
    """
    each = differences(model, dense, pairs, distance)
    return sum(each) / max(len(each), 1)
