"""What residual blocks are worth: how little they change their stream, and what outputs and loss are without them."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.ablation.schemas import DEPTH
from pruning.core.devices import states_of
from pruning.core.holding import holding
from pruning.core.modes import evaluating
from pruning.core.progress import Track, silently
from pruning.core.statistics import ClusteredMean
from pruning.core.tables import table
from pruning.data.batches import Unlabelled
from pruning.discovery.absent import skipping
from pruning.discovery.blocks import Block
from pruning.models.adapted import Adapted
from pruning.models.examples import Unjudged

Blocks = Sequence[Block]


@dataclass(frozen=True)
class Skipped:
    """What a network gives without some of its blocks, compared with what it gives with them; each has a place.

    Attributes:
        divergence: Of the outputs.
        increase: Of the loss.
    """

    divergence: ClusteredMean
    increase: ClusteredMean


def depth_table(model: Adapted, pairs: Any, blocks: Blocks, *, track: Track = silently) -> pd.DataFrame:
    """Return the `depth` table: what each block is worth, by itself.

    The influence of a block is 1 − E[cos(h, h + f(h))] over all places, of the numbers that a place has ("block
    influence", ShortGPT, Men et al. 2024): one pass, no labels. The divergence is that of the loss (`Objective`)
    between the outputs with and without it, and the loss increase what their losses differ by: a pass for each block.

    Args:
        model: It is left as it was.
        pairs: Batches as (inputs, targets), read once.
        blocks: Which to measure.
        track: Shows progress.
    """
    influences = Influences(model.module, blocks)
    skipped = without(model, pairs, [[block] for block in blocks], influences=influences, track=track)
    counts = skipped.divergence.tokens
    judged = skipped.increase.tokens > 0
    absent = torch.full((len(blocks),), float("nan"), dtype=torch.float64)
    increase, error = (
        torch.where(judged, values, absent) for values in (skipped.increase.mean, skipped.increase.standard_error)
    )
    frame = pd.DataFrame(
        {
            "place": range(len(blocks)),
            "block": [block.name for block in blocks],
            "kind": [block.kind for block in blocks],
            "within": [block.within for block in blocks],
            "parameters": [block.parameters for block in blocks],
            "influence": influences.means(),
            "divergence": skipped.divergence.mean.numpy(),
            "divergence_error": skipped.divergence.standard_error.numpy(),
            "loss_increase": increase.numpy(),
            "standard_error": error.numpy(),
            "importance": skipped.divergence.mean.numpy(),
            "samples": counts.long().numpy(),
        }
    )
    return table(DEPTH, frame)


def in_turn(model: Adapted, pairs: Any, blocks: Blocks, count: int, *, track: Track = silently) -> list[Block]:
    """Return as many blocks, one after the other that without which outputs stay closest to the dense network's.

    Each is chosen beside those that are gone already (SLEB, Song et al. 2024), for two blocks that do the same are each
    worth little as long as the other is there.

    Args:
        model: It is left as it was.
        pairs: Batches as (inputs, targets), of which no target is read.
        blocks: Those to choose from.
        count: How many go.
        track: Shows progress.
    """
    gone: list[Block] = []
    for _ in track(range(count), "depth, blocks"):
        left = [block for block in blocks if block not in gone]
        distances = without(model, pairs, [[*gone, block] for block in left]).divergence.mean
        gone.append(left[int(distances.argmin())])
    return gone


def without(
    model: Adapted,
    pairs: Any,
    choices: Sequence[Blocks],
    *,
    influences: "Influences | None" = None,
    track: Track = silently,
) -> Skipped:
    """Return how far the network is from itself without each of these choices of blocks.

    Args:
        model: It is left as it was.
        pairs: Batches as (inputs, targets).
        choices: Blocks that are skipped together.
        influences: Sees what goes through the blocks of the whole network.
        track: Shows progress.
    """
    found = Skipped(ClusteredMean.empty(len(choices)), ClusteredMean.empty(len(choices)))
    states: list[Any] = [None] * (len(choices) + 1)
    with torch.no_grad(), evaluating(model):
        for _, (inputs, targets) in zip(track(range(len(pairs)), "depth, batches"), pairs, strict=False):
            drawn = states_of(model)
            with influences.seeing() if influences else ExitStack():
                dense, states[-1] = model.predicted(inputs, states[-1])
            objective, count = model.objective(targets), model.count(targets)
            if not count:
                continue
            judged = not isinstance(objective, Unjudged) and not isinstance(targets, Unlabelled)
            loss = _loss(model, dense, targets) if judged else 0.0
            same = objective.divergence(dense, dense, targets, temperature=1.0)
            for place, blocks in enumerate(choices):
                with drawn.again(), skipping(model.module, [(block.module, block.passes) for block in blocks]):
                    outputs, states[place] = model.predicted(inputs, states[place])
                apart = (objective.divergence(outputs, dense, targets, temperature=1.0) - same).item()
                _update(found.divergence, apart * count, count, place)
                if judged:
                    rise = _loss(model, outputs, targets) - loss
                    _update(found.increase, rise, model.weight(targets), place)
    return found


def _loss(model: Adapted, outputs: Any, targets: Any) -> float:
    """Return the summed loss of a batch, by the same one whichever blocks are skipped."""
    with holding(model):
        return model.judged(outputs, targets, reduction="sum").item()


def _update(mean: ClusteredMean, total: float, count: float, place: int) -> None:
    sums, counts = torch.tensor([[total]], dtype=torch.float64), torch.tensor([count], dtype=torch.float64)
    mean.update(sums, counts, torch.tensor([place]))


class Influences:
    """How much blocks change what goes through them: 1 − the mean cosine of what they are given and give."""

    def __init__(self, network: nn.Module, blocks: Blocks) -> None:
        self.network, self.blocks = network, blocks
        self._sums = torch.zeros(len(blocks), 2, dtype=torch.float64)

    @contextmanager
    def seeing(self) -> Iterator[None]:
        """Within the context, take in what goes through the blocks whenever the network runs."""
        with ExitStack() as handles:
            for place, block in enumerate(self.blocks):
                if block.passes is not None:
                    module = self.network.get_submodule(block.module)
                    hook = self._hook(place, block.passes)
                    handles.enter_context(module.register_forward_hook(hook, with_kwargs=True))
            yield

    def _hook(self, place: int, passes: int | str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any], outputs: Any) -> None:
            given: Tensor = named[passes] if isinstance(passes, str) else args[passes]
            gives: Tensor = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
            along = 1 if given.ndim > 3 else -1  # an image's channels come first
            cosines = F.cosine_similarity(given.detach().float(), gives.detach().float(), dim=along)
            self._sums[place] += torch.tensor([cosines.sum().item(), cosines.numel()], dtype=torch.float64)

        return hook

    def means(self) -> list[float]:
        """Return each block's influence; NaN where nothing went through."""
        return (1 - self._sums[:, 0] / self._sums[:, 1]).tolist()
