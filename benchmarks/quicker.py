"""Training by each type of products and each softmax: how fast beside the best plain loop, and how good over seeds.

`python -m benchmarks.quicker`, and `python -m benchmarks.quicker --quality` after `dvc repro prepare`. The loops take
turns in one process on random tokens; a turn is timed by the processor time it takes, so that another program's load
counts for nothing, and the plain loop flushes denormal numbers too.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.peers import PlainLoop, StackedLSTM
from pruning.data.windows import Windows
from pruning.models import build
from pruning.training.loop import Recipe, train

VOCABULARY, WIDTH, LAYERS, DROPOUT, BPTT = 10_000, 256, 2, 0.2, 35
WAYS: dict[str, dict[str, object]] = {
    "float32, full": {},
    "float32, chunked": {"softmax": "chunked"},
    "bfloat16, full": {"type": "bfloat16"},
    "bfloat16, chunked": {"type": "bfloat16", "softmax": "chunked"},
    "float32, sampled 1,500": {"softmax": "sampled", "sampled": 1500},
}
"""How the library can train, by what differs from the default."""
USUAL = {"epochs": 1, "warmup": 0.1, "weight_decay": 0.01, "clip": 0.5, "patience": 1}


def speeds(batch: int, rounds: int, steps: int) -> dict[str, float]:
    """Return tokens a second of processor time, by loop, the median of turns; the first turn warms up."""
    tokens = torch.randint(VOCABULARY, (batch * BPTT * steps,), generator=torch.Generator().manual_seed(1))
    windows = Windows(tokens, first=0, batch=batch, bptt=BPTT)
    short = Windows(tokens[:batch], first=0, batch=batch, bptt=1)
    loops: dict[str, Callable[[], None]] = {"plain": _plain(windows)}
    loops |= {name: _ours(windows, short, way) for name, way in WAYS.items()}
    turns: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(rounds + 1):
        for name, loop in loops.items():
            start = time.process_time()
            loop()
            if turn:
                turns[name].append(len(tokens) / (time.process_time() - start))
    return {name: statistics.median(each) for name, each in turns.items()}


def _plain(windows: Windows) -> Callable[[], None]:
    torch.manual_seed(1)
    peer = PlainLoop(StackedLSTM(VOCABULARY, WIDTH, LAYERS, DROPOUT, tied=True), 1e-3)

    def loop() -> None:
        for window in windows:
            peer.step(*window)

    return loop


def _ours(windows: Windows, short: Windows, way: dict[str, object]) -> Callable[[], None]:
    torch.manual_seed(1)
    shape = {"vocabulary": VOCABULARY, "embedding": WIDTH, "widths": [WIDTH] * LAYERS}
    model = build("lstm", **shape, decoder="tied", dropout=DROPOUT)
    recipe = Recipe(portion=1.0, learning_rate=1e-3, **USUAL, **way)  # type: ignore[arg-type]
    return lambda: list(train(model, windows, short, recipe=recipe, seed=1)) and None


def quality(folder: Path, tokens: int, way: dict[str, object], seed: int) -> float:
    """Return the validation loss, nat/token, of a small model after one pass over the corpus's first tokens."""
    from pruning.data.corpus import END_OF_LINE
    from tasks.common.tables import read_table
    from tasks.common.tokens import read_tokens

    words = read_table(folder / "vocabulary.parquet")
    first = int(words.loc[words["text"] == END_OF_LINE, "token"].iloc[0])
    text = read_tokens(folder / "corpus.parquet", "train")[:tokens]
    windows = Windows(text, first=first, batch=16, bptt=BPTT)
    valid = Windows(read_tokens(folder / "corpus.parquet", "valid")[: tokens // 4], first=first, batch=10, bptt=100)
    torch.manual_seed(seed)
    model = build("lstm", vocabulary=len(words), embedding=128, widths=[128, 128], decoder="untied", dropout=0.1)
    model.expect(torch.from_numpy(text).long())
    recipe = Recipe(portion=1.0, learning_rate=8e-3, **USUAL, **way)  # type: ignore[arg-type]
    *_, last = train(model, windows, valid, recipe=recipe, seed=seed)
    return float(last.history["valid_loss"].iloc[-1])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quicker")
    parser.add_argument("--rounds", type=int, default=5, help="turns that count")
    parser.add_argument("--steps", type=int, default=8, help="of a turn")
    parser.add_argument("--batches", type=int, nargs="+", default=[20, 64])
    parser.add_argument("--quality", action="store_true", help="how good, in place of how fast")
    parser.add_argument("--corpus", type=Path, default=Path("data/prepare"))
    parser.add_argument("--tokens", type=int, default=150_000, help="of --quality")
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    if given.quality:
        print("| training | seed 1 | 2 | 3 | mean |\n|---|---:|---:|---:|---:|")
        for name, way in WAYS.items():
            losses = [quality(given.corpus, given.tokens, way, seed) for seed in (1, 2, 3)]
            shown = " | ".join(f"{loss:.4f}" for loss in [*losses, statistics.mean(losses)])
            print(f"| {name} | {shown} |", flush=True)
        return
    print("| batch | loop | tokens/s | × plain |\n|---:|---|---:|---:|")
    for batch in given.batches:
        found = speeds(batch, given.rounds, given.steps)
        for name, speed in found.items():
            print(f"| {batch} | {name} | {speed:,.0f} | {speed / found['plain']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
