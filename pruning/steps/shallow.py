"""Depth at the front door: what residual blocks are worth, which of them go, and the network without them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from pruning.ablation.depth import depth_table, in_turn
from pruning.core.devices import seeded
from pruning.core.hearing import front_door
from pruning.core.options import expect_known
from pruning.core.progress import Track, silently
from pruning.core.words import table_of
from pruning.discovery.blocks import Block
from pruning.discovery.discovered import Discovered
from pruning.discovery.shallower import without_blocks
from pruning.discovery.shortening import Cut
from pruning.models.adapted import Adapted
from pruning.steps.given import limited, prunable, read_once
from pruning.steps.measuring import Importance

ORDERS = ("turns", "divergence", "influence", "loss_increase")


@dataclass(frozen=True)
class Depth:
    """What each residual block of a network is worth.

    >>> import torch, pruning
    >>> from torch import nn
    >>> class Residual(nn.Linear):
    ...     def forward(self, inputs):
    ...         return inputs + super().forward(inputs).relu()
    >>> network = nn.Sequential(nn.Linear(2, 6), Residual(6, 6), Residual(6, 6), nn.Linear(6, 3))
    >>> for parameter in network[2].parameters():
    ...     _ = parameter.data.zero_()  # it adds nothing
    >>> worth = pruning.depth(network, [torch.randn(8, 2), torch.randn(8, 2)])
    >>> list(worth.table["block"]), worth.gone(0.5, by="divergence")
    (['1', '2'], ['2'])

    Attributes:
        table: The `depth` table: one row for each block; see `pruning.depth`.
        model: The network that was measured, with its loss.
        data: The batches that it was measured on.
    """

    table: pd.DataFrame
    model: Adapted
    data: Any = field(repr=False)

    def gone(self, keep: float, *, by: str = "turns", inner: bool = False, track: Track = silently) -> list[str]:
        """Return the blocks that go, as `pruning.shorten` takes them.

        Args:
            keep: Share of the blocks that stay, at least one.
            by: `turns`: one after the other goes that without which outputs stay closest to the dense network's, beside
                those that are gone (as many passes through the data as there are blocks, for each that goes); or a
                column of the table, `divergence`, `influence` or `loss_increase`: those that are least in it.
            inner: Whether to choose from those that have no other within, such as attention and MLPs, instead of those
                that are in no other.
            track: Shows progress.

        Raises:
            ValueError: For a share outside (0, 1], another order, or a column without numbers.
        """
        names = list(self.table["block"])
        blocks = [block for block in blocks_in(self.model) if block.name in names]
        expect_known("order", ORDERS, by)
        chosen, count = _choice(blocks, keep, inner=inner)
        if by == "turns":
            with seeded(self.model, 1):
                return [block.name for block in in_turn(self.model, self.data, chosen, count, track=track)]
        rows = self.table[self.table["block"].isin([block.name for block in chosen])]
        if rows[by].isna().any():
            without = ", ".join(rows.loc[rows[by].isna(), "block"])
            raise ValueError(f"Expected numbers in the column {by!r}, got none for {without}; choose by 'turns'.")
        return [str(name) for name in rows.sort_values(by, kind="stable")["block"].iloc[:count]]

    def __str__(self) -> str:
        """Return a line on each block."""
        rows = []
        for row in self.table.to_dict("records"):
            numbers = (_shown(row[column]) for column in ("influence", "divergence", "loss_increase"))
            rows.append([f"{'  ' if row['within'] else ''}{row['block']}", f"{row['parameters']:,}", *numbers])
        return "\n".join(
            [
                f"{len(rows)} residual blocks",
                *table_of(["block", "parameters", "influence", "divergence", "loss"], rows),
            ]
        )


@front_door
def depth(
    found: Any,
    data: Any,
    loss: Any = None,
    *,
    batches: int = 20,
    seed: int = 1,
    call: Any = None,
    split: Any = None,
    example_dim: int | None = None,
    track: Track = silently,
) -> Depth:
    """Return what each residual block of a network is worth: blocks of Transformers and ResNets, sublayers, and others.

    >>> import torch, pruning
    >>> from torch import nn
    >>> class Residual(nn.Linear):
    ...     def forward(self, inputs):
    ...         return inputs + super().forward(inputs).relu()
    >>> _ = torch.manual_seed(0)
    >>> network = nn.Sequential(nn.Linear(2, 6), Residual(6, 6), Residual(6, 6), Residual(6, 6), nn.Linear(6, 3))
    >>> for parameter in network[2].parameters():
    ...     _ = parameter.data.zero_()  # it adds nothing
    >>> data = [(torch.randn(8, 2), torch.arange(8) % 3) for _ in range(4)]
    >>> found = pruning.discover(network, data[0][0])
    >>> worth = pruning.depth(found, data, nn.CrossEntropyLoss())
    >>> worth.gone(0.75), worth.table["divergence"].tolist()[1]
    (['2'], 0.0)
    >>> len(pruning.shorten(found, worth.gone(0.75)).network)
    4

    Args:
        found: What `discover` found, or a network.
        data: See `pruning.importance`.
        loss: See `pruning.importance`. None: the network's own, if it gives one; else the loss increase is not
            measured, and what counts is that the outputs stay as they are.
        batches: At most this many are read.
        seed: Of the order of a `DataLoader` that shuffles, and of what a network draws.
        call: See `pruning.adapt`; likewise `split` and `example_dim`.
        split: Batch → (inputs, targets).
        example_dim: The dimension of inputs that runs over examples.
        track: Shows progress.

    Raises:
        ValueError: If no residual block can go.
    """
    data = read_once(data, batches, seed)
    model = prunable(found, data, loss, call=call, split=split, example_dim=example_dim)
    pairs = limited(model, data, batches, seed)
    blocks = blocks_in(model)
    if not blocks:
        raise ValueError("Expected a network with residual blocks, h + f(h), that can go as a whole, got one without.")
    assert isinstance(model, Adapted)  # noqa: S101 - for the type checker: others have no blocks
    with seeded(model, seed):
        return Depth(depth_table(model, pairs, blocks, track=track), model, pairs)


def shorten(found: Any, blocks: Sequence[str]) -> Any:
    """Return a network without some of its residual blocks; its parameters are gone with them.

    A block that is in an `nn.ModuleList` or `nn.Sequential` leaves it, so that it is shorter; numbers that say how many
    there are follow, the configuration of a model of `transformers` where it can say so, and the places in its cache.
    In the place of another stands a module without parameters: it hands the stream on, or gives zeros, which are added.
    Modules that only fed it (its normalisation, say) go with it. What the network gives is what it gives where these
    blocks are skipped, which is seen on weights in general position. Its neurons are then discovered anew.

    >>> import torch, pruning
    >>> from torch import nn
    >>> class Residual(nn.Linear):
    ...     def forward(self, inputs):
    ...         return inputs + super().forward(inputs).relu()
    >>> found = pruning.discover(nn.Sequential(Residual(3, 3), Residual(3, 3), nn.Linear(3, 2)), torch.ones(1, 3))
    >>> shorten(found, ["0"]).network
    Sequential(
      (0): Residual(in_features=3, out_features=3, bias=True)
      (1): Linear(in_features=3, out_features=2, bias=True)
    )

    Args:
        found: What `discover`, `select`, `adapt` or `prune` gave; it is left as it was.
        blocks: Names as `found.blocks()` and `found.experts()` have them; `Depth.gone` chooses some blocks.

    Raises:
        TypeError: For a network whose neurons were not discovered.
        ValueError: For an unknown block, or blocks that cannot go together.
    """
    if isinstance(blocks, str):
        raise TypeError(f"Expected names of blocks in a list, got the text {blocks!r}.")
    return shortened_model(found, blocks)[0]


def shortened_model(found: Any, blocks: Sequence[str]) -> tuple[Any, Cut]:
    """Return what `shorten` does, and what was done."""
    if isinstance(found, Adapted):
        network, cut = shortened_model(found.network, blocks)
        return Adapted(network, replace(found.use)), cut
    if not isinstance(found, Discovered):
        raise TypeError(
            f"Expected what `pruning.discover` found in a network, got {type(found).__name__}; discover it first."
        )
    return without_blocks(found, blocks)


def blocks_in(model: Any) -> list[Block]:
    """Return the residual blocks of a model; none of one that says itself where its neurons are."""
    while isinstance(model, Adapted):
        model = model.network
    return model.blocks() if isinstance(model, Discovered) else []


def gone_of(importance: Importance, depth: float | Sequence[str], track: Track) -> list[str]:
    """Return the blocks that go, chosen on the data that importance was measured on; see `pruning.prune`."""
    if not isinstance(depth, int | float):
        return list(depth)
    model = importance.model
    chosen, count = _choice(blocks_in(model), depth, inner=False)
    assert isinstance(model, Adapted)  # noqa: S101 - for the type checker: others have no blocks
    return [block.name for block in in_turn(model, importance.data, chosen, count, track=track)] if count else []


def remaining(importance: Importance, model: Adapted, cut: Cut) -> Importance:
    """Return the importance of the neurons that are left, as it was measured, under the names that layers have now."""
    names = [str(name) for name in importance.table["layer"].unique()]
    moved = {name: cut.moved(name) for name in names if cut.holds(name.partition(":")[0])}
    widths = {layer.name: layer.width for layer in model.layers()}
    sizes = importance.table.groupby("layer").size()
    kept = {old: new for old, new in moved.items() if widths.get(new) == sizes[old]}
    rows = importance.table[importance.table["layer"].isin(list(kept))]
    rows = rows.assign(layer=rows["layer"].map(kept)).sort_values(["layer", "neuron"], ignore_index=True)
    return replace(importance, table=rows, model=model, covariances={})


def _choice(blocks: Sequence[Block], keep: float, *, inner: bool) -> tuple[list[Block], int]:
    """Return the blocks to choose from, and how many of them go."""
    if not 0 < keep <= 1:
        raise ValueError(f"Expected a share of the blocks to keep, above 0 and at most 1, got {keep}.")
    around = {block.within for block in blocks}
    chosen = [block for block in blocks if (block.name not in around if inner else not block.within)]
    if not chosen:
        raise ValueError("Expected a network with residual blocks, h + f(h), that can go as a whole, got one without.")
    return chosen, len(chosen) - max(1, math.floor(keep * len(chosen) + 0.5))


def _shown(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"
