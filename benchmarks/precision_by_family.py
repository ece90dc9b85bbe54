"""How well `intervention` predicts removal in small models of every family, beside every single criterion.

`python -m benchmarks.precision_by_family --corpus FOLDER FOLDER --into FOLDER`: the families that
`benchmarks.dense_models` trains, on each corpus, a model a seed. `intervention` is the signal itself, its trust in the
label term included; the labels are those of the validation text, the truth is every removal on half of the test text.
With `--dealt` each seed deals the documents of a corpus anew, labels and truth are of many places of many documents,
and labels of few whole documents, and of text between what was trained on, stand beside them. Every single criterion
read the same labels, or training text. Each model is trained and measured once and kept, so that an interrupted run
goes on from there; with `--kept` nothing is measured. Intervals are over neurons, ± is the standard deviation between
seeds.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks import asked
from benchmarks.dense_models import HELD, KINDS
from benchmarks.precision import MEASURED, Truth, learned, said
from benchmarks.removals import Subject, kept, measure
from benchmarks.subjects import BETWEEN, WHOLE, small
from pruning.fusion.learned import bootstrapped, interval, within_layers
from pruning.signals.schemas import CRITERIA, SIGNALS

OURS, LEARNED = "intervention", "learned"
PARTS = ("divergence", "curvature")
"""What `intervention` adds up besides labels, each alone."""
JUDGES = 8
"""About so many pieces judge, some 42,000 tokens, one as far from the next as the text allows."""


def only(subject: Subject) -> list[str]:
    """Return what is measured of a model besides the signal itself."""
    pieces = subject.pieces("judged")
    places = range(0, pieces, max(1, round(pieces / JUDGES)))
    return [*(f"judged-{place}" for place in places), "signals", "criteria"]


@dataclass(frozen=True)
class Case:
    """A dense model that was measured: the truth and what each way to predict says of its neurons."""

    truth: Truth
    predicted: pd.DataFrame

    @classmethod
    def of(cls, folder: Path) -> "Case":
        """Return what a folder knows."""
        truth, ours = Truth.of(folder), said(folder, None, MEASURED[0])
        others = {text: said(folder, None, MEASURED[0], text) for text in (WHOLE, BETWEEN)}
        signals, held = (pd.read_parquet(folder / f"{name}.parquet") for name in ("signals", "criteria"))
        if ours is None:
            raise SystemExit(f"Expected what `intervention` says in {folder}, got none; leave out `--kept`.")
        for frame in (ours, held):
            assert frame[["layer", "neuron"]].equals(signals[["layer", "neuron"]])
        assert (signals["layer"].to_numpy(dtype=str) == truth.layers).all()
        columns = {
            **{name: signals[name] for name in (*SIGNALS, "surgeon", *CRITERIA)},
            **{name + HELD: held[name] for name in held if name not in ("layer", "neuron")},
            **{name: ours[name] for name in PARTS},
            OURS: ours["importance"],
            **{f"{OURS}, {text}": table["importance"] for text, table in others.items() if table is not None},
            LEARNED: learned(signals, ours, truth),
        }
        return cls(truth, pd.DataFrame({name: np.asarray(column) for name, column in columns.items()}))

    @property
    def layers(self) -> list[str]:
        """Its layers' names."""
        return [str(layer) for layer in dict.fromkeys(self.truth.layers)]

    def reliability(self, layers: Sequence[str] = ()) -> float:
        """Return the reliability of the truth within these layers, or all, averaged by their neurons."""
        names = layers or self.layers
        counts = [int((self.truth.layers == layer).sum()) for layer in names]
        return float(np.average([self.truth.reliability(layer) for layer in names], weights=counts))

    def ranked(self, name: str, layers: Sequence[str] = ()) -> float:
        """Return how well one prediction ranks the neurons of these layers, or of all: Spearman with the truth."""
        of = np.isin(self.truth.layers, layers or self.layers)
        return within_layers(self.truth.layers[of], self.predicted[name].to_numpy()[of], self.truth.increase[of])


@dataclass(frozen=True)
class Family:
    """The models of one family on one corpus, which differ by their seed."""

    cases: Sequence[Case]

    def singles(self, held: bool) -> list[str]:
        """Return the names of single criteria that every model has numbers of, by where their labels come from."""
        whole = [
            name
            for name in self.cases[0].predicted
            if not name.startswith((OURS, LEARNED, *PARTS))
            and all(case.predicted[name].notna().all() for case in self.cases)
        ]
        return [name for name in whole if name.endswith(HELD) == held]

    def best(self, held: bool) -> str:
        """Return the single criterion that ranks best in the mean of the seeds, by the truth itself."""
        return max(self.singles(held), key=lambda name: self.mean(name))

    def mean(self, name: str, layers: Sequence[str] = ()) -> float:
        """Return how well one prediction ranks, the mean of the seeds."""
        return float(np.mean([case.ranked(name, layers) for case in self.cases]))

    def reliability(self, layers: Sequence[str] = ()) -> float:
        """Return the truth's reliability, the mean of the seeds."""
        return float(np.mean([case.reliability(layers) for case in self.cases]))

    def over(self, name: str, layers: Sequence[str] = ()) -> float:
        """Return how well one prediction ranks over what a perfect one would reach."""
        return self.mean(name, layers) / math.sqrt(max(self.reliability(layers), 1e-9))

    def spread(self, name: str) -> str:
        """Return the standard deviation between seeds of Spearman over √reliability, and its range; of two at least."""
        each = [case.ranked(name) / math.sqrt(max(case.reliability(), 1e-9)) for case in self.cases]
        return f" ± {np.std(each, ddof=1):.2f}, {min(each):.2f} to {max(each):.2f}" if len(each) > 1 else ""

    def drawn(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return Spearman of resampled neurons of each layer of each model, the mean of the seeds."""
        each = [
            bootstrapped(case.truth.layers, case.truth.increase,
                         {name: case.predicted[name].to_numpy() for name in names}, seed=1 + index)
            for index, case in enumerate(self.cases)
        ]  # fmt: skip
        return {name: np.mean([draws[name] for draws in each], axis=0) for name in names}


def row(family: Family) -> dict[str, str]:
    """Return a family's row of the table."""
    best, read = family.best(held=True), family.best(held=False)
    others = [
        name
        for name in (f"{OURS}, {text}" for text in (WHOLE, BETWEEN))
        if all(name in case.predicted for case in family.cases)
    ]
    drawn = family.drawn([OURS, best, read, LEARNED, *others])

    def less(name: str, other: str) -> str:
        low, high = interval(drawn[name] - drawn[other])
        return f"{family.mean(name) - family.mean(other):+.2f} [{low:+.2f}, {high:+.2f}]"

    def raw(name: str) -> str:
        low, high = interval(drawn[name])
        return f"{family.mean(name):.2f} [{low:.2f}, {high:.2f}]"

    def over(name: str) -> str:
        return f"{family.over(name):.2f}{family.spread(name)}"

    layers = ", ".join(f"{family.over(OURS, [layer]):.2f}" for layer in family.cases[0].layers)
    tokens = round(np.mean([case.truth.tokens for case in family.cases]), -3)
    cells = {
        "seeds": str(len(family.cases)),
        "truth, reliability": f"{tokens:,.0f}, {family.reliability():.2f}",
        "`intervention`": raw(OURS),
        "over √reliability": f"**{family.over(OURS):.2f}**{family.spread(OURS)} ({layers})",
        **{f"{part} alone": over(part) for part in PARTS},
        "best criterion, the same labels": f"{over(best)} `{best.removesuffix(HELD)}`",
        "`intervention` less it": less(OURS, best),
        "best, training text": f"{over(read)} `{read}`",
        "less that": less(OURS, read),
        LEARNED: over(LEARNED),
        f"{LEARNED} less `{OURS}`": less(LEARNED, OURS),
        f"{LEARNED} less the best criterion": less(LEARNED, best),
    }
    for name in others:
        cells |= {name: f"{over(name)}; {raw(name)}"}
        cells |= {f"{name}, less `{OURS}`": less(name, OURS), f"{name}, less the best criterion": less(name, best)}
    return cells


def families(
    into: Path, corpora: Sequence[str], seeds: Sequence[int], kinds: Sequence[str] = (*KINDS,)
) -> Iterator[tuple[str, str, Family]]:
    """Yield corpus, kind and models of every family of these of which some model was measured to the end."""
    for corpus, kind in product(corpora, kinds):
        paths = [path for seed in seeds for path in sorted((into / corpus).glob(f"{kind}-*-{seed}"))]
        whole = [path for path in paths if (path / f"intervention-{MEASURED[0]}.parquet").is_file()]
        if whole:
            yield corpus, kind, Family([Case.of(path) for path in whole])


def _called(corpus: Path, dealt: bool) -> str:
    """Return the name of the folder of a corpus' models."""
    return f"{corpus.name}, dealt" if dealt else corpus.name


def main() -> None:
    """Train and measure what the folder lacks, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision_by_family", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--corpus", type=asked.there, nargs="+", required=True, help="folders of text")
    parser.add_argument("--into", type=asked.folder, required=True, help="the folder of all dense models")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS], help="families")
    parser.add_argument("--width", type=asked.count, default=64, help="units of each layer")
    parser.add_argument("--seeds", type=asked.index, nargs="+", default=[1, 2, 3], help="of the dense models")
    parser.add_argument("--dealt", action="store_true", help="deal documents anew by each seed, many to each purpose")
    parser.add_argument("--kept", action="store_true", help="report what is there, and measure nothing")
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    for seed, corpus, kind in product(given.seeds, given.corpus, () if given.kept else given.kinds):
        name = f"{kind}-{given.width}-{seed}"
        folder = given.into / _called(corpus, given.dealt) / name
        subject = kept(folder, "cpu", partial(small, name, corpus, given.dealt))
        measure(folder, subject, only(subject))
        for text in ("labelled", *((WHOLE, BETWEEN) if given.dealt else ())):
            said(folder, subject, MEASURED[0], text)
    rows = [
        {"corpus": corpus, "family": kind, **row(family)}
        for corpus, kind, family in families(
            given.into, [_called(corpus, given.dealt) for corpus in given.corpus], given.seeds, given.kinds
        )
    ]
    for cells in [[*rows[0]], ["---"] * len(rows[0]), *([*each.values()] for each in rows)] if rows else []:
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
