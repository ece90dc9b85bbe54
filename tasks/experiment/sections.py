"""What stands on the experiment's page: the verdict, then tables in which each figure has its error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from pruning.evaluation.comparison import PHASES
from pruning.experiment.variants import CONTROL, RANDOM, TRADITIONAL, VARIANTS
from pruning.experiment.verdict import ENHANCED, ERRORS, PHASE, STEPS, Difference, differences, tally

NONE = "–"
LEVEL_SIGN = "≈"
"""Before a difference that cannot be told apart from none."""


@dataclass(frozen=True)
class PageSection:
    """One part of the page: a heading, paragraphs, perhaps points, a picture, tables for reading, settings."""

    title: str
    text: str
    points: Sequence[str] = ()
    picture: str = ""
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)


def sections_of(
    tables: Mapping[str, pd.DataFrame], sentences: Sequence[str], settings: Mapping[str, Any]
) -> list[PageSection]:
    """Return what the page holds, in order.

    Args:
        tables: What `compare_pruning_results` gave.
        sentences: The verdict.
        settings: The experiment's settings, by dotted name.
    """
    head = (
        f"Computed from the tables below. A loss is lower where it is so by more than {ERRORS:g} standard errors, "
        f"paired on the same tokens; within them it cannot be told apart, which tables mark with {LEVEL_SIGN}. Errors "
        "behind ± are standard errors over the text, or standard deviations over seeds where a text says so."
    )
    makers = {
        "progressive": _progressive,
        "precision": _precision,
        "stability": _stability,
        "cost": _cost,
    }
    sections = [PageSection("Verdict", head, points=sentences)]
    sections += [make(tables[name]) for name, make in makers.items() if name in tables]
    options = {name: _plain(value) for name, value in settings.items()}
    return [*sections, PageSection("Settings", "What was measured, and how.", settings=options)]


def _progressive(table: pd.DataFrame) -> PageSection:
    tokens = table["tokens"].iloc[0]
    text = (
        f"Perplexity on {tokens:,} tokens that nothing was chosen by, after each phase. Its own error is large, since "
        "tokens differ; differences on the same tokens are known much better, and they are what counts."
    )
    parts = {"Lower, level or higher than `traditional`, at how many shares": _tallies(table)}
    parts |= {"Each further signal, beside the step before it": steps} if len(steps := _steps(table)) else {}
    parts["Perplexity, and change against dense with the same extra training"] = _perplexities(table)
    for name in (TRADITIONAL, RANDOM):
        if (table["variant"] == name).any():
            parts[f"Loss above that of `{name}` with the same share, nat/token; below zero is better"] = _above(
                table, name
            )
    return PageSection("Perplexity kept", text, picture="progressive", tables=parts)


def _tallies(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for name in [each for each in (*ENHANCED, RANDOM) if (table["variant"] == each).any()]:
        row = {"chosen by": name}
        for phase in PHASES:
            found = tally(differences(table, name, TRADITIONAL, phase))
            row[PHASE[phase]] = " · ".join(f"{len(shares)} {word}" for word, shares in found.items() if shares) or NONE
        rows.append(row)
    return pd.DataFrame(rows)


def _steps(table: pd.DataFrame) -> pd.DataFrame:
    """Return at how many shares each step is lower than the one before, by errors that are added, not paired."""
    present = [name for name in STEPS if (table["variant"] == name).any()]
    rows = []
    for before, after in pairwise(present):
        row = {"from": before, "to": after}
        for phase in PHASES:
            one, two = (differences(table, name, TRADITIONAL, phase) for name in (before, after))
            between = {
                share: Difference(
                    two[share].above - one[share].above, float(np.hypot(two[share].error, one[share].error))
                )
                for share in two
                if share in one
            }
            found = tally(between)
            row[PHASE[phase]] = " · ".join(f"{len(shares)} {word}" for word, shares in found.items() if shares) or NONE
        rows.append(row)
    return pd.DataFrame(rows)


def _perplexities(table: pd.DataFrame) -> pd.DataFrame:
    keyed, order = _keyed(table)
    last = keyed[PHASES[-1]]
    rows = []
    for key in order:
        row = {"keep": f"{key[0]:.0%}", "chosen by": key[1]}
        row |= {name: f"{last[name][key]:,}" for name in ("neurons", "parameters")}
        for phase in PHASES:
            value = keyed[phase]["perplexity"][key]
            row[PHASE[phase]] = f"{value:.1f} ± {value * keyed[phase]['loss_error'][key]:.1f}"
        above = Difference(last["above_dense"][key], last["above_dense_error"][key])
        row["change"] = NONE if key[1] == CONTROL else f"{_mark(above)}{above.percent}"
        rows.append(row)
    return pd.DataFrame(rows)


def _above(table: pd.DataFrame, name: str) -> pd.DataFrame:
    keyed, order = _keyed(table)
    rows = []
    for key in order:
        if key[1] in (CONTROL, name):
            continue
        row = {"keep": f"{key[0]:.0%}", "chosen by": key[1]}
        for phase in PHASES:
            own = Difference(*(float(keyed[phase][f"above_{name}{end}"][key]) for end in ("", "_error")))
            row[PHASE[phase]] = NONE if np.isnan(own.above) else f"{_mark(own)}{own}"
        rows.append(row)
    return pd.DataFrame(rows)


def _keyed(table: pd.DataFrame) -> tuple[dict[str, pd.DataFrame], list[tuple[float, str]]]:
    """Return phase → rows by share and variant, and these keys in the order of reading."""
    keyed = {str(phase): rows.set_index(["retain", "variant"]) for phase, rows in table.groupby("phase")}
    keys = keyed[PHASES[-1]].index
    return keyed, sorted(keys, key=lambda key: (-key[0], [CONTROL, *VARIANTS].index(key[1])))


def _precision(table: pd.DataFrame) -> PageSection:
    first = table.iloc[0]
    reliability = first["oracle_reliability"]
    text = (
        f"Rank correlation (Spearman, within layers) with the measured loss increase of {first['measured']:,} neurons, "
        "each removed alone, and the share of the costlier half of the neurons in a score's upper half (chance: 0.50); "
        "95% bootstrap intervals. Measured removal repeats itself with a reliability of "
        f"{reliability:.2f}, so even the truth would correlate with it by about {max(reliability, 0) ** 0.5:.2f} only. "
        "`joint`: the same for sets of neurons removed together. `learned` is judged on neurons that its weights have "
        f"not seen. The difference from `{first['best_single']}`, the best single score, is marked {LEVEL_SIGN} where "
        "its interval holds 0."
    )
    rows = [
        {
            "score": row["score"],
            "kind": row["kind"],
            "Spearman": _interval(row, "spearman"),
            "over √reliability": NONE if np.isnan(row["without_noise"]) else _interval(row, "without_noise"),
            "upper half": _interval(row, "overlap"),
            f"less {row['best_single']}": _gain(row),
            "joint": NONE if np.isnan(row["joint"]) else _interval(row, "joint"),
        }
        for row in table.sort_values("spearman", ascending=False).to_dict("records")
    ]
    return PageSection("Precision", text, picture="precision", tables={"Every score": pd.DataFrame(rows)})


def _stability(table: pd.DataFrame) -> PageSection:
    text = (
        "Over seeds of `calibration` (other text, other probes): how much of the kept sets two seeds share and how "
        "alike they rank (mean over pairs, the lowest pair in brackets). Over seeds of `training`: other dense models, "
        "whose neurons have nothing to do with each other. Perplexities: mean ± standard deviation over seeds."
    )
    parts = {}
    for over, rows in table.groupby("over"):
        cells = [
            {
                "chosen by": row["score"],
                "seeds": row["runs"],
                **({"kept sets": _lowest(row, "overlap"), "ranks": _lowest(row, "rank_correlation")}
                   if over == "calibration" else {}),
                **{PHASE[phase]: _spread(row[f"{phase}_perplexity"], row[f"{phase}_spread"]) for phase in PHASES},
            }
            for row in rows.to_dict("records")
        ]  # fmt: skip
        parts[f"Over seeds of {over}"] = pd.DataFrame(cells)
    return PageSection("Stability", text, picture="stability", tables=parts)


def _cost(table: pd.DataFrame) -> PageSection:
    text = (
        "Each in a process of its own: seconds without loading, growth of the peak of resident memory (medians "
        "± standard deviation over seeds), windows read, and passes back through a graph. `cooperative` and `surgeon` "
        "need the states of `activations` besides."
    )
    rows = [
        {
            "score": row["score"],
            "seconds": _spread(row["seconds"], row["seconds_spread"]),
            "peak memory, MiB": _spread(row["peak_memory"], row["memory_spread"], 0),
            "forward passes": f"{row['forward_passes']:,}",
            "backward passes": f"{row['backward_passes']:,}",
            "seeds": row["runs"],
        }
        for row in table.sort_values("seconds", ascending=False).to_dict("records")
    ]
    return PageSection("Cost", text, picture="cost", tables={"Every signal": pd.DataFrame(rows)})


def _mark(found: Difference) -> str:
    return "" if found.sign else f"{LEVEL_SIGN} "


def _gain(row: Mapping[Any, Any]) -> str:
    if row["score"] == row["best_single"]:
        return NONE
    level = row["gain_low"] <= 0 <= row["gain_high"]
    return f"{f'{LEVEL_SIGN} ' if level else ''}{row['gain_low']:+.2f} to {row['gain_high']:+.2f}"


def _interval(row: Mapping[Any, Any], name: str) -> str:
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"


def _lowest(row: Mapping[Any, Any], name: str) -> str:
    return NONE if np.isnan(row[name]) else f"{row[name]:.2f} [{row[f'{name}_low']:.2f}]"


def _spread(value: float, spread: float, digits: int = 1) -> str:
    if np.isnan(value):
        return NONE
    return f"{value:,.{digits}f}" + ("" if np.isnan(spread) else f" ± {spread:,.{digits}f}")


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
