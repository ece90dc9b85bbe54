"""Facts about networks as the rows of a table, as sentences and as a page of the documentation."""

import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from typing import Any

LIMIT = 60
"""Seconds of one core that finding the neurons of a network may take."""
PEER_LIMIT = 20
"""Seconds of one core that Torch-Pruning may take, which takes one or two where it ends."""


def row(facts: Mapping[str, Any]) -> str:
    """Return a network's row of the table."""
    name, package = facts["name"], facts["package"]
    if "skipped" in facts:
        return f"| {name} | {package} | | skipped: {facts['skipped']} | | | | | | |"
    other = facts.get("rival", "")
    size = f"{facts['parameters']:,}" if "parameters" in facts else ""
    if "failure" in facts:
        seconds = f"{facts['seconds']:.1f}" if "seconds" in facts else ""
        return f"| {name} | {package} | {size} | no: {_cell(facts['failure'])} | | | | | {seconds} | {_cell(other)} |"
    count = facts["layers"]
    cells = [
        name,
        package,
        size,
        f"{count}" if count else f"no: {_cell(facts['stays'])}",
        f"{facts['reach']:.0%}",
        _cell(facts["proof"]) if count else "",
        f"{facts['exact']} of {count}",
        f"{facts['repairable']} of {count}",
        f"{facts['seconds']:.1f}",
        _cell(other),
    ]
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def found_in(facts: Mapping[str, Any]) -> bool:
    """Return whether neurons were found at all."""
    return bool(facts.get("layers"))


def summed(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the sentences above the table."""
    tried = [facts for facts in rows if "skipped" not in facts]
    found = [facts for facts in tried if found_in(facts)]
    reach = sorted(facts["reach"] for facts in found)
    wrong = [facts["name"] for facts in found if not facts["proof"].startswith("yes")]
    slow = [facts["name"] for facts in tried if facts.get("seconds", 0) > LIMIT]
    words = [facts.get("rival", "").partition(":")[0].partition(",")[0] for facts in tried]
    theirs = ", ".join(f"{words.count(word)} {word}" for word in sorted(set(words), key=words.count, reverse=True))
    return (
        f"Of {len(tried)} networks neurons are found in {len(found)} ({len(found) / max(len(tried), 1):.0%}); half of "
        f"the parameters or more are within reach in {sum(share >= 0.5 for share in reach)} of them"
        f"{f', the median is {reach[len(reach) // 2]:.0%}' if reach else ''}. Wrong: {', '.join(wrong) or 'none'}. "
        f"Over {LIMIT} s: {', '.join(slow) or 'none'}. Torch-Pruning: {theirs}."
    )


HEADER = (
    "| network | package | parameters | layers | within reach | removed = masked | exact | repairable | s "
    "| Torch-Pruning |\n"
    "|---|---|---:|---|---:|---|---:|---:|---:|---|"
)


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the whole page."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    names = dict.fromkeys(["torch", "torch-pruning", *(facts["package"] for facts in rows)])
    versions = []
    for name in names:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    table = "\n".join(row(facts) for facts in rows)
    return INTRODUCTION.format(
        commit=commit.stdout.strip() or "unknown",
        day=date.today().isoformat(),
        machine=f"{platform.machine()}, one core, Python {platform.python_version()}",
        versions=", ".join(versions),
        summary=summed(rows),
        limit=PEER_LIMIT,
        header=HEADER,
        table=table,
    )


INTRODUCTION = """# Networks of others

{summary}

`python -m benchmarks.networks --to FILE` builds networks from PyPI's packages, small and with
random weights, and asks of each: are its neurons found, and does the smaller network compute what it should. Commit
`{commit}`, {day}, {machine}. {versions}.

- *layers*: layers of neurons that were found; *no* with the reason where there is none.
- *within reach*: the share of its parameters that belong to some neuron, as what computes or as what reads it.
- *removed = masked*: checked apart from the library's own proof, in float64 unless it says otherwise, on weights moved
  off their special values: random halves of all exact layers removed and masked agree to nine digits; all layers, the
  inexact ones too, put into another order change nothing; half of everything removed gives finite numbers.
- *exact*: layers of which removing neurons equals masking them. Over the others a normalisation runs.
- *repairable*: layers of which a reader can be refitted.
- *s*: CPU seconds of `pruning.discover`.
- *Torch-Pruning*: its magnitude pruner at half of everything but the answer, told which layers give the answer and how
  many heads there are, with what share of the parameters it removes. *Works*: the smaller network gives what the dense
  one gives with the same channels zeroed where they are read. *Runs*: it gives an answer of the right shape, which
  cannot be compared so simply, for example because normalisations run over what it removes. *Differs*: other numbers,
  perhaps because the scale of an attention follows its width. *Breaks*: the smaller network does not run, or gives an
  answer of another shape. *Refuses*: an error, or no end within {limit} s of CPU time. *Cuts nothing*: the parameters
  stay as many as they were.

{header}
{table}
"""
