"""Draws networks as users write them, and asks of each whether its neurons are found and rightly removed.

`python -m benchmarks.random_networks --count 500 --seed 0` looks into the networks of the seeds 0 to 499; with `--to
FILE` each is a line there, and another call goes on where that one ended. What is wrong is made as small as it can be,
and shown as source. Ends with 1 where something is. Its summary stands in docs/results/networks.md.
"""

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import asked
from benchmarks.random_networks.checks import Finding, looked_into
from benchmarks.random_networks.drafts import Spec, drawn, source_of

TYPES = {"float64": torch.float64, "float32": torch.float32}


def main(arguments: list[str] | None = None) -> int:
    """Look into networks; return 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=asked.count, default=500, help="how many networks")
    parser.add_argument("--seed", type=asked.index, default=0, help="the first one's seed")
    parser.add_argument("--type", choices=TYPES, default="float64", help="of which type their numbers are")
    parser.add_argument("--to", type=asked.file, help="a file of one line for each, which another call goes on with")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    rows = resumed(options.to)
    begin = time.monotonic()
    for number in range(options.count):
        seed = options.seed + number
        if seed in rows:
            continue
        rows[seed] = row = told(seed, TYPES[options.type])
        if options.to:
            with options.to.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row) + "\n")
        if row["wrong"]:
            print(f"\n{seed}: {row['wrong']}\n{row['smallest']}", flush=True)
        print(
            f"\r{number + 1} of {options.count}, {time.monotonic() - begin:.0f} s", end="", file=sys.stderr, flush=True
        )
    print(file=sys.stderr)
    some = [rows[seed] for seed in range(options.seed, options.seed + options.count)]
    print(page(some))
    return int(any(row["wrong"] for row in some))


def resumed(file: Path | None) -> dict[int, dict[str, Any]]:
    """Return the rows that an earlier call left."""
    if file is None or not file.exists():
        return {}
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return {row["seed"]: row for row in rows}


def told(seed: int, kind: torch.dtype) -> dict[str, Any]:
    """Return the row of a network; of one with something wrong the source of the smallest that has the same."""
    spec = drawn(seed)
    begin = time.process_time()
    finding = looked_into(spec, kind)
    row = {"seed": seed, **asdict(finding), "seconds": round(time.process_time() - begin, 2)}
    if finding.wrong:
        smallest = shrunk(spec, kind, finding)
        row["smallest"] = f"# {smallest}\n# {looked_into(smallest, kind).wrong}\n{source_of(smallest)}"
    return row


def shrunk(spec: Spec, kind: torch.dtype, finding: Finding) -> Spec:
    """Return the smallest spec, blocks left out, of which the same is wrong."""
    names = set(finding.wrong)
    again = True
    while again:
        again = False
        for place in range(len(spec.blocks)):
            fewer = replace(spec, blocks=spec.blocks[:place] + spec.blocks[place + 1 :])
            if names & set(looked_into(fewer, kind, measured="measured" in names).wrong):
                spec, again = fewer, True
                break
    return spec


def page(rows: list[dict[str, Any]]) -> str:
    """Return the summary of rows as markdown."""
    found = [row for row in rows if not row["refused"] and "discover" not in row["wrong"]]
    reach = sorted(row["reach"] for row in found) or [0.0]
    held, total = sum(row["reach"] * row["parameters"] for row in found), sum(row["parameters"] for row in rows)
    refused = Counter(kind_of(row["refused"]) for row in rows if row["refused"])
    reasons = Counter(kind_of(why) for row in rows for why in set(row["reasons"].values()))
    wrong = Counter(name for row in rows for name in row["wrong"])
    lines = [
        "| networks | something wrong | refused | layers | exact | parameters within reach | median | all | s each |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        f"| {len(rows)} | {sum(bool(row['wrong']) for row in rows)} | {sum(refused.values())} "
        f"| {sum(row['layers'] for row in found)} | {sum(row['exact'] for row in found)} | {held / max(total, 1):.1%} "
        f"| {reach[len(reach) // 2]:.0%} | {sum(share > 0.9999 for share in reach)} "
        f"| {sum(row['seconds'] for row in rows) / max(len(rows), 1):.1f} |",
    ]
    for title, counts in (("wrong", wrong), ("refused whole", refused), ("stays, because", reasons)):
        if counts:
            lines += ["", f"| {title} | networks |", "|---|---:|"]
            lines += [f"| {name} | {count} |" for name, count in counts.most_common(40)]
    return "\n".join(lines)


def kind_of(sentence: str) -> str:
    """Return a sentence without what tells one network from another."""
    words = sentence.replace("|", "/").split()
    return " ".join("…" if any(letter.isdigit() for letter in word) else word for word in words)[:160]


if __name__ == "__main__":
    sys.exit(main())
