"""Training throughput against the best plain loop and PyTorch's example as it is, taking turns in one run.

`python -m benchmarks.training`, after `dvc repro prepare`, on the first tokens of the training split. Three processes
take turns, since flushing denormal numbers is a setting of a process.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks import asked

WINDOWS, VOCABULARY, WIDTH, LAYERS, DROPOUT, BATCH, BPTT = 60, 10_000, 256, 2, 0.2, 20, 35

CORPUS = Path("data/prepare/corpus.parquet")


def steps_of(loop: str) -> Callable[[int], None]:
    """Return what trains one of the loops for a number of steps on the corpus."""
    import torch

    from benchmarks.peers import NaiveLoop, PlainLoop, StackedLSTM
    from pruning.data.windows import Windows
    from pruning.models import build
    from pruning.training.loop import train
    from pruning.training.recipes import Recipe
    from tasks.common.tables import read_table

    torch.manual_seed(1)
    torch.set_flush_denormal(loop != "example")
    corpus = read_table(CORPUS)
    train_split = corpus.loc[corpus["split"] == "train", "token"]
    tokens = torch.tensor(train_split.to_numpy()[: BATCH * BPTT * WINDOWS], dtype=torch.long)
    windows = Windows(tokens, first=0, batch=BATCH, bptt=BPTT)
    if loop == "ours":
        model = build(
            "lstm", vocabulary=VOCABULARY, embedding=WIDTH, widths=[WIDTH] * LAYERS, decoder="tied", dropout=DROPOUT
        )
        short = Windows(tokens[:BATCH], first=0, batch=BATCH, bptt=1)

        def ours(steps: int) -> None:
            recipe = Recipe(
                epochs=1,
                portion=steps / len(windows),
                learning_rate=1e-3,
                warmup=0,
                weight_decay=0,
                clip=0.25,
                patience=1,
            )
            list(train(model, windows, short, recipe=recipe, seed=1))

        return ours
    stacked = StackedLSTM(VOCABULARY, WIDTH, LAYERS, DROPOUT, tied=True)
    peer = NaiveLoop(stacked, 20.0) if loop == "example" else PlainLoop(stacked, 1e-3)

    def theirs(steps: int) -> None:
        for index in range(steps):
            peer.step(*windows[index])

    return theirs


def _work(loop: str, steps: int, line: Connection) -> None:
    run = steps_of(loop)
    while line.recv():
        start = time.perf_counter()
        run(steps)
        line.send(steps * BATCH * BPTT / (time.perf_counter() - start))


def main() -> None:
    """Print tokens/s of each loop and the two ratios."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--rounds", type=asked.count, default=5, help="rounds that count")
    parser.add_argument("--warmup", type=asked.index, default=5, help="rounds before, in which denormal numbers appear")
    parser.add_argument("--steps", type=asked.count, default=40, help=f"steps of a round, at most {WINDOWS}")
    given = parser.parse_args()
    speeds: dict[str, list[float]] = {"ours": [], "plain": [], "example": []}
    context, lines = multiprocessing.get_context("spawn"), {}
    for loop in speeds:
        lines[loop], far = context.Pipe()
        context.Process(target=_work, args=(loop, given.steps, far), daemon=True).start()
    for round_ in range(-given.warmup, given.rounds):
        for loop, line in lines.items():
            line.send(True)
            tokens_a_second = line.recv()
            if round_ >= 0:
                speeds[loop].append(tokens_a_second)
    medians = {loop: statistics.median(values) for loop, values in speeds.items()}
    for loop, speed in medians.items():
        print(f"{loop:8} {speed:8.0f} tokens/s")
    print(f"ours / plain:   {medians['ours'] / medians['plain']:.2f}")
    print(f"ours / example: {medians['ours'] / medians['example']:.2f}")


if __name__ == "__main__":
    main()
