"""Silent neurons, repair and budgets of energy in spiking and mixed language models, on the default corpus.

`python -m benchmarks.spiking --data FOLDER --state FOLDER [--families mixed snn] [--seeds 1 2 3]`: the corpus is that
of a default run (`FOLDER/prepare`), models are those of params.yaml's section `train` with the family changed, without
and with a least firing rate. Each trained model is then pruned to half of its neurons by the surgeon and repaired, its
readers alone, by imitation, and by imitation that also compares firing rates; and to half of its synaptic operations,
by a share of the neurons and by the budget. A job is kept as soon as it is done, so that the same command goes on from
where it was; the tables show what is known.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks import asked
from benchmarks.resumable import replaced
from pruning.core.neurons import Keep, select
from pruning.data.corpus import END_OF_LINE
from pruning.data.windows import Windows
from pruning.evaluation.energy import energy_of, firing_rates
from pruning.evaluation.measures import loss_of
from pruning.models import build, describe, rebuild, settings
from pruning.models.base import LanguageModel
from pruning.repair import imitation
from pruning.repair.imitation import Imitation, imitate
from pruning.repair.reconstruction import reconstruct
from pruning.selection.allocation import Allocation
from pruning.selection.budgets import budget_of
from pruning.selection.retention import keep_of, retention
from pruning.selection.spending import met
from pruning.signals.activations import Covariances, activations
from pruning.signals.sensitivity import sensitivities
from pruning.signals.surgeon import surgeon
from pruning.training.loop import train
from pruning.training.recipes import Recipe
from tasks.common.reading import read_yaml

CALIBRATION, JUDGED = 30, 20
"""Windows of training text to measure on; windows of validation text (batch 10, 100 steps) to judge by."""
IMITATION = Imitation(tokens=56_000, learning_rate=4e-3, warmup=0.05, clip=1.0)
KEEP, SHARE = 0.5, 0.5
"""Shares of the neurons, and of the synaptic operations, that are left."""
RATES = (0.0, 0.3)
"""What firing rates weigh in imitation."""
SILENT = 1e-4
"""Spikes a step below which a neuron counts as silent: fewer than two on the judged text."""


class Texts(NamedTuple):
    """The corpus as it is read."""

    train: Windows
    valid: Windows
    types: int


def texts_of(data: Path, learning: Mapping[str, Any]) -> Texts:
    """Return the corpus of a default run."""
    words = pd.read_parquet(data / "prepare/vocabulary.parquet")
    first = int(words.loc[words["text"] == END_OF_LINE, "token"].iloc[0])
    rows = pd.read_parquet(data / "prepare/corpus.parquet")
    tokens = {
        split: torch.tensor(rows.loc[rows["split"] == split, "token"].to_numpy(), dtype=torch.long)
        for split in ("train", "valid")
    }
    windows = Windows(tokens["train"], first=first, batch=learning["batch"], bptt=learning["bptt"])
    return Texts(windows, Windows(tokens["valid"], first=first, batch=10, bptt=100), len(words))


def trained(texts: Texts, learning: Mapping[str, Any], family: str, least_rate: float, seed: int) -> LanguageModel:
    """Return a model as the stage `train` makes it."""
    wanted = {**learning, "least_rate": least_rate}
    torch.manual_seed(seed)
    model = build(
        family, vocabulary=texts.types, **{name: wanted[name] for name in settings(family) if name != "vocabulary"}
    )
    model.expect(texts.train.targets)
    recipe = Recipe(**{field.name: learning[field.name] for field in fields(Recipe)})
    *_, last = train(model, texts.train, texts.valid, recipe=recipe, seed=seed)
    model.load_state_dict(last.best())
    return model.eval()


def facts_of(model: LanguageModel, texts: Texts) -> dict[str, Any]:
    """Return what a model is worth and costs on the judged text."""
    judged = [texts.valid[index] for index in range(min(JUDGED, len(texts.valid)))]
    energy = energy_of(model, judged)
    perplexity = loss_of(model, judged).perplexity
    return {"perplexity": perplexity, "operations": energy.synaptic_operations, "energy": energy.energy}


def dense_facts(model: LanguageModel, texts: Texts) -> dict[str, Any]:
    """Return the same and how its neurons fire."""
    judged = [texts.valid[index] for index in range(min(JUDGED, len(texts.valid)))]
    rates = firing_rates(model, [layer for layer in model.layers() if layer.kind == "snn"], judged)
    return facts_of(model, texts) | {
        "rate": {name: own.mean().item() for name, own in rates.items()},
        "silent": {name: (own < SILENT).double().mean().item() for name, own in rates.items()},
    }


def alike(smaller: LanguageModel, dense: LanguageModel, keep: Keep, texts: Texts) -> float:
    """Return, of the spikes of kept neurons in either model, how many are in both."""
    both = either = 0.0
    states: list[Any] = [None, None]
    for index in range(min(4, len(texts.valid))):
        tokens = texts.valid[index].tokens
        seen = [model.outputs(tokens, state) for model, state in zip((smaller, dense), states, strict=True)]
        states = [model.read(tokens, state) for model, state in zip((smaller, dense), states, strict=True)]
        for name in (name for name in keep if name.startswith("snn")):
            one, two = seen[0][name].bool(), seen[1][name][..., keep[name]].bool()
            both, either = both + (one & two).sum().item(), either + (one | two).sum().item()
    return both / max(either, 1.0)


def imitated(student: LanguageModel, dense: LanguageModel, keep: Keep, texts: Texts, share: float) -> LanguageModel:
    """Return what `imitate` makes of a model that also compares firing rates, by a share.

    Added to its loss is share × unit × the mean over spiking layers of ‖r − r'‖² / ‖r'‖², r and r' being the rates of
    the kept neurons in each column of a window, in both models; the unit is the loss of the first window.
    """
    names, unit = [name for name in keep if name.startswith("snn")], 0.0
    plain = imitation._imitation_loss

    def with_rates(learner: Any, alignment: Any, teacher: Any, *rest: Any) -> tuple[Tensor, Any]:
        nonlocal unit
        spikes: dict[tuple[int, str], Tensor] = {}
        handles = [
            model.get_submodule(name).register_forward_hook(
                lambda _module, _inputs, outputs, key=(side, name): spikes.__setitem__(key, outputs[0])
            )
            for side, model in enumerate((learner, teacher))
            for name in names
        ]
        loss, states = plain(learner, alignment, teacher, *rest)
        for handle in handles:
            handle.remove()
        parts = []
        for name in names:
            wanted = spikes[1, name][..., keep[name]].mean(0)
            apart = (spikes[0, name].mean(0) - wanted).square().sum()
            parts.append(apart / wanted.square().sum().clamp(min=1e-6))
        unit = unit or loss.item()
        return loss + share * unit * torch.stack(parts).mean(), states

    with patch.object(imitation, "_imitation_loss", with_rates if share else plain):
        return imitate(student, dense, texts.train, imitation=IMITATION)


def chosen(dense: LanguageModel, texts: Texts) -> tuple[pd.DataFrame, Covariances]:
    """Return the surgeon's order, and what the repair needs."""
    some = [texts.train[index] for index in range(CALIBRATION)]
    _, states = activations(dense, some, activation_samples=CALIBRATION, bins=32)
    return surgeon(states, sensitivities(dense, some, batches=20, seed=1), damping=1e-4), states


def kept(order: pd.DataFrame, dense: LanguageModel, **how: Any) -> Keep:
    """Return the neurons that stay, at least 8 of each layer."""
    allocation = Allocation(**{"retain": KEEP, "floor": 8, "scope": "absolute", **how})
    kinds = {layer.name: layer.kind for layer in dense.layers()}
    return keep_of(retention(order, allocation, variant="surgeon", by="importance", kinds=kinds))


def repaired(dense: LanguageModel, texts: Texts, order: pd.DataFrame, states: Covariances) -> dict[str, Any]:
    """Return what each repair makes of half of the neurons."""
    keep = kept(order, dense)
    ridge = reconstruct(dense, keep, states, repair="ridge")
    models = {"cut": select(dense, keep), "ridge": ridge}
    models |= {f"imitate, rates {share:g}": imitated(ridge, dense, keep, texts, share) for share in RATES}
    return {name: facts_of(own, texts) | {"alike": alike(own, dense, keep, texts)} for name, own in models.items()}


class Cut(NamedTuple):
    """A smaller model and the neurons that it kept."""

    model: LanguageModel
    keep: Keep


def within(dense: LanguageModel, texts: Texts, order: pd.DataFrame, states: Covariances) -> dict[str, Any]:
    """Return what is left of a model within half of its synaptic operations, both ways, repaired by ridge."""
    some = [texts.train[index] for index in range(20)]
    value = SHARE * energy_of(dense, some).synaptic_operations
    budget = budget_of(dense, kind="synaptic_operations", value=value, data=some)

    def made(keep: Keep) -> Cut:
        return Cut(reconstruct(dense, keep, states, repair="ridge"), keep)

    low, high = 0.05, 1.0  # the largest share whose measured operations are within the budget
    for _ in range(5):
        middle = (low + high) / 2
        spent = energy_of(made(kept(order, dense, retain=middle)).model, some).synaptic_operations
        low, high = (middle, high) if spent <= value else (low, middle)
    cuts = {
        "a share of the neurons": made(kept(order, dense, retain=low)),
        "the budget": met(lambda asked: made(kept(order, dense, budget=asked)), budget, some),
    }
    return {
        name: facts_of(cut.model, texts)
        | {"neurons": sum(cut.model.widths()), "spent": energy_of(cut.model, some).synaptic_operations / value}
        for name, cut in cuts.items()
    }


WORKS = {"repair": repaired, "budget": within}


def run(
    state: Path, texts: Texts, learning: Mapping[str, Any], wanted: tuple[str, float, int], *, pruned: bool
) -> None:
    """Do what is missing of one model's jobs, each kept as soon as it is done; only awake models are pruned."""
    family, least_rate, seed = wanted
    name = f"{family}-{least_rate:g}-{seed}"
    weights, file = state / f"{name}.safetensors", state / f"{name}.json"
    facts: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if not weights.exists():
        dense = trained(texts, learning, family, least_rate, seed)
        config, tensors = describe(dense)
        save_file({key: own.contiguous() for key, own in tensors.items()}, weights, {"config": json.dumps(config)})
    with safe_open(weights, framework="pt") as opened:
        dense = rebuild(json.loads(opened.metadata()["config"]), load_file(weights)).eval()
    if "dense" not in facts:
        facts["dense"] = dense_facts(dense, texts)
        replaced(file, json.dumps(facts, indent=1))
    missing = [what for what in WORKS if pruned and least_rate and what not in facts]
    order, states = chosen(dense, texts) if missing else (pd.DataFrame(), {})
    for what in missing:
        facts[what] = WORKS[what](dense, texts, order, states)
        replaced(file, json.dumps(facts, indent=1))
        print(name, what, facts[what], flush=True)


def spread(values: Sequence[float], digits: int) -> str:
    """Return a mean with the largest deviation from it, where there are several values."""
    mean = sum(values) / len(values)
    beside = f" ± {max(abs(value - mean) for value in values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:,.{digits}f}{beside}"


def tables(state: Path) -> list[str]:
    """Return the three tables of what is known."""
    known: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for file in sorted(state.glob("*.json")):
        family, least_rate, _ = file.stem.rsplit("-", 2)
        known.setdefault((family, least_rate), []).append(json.loads(file.read_text()))
    lines = ["| family | least rate | seeds | perplexity | silent, first / second layer | rate | operations |",
             "|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for (family, least_rate), rows in known.items():
        dense = [row["dense"] for row in rows if "dense" in row]
        layers = list(dense[0]["silent"]) if dense else []
        silent = " / ".join(spread([100 * one["silent"][layer] for one in dense], 0) + "%" for layer in layers)
        rates = " / ".join(spread([one["rate"][layer] for one in dense], 3) for layer in layers)
        cells = [family, least_rate, str(len(dense)), spread([one["perplexity"] for one in dense], 1), silent, rates]
        lines.append(f"| {' | '.join(cells)} | {spread([one['operations'] for one in dense], 0)} |")
    for what, head in (("repair", "spikes alike"), ("budget", "of the budget spent | neurons")):
        lines += ["", f"| family | least rate | {what} | seeds | perplexity | operations | {head} |",
                  "|---|---:|---|---:|---:|---:|" + "---:|" * (head.count("|") + 1)]  # fmt: skip
        for (family, least_rate), rows in known.items():
            done = [row[what] for row in rows if what in row]
            for way in done[0] if done else []:
                each = [one[way] for one in done]
                last = [spread([one["alike"] for one in each], 2)] if what == "repair" else [
                    spread([one["spent"] for one in each], 2), spread([one["neurons"] for one in each], 0)
                ]  # fmt: skip
                cells = [family, least_rate, way, str(len(each)), spread([one["perplexity"] for one in each], 1)]
                cells += [spread([one["operations"] for one in each], 0), *last]
                lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Do what is left to do, and print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.spiking", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--data", type=asked.results, default="data", help="of a default run")
    parser.add_argument("--state", type=asked.folder, required=True, help="folder of what is known so far")
    parser.add_argument(
        "--families", nargs="+", default=["mixed", "snn"], choices=["mixed", "snn"], help="families of models"
    )
    parser.add_argument(
        "--least-rates",
        type=asked.amount,
        nargs="+",
        default=[0.0, 0.02],
        help="least spikes a step that neurons are trained to have",
    )
    parser.add_argument("--seeds", type=asked.index, nargs="+", default=[1, 2, 3], help="of the dense models")
    parser.add_argument("--portion", type=asked.share, help="of the training text; params.yaml's by default")
    parser.add_argument("--dense", action="store_true", help="prune nothing")
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    given.state.mkdir(parents=True, exist_ok=True)
    learning = read_yaml(Path("params.yaml"))["train"]
    learning |= {} if given.portion is None else {"portion": given.portion}
    texts = texts_of(given.data, learning)
    for seed in given.seeds:
        for family in given.families:
            for least_rate in given.least_rates:
                run(given.state, texts, learning, (family, least_rate, seed), pruned=not given.dense)
    print("\n".join(tables(given.state)))


if __name__ == "__main__":
    main()
