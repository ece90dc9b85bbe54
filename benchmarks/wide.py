"""What each signal, fusion and retention take of one wide layer: seconds and peak memory, each in a process of its own.

`python -m benchmarks.wide --width 4096`. The model is small otherwise: one layer of tanh neurons, 64 word types, 16
windows of 256 tokens; the Hessian has as many probes as it needs at least. Memory is the whole
process's; where others compute too, the seconds that the cores spent are what counts.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import torch

from benchmarks import asked
from pruning.data.windows import Windows
from pruning.experiment.measured import MEASURED
from pruning.experiment.measuring import USUAL, measure
from pruning.fusion.fused import fusion
from pruning.fusion.fusing import Fusing
from pruning.models import build
from pruning.selection.allocation import Allocation
from pruning.selection.retention import retention
from pruning.signals.schemas import SIGNALS

TYPES = 64
KIND = {"nonlinearity": "tanh", "dropout": 0.0}
EFFORT = {**USUAL, "hessian": {"probes": 16, "stability": 1.0}}
PARTS = (*MEASURED, "fusion", "retention")


def measured(part: str, width: int) -> dict[str, float]:
    """Return how long a part takes, its states being made beforehand, and the process's peak in GB."""
    tokens = torch.randint(TYPES, (4096,), generator=torch.Generator().manual_seed(1))
    windows = Windows(tokens, first=0, batch=8, bptt=32)
    frame, covariances = table_like(width), {}
    if part in MEASURED:
        model = build("rnn", vocabulary=TYPES, embedding=64, widths=(width,), decoder="untied", **KIND)
        if part in ("cooperative", "surgeon"):
            covariances = measure("activations", model, windows, {}, effort=EFFORT, seed=1)[1]
    start, computed = time.perf_counter(), time.process_time()
    if part == "fusion":
        fusion(dict.fromkeys(SIGNALS, frame), Fusing(strategy="simple", seed=1))
    elif part == "retention":
        retention(frame, Allocation(retain=0.5, floor=1, scope="global"), variant="wide", by="importance")
    else:
        measure(part, model, windows, covariances, effort=EFFORT, seed=1)
    seconds, computed = time.perf_counter() - start, time.process_time() - computed
    return {
        "seconds": seconds,
        "computed": computed,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


def table_like(width: int) -> pd.DataFrame:
    """Return the columns that fusion and retention read of a signal's table."""
    random = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "layer": "rnn.0",
            "neuron": range(width),
            "importance": random.random(width),
            "standard_error": 0.1,
            "samples": 9,
        }
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=asked.count, default=1024)
    parser.add_argument("--part", choices=PARTS, help="this one alone, here; its numbers as JSON")
    given = parser.parse_args()
    if given.part:
        print(json.dumps(measured(given.part, given.width)))
        sys.exit()
    print(f"| {given.width} neurons | seconds | seconds of all cores | peak, GB |\n|---|---|---|---|")
    for part in PARTS:
        command = [sys.executable, "-m", "benchmarks.wide", "--width", str(given.width), "--part", part]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"| {part} | failed: {done.stderr.strip().splitlines()[-1]} | | |", flush=True)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"| {part} | {found['seconds']:.1f} | {found['computed']:.1f} | {found['peak']:.2f} |", flush=True)
