"""`python -m tasks front`: of all that was tried, what nothing else beats in both quality and cost, and its picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pruning.evaluation.front import on_front
from pruning.pictures.costs import tried
from tasks.commands.tried import Reached, Tried, add_which, read_tried
from tasks.common.parameters import Unexpected
from tasks.common.pipeline import DATA
from tasks.common.writing import replacing
from tasks.shown.asking import Answer, Words, picture_kind
from tasks.shown.tables import shown_table

COSTS = {"multiply_adds": "multiply-adds a token", "parameters": "parameters"}


@dataclass(frozen=True)
class Point:
    """A variant's result, and the first experiment that has it."""

    experiment: str
    variant: str
    reached: Reached
    cost: int
    is_front: bool = False


def run(words: Sequence[str]) -> Answer:
    """Print the front, and draw it among all that was tried.

    Raises:
        Unexpected: If there is no result, or results of several measures, which do not compare.
    """
    parser = Words("front")
    add_which(parser)
    parser.add_argument(
        "--cost", choices=list(COSTS), default="multiply_adds", help="what is to be low beside the loss"
    )
    parser.add_argument(
        "--to",
        type=Path,
        default=DATA / "front/front.png",
        metavar="FILE",
        help="where the picture goes: FILE.png or FILE.svg",
    )
    given = parser.read(words)
    kind = picture_kind(given.to, "--to")
    points = _points(read_tried(all_commits=given.all_commits), given.cost)
    measure, front = points[0].reached.measure, [point for point in points if point.is_front]
    _draw(given.to, kind, points, measure, given.cost)
    shown = ".1f" if measure == "perplexity" else ".4g"
    rows = [
        {
            "experiment": point.experiment,
            "variant": point.variant,
            "settings": _said(point.reached),
            f"test\n{measure}": f"{point.reached.quality:{shown}}",
            COSTS[given.cost].replace(" a ", "\na "): f"{point.cost:,}",
        }
        for point in front
    ]
    title = "Front: nothing that was tried is both better and cheaper"
    count = f"{len(front)} of {len(points)} results; all of them: {given.to}"
    return Answer([_values(point) for point in points], [shown_table(title, rows, words=3), count])


def _points(tried: Sequence[Tried], cost: str) -> list[Point]:
    """Return each result once, in order of cost, with whether it is on the front."""
    first: dict[tuple[str, str], Point] = {}
    for each in [*tried[1:], *tried[:1]]:  # the workspace last: what a commit or an experiment has is called after that
        for variant, reached in each.variants.items():
            point = Point(each.name, variant, reached, getattr(reached, cost))
            first.setdefault((variant, reached.hash), point)
    points = sorted(first.values(), key=lambda point: (point.cost, point.reached.quality))
    if not points:
        raise Unexpected("Expected results of experiments, got none; run `dvc repro` or `dvc exp run`.")
    if len({point.reached.measure for point in points}) > 1:
        raise Unexpected("Expected results that compare, got perplexities and losses; leave --all-commits out.")
    costs, losses = (np.array(values) for values in zip(*((p.cost, p.reached.quality) for p in points), strict=True))
    front = on_front(costs, losses)
    return [
        Point(point.experiment, point.variant, point.reached, point.cost, bool(is_front))
        for point, is_front in zip(points, front, strict=True)
    ]


def _said(reached: Reached) -> str:
    """Return what made a variant, in few words."""
    settings = reached.settings
    if budget := settings.get("budget"):
        amount = f"{budget['value']:,} {budget['kind'].replace('_', '-')}"
    else:
        amount = "adaptive" if settings.get("rate") == "adaptive" else f"{settings['retain']:.0%}"
    if amount == "100%":
        return "nothing removed"
    return f"{amount} by {settings['by']}, {settings['repair']}"


def _values(point: Point) -> dict[str, Any]:
    return {
        "experiment": point.experiment,
        "variant": point.variant,
        "on_front": point.is_front,
        point.reached.measure: point.reached.quality,
        "multiply_adds": point.reached.multiply_adds,
        "parameters": point.reached.parameters,
        "settings": point.reached.settings,
    }


def _draw(path: Path, kind: str, points: Sequence[Point], measure: str, cost: str) -> None:
    """Write the picture of every result by its variant, and of the front."""
    rows = [
        {
            "variant": p.variant,
            "cost": p.cost,
            "quality": p.reached.quality,
            "on_front": p.is_front,
            "said": _said(p.reached),
        }
        for p in points
    ]
    with replacing(path) as aside:
        aside.write_bytes(tried(pd.DataFrame(rows), cost=COSTS[cost], measure=measure).image(kind))
