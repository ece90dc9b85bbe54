"""`python -m tasks experiments`: what was tried, each with the values that differ and with its variants' quality."""

from collections.abc import Sequence
from typing import Any

from tasks.commands.tried import Tried, add_which, differing, read_tried, short
from tasks.shown.asking import Answer, Words
from tasks.shown.tables import shown_table

NONE = "–"


def run(words: Sequence[str]) -> Answer:
    """Return a row for the workspace, each commit and each experiment.

    Raises:
        Unexpected: If this is no git repository with DVC's files in it.
    """
    parser = Words("experiments")
    add_which(parser)
    tried = read_tried(all_commits=parser.read(words).all_commits)
    names, variants = differing(tried), list(dict.fromkeys(name for each in tried for name in each.variants))
    measures = {reached.measure for each in tried for reached in each.variants.values()}
    title = f"Experiments: test {' or '.join(sorted(measures)) or 'perplexity'} after fine-tuning"
    table = shown_table(title, [_row(each, names, variants) for each in tried], words=2)
    notes = [f"{NONE}: no result with these values" if any(each.stale for each in tried) else ""]
    return Answer([_values(each, names) for each in tried], [table, *filter(None, notes)])


def _row(tried: Tried, names: Sequence[str], variants: Sequence[str]) -> dict[str, str]:
    different = ", ".join(f"{short(name)} {tried.parameters[name]}" for name in names if name in tried.parameters)
    cells = dict.fromkeys(variants, NONE)
    for name, reached in tried.variants.items():
        cells[name] = f"{reached.quality:.1f}" if reached.measure == "perplexity" else f"{reached.quality:.4g}"
    return {"experiment": tried.name, "what differs": different or NONE, **cells}


def _values(tried: Tried, names: Sequence[str]) -> dict[str, Any]:
    return {
        "name": tried.name,
        "revision": tried.revision,
        "parameters": {name: tried.parameters.get(name) for name in names},
        "variants": {name: vars(reached) for name, reached in tried.variants.items()},
        "stale": tried.stale,
    }
