"""Every number that the library computes, on the device beside the CPU's."""

import copy
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.device.report import FAMILIES, Report, trained, windows_of

CLOSE = {torch.float64: 1e-6, torch.float32: 0.05}
"""Largest difference from the CPU's values, relative to the column's largest, that passes."""
ALIKE = 0.9
"""Rank correlation that passes in float32 for standard errors: those of graphs whose edges a threshold chooses jump
with the last digit of an edge."""


def numbers(report: Report, model: Any) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
    """Return what is compared: name → what measures it on the model's device → columns by name."""
    from pruning.ablation.joint_removal import joint_removal
    from pruning.ablation.oracle import Ablation, oracle
    from pruning.core.neurons import mask, select
    from pruning.evaluation.energy import energy_of
    from pruning.evaluation.measures import loss_of
    from pruning.experiment.measured import MEASURED
    from pruning.experiment.measuring import USUAL, measure
    from pruning.fusion.calibration import removal_curves
    from pruning.repair.imitation import Imitation, imitate
    from pruning.repair.reconstruction import reconstruct
    from pruning.signals.activations import activations
    from pruning.signals.sensitivity import sensitivities

    steps = 8 if report.quick else 20
    windows = windows_of(16 * 20 * steps, 300, seed=3)
    effort = {**USUAL, "hessian": {"probes": 16, "stability": 1.0}}
    layers = model.layers()
    keep = {layer.name: torch.arange(0, layer.width, 2, device=model.device) for layer in layers}
    found: dict[str, Callable[[], dict[str, np.ndarray]]] = {}
    known: dict[str, Any] = {}

    def states() -> Any:
        if not known:
            known["states"] = activations(model, windows, activation_samples=steps, bins=32)[1]
        return known["states"]

    def signal(name: str) -> dict[str, np.ndarray]:
        table, _ = measure(name, model, windows, states(), effort=effort, seed=1)
        return columns(table)

    for name in MEASURED:
        found[name] = lambda name=name: signal(name)
    found["covariances"] = lambda: matrices(states())
    found["sensitivities"] = lambda: matrices(sensitivities(model, windows, batches=10, seed=1))
    asked = Ablation(neurons=8, tokens=1500, seed=1)
    for how in (asked, replace(asked, words=32)):
        found[f"oracle, {how.words} words"] = lambda how=how: columns(oracle(model, windows, how))

    def joint() -> dict[str, np.ndarray]:
        single = oracle(model, windows, asked)
        some = single.groupby("layer")["neuron"].apply(lambda own: own.iloc[:2].tolist()).to_dict()
        repair = lambda dense, kept: reconstruct(dense, kept, states(), repair="ridge")  # noqa: E731
        table = joint_removal(model, windows, single, sets={"two": some}, tokens=1500, repair=repair)
        return columns(table)

    found["joint removal"] = joint

    def curves() -> dict[str, np.ndarray]:
        scores = columns_frame(model)
        return columns(removal_curves(model, windows, scores, by="score", shares=[0.25, 0.5]))

    found["removal curves"] = curves

    def losses() -> dict[str, np.ndarray]:
        smaller = select(model, keep)
        ridge = reconstruct(model, keep, states(), repair="ridge")
        imitation = Imitation(tokens=16 * 20 * 4, learning_rate=1e-3, warmup=0.05, clip=1.0)
        models = {"dense": model, "masked": mask(model, keep), "cut": smaller, "ridge": ridge}
        models["imitate"] = imitate(ridge, model, windows, imitation=imitation)
        return {name: np.array([loss_of(each, windows).mean]) for name, each in models.items()}

    found["losses of surgeons"] = losses
    found["energy"] = lambda: {"energy": np.array([energy_of(model, [windows[0], windows[1]]).energy])}
    return found


def columns(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return a table's numbers by column."""
    own = table.drop(columns=[name for name in ("neuron", "samples", "neurons") if name in table])
    return {name: own[name].to_numpy(dtype=float) for name in own.select_dtypes("number")}


def columns_frame(model: Any) -> pd.DataFrame:
    """Return a score of every neuron, always the same."""
    rows = [
        (layer.name, neuron, (7 * neuron) % layer.width) for layer in model.layers() for neuron in range(layer.width)
    ]
    return pd.DataFrame(rows, columns=["layer", "neuron", "score"])


def matrices(groups: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
    """Return each layer's covariance as one long column."""
    from pruning.core.statistics import merged

    return {name: merged(list(own)).matrix.flatten().cpu().numpy() for name, own in groups.items()}


def difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Return the largest difference relative to the largest value, and Spearman's correlation."""
    both = np.isfinite(ours) & np.isfinite(theirs)
    if (np.isfinite(ours) != np.isfinite(theirs)).any():
        return float("inf"), float("nan")
    ours, theirs = ours[both], theirs[both]
    if not len(theirs):
        return 0.0, float("nan")
    worst = float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-300))
    ranks = pd.Series(ours).rank().corr(pd.Series(theirs).rank()) if np.ptp(theirs) and np.ptp(ours) else float("nan")
    return worst, float(ranks)


def passes(column: str, error: float, rank: float, dtype: torch.dtype) -> bool:
    """Return whether a column agrees well enough with the CPU's."""
    return error <= CLOSE[dtype] or (dtype == torch.float32 and column.endswith("_error") and rank >= ALIKE)


def compared(report: Report, families: Sequence[str], dtype: torch.dtype, *, full: bool) -> None:
    """Compare every number of some families with the CPU's, from the same model; the text and seeds are the same."""
    rows, failures = [], []
    for family in families:
        one = trained(report, family, dtype)
        other = copy.deepcopy(one).to(report.device)
        theirs, ours = numbers(report, one), numbers(report, other)
        for name in theirs:
            if report.late:
                rows.append((family, name, "–", "–", "–", "out of time"))
                continue
            try:
                expected = theirs[name]()
                report.wait()
                found = ours[name]()
            except Exception:  # whatever it is, the others are still measured
                failures.append(f"{family}, {name}:\n{traceback.format_exc()}")
                rows.append((family, name, "–", "–", "–", f"FAILED: {sys.exc_info()[1]!s:.80}".replace("\n", " ")))
                continue
            apart = {column: difference(found[column], expected[column]) for column in expected}
            far = {column for column, found_apart in apart.items() if not passes(column, *found_apart, dtype)}
            failures += [f"{family}, {name}, {column}: {apart[column]} from the CPU's values" for column in far]
            if not full:
                worst = max(apart, key=lambda column: (column in far, apart[column][0]))
                ranks = [rank for _, rank in apart.values() if np.isfinite(rank)]
                shown = f"worst of {len(apart)}: {worst}"
                far = {shown} if far else set()
                apart = {shown: (apart[worst][0], min(ranks, default=float("nan")))}
            for column, (error, rank) in apart.items():
                correlation = f"{rank:.6f}" if np.isfinite(rank) else "–"
                rows.append((family, name, column, f"{error:.1e}", correlation, "TOO FAR" if column in far else ""))
    report.table(("family", "number", "column", "largest difference", "rank correlation", ""), rows)
    if failures:
        report.say("```", *failures, "```")
        raise AssertionError(f"{len(failures)} of {len(rows)} comparisons failed")


def double(report: Report) -> None:
    """Compare in float64, where nothing but a wrong formula or a wrong place makes a difference."""
    compared(report, ["lstm"] if report.quick else ["lstm", "gru", "rnn", "mixed"], torch.float64, full=False)


def single(report: Report) -> None:
    """Compare in float32 with full precision, the type that stages use."""
    from pruning.core.devices import full_precision

    with full_precision():
        compared(report, ["lstm"], torch.float32, full=True)
        compared(report, ["mixed"] if report.quick else list(FAMILIES)[1:], torch.float32, full=False)


def tensor_cores(report: Report) -> None:
    """Compare in float32 as PyTorch's defaults compute it: cuDNN's recurrent layers in TF32."""
    if report.device.type == "cuda":
        compared(report, ["lstm"], torch.float32, full=False)
    else:
        report.say("Of a GPU only.")
