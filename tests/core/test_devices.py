"""Every public function gives the same on another device as on the CPU, and in float32 what it gives in float64."""

import copy
import inspect
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning import Imitation, Schedule, Teacher, Texts, Thinning, Treatment, Windows
from pruning.ablation import losses
from pruning.ablation.batched import OneByOne, removals
from pruning.core import statistics
from pruning.core.devices import full_precision, seeded, twin_of, without_cudnn
from pruning.core.modes import differentiating, evaluating
from pruning.core.statistics import merged
from pruning.evaluation.latency import latencies
from pruning.fusion.calibration import removal_curves
from pruning.models.base import LanguageModel
from pruning.training.loop import Trained
from tests.networks import Classifier, Tagger, examples, made
from tests.pretended import DEVICE, MODULE, Pretended, pretending
from tests.tiny import VOCABULARY, recipe, text, tiny

Numbers = Mapping[str, Any]
Case = Callable[[Any, Windows], Numbers]
HAS_CUDA = torch.cuda.is_available()
EFFORT: dict[str, dict[str, Any]] = {
    "weights": {"threshold": 0.1, "bins": 8},
    "hessian": {"probes": 16, "stability": 0.1},
    "activations": {"activation_samples": 16, "bins": 8},
    "gradients": {"batches": 16},
    "cooperative": {"strong": 0.6},
    "surgeon": {"batches": 8, "damping": 1e-4},
    "criteria": {"batches": 8, "bins": 4, "classes": 3, "ridge": 1e-3},
}
MEASURED = pruning.Ablation(neurons="all", tokens=120, most=120, tolerance=0.1, words="all", seed=1)
IMITATION = Imitation(tokens=240, learning_rate=1e-3, warmup=0.1, clip=1.0)


@contextmanager
def on_cuda() -> Iterator[list[str]]:
    with full_precision():
        yield []


no_cuda = pytest.mark.skipif(not HAS_CUDA, reason="there is no CUDA device here")
DEVICES = [
    pytest.param((DEVICE, pretending), id="pretended"),
    pytest.param(("cuda:0", on_cuda), id="cuda", marks=no_cuda),
]


def columns(table: pd.DataFrame) -> Numbers:
    numbers = table.select_dtypes("number")
    return {str(name): numbers[name].to_numpy(dtype=float) for name in numbers}


def loss_numbers(model: Any, windows: Any) -> Numbers:
    loss = pruning.loss_of(model, windows)
    return {"total": loss.total, "tokens": loss.tokens, "correct": loss.correct, **loss.metrics}


def every_second(model: Any) -> dict[str, Tensor]:
    """Return every second neuron, on the model's device."""
    return {layer.name: torch.arange(0, layer.width, 2, device=device_of(model)) for layer in model.layers()}


def device_of(model: Any) -> torch.device:
    return next(model.parameters()).device


def tensors_of(model: nn.Module) -> Numbers:
    return {name: parameter.detach().cpu().numpy() for name, parameter in model.named_parameters()}


def states_of(model: Any, windows: Windows) -> Any:
    return pruning.activations(model, windows, **EFFORT["activations"])[1]


def matrices(groups: Mapping[str, Any]) -> Numbers:
    return {name: merged(own).matrix.numpy() for name, own in groups.items()}


def gathered(model: Any, _: Windows) -> Numbers:
    tensors = dict(model.named_parameters())
    return {layer.name: pruning.gather(layer.owned, tensors).detach().cpu().numpy() for layer in model.layers()}


def recorded(model: Any, windows: Windows) -> Numbers:
    found: dict[str, list[Tensor]] = {}
    with pruning.record(model, model.layers(), lambda name, seen: found.setdefault(name, []).append(seen.cpu())):
        model.read(windows[0].tokens)
    return {name: torch.cat(seen).numpy() for name, seen in found.items()}


def trained(model: Any, windows: Windows) -> Numbers:
    learner = twin_of(model)
    teacher = Teacher.of(model, share=0.3)
    *_, last = pruning.train(learner, windows, windows, recipe=recipe(epochs=1), seed=1, teacher=teacher)
    return {"history": last.history["train_loss"].to_numpy()} | tensors_of(learner)


def gradually(model: Any, windows: Windows) -> Numbers:
    schedule = Schedule(begin=0.0, end=0.5, every=2)
    thinning = Thinning(retain=0.5, floor=2, schedule=schedule, momentum=0.5, penalty=1e-4)
    *_, last = pruning.prune_gradually(model, windows, windows, recipe=recipe(epochs=1), thinning=thinning, seed=1)
    return {"history": last.history["train_loss"].to_numpy()}


def in_rounds(model: Any, windows: Windows) -> Numbers:
    rounds = pruning.Rounds(retain=0.5, rounds=2, floor=2, calibration=4, damping=1e-4, last=0.5)
    *_, last = pruning.prune_iteratively(model, windows, windows, rounds=rounds, recipe=recipe(epochs=1), seed=1)
    return {"valid_loss": np.array([last.valid_loss])}


def energy(model: Any, windows: Windows) -> Numbers:
    spiking = tiny(family="snn").to(device_of(model), dtype=model.encoder.weight.dtype)
    return {"energy": pruning.energy_of(spiking, [windows[0], windows[1]]).energy}


def surgeon(model: Any, windows: Windows) -> Numbers:
    moments = pruning.sensitivities(model, windows, batches=8, seed=1)
    return columns(pruning.surgeon(states_of(model, windows), moments, damping=1e-4))


def reconstructed(model: Any, windows: Windows) -> Numbers:
    states, keep = states_of(model, windows), every_second(model)
    return {
        f"{repair} {name}": values
        for repair in ("mean", "ridge")
        for name, values in tensors_of(pruning.reconstruct(model, keep, states, repair=repair)).items()
    }


def imitated(model: Any, windows: Windows) -> Numbers:
    smaller = pruning.select(model, every_second(model))
    return tensors_of(pruning.imitate(smaller, model, windows, imitation=IMITATION))


def jointly(model: Any, windows: Windows) -> Numbers:
    single = pruning.oracle(model, windows, MEASURED)
    sets = {"two": {layer.name: [0, 1] for layer in model.layers()}}
    return columns(pruning.joint_removal(model, windows, single, sets=sets, tokens=120))


def calibrated(model: Any, windows: Windows) -> Numbers:
    """Measure what each signal by itself does not show: that one is handed what another one gave."""
    tables = pruning.calibrate(model, windows, ("weights", "cooperative"), effort=EFFORT, seed=1).tables
    return {f"{name} {column}": v for name, table in tables.items() for column, v in columns(table).items()}


def enhanced(model: Any, texts: Texts, **settings: Any) -> Any:
    calibration = pruning.calibrate(model, texts.calibration, ("surgeon",), effort=EFFORT, seed=1)  # not all signals
    by_order = pruning.Selection(variant="surgeon", retain=0.5)
    return pruning.run_enhanced_pruning(model, texts, by_order, calibration=calibration, **settings)


def run(how: Callable[..., Any], **settings: Any) -> Case:
    def case(model: Any, windows: Windows) -> Numbers:
        short = recipe(epochs=1, portion=0.25)
        treatment = Treatment(
            scope="layer", floor=2, repair="ridge", imitation=IMITATION, recipe=short, distillation=0.5
        )
        texts = Texts(calibration=windows, training=windows, judged=windows)
        found = how(model, texts, treatment=treatment, seed=1, **settings)
        return {phase: losses.mean for phase, losses in found.losses.items()}

    return case


@cache
def found_on(kind: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    network, words = made(Tagger).to(kind, dtype), text(12).view(3, 4).to(kind)
    return pruning.discover(network, (words,)), words


def discovered(model: Any, _: Windows) -> Numbers:
    device, dtype = device_of(model), model.encoder.weight.dtype
    # on a device that is pretended nothing is discovered, since torch.export knows none
    known, words = found_on("cuda" if device.type == "cuda" else "cpu", dtype)
    found = copy.deepcopy(known).to(device)
    keep = {layer.name: torch.arange(1, layer.width, device=device) for layer in found.layers()}
    read = words.to(device)
    return {
        name: change(found, keep)(read).detach().cpu().numpy()
        for name, change in (("cut", pruning.select), ("masked", pruning.mask))
    }


def adapted(model: Any, _: Windows) -> Numbers:
    device, dtype = device_of(model), model.encoder.weight.dtype
    batches = [(inputs.to(dtype), classes) for inputs, classes in examples(64, batch=8)]
    network = made(Classifier).to(device, dtype=dtype)
    other = pruning.adapt(network, batches[0][0].to(device), loss=nn.CrossEntropyLoss())
    found = {"loss": pruning.loss_of(other, batches).total, "size": pruning.size_of(other).multiply_adds}
    for name in ("gradients", "criteria"):
        seed = {"seed": 1} if name == "criteria" else {}
        found |= columns(getattr(pruning, name)(other, batches, **EFFORT[name], **seed))
    return found | columns(pruning.oracle(other, batches, MEASURED))


def in_six_lines(model: Any, _: Windows) -> Numbers:
    device, dtype = device_of(model), model.encoder.weight.dtype
    batches = [(inputs.to(dtype), classes) for inputs, classes in examples(32, batch=8)]
    network = made(Classifier).to(device, dtype=dtype)
    known = pruning.adapt(network, batches[0][0].to(device), loss=nn.CrossEntropyLoss())
    measured = pruning.importance(known, batches, signals=["gradients", "surgeon"])
    smaller = pruning.prune(known, measured, keep=0.5)
    tuned = pruning.finetune(smaller, batches, valid=batches, epochs=1)
    return {"importance": measured.table[measured.by].to_numpy(dtype=float)} | tensors_of(tuned)


def judged(model: Any, _: Windows) -> Numbers:
    device, dtype = device_of(model), model.encoder.weight.dtype
    batches = [(inputs.to(dtype), classes) for inputs, classes in examples(32, batch=8)]
    network = made(Classifier).to(device, dtype=dtype)
    known = pruning.adapt(network, batches[0][0].to(device), loss=nn.CrossEntropyLoss())
    return {"loss": pruning.evaluate(known, batches).mean}


class Residual(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + super().forward(inputs).relu()


def shallower(model: Any, _: Windows) -> Numbers:
    device, dtype = device_of(model), model.encoder.weight.dtype
    batches = [(inputs.to(dtype), classes) for inputs, classes in examples(32, batch=8)]
    sizes, classes = batches[0][0].shape[1], int(max(targets.max() for _, targets in batches)) + 1
    network = made(lambda: nn.Sequential(nn.Linear(sizes, 6), Residual(6, 6), Residual(6, 6), nn.Linear(6, classes)))
    found = pruning.discover(network.to(device, dtype=dtype), batches[0][0].to(device))
    worth = pruning.depth(found, batches, nn.CrossEntropyLoss())
    shorter = pruning.shorten(found, ["1"])
    with torch.no_grad():
        return columns(worth.table) | {"shorter": shorter(batches[0][0].to(device)).cpu().numpy()}


def intervened(model: Any, windows: Windows) -> Numbers:
    settings = pruning.Intervention(tokens=120, words=8)
    return columns(pruning.intervention(model, windows, windows, settings))


def saved_and_restored(model: Any, _: Windows) -> Numbers:
    device, dtype = device_of(model), model.encoder.weight.dtype
    network = made(Classifier).to(device, dtype=dtype)
    inputs = examples(8, batch=8)[0][0].to(device, dtype=dtype)
    smaller = pruning.select(found := pruning.discover(network, inputs), every_second(found))
    with tempfile.TemporaryDirectory() as folder:
        pruning.save(smaller, folder)
        restored = pruning.restore(made(Classifier).to(device, dtype=dtype), folder)
    with torch.no_grad():
        return {"restored": restored(inputs).cpu().numpy(), "deployed": pruning.deployed(smaller)(inputs).cpu().numpy()}


def going_on(model: Any) -> list[int]:
    return pruning.continuation(model, text(4), first=0, length=5, temperature=0.0, seed=1)


def built(model: Any, _: Windows) -> Numbers:
    shape = {"vocabulary": VOCABULARY, "embedding": 4, "widths": (4, 4), "decoder": "projected", "dropout": 0.0}
    with seeded(model, 3):
        return tensors_of(pruning.build("gru", **shape).to(device_of(model)))


CASES: dict[str, Case] = {
    "gather": gathered,
    "select": lambda model, windows: logits(pruning.select(model, every_second(model)), windows),
    "mask": lambda model, windows: logits(pruning.mask(model, every_second(model)), windows),
    "record": recorded,
    "build": built,
    "adapt": adapted,
    "discover": discovered,
    "train": trained,
    "prune_gradually": gradually,
    "prune_iteratively": in_rounds,
    "loss_of": loss_numbers,
    "size_of": lambda model, _: vars(pruning.size_of(model)),
    "energy_of": energy,
    "weights": lambda model, _: columns(pruning.weights(model, **EFFORT["weights"])),
    "hessian": lambda model, windows: columns(pruning.hessian(model, windows, **EFFORT["hessian"], seed=1)),
    "activations": lambda model, windows: columns(pruning.activations(model, windows, **EFFORT["activations"])[0]),
    "gradients": lambda model, windows: columns(pruning.gradients(model, windows, **EFFORT["gradients"])),
    "cooperative": lambda model, windows: columns(pruning.cooperative(model, states_of(model, windows), strong=0.6)),
    "criteria": lambda model, windows: columns(pruning.criteria(model, windows, **EFFORT["criteria"], seed=1)),
    "sensitivities": lambda model, windows: matrices(pruning.sensitivities(model, windows, batches=8, seed=1)),
    "surgeon": surgeon,
    "reconstruct": reconstructed,
    "imitate": imitated,
    "oracle": lambda model, windows: columns(pruning.oracle(model, windows, MEASURED)),
    "joint_removal": jointly,
    "intervention": intervened,
    "depth": shallower,
    "budget_of": lambda model, _: {
        "cost": pruning.budget_of(model, kind="parameters", value=9e9).costs(np.array([[5, 4]]))
    },
    "calibrate": calibrated,
    "importance": in_six_lines,
    "evaluate": judged,
    "save": saved_and_restored,
    "surprisals": lambda model, _: {"surprisal": pruning.surprisals(model, text(9), first=0)[0].cpu().numpy()},
    "continuation": lambda model, _: {"tokens": going_on(model)},
    "run_traditional_pruning": run(pruning.run_traditional_pruning, retain=0.5, effort=EFFORT),
    "run_enhanced_pruning": run(enhanced, effort=EFFORT),
    "run_dense_control": run(pruning.run_dense_control),
}
WITH_ANOTHER = {"prune", "finetune", "restore", "deployed", "shorten"}
"""Functions that the case of another one calls."""
ON_THE_CPU = {"program_of", "onnx_of", "exported", "side_by_side", "memory_of"}
"""Functions that take the model to the CPU first, or count by shapes alone, wherever it is."""
TABLES_ALONE = {
    "retention",
    "keep_of",
    "adaptive_retention_rate",
    "compare",
    "compare_pruning_results",
    "fuse",
    "verdict",
}
"""Functions that are given tables or numbers and never a model."""


def logits(model: LanguageModel, windows: Windows) -> Numbers:
    with torch.no_grad():
        return {"logits": model.logits(windows[0].tokens)[0].cpu().numpy()}


def apart(ours: Numbers, theirs: Numbers) -> dict[str, float]:
    """Return by name how far numbers are from others, relative to the largest of these."""
    assert list(ours) == list(theirs)
    found = {}
    for name, values in theirs.items():
        expected, given = (np.asarray(each, dtype=float) for each in (values, ours[name]))
        assert np.array_equal(np.isfinite(given), np.isfinite(expected)), name
        known = np.isfinite(expected)
        scale = max(np.abs(expected[known]).max(initial=0), 1e-30)
        found[name] = float(np.abs(given[known] - expected[known]).max(initial=0) / scale)
    return found


def test_every_public_function_has_a_case_here() -> None:
    functions = {name for name in pruning.__all__ if not inspect.isclass(getattr(pruning, name))}
    assert functions == CASES.keys() | WITH_ANOTHER | ON_THE_CPU | TABLES_ALONE


@pytest.fixture(scope="module")
def dense(trained: LanguageModel) -> LanguageModel:
    return trained


@pytest.fixture(scope="module")
def few() -> Windows:
    """Seven windows, the last of them shorter and partly padded: a pretended device takes ten times as long."""
    return Windows(text(150), first=0, batch=4, bptt=6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_a_public_function_gives_on_another_device_what_it_gives_on_the_cpu(
    name: str, device: tuple[str, Any], dense: LanguageModel, few: Windows
) -> None:
    expected = CASES[name](copy.deepcopy(dense), few)
    where, there = device
    with there():
        found = CASES[name](copy.deepcopy(dense).to(where), few)
    far = {column: error for column, error in apart(found, expected).items() if error > 1e-6}
    assert not far


@pytest.mark.parametrize("name", CASES)
def test_a_public_function_runs_on_a_device_without_float64(
    name: str, dense: LanguageModel, few: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (losses, statistics):
        monkeypatch.setattr(module, "finest", lambda _: torch.float32)
    expected = CASES[name](copy.deepcopy(dense).float(), few)
    with pretending(float64=False):
        found = CASES[name](copy.deepcopy(dense).float().to(DEVICE), few)
    far = {column: error for column, error in apart(found, expected).items() if error > 1e-2}
    assert not far


RAND = torch.rand


def alike(*size: int, dtype: torch.dtype | None = None, **more: Any) -> Tensor:
    """Draw the same numbers for either type: labels and words are sampled with them."""
    return RAND(*size, dtype=torch.float32, **more).to(dtype)


@pytest.mark.parametrize("name", CASES)
def test_a_public_function_gives_in_float32_what_it_gives_in_float64(
    name: str, dense: LanguageModel, few: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "rand", alike)
    expected = CASES[name](copy.deepcopy(dense), few)
    found = CASES[name](copy.deepcopy(dense).float(), few)
    far = {column: error for column, error in apart(found, expected).items() if error > 1e-3}
    assert not far


@pytest.mark.parametrize("device", DEVICES)
def test_neurons_to_keep_may_be_named_on_any_device(device: tuple[str, Any], dense: LanguageModel) -> None:
    where, there = device
    keep = every_second(dense)
    for change in (pruning.select, pruning.mask):
        expected = tensors_of(change(dense, keep))
        with there():
            model = copy.deepcopy(dense).to(where)
            others = {name: kept.to(where) for name, kept in keep.items()}
            for kept in (keep, others):
                found = tensors_of(change(model, kept))
                assert all(np.array_equal(found[name], values) for name, values in expected.items())
            on_cpu = tensors_of(change(dense, others))
        assert all(np.array_equal(on_cpu[name], values) for name, values in expected.items())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", ["lstm", "gru", "tanh", "snn", "lstm + snn"])
def test_models_side_by_side_are_those_one_by_one_on_another_device(family: str, device: tuple[str, Any]) -> None:
    where, there = device
    with there():
        model = tiny(family=family).to(where)
        for layer in model.layers():
            both = removals(model, layer, torch.tensor([2, 0])), OneByOne(model, layer, torch.tensor([2, 0]))
            for left in (torch.tensor([0, 1]), torch.tensor([1])):
                for models in both:
                    models.keep(left)
                with torch.no_grad():
                    found, expected = (models.features(text(12).view(6, 2).to(where)).cpu() for models in both)
                assert torch.allclose(found, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_removal_curves_are_the_cpus(device: tuple[str, Any], dense: LanguageModel, few: Windows) -> None:
    where, there = device
    scores = pd.DataFrame(
        [(layer.name, n, float(n)) for layer in dense.layers() for n in range(layer.width)],
        columns=["layer", "neuron", "score"],
    )
    settings: dict[str, Any] = {"by": "score", "shares": [0.3, 0.6]}
    expected = columns(removal_curves(dense, few, scores, **settings))
    with there():
        found = columns(removal_curves(copy.deepcopy(dense).to(where), few, scores, **settings))
    assert max(apart(found, expected).values()) < 1e-6


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("how", ["train", "prune_gradually"])
def test_training_that_is_resumed_from_what_a_file_holds_ends_as_if_never_interrupted(
    how: str, device: tuple[str, Any], few: Windows
) -> None:
    where, there = device
    thinning = Thinning(retain=0.5, floor=2, schedule=Schedule(begin=0, end=1, every=3), momentum=0.5, penalty=0.0)
    more: dict[str, Any] = {"thinning": thinning} if how == "prune_gradually" else {}

    def states(resume: Trained | None = None) -> Iterator[Trained]:
        model = tiny(dtype=torch.float32, dropout=0.2).to(where)
        settings = {"recipe": recipe(epochs=2, portion=0.4), "seed": 1, "resume": resume, **more}
        return getattr(pruning, how)(model, few, few, **settings)  # type: ignore[no-any-return]

    with there():
        *_, whole = states()
        first = next(states())
        stored = {name: tensor.cpu().clone() for name, tensor in first.tensors.items()}
        *_, resumed = states(Trained(stored, first.history, first.finished))
        assert all(torch.equal(resumed.tensors[name].cpu(), tensor.cpu()) for name, tensor in whole.tensors.items())


def test_a_training_step_waits_for_the_device_once_and_measured_removal_not_at_each_time_step(windows: Windows) -> None:
    with pretending() as waits:
        model = tiny(dtype=torch.float32).to(DEVICE)
        short = Windows(text(4), first=0, batch=4, bptt=1)
        waits.clear()
        for _ in pruning.train(model, windows, short, recipe=recipe(epochs=1), seed=1):
            pass
        training = Counter(waits)
        waits.clear()
        pruning.oracle(model, windows, MEASURED)
        removal = len(waits)
    assert sum(training.values()) <= len(windows) + 3, (
        training
    )  # its loss, which must not be NaN; then the validation's
    read = -(-MEASURED.tokens // windows[0].tokens.numel())
    assert removal <= read * 2 * len(model.layers()) + 10 * len(model.layers())


def test_evaluation_leaves_the_random_states_of_all_its_devices() -> None:
    with pretending():
        model = tiny().to(DEVICE)
        before = torch.get_rng_state(), MODULE.default_generators[0].get_state()
        with evaluating(model):
            torch.rand(3)
            torch.rand(3, generator=MODULE.default_generators[0])
        assert torch.equal(torch.get_rng_state(), before[0])
        assert torch.equal(MODULE.default_generators[0].get_state(), before[1])


def test_training_seeds_the_devices_of_its_model_and_puts_them_back() -> None:
    with pretending():
        generator = MODULE.default_generators[0]
        model, before = tiny().to(DEVICE), generator.get_state()
        drawn = []
        for _ in range(2):
            with seeded(model, 5):
                drawn.append(torch.rand(3, generator=generator))
            assert torch.equal(generator.get_state(), before)
        with seeded(tiny(), 5):  # lives on the CPU
            assert torch.equal(generator.get_state(), before)
    assert torch.equal(*drawn)


def test_what_python_and_numpy_draw_comes_from_the_seed_and_their_states_are_as_before() -> None:
    before, drawn = _drawn_by_others(), []
    for _ in range(2):
        with seeded(tiny(), 5):  # teacher forcing draws so
            drawn.append((random.random(), np.random.rand()))  # noqa: NPY002, S311
        assert _drawn_by_others() == before
    assert drawn[0] == drawn[1]


def _drawn_by_others() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


def test_recurrent_layers_that_drop_nothing_train_where_cudnn_differentiates_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Tensor, "is_cuda", True)
    plain, dropping = nn.LSTM(3, 4, 2).eval(), nn.LSTM(3, 4, 2, dropout=0.5).eval()
    model = nn.Sequential(plain, nn.Dropout(0.5)).eval()
    with differentiating(model):
        assert (plain.training, model[1].training) == (True, False)
        assert torch.backends.cudnn.enabled
    with differentiating(dropping):
        assert not dropping.training
        assert not torch.backends.cudnn.enabled
    assert not any(module.training for module in (*model.modules(), dropping))
    assert torch.backends.cudnn.enabled


def test_what_is_set_of_cudnn_and_of_precision_stays() -> None:
    cudnn: Any = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic, cudnn.rnn.fp32_precision, torch.get_float32_matmul_precision()
    cudnn.deterministic = True
    try:
        with without_cudnn():
            assert cudnn.deterministic
            assert not cudnn.enabled
        with full_precision():
            assert cudnn.rnn.fp32_precision == cudnn.conv.fp32_precision == "ieee"
    finally:
        cudnn.deterministic = before[1]
    assert before == (
        cudnn.benchmark, cudnn.deterministic, cudnn.rnn.fp32_precision, torch.get_float32_matmul_precision()
    )  # fmt: skip
    assert cudnn.enabled


def test_latency_is_measured_when_the_device_has_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: waited.append(str(device)))
    with pretending():
        latencies({"tiny": tiny().to(DEVICE)}, batch=1, repeats=1)
    assert waited[:2] == [DEVICE, DEVICE]


def test_the_pretended_device_refuses_the_cpus_tensors() -> None:
    with pretending():
        there, here = torch.arange(3.0, device=DEVICE), torch.arange(3.0)
        assert isinstance(there, Pretended)
        assert (there + 1).sum().item() == 6
        for wrong in (lambda: there + here, lambda: here.index_fill(0, there.long(), 0.0), lambda: here[there.long()]):
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()


def test_a_copy_of_a_recurrent_model_is_laid_out_for_cudnn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out: list[nn.Module] = []
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", lambda layer: laid_out.append(layer))
    model = tiny()
    twin = twin_of(model)
    assert {id(layer) for layer in laid_out} >= {id(layer) for layer in twin.modules() if isinstance(layer, nn.LSTM)}
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), twin.parameters(), strict=True))
    assert not {id(parameter) for parameter in model.parameters()} & {id(parameter) for parameter in twin.parameters()}
