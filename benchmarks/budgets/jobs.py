"""What each model of the comparison is made of and how it is trained: one job each, which goes on from where it was."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.device.report import FAMILIES
from benchmarks.headline import Remembered, made, places_of
from benchmarks.resumable import Bench, Kept, OutOfTime, Sizes, Training, recurrent_matrices, recurrent_weights
from pruning.core.devices import twin_of
from pruning.core.neurons import Keep, select
from pruning.core.options import Softmax, TrainingType
from pruning.evaluation.measures import size_of
from pruning.models import describe, rebuild
from pruning.models.base import LanguageModel, Measurable
from pruning.repair.imitation import Imitation, imitate
from pruning.repair.reconstruction import reconstruct
from pruning.signals.activations import Covariances, activations
from pruning.training.distillation import Teacher
from pruning.training.loop import train
from pruning.training.recipes import Recipe

CALIBRATION = 60
"""Windows of training text that the order and the closed-form repair are measured on, without labels."""
LEAST_RATE = 0.02
"""Spikes a step below which training wakes a spiking neuron."""
TRAINED = Recipe(epochs=0, portion=1.0, learning_rate=4e-3, warmup=0.03, weight_decay=0.02, clip=0.5, patience=10**6)
"""Of what is trained from new weights, dense or narrow."""


class Tuning(NamedTuple):
    """How a repaired model is fine-tuned.

    Attributes:
        rate: The highest learning rate.
        dropout: Share of the dropout that its width has: of the dense model's, as much less as the root of its share.
        share: Of the dense model in what is minimised; the labels have the rest.
    """

    rate: float
    dropout: float = 0.0
    share: float = 0.7


TUNINGS = {
    "high": {1: Tuning(8e-3), 3: Tuning(8e-3), 10: Tuning(8e-3)},
    "fast": {1: Tuning(2e-3), 3: Tuning(2.5e-3, 0.5), 10: Tuning(3e-3, 1.0)},
    "slow": {1: Tuning(1e-3), 3: Tuning(1e-3, 0.3), 10: Tuning(1e-3, 0.7)},
}
"""Epochs of fine-tuning → how; a file of `benchmarks.budgets.search` says it too."""


class Repair(NamedTuple):
    """How a cut and refitted model learns from the dense one without labels, in two ways on as much text.

    `imitate` compares what decoders read, and leaves embedding and decoder alone; `outputs` compares distributions, and
    all of the model learns, after it has imitated on what is left of the tokens.

    Attributes:
        tokens: Of the training text, for either.
        rate: The highest learning rate of imitation.
        outputs: Share of the tokens for the distributions, where that is tried; 0 tries it not.
        outputs_rate: The highest learning rate there.
    """

    tokens: int = 2_000_000
    rate: float = 8e-3
    outputs: float = 0.5
    outputs_rate: float = 2e-3


class Job(NamedTuple):
    """One model.

    Attributes:
        way: dense, scratch, surgeon, random, magnitude, taught or dense more; `surgeon` and `random` of no epochs are
            repairs.
        seed: Of weights, dropout and random choice.
        keep: Share of the units that are left.
        epochs: Of a model from new weights all, otherwise those after the repair; the dense one's are the plan's.
    """

    way: str
    seed: int
    keep: float = 1.0
    epochs: int = 0

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.way.replace(' ', '-')}-{round(100 * self.keep)}-{self.epochs}-{self.seed}"

    @property
    def needs(self) -> list["Job"]:
        """The jobs whose models it starts from: the dense one, and one whose widths or parameters are its own too."""
        dense, surgeon = Job("dense", self.seed), Job("surgeon", self.seed, self.keep)
        if self.way in ("dense", "scratch"):
            return []
        if self.way in CHOICES and self.epochs:
            return [dense, Job(self.way, self.seed, self.keep)]
        return [dense, surgeon] if self.way == "magnitude" else [dense]


CHOICES = ("surgeon", "random")
NEW = ("scratch", "taught")
"""Ways that begin with new weights."""
WIDTHS = {0.75: (0.5, 1.0), 0.5: (80 / 256, 176 / 256), 0.35: (56 / 256, 120 / 256), 0.25: (40 / 256, 88 / 256)}
"""Share of all units → shares of both layers: what the surgeon's order over all layers left of another dense model of
the same kind, trained for 13 epochs. They stand here so that models from new weights need not wait for a dense one, and
all seeds have the same widths. Of other families each layer keeps the same share."""


@dataclass(frozen=True)
class Plan:
    """What all jobs share.

    Attributes:
        sizes: Of models and batches.
        texts: Split → token numbers.
        end_of_line: The number of the token that a text begins after.
        types: How many word types there are.
        device: Where models compute.
        state: The folder of what is known.
        epochs: Of the dense model.
        rate: The learning rate of what is trained from new weights.
        repair: How a cut model learns from the dense one without labels.
        tuning: Epochs of fine-tuning → how.
        family: Of all models.
        dropout: Of the dense model.
        type: Of products where models learn from the dense one: `float32`, or `bfloat16`, for processors.
        softmax: There: `full`, with the dense model's features computed once, or `chunked`, in less time on processors.
    """

    sizes: Sizes
    texts: dict[str, Tensor]
    end_of_line: int
    types: int
    device: str
    state: Path
    epochs: int
    rate: float
    repair: Repair
    tuning: dict[int, Tuning]
    family: str = "lstm"
    dropout: float = 0.45
    type: TrainingType = "float32"
    softmax: Softmax = "full"

    def taught(self, recipe: Recipe) -> Recipe:
        """Return a recipe for learning from the dense model."""
        return replace(recipe, type=self.type, softmax=self.softmax)

    def teacher(self, bench: Bench, dense: LanguageModel, share: float) -> Teacher:
        """Return the dense model as a teacher of that share."""
        model: Any = Remembered(dense, bench.training) if self.softmax == "full" else dense
        return Teacher(model=cast(Measurable, model), share=share, temperature=1.0)

    def tuned(self, job: Job) -> Tuning:
        """Return how a job learns from labels and the dense model: as what has as many epochs, or the next fewer."""
        return self.tuning[max(epochs for epochs in self.tuning if epochs <= job.epochs)]

    def new(self, seed: int, keep: float = 1.0, dropout: float = 0.0) -> LanguageModel:
        """Return a model of new weights on the CPU: the dense one, or of the widths that keep that share of the units.

        A mixed model has half of each layer's units in either kind.
        """
        half = self.family == "mixed"
        widths = [self.sizes.width // (2 if half else 1)] * 2
        more = FAMILIES[self.family] | ({"snn_widths": widths} if half else {})
        more |= {"least_rate": LEAST_RATE} if self.family in ("snn", "mixed") else {}
        settings = {"vocabulary": self.types, "embedding": self.sizes.width, "widths": widths, "dropout": dropout}
        dense = made(seed, family=self.family, **settings, decoder="tied", **more)
        if keep == 1.0:
            return dense
        whole = dense.decoupled()
        first = {
            layer.name: torch.arange(width)
            for layer, width in zip(whole.layers(), self.widths(keep, whole), strict=True)
        }
        return made(seed, **describe(select(whole, first))[0])

    def widths(self, keep: float, model: LanguageModel) -> list[int]:
        """Return the widths of the layers of a dense model of which that share of the units is kept."""
        layers = [layer.width for layer in model.layers()]
        shares = WIDTHS[keep] if self.family == "lstm" else [keep] * len(layers)
        return [round(share * width) for share, width in zip(shares, layers, strict=True)]


def totals_of(tuned: Sequence[int], dense_epochs: int) -> list[int]:
    """Return for how many epochs models from new weights are trained, ascending."""
    return sorted({dense_epochs + epochs for epochs in sorted(tuned)[-2:]})


def jobs(seeds: int, keeps: list[float], tuned: list[int], dense_epochs: int) -> list[Job]:
    """Return all jobs, the more important ones first: one seed after the other, dense models at the start.

    A model from new weights is trained for as long as the dense one and the longest but one fine-tuning together, and
    for as long as with the longest: so none has less than the pruned model that stands beside it. One that the dense
    model teaches is trained for the former.
    """
    totals = totals_of(tuned, dense_epochs)
    listed = [Job("dense", seed) for seed in range(seeds)]
    for seed in range(seeds):
        listed += [Job("surgeon", seed, keep) for keep in keeps]
        listed += [Job("scratch", seed, keep, total) for keep in keeps for total in reversed(totals)]
        listed += [Job("surgeon", seed, keep, epochs) for keep in keeps for epochs in reversed(tuned)]
        listed += [Job("dense more", seed, 1.0, epochs) for epochs in reversed(tuned)]
        listed += [Job("random", seed, keep) for keep in keeps]
        listed += [Job(way, seed, keep, epochs) for way in ("random", "magnitude") for keep in keeps
                   for epochs in ([0] if way == "magnitude" else []) + tuned[::-1]]  # fmt: skip
        listed += [Job("taught", seed, keep, totals[0]) for keep in keeps]
    return listed


def done(state: Path, job: Job) -> dict[str, Any] | None:
    """Return what a finished job has come to, or None."""
    file = state / job.name / "facts.json"
    facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return facts if facts.get("finished") else None


def begin(device: str) -> None:
    """Make a worker ready: one thread each, products of float32 in TF32 as cuDNN's layers compute by default."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")


def work(job: Job, plan: Plan, until: float) -> dict[str, Any] | None:
    """Do a job and return what is known of it; None if the time (of `time.time`) is over before it is finished."""
    kept = Kept(plan.state / job.name)
    bench = Bench(
        sizes=plan.sizes, texts=plan.texts, end_of_line=plan.end_of_line, types=plan.types,
        device=torch.device(plan.device), kept=kept, report=lambda _: None, seed=1 + job.seed, every=60.0,
        limit=until - time.time(), start=time.perf_counter(), before=kept.facts.get("spent", 0.0),
    )  # fmt: skip
    try:
        WAYS[job.way](bench, job, plan)
    except OutOfTime:
        return None
    bench.note(finished=True)
    return kept.facts


def _dense(bench: Bench, _: Job, plan: Plan) -> None:
    """Train the dense model, tied."""
    model = plan.new(bench.seed, dropout=plan.dropout)
    _fitted(bench, model, replace(TRAINED, epochs=plan.epochs, learning_rate=plan.rate))


def _scratch(bench: Bench, job: Job, plan: Plan) -> None:
    """Train a new model of the widths that pruned ones have."""
    model = plan.new(100 + bench.seed, job.keep, _dropout(job, plan))
    _fitted(bench, model, replace(TRAINED, epochs=job.epochs, learning_rate=plan.rate))


def _chosen(bench: Bench, job: Job, plan: Plan) -> None:
    """Choose units and repair, without labels; or fine-tune what came of it."""
    if job.epochs:
        _tuned(bench, _model(plan, job.needs[1], _dropout(job, plan)), job, plan)
        return
    dense = _model(plan, job.needs[0]).to(bench.device).decoupled()
    states, keep = calibrated(bench, dense, job, plan)
    bench.judge("none", select(dense, keep))
    ridge = reconstruct(dense, keep, states, repair="ridge")
    bench.judge("ridge", ridge)
    repair = plan.repair

    def imitated(share: float) -> LanguageModel:
        tokens = round(share * repair.tokens)
        how = Imitation(tokens=tokens, learning_rate=repair.rate, warmup=0.05, clip=1.0)
        return imitate(ridge, dense, bench.training, imitation=how) if tokens else twin_of(ridge)

    models = {"imitate": imitated(1.0)}
    if repair.outputs:
        portion = repair.outputs * repair.tokens / len(bench.texts["train"])
        epochs = math.ceil(portion)
        recipe = plan.taught(TRAINED)
        recipe = replace(recipe, epochs=epochs, portion=portion / epochs, learning_rate=repair.outputs_rate)
        teacher = plan.teacher(bench, dense, 1.0)
        learner = imitated(1 - repair.outputs)  # without dropout, as the dense model was decoupled
        *_, last = train(learner, bench.training, bench.validation, recipe=recipe, seed=bench.seed, teacher=teacher)
        learner.load_state_dict(last.best())
        models["outputs"] = learner.eval()
    for phase, model in models.items():
        bench.judge(phase, model)
    best = min(models, key=lambda phase: bench.kept.facts["rows"][phase]["valid"])
    _keep(bench, models[best])


def calibrated(bench: Bench, dense: LanguageModel, job: Job, plan: Plan) -> tuple[Covariances, Keep]:
    """Return the covariances that the repair needs, and the units that stay."""
    _, states = activations(dense, bench.training, activation_samples=bench.sizes.calibration, bins=16)
    if job.way == "random":
        generator = torch.Generator().manual_seed(bench.seed)
        places = {layer.name: torch.rand(layer.width, generator=generator) for layer in dense.layers()}
    else:
        places = places_of(bench, dense, states)
    widths = zip(places.items(), plan.widths(job.keep, dense), strict=True)
    return states, {name: own.topk(width).indices.sort().values.cpu() for (name, own), width in widths}


def _magnitude(bench: Bench, job: Job, plan: Plan) -> None:
    """Set the recurrent layers' smallest weights to zero until as many parameters are left as of the surgeon's."""
    dense, narrow = _model(plan, job.needs[0], _dropout(job, plan)).to(bench.device), _model(plan, job.needs[1])
    left = recurrent_weights(dense) - (size_of(dense).parameters - size_of(narrow).parameters)
    masks = smallest_left_out(dense, left)
    if not job.epochs:
        bench.judge("none", dense)
        return
    with held(masks):
        _tuned(bench, dense, job, plan)


def _taught(bench: Bench, job: Job, plan: Plan) -> None:
    """Let the dense model teach a new one of the widths that pruned ones have, by the recipe that they are tuned by."""
    model = plan.new(100 + bench.seed, job.keep, _dropout(job, plan))
    model.expect(bench.training.targets)
    _tuned(bench, model, job, plan)


def _more(bench: Bench, job: Job, plan: Plan) -> None:
    """Train the dense model for some epochs more, as pruned ones are."""
    _tuned(bench, _model(plan, job.needs[0], _dropout(job, plan)), job, plan)


WAYS = {"dense": _dense, "scratch": _scratch, "surgeon": _chosen, "random": _chosen, "magnitude": _magnitude,
        "taught": _taught, "dense more": _more}  # fmt: skip


def smallest_left_out(model: LanguageModel, left: int) -> dict[torch.nn.Parameter, Tensor]:
    """Set all but so many weights of the recurrent layers to zero, the smallest of all layers first; return the masks.

    Han, Pool, Tran & Dally 2015, with one threshold for all matrices.
    """
    weights = recurrent_matrices(model)
    sizes = torch.cat([weight.detach().abs().flatten() for weight in weights])
    order = sizes.argsort(descending=True)
    stays = torch.zeros_like(sizes, dtype=torch.bool)
    stays[order[:left]] = True
    masks = {}
    for weight, own in zip(weights, torch.split(stays, [weight.numel() for weight in weights]), strict=True):
        masks[weight] = own.view_as(weight).to(weight.dtype)
        weight.data.mul_(masks[weight])
    return masks


@contextmanager
def held(masks: dict[torch.nn.Parameter, Tensor]) -> Iterator[None]:
    """Keep weights at zero through every step of any optimizer in the block."""

    def after(*_: object) -> None:
        with torch.no_grad():
            for weight, mask in masks.items():
                weight.mul_(mask)

    hook = register_optimizer_step_post_hook(after)
    try:
        yield
    finally:
        hook.remove()


def _fitted(bench: Bench, model: LanguageModel, recipe: Recipe) -> None:
    """Train from new weights, by the labels."""
    model.expect(bench.training.targets)
    trained = bench.trained("model", model.to(bench.device), Training(train, recipe), 0.0)
    bench.judge("trained", trained)
    _keep(bench, trained)


def _tuned(bench: Bench, model: LanguageModel, job: Job, plan: Plan) -> None:
    """Fine-tune by the labels and the dense model."""
    dense = _model(plan, job.needs[0]).to(bench.device).eval()
    tuning = plan.tuned(job)
    teacher = plan.teacher(bench, dense, tuning.share)
    recipe = replace(plan.taught(TRAINED), epochs=job.epochs, learning_rate=tuning.rate)
    trained = bench.trained("model", model.to(bench.device), Training(partial(train, teacher=teacher), recipe), 0.0)
    bench.judge("trained", trained)


def _dropout(job: Job, plan: Plan) -> float:
    """Return the dropout of a job's training."""
    part = plan.tuned(job).dropout if job.epochs and job.way != "scratch" else 1.0
    return plan.dropout * math.sqrt(job.keep) * part


def _keep(bench: Bench, model: LanguageModel) -> None:
    """Keep a model for the jobs that start from it."""
    config, tensors = describe(model)
    bench.kept.save("made", tensors, config=json.dumps(config))


def _kept(plan: Plan, job: Job) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what an earlier job made, as (configuration, tensors)."""
    known = Kept(plan.state / job.name).load("made")
    assert known is not None, job
    return json.loads(known[1]["config"]), known[0]


def _model(plan: Plan, job: Job, dropout: float = 0.0) -> LanguageModel:
    """Return the model that an earlier job made."""
    config, tensors = _kept(plan, job)
    return rebuild(config | {"dropout": dropout}, tensors)
