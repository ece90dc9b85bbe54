"""Zaremba's large LSTM trained, pruned to a tenth and taught by what it was, on one GPU in eleven minutes.

`python -m benchmarks.headline --corpus FOLDER --state FOLDER --to FILE`, from the repository's root; the corpus is the
Penn Treebank's published splits. `--quick` tries all of it at toy size on a CPU. Of packages it needs those of the
library alone. Its phases, each done once and kept in the state folder:

1. dense: 2 × 1,500 LSTM units with tied embeddings, by stochastic gradient descent with clipped gradients;
2. rank: the shared embedding in fewer dimensions, those in which it varies most;
3. removed, ridge: units leave in the surgeon's order until a tenth of the published model's parameters are left, the
   widths being what holds most within that budget; readers are refitted in closed form;
4. taught: the pruned model learns from the labels and from the dense model's distributions.

How many epochs fit into `--seconds` follows from the time that a few steps take, so that both learning rates reach
zero within them; it is decided once and kept. After `--limit` seconds of its own a process stops at the end of an epoch
with exit code 75, and the same command goes on from there; a killed one goes on from what was kept last. On a CPU the
results are the same to the last digit, interrupted or not. `--control` then trains the same widths from new weights,
with the same teacher for as many epochs.
"""

import argparse
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks import asked
from benchmarks.device.facts import cpu_name
from benchmarks.resumable import Bench, Kept, OutOfTime, Sizes, Training, ends, replaced
from pruning.core.devices import twin_of
from pruning.core.modes import evaluating
from pruning.core.neurons import Keep, select
from pruning.core.progress import silently
from pruning.core.statistics import merged
from pruning.data.corpus import END_OF_LINE, number, published_lines, published_names
from pruning.data.windows import Windows
from pruning.evaluation.latency import latencies
from pruning.models import build, describe, rebuild
from pruning.models.base import LanguageModel, Measurable
from pruning.repair.reconstruction import reconstruct
from pruning.selection.allocation import Allocation
from pruning.selection.budgets import budget_of
from pruning.selection.retention import keep_of, retention
from pruning.signals.activations import Covariances, activations
from pruning.signals.sensitivity import sensitivities
from pruning.signals.surgeon import removal_order
from pruning.training.distillation import Teacher
from pruning.training.loop import Loop, Trained, after_epoch, restore, train, validated
from pruning.training.recipes import Recipe

RESUME = 75
"""The exit code that says: run the same command again."""
RESERVE = 0.05
"""Share of the seconds that is left for the last evaluation, and for steps that are slower than those measured."""
DAMPING = 1e-4
DENSE_UNTIL = 0.47
"""Share of the seconds after which the dense model is to be trained."""
LARGEST = 16 * 2**20
"""Bytes that a file of the results may have."""
PUBLISHED = (
    ("Zaremba, Sutskever & Vinyals 2014, large", "1,500 + 1,500", "66.0 M", "36.0 M", "78.4"),
    ("PyTorch's example, the same with tied embeddings", "1,500 + 1,500", "51.0 M", "36.0 M", "72.3"),
    ("ISS (Wen et al. 2018)", "373 + 315", "21.8 M (33.1%)", "3.66 M (10.2%)", "78.65"),
    ("Zhang & Ou 2018, group sparse, pruned and retrained", "–", "(10%)", "–", "77.8"),
    ("Zhu & Gupta 2018, single weights, 90% zeros", "1,500 + 1,500", "(10%, and their places)", "–", "80.2"),
)


QUICK = Sizes(
    width=32, rank=8, share=0.3, floor=4, multiple=1, vocabulary=200, batch=8, bptt=10, calibration=8, tokens=4000,
    probe=4,
)  # fmt: skip
DENSE = Recipe(epochs=0, portion=1.0, learning_rate=20.0, warmup=0.01, weight_decay=0.0, clip=0.25, patience=10**6)
"""The learning rate and the clip of PyTorch's word language model, whose rate falls in steps; here along a cosine."""
DENSE_DROPOUT = 0.65
TAUGHT = Recipe(epochs=0, portion=1.0, learning_rate=2.5e-3, warmup=0.03, weight_decay=0.02, clip=0.5, patience=10**6)
TAUGHT_DROPOUT = 0.4
TEACHER_SHARE = 0.7


def untied_parameters(sizes: Sizes, types: int) -> int:
    """Return the parameters of the published model of this width: two embeddings, one bias for each gate of a unit."""
    return 2 * types * sizes.width + types + 2 * (4 * sizes.width * 2 * sizes.width + 4 * sizes.width)


def descended(
    model: Any, windows: Windows, valid: Windows, *, recipe: Recipe, seed: int, resume: Trained | None = None
) -> Iterator[Trained]:
    """Train as `train` does, by plain stochastic gradient descent."""
    groups = [{"params": list(model.parameters()), "pace": 1.0}]
    optimizer = cast(torch.optim.AdamW, torch.optim.SGD(groups, lr=recipe.learning_rate, fused=True))
    loop = Loop(model, optimizer, windows, recipe, None, seed, silently)
    state = resume or Trained({}, pd.DataFrame(), finished=False)
    if resume:
        restore(model, optimizer, resume.tensors)
    for epoch in range(ends(state.history) if resume else 0, recipe.epochs):
        rows = loop.epoch(epoch)
        rows.loc[rows.index[-1], "valid_loss"] = validated(model, valid, rows["step"].iloc[-1])
        state = after_epoch(model, optimizer, state, rows, recipe)
        yield state


class Remembered(nn.Module):
    """A teacher whose features of the whole training text are computed once: it never changes, nor does the text.

    Attributes:
        features: What its decoder reads at each place, (steps, batch, features).
        model: The teacher itself.
    """

    def __init__(self, model: LanguageModel, windows: Windows) -> None:
        super().__init__()
        self.model, parts, state = model, [], None
        with torch.no_grad(), evaluating(model):
            for tokens, _ in windows:
                features, state = model.features(tokens.to(model.device), state)
                parts.append(features)
        self.features = torch.cat(parts)

    @property
    def device(self) -> torch.device:
        """Where its model is."""
        return self.model.device

    def predicted(self, inputs: Tensor, place: int | None) -> tuple[Tensor, int]:
        """Return the logits of the window that begins at a place, and where the next one begins."""
        first = place or 0
        last = first + len(inputs)
        return self.model.decode(self.features[first:last]).flatten(0, 1), last


def dense_of(bench: Bench, until: float, epochs: int) -> LanguageModel:
    """Return the dense model, tied."""
    sizes = bench.sizes
    settings = {"vocabulary": bench.types, "embedding": sizes.width, "widths": [sizes.width] * 2}
    model = made(bench.seed, family="lstm", **settings, decoder="tied", dropout=DENSE_DROPOUT)
    model.expect(window.targets for window in bench.training)
    training = Training(descended, replace(DENSE, epochs=epochs))
    dense = bench.trained("dense", model.to(bench.device), training, until)
    bench.judge("dense", dense)
    return dense


def made(seed: int, **config: Any) -> LanguageModel:
    """Return a new model, always the same, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(**config)


def narrowed(model: LanguageModel, rank: int, counts: Tensor) -> LanguageModel:
    """Return a model whose embedding has fewer dimensions: the leading eigenvectors U of its second moment.

    Each word counts as often as it is read and as it is one of the choices: half by its share of the text, half like
    every other. With E the shared embedding, W_ih the first layer's and P the projection, E U, W_ih U and Uᵀ P compute
    the same where nothing of E lies outside of U.
    """
    config, tensors = describe(model.decoupled("project"))
    wide = {name: tensor.cpu().double() for name, tensor in tensors.items()}
    words = wide["encoder.weight"]
    shares = (counts / counts.sum() + 1 / len(counts))[:, None] / 2
    basis = torch.linalg.eigh(words.T @ (shares * words)).eigenvectors[:, -rank:]
    wide["encoder.weight"] = words @ basis
    wide["lstm.0.weight_ih_l0"] = wide["lstm.0.weight_ih_l0"] @ basis
    wide["projection.weight"] = basis.T @ wide["projection.weight"]
    wide["projection.bias"] = basis.T @ wide["projection.bias"]
    return rebuild(config | {"embedding": rank}, {name: t.to(tensors[name].dtype) for name, t in wide.items()})


def places_of(bench: Bench, model: LanguageModel, states: Covariances) -> dict[str, Tensor]:
    """Return each unit's place in the surgeon's order, by layer."""
    read = sensitivities(model, bench.training, batches=bench.sizes.calibration, seed=bench.seed)
    matrices = {name: (merged(states[name]).matrix, merged(read[name]).second_moment) for name in states}
    return removal_order(matrices, damping=DAMPING)[0]


def chosen(bench: Bench, model: LanguageModel) -> tuple[Keep, Covariances]:
    """Return the units that stay, in the surgeon's order within the budget of parameters, and what repair needs."""
    sizes, windows = bench.sizes, bench.training
    _, states = activations(model, windows, activation_samples=sizes.calibration, bins=16)
    places = places_of(bench, model, states)
    rows = [(name, unit, place) for name, own in places.items() for unit, place in enumerate(own.tolist())]
    order = pd.DataFrame(rows, columns=["layer", "neuron", "importance"])
    most = sizes.share * untied_parameters(sizes, bench.types)
    budget = budget_of(model, kind="parameters", value=most)
    allocation = Allocation(retain=1.0, floor=sizes.floor, scope="absolute", multiple=sizes.multiple, budget=budget)
    kept = retention(order, allocation, variant="surgeon", by="importance")
    return keep_of(kept), states


def pruned_of(bench: Bench, dense: LanguageModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the pruned and refitted model as (configuration, tensors)."""
    known = bench.kept.load("ridge")
    if known is None:
        counts = torch.bincount(bench.texts["train"], minlength=bench.types).double()
        narrow = narrowed(dense, bench.sizes.rank, counts).to(bench.device).eval()
        bench.judge("rank", narrow)
        keep, states = chosen(bench, narrow)
        bench.judge("removed", select(narrow, keep))
        ridge = reconstruct(narrow, keep, states, repair="ridge")
        bench.judge("ridge", ridge)
        config, tensors = describe(ridge)
        bench.kept.save("ridge", tensors, config=json.dumps(config))
        known = bench.kept.load("ridge")
        assert known is not None
    return json.loads(known[1]["config"]), known[0]


def taught_by(
    bench: Bench, phase: str, model: LanguageModel, teacher: Remembered, until: float, epochs: int
) -> LanguageModel:
    """Return a model that has learnt from the labels and the teacher."""
    guide = Teacher(model=cast(Measurable, teacher), share=TEACHER_SHARE, temperature=1.0)
    training = Training(partial(train, teacher=guide), replace(TAUGHT, epochs=epochs))
    taught = bench.trained(phase, model.to(bench.device), training, until)
    bench.judge(phase, taught)
    return taught


def work(bench: Bench, seconds: float, epochs: Sequence[int], *, control: bool, folder: Path) -> None:
    """Go through the phases."""
    if bench.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as cuDNN's layers compute by default
    dense = dense_of(bench, DENSE_UNTIL * seconds, epochs[0])
    config, tensors = pruned_of(bench, dense)
    config |= {"dropout": TAUGHT_DROPOUT}
    teacher = Remembered(dense, bench.training)
    taught = taught_by(bench, "taught", rebuild(config, tensors), teacher, (1 - RESERVE) * seconds, epochs[1])
    whole = {name: tensor.half() for name, tensor in describe(taught)[1].items()}
    if sum(2 * tensor.numel() for tensor in whole.values()) < LARGEST - 2**16:
        save_file({name: t.cpu().contiguous() for name, t in whole.items()}, folder / "taught-float16.safetensors",
                  {"config": json.dumps(config)})  # fmt: skip
    if "latency" not in bench.kept.facts:
        models = {"dense": twin_of(dense).cpu(), "taught": twin_of(taught).cpu()}
        times = latencies(models, batch=1, repeats=30)
        bench.note(latency={name: 1000 * latency.seconds for name, latency in times.items()})
    if control:
        same = bench.kept.facts["plan"]["taught"]["epochs"] if not epochs[1] else epochs[1]
        new = made(bench.seed + 1, **config)
        new.expect(window.targets for window in bench.training)
        taught_by(bench, "control", new, teacher, math.inf, same)


TITLES = {
    "dense": "dense, tied embeddings",
    "rank": "embedding of fewer dimensions",
    "removed": "units removed, no repair",
    "ridge": "refitted in closed form",
    "taught": "**taught by the dense model**",
    "control": "the same widths from new weights, taught alike",
}


def written(bench: Bench, path: Path, command: str, commit: str) -> None:
    """Write what is known as Markdown, and the losses of the epochs beside it."""
    facts, sizes = bench.kept.facts, bench.sizes
    whole, recurrent = untied_parameters(sizes, bench.types), 16 * sizes.width**2
    lines = [f"`{command}`, commit `{commit}`, on {machine(bench.device)}; {facts['spent']:.0f} s so far.", ""]
    shape = f"{sizes.batch} × {sizes.bptt} tokens"
    for phase, plan in facts.get("plan", {}).items():
        step = f"{plan['milliseconds']:.2f} ms a step of {shape}"
        lines.append(f"- {phase}: {plan['epochs']} epochs for {plan['seconds']:.0f} s, by {step} measured before.")
    lines += ["", "| model | units | embedding | parameters | LSTM weights | valid | test | at |",
              "|---|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for phase, row in facts.get("rows", {}).items():
        shares = (f"{row[what] / 1e6:.2f} M ({row[what] / of:.1%})" for what, of in
                  (("parameters", whole), ("lstm", recurrent)))  # fmt: skip
        cells = (TITLES[phase], " + ".join(f"{width:,}" for width in row["widths"]), f"{row['embedding']:,}", *shares,
                 f"{row['valid']:.2f}", f"{row['test']:.2f}", f"{row['at']:.0f} s")  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    lines += [f"| {name} | {units} | | {parameters} | {lstm} | | {test} | |"
              for name, units, parameters, lstm, test in PUBLISHED]  # fmt: skip
    of = f"of the published, untied model's {whole / 1e6:.1f} M parameters and {recurrent / 1e6:.1f} M LSTM weights"
    lines += ["", f"Shares are {of}. Perplexities are of one stream (batch 1), on a GPU in TF32."]
    if "taught" in facts.get("rows", {}):
        sizes_of = [facts["rows"][phase]["parameters"] for phase in ("taught", "dense")]
        lines.append(f"The pruned model has {sizes_of[0] / sizes_of[1]:.1%} of the parameters of the tied one it was.")
    if "latency" in facts:
        dense, taught = facts["latency"]["dense"], facts["latency"]["taught"]
        lines += [f"One token on the CPU: {dense:.2f} ms dense, {taught:.2f} ms pruned, {dense / taught:.1f} times."]
    replaced(path, "\n".join(lines) + "\n")
    rows = [f"{phase},{epoch},{ours!r},{theirs!r}" for phase, points in facts.get("curves", {}).items()
            for epoch, (ours, theirs) in enumerate(points, start=1)]  # fmt: skip
    replaced(path.with_suffix(".csv"), "\n".join(["phase,epoch,train_loss,valid_loss", *rows]) + "\n")


def machine(device: torch.device) -> str:
    """Return what computes."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return f"{name}, PyTorch {torch.__version__}, Python {platform.python_version()}"


def commit_of() -> str:
    """Return the commit that is checked out, or that there is none."""
    told = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"


def texts_of(folder: Path, sizes: Sizes) -> tuple[dict[str, Tensor], int, int]:
    """Return the splits as token numbers, the number of the end of a line, and how many types there are."""
    files = published_names(path.name for path in folder.iterdir())
    lines = {split: published_lines((folder / name).read_text(encoding="utf-8")) for split, name in files.items()}
    corpus = number(lines, sizes.vocabulary)
    words = corpus.vocabulary["text"].tolist()
    texts = {
        split: torch.from_numpy(tokens[: sizes.tokens].astype(np.int64)) for split, tokens in corpus.tokens.items()
    }
    return texts, words.index(END_OF_LINE), len(words)


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what is left to do, and exit with 75 if that was not all."""
    start = time.perf_counter()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.headline", description=__doc__.split("\n", maxsplit=1)[0]
    )
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    parser.add_argument("--corpus", type=asked.splits, required=True, help="folder of published splits")
    parser.add_argument("--state", type=asked.folder, required=True, help="folder of what is known so far; up to 1 GB")
    parser.add_argument("--to", type=asked.file, required=True, help="Markdown file of the report; two files beside it")
    parser.add_argument(
        "--seconds", type=asked.amount, default=690.0, help="for all of it, however often it is interrupted"
    )
    parser.add_argument("--limit", type=asked.amount, default=570.0, help="seconds of this process")
    parser.add_argument(
        "--every", type=asked.amount, default=30.0, help="seconds between two times that training is kept"
    )
    parser.add_argument(
        "--epochs", type=asked.index, nargs=2, default=[0, 0], help="of both trainings; 0: as many as fit"
    )
    parser.add_argument(
        "--share", type=asked.share, help="of the published parameters that may stay; by default a tenth"
    )
    parser.add_argument("--rank", type=asked.count, help="size of the pruned model's embedding")
    parser.add_argument("--control", action="store_true", help="then train the same widths from new weights")
    parser.add_argument("--quick", action="store_true", help="toy size, to try the script")
    parser.add_argument("--device", type=asked.device, default=str(there or "cpu"), help="where models are trained")
    parser.add_argument("--commit", default=None, help="of this code; by default git's")
    parser.add_argument("--seed", type=asked.index, default=1, help="of first weights, order of text and dropout")
    given = parser.parse_args(arguments)
    torch.set_flush_denormal(True)
    different = {name: of for name in ("share", "rank") if (of := getattr(given, name)) is not None}
    sizes, kept = replace(QUICK if given.quick else Sizes(), **different), Kept(given.state)
    texts, end_of_line, types = texts_of(given.corpus, sizes)
    given.to.parent.mkdir(parents=True, exist_ok=True)
    commit, command = (
        given.commit or commit_of(),
        " ".join(["python -m benchmarks.headline", *(arguments or sys.argv[1:])]),
    )
    bench = Bench(
        sizes=sizes,
        texts=texts,
        end_of_line=end_of_line,
        types=types,
        device=torch.device(given.device),
        kept=kept,
        report=partial(written, path=given.to, command=command, commit=commit),
        seed=given.seed,
        every=given.every,
        limit=given.limit,
        start=start,
        before=kept.facts.get("spent", 0.0),
    )
    try:
        work(bench, given.seconds, given.epochs, control=given.control, folder=given.to.parent)
    except OutOfTime as phase:
        bench.say(f"out of time in {phase}; run the same command again")
        sys.exit(RESUME)
    finally:
        print(given.to.read_text(encoding="utf-8") if given.to.exists() else "nothing is known yet", flush=True)


if __name__ == "__main__":
    main()
