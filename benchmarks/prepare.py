"""What `prepare` takes: peak memory and seconds of `python -m tasks prepare` on generated text of given sizes.

`python -m benchmarks.prepare 60 200` (MB), from the repository's root. The words are drawn by Zipf's law; each size is
prepared in a copy of the configuration in a folder of its own.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WORDS = 300_000
"""Types of the generated text."""


def generate(path: Path, megabytes: float) -> int:
    """Write about so many MB of text, ten words and a full stop a line, and return the number of words."""
    random, written, count = np.random.default_rng(1), 0, 0
    with path.open("w", encoding="utf-8") as file:
        while written < megabytes * 1e6:
            ranks = random.zipf(1.2, 100_000)
            words = [f"w{rank % WORDS:x}" for rank in ranks]
            lines = (" ".join(words[start : start + 10]) + " .\n" for start in range(0, len(words), 10))
            text = "".join(lines)
            file.write(text)
            written, count = written + len(text), count + len(words)
    return count


def measure(megabytes: float) -> tuple[float, float, float]:
    """Return the words prepared (millions), peak memory (MB) and seconds."""
    root = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("params.yaml", "dvc.yaml"):
            shutil.copy(root / name, folder)
        source = Path(folder, "text.txt")
        words = generate(source, megabytes)
        parameters = Path(folder, "params.yaml")
        lines = parameters.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [f"  source: {source}\n" if line.startswith("  source: data/") else line for line in lines]
        parameters.write_text("".join(kept), encoding="utf-8")
        start = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": str(root)}
        subprocess.run([sys.executable, "-m", "tasks", "prepare"], cwd=folder, env=environment, check=True)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6  # the largest child so far
    return words / 1e6, peak, seconds


if __name__ == "__main__":
    print("| text, MB | words, M | peak, MB | seconds |\n|---|---|---|---|")
    for size in sorted(map(float, sys.argv[1:] or ["60", "200"])):
        words, peak, seconds = measure(size)
        print(f"| {size:g} | {words:.1f} | {peak:.0f} | {seconds:.0f} |", flush=True)
