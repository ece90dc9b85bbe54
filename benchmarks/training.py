"""Training throughput against the best plain loop and against PyTorch's example written as it is, in turns in one run.

`python -m benchmarks.training`: three processes take turns, since flushing denormal numbers is a setting of a process.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

VOCABULARY, WIDTH, LAYERS, DROPOUT, BATCH, BPTT = 10_000, 256, 2, 0.2, 20, 35


def steps_of(loop: str) -> Callable[[int], None]:
    """Return what trains one of the loops for a number of steps on random tokens."""
    import torch

    from benchmarks.peers import NaiveLoop, PlainLoop, StackedLSTM
    from pruning.batching import Windows
    from pruning.models import build
    from pruning.training import Recipe, train

    torch.manual_seed(1)
    torch.set_flush_denormal(loop != "example")
    tokens = torch.randint(VOCABULARY, (BATCH * BPTT * 20,))
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
    return lambda steps: [peer.step(*windows[index]) for index in range(steps)] and None


def _work(loop: str, steps: int, line: Connection) -> None:
    run = steps_of(loop)
    run(steps)
    while line.recv():
        start = time.perf_counter()
        run(steps)
        line.send(steps * BATCH * BPTT / (time.perf_counter() - start))


def main() -> None:
    """Print tokens/s of each loop and the two ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10)
    given = parser.parse_args()
    speeds: dict[str, list[float]] = {"ours": [], "plain": [], "example": []}
    context, lines = multiprocessing.get_context("spawn"), {}
    for loop in speeds:
        lines[loop], far = context.Pipe()
        context.Process(target=_work, args=(loop, given.steps, far), daemon=True).start()
    for _ in range(given.rounds):
        for loop, line in lines.items():
            line.send(True)
            speeds[loop].append(line.recv())
    medians = {loop: statistics.median(values) for loop, values in speeds.items()}
    for loop, speed in medians.items():
        print(f"{loop:8} {speed:8.0f} tokens/s")
    print(f"ours / plain:   {medians['ours'] / medians['plain']:.2f}")
    print(f"ours / example: {medians['ours'] / medians['example']:.2f}")


if __name__ == "__main__":
    main()
