"""Weights of signals that serve models they were not learned on; what each score says of one neuron and of a set.

`python -m benchmarks.transfer --corpus FOLDER FOLDER --kept FOLDER`: five families (LSTM, GRU, Elman, spiking, mixed)
on each corpus, 64 and 128 units a layer. Each is trained and measured once and kept in a folder, so that an interrupted
run goes on from there; `--only NAME` measures one alone. Weights are learned on all models but those of one family on
one corpus, whatever their widths and seeds, and rank the neurons of these. `--without family` and `--without corpus`
leave out more.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks import asked
from benchmarks.dense_models import HELD, KINDS, chosen_sets, covariances, kept, read_corpus, scores_of
from pruning.ablation.oracle import split_half_reliability
from pruning.fusion.fused import Weighing, to_plain
from pruning.fusion.learned import bootstrapped, interval, learn_together, within_layers
from pruning.fusion.schemas import ALL
from pruning.fusion.weights import relative
from pruning.signals.schemas import LEARNABLE, SIGNALS
from tasks.common.models import read_language_model

EVERYTHING = (*SIGNALS, *LEARNABLE)
LEARNED = {"weights of the others": EVERYTHING, "of the signals alone": tuple(SIGNALS)}
"""What is learned on the other models → what is weighed."""
BEST = "best on the others"
"""The single score that ranks the other models' neurons best."""
PARTS: dict[str, Callable[["Planned"], str]] = {
    "family and corpus": lambda model: f"{model.corpus.name}, {model.kind}",
    "family": lambda model: model.kind,
    "corpus": lambda model: model.corpus.name,
}
"""What is left out together → a model's part."""


@dataclass(frozen=True)
class Planned:
    """One dense model."""

    corpus: Path
    kind: str
    width: int
    seed: int

    @property
    def name(self) -> str:
        """Its folder's name."""
        return f"{self.corpus.name}-{self.kind}-{self.width}-{self.seed}"


@dataclass(frozen=True)
class Case:
    """A dense model that was measured.

    Attributes:
        planned: Which one.
        frame: Its neurons' scores and what the removal of each costs.
        sets: What the sets lose that the scores choose.
    """

    planned: Planned
    frame: pd.DataFrame
    sets: pd.DataFrame

    @property
    def layers(self) -> np.ndarray:
        """Each neuron's layer."""
        return self.frame["layer"].to_numpy(dtype=str)

    @property
    def truth(self) -> np.ndarray:
        """What the removal of each neuron costs on unseen text, nat/token."""
        return self.frame["truth_loss_increase"].to_numpy()

    @property
    def reliability(self) -> float:
        """How reliable the truth is within a layer, the layers' mean."""
        halves = self.frame.rename(columns={"truth_even": "even", "truth_odd": "odd"}).groupby("layer")
        return float(np.average([split_half_reliability(rows) for _, rows in halves], weights=halves.size()))

    def as_fitted(self, names: Sequence[str], held_out: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return signals and measured removals as `learn_together` takes them, labels of training or held-out text."""
        keys = self.frame[["layer", "neuron"]]
        suffixed = {name: name + HELD if held_out and name + HELD in self.frame else name for name in names}
        errors = self.frame["truth_standard_error"]
        columns = {name: self.frame[column] for name, column in suffixed.items()}
        return keys.assign(**columns), keys.assign(loss_increase=self.truth, standard_error=errors)

    def ranked(self, scores: np.ndarray | pd.Series) -> float:
        """Return how well scores rank the neurons of a layer: Spearman with the truth."""
        return within_layers(self.layers, np.asarray(scores), self.truth)


def planned(corpora: Sequence[Path], widths: Sequence[int], seeds: Sequence[int]) -> Iterator[Planned]:
    """Yield every model."""
    for seed, corpus, width, kind in product(seeds, corpora, widths, KINDS):
        yield Planned(corpus, kind, width, seed)


def transferred(
    cases: Sequence[Case], part: str, held_out: bool
) -> tuple[pd.DataFrame, dict[str, dict[str, np.ndarray]]]:
    """Return a row a model, its neurons ranked by what other models taught, and these scores by model and name."""
    rows, taught = [], {}
    of = PARTS[part]
    pairs = {case.planned.name: case.as_fitted(EVERYTHING, held_out) for case in cases}
    alone = pd.DataFrame(
        {
            case.planned.name: {name: case.ranked(pairs[case.planned.name][0][name]) for name in EVERYTHING}
            for case in cases
        }
    )
    for left_out in dict.fromkeys(of(case.planned) for case in cases):
        others = [case.planned.name for case in cases if of(case.planned) != left_out]
        learnt = {way: learn_together({name: pairs[name] for name in others}, names) for way, names in LEARNED.items()}
        best = str(alone[others].mean(axis=1).idxmax())
        for case in (case for case in cases if of(case.planned) == left_out):
            name, frame = case.planned.name, pairs[case.planned.name][0]
            scores = {
                way: relative(frame, list(weights), candidate.transform).to_numpy() @ np.array([*weights.values()])
                for way, (candidate, weights) in learnt.items()
            }
            scores |= {way: case.frame[way].to_numpy() for way in ("adaptive", "simple")}
            scores[BEST] = frame[best].to_numpy()
            drawn = bootstrapped(case.layers, case.truth, scores, seed=1)
            rows.append({
                "model": name, "reliability": case.reliability, **{way: case.ranked(scores[way]) for way in scores},
                "interval": interval(drawn[next(iter(LEARNED))]), "its name": best,
                "in hindsight": alone[name].max(), "name": str(alone[name].idxmax()),
            })  # fmt: skip
            taught[name] = scores
    return pd.DataFrame(rows), taught


def both(cases: Sequence[Case]) -> pd.DataFrame:
    """Return a row a model and score: its correlation with single removal, and what its set loses."""
    rows = []
    for case in cases:
        lost = case.sets.set_index("score")["loss"]
        for name in scores_of(case.frame):
            ranked = case.ranked(case.frame[name])
            rows.append({
                "model": case.planned.name, "kind": case.planned.kind, "score": name, "spearman": ranked,
                "over": ranked / math.sqrt(max(case.reliability, 1e-9)),
                "set": 100 * (math.exp(lost[name] - lost["dense"]) - 1), "above": lost[name] - lost["surgeon"],
            })  # fmt: skip
    return pd.DataFrame(rows)


def _spread(values: pd.Series, digits: int = 2, sign: str = "") -> str:
    return f"{values.mean():{sign}.{digits}f} ± {values.std() / math.sqrt(len(values)):.{digits}f}"


def report_of_weights(cases: Sequence[Case], part: str, held_out: bool) -> list[str]:
    """Return the table of models that were left out."""
    table, _ = transferred(cases, part, held_out)
    ways = [*LEARNED, "adaptive", "simple", BEST]
    lines = [
        "", f"left out: one {part}; labels of {'held-out' if held_out else 'training'} text", "",
        "| ranked | reliability | " + " | ".join(ways) + " | best single, in hindsight |",
        "|---|" + "---:|" * (len(ways) + 1) + "---|",
    ]  # fmt: skip
    for row in table.to_dict("records"):
        low, high = row["interval"]
        cells = [f"{row[way]:.2f}" for way in ways]
        cells[0] += f" [{low:.2f}, {high:.2f}]"
        cells[-1] += f" `{row['its name']}`"
        cells = [row["model"], f"{row['reliability']:.2f}", *cells, f"{row['in hindsight']:.2f} `{row['name']}`"]
        lines.append(f"| {' | '.join(cells)} |")
    means = [_spread(table[way]) for way in ways]
    lines.append(
        f"| mean | {table['reliability'].mean():.2f} | {' | '.join(means)} | {_spread(table['in hindsight'])} |"
    )
    less = [_spread(table[ways[0]] - table[way], sign="+") if way != ways[0] else "" for way in ways]
    lines.append(
        f"| first less this | | {' | '.join(less)} | {_spread(table[ways[0]] - table['in hindsight'], sign='+')} |"
    )
    less = [_spread(table[way] - table["adaptive"], sign="+") if way != "adaptive" else "" for way in ways]
    return [*lines, f"| this less `adaptive` | | {' | '.join(less)} | |"]


def report_of_scores(cases: Sequence[Case]) -> list[str]:
    """Return the table of how well each score ranks one neuron and how good the set is that it chooses."""
    rows = both(cases)
    kinds = list(dict.fromkeys(rows["kind"]))
    rows["rank"] = rows.groupby("model")["spearman"].rank(ascending=False)
    rows["rank of set"] = rows.groupby("model")["set"].rank()
    last = " | its place | its set, repaired: above dense | above the surgeon's set | its place |"
    lines = ["", "| score | Spearman | over √reliability | " + " | ".join(kinds) + last,
             "|---|---:|---:|" + "---:|" * (len(kinds) + 4)]  # fmt: skip
    order = rows.groupby("score")["spearman"].mean().sort_values(ascending=False).index
    for name in order:
        of = rows[rows["score"] == name]
        by_kind = [f"{of[of['kind'] == kind]['over'].mean():.2f}" for kind in kinds]
        cells = [f"`{name}`", _spread(of["spearman"]), f"{of['over'].mean():.2f}", *by_kind, f"{of['rank'].mean():.1f}"]
        cells += [f"{_spread(of['set'], 1)}%", f"{_spread(100 * of['above'], 1)}%", f"{of['rank of set'].mean():.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| score | held-out labels less training labels, Spearman |", "|---|---:|"]
    for name in [name for name in order if name + HELD in set(order)]:
        pair = [rows[rows["score"] == one].set_index("model")["spearman"] for one in (name + HELD, name)]
        if (pair[0] != pair[1]).any():
            lines.append(f"| `{name}` | {_spread(pair[0] - pair[1], sign='+')} |")
    return lines


def report_of_sets(cases: Sequence[Case], part: str, folder: Path) -> list[str]:
    """Return what the sets lose that transferred weights choose, beside those of the other ways."""
    _, taught = transferred(cases, part, held_out=False)
    texts = {corpus: cache(partial(read_corpus, corpus)) for corpus in {case.planned.corpus for case in cases}}
    rows = {}
    for case in cases:
        name, corpus = case.planned.name, texts[case.planned.corpus]()
        dense = read_language_model(folder / name / "model")
        scores = {way: taught[name][way] for way in (*LEARNED, BEST)}
        frame = case.frame[["layer", "neuron"]].assign(**scores)
        sets = chosen_sets(dense, frame, covariances(dense, corpus)[1], corpus, list(scores))
        lost = pd.concat([case.sets, sets[1:]]).set_index("score")["loss"]
        rows[name] = 100 * (np.exp(lost - lost["dense"]) - 1)
    table = pd.DataFrame(rows)
    ways = (*LEARNED, BEST, "adaptive", "simple", "intervention", "surgeon", "random")
    lines = ["", "| its set, repaired: above dense, % | mean | less `adaptive`'s |", "|---|---:|---:|"]
    return lines + [
        f"| {way} | {_spread(table.loc[way], 1)} | {_spread(table.loc[way] - table.loc['adaptive'], 1, '+')} |"
        for way in ways
    ]


def main() -> None:
    """Measure what is missing, print the tables, and write the weights of all models together."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.transfer", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--corpus", nargs=2, type=asked.there, required=True, help="two folders of text")
    parser.add_argument("--widths", nargs="+", type=asked.count, default=[64, 128], help="units a layer")
    parser.add_argument("--seeds", nargs="+", type=asked.index, default=[1], help="of training and of what is drawn")
    parser.add_argument("--kept", type=asked.folder, default="transfer", help="where models' measurements are kept")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these models, and nothing else")
    parser.add_argument("--known", action="store_true", help="report what is kept, and measure nothing")
    parser.add_argument("--without", choices=list(PARTS), default=next(iter(PARTS)), help="what is left out together")
    parser.add_argument("--sets", action="store_true", help="also what the sets of transferred weights lose")
    parser.add_argument("--weights", type=asked.file, help="where to write weights that all models teach")
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    models = {model.name: model for model in planned(given.corpus, given.widths, given.seeds)}
    unknown = [name for name in given.only or () if name not in models]
    if unknown:
        parser.error(f"Expected models of {list(models)}, got {unknown}.")
    texts = {corpus: cache(partial(read_corpus, corpus)) for corpus in given.corpus}
    cases = []
    for name in given.only or models:
        model, folder = models[name], given.kept / name
        if not given.known or (folder / "sets.parquet").is_file():
            cases.append(Case(model, *kept(folder, model.kind, model.width, texts[model.corpus], model.seed)))
    if given.only:
        return
    for held_out in (False, True):
        print("\n".join(report_of_weights(cases, given.without, held_out)))
    print("\n".join(report_of_scores(cases)))
    if given.sets:
        print("\n".join(report_of_sets(cases, given.without, given.kept)))
    if given.weights:
        pairs = {case.planned.name: case.as_fitted(EVERYTHING, held_out=False) for case in cases}
        candidate, weights = learn_together(pairs, EVERYTHING)
        plain = to_plain(Weighing("learned", candidate.transform, {ALL: weights}))
        given.weights.write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
