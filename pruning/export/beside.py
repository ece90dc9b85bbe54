"""Dense and pruned, in float32 and in int8, side by side as files of one target: size, memory, latency, quality."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING, Any

import pandas as pd

from pruning.core.options import Numbers
from pruning.core.progress import Track, silently
from pruning.core.units import in_bytes
from pruning.core.words import table_of
from pruning.data.batches import Pairs
from pruning.data.windows import Batches
from pruning.evaluation.latency import compared_latencies
from pruning.evaluation.measures import loss_of
from pruning.evaluation.memory import NUMBERS
from pruning.export.elsewhere import stand_in
from pruning.export.targets import TARGETS, Exported, exported, quietly
from pruning.extras import needed
from pruning.models.base import Measurable, expect_measurable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Beside:
    """Models as files of one target, side by side.

    Attributes:
        target: One of `TARGETS`.
        files: (model, numbers) → its files.
        table: A row for each: `model`, `numbers`, `parameters`, `bytes` of the files, bytes of memory for `weights`,
            `state` and `activations` (one step of one example), the `arena` that the target plans, `difference` from
            the model, `seconds` and `spread` of a step, `speed_up` and `error` against the first model in float32, and
            with data `loss` and `quality` on so many `tokens` (targets that count), else 0.
        quality: What `quality` is: `perplexity`, a metric, or the loss.
    """

    target: str
    files: Mapping[tuple[str, Numbers], Exported] = field(repr=False)
    table: pd.DataFrame
    quality: str

    def rows(self) -> list[dict[str, Any]]:
        """Return the table's rows by name."""
        return [{str(name): value for name, value in row.items()} for row in self.table.to_dict("records")]

    def cells(self) -> list[dict[str, str]]:
        """Return the table's rows as they are shown."""
        return [
            {
                "model": f"{row['model']} {row['numbers']}",
                "file": in_bytes(row["bytes"]),
                "memory": in_bytes(row["weights"] + row["state"] + row["activations"]),
                "ms/step": f"{1000 * row['seconds']:.3g}",
                "speed-up": f"{row['speed_up']:.2f} ± {row['error']:.2f}",
                **({} if math.isnan(row["quality"]) else {self.quality: f"{row['quality']:.4g}"}),
                "differs": f"{row['difference']:.0e}",
            }
            for row in self.rows()
        ]

    def __str__(self) -> str:
        """Return a line on each."""
        cells = self.cells()
        return "\n".join(table_of(list(cells[0]), [list(row.values()) for row in cells]))

    def card(self) -> str:
        """Return what the files are, what they need and what they are worth, as Markdown."""
        cells = self.cells()
        heads = list(cells[0])
        lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *(list(row.values()) for row in cells)]
        parts = [
            ["", "weights", "state", "activations", "arena"],
            ["---", *["---:"] * 4],
            *(
                [
                    f"{row['model']} {row['numbers']}",
                    *(in_bytes(row[part]) for part in ("weights", "state", "activations")),
                    "not told" if math.isnan(row["arena"]) else in_bytes(row["arena"]),
                ]
                for row in self.rows()
            ),
        ]
        return _CARD.format(
            words=TARGETS[self.target].words,
            table="\n".join(f"| {' | '.join(line)} |" for line in lines),
            memory="\n".join(f"| {' | '.join(line)} |" for line in parts),
            threads=next(iter(self.files.values())).threads,
        )

    def plot(self) -> "Figure":
        """Return a figure of matplotlib's: size, memory, latency and quality of each, as bars.

        Raises:
            ModuleNotFoundError: Without matplotlib, which the extra `plots` brings.
        """
        memory = self.table["weights"] + self.table["state"] + self.table["activations"]
        panels = {"files, KiB": self.table["bytes"] / 1024, "memory of a step, KiB": memory / 1024}
        panels["ms a step"] = 1000 * self.table["seconds"]
        if self.table["quality"].notna().all():
            panels[self.quality] = self.table["quality"]
        figure: Figure = needed("matplotlib.figure", "plots").Figure(
            figsize=(3.0 * len(panels), 0.5 * len(self.table) + 1.4), layout="constrained"
        )
        names = self.table["model"] + " " + self.table["numbers"]
        colors = ["C0" if numbers == "float32" else "C1" for numbers in self.table["numbers"]]
        for axes, (title, values) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
            bars = axes.barh(names, values, color=colors)
            axes.bar_label(bars, fmt="%.3g", padding=2)
            axes.set(title=title, xlim=(0, 1.3 * values.max()))
        axes.invert_yaxis()
        return figure


def side_by_side(
    models: Mapping[str, Measurable],
    target: str,
    *,
    data: Any = None,
    tokens: int | None = None,
    repeats: int = 100,
    converter: str | None = None,
    threads: int = 1,
    track: Track = silently,
) -> Beside:
    """Return models as files of a target in float32 and int8, each checked, measured in turns and judged.

    >>> import torch, pruning
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3))
    >>> dense = pruning.adapt(network, torch.ones(4, 2), loss=nn.CrossEntropyLoss())
    >>> smaller = pruning.select(dense, {"0": torch.tensor([1, 4])})
    >>> beside = side_by_side({"dense": dense, "pruned": smaller}, "onnx", repeats=10)
    >>> beside.table[["model", "numbers", "weights"]].values.tolist()[::2]
    [['dense', 'float32', 156], ['pruned', 'float32', 60]]

    Args:
        models: Name → model of a built-in family, or what `adapt` or `prune` gave. The first is what others are
            compared with.
        target: `onnx`, `openvino`, `executorch` or `litert`.
        data: Batches to judge the files on, none by default; those of fixed shapes read them step by step.
        tokens: After how many of the targets of `data` judging ends, with the batch that reaches them, the same for
            all; it reads all by default.
        repeats: Turns in which a step of each is timed.
        converter: For LiteRT; see `exported`.
        threads: On how many they run here.
        track: Shows progress.

    Raises:
        ValueError: As `exported`, and for fewer than one token.
    """
    if tokens is not None and tokens < 1:
        raise ValueError(f"Expected to judge on at least 1 token, got {tokens}.")
    for model in models.values():
        expect_measurable(model)
    names: list[tuple[str, Numbers]] = [(name, numbers) for name in models for numbers in NUMBERS]
    files = {
        (name, numbers): exported(models[name], target, numbers=numbers, converter=converter, threads=threads)
        for name, numbers in track(names, "export, files")
    }
    twins = {" ".join(key): stand_in(models[key[0]], one) for key, one in files.items()}
    with quietly():
        times = compared_latencies(twins, to=" ".join(names[0]), batch=1, repeats=repeats, track=track)
    judged_on = None if data is None else enough(next(iter(models.values())), data, tokens)
    rows, quality = [], "quality"
    for (name, numbers), one in files.items():
        loss, worth, count = math.nan, math.nan, 0
        if judged_on is not None:
            judged = loss_of(twins[f"{name} {numbers}"], judged_on, track=track, what=f"{name}, {numbers}")
            loss, count = judged.mean, judged.tokens
            metric = next(iter(judged.metrics), None)
            by_metric = metric is not None and not (judged.likelihood and models[name].example_dim == 1)
            quality = str(metric) if by_metric else "perplexity" if judged.likelihood else "loss"
            worth = judged.metrics[str(metric)] if by_metric else judged.perplexity if judged.likelihood else loss
        measured = times[f"{name} {numbers}"]
        rows.append(
            {
                "model": name,
                "numbers": numbers,
                "parameters": sum(parameter.numel() for parameter in models[name].parameters()),
                "bytes": one.bytes,
                **vars(one.memory),
                "arena": math.nan if one.arena is None else float(one.arena),
                "difference": one.difference,
                **{what: getattr(measured, what) for what in ("seconds", "spread", "speed_up", "error")},
                "loss": loss,
                "quality": worth,
                "tokens": count,
            }
        )
    return Beside(target, files, pd.DataFrame(rows), quality)


def enough(model: Measurable, data: Any, tokens: int | None) -> Batches:
    """Return the first batches, as many as it takes for so many targets that count, or all; the same whenever read."""
    batches = Pairs(model.pairs(data), tuple, seed=0)
    if tokens is None:
        return batches
    counts = accumulate(model.count(targets) for _, targets in batches)
    return Pairs(batches, tuple, most=1 + sum(1 for _ in takewhile(lambda count: count < tokens, counts)))


_CARD = """{words}.

{table}

{memory}

- Memory: one step of one example. Weights: the numbers in the files, with the scales of int8. State: what is carried
  from step to step. Activations: the most that is alive at once beside those, operation by operation. Arena: what the
  target itself plans for all but the weights; what its runtime adds of its own (code, tables, rearranged copies of
  matrices) is in neither.
- Latency: one step of one example on this machine's CPU, median, all files in turns; speed-up: against the first row,
  with its standard error; threads: {threads}.
- Differs: outputs from the model's on its example, relative to the largest.
"""
