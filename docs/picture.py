"""`python -m docs.picture`: the pipeline as a picture, drawn from dvc.yaml into docs/pipeline.svg."""

import sys
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

from grandalf.graphs import Edge, Graph, Vertex
from grandalf.layouts import SugiyamaLayout, VertexViewer

from tasks.common.pipeline import PARAMETERS, PIPELINE, Stage, read_stages
from tasks.common.reading import read_yaml

PICTURE = Path("docs/pipeline.svg")
WIDE, HIGH, MARGIN = 136, 34, 20
COLORS = {
    "corpus": "#e3f2fd",
    "training": "#fff3e0",
    "signal": "#e0f2f1",
    "truth": "#fce4ec",
    "decision": "#ede7f6",
    "report": "#f1f8e9",
}
"""By the tag that Prefect shows, too."""
Place = tuple[float, float]


def picture() -> str:
    """Return the pipeline as SVG: a box for each stage, one for all its variants, and an arrow where it needs another.

    An arrow is left out where others lead the same way.
    """
    stages = {stage.name: stage for stage in read_stages(read_yaml(PARAMETERS))}
    needs = _reduced({name: set(_needs(stage, stages)) for name, stage in stages.items()})
    boxes, lines = _laid_out(needs)
    left, top = (min(point[axis] for point in boxes.values()) for axis in (0, 1))
    right, bottom = (max(point[axis] for point in boxes.values()) for axis in (0, 1))
    width, height = right - left + WIDE + 2 * MARGIN, bottom - top + HIGH + 2 * MARGIN
    shift = f"translate({MARGIN + WIDE / 2 - left:g} {MARGIN + HIGH / 2 - top:g})"
    entries = read_yaml(PIPELINE)["stages"]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        'font-family="sans-serif" font-size="13">',
        "<title>The stages of dvc.yaml, and what each needs</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#607d8b"/></marker></defs>',
        f'<rect width="{width:g}" height="{height:g}" rx="8" fill="#fff"/>',
        f'<g transform="{shift}">',
        *(_line(ends, points) for ends, points in sorted(lines.items())),
        *(_box(name, place, entries[name]) for name, place in boxes.items()),
        "</g>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _needs(stage: Stage, stages: Mapping[str, Stage]) -> Iterator[str]:
    """Yield the names of the stages whose outputs, or the folder around them, a stage reads."""
    for name, other in stages.items():
        made = [path for path in other.outputs.values() if name != stage.name]
        if any(path.is_relative_to(read) or read.is_relative_to(path) for path in made for read in stage.dependencies):
            yield name


def _reduced(needs: Mapping[str, set[str]]) -> dict[str, list[str]]:
    """Return what each needs without what another of its needs needs."""

    def above(name: str) -> set[str]:
        return needs[name].union(*map(above, needs[name]))

    return {name: sorted(own - set().union(*map(above, own))) for name, own in needs.items()}


def _laid_out(needs: Mapping[str, list[str]]) -> tuple[dict[str, Place], dict[str, list[Place]]]:
    """Return the middle of each box, and the points of each arrow: in layers, crossing little."""
    nodes = {name: Vertex(name) for name in needs}
    for node in nodes.values():
        node.view = VertexViewer(WIDE, HIGH)
    edges = [Edge(nodes[other], nodes[name]) for name, others in needs.items() for other in others]
    graph = Graph(list(nodes.values()), edges).C[0]
    layout = SugiyamaLayout(graph)
    layout.xspace, layout.yspace = 16, 34
    layout.init_all(roots=[node for node in graph.sV if not node.e_in()], optimize=True)
    layout.draw(12)
    lines: dict[str, list[Place]] = {}
    for edge in edges:
        between = [] if edge not in layout.ctrls else [layout.ctrls[edge][rank] for rank in sorted(layout.ctrls[edge])]
        places = [node.view.xy for node in (edge.v[0], *(node for node in between if node not in edge.v), edge.v[1])]
        (x0, y0), (x1, y1) = places[0], places[-1]
        ends = f"{edge.v[0].data} → {edge.v[1].data}"
        lines[ends] = [(x0, y0 + HIGH / 2), *places[1:-1], (x1, y1 - HIGH / 2)]
    return {name: node.view.xy for name, node in nodes.items()}, lines


def _box(name: str, place: Place, entry: Mapping[str, object]) -> str:
    """Return a stage's box; hovering it says what the stage does."""
    own: Mapping[str, object] = entry.get("do", entry)  # type: ignore[assignment]
    tags = own.get("meta", {}).get("prefect", {}).get("tags", [])  # type: ignore[attr-defined]
    color = next((COLORS[tag] for tag in tags if tag in COLORS), "#fff")
    x, y = place
    label = f"{name} @variant" if "foreach" in entry else name
    return (
        f"<g><title>{escape(str(own['desc']))}</title>"
        f'<rect x="{x - WIDE / 2:g}" y="{y - HIGH / 2:g}" width="{WIDE}" height="{HIGH}" rx="5" '
        f'fill="{color}" stroke="#607d8b"/>'
        f'<text x="{x:g}" y="{y + 4.5:g}" text-anchor="middle" fill="#263238">{escape(label)}</text></g>'
    )


def _line(ends: str, points: list[Place]) -> str:
    words = " ".join(f"{x:g},{y:g}" for x, y in points)
    return (
        f'<polyline points="{words}" fill="none" stroke="#90a4ae" stroke-width="1.3" marker-end="url(#tip)">'
        f"<title>{escape(ends)}</title></polyline>"
    )


if __name__ == "__main__":
    sys.stdout.write(f"{PICTURE}: {PICTURE.write_text(picture(), encoding='utf-8'):,} letters\n")
