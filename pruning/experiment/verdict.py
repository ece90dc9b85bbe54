"""What the experiment's tables say in words: where the enhanced methods win, and where they do not."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pandas as pd

from pruning.evaluation.comparison import PHASES
from pruning.experiment.variants import CONTROL, RANDOM, TRADITIONAL, VARIANTS

PHASE = dict(zip(PHASES, ("after removal", "after repair", "after fine-tuning"), strict=True))
ENHANCED = tuple(name for name in VARIANTS if name not in (RANDOM, TRADITIONAL))
STEPS = ("weights", "weights+activations", "weights+activations+gradients", "simple", "learned")
"""Each step of the progressive comparison knows more than the one before."""
ERRORS = 2.0
"""Standard errors, paired on the same tokens, that a difference must exceed to count."""
PRECISION, AGREEMENT = 0.85, 0.9
"""What the enhanced method is expected to reach: rank correlation with measured removal, and overlap of kept sets."""


def verdict(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Return sentences that follow from the tables' figures, as far as there are tables.

    A method wins at a share and phase where its loss is below the other's by more than `ERRORS` paired standard
    errors; level is what lies within them.

    >>> import pandas as pd
    >>> cost = pd.DataFrame({"score": ["hessian", "weights"], "seconds": [10.0, 5.0]})
    >>> verdict({"cost": cost})
    ["All signals and criteria together take 15 s, 1.5 times the traditional one's."]

    Args:
        tables: Some of `progressive`, `precision`, `stability` and `cost`.
    """
    known = {"progressive": _of_perplexity, "precision": _of_precision, "stability": _of_stability, "cost": _of_cost}
    return [
        line for name, words in known.items() if name in tables and len(tables[name]) for line in words(tables[name])
    ]


def _of_perplexity(progressive: pd.DataFrame) -> list[str]:
    present = [name for name in ENHANCED if (progressive["variant"] == name).any()]
    lines = [_against(progressive, name, other) for other in (TRADITIONAL, RANDOM) for name in present]
    return [*_overall(progressive, present), *filter(None, lines), *_steps(progressive), *_best(progressive)]


def _overall(progressive: pd.DataFrame, present: Sequence[str]) -> list[str]:
    """Return who wins against `traditional` everywhere, and for each enhanced method at how many shares and phases."""
    counts: dict[str, tuple[int, int]] = {}
    for name in present:
        cells = [
            sign for by_share in _outcomes(progressive, name, TRADITIONAL).values() for sign, _ in by_share.values()
        ]
        if cells:
            counts[name] = (sum(sign < 0 for sign in cells), len(cells))
    if not counts:
        return []
    everywhere = [f"`{name}`" for name, (won, cells) in counts.items() if won == cells]
    most = max(counts, key=lambda name: counts[name][0])
    none = f"No enhanced choice wins everywhere against `{TRADITIONAL}`; `{most}` wins most often."
    head = f"Against `{TRADITIONAL}`, {_listed(everywhere)} wins at every share and phase." if everywhere else none
    lines = [
        f"`{name}` {'wins' if won == cells else 'does not win'} everywhere against `{TRADITIONAL}`: "
        f"at {won} of {cells} shares and phases."
        for name, (won, cells) in counts.items()
    ]
    return [head, *lines]


def _against(progressive: pd.DataFrame, name: str, other: str) -> str:
    """Return one sentence on a method against another, phase by phase; nothing where they were not compared."""
    parts = []
    for phase, outcomes in _outcomes(progressive, name, other).items():
        if not outcomes:
            continue
        won = [f"{share:.0%}" for share, (sign, _) in outcomes.items() if sign < 0]
        level = [f"{share:.0%}" for share, (sign, _) in outcomes.items() if sign == 0]
        lost = [f"{share:.0%} (perplexity {change:+.1%})" for share, (sign, change) in outcomes.items() if sign > 0]
        said = [f"wins at {_listed(won)}"] if won else []
        said += [f"is level at {_listed(level)}"] if level else []
        said += [f"does not win at {_listed(lost)}"] if lost else []
        parts.append(f"{PHASE[phase]} it {', '.join(said)}")
    return f"`{name}` against `{other}`: {'; '.join(parts)}." if parts else ""


def _outcomes(progressive: pd.DataFrame, name: str, other: str) -> dict[str, dict[float, tuple[int, float]]]:
    """Return phase → share, descending → (−1 below, 0 level, 1 above; relative change of perplexity)."""
    outcomes: dict[str, dict[float, tuple[int, float]]] = {phase: {} for phase in PHASES}
    rows = progressive[(progressive["variant"] == name) & progressive[f"above_{other}"].notna()]
    for row in rows.sort_values("retain", ascending=False).to_dict("records"):
        above, error = row[f"above_{other}"], row[f"above_{other}_error"]
        sign = 0 if abs(above) <= ERRORS * error else int(math.copysign(1, above))
        outcomes[row["phase"]][row["retain"]] = (sign, math.expm1(above))
    return outcomes


def _steps(progressive: pd.DataFrame) -> list[str]:
    """Return what each further signal does to perplexity, step by step."""
    lines = []
    present = [name for name in STEPS if (progressive["variant"] == name).any()]
    for before, after in pairwise(present):
        parts = []
        for phase in PHASES:
            one, two = (_perplexities(progressive, name, phase) for name in (before, after))
            both = one.index.intersection(two.index)
            lower = int((two[both] < one[both]).sum())
            parts.append(f"{PHASE[phase]} at {lower} of {len(both)}")
        lines.append(f"From `{before}` to `{after}`, perplexity falls {', '.join(parts)} shares.")
    return lines


def _best(progressive: pd.DataFrame) -> list[str]:
    """Return which variant is best at each share after fine-tuning, and how far above the dense control it is."""
    rows = progressive[(progressive["phase"] == PHASES[-1]) & (progressive["variant"] != CONTROL)]
    places = rows.loc[rows.groupby("retain")["perplexity"].idxmin()].sort_values("retain", ascending=False)
    parts = [f"{row['retain']:.0%} `{row['variant']}` ({row['change']:+.1%})" for row in places.to_dict("records")]
    told = f"Lowest after fine-tuning, against dense with the same extra training: {_listed(parts)}."
    return [told] if parts else []


def _of_precision(precision: pd.DataFrame) -> list[str]:
    lines, rows = [], {str(row["score"]): row for row in precision.to_dict("records")}
    for name in ("learned", "adaptive", "simple"):
        if name in rows:
            row = rows[name]
            reached = "reaches" if row["spearman"] >= PRECISION else "does not reach"
            where = "neurons that its weights have not seen" if row["held_out"] else "all measured neurons"
            interval = f"[{row['spearman_low']:.2f}, {row['spearman_high']:.2f}]"
            ceiling = f"measured removal's own reliability is {row['oracle_reliability']:.2f}"
            ranks = f"`{name}` ranks {where} with Spearman {row['spearman']:.2f} {interval}"
            lines.append(f"{ranks}, which {reached} {PRECISION} ({ceiling}); {_gain(rows, row)}.")
    return lines


def _gain(rows: Mapping[str, Mapping[Any, Any]], row: Mapping[Any, Any]) -> str:
    best = row["best_single"]
    interval = f"95% interval of the difference {row['gain_low']:+.2f} to {row['gain_high']:+.2f}"
    outcome = "loses to" if row["gain_high"] < 0 else "does not win over"
    outcome = "wins over" if row["gain_low"] > 0 else outcome
    return f"it {outcome} the best single score, `{best}` with {rows[best]['spearman']:.2f} ({interval})"


def _of_stability(stability: pd.DataFrame) -> list[str]:
    lines = []
    for row in stability[stability["over"] == "calibration"].to_dict("records"):
        if row["score"] in (*ENHANCED, TRADITIONAL) and not math.isnan(row["overlap"]):
            reached = "reach" if row["overlap"] >= AGREEMENT else "do not reach"
            lines.append(
                f"The sets that `{row['score']}` keeps agree {row['overlap']:.0%} between {row['runs']} seeds of "
                f"calibration: they {reached} {AGREEMENT:.0%}."
            )
    trained = stability[stability["over"] == "training"].set_index("score")
    for name in (TRADITIONAL, "simple", "learned", "surgeon"):
        if name in trained.index:
            mean, spread = trained["finetuned_perplexity"][name], trained["finetuned_spread"][name]
            lines.append(
                f"Over {trained['runs'][name]} dense models of other seeds, `{name}` ends at {mean:.1f} ± {spread:.1f}."
            )
    return lines


def _of_cost(cost: pd.DataFrame) -> list[str]:
    seconds = cost.set_index("score")["seconds"]
    if "hessian" not in seconds:
        return []
    signals = [name for name in seconds.index if name != "oracle"]
    every, ratio = seconds[signals].sum(), seconds[signals].sum() / seconds["hessian"]
    line = f"All signals and criteria together take {every:.0f} s, {ratio:.1f} times the traditional one's"
    measured = f"; `learned` needs measured removal besides, {seconds['oracle']:.0f} s" if "oracle" in seconds else ""
    return [f"{line}{measured}."]


def _perplexities(progressive: pd.DataFrame, name: str, phase: str) -> pd.Series:
    rows = progressive[(progressive["variant"] == name) & (progressive["phase"] == phase)]
    return rows.set_index("retain")["perplexity"]


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)
