"""What predicts a *set* of neurons to keep: the surgeon's order, labels, measured sets, and swaps.

`python -m benchmarks.sets --data data` after the default run, or `--corpus FOLDER --checkpoint FILE` with published
splits and a dense LSTM of their vocabulary. Perplexity of what is left once every reader is refitted (ridge), no
training, on validation text that nothing else reads: its first third stands for text held out from training, whose
labels the label term may use. Every way chooses among all layers, as the surgeon does.

- `labels s`: the surgeon's cost plus s times the first-order rise of the loss, E[γ hᵀ] with true labels, carried
  through the refits as the second-order one is;
- `fitted`: sets near the surgeon's are drawn, removed, repaired and measured (divergence from the dense model, no
  labels), a line through the surgeon's own prediction and a ridge over neurons fitted, and the order made anew with it;
- `swaps`: neurons near the threshold change places wherever the measured divergence after the repair falls;
- `own swaps`: they change places wherever the surgeon's own prediction falls (`pruning.signals.surgeon.swapped`).

Every cell is kept in `--results` as soon as it is measured.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import asked
from benchmarks.repair import CALIBRATION, SENSITIVE, STATES, Bench, opened
from pruning.core.modes import carried, differentiating, evaluating
from pruning.core.neurons import Keep
from pruning.core.statistics import merged
from pruning.data.windows import Windows
from pruning.evaluation.measures import loss_of
from pruning.models.base import LanguageModel
from pruning.repair.reconstruction import reconstruct
from pruning.signals.activations import Covariances, activations
from pruning.signals.sensitivity import sensitivities
from pruning.signals.surgeon import LEAST, swapped
from tasks.common.models import read_language_model
from tasks.common.tables import read_table
from tasks.common.windows import first_token
from tasks.shown.console import track

Facts = dict[str, float]
Way = Callable[[], tuple[Keep, Facts]]
FLOOR, DAMPING = 8, 1e-4
SHARES = (0.0, 0.5, 1.0)
"""Of the label term."""
DRAWN, NOISE, PENALTIES = 96, 0.15, (0.01, 0.1, 1.0, 10.0)
"""Sets that are measured; the noise in the surgeon's places, of all places, that they are drawn with; ridges tried."""
SWAPS, PAIRS = 96, 2
"""Proposals, and how many pairs change places in one."""
MEASURED, JUDGED = 3_000, 20_000
"""Tokens that a set's divergence is measured on, of training text; tokens that results are judged by."""


def order_of(
    layers: dict[str, tuple[Tensor, Tensor]],
    first: dict[str, Tensor] | None = None,
    linear: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return each neuron's place in the order of removal, 1 first, as `removal_order`, with further terms in the cost.

    Args:
        layers: Layer → (C, M), as of `removal_order`.
        first: Layer → E[γ hᵀ], (width, width), γ by row. What removing j and refitting moves is h ← h + b (h_j − …), so
            the loss rises by bᵀ-weighted entries of its column, and row j is handed on as readers' columns are.
        linear: Layer → what each neuron's removal adds, (width,), whatever else is removed.
    """
    state = {}
    for name, (covariance, gram) in layers.items():
        strength = (DAMPING * covariance.diagonal().mean()).clamp(min=LEAST)
        inverse = torch.linalg.inv(covariance + strength * torch.eye(len(covariance), dtype=torch.float64))
        known = torch.zeros_like(gram) if first is None else first[name].clone()
        extra = torch.zeros(len(gram), dtype=torch.float64) if linear is None else linear[name]
        state[name] = [inverse, gram.clone(), known, extra, torch.ones(len(gram), dtype=torch.bool)]
    places = {name: torch.zeros(len(gram), dtype=torch.float64) for name, (_, gram) in layers.items()}
    for place in range(1, sum(map(len, places.values())) + 1):
        best, name, neuron = math.inf, "", 0
        for layer, (inverse, gram, known, extra, alive) in state.items():
            diagonal = inverse.diagonal()
            cost = 0.5 * gram.diagonal().clamp(min=0) / diagonal + extra
            if first is not None:  # h_j becomes Σ b_k h_k, and γ_j reads it: Σ_k b_k E[γ_j h_k], b_j = −1
                cost = cost - (known * inverse).sum(1) / diagonal
            cost = cost.masked_fill(~alive, math.inf)
            value, index = cost.min(0)
            if value < best:
                best, name, neuron = value.item(), layer, int(index)
        if not name:
            raise ValueError("Expected a finite cost of some neuron, got none.")
        inverse, gram, known, _, alive = state[name]
        moved = -inverse[:, neuron] / inverse[neuron, neuron]
        moved[~alive], moved[neuron] = 0, -1
        alive[neuron], places[name][neuron] = False, place
        row = gram[neuron].clone()
        gram += torch.outer(moved, row) + torch.outer(row, moved) + row[neuron] * torch.outer(moved, moved)
        known += torch.outer(moved, known[neuron].clone())
        inverse -= torch.outer(inverse[:, neuron], inverse[neuron]) / inverse[neuron, neuron]
        inverse[~alive], inverse[:, ~alive] = 0, 0
        inverse.diagonal()[~alive] = 1
    return places


@dataclass
class Known:
    """What is known of a dense model from one seed's training text, and from held-out labels."""

    bench: Bench
    model: LanguageModel
    seed: int

    @cached_property
    def windows(self) -> Windows:
        """Training text, beginning elsewhere for each seed."""
        return self.bench.windows("train", **CALIBRATION, seed=self.seed)

    @cached_property
    def states(self) -> Covariances:
        """Covariances, for the repair."""
        return activations(self.model, self.windows, activation_samples=STATES, bins=32, track=track)[1]

    @cached_property
    def layers(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Layer → (C, M)."""
        moments = sensitivities(self.model, self.windows, batches=SENSITIVE, seed=self.seed, track=track)
        return {
            name: (merged(groups).matrix.double(), merged(moments[name]).second_moment.double())
            for name, groups in self.states.items()
        }

    @cached_property
    def order(self) -> dict[str, Tensor]:
        """The surgeon's."""
        return order_of(self.layers)

    @cached_property
    def first(self) -> dict[str, Tensor]:
        """E[γ (h − mean)ᵀ] with true labels of held-out text, γ by row, nat/token."""
        held = self.bench.windows("held", **CALIBRATION)
        means = {name: merged(groups).mean.double() for name, groups in self.states.items()}
        sums = {name: torch.zeros(len(mean), len(mean), dtype=torch.float64) for name, mean in means.items()}
        state, tokens = None, 0
        with differentiating(self.model):
            for window in held:
                before = carried(state)
                outputs = self.model.outputs(window.tokens, before)
                logits, taps, state = self.model.tapped(window.tokens, before)
                loss = self.model.judged(logits, window.targets, reduction="sum")
                for name, gradient in zip(taps, torch.autograd.grad(loss, list(taps.values())), strict=True):
                    sums[name] += gradient.flatten(0, 1).double().T @ (
                        outputs[name].flatten(0, 1).double() - means[name]
                    )
                tokens += int((window.targets >= 0).sum())
        return {name: total / tokens for name, total in sums.items()}

    @cached_property
    def few(self) -> list[tuple[Tensor, Tensor]]:
        """Training text that divergences are measured on, and the dense model's logarithms."""
        windows = Windows(
            torch.cat([window.tokens for window in self.windows])[: math.ceil(MEASURED / 32)].T.flatten(),
            first=self.bench.first,
            batch=32,
            bptt=100,
        )
        with torch.no_grad(), evaluating(self.model):
            return [(window.tokens, F.log_softmax(self.model(window.tokens)[0], -1)) for window in islice(windows, 1)]

    def divergence(self, keep: Keep) -> float:
        """Return KL(dense ‖ smaller and repaired), nat/token, on a few tokens of training text."""
        smaller, total, count = self.repaired(keep), 0.0, 0
        with torch.no_grad():
            for tokens, dense in self.few:
                answers = F.log_softmax(smaller(tokens)[0], -1)
                total += float((dense.exp() * (dense - answers)).sum())
                count += tokens.numel()
        return total / count

    def repaired(self, keep: Keep) -> LanguageModel:
        """Return the smaller model, its readers refitted."""
        return reconstruct(self.model, keep, self.states, repair="ridge").eval()

    def predicted(self, keep: Keep) -> float:
        """Return what the surgeon's model says of a set: ½ tr(M_PP Σ), nat/token."""
        total = 0.0
        for name, (covariance, gram) in self.layers.items():
            gone = torch.ones(len(gram), dtype=torch.bool)
            gone[keep[name]] = False
            lost, left = gone.nonzero().flatten(), (~gone).nonzero().flatten()
            strength = (DAMPING * covariance.diagonal().mean()).clamp(min=LEAST)
            damped = covariance + strength * torch.eye(len(covariance), dtype=torch.float64)
            error = damped[lost][:, lost] - damped[lost][:, left] @ torch.linalg.solve(
                damped[left][:, left], damped[left][:, lost]
            )
            total += 0.5 * float((gram[lost][:, lost] * error).sum())
        return total


def kept_by(order: dict[str, Tensor], share: float) -> Keep:
    """Return the neurons removed last, at least `FLOOR` of each layer."""
    every = torch.cat(list(order.values()))
    safe = {name: places >= places.sort(descending=True).values[FLOOR - 1] for name, places in order.items()}
    rank = torch.cat([places.masked_fill(safe[name], math.inf) for name, places in order.items()])
    bound = rank.sort(descending=True).values[round(share * len(every)) - 1]
    parts = torch.split(rank >= bound, [len(places) for places in order.values()])
    return {name: part.nonzero().flatten() for name, part in zip(order, parts, strict=True)}


def fitted(known: Known, share: float) -> tuple[Keep, Facts]:
    """Return the set that measured sets near the surgeon's speak for, and how well they were predicted."""
    random = torch.Generator().manual_seed(known.seed)
    names, sizes = list(known.order), [len(places) for places in known.order.values()]
    places = torch.cat(list(known.order.values()))
    rows, wanted, told = [], [], []
    for _ in track(range(DRAWN), "sets"):
        noise = NOISE * len(places) * torch.randn(len(places), generator=random, dtype=torch.float64)
        keep = kept_by(dict(zip(names, torch.split(places + noise, sizes), strict=True)), share)
        gone = torch.cat([torch.ones(size, dtype=torch.float64) for size in sizes])
        for name, start in zip(names, np.cumsum([0, *sizes[:-1]]), strict=True):
            gone[start + keep[name]] = 0
        rows.append(gone)
        wanted.append(known.divergence(keep))
        told.append(known.predicted(keep))
    x, y, q = torch.stack(rows).numpy(), np.array(wanted), np.array(told)
    scores = {penalty: _cross_validated(x, y, q, penalty) for penalty in PENALTIES}
    penalty = max(scores, key=lambda one: scores[one])
    slope, weights = _fit(x, y, q, penalty)
    linear = dict(zip(names, torch.split(torch.from_numpy(weights / max(slope, 1e-3)), sizes), strict=True))
    facts = {
        "penalty": penalty,
        "fitted correlation": scores[penalty],
        "surgeon's correlation": float(np.corrcoef(q, y)[0, 1]),
        "slope": slope,
    }
    return kept_by(order_of(known.layers, linear=linear), share), facts


def _fit(x: np.ndarray, y: np.ndarray, q: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
    """Return the slope over the surgeon's prediction, and what each neuron adds, ridge."""
    centred, wanted, told = x - x.mean(0), y - y.mean(), q - q.mean()
    slope = float(told @ wanted / (told @ told))
    gram = centred @ centred.T + penalty * len(y) * np.mean(x.var(0)) * np.eye(len(y))
    return slope, centred.T @ np.linalg.solve(gram, wanted - slope * told)


def _cross_validated(x: np.ndarray, y: np.ndarray, q: np.ndarray, penalty: float) -> float:
    """Return the correlation of measured sets with what a fit to the others predicts, four parts."""
    parts, held = np.arange(len(y)) % 4, np.empty(len(y))
    for part in range(4):
        fit, test = parts != part, parts == part
        slope, weights = _fit(x[fit], y[fit], q[fit], penalty)
        held[test] = y[fit].mean() + slope * (q[test] - q[fit].mean()) + (x[test] - x[fit].mean(0)) @ weights
    return float(np.corrcoef(held, y)[0, 1])


def exchanged(known: Known, share: float) -> tuple[Keep, Facts]:
    """Return the surgeon's set after proposals that lower the measured divergence after the repair."""
    random = np.random.default_rng(known.seed)
    keep, taken = kept_by(known.order, share), 0
    best = start = known.divergence(keep)
    bound = (1 - share) * sum(map(len, known.order.values()))
    near = {name: np.exp(-(((p.numpy() - bound) / (0.15 * bound)) ** 2) / 2) + 1e-6 for name, p in known.order.items()}
    for _ in track(range(SWAPS), "swaps"):
        name = list(keep)[random.integers(len(keep))]
        inside = keep[name].numpy()
        outside = np.setdiff1d(np.arange(len(near[name])), inside)
        if min(len(inside), len(outside)) < PAIRS:
            continue
        leaving = random.choice(inside, PAIRS, replace=False, p=near[name][inside] / near[name][inside].sum())
        coming = random.choice(outside, PAIRS, replace=False, p=near[name][outside] / near[name][outside].sum())
        tried = {**keep, name: torch.from_numpy(np.sort(np.union1d(np.setdiff1d(inside, leaving), coming)))}
        value = known.divergence(tried)
        if value < best:
            keep, best, taken = tried, value, taken + 1
    return keep, {"from": start, "to": best, "taken": float(taken)}


def own_swaps(known: Known, share: float) -> tuple[Keep, Facts]:
    """Return the surgeon's set after swaps that lower its own prediction."""
    keep = kept_by(known.order, share)
    for name, (covariance, gram) in known.layers.items():
        gone = torch.ones(len(gram), dtype=torch.bool)
        gone[keep[name]] = False
        lost = swapped(covariance, gram, gone.nonzero().flatten(), damping=DAMPING)
        left = torch.ones(len(gram), dtype=torch.bool)
        left[lost] = False
        keep[name] = left.nonzero().flatten()
    return keep, {}


def cells(known: Known, keeps: list[float], searched: list[float]) -> Iterator[tuple[str, Way]]:
    """Yield the name and the way of all that one seed measures."""
    for share in keeps:
        for labels in SHARES:
            yield f"{share}/labels {labels:g}/{known.seed}", partial(with_labels, known, share, labels)
        yield f"{share}/own swaps/{known.seed}", partial(own_swaps, known, share)
    for share in searched:
        yield f"{share}/fitted/{known.seed}", partial(fitted, known, share)
        yield f"{share}/swaps/{known.seed}", partial(exchanged, known, share)


def with_labels(known: Known, share: float, labels: float) -> tuple[Keep, Facts]:
    """Return the set of the surgeon's order with so much of the label term."""
    first = {name: labels * moments for name, moments in known.first.items()} if labels else None
    return kept_by(order_of(known.layers, first) if labels else known.order, share), {}


def measure(bench: Bench, keeps: list[float], searched: list[float], seeds: list[int]) -> None:
    """Measure every cell that is missing."""
    model, judged = bench.dense.decoupled().eval(), bench.windows("judged", batch=10, bptt=100)
    bench.cell("dense", lambda: {"perplexity": loss_of(model, judged).perplexity})

    def measured(known: Known, way: Way) -> Facts:
        keep, facts = way()
        return {"perplexity": loss_of(known.repaired(keep), judged).perplexity, **facts}

    for seed in seeds:
        known = Known(bench, model, seed)
        for name, way in cells(known, keeps, searched):
            bench.cell(name, partial(measured, known, way))


def report(bench: Bench, keeps: list[float]) -> None:
    """Print perplexities over seeds, and how far each way is from the surgeon, in its seeds' standard errors."""
    ways = list(dict.fromkeys(name.split("/")[1] for name in bench.cells if "/" in name))
    print(f"\ndense: {bench.cells['dense']['perplexity']:.1f}\n")
    print("| keep | " + " | ".join(ways) + " |\n|---|" + "---:|" * len(ways))
    for keep in keeps:
        row = []
        for way in ways:
            of_seeds = {name.split("/")[2]: cell["perplexity"] for name, cell in bench.cells.items()
                        if name.startswith(f"{keep}/{way}/")}  # fmt: skip
            if not of_seeds:
                row.append("–")
                continue
            less = [value - bench.cells[f"{keep}/labels 0/{seed}"]["perplexity"] for seed, value in of_seeds.items()]
            error = statistics.stdev(less) / math.sqrt(len(less)) if len(less) > 1 else math.nan
            paired = "" if way == "labels 0" else f" ({statistics.mean(less):+.2f} ± {error:.2f})"
            row.append(f"{statistics.mean(of_seeds.values()):.1f}{paired}")
        print(f"| {keep:.0%} | " + " | ".join(row) + " |")


def main() -> None:
    """Measure every cell that is missing and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sets", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=asked.results, help="results of a run with a language model")
    parser.add_argument("--corpus", type=asked.splits, help="or a folder of published splits")
    parser.add_argument("--checkpoint", type=asked.checkpoint, help="and a dense model, its vocabulary beside it")
    parser.add_argument(
        "--keep", type=asked.share, nargs="+", default=[0.75, 0.5, 0.35], help="shares of neurons to keep"
    )
    parser.add_argument("--search", type=asked.share, nargs="*", default=[0.5], help="shares that sets are measured at")
    parser.add_argument(
        "--seeds", type=asked.index, nargs="*", default=[0, 1, 2], help="seeds of calibration to measure"
    )
    parser.add_argument("--results", type=asked.file, default="sets.jsonl", help="where cells are kept")
    given = parser.parse_args()
    if (given.data is None) == (given.checkpoint is None):
        parser.error("Expected either --data, or --corpus and --checkpoint.")
    torch.set_flush_denormal(True)
    bench = _of_run(given.data, given.results) if given.data else opened(given.corpus, given.checkpoint, given.results)
    valid = bench.splits["valid"]
    bench.splits |= {"held": valid[: len(valid) // 3], "judged": valid[-JUDGED:]}
    measure(bench, given.keep, given.search, given.seeds)
    report(bench, given.keep)


def _of_run(data: Path, results: Path) -> Bench:
    """Return the bench of the pipeline's own dense model, with what was measured before."""
    corpus = read_table(data / "prepare/corpus.parquet")
    splits = {
        str(name): torch.tensor(rows["token"].to_numpy(), dtype=torch.long) for name, rows in corpus.groupby("split")
    }
    dense, first = read_language_model(data / "train/model"), first_token(data / "prepare/vocabulary.parquet")
    bench = Bench(dense, splits, first, results)
    for line in results.read_text(encoding="utf-8").splitlines() if results.is_file() else []:
        bench.cells |= json.loads(line)
    return bench


if __name__ == "__main__":
    main()
