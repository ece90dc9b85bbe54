"""What the experiment's tables say in six sentences; where nothing can be told apart, they say that."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pruning.evaluation.comparison import PHASES
from pruning.experiment.variants import CONTROL, RANDOM, TRADITIONAL, VARIANTS

PHASE = dict(zip(PHASES, ("after removal", "after repair", "after fine-tuning"), strict=True))
ENHANCED = tuple(name for name in VARIANTS if name not in (RANDOM, TRADITIONAL))
FUSED = ("simple", "adaptive", "learned")
"""Choices that fuse all signals."""
STEPS = ("weights", "weights+activations", "weights+activations+gradients", "simple", "learned")
"""Each step of the progressive comparison knows more than the one before."""
ERRORS = 2.0
"""Standard errors, paired on the same tokens, that a difference must exceed to count."""
PRECISION, AGREEMENT = 0.85, 0.9
"""What the enhanced method is expected to reach: rank correlation with measured removal, and overlap of kept sets."""
LEVEL = "cannot be told apart"


@dataclass(frozen=True)
class Difference:
    """How much higher one loss is than another on the same tokens.

    >>> str(Difference(0.1, 0.01)), str(Difference(0.01, 0.02).percent), Difference(0.01, 0.02).sign
    ('+0.100 ± 0.010', '+1.0 ± 2.0%', 0)

    Attributes:
        above: The difference, nat/token.
        error: Its paired standard error.
    """

    above: float
    error: float

    @property
    def sign(self) -> int:
        """−1 below, 1 above, 0 where it cannot be told apart from none."""
        known = abs(self.above) > ERRORS * self.error  # false where the error is not known
        return int(math.copysign(1, self.above)) if known else 0

    @property
    def percent(self) -> str:
        """The difference of perplexities, with its error."""
        change, error = 100 * math.expm1(self.above), 100 * math.exp(self.above) * self.error
        digits = 0 if error >= 1 else 1 if error >= 0.095 else 2
        shown = max(digits, 1) if abs(change) < 10 else digits
        return f"{change:+.{shown}f} ± {error:.{shown}f}%"

    def __str__(self) -> str:
        """Return the difference with its error, nat/token."""
        return f"{self.above:+.3f} ± {self.error:.3f}"


def verdict(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Return at most six sentences that follow from the tables' figures, as far as there are tables.

    They say which choice is best once fine-tuned; what choosing is worth in each phase; what fusing all signals does
    against `traditional`; what pruning costs; how well scores foresee removal; how stable choices are, and their
    price. A loss is lower where it is so by more than `ERRORS` standard errors, paired on the same tokens.

    >>> import pandas as pd
    >>> cost = pd.DataFrame({"score": ["hessian", "weights"], "seconds": [10.0, 5.0]})
    >>> verdict({"cost": cost})
    ["Measuring all signals and criteria takes 15 s, 1.5 times the Hessian's alone."]

    Args:
        tables: Some of `progressive`, `precision`, `stability` and `cost`.
    """
    known = {name: table for name, table in tables.items() if len(table)}
    lines: list[str] = []
    if "progressive" in known:
        lines += _of_perplexity(known["progressive"])
    if "precision" in known:
        lines += _of_precision(known["precision"])
    last = [*_of_stability(known.get("stability")), *_of_cost(known.get("cost"))]
    if last:
        sentence = "; ".join(last)
        lines.append(f"{sentence[:1].upper()}{sentence[1:]}.")
    return lines


def differences(progressive: pd.DataFrame, name: str, other: str, phase: str) -> dict[float, Difference]:
    """Return share, descending → how much higher a choice's loss is than another's."""
    column = f"above_{other}"
    if column not in progressive:
        return {}
    rows = progressive[(progressive["variant"] == name) & (progressive["phase"] == phase) & progressive[column].notna()]
    return {
        float(row["retain"]): Difference(row[column], row[f"{column}_error"])
        for row in rows.sort_values("retain", ascending=False).to_dict("records")
    }


def tally(found: Mapping[float, Difference]) -> dict[str, list[float]]:
    """Return the shares at which a choice is `lower`, `level` and `higher`."""
    signs = {"lower": -1, "level": 0, "higher": 1}
    return {word: [share for share, own in found.items() if own.sign == sign] for word, sign in signs.items()}


def _of_perplexity(progressive: pd.DataFrame) -> list[str]:
    present = [name for name in ENHANCED if (progressive["variant"] == name).any()]
    best = _best(progressive, present)
    lines = [_winner(progressive, best), _choosing(progressive, best or TRADITIONAL), _fusing(progressive, present)]
    return [*filter(None, lines), *_price(progressive, best or TRADITIONAL)]


def _best(progressive: pd.DataFrame, present: Sequence[str]) -> str:
    """Return the choice that is most often below `traditional` once fine-tuned, the lowest on average of equals."""

    def place(name: str) -> tuple[float, float]:
        found = differences(progressive, name, TRADITIONAL, PHASES[-1]).values()
        return (sum(own.sign for own in found), sum(own.above for own in found))

    known = [name for name in present if differences(progressive, name, TRADITIONAL, PHASES[-1])]
    return min(known, key=place, default="")


def _winner(progressive: pd.DataFrame, best: str) -> str:
    """Return which choice is best once fine-tuned, beside `traditional`, and by how much."""
    found = differences(progressive, best, TRADITIONAL, PHASES[-1])
    if not found:
        return ""
    count, shares = len(found), tally(found)
    if not shares["lower"]:
        share = max(found, key=lambda share: abs(found[share].above))
        largest = f"`{best}` comes closest with {found[share].percent} of perplexity at {share:.0%}"
        if not shares["higher"]:
            return (
                f"Once fine-tuned, no choice can be told apart from `{TRADITIONAL}` at this size{_size(progressive)}: "
                f"the best, `{best}`, differs by {found[share].percent} of perplexity at most, at {share:.0%}."
            )
        return f"Once fine-tuned, no choice is below `{TRADITIONAL}`; {largest}."
    share = min(shares["lower"], key=lambda share: found[share].above)
    most = f"by up to {found[share].percent.lstrip('-+')} of perplexity, at {share:.0%} of the neurons"
    line = (
        f"Once fine-tuned, `{best}` is best: below `{TRADITIONAL}` at {len(shares['lower'])} of {count} shares, {most}"
    )
    rest = [f"{LEVEL} at {_shares(shares['level'])}"] if shares["level"] else []
    rest += [f"behind at {_shares(shares['higher'])}"] if shares["higher"] else []
    return f"{line}{''.join(f'; {part}' for part in rest)}."


def _choosing(progressive: pd.DataFrame, best: str) -> str:
    """Return what the best choice is worth beside `random` in each phase, at the share nearest to a half."""
    by_phase = {phase: differences(progressive, best, RANDOM, phase) for phase in PHASES}
    if best == RANDOM or not all(by_phase.values()):
        return ""
    share = min(by_phase[PHASES[-1]], key=lambda share: (abs(share - 0.5), share))
    found = {phase: own[share] for phase, own in by_phase.items()}
    if not any(own.sign for own in found.values()):
        own = found[PHASES[-1]]
        return f"At {share:.0%} it {LEVEL} from a choice at random in any phase ({own.percent} once fine-tuned)."
    parts = [f"{own.percent} {PHASE[phase]}{'' if own.sign else ' (level)'}" for phase, own in found.items()]
    return f"At {share:.0%}, choosing by `{best}` and not at random changes perplexity by {_and(parts)}."


def _fusing(progressive: pd.DataFrame, present: Sequence[str]) -> str:
    """Return what fusing all signals does beside `traditional`, at how many shares in each phase."""
    name = next((name for name in FUSED if name in present), "")
    counts = {phase: tally(differences(progressive, name, TRADITIONAL, phase)) for phase in PHASES} if name else {}
    if not counts or not any(any(own.values()) for own in counts.values()):
        return ""
    if not any(own["lower"] or own["higher"] for own in counts.values()):
        return f"All signals fused (`{name}`) {LEVEL} from `{TRADITIONAL}` at any share, in any phase."
    parts = [
        f"{PHASE[phase]} {', '.join(f'{len(shares)} {word}' for word, shares in own.items() if shares)}"
        for phase, own in counts.items()
    ]
    count = sum(map(len, counts[PHASES[0]].values()))
    return f"All signals fused (`{name}`) beside `{TRADITIONAL}`, of {count} shares: {'; '.join(parts)}."


def _price(progressive: pd.DataFrame, name: str) -> list[str]:
    """Return what the choice costs at each share beside the dense model with the same extra training."""
    found = differences(progressive, name, CONTROL, PHASES[-1])
    if not found:
        return []
    if not any(own.sign for own in found.values()):
        share = min(found)
        return [
            f"Even at {share:.0%} of the neurons `{name}` {LEVEL} from the dense model at this size"
            f"{_size(progressive)}: {found[share].percent} of perplexity."
        ]
    parts = [f"{own.percent} at {share:.0%}{'' if own.sign else ' (level)'}" for share, own in found.items()]
    return [f"Beside the dense model, perplexity with `{name}`, once fine-tuned, is {_and(parts)}."]


def _of_precision(precision: pd.DataFrame) -> list[str]:
    rows = {str(row["score"]): row for row in precision.to_dict("records")}
    name = next((name for name in reversed(FUSED) if name in rows), "")
    first = next(iter(rows.values()))
    best, measured = rows.get(str(first["best_single"])), f"{first['measured']} neurons" if "measured" in first else ""
    if best is None:
        return []
    if best["spearman_low"] <= 0:
        size = f" of {measured}" if measured else ""
        return [
            f"No score's order can be told apart from chance by measured removal{size}: the best, `{best['score']}`, "
            f"has Spearman {_interval(best)}."
        ]
    line = f"Measured removal is foreseen best by `{best['score']}`, Spearman {_interval(best)}"
    reached = best["spearman"] >= PRECISION
    if name and name != best["score"]:
        row = rows[name]
        unseen = " on neurons that it has not seen" if row["held_out"] else ""
        outcome = "is behind it" if row["gain_high"] < 0 else f"{LEVEL} from it"
        outcome = "beats it" if row["gain_low"] > 0 else outcome
        line += f"; `{name}` {outcome} with {_interval(row)}{unseen}"
        reached = reached or row["spearman"] >= PRECISION
    hoped = f"{PRECISION:g} is reached" if reached else f"{PRECISION:g} is not reached"
    return [f"{line}; {hoped}, where repeated measurement agrees to {first['oracle_reliability']:.2f}."]


def _interval(row: Mapping[Any, Any]) -> str:
    return f"{row['spearman']:.2f} [{row['spearman_low']:.2f}, {row['spearman_high']:.2f}]"


def _of_stability(stability: pd.DataFrame | None) -> list[str]:
    if stability is None:
        return []
    calibrated = stability[(stability["over"] == "calibration") & stability["overlap"].notna()].set_index("score")
    names = [name for name in ("surgeon", "simple", TRADITIONAL) if name in calibrated.index]
    lines = []
    if names:
        shares = [f"`{name}` {calibrated['overlap'][name]:.0%}" for name in names]
        runs = calibrated["runs"][names[0]]
        lines.append(f"of the neurons kept with one calibration text, another keeps {_and(shares)} ({runs} seeds)")
    trained = stability[stability["over"] == "training"].set_index("score")
    ends = [
        f"`{name}` at {trained['finetuned_perplexity'][name]:.1f} ± {trained['finetuned_spread'][name]:.1f}"
        for name in names
        if name in trained.index
    ]
    if ends:
        lines.append(f"dense models of {trained['runs'].max()} seeds end with {_and(ends)}")
    return lines


def _of_cost(cost: pd.DataFrame | None) -> list[str]:
    if cost is None:
        return []
    rows = cost.set_index("score")
    if "hessian" not in rows.index:
        return []
    signals = [name for name in rows.index if name != "oracle"]
    every = rows["seconds"][signals].sum()
    spread = math.sqrt((rows["seconds_spread"][signals] ** 2).sum()) if "seconds_spread" in rows else 0.0
    known = f" ± {spread:.0f}" if spread >= 0.5 else ""
    line = (
        f"measuring all signals and criteria takes {every:.0f}{known} s, {every / rows['seconds']['hessian']:.1f} times"
    )
    measured = f", and measured removal {rows['seconds']['oracle']:.0f} s" if "oracle" in rows.index else ""
    return [f"{line} the Hessian's alone{measured}"]


def _size(progressive: pd.DataFrame) -> str:
    return f" ({int(progressive['tokens'].iloc[0]):,} tokens)"


def _shares(shares: Iterable[float]) -> str:
    return _and([f"{share:.0%}" for share in shares])


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
