"""Text at scale: what it takes to read it, to train on it and to calibrate on it, by its length.

`python -m benchmarks.scale`: memory and processor seconds by the length of the text, up to 10 million tokens of made
text whose words follow Zipf's law, and the rates that lead to 100 million. `python -m benchmarks.scale --softmax`: a
training step of 250,000 types. Each row is measured in a process of its own, and in a folder of its own that is gone
with it. Memory is the most that a process holds of its own (its peak resident memory less the pages of files that it
shares, which the system takes back when it needs them).
"""

import argparse
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import asked

TYPES, VOCABULARY, STRETCH = 250_000, 10_000, 2**16
LENGTHS = (1_000_000, 3_000_000, 10_000_000)


def text(length: int, types: int = TYPES, seed: int = 1) -> Iterator[list[str]]:
    """Yield lines of 19 words and the end of each, so many tokens in all, drawn by Zipf's law with exponent 1.05."""
    import numpy as np

    random = np.random.default_rng(seed)
    law = np.cumsum(1 / np.arange(1, types + 1) ** 1.05)
    for start in range(0, length, STRETCH):
        ranks = np.searchsorted(law, random.random(min(STRETCH, length - start)) * law[-1])
        words = [f"w{rank:x}" for rank in ranks.tolist()]
        yield from (words[line : line + 19] for line in range(0, len(words), 20))


def prepared(folder: Path, length: int, tokens: str) -> None:
    """Number the text and write its tables, as the stage `prepare` does."""
    from pruning.data.corpus import number
    from pruning.data.schemas import SUBWORDS
    from pruning.data.schemas import VOCABULARY as WORDS
    from pruning.data.subwords import number_subwords
    from tasks.common.tables import write_table
    from tasks.common.tokens import Stored, write_tokens

    texts = {"train": text(length), "valid": text(20_000, seed=2), "test": text(20_000, seed=3)}
    keep = partial(Stored, beside=folder)
    if tokens == "words":
        corpus = number(texts, VOCABULARY, keep=keep)
    else:
        corpus, _ = number_subwords(texts, VOCABULARY, keep=keep)
    write_tokens(folder / "corpus.parquet", corpus.tokens)
    write_table(folder / "vocabulary.parquet", corpus.vocabulary, WORDS if tokens == "words" else SUBWORDS)


def windows(folder: Path, split: str = "train") -> Any:
    """Return a split as windows of 32 columns and 35 steps, as stages read it."""
    from pruning.data.windows import Windows
    from tasks.common.tokens import read_tokens

    return Windows(read_tokens(folder / "corpus.parquet", split), first=0, batch=32, bptt=35)


def counted(folder: Path) -> None:
    """Read the whole text as windows, and count its types, as `train` does at first."""
    model().expect(window.targets for window in windows(folder))


def model() -> Any:
    """Return an LSTM whose size does not depend on the text."""
    import torch

    from pruning.models import build

    torch.manual_seed(1)
    return build("lstm", vocabulary=VOCABULARY, embedding=16, widths=[16, 16], decoder="untied", dropout=0.0)


def trained(folder: Path) -> None:
    """Take training steps all over the text: one window in so many that there are 100."""
    from pruning.training.loop import train
    from pruning.training.recipes import Recipe

    whole = windows(folder)
    recipe = Recipe(
        epochs=1, portion=1.0, learning_rate=1e-3, warmup=0.1, weight_decay=0.0, clip=1.0, patience=1, softmax="chunked"
    )
    some = [Later(whole, index * len(whole) // 100) for index in range(100)]
    list(train(model(), Read(some), windows(folder, "valid"), recipe=recipe, seed=1))


def calibrated(folder: Path) -> None:
    """Measure activations, with covariances, all over the text, likewise."""
    from pruning.signals.activations import activations

    whole = windows(folder)
    some = [Later(whole, index * len(whole) // 100) for index in range(100)]
    activations(model(), Read(some), activation_samples=100, bins=32)


class Later:
    """A window that is read when it is asked for."""

    def __init__(self, whole: Any, index: int) -> None:
        self.whole, self.index = whole, index


class Read:
    """Windows from all over a text."""

    def __init__(self, windows: list[Later]) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __iter__(self) -> Iterator[Any]:
        return (later.whole[later.index] for later in self.windows)


def measured(work: Callable[[], None]) -> tuple[float, float]:
    """Return the most memory of its own that work holds, MB, and its processor seconds, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=_watched, args=(work, far))
    process.start()
    far.close()
    found: tuple[float, float] = near.recv()
    process.join()
    return found


def _watched(work: Callable[[], None], line: Any) -> None:
    import torch

    torch.set_flush_denormal(True)
    seconds, most, _ = watched(work)
    line.send((most, seconds))


def watched(work: Callable[[], object]) -> tuple[float, float, object]:
    """Return the processor seconds of some work, the MB that the process held at most meanwhile, and what it gave."""
    most, done = [own_memory()], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            most[0] = max(most[0], own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.process_time()
    try:
        given = work()
    finally:
        seconds = time.process_time() - start
        done.set()
        watcher.join()
    return seconds, most[0], given


def own_memory() -> float:
    """Return the resident memory that is this process's alone, MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024 / 1e6


def step_of(softmax: str, kind: str, steps: int) -> None:
    """Take training steps of 250,000 types: 2 × 128 units, 32 columns of 35 steps."""
    import numpy as np
    import torch

    from pruning.data.windows import Windows
    from pruning.models import build
    from pruning.training.loop import train
    from pruning.training.recipes import Recipe

    torch.manual_seed(1)
    random = np.random.default_rng(1)
    tokens = np.minimum((TYPES ** random.random(32 * 35 * steps)).astype(np.int64) - 1, TYPES - 1)
    network = build("lstm", vocabulary=TYPES, embedding=128, widths=[128, 128], decoder="untied", dropout=0.0)
    recipe = Recipe(
        epochs=1,
        portion=1.0,
        learning_rate=1e-3,
        warmup=0.1,
        weight_decay=0.0,
        clip=1.0,
        patience=1,
        softmax=softmax,  # type: ignore[arg-type]
        type=kind,  # type: ignore[arg-type]
    )
    read, valid = Windows(tokens, first=0, batch=32, bptt=35), Windows(tokens[:8], first=0, batch=8, bptt=1)
    list(train(network, read, valid, recipe=recipe, seed=1))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--softmax", action="store_true", help="the step with 250,000 types, in place of the text")
    parser.add_argument("--lengths", type=asked.count, nargs="+", default=LENGTHS, help="tokens")
    given = parser.parse_args()
    if given.softmax:
        steps = 4
        print("| softmax | products | processor s a step | memory, GB |\n|---|---|---:|---:|")
        for softmax, kind in (
            ("full", "float32"),
            ("chunked", "float32"),
            ("chunked", "bfloat16"),
            ("sampled", "float32"),
        ):
            rows = [measured(partial(step_of, softmax, kind, count)) for count in (1, 1 + steps)]
            seconds = (rows[1][1] - rows[0][1]) / steps
            print(f"| {softmax} | {kind} | {seconds:.2f} | {rows[1][0] / 1e3:.1f} |", flush=True)
        return
    print("| tokens, M | part | memory, MB | processor s | M tokens/s |\n|---:|---|---:|---:|---:|")
    for length in given.lengths:
        for tokens in ("words", "subwords"):
            with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
                folder = Path(name)
                parts: dict[str, Callable[[], None]] = {f"prepare, {tokens}": partial(prepared, folder, length, tokens)}
                if tokens == "words":
                    parts |= {"all windows": partial(counted, folder), "train, 100 steps": partial(trained, folder)}
                    parts |= {"activations, 100 windows": partial(calibrated, folder)}
                for part, work in parts.items():
                    memory, seconds = measured(work)
                    rate = f"{length / seconds / 1e6:.2f}" if "100" not in part else ""
                    print(f"| {length / 1e6:g} | {part} | {memory:.0f} | {seconds:.1f} | {rate} |", flush=True)


if __name__ == "__main__":
    main()
