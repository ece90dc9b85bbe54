"""How much the loss rises when sets of neurons are removed together, before and after repair and fine-tuning."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from pruning.ablation.losses import ClusterLosses, _first, cluster_losses
from pruning.ablation.schemas import JOINT_REMOVAL
from pruning.core.devices import twin_of
from pruning.core.neurons import Keep, others, select
from pruning.core.progress import Track, silently
from pruning.core.statistics import ClusteredMean
from pruning.core.tables import table
from pruning.core.workers import Map, in_turn
from pruning.data.windows import Batches
from pruning.models.base import Measurable, expect_ready

Repair = Callable[[Any, Keep], Any]


"""(dense model, kept neurons) → the smaller model, repaired."""


Finetune = Callable[[Any], Any]


"""A model, which it may change → the model with more training."""


def removal_sets(measured: pd.DataFrame, *, shares: Sequence[float], seed: int) -> dict[str, dict[str, list[int]]]:
    """Return sets of neurons to remove together: name → layer → neurons.

    For each share two sets of ⌊share × measured neurons of the layer⌋ in each layer: `least`, those whose removal
    alone costs least, and `random`.

    Args:
        measured: The `oracle` table.
        shares: Shares of the measured neurons, below 1.
        seed: Seed of the random sets.
    """
    random = measured.assign(loss_increase=np.random.default_rng(seed).random(len(measured)))
    return {
        f"{name} {share:g}": {
            str(layer): sorted(rows.nsmallest(int(share * len(rows)), "loss_increase")["neuron"].tolist())
            for layer, rows in frame.groupby("layer")
        }
        for share in shares
        for name, frame in (("least", measured), ("random", random))
    }


def joint_removal(
    model: Measurable,
    windows: Batches,
    measured: pd.DataFrame,
    *,
    sets: Mapping[str, Mapping[str, Sequence[int]]],
    tokens: int,
    repair: Repair | None = None,
    finetune: Finetune | None = None,
    track: Track = silently,
    map: Map = in_turn,
) -> pd.DataFrame:
    """Return the `joint_removal` table: the loss increase when sets of neurons are removed together.

    Importance one neuron at a time does not add up ("Is oracle pruning the true oracle?", 2412.00143), so the sum of
    the single increases stands beside the joint one, and both are measured again after repair and after fine-tuning.
    Every increase is paired on the same tokens, its standard error as in `oracle`; after fine-tuning it is relative
    to the dense model with the same fine-tuning.

    >>> import torch, pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> text = pruning.Windows(torch.arange(160) % 9, first=0, batch=2, bptt=8)
    >>> unread = pruning.mask(model, {"rnn.0": torch.arange(1, 6)})  # nobody reads neuron 0
    >>> single = pruning.oracle(unread, text, pruning.Ablation(neurons="all", tokens=32, seed=1))
    >>> joint = joint_removal(unread, text, single, sets={"first": {"rnn.0": [0]}}, tokens=32)
    >>> joint["phase"][0], abs(joint["loss_increase"][0].item()) < 1e-6
    ('pruned', True)

    Args:
        model: The dense model, with readers of its own for each layer.
        windows: Text that it was not trained on.
        measured: The `oracle` table.
        sets: Name → layer → neurons to remove.
        tokens: How many tokens to measure on, as far as the text goes.
        repair: What makes the smaller model from the dense one better than removal alone; None leaves this out.
        finetune: What trains a model further, the repaired one if there is a repair; None leaves this out.
        track: Shows progress.
        map: Who computes: each set by itself; `repair` and `finetune` then go to workers too.

    Raises:
        ValueError: If the text is a single column of a window, or a single batch.
    """
    expect_ready(model)
    text = _first(model, windows, tokens)
    dense, samples = cluster_losses(model, text), sum(model.count(targets) for _, targets in text)
    if sum(int((counts > 0).sum()) for _, counts in dense) < 2:
        raise ValueError("Expected targets in at least two columns or batches of text, to know how much they differ.")
    trained = None if finetune is None else cluster_losses(finetune(twin_of(model)), text)
    single = measured.set_index(["layer", "neuron"])["loss_increase"]
    removed = partial(_removed, model, text, dense, trained, single, repair, finetune)
    tracked = zip(track([*sets], "joint removal, sets"), map(removed, [*sets.items()]), strict=False)
    rows = [row | {"samples": samples} for _, rows in tracked for row in rows]
    return table(JOINT_REMOVAL, pd.DataFrame(rows))


def _removed(
    model: Any,
    text: Sequence[Any],
    dense: ClusterLosses,
    trained: ClusterLosses | None,
    single: pd.Series,
    repair: Repair | None,
    finetune: Finetune | None,
    named: tuple[str, Mapping[str, Sequence[int]]],
) -> list[dict[str, Any]]:
    """Return a set's row for each phase."""
    (name, removed), layers = named, model.layers()
    keep = {layer.name: others(layer.width, removed.get(layer.name, ())) for layer in layers}
    smaller = select(model, keep)
    phases = {"pruned": (smaller, dense)}
    if repair is not None:
        smaller = repair(model, keep)
        phases["reconstructed"] = (smaller, dense)
    if finetune is not None and trained is not None:
        phases["finetuned"] = (finetune(twin_of(smaller)), trained)
    gone = [(layer.name, neuron) for layer in layers for neuron in removed.get(layer.name, ())]
    told = {"neurons": len(gone), "single_sum": float(single[gone].sum())}
    return [
        {"set": name, "phase": phase} | told | _paired(cluster_losses(pruned, text), reference)
        for phase, (pruned, reference) in phases.items()
    ]


def _paired(pruned: ClusterLosses, dense: ClusterLosses) -> dict[str, float | int]:
    """Return the mean loss increase and its standard error."""
    increase = ClusteredMean.empty(1)
    for (ours, counts), (theirs, _) in zip(pruned, dense, strict=True):
        increase.update((ours - theirs)[:, None], counts)
    return {"loss_increase": float(increase.mean), "standard_error": float(increase.standard_error)}


def joint_sets(oracle: pd.DataFrame, *, sets: int, share: float, seed: int) -> dict[str, dict[str, list[int]]]:
    """Return random sets of a layer's measured neurons to remove together: name → layer → neurons.

    Args:
        oracle: Measured removals.
        sets: How many sets of each layer.
        share: Share of the layer's measured neurons in a set.
        seed: Seed of the sets.
    """
    random = np.random.default_rng(seed)
    removed = {}
    for layer, measured in oracle.groupby("layer"):
        size = max(1, round(share * len(measured)))
        for place in range(sets):
            neurons = random.choice(measured["neuron"].to_numpy(), size, replace=False)
            removed[f"{layer} {place:03}"] = {str(layer): sorted(neurons.tolist())}
    return removed
