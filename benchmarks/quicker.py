"""Training by each type of products and each softmax: how fast beside the best plain loop, and how good over seeds.

`python -m benchmarks.quicker`: the loops take turns in one process on random tokens; a turn is timed by the processor
time it takes, so that another program's load counts for nothing, and the plain loop flushes denormal numbers too. With
`--teacher` all learn from a model of the same size beside the labels, and the first of them stands for the plain loop.

`python -m benchmarks.quicker --quality`, after `dvc repro prepare`: models trained on the same tokens, judged by the
loss under all types. `--corpus` is that stage's folder, or one of published splits, all of whose types are taken (to
`--vocabulary`). Each model is kept in `--state` as soon as it is known: the same command goes on from where it was, and
`--only WAY --seeds 1` makes one of them.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from benchmarks import asked
from benchmarks.peers import PlainLoop, StackedLSTM
from benchmarks.resumable import replaced
from pruning.data.corpus import END_OF_LINE, number, published_lines, published_names
from pruning.data.windows import Windows
from pruning.evaluation.measures import loss_of
from pruning.models import build
from pruning.models.base import LanguageModel
from pruning.training.distillation import Teacher
from pruning.training.loop import train
from pruning.training.recipes import Recipe

VOCABULARY, WIDTH, LAYERS, DROPOUT, BPTT = 10_000, 256, 2, 0.2, 35
WAYS = (
    "float32, full",
    "float32, chunked",
    "bfloat16, full",
    "bfloat16, chunked",
    "float32, sampled 1,500",
)
"""How the library can train: the type of products, the softmax, and of how many types; the first is the default."""
USUAL = {"epochs": 1, "warmup": 0.1, "weight_decay": 0.01, "clip": 0.5, "patience": 1}


def named(way: str) -> dict[str, object]:
    """Return the settings of a way by its name, such as `bfloat16, sampled 300`.

    >>> named("bfloat16, sampled 1,500")
    {'type': 'bfloat16', 'softmax': 'sampled', 'sampled': 1500}
    """
    kind, rest = way.split(", ", 1)
    softmax, _, sampled = rest.partition(" ")
    settings: dict[str, object] = {"type": kind, "softmax": softmax}
    return {**settings, "sampled": int(sampled.replace(",", ""))} if sampled else settings


def speeds(batch: int, rounds: int, steps: int, *, taught: bool = False) -> dict[str, float]:
    """Return tokens a second of processor time, by loop, the median of turns; the first turn warms up."""
    tokens = torch.randint(VOCABULARY, (batch * BPTT * steps,), generator=torch.Generator().manual_seed(1))
    windows = Windows(tokens, first=0, batch=batch, bptt=BPTT)
    short = Windows(tokens[:batch], first=0, batch=batch, bptt=1)
    loops: dict[str, Callable[[], None]] = {} if taught else {"plain": _plain(windows)}
    teacher = Teacher.of(_model().eval(), share=0.5) if taught else None
    loops |= {name: _ours(windows, short, named(name), teacher) for name in WAYS}
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


def _ours(windows: Windows, short: Windows, way: dict[str, object], teacher: Teacher | None) -> Callable[[], None]:
    model, recipe = _model(), Recipe(portion=1.0, learning_rate=1e-3, **USUAL, **way)  # type: ignore[arg-type]
    return lambda: list(train(model, windows, short, recipe=recipe, seed=1, teacher=teacher)) and None


def _model() -> LanguageModel:
    torch.manual_seed(1)
    shape = {"vocabulary": VOCABULARY, "embedding": WIDTH, "widths": [WIDTH] * LAYERS}
    return build("lstm", **shape, decoder="tied", dropout=DROPOUT)


@dataclass(frozen=True)
class Text:
    """Token numbers to train on and to judge by, the number of the end of a line, and how many types there are."""

    train: Tensor
    valid: Tensor
    first: int
    types: int


def read(folder: Path, vocabulary: int, tokens: int) -> Text:
    """Return the first tokens of a prepared corpus, or of one in published splits, and what it is judged by."""
    if (folder / "corpus.parquet").is_file():
        frame = pd.read_parquet(folder / "corpus.parquet")
        splits = {str(split): rows.to_numpy() for split, rows in frame.groupby("split")["token"]}
        words = pd.read_parquet(folder / "vocabulary.parquet")["text"].tolist()
    else:
        files = published_names(path.name for path in folder.iterdir())
        lines = {split: published_lines((folder / name).read_text(encoding="utf-8")) for split, name in files.items()}
        corpus = number(lines, vocabulary)
        splits, words = dict(corpus.tokens), corpus.vocabulary["text"].tolist()
    train, valid = (torch.tensor(splits[split], dtype=torch.long) for split in ("train", "valid"))
    return Text(train[:tokens], valid[: tokens // 4], words.index(END_OF_LINE), len(words))


def quality(text: Text, way: str, seed: int) -> dict[str, float]:
    """Return the validation loss under all types, nat/token, of a small model after one pass over the text.

    Beside it stands what training took, in seconds of the processor.
    """
    windows = Windows(text.train, first=text.first, batch=16, bptt=BPTT)
    valid = Windows(text.valid, first=text.first, batch=10, bptt=100)
    torch.manual_seed(seed)
    model = build("lstm", vocabulary=text.types, embedding=128, widths=[128, 128], decoder="untied", dropout=0.1)
    model.expect(text.train)
    recipe = Recipe(portion=1.0, learning_rate=8e-3, **USUAL, **named(way))  # type: ignore[arg-type]
    start = time.process_time()
    list(train(model, windows, [valid[0]], recipe=recipe, seed=seed))
    seconds = time.process_time() - start
    return {"valid_loss": loss_of(model, valid).mean, "seconds": seconds}


def kept(folder: Path, text: Text, way: str, seed: int) -> dict[str, float]:
    """Return a model's quality from the folder, where it is put as soon as it is known."""
    path = folder / f"{text.types}-{len(text.train)}-{way.replace(', ', '-').replace(' ', '-')}-{seed}.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        replaced(path, json.dumps(quality(text, way, seed)))
    known: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return known


def show_quality(folder: Path, text: Text, ways: Sequence[str], seeds: Sequence[int]) -> None:
    """Print the losses of each way by seed, the perplexity of their mean, and what it differs from the first way's.

    The differences are of the same seeds; their standard error is over these.
    """
    print(f"{len(text.train):,} tokens, {text.types:,} types\n")
    numbers = " | ".join(f"seed {seed}" for seed in seeds)
    print(f"| training | {numbers} | mean | perplexity | beside the first | processor s |")
    print(f"|---|{'---:|' * (len(seeds) + 4)}")
    usual: list[float] = []
    for way in ways:
        rows = [kept(folder, text, way, seed) for seed in seeds]
        losses = [row["valid_loss"] for row in rows]
        usual = usual or losses
        mean, apart = statistics.mean(losses), [one - other for one, other in zip(losses, usual, strict=True)]
        error = statistics.stdev(apart) / math.sqrt(len(apart)) if len(apart) > 1 else math.nan
        beside = f"{statistics.mean(apart):+.4f} ± {error:.4f}"
        shown = " | ".join(f"{loss:.4f}" for loss in [*losses, mean])
        seconds = statistics.median(row["seconds"] for row in rows)
        print(f"| {way} | {shown} | {math.exp(mean):.2f} | {beside} | {seconds:.0f} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quicker", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--rounds", type=asked.count, default=5, help="turns that count")
    parser.add_argument("--steps", type=asked.count, default=8, help="of a turn")
    parser.add_argument("--batches", type=asked.count, nargs="+", default=[20, 64], help="texts side by side")
    parser.add_argument("--teacher", action="store_true", help="beside a teacher")
    parser.add_argument("--quality", action="store_true", help="how good, in place of how fast; the rest is of it")
    parser.add_argument(
        "--corpus", type=asked.there, default="data/prepare", help="the folder of `prepare`, or one of published splits"
    )
    parser.add_argument("--vocabulary", type=asked.count, default=10**6, help="most types, of published splits")
    parser.add_argument("--tokens", type=asked.count, default=150_000, help="that are trained on")
    parser.add_argument("--state", type=asked.folder, default="data/.quicker", help="folder of what is known so far")
    parser.add_argument("--only", nargs="+", default=list(WAYS), metavar="WAY", help="such as 'float32, sampled 300'")
    parser.add_argument("--seeds", type=asked.index, nargs="+", default=[1, 2, 3], help="of the models")
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    if given.quality:
        text = read(given.corpus, given.vocabulary, given.tokens)
        show_quality(given.state, text, given.only, given.seeds)
        return
    print("| batch | loop | tokens/s | × plain |\n|---:|---|---:|---:|")
    for batch in given.batches:
        found = speeds(batch, given.rounds, given.steps, taught=given.teacher)
        usual = next(iter(found.values()))
        for name, speed in found.items():
            print(f"| {batch} | {name} | {speed:,.0f} | {speed / usual:.2f} |", flush=True)


if __name__ == "__main__":
    main()
