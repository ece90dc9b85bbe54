"""A user's own model and weights: through every stage, stored and made again, and refused in one sentence."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import pruning
from pruning.core.neurons import select
from pruning.evaluation.measures import loss_of
from pruning.models.adapted import arguments_for
from tasks.__main__ import main
from tasks.commands.trial import try_own
from tasks.common.models import read_language_model, read_model, write_model
from tasks.common.parameters import Unexpected
from tasks.common.tables import read_table
from tasks.common.weights import read_weights
from tasks.own import adapted, read_own
from tests.projects import ROOT, TINY, copy, set_parameters

OWN = """
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from pruning import Metric
from tasks.own import UserModel
from tests.networks import Classifier, examples, made

SPLITS = {name: examples(80, batch=8, seed=seed) for seed, name in enumerate(("train", "valid", "test"))}


def classifier():
    return UserModel(model=made(Classifier), criterion=nn.CrossEntropyLoss(), **SPLITS)


def untappable():
    def twice(network, inputs, _):
        with torch._C.DisableTorchFunction():
            return network(inputs) + network(-inputs), None

    return UserModel(model=made(Classifier), criterion=nn.CrossEntropyLoss(), call=twice, **SPLITS)


def streamed():
    return UserModel(model=made(Classifier), loss=nn.CrossEntropyLoss(), stream=True, **SPLITS)


def wrong():
    return made(Classifier)


class Forecaster(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(1, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, series):
        return self.head(self.rnn(series)[0][:, -1])


def series(seed):
    times = torch.arange(9.0) + 3 * torch.randn(64, 1, generator=torch.Generator().manual_seed(seed))
    waves = (0.4 * times).sin()
    return [(part[:, :7, None], part[:, 7:]) for part in waves.split(8)]


def worst(outputs, targets):
    return (outputs - targets).abs().max()


def regression():
    torch.manual_seed(0)
    network, batches = Forecaster(), {name: series(seed) for seed, name in enumerate(("train", "valid", "test"))}
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(20):
        for inputs, targets in batches["train"]:
            optimizer.zero_grad()
            nn.functional.mse_loss(network(inputs), targets).backward()
            optimizer.step()
    return UserModel(model=network, loss=nn.MSELoss(), metrics={"worst": Metric(worst, better="lower")}, **batches)


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(2, 8, batch_first=True, bidirectional=True), nn.Linear(16, 3)

    def forward(self, steps, lengths):
        packed = pack_padded_sequence(steps, lengths, batch_first=True, enforce_sorted=False)
        return self.head(torch.cat([*self.rnn(packed)[1]], dim=1))


def sequences(seed):
    random = torch.Generator().manual_seed(seed)
    steps, lengths = torch.randn(64, 5, 2, generator=random), torch.randint(2, 6, (64,), generator=random)
    sums = (steps[..., 0] * (torch.arange(5) < lengths[:, None])).sum(1)
    classes = (sums > -1).long() + (sums > 1).long()
    return list(zip(steps.split(8), lengths.split(8), classes.split(8)))


def packed():
    torch.manual_seed(0)
    network, batches = Packed(), {name: sequences(seed) for seed, name in enumerate(("train", "valid", "test"))}
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(10):
        for steps, lengths, classes in batches["train"]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(steps, lengths), classes).backward()
            optimizer.step()
    return UserModel(model=network, loss=nn.CrossEntropyLoss(label_smoothing=0.05), **batches)
"""
GUIDE = (ROOT / "docs/guides/own-model.md").read_text(encoding="utf-8")
SCRIPT, DIGITS = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)[:2]
"""What the guide says a user writes: a script, and the module `own/digits.py`."""
BEFORE = (
    "train",
    "weights",
    "hessian",
    "activations",
    "gradients",
    "cooperative",
    "surgeon",
    "intervention",
    "criteria",
    "oracle",
    "fuse",
)
VARIANTS = ("prune", "reconstruct", "finetune", "evaluate")
AFTER = ("timing", "path", "compare")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the pipeline's files and a model of the user's own, which is where commands run."""
    for name in ("dvc.yaml", "params.yaml", "learned", "own"):
        copy(ROOT / name, tmp_path / name)
    (tmp_path / "own/tiny.py").write_text(OWN)
    own = {"model": {"source": "own.tiny:classifier"}, "reconstruct": {"repair": "ridge"}}
    set_parameters(tmp_path, {**TINY, **own}, replace=("variants",))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("own", "own.tiny", "own.digits"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    forget()
    yield tmp_path
    forget()


def forget():
    for cached in (read_own, adapted):
        cached.cache_clear()


def run(*stages):
    for stage in stages:
        assert main([*stage] if isinstance(stage, tuple) else [stage]) == 0


def build_of(name):
    """Return the validation batches of the user's model."""
    return list(read_own(f"own.{name}:build").valid)


def variants(*stages):
    return [(stage, variant) for stage in stages for variant in ("dense", "enhanced")]


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The weights that the guide's module makes when it is run."""
    folder = tmp_path_factory.mktemp("digits")
    copy(ROOT / "own", folder / "own")
    (folder / "own/digits.py").write_text(DIGITS)
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    subprocess.run([sys.executable, "-m", "own.digits"], cwd=folder, env=environment, check=True)
    return folder / "own/digits.pt"


@pytest.fixture
def own_digits(project, digits):
    """The project with the guide's model in `own/`."""
    copy(digits, project / "own/digits.pt")
    (project / "own/digits.py").write_text(DIGITS)
    few = {"activations": {"activation_samples": 20}, "gradients": {"batches": 20}, "timing": {"repeats": 10}}
    set_parameters(project, {"model": {"source": "own.digits:build"}, "finetune": {"learning_rate": 0.005}, **few})
    return project


@pytest.mark.usefixtures("project")
def test_a_model_of_the_users_says_whether_its_batches_are_a_stream():
    assert adapted("own.tiny:streamed").use.stream
    assert not adapted("own.tiny:classifier").use.stream


def test_the_readmes_model_goes_through_every_stage(own_digits):
    run(*BEFORE, *variants(*VARIANTS), *AFTER)
    rows = read_table(own_digits / "data/evaluate/enhanced/evaluation.parquet").set_index(["phase", "split"])
    assert (rows.xs("test", level="split")["tokens"] == 269).all()
    assert rows["accuracy"]["finetuned", "test"] > 0.85
    assert rows["loss"]["finetuned", "valid"] < rows["loss"]["pruned", "valid"]
    found = read_table(own_digits / "data/compare/comparison.parquet").set_index("variant")
    assert found["retention"].to_dict() == {"dense": 1.0, "enhanced": 0.5}
    smaller = read_model(own_digits / "data/finetune/enhanced/model")
    assert sum(smaller.widths()) == 28
    assert smaller.module[0].out_features == smaller.widths()[0]
    history = read_table(own_digits / "data/train/history.parquet")
    assert history["step"].tolist() == [0]
    assert history["valid_loss"].notna().all()


@pytest.mark.parametrize("source", ["regression", "packed"])
def test_a_regression_and_packed_sequences_go_through_every_stage_and_are_shown_by_their_loss(project, capsys, source):
    few = {"oracle": {"neurons": 6, "tokens": 24, "most": 24}, "reconstruct": {"repair": "ridge"}}
    set_parameters(project, {"model": {"source": f"own.tiny:{source}"}, "finetune": {"learning_rate": 0.005}, **few})
    try_own(f"own.tiny:{source}", tokens=24)
    run(*BEFORE, *variants(*VARIANTS), *AFTER)
    rows = read_table(project / "data/evaluate/enhanced/evaluation.parquet").set_index(["phase", "split"])
    compared = read_table(project / "data/compare/comparison.parquet").set_index("variant")
    path = read_table(project / "data/path/path.parquet")
    for table in (rows["perplexity"], compared["finetuned_perplexity"], path["test_perplexity"]):
        assert table.isna().all()
    assert rows["loss"]["finetuned", "valid"] < rows["loss"]["pruned", "valid"]
    dense, own = compared["finetuned_loss"]["dense"], compared["finetuned_loss"]["enhanced"]
    assert compared["finetuned_change"]["enhanced"] == pytest.approx((own - dense) / dense)
    assert path["valid_loss"].notna().all()
    further = json.loads(rows["metrics"]["finetuned", "test"])
    measured = json.loads((project / "data/compare/metrics.json").read_text())["enhanced"]
    assert "finetuned_perplexity" not in measured
    capsys.readouterr()
    run("report")
    said = capsys.readouterr().out
    assert "Quality: test loss after each phase" in said
    if source == "regression":
        assert rows["accuracy"].isna().all()
        assert {name: better for name, (_, better) in further.items()} == dict.fromkeys(
            ("mean_squared_error", "mean_absolute_error", "worst"), "lower"
        )
        assert measured["worst"] == pytest.approx(further["worst"][0])
        assert "worst" in said
    else:
        assert rows["accuracy"]["finetuned", "test"] > 0.6
        assert further == {}
    assert main(["choose", "--within", "1000000", "--to", "chosen"]) == 0
    assert "loss" in capsys.readouterr().out


@pytest.mark.usefixtures("own_digits")
def test_the_guides_script_prunes_a_users_model_in_six_lines(capsys):
    assert sum(bool(line) for line in SCRIPT.splitlines()) <= 9
    own = read_own("own.digits:build")
    names = {"torch": torch, "network": own.model, "train": own.train, "valid": own.valid}
    exec(SCRIPT, names | {"inputs": next(iter(own.train))[0]}, names)  # noqa: S102 - the guide's own words
    said = capsys.readouterr().out
    assert "importance of 56 neurons by `surgeon`" in said
    assert re.search(r"^neurons +56 +28 +50%$", said, re.MULTILINE)
    before, after = (float(loss) for loss in re.findall(r"^loss ([\d.]+), perplexity", said, re.MULTILINE))
    assert max(before, after) < 0.3
    assert names["smaller"].module(next(iter(own.train))[0]).shape == (32, 10)


def test_a_model_that_was_stored_is_made_again_with_its_weights(project):
    run("train")
    again = read_model(project / "data/train/model").network
    for name, tensor in read_own("own.tiny:classifier").model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    config = json.loads((project / "data/train/model/config.json").read_text())
    assert config == {"source": "own.tiny:classifier", "widths": {"first": 7, "second": 6}}
    assert set(read_weights(project / "data/train/model/model.safetensors")) == set(again.state_dict())


def test_a_stored_model_whose_source_has_changed_is_refused(project):
    run("train")
    path = project / "data/train/model/config.json"
    path.write_text(path.read_text().replace("first", "zeroth"))
    with pytest.raises(Unexpected, match=r"Expected the layers \['zeroth', 'second'\] from own.tiny:classifier, got"):
        read_model(project / "data/train/model")
    path.write_text(path.read_text().replace("zeroth", "first").replace("7", "5"))
    with pytest.raises(Unexpected, match=r"Expected the weights of own.tiny:classifier, got others; run `dvc repro`."):
        read_model(project / "data/train/model")


def test_signals_that_a_model_cannot_have_are_left_out_and_the_rest_goes_on(project, caplog):
    set_parameters(project, {"model": {"source": "own.tiny:untappable"}})
    run(*BEFORE, ("prune", "enhanced"))
    assert (
        "Not measured by surgeon: layer first, because no operation that is known was seen to read it." in caplog.text
    )
    importance = read_table(project / "data/fuse/importance.parquet")
    assert importance[["surgeon", "gate_fisher"]].isna().all(axis=None)
    assert importance["fused"].notna().all()


def test_a_built_in_command_refuses_a_model_of_the_users_own(project):
    run("train")
    with pytest.raises(Unexpected, match=r"Expected a language model of a built-in family for .*, got a model of your"):
        read_language_model(project / "data/train/model")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (source, f"Expected own.<module>:<function> at model.source, a function in the folder own/, got {source!r} (p")
        for source in ("own.tiny", "os:getcwd", "nowhere:make", "own..tiny:classifier", "own.:f", "own/tiny:f", "", ":")
    ]
    + [
        (
            "own.tyny:classifier",
            "a module in the folder own/ at model.source, got 'own.tyny'. Did you mean 'own.tiny'? (params.yaml).",
        ),
        (
            "own.tiny:clasifier",
            "that own/tiny.py defines at model.source, got 'clasifier'. Did you mean 'classifier'? (params.yaml).",
        ),
        ("own.tiny:made", "Expected a function that own/tiny.py defines at model.source, got 'made' (params.yaml)."),
        ("own.tiny:UserModel", "Expected a function that own/tiny.py defines at model.source, got 'UserModel' ("),
        ("own.linked:make", "Expected a module in the folder own/ at model.source, got own/linked.py, a link to /"),
        ("own.broken:make", "Expected Python in "),
    ],
)
def test_a_wrong_source_gets_one_sentence_before_any_work(project, capsys, source, sentence):
    (project / "own/broken.py").write_text("def make(:\n")
    (project / "outside.py").write_text("def make(): ...\n")
    (project / "own/linked.py").symlink_to(project / "outside.py")
    set_parameters(project, {"model": {"source": source}})
    assert main(["train"]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("source", ["os:getcwd", "own.tiny:made", "tests.traps:spring", "own.linked:spring", ["os"], 3])
def test_a_model_folder_makes_nobody_import_or_call_what_is_not_in_own(project, capsys, source):
    run("train")
    trap = "import pathlib\npathlib.Path('imported').touch()\ndef spring(): pathlib.Path('called').touch()\n"
    (project / "tests").mkdir()
    (project / "tests/traps.py").write_text(trap)
    (project / "own/linked.py").symlink_to(project / "tests/traps.py")
    path = project / "data/train/model/config.json"
    path.write_text(json.dumps({"source": source, "widths": {"first": 7, "second": 6}}))
    assert main(["weights"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Expected ")
    assert "at `source` in data/train/model/config.json, " in said
    assert said.count("\n") == 1
    assert not {path.name for path in project.iterdir()} & {"imported", "called"}


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("source", ["os:getcwd", "own.tiny:made"])
def test_no_source_is_called_that_nobody_checked_before(source):
    with pytest.raises(Unexpected, match=r"Expected .* at the model's source, .*got '"):
        read_own(source)


def test_another_package_called_own_is_not_imported(project, monkeypatch, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "own").mkdir()
    (other / "own/__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(other)
    with pytest.raises(Unexpected, match=r"Expected Python to find own/ in the current folder, got .*other"):
        read_own("own.tiny:classifier")
    assert (project / "own/tiny.py").is_file()


def test_a_function_that_returns_something_else_gets_one_sentence(project, capsys):
    set_parameters(project, {"model": {"source": "own.tiny:wrong"}})
    assert main(["train"]) == 1
    assert capsys.readouterr().err == "Expected a UserModel (tasks.own) from own.tiny:wrong, got Classifier.\n"


def test_a_users_model_imitates_its_dense_self_without_labels(own_digits):
    losses = {}
    run(*BEFORE, ("prune", "enhanced"))
    for repair in ("none", "ridge", "imitate"):
        set_parameters(own_digits, {"reconstruct": {"repair": repair, "tokens": 4000}})
        run(("reconstruct", "enhanced"))
        losses[repair] = loss_of(read_model(own_digits / "data/reconstruct/enhanced/model"), build_of("digits")).mean
    assert losses["imitate"] < losses["ridge"] < losses["none"]


def test_weights_are_read_from_safetensors_and_from_what_holds_tensors_alone(tmp_path):
    tensors = nn.Linear(2, 3).state_dict()
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        found = read_weights(tmp_path / name)
        assert set(found) == set(tensors)
        assert all(torch.equal(found[key], tensors[key]) for key in tensors)


def test_a_file_that_needs_more_is_refused_with_how_to_convert_it(tmp_path):
    torch.save(nn.Linear(2, 3), tmp_path / "whole.pt")
    with pytest.raises(
        Unexpected, match=r"Expected weights alone in .*whole.pt, got Python objects; where it was made, "
    ):
        read_weights(tmp_path / "whole.pt")
    torch.save({"epoch": 3, "state_dict": nn.Linear(2, 3).state_dict()}, tmp_path / "more.pt")
    with pytest.raises(Unexpected, match=r"got \['epoch', 'state_dict'\]; .*`torch.save\(model.state_dict\(\), "):
        read_weights(tmp_path / "more.pt")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_a_missing_or_damaged_file_of_weights_is_refused(tmp_path, name):
    with pytest.raises(Unexpected, match=rf"Expected weights at .*{name}, got no such file; copy it whole "):
        read_weights(tmp_path / name)
    tensors = {"w": torch.ones(300)}
    (save_file if name.endswith("s") else torch.save)(tensors, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for content in (b"", b"damaged", whole[: len(whole) // 2]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            Unexpected, match=r"got a damaged file; copy it whole from where it was made, or save it again."
        ):
            read_weights(tmp_path / name)


@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize("source", ["classifier", "regression", "packed"])
def test_a_model_of_the_users_own_is_exported_as_a_plan_and_as_what_graphs_can_hold(
    project, monkeypatch, capsys, source, refused
):
    def refuse(*_):
        raise ValueError("Expected a network that torch.export can follow, got none.")

    pytest.importorskip("onnxruntime")
    files = {"model.onnx"} if refused else {"model.pt2", "model.onnx"}
    if refused:
        monkeypatch.setattr(pruning, "program_of", refuse)
    set_parameters(project, {"model": {"source": f"own.tiny:{source}"}})
    forget()
    dense = adapted(f"own.tiny:{source}")
    smaller = select(dense, {layer.name: torch.arange(0, layer.width, 2) for layer in dense.layers()})
    write_model(project / "data/finetune/enhanced/model", smaller)
    run(("export", "enhanced"))
    folder = project / "data/export/enhanced-finetuned"
    report = json.loads((folder / "export.json").read_text())
    assert {row["file"] for row in report["measured"]} == {"plan.json", *files}
    assert {path.name for path in folder.glob("model.*")} == files
    assert report["widths"] == {layer.name: layer.width for layer in smaller.layers()}
    said = capsys.readouterr().out
    assert ("no model.pt2: Expected a network that torch.export can follow" in said) == refused
    assert set(report["refused"]) == ({"model.pt2"} if refused else set())
    restored = pruning.restore(read_own(f"own.tiny:{source}").model, folder)
    inputs = arguments_for(smaller)
    with torch.no_grad():
        torch.testing.assert_close(restored(*inputs), smaller.eval()(*inputs))
    lines = [line for line in (folder / "README.md").read_text().splitlines() if line.startswith("| `")]
    assert len(lines) == 1 + len(files)


def test_a_model_of_the_users_own_stands_beside_its_dense_one_for_a_target(project, capsys):
    pytest.importorskip("onnxruntime")
    set_parameters(project, {"model": {"source": "own.tiny:classifier"}})
    forget()
    dense = adapted("own.tiny:classifier")
    smaller = select(dense, {layer.name: torch.arange(0, layer.width, 2) for layer in dense.layers()})
    for variant, model in (("dense", dense), ("enhanced", smaller)):
        write_model(project / f"data/finetune/{variant}/model", model)
    run(("export", "enhanced", "--target", "onnx"))
    folder = project / "data/export/enhanced-finetuned-onnx"
    report = json.loads((folder / "export.json").read_text())
    assert [row["model"] for row in report["measured"]] == ["dense", "dense", "enhanced", "enhanced"]
    assert report["measured"][2]["weights"] < report["measured"][0]["weights"]
    assert all(0 <= row["quality"] <= 1 for row in report["measured"])
    assert report["quality"] == "accuracy"
    assert {"model.onnx", "model.int8.onnx", "plan.json", "README.md"} <= {path.name for path in folder.iterdir()}
    assert "enhanced int8" in capsys.readouterr().out
