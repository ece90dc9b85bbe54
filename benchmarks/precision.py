"""How well removal is predicted, by layer and family: divergence, labels and the field's criteria against the truth.

`python -m benchmarks.precision --into FOLDER...`, with folders of `python -m benchmarks.subjects`. Truth is the loss
increase of every neuron on all of the judged text. Every figure is the Spearman correlation within layers, averaged
over them, with its 95% interval over neurons; the second one is divided by the root of the truth's reliability, which
is what a perfect prediction would reach. With `--alternating` every other piece of the labelled and the judged text
together is the truth and the others are labelled, so that both are of the same documents. With `--kept` nothing is
measured that a folder lacks.
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks import asked
from benchmarks.removals import Subject, kept, read, table
from pruning.ablation.intervention import Intervention, intervention
from pruning.fusion.learned import bootstrapped, interval, learn, measured, within_layers
from pruning.signals.schemas import CRITERIA, SIGNALS

MEASURED = (3_000,)
"""Tokens that `intervention` measures the divergence on."""
LABELS = (10_000, 20_000, 37_000)
"""Labelled tokens of the label term, besides all."""
OURS = "`intervention`"
LEARNED = "learned fusion, held-out neurons"
BESIDE = ("taylor_first", "gate_fisher_sampled", "weight_fisher", "snip", "kfac_obs", "surgeon")
"""What it may weigh besides our columns."""
Predictions = dict[str, np.ndarray]


def said(folder: Path, subject: Subject | None, tokens: int, text: str = "labelled") -> pd.DataFrame | None:
    """Return what the signal says of all labelled text beside training text; None where it is to be measured."""

    def made() -> pd.DataFrame:
        assert subject is not None
        labels, settings = subject.labels(text), Intervention(tokens=tokens)
        return intervention(subject.model, labels, labels, settings, trained=subject.calibration())

    name = f"intervention-{tokens}" + (f"-{text}" if text != "labelled" else "")
    return table(folder, name, made) if subject or (folder / f"{name}.parquet").is_file() else None


@dataclass(frozen=True)
class Truth:
    """The loss increase of every neuron of a dense model, (neurons,), on even and odd pieces, and on all."""

    layers: np.ndarray
    even: np.ndarray
    odd: np.ndarray
    increase: np.ndarray
    error: np.ndarray
    tokens: int

    @classmethod
    def of(cls, folder: Path) -> "Truth":
        """Return what a folder knows."""
        judged = read(folder, "judged")
        layers, pieces = _layers(folder), judged.increase
        error = pieces.std(axis=0, ddof=1) / math.sqrt(len(pieces))
        return cls(layers, pieces[::2].mean(0), pieces[1::2].mean(0), pieces.mean(0), error, int(judged.tokens.sum()))

    def reliability(self, layer: str) -> float:
        """Return how far the ranking of a layer would repeat itself on as much other text (Spearman and Brown)."""
        of = self.layers == layer
        rho = within_layers(self.layers[of], self.even[of], self.odd[of])
        return 2 * rho / (1 + abs(rho))


def predictions(folder: Path, truth: Truth, subject: Subject | None) -> Predictions:
    """Return what each way to predict says of every neuron."""
    train, held = read(folder, "train"), read(folder, "labelled")
    ours = {tokens: said(folder, subject, tokens) for tokens in MEASURED}
    near, whole = train.divergence[0], held.label_term.mean(0)
    rows: Predictions = {
        "loss increase, 5,000 training tokens": train.increase[0],
        "loss increase, 5,000 held-out tokens": held.increase[0],
        "loss increase, all held-out tokens": held.increase.mean(0),
        "divergence, 5,000 training tokens": near,
        "divergence, 10,000 training tokens": train.divergence.mean(0),
        "divergence, all held-out tokens": held.divergence.mean(0),
    }
    pieces = np.cumsum(held.tokens)
    for tokens in (*LABELS, int(pieces[-1])):
        if tokens <= pieces[-1]:
            few = held.label_term[: max(1, int((pieces <= tokens * 1.05).sum()))].mean(0)
            rows[f"label term, {tokens:,} held-out tokens"] = few
            rows[f"divergence (5,000 training tokens) + label term, {tokens:,}"] = near + few
    rows["label term, 10,000 training tokens"] = train.label_term.mean(0)
    rows["divergence (5,000 training tokens) + half of the label term"] = near + whole / 2
    rows["divergence (10,000 training tokens) + label term"] = train.divergence.mean(0) + whole
    rows["divergence + label term, all held-out tokens"] = held.divergence.mean(0) + whole
    for tokens, frame in ours.items():
        if frame is not None:
            rows[f"its curvature alone, {tokens:,}"] = frame["curvature"].to_numpy()
            rows[f"its divergence + its label term, nothing shrunk, {tokens:,}"] = (
                frame["divergence"] + frame["label_term"]
            ).to_numpy()
            rows[f"{OURS}, {tokens:,}"] = frame["importance"].to_numpy()
    if (folder / "signals.parquet").is_file():
        signals = pd.read_parquet(folder / "signals.parquet")
        rows |= {f"`{name}`": signals[name].to_numpy() for name in (*SIGNALS, "surgeon", *CRITERIA)}
        frame = ours[MEASURED[0]]
        if frame is not None:
            rows[LEARNED] = learned(signals, frame, truth)
    return rows


def alternating(folder: Path, share: float = 0.75) -> tuple[Truth, Predictions]:
    """Return the truth of every other piece, and what the pieces between say; `share` of the label term counts."""
    texts = [read(folder, text) for text in ("labelled", "judged")]
    increase, divergence, term = (
        np.concatenate([getattr(text, name) for text in texts]) for name in ("increase", "divergence", "label_term")
    )
    judged, near = increase[1::2], read(folder, "train").divergence.mean(0)
    error = judged.std(axis=0, ddof=1) / math.sqrt(len(judged))
    tokens = int(np.concatenate([text.tokens for text in texts])[1::2].sum())
    truth = Truth(_layers(folder), judged[::2].mean(0), judged[1::2].mean(0), judged.mean(0), error, tokens)
    held, labels = divergence[::2].mean(0), term[::2].mean(0)
    return truth, {
        "loss increase, held-out pieces": increase[::2].mean(0),
        "divergence, 10,000 training tokens": near,
        "divergence, held-out pieces": held,
        "label term, held-out pieces": labels,
        f"divergence, 10,000 training tokens, + {share} × label term": near + share * labels,
        f"divergence, held-out pieces, + {share} × label term": held + share * labels,
    }


def _layers(folder: Path) -> np.ndarray:
    return np.asarray(pd.read_parquet(folder / "judged-0.parquet")["layer"].to_numpy(dtype=str))


def learned(signals: pd.DataFrame, ours: pd.DataFrame, truth: Truth) -> np.ndarray:
    """Return the scores of neurons by weights fitted to the truth without them, of signals, criteria and ours."""
    parts = ours.assign(intervention=ours["importance"])[["intervention", "divergence", "curvature", "label_term"]]
    frame = signals.assign(**{name: column.to_numpy() for name, column in parts.items()})
    varies = [name for name in (*BESIDE, *parts) if frame[name].notna().all()]
    oracle = signals[["layer", "neuron"]].assign(loss_increase=truth.increase, standard_error=truth.error)
    return learn(frame, measured(frame[["layer", "neuron", *varies]], oracle), varies, folds=5, seed=1).held_out


def rows_of(truth: Truth, predicted: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Return a row a prediction: Spearman, its interval, and over √reliability, of all layers and of each."""
    layers = [str(layer) for layer in dict.fromkeys(truth.layers)]
    counts = [int((truth.layers == layer).sum()) for layer in layers]
    reliable = np.array([truth.reliability(layer) for layer in layers])
    root = math.sqrt(float(np.average(reliable, weights=counts)))
    drawn = bootstrapped(truth.layers, truth.increase, predicted, seed=1)
    rows = []
    for name, values in predicted.items():
        each = []
        for layer in layers:
            of = truth.layers == layer
            each.append(within_layers(truth.layers[of], values[of], truth.increase[of]))
        whole = float(np.average(each, weights=counts))
        low, high = interval(drawn[name])
        parts = {layer: part / math.sqrt(max(r, 1e-9)) for layer, part, r in zip(layers, each, reliable, strict=True)}
        rows.append({"predictor": name, "spearman": whole, "low": low, "high": high, "over": whole / root, **parts})
    return pd.DataFrame(rows)


def report(name: str, truth: Truth, rows: pd.DataFrame) -> list[str]:
    """Return a model's table as Markdown."""
    layers = [str(layer) for layer in dict.fromkeys(truth.layers)]
    reliability = ", ".join(f"{layer} {truth.reliability(layer):.2f}" for layer in layers)
    lines = [f"{name}: {len(truth.layers)} neurons, truth of {truth.tokens:,} tokens, reliability {reliability}", ""]
    lines += ["| predictor | Spearman | over √reliability | " + " | ".join(layers) + " |",
              "|---|---|---:|" + "---:|" * len(layers)]  # fmt: skip
    for row in rows.to_dict("records"):
        cells = [f"{row['spearman']:.2f} [{row['low']:.2f}, {row['high']:.2f}]", f"{row['over']:.2f}"]
        cells += [f"{row[layer]:.2f}" for layer in layers]
        lines.append("| " + " | ".join([row["predictor"], *cells]) + " |")
    return lines


def main() -> None:
    """Measure what the folders lack of the signal and print a table a model."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--into", type=asked.there, nargs="+", required=True, help="folders of dense models")
    parser.add_argument("--kept", action="store_true", help="report what is there, and measure nothing")
    parser.add_argument("--device", type=asked.device, default="cpu", help="where signals are measured")
    parser.add_argument("--alternating", action="store_true", help="label every other piece, judge by those between")
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    for folder in given.into:
        if given.alternating:
            truth, predicted = alternating(folder)
            print("\n".join(report(folder.name, truth, rows_of(truth, predicted))), flush=True)
            continue
        subject = None if given.kept else kept(folder, given.device)
        truth = Truth.of(folder)
        print("\n".join(report(folder.name, truth, rows_of(truth, predictions(folder, truth, subject)))), flush=True)


if __name__ == "__main__":
    main()
