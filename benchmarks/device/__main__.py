"""A device beside the CPU in one command: the pipeline's main job, every number against the CPU's, then throughput.

`python -m benchmarks.device`, from the repository's root, on whatever device PyTorch finds; `--device cpu --quick`
tries the script itself. It takes at most five minutes on a GPU and needs no file: text is made here. Of packages it
needs those of the library alone: torch, numpy, pandas, scipy and scikit-learn (`--packages FOLDER` for more of them,
which `pip install --no-deps --target FOLDER` made).

A part that fails shows its traceback and hides no other; the exit code is then 1. Each part has its share of the time,
and what it leaves out it names. `--to FILE` is written again after each part.
"""

import argparse
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import asked
from benchmarks.device.facts import facts
from benchmarks.device.foreign import foreign
from benchmarks.device.numbers import double, single, tensor_cores
from benchmarks.device.report import FAMILIES, Report
from benchmarks.device.speed import synchronisations, throughput
from benchmarks.device.work import pipeline, resumed

LIMIT = 270.0
"""Seconds after which no further measurement is begun; each part has its own share of them, see `PARTS`."""
PARTS: dict[str, tuple[str, float, Callable[[Report], None]]] = {
    "facts": ("What computes", 20, facts),
    "pipeline": ("The main job from end to end", 60, pipeline),
    "resumed": ("Training interrupted and resumed", 20, resumed),
    "foreign": ("Models that are not built in", 30, foreign),
    "double": ("Every number in float64 beside the CPU's", 75, double),
    "single": ("Every number in float32 beside the CPU's", 75, single),
    "synchronisations": ("Waiting for the device", 15, synchronisations),
    "throughput": ("Throughput, and its share of the roofline", 90, throughput),
    "tensor_cores": ("Every number in float32 as PyTorch computes it by default, beside the CPU's", 30, tensor_cores),
}
"""Name → (title, seconds after which it begins nothing more, what it does); as much as is left of `LIMIT`."""


def write(path: Path | None, report: Report) -> None:
    """Write what is known so far."""
    if path is not None:
        path.write_text("\n".join(report.lines) + "\n", encoding="utf-8")


def run(report: Report, name: str, over: float) -> tuple[str, str, str]:
    """Run one part, whatever happens in it, and return its title, how it ended, and its seconds."""
    title, share, part = PARTS[name]
    report.say("", f"## {title}")
    start, end = time.perf_counter(), "done"
    report.end = min(over, start + share)
    try:
        if start > over:
            end = "left out: out of time"
        else:
            part(report)
    except Exception as error:  # the other parts still run
        end = f"FAILED: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.100}"
        report.say("```", traceback.format_exc().rstrip(), "```")
    return title, end, f"{time.perf_counter() - start:.1f}"


def main() -> None:
    """Run the parts, print what they found, and exit with 1 if any failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device", description=__doc__.split("\n", maxsplit=1)[0])
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    parser.add_argument(
        "--device", type=asked.device, default=str(found or "cpu"), help="cpu, cuda, cuda:1, mps; whatever is there"
    )
    parser.add_argument("--quick", action="store_true", help="tiny models, to try the script")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="which parts to run")
    parser.add_argument("--limit", type=asked.amount, default=LIMIT, help="seconds after which nothing more is begun")
    parser.add_argument(
        "--sizes", type=asked.size, nargs="+", default=Report.sizes, help="of throughput: UNITSxCOLUMNS, as 1024x64"
    )
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=Report.families, help="of throughput")
    parser.add_argument("--alone", action="store_true", help="throughput without the CPU beside the device")
    parser.add_argument("--packages", type=asked.there, help="a folder of packages that are not installed")
    parser.add_argument("--to", type=asked.file, help="a Markdown file for the report")
    given = parser.parse_args()
    if given.packages:
        sys.path.insert(0, str(given.packages))
    torch.set_flush_denormal(True)
    warnings.simplefilter("ignore")
    over = time.perf_counter() + given.limit
    report = Report(
        torch.device(given.device), given.quick, sizes=given.sizes, families=given.families, alone=given.alone
    )
    ends = []
    for name in given.parts:
        ends.append(run(report, name, over))
        write(given.to, report)
    report.say("", "## Parts")
    report.table(("part", "end", "seconds"), ends)
    write(given.to, report)
    sys.exit(any(end.startswith("FAILED") for _, end, _ in ends))


if __name__ == "__main__":
    main()
