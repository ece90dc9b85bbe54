"""The older interface's example: trains a small model, prunes it by each rule, compares.

    python -m examples.example_advanced_pruning --mode compare --data data/penn-treebank

`--quick` is a look at the whole in a minute; `--checkpoint FILE` takes a trained model, its vocabulary beside it. All
figures come from `pruning.experiment`; `dvc repro experiment/dvc.yaml` runs the same as stages.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pruning.ablation.oracle import Ablation, oracle
from pruning.data.corpus import (
    END_OF_LINE,
    SPLITS,
    Fractions,
    assign_documents,
    divide_lines,
    number,
    numbered,
    published_lines,
    published_names,
    raw_lines,
)
from pruning.data.windows import Windows
from pruning.evaluation.comparison import PHASES
from pruning.experiment.choices import fused_by
from pruning.experiment.judging import compare_pruning_results
from pruning.experiment.measured import MEASURED, Calibration
from pruning.experiment.measuring import USUAL, Effort, calibrate
from pruning.experiment.runs import run_enhanced_pruning
from pruning.experiment.trials import Pruning, Selection, Texts, Treatment, run_dense_control
from pruning.experiment.variants import TRADITIONAL, VARIANTS, choice_of
from pruning.experiment.verdict import verdict
from pruning.fusion.fused import to_plain
from pruning.models import build
from pruning.models.base import LanguageModel
from pruning.models.checkpoint import unstacked
from pruning.repair.imitation import Imitation
from pruning.training.loop import train
from pruning.training.recipes import Recipe

MODES = ("compare", "traditional", "enhanced", "ablation", "stability")
STEPS = ("weights", "weights+activations", "weights+activations+gradients", "simple")
"""What `ablation` compares: each step knows one signal group more."""
QUICK = {
    "vocabulary": 1000, "hidden": 32, "portion": 0.2, "keep": [0.75, 0.5], "finetune": 0.01, "judged": 6000,
    "windows": 8, "probes": 16, "measured": 40, "seeds": 2,
}  # fmt: skip
"""What `--quick` puts in the place of defaults: a model that has learned something, and 27 cells in half a minute."""
RECIPE = {"warmup": 0.05, "weight_decay": 0.01, "clip": 0.5, "patience": 2}
COLUMNS = 10
"""Columns of validation text."""
LINES_EVERY = 10.0
"""Seconds between two lines of progress."""

Item = TypeVar("Item")
Tokens = Mapping[str, Tensor]
"""Split → token numbers."""


def main(words: Sequence[str]) -> None:
    """Run one mode and print its tables and what they say."""
    options = _parsed(words)
    if options.quick:  # matrices so small gain nothing from more threads, which on a busy machine wait for each other
        torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # a young LSTM is full of denormal numbers, which are slow
    try:
        subject = Subject.of(options)
        results, tables = _of_mode(subject, options)
    except (ValueError, FloatingPointError) as error:
        _refuse(str(error))
    _show(results, tables)


@dataclass(frozen=True)
class Subject:
    """The dense model, the text, and settings of what is done to it."""

    model: LanguageModel
    tokens: Tokens
    first: int
    options: argparse.Namespace

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Subject":
        """Return the subject, its model read or trained."""
        texts = _texts(options.data)
        if options.checkpoint is not None:
            model, vocabulary = _checkpoint(options.checkpoint)
            tokens = {split: torch.from_numpy(numbered(lines, vocabulary)) for split, lines in texts.items()}
            return cls(model, tokens, vocabulary[END_OF_LINE], options)
        corpus = number(texts, options.vocabulary)
        tokens = {split: torch.tensor(own, dtype=torch.long) for split, own in corpus.tokens.items()}
        first = int(corpus.vocabulary.set_index("text")["token"][END_OF_LINE])
        return cls(_trained(tokens, first, len(corpus.vocabulary), options), tokens, first, options)

    @property
    def cut(self) -> int:
        """Removals are measured on validation text before, perplexity on text after it."""
        return len(self.tokens["valid"]) // 2

    def texts(self, seed: int) -> Texts:
        """Return what is read for what; calibration text starts elsewhere for each seed."""
        read, judged = self.tokens["train"], self.tokens["valid"][self.cut :][: self.options.judged]
        return Texts(
            calibration=Windows(read.roll(-seed * len(read) // 7), first=self.first, batch=self.options.batch, bptt=35),
            training=Windows(read, first=self.first, batch=self.options.batch, bptt=35),
            judged=Windows(judged, first=self.first, batch=COLUMNS, bptt=100),
        )

    @property
    def treatment(self) -> Treatment:
        """What follows each choice: the closed-form repair, then a little training."""
        recipe = Recipe(epochs=1, portion=self.options.finetune, learning_rate=1e-3, **RECIPE)  # type: ignore[arg-type]
        unused = Imitation(tokens=1, learning_rate=0.0, warmup=0.0, clip=0.0)
        return Treatment(scope="layer", floor=4, repair="ridge", imitation=unused, recipe=recipe, distillation=0.0)

    @property
    def effort(self) -> Effort:
        """The signals' settings, held to the number of windows and probes that were asked for."""
        limits = dict.fromkeys(("activation_samples", "batches"), self.options.windows)
        limits["probes"] = self.options.probes
        return {
            signal: {name: min(value, limits[name]) if name in limits else value for name, value in own.items()}
            for signal, own in USUAL.items()
        }

    def calibration(self, seed: int, names: Sequence[str] = MEASURED) -> Calibration:
        """Return what is measured of the dense model with a seed."""
        text = self.texts(seed).calibration
        return calibrate(self.model, text, names, effort=self.effort, seed=seed, track=_track)

    def removals(self) -> pd.DataFrame:
        """Return measured removals of a sample of the neurons."""
        tokens = min(self.options.measured_tokens, self.cut)
        bptt = max(1, min(50, tokens // (4 * COLUMNS)))  # windows enough to compare their halves
        text = Windows(self.tokens["valid"][: self.cut], first=self.first, batch=COLUMNS, bptt=bptt)
        words = min(64, self.model.decoder_weight.shape[0] // 2)
        ablation = Ablation(neurons=self.options.measured, tokens=tokens, words=words, seed=1)
        return oracle(self.model.decoupled(), text, ablation, track=_track)

    def dense(self) -> Pruning:
        """Return the dense control: nothing removed, the same training."""
        return run_dense_control(self.model, self.texts(0), treatment=self.treatment, seed=1)

    def pruned(
        self, variant: str, retain: float, calibration: Calibration, weights: Mapping[str, Any] | None = None
    ) -> Pruning:
        """Return the model pruned by a variant."""
        selection, texts = Selection(variant=variant, retain=retain, weights=weights), self.texts(calibration.seed)
        return run_enhanced_pruning(
            self.model, texts, selection, treatment=self.treatment, seed=1, calibration=calibration
        )


def _of_mode(subject: Subject, options: argparse.Namespace) -> tuple[list[Pruning], dict[str, pd.DataFrame]]:
    """Return the prunings of a mode and the tables that compare them."""
    if options.mode in ("compare", "stability"):
        return _compared(subject, options)
    variants = {"traditional": (TRADITIONAL,), "enhanced": (options.strategy,), "ablation": (*STEPS, TRADITIONAL)}
    wanted = variants[options.mode]
    needed = ("hessian",) if wanted == (TRADITIONAL,) else MEASURED
    calibration = subject.calibration(0, needed)
    learned = _learned(calibration, subject.removals()) if "learned" in wanted else None
    results = [subject.dense(), *_pruned(subject, wanted, options.keep, calibration, learned)]
    return results, compare_pruning_results(results)


def _compared(subject: Subject, options: argparse.Namespace) -> tuple[list[Pruning], dict[str, pd.DataFrame]]:
    """Return every variant at every share, the middle one with every seed of calibration, and what they say."""
    learning = "learned" in options.variants
    removals = subject.removals() if learning or options.mode == "compare" else None
    shares = sorted(options.keep, reverse=True)
    middle = shares[(len(shares) - 1) // 2]
    calibrations = {seed: subject.calibration(seed) for seed in range(options.seeds)}
    results = [subject.dense()]
    for seed, calibration in calibrations.items():
        learned = _learned(calibration, removals) if learning and removals is not None else None
        of_seed = shares if seed == 0 and options.mode == "compare" else [middle]
        results += _pruned(subject, options.variants, of_seed, calibration, learned)
    return results, compare_pruning_results(results, calibrations=calibrations, oracle=removals)


def _learned(calibration: Calibration, removals: pd.DataFrame) -> Mapping[str, Any]:
    """Return weights of signals that are fitted to measured removals."""
    return to_plain(fused_by(calibration, choice_of("learned"), oracle=removals).weighing)


def _pruned(
    subject: Subject,
    variants: Sequence[str],
    shares: Sequence[float],
    calibration: Calibration,
    learned: Mapping[str, Any] | None,
) -> list[Pruning]:
    cells = [(variant, share) for share in shares for variant in variants]
    return [
        subject.pruned(variant, share, calibration, learned if choice_of(variant).strategy == "learned" else None)
        for variant, share in _track(cells, f"prune and train, calibration {calibration.seed}")
    ]


def _show(results: Sequence[Pruning], tables: Mapping[str, pd.DataFrame]) -> None:
    """Print perplexities by share and variant, then every other table, then the verdict."""
    progressive = tables["progressive"]
    for phase in PHASES:
        own = progressive[progressive["phase"] == phase]
        wide = own.pivot_table(index="variant", columns="retain", values="perplexity").iloc[:, ::-1]
        order = list(dict.fromkeys(result.variant for result in results))
        print(f"\nPerplexity, {phase}; columns: share of the neurons kept")
        print(wide.loc[order].to_string(float_format="{:.1f}".format, na_rep=""))
    columns = {
        "precision": ["score", "spearman", "spearman_low", "spearman_high", "overlap", "measured"],
        "stability": ["score", "runs", "overlap", "rank_correlation", "pruned_spread", "finetuned_spread"],
    }
    told = {name: tables[name] for name in columns if name in tables}
    told["stability"] = told["stability"][told["stability"]["runs"] > 1]
    for name, own in told.items():
        if len(own):
            print(f"\n{name.capitalize()}")
            print(own[columns[name]].to_string(index=False, float_format="{:.3f}".format, na_rep=""))
    print()
    for sentence in verdict(tables):
        print(sentence)


def _texts(data: Path) -> dict[str, Sequence[Sequence[str]]]:
    """Return the lines of each split of published splits, of documents in a folder, or of one file cut in three.

    Raises:
        ValueError: If there is neither.
    """
    tenths = Fractions(0.1, 0.1)
    if data.is_file():
        return dict(divide_lines(raw_lines(_read(data), lowercase=True), tenths))
    if not data.is_dir():
        raise ValueError(f"Expected a folder or a text file at --data, got {str(data)!r}, which does not exist.")
    names = published_names(path.name for path in data.iterdir())
    if len(names) == len(SPLITS):
        return {split: published_lines(_read(data / name)) for split, name in names.items()}
    documents = {path.name: raw_lines(_read(path), lowercase=True) for path in sorted(data.glob("*.txt"))}
    if len(documents) < len(SPLITS):
        raise ValueError(
            f"Expected ptb.{{train,valid,test}}.txt or the like, or three .txt documents or more, in --data, got "
            f"{str(data)!r} without; one text file will do, too."
        )
    splits = assign_documents({name: sum(map(len, lines)) for name, lines in documents.items()}, tenths, seed=1)
    return {
        split: [line for name, lines in documents.items() if splits[name] == split for line in lines]
        for split in SPLITS
    }


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"Expected UTF-8 text in {str(path)!r}, got something else ({error}).") from error


def _checkpoint(path: Path) -> tuple[LanguageModel, dict[str, int]]:
    """Return the model of a checkpoint and the numbers of the one vocabulary beside it.

    Raises:
        ValueError: If either is missing or something else.
    """
    if not path.is_file():
        raise ValueError(f"Expected a safetensors file at --checkpoint, got {str(path)!r}, which is none.")
    beside = sorted(path.parent.glob("*vocabulary*.txt"))
    if len(beside) != 1:
        raise ValueError(f"Expected one *vocabulary*.txt beside {str(path)!r}, got {[one.name for one in beside]}.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            model = unstacked(file.metadata() or {}, tensors, name=str(path))
    except (
        SafetensorError,
        OSError,
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
        json.JSONDecodeError,
    ) as error:
        raise ValueError(f"Expected a checkpoint at {str(path)!r}, got something else ({error}).") from error
    words = _read(beside[0]).removesuffix("\n").split("\n")
    return model, {word: place for place, word in enumerate(words)}


def _trained(tokens: Tokens, first: int, vocabulary: int, options: argparse.Namespace) -> LanguageModel:
    """Return a small language model after a little training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        widths = [options.hidden] * options.layers
        model = build("lstm", vocabulary=vocabulary, embedding=options.hidden, widths=widths, decoder="untied",
                      dropout=0.1)  # fmt: skip
    windows = Windows(tokens["train"], first=first, batch=options.batch, bptt=35)
    valid = Windows(tokens["valid"][: options.judged], first=first, batch=COLUMNS, bptt=100)
    model.expect(tokens["train"])
    recipe = Recipe(epochs=options.epochs, portion=options.portion, learning_rate=8e-3, **RECIPE)  # type: ignore[arg-type]
    *_, last = train(model, windows, valid, recipe=recipe, seed=1, track=_track)
    model.load_state_dict(last.best())
    return model.eval()


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    """Return the options, those that were not given being the quick ones' or the defaults."""
    parser = _Parser(description="Train a small language model and compare ways to prune it.")
    parser.add_argument("--mode", default="compare", help=f"one of {', '.join(MODES)}")
    parser.add_argument("--data", type=Path, required=True, help="published splits, .txt documents, or a text file")
    parser.add_argument("--checkpoint", type=Path, help="a trained model (safetensors), its vocabulary beside it")
    parser.add_argument("--quick", action="store_true", help="smaller and coarser in all: a look in a minute")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.9, 0.75, 0.5, 0.35, 0.25], help="shares to keep")
    parser.add_argument(
        "--variants", nargs="+", default=list(VARIANTS), help=f"of `compare` and `stability`: {', '.join(VARIANTS)}"
    )
    parser.add_argument("--strategy", default="adaptive", help="of `enhanced`: a variant, as simple or learned")
    parser.add_argument("--hidden", type=int, default=64, help="units of a layer, and of the embedding")
    parser.add_argument("--layers", type=int, default=2, help="layers")
    parser.add_argument("--vocabulary", type=int, default=10000, help="most token types")
    parser.add_argument("--epochs", type=int, default=1, help="passes of training")
    parser.add_argument("--portion", type=float, default=0.2, help="of the training text that a pass reads")
    parser.add_argument("--finetune", type=float, default=0.01, help="of it that training after pruning reads")
    parser.add_argument("--batch", type=int, default=20, help="columns of a training window")
    parser.add_argument("--judged", type=int, default=6000, help="validation tokens that are predicted, at most")
    parser.add_argument("--windows", type=int, default=20, help="calibration windows that a signal reads, at most")
    parser.add_argument("--probes", type=int, default=60, help="Hessian probes, at most")
    parser.add_argument("--measured", type=int, default=80, help="neurons whose removal is measured")
    parser.add_argument("--measured-tokens", type=int, default=5000, help="validation tokens for that")
    parser.add_argument("--seeds", type=int, default=3, help="calibration seeds of `compare` and `stability`")
    if "--quick" in words:
        parser.set_defaults(**QUICK)
    options = parser.parse_args(words)
    _check(options)
    return options


def _check(options: argparse.Namespace) -> None:
    if options.mode not in MODES:
        _refuse(f"Unknown mode {options.mode!r}; known: {list(MODES)}.")
    for variant in (options.strategy, *options.variants):
        if variant not in VARIANTS:
            _refuse(f"Unknown variant {variant!r}; known: {list(VARIANTS)}.")
    for share in options.keep:
        if not 0 < share < 1:
            _refuse(f"Expected shares in (0, 1) for --keep, got {share:g}.")
    counts = ("hidden", "layers", "epochs", "batch", "judged", "windows", "probes", "measured", "measured_tokens")
    for name in (*counts, "seeds"):
        if getattr(options, name) < 1:
            _refuse(f"Expected at least 1 for --{name.replace('_', '-')}, got {getattr(options, name)}.")
    for name in ("portion", "finetune"):
        if not 0 < getattr(options, name) <= 1:
            _refuse(f"Expected --{name} in (0, 1], got {getattr(options, name):g}.")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        """End with the sentence."""
        _refuse(f"{message[:1].upper()}{message[1:]}; --help lists the options.")


def _refuse(sentence: str) -> NoReturn:
    sys.exit(sentence)


def _track(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Yield the items, saying how many are done and how long the rest will take."""
    start = shown = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - shown >= LINES_EVERY and done < len(items):
            left = (now - start) / done * (len(items) - done)
            shown = now
            print(f"{what}: {done} of {len(items)}, {left:.0f} s left", file=sys.stderr, flush=True)
    print(f"{what}: {len(items)} in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
