"""Networks as files of every target: the numbers of the network, the memory that was counted, side by side."""

import importlib.util
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.evaluation.memory import memory_of
from pruning.export.beside import enough
from pruning.export.calls import outputs_of
from pruning.export.elsewhere import stand_in
from pruning.export.fixed import fixed
from pruning.export.targets import TARGETS, TOLERANCE, exported
from tests.test_export_own import attending, images, real, starting, tagger, transformer
from tests.tiny import FAMILIES, tiny

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino", "executorch": "executorch", "litert": "ai_edge_litert"}
CONVERTER = os.environ.get("LITERT_PYTHON", ".venv-litert/bin/python")
"""The Python that has LiteRT's converter; the tests of that target are skipped without it."""
every_target = pytest.mark.parametrize("target", TARGETS)


def expect_installed(target: str) -> None:
    if importlib.util.find_spec(PACKAGES[target]) is None:
        pytest.skip(f"needs the package {PACKAGES[target]}, of the extra {TARGETS[target].extra}")
    if target == "litert" and not Path(CONVERTER).is_file():
        pytest.skip(f"needs LiteRT's converter, at {CONVERTER} or LITERT_PYTHON")


def model_of(family: str = "lstm", **changes: Any) -> Any:
    return tiny("untied", dtype=torch.float32, family=family, **changes)


def windows() -> Any:
    return pruning.Windows(torch.arange(60) % 20, first=0, batch=3, bptt=6)


def classifier() -> Any:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 5))
    return pruning.adapt(network, torch.randn(4, 10), loss=nn.CrossEntropyLoss())


def batches() -> list[Any]:
    torch.manual_seed(1)
    return [(torch.randn(count, 10), torch.arange(count) % 5) for count in (6, 6, 2)]


@every_target
@pytest.mark.parametrize("numbers", ["float32", "int8"])
def test_files_give_what_the_model_gives_and_need_what_was_counted(target: str, numbers: Any) -> None:
    expect_installed(target)
    model = model_of()
    made, counted = exported(model, target, numbers=numbers, converter=CONVERTER), memory_of(model, numbers=numbers)
    assert made.difference <= (TOLERANCE if numbers == "float32" else 0.1)
    assert made.memory.weights == pytest.approx(counted.weights, rel=0.001 if numbers == "float32" else 0.12)
    assert (made.memory.state, made.memory.activations) == (counted.state, counted.activations)
    assert made.memory.weights <= made.bytes
    if made.arena is not None:
        assert 0.7 * (counted.state + counted.activations) <= made.arena
        assert made.arena <= 1.5 * (counted.state + counted.activations)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "lstm"])
def test_every_family_runs_in_openvino(family: str) -> None:
    expect_installed("openvino")
    assert exported(model_of(family), "openvino").difference <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_every_family_is_a_program_without_recurrences_that_needs_what_was_counted(family: str) -> None:
    model = model_of(family)
    program = fixed(model).program()
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any(word in name for name in names for word in ("lstm", "gru", "rnn", "scan", "while"))
    assert tuple(program.example_inputs[0][0].shape) == (1, 1)  # type: ignore[index]


@pytest.mark.parametrize(
    ("network", "inputs"),
    [
        (tagger(), real(2, 4, 3)),
        pytest.param(
            tagger(proj_size=4),
            real(2, 4, 3),
            marks=pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
        ),
        (tagger("GRU"), real(1, 4, 3)),
        (tagger("RNN", nonlinearity="relu"), real(1, 4, 3)),
        (attending(), real(2, 4, 3)),
        (starting(), real(2, 4, 3)),
        (images(), real(1, 3, 8, 8)),
        (transformer(), torch.arange(10).view(2, 5)),
    ],
)
def test_other_networks_are_programs_of_the_shapes_of_their_inputs(network: nn.Module, inputs: Tensor) -> None:
    network = network.float().eval()
    found = fixed(network, inputs)
    torch.testing.assert_close(found.program().module()(inputs)[0], outputs_of(network, ((inputs,), {}))[0])


@every_target
def test_a_file_that_gives_other_numbers_is_refused(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_installed(target)
    real_one = TARGETS[target]

    def wrong(files: Any, threads: int) -> Any:
        run = real_one.opened(files, threads)
        return lambda tensors: [1.01 * output for output in run(tensors)]

    monkeypatch.setitem(TARGETS, target, replace(real_one, opened=wrong))
    with pytest.raises(ValueError, match=r"to give the network's outputs within 0\.0001, got "):
        exported(classifier(), target, converter=CONVERTER)


def test_what_there_is_not_is_refused_in_one_sentence() -> None:
    with pytest.raises(
        ValueError, match=r"Unknown target 'tflite'; known: \['onnx', 'openvino', 'executorch', 'litert'"
    ):
        exported(classifier(), "tflite")
    with pytest.raises(ValueError, match=r"Unknown numbers 'int4'; known: \['float32', 'int8'\]"):
        exported(classifier(), "onnx", numbers="int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Expected a Python that has litert-torch to convert with, got none"):
        exported(classifier(), "litert")
    with pytest.raises(ValueError, match="Expected a Python that has litert-torch, got /no/python: "):
        exported(classifier(), "litert", converter="/no/python")
    with pytest.raises(ValueError, match="Expected example inputs to export Sequential with, got none"):
        exported(nn.Sequential(nn.Linear(2, 2)), "onnx")


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_files_are_judged_as_the_model_is_whatever_batches_are_read(target: str) -> None:
    expect_installed(target)
    language, classes = model_of(), classifier()
    for model, data in ((language, windows()), (classes, batches())):
        twin = stand_in(model, exported(model, target))
        expected = pruning.loss_of(model, data)
        found = pruning.loss_of(twin, model.pairs(data))
        assert found.mean == pytest.approx(expected.mean, rel=1e-4)
        assert found.metrics == pytest.approx(expected.metrics, rel=1e-4)


def test_dense_and_pruned_stand_side_by_side_in_both_numbers_and_fit_eighty_columns() -> None:
    dense = classifier()
    smaller = pruning.select(dense, {"0": torch.arange(7)})
    beside = pruning.side_by_side({"dense": dense, "pruned": smaller}, "onnx", data=batches(), repeats=10)
    table = beside.table.set_index(["model", "numbers"])
    assert list(table.index) == [(name, numbers) for name in ("dense", "pruned") for numbers in ("float32", "int8")]
    assert beside.quality == "accuracy"
    for name, model in (("dense", dense), ("pruned", smaller)):
        assert table.loc[(name, "float32"), "quality"] == pytest.approx(
            pruning.loss_of(model, batches()).metrics["accuracy"]
        )
        assert table.loc[(name, "int8"), "weights"] < 0.5 * table.loc[(name, "float32"), "weights"]
    assert table.loc[("dense", "float32"), "speed_up"] == 1
    assert table.loc[("pruned", "int8"), "activations"] == memory_of(smaller).activations
    lines = str(beside).splitlines()
    assert len(lines) == 5
    assert max(map(len, lines)) <= 80
    assert beside.card().count("| pruned int8 |") == 2
    assert [axes.get_title() for axes in beside.plot().axes] == [
        "files, KiB",
        "memory of a step, KiB",
        "ms a step",
        "accuracy",
    ]


def test_without_data_nothing_is_said_of_quality() -> None:
    beside = pruning.side_by_side({"dense": classifier()}, "onnx", repeats=10)
    assert beside.table["quality"].isna().all()
    assert len(beside.plot().axes) == 3
    assert "accuracy" not in str(beside)
    assert isinstance(beside.table, pd.DataFrame)


@pytest.mark.parametrize(("tokens", "read"), [(1, 6), (6, 6), (7, 12), (12, 12), (13, 14), (99, 14), (None, 14)])
def test_judging_ends_with_the_batch_that_reaches_so_many_tokens(tokens: int | None, read: int) -> None:
    model = classifier()
    assert pruning.loss_of(model, enough(model, batches(), tokens)).tokens == read


def test_of_a_language_model_whole_windows_are_read_until_so_many_tokens_were() -> None:
    model = model_of()
    expected = pruning.loss_of(model, [windows()[0], windows()[1]])
    assert pruning.loss_of(model, enough(model, windows(), 20)) == expected
    assert expected.tokens == 36


def test_of_a_loader_that_shuffles_every_file_reads_the_same() -> None:
    pairs = torch.utils.data.TensorDataset(torch.randn(40, 10), torch.arange(40) % 5)
    loader = torch.utils.data.DataLoader(pairs, batch_size=4, shuffle=True)
    data = enough(classifier(), loader, 8)
    first, second = ([targets.tolist() for _, targets in data] for _ in range(2))
    assert first == second


def test_files_are_judged_on_as_many_tokens_as_were_asked_for_and_on_one_at_least() -> None:
    model = classifier()
    beside = pruning.side_by_side({"dense": model}, "onnx", data=batches(), tokens=7, repeats=10)
    assert beside.table["tokens"].tolist() == [12, 12]
    assert beside.table["loss"][0] == pytest.approx(pruning.loss_of(model, batches()[:2]).mean, rel=1e-4)
    with pytest.raises(ValueError, match="Expected to judge on at least 1 token, got 0"):
        pruning.side_by_side({"dense": model}, "onnx", data=batches(), tokens=0)


def test_openvino_says_nothing_of_operations_that_it_looked_for_in_vain(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expect_installed("openvino")
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    monkeypatch.setattr(TorchFXPythonDecoder, "_decomp_table", None)  # as it is in a new process
    with caplog.at_level(logging.WARNING):
        exported(classifier(), "openvino")
    assert not caplog.records
