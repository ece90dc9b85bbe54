"""Weights of signals that serve models they were not learned on; what each score says of one neuron and of a set.

`python -m benchmarks.transfer --corpus FOLDER FOLDER --kept FOLDER`: five families (LSTM, GRU, Elman, spiking, mixed)
on each corpus, 64 units a layer on the first, 96 on the second. Each is trained and measured once and kept as Parquet
files, so that an interrupted run goes on from there. Weights are learned on all models but one, its kin of the same
family or corpus among the others, and rank the neurons of that one.
"""

import argparse
import json
import math
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.dense_models import KINDS, kept, read_corpus, scores_of
from pruning.ablation.oracle import split_half_reliability
from pruning.fusion.fused import Weighing, to_plain
from pruning.fusion.learned import bootstrapped, interval, learn_together, within_layers
from pruning.fusion.schemas import ALL
from pruning.fusion.weights import relative
from pruning.signals.schemas import LEARNABLE, SIGNALS

WIDTHS = (64, 96)
HELD = ", held out"
"""What stands behind the name of a score that was measured on labels held out from training."""
RANKED = (
    "| ranked | reliability | weights of the others | less `intervention` | `simple` | `intervention` "
    "| best on the others | best single, in hindsight |"
)
MEANS = ("fused", "simple", "intervention", "best on the others", "best single")
Models = dict[str, tuple[pd.DataFrame, pd.DataFrame]]


def measured_models(corpora: list[Path], folder: Path) -> Models:
    """Return model → its scores and what its chosen sets lose."""
    texts = {corpus: cache(partial(read_corpus, corpus)) for corpus in corpora}
    models = {}
    for kind in KINDS:
        for corpus, width in zip(corpora, WIDTHS, strict=False):
            name = f"{corpus.name}-{kind}-{width}"
            models[name] = kept(folder / name, kind, width, texts[corpus])
    return models


def truth_of(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, float]:
    """Return layers, measured loss increases, and their reliability, the layers' mean."""
    halves = frame.rename(columns={"truth_even": "even", "truth_odd": "odd"})
    sizes = frame.groupby("layer").size()
    each = [split_half_reliability(rows) for _, rows in halves.groupby("layer")]
    return (
        frame["layer"].to_numpy(dtype=str),
        frame["truth_loss_increase"].to_numpy(),
        float(np.average(each, weights=sizes)),
    )


def as_measured(frame: pd.DataFrame, held_out: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return signals and measured removals as fusion takes them, labels from training or held-out text."""
    names = [*SIGNALS, *LEARNABLE]
    columns = {name: frame[name + HELD] if held_out and name + HELD in frame else frame[name] for name in names}
    keys = frame[["layer", "neuron"]]
    errors = frame["truth_standard_error"]
    return keys.assign(**columns), keys.assign(loss_increase=frame["truth_loss_increase"], standard_error=errors)


def transfer(models: Models, held_out: bool) -> pd.DataFrame:
    """Return a row a model: its neurons ranked by weights of the other models, by `simple`, and by single scores."""
    cases = {name: as_measured(frame, held_out) for name, (frame, _) in models.items()}
    names, rows = [*SIGNALS, *LEARNABLE], []
    for model, (frame, _) in cases.items():
        layers, truth, reliability = truth_of(models[model][0])
        candidate, weights = learn_together({other: case for other, case in cases.items() if other != model}, names)
        ranks = relative(frame, names, candidate.transform).to_numpy()
        simple = relative(frame, list(SIGNALS), "scaled").to_numpy().mean(axis=1)
        alone = {name: within_layers(layers, frame[name].to_numpy(), truth) for name in names}
        elsewhere = {
            name: np.mean([_alone(models, cases, other, name) for other in cases if other != model]) for name in names
        }
        best, told = max(alone, key=lambda name: alone[name]), max(elsewhere, key=lambda name: elsewhere[name])
        fused = ranks @ np.array([weights[name] for name in names])
        drawn = bootstrapped(layers, truth, {"fused": fused, "intervention": frame["intervention"].to_numpy()}, seed=1)
        rows.append({
            "model": model, "reliability": reliability, "fused": within_layers(layers, fused, truth),
            "interval": interval(drawn["fused"]), "less intervention": interval(drawn["fused"] - drawn["intervention"]),
            "simple": within_layers(layers, simple, truth), "intervention": alone["intervention"],
            "best on the others": alone[told], "its name": told, "best single": alone[best], "name": best,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _alone(models: Models, cases: Models, other: str, name: str) -> float:
    layers, truth, _ = truth_of(models[other][0])
    return within_layers(layers, cases[other][0][name].to_numpy(), truth)


def both(models: Models) -> pd.DataFrame:
    """Return a row a model and score: its correlation with single removal, and what its set loses."""
    rows = []
    for model, (frame, sets) in models.items():
        layers, truth, reliability = truth_of(frame)
        lost = sets.set_index("score")["loss"]
        for name in scores_of(frame):
            found = within_layers(layers, frame[name].to_numpy(), truth)
            rows.append({
                "model": model, "kind": model.split("-")[-2], "score": name, "spearman": found,
                "over": found / math.sqrt(max(reliability, 1e-9)),
                "set": 100 * (math.exp(lost[name] - lost["dense"]) - 1), "above": lost[name] - lost["surgeon"],
            })  # fmt: skip
    return pd.DataFrame(rows)


def _spread(values: pd.Series, digits: int = 2) -> str:
    return f"{values.mean():.{digits}f} ± {values.std() / math.sqrt(len(values)):.{digits}f}"


def report(models: Models) -> list[str]:
    """Return the tables as Markdown."""
    lines = []
    for held_out in (False, True):
        lines += ["", f"labels of {'held-out' if held_out else 'training'} text", "",
                  RANKED,
                  "|---|---:|---|---|---:|---:|---|---|"]  # fmt: skip
        table = transfer(models, held_out)
        for row in table.to_dict("records"):
            low, high = row["interval"]
            less, more = row["less intervention"]
            lines.append(
                f"| {row['model']} | {row['reliability']:.2f} | {row['fused']:.2f} [{low:.2f}, {high:.2f}] | "
                f"{less:+.2f} to {more:+.2f} | {row['simple']:.2f} | {row['intervention']:.2f} | "
                f"{row['best on the others']:.2f} `{row['its name']}` | {row['best single']:.2f} `{row['name']}` |"
            )
        means = [f"{table[name].mean():.2f}" for name in MEANS]
        lines.append(f"| mean | {table['reliability'].mean():.2f} | {means[0]} | | {' | '.join(means[1:])} |")
    rows = both(models)
    kinds = list(dict.fromkeys(rows["kind"]))
    last = " | its set, repaired: above dense | above the surgeon's set |"
    lines += ["", "| score | Spearman | over √reliability | " + " | ".join(kinds) + last,
              "|---|---:|---:|" + "---:|" * (len(kinds) + 2)]  # fmt: skip
    order = rows.groupby("score")["spearman"].mean().sort_values(ascending=False).index
    for name in order:
        of = rows[rows["score"] == name]
        by_kind = [f"{of[of['kind'] == kind]['over'].mean():.2f}" for kind in kinds]
        lines.append(
            f"| `{name}` | {_spread(of['spearman'])} | {of['over'].mean():.2f} | {' | '.join(by_kind)} | "
            f"{_spread(of['set'], 1)}% | {_spread(100 * of['above'], 1)}% |"
        )
    lines += ["", "| score | held-out labels less training labels, Spearman |", "|---|---:|"]
    for name in [name for name in order if name + HELD in set(order)]:
        pair = [rows[rows["score"] == one].set_index("model")["spearman"] for one in (name + HELD, name)]
        if (pair[0] != pair[1]).any():
            lines.append(f"| `{name}` | {_spread(pair[0] - pair[1])} |")
    return lines


def main() -> None:
    """Measure what is missing, print the tables, and write the weights of all models together."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.transfer", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--corpus", nargs=2, type=Path, required=True, help="two folders of text")
    parser.add_argument("--kept", type=Path, default=Path("transfer"), help="where models' measurements are kept")
    parser.add_argument("--weights", type=Path, help="where to write weights that all models teach")
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    models = measured_models(given.corpus, given.kept)
    print("\n".join(report(models)))
    if given.weights:
        cases = {name: as_measured(frame, held_out=False) for name, (frame, _) in models.items()}
        candidate, weights = learn_together(cases, [*SIGNALS, *LEARNABLE])
        plain = to_plain(Weighing("learned", candidate.transform, {ALL: weights}))
        given.weights.write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
