"""Pruned networks in folders: written whole, restored to the last bit in PyTorch's modules, refused when damaged."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import pruning
from pruning.core.neurons import Keep, select
from pruning.discovery import Discovered
from pruning.discovery.recurrent import Recurrent
from pruning.discovery.running import tensors_in
from pruning.models.adapted import Adapted
from pruning.models.deploying import plainly
from tests.discovery.test_forms import FORMS, Network
from tests.discovery.test_forms import made as form_of
from tests.foreign import FOREIGN, floats, tokens
from tests.foreign import made as foreign
from tests.networks import Classifier, WordModel
from tests.projects import ROOT
from tests.tiny import tiny

CASES = ROOT.parent / "shared/cases/networks.py"


def cases() -> dict[str, Any]:
    """Return the networks that people write, where they lie beside the project."""
    if not CASES.is_file():
        return {}
    spec = importlib.util.spec_from_file_location("cases", CASES)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["cases"] = module
    spec.loader.exec_module(module)
    return dict(module.CASES)


def answers(network: nn.Module, inputs: Any) -> list[Tensor]:
    """Return what a network gives in two calls, for it may remember."""
    torch.manual_seed(1)
    with torch.no_grad():
        given = [network(**inputs) if isinstance(inputs, dict) else network(*inputs) for _ in range(2)]
    return [tensor.clone() for one in given for tensor in tensors_in(one)]


def blank(network: nn.Module) -> nn.Module:
    """Return a network of which nothing that is saved is as it was."""
    for tensor in network.state_dict().values():
        tensor.fill_(1)
    return network


def halved(model: Any, *, equal: bool = True) -> Keep:
    """Return some neurons of each layer, in another order: equally many of equally wide layers, or not."""
    generator = torch.Generator().manual_seed(2)
    widths = {
        layer.name: max(1, layer.width // 2 - (0 if equal else place % 2)) for place, layer in enumerate(model.layers())
    }
    return {
        layer.name: torch.randperm(layer.width, generator=generator)[: widths[layer.name]] for layer in model.layers()
    }


def narrower(model: Any, inputs: Any) -> Any:
    """Return the inputs, states among them as wide as the deployed network has them."""
    model = model.network if isinstance(model, Adapted) else model
    known = plainly(model).inputs if isinstance(model, Discovered) else None
    if known is None:
        return inputs
    likes, (leaves, layout) = pytree.tree_leaves(known), pytree.tree_flatten(inputs)
    cut = (
        leaf[..., : like.shape[-1]] if isinstance(leaf, Tensor) and leaf.ndim > 1 else leaf
        for leaf, like in zip(leaves, likes, strict=True)
    )
    return pytree.tree_unflatten(list(cut), layout)


def assert_same(restored: nn.Module, model: Any, inputs: Any) -> None:
    """Check that a network gives what the deployed one does, to the last bit, and what the pruned one does."""
    pruned = answers(model.eval(), inputs)
    found, expected = (answers(network, narrower(model, inputs)) for network in (restored, pruning.deployed(model)))
    assert len(found) == len(expected) == len(pruned)
    for one, other, padded in zip(found, expected, pruned, strict=True):
        assert torch.equal(one, other) or (one.isnan() == other.isnan()).all()
        third = (
            padded if one.shape[:-1] != padded.shape[:-1] else padded[..., : one.shape[-1]]
        )  # of a state, what is left
        torch.testing.assert_close(one, third, rtol=1e-4, atol=1e-5, equal_nan=True)


def stand_ins(network: nn.Module) -> list[str]:
    """Return the modules that are not the user's and not PyTorch's."""
    return [name for name, module in network.named_modules() if type(module).__module__.startswith("pruning.")]


@cache
def discovered(name: str) -> tuple[Discovered, nn.Module, Any]:
    """Return a form's network in which neurons were looked for, as its user has it, and its inputs; to be left."""
    network, inputs = form_of(name)
    return pruning.discover(network, inputs), network, inputs


@pytest.mark.parametrize("equal", [True, False], ids=["equal", "unequal"])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_network_is_restored_to_the_last_bit(name: str, equal: bool, tmp_path: Path) -> None:
    found, network, inputs = discovered(name)
    smaller = select(found, halved(found, equal=equal))
    pruning.save(smaller, tmp_path)
    restored = pruning.restore(blank(form_of(name)[0]), tmp_path)
    assert_same(restored, smaller, inputs)
    assert type(restored) is type(network)


@pytest.mark.parametrize("name", FOREIGN)
def test_models_of_others_are_restored_to_the_last_bit(name: str, tmp_path: Path) -> None:
    network, inputs = foreign(name)
    found = pruning.discover(network, inputs)
    smaller = select(found, halved(found))
    pruning.save(smaller, tmp_path)
    restored = pruning.restore(blank(foreign(name)[0]), tmp_path)
    assert_same(restored, smaller, inputs)


@pytest.mark.skipif(not CASES.is_file(), reason="the networks that people write lie in ../shared, which is not here")
@pytest.mark.parametrize("name", sorted(cases()) or ["none"])
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_networks_as_people_write_them_are_restored_in_pytorchs_own_modules(name: str, tmp_path: Path) -> None:
    case = cases()[name]
    found = pruning.discover(case.make().eval(), case.inputs)
    smaller = select(found, halved(found))
    pruning.save(smaller, tmp_path)
    restored = pruning.restore(blank(case.make()), tmp_path)
    assert_same(restored, smaller, case.inputs)
    assert not stand_ins(restored)


def tagger(layers: int = 2, hidden: int = 6) -> nn.Module:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb = nn.Embedding(11, 4)
            self.rnn = nn.LSTM(4, hidden, layers, batch_first=True, bidirectional=True, dropout=0.1 * (layers > 1))
            self.norm, self.out = nn.BatchNorm1d(2 * hidden), nn.Linear(2 * hidden, 3)

        def forward(self, text: Tensor) -> Tensor:
            return self.out(self.norm(self.rnn(self.emb(text))[0].transpose(1, 2)).transpose(1, 2))

    return Tagger()


def pruned(network: nn.Module, inputs: Any) -> Any:
    found = pruning.discover(network, inputs)
    return select(found, halved(found))


def test_layers_of_equal_widths_are_one_module_of_pytorchs_again_and_unequal_ones_are_not() -> None:
    found = pruning.discover(tagger(), tokens(3, 5))
    same = pruning.deployed(select(found, {layer.name: torch.arange(3) for layer in found.layers()}))
    assert type(same.rnn) is nn.LSTM
    assert (same.rnn.hidden_size, same.rnn.num_layers, same.rnn.dropout) == (3, 2, 0.1)
    assert not stand_ins(same)
    keep = {layer.name: torch.arange(2 + place % 2) for place, layer in enumerate(found.layers())}
    assert isinstance(pruning.deployed(select(found, keep)).rnn, Recurrent)


def test_a_network_of_other_numbers_than_its_example_is_deployed_as_well() -> None:
    network = Network(lambda self, x: self.out(self.rnn(x)[0]), rnn=nn.GRU(3, 6, 2), out=nn.Linear(6, 2))
    found = pruning.discover(network, real())
    smaller = select(found, {layer.name: torch.arange(3) for layer in found.layers()}).to(torch.bfloat16)
    assert not stand_ins(pruning.deployed(smaller))


def real() -> Tensor:
    return floats(5, 2, 3).float()


def test_what_is_deployed_shares_nothing_with_what_it_came_from() -> None:
    smaller = pruned(tagger(), tokens(3, 5))
    with torch.no_grad():
        for parameter in pruning.deployed(smaller).parameters():
            parameter.zero_()
    assert all(parameter.any() for name, parameter in smaller.named_parameters() if "norm.bias" not in name)


def test_attention_is_pytorchs_own_again_where_the_stream_went_with_the_heads() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 20, batch_first=True)
    network = nn.Sequential(nn.Embedding(11, 16), nn.TransformerEncoder(layer, 1), nn.Linear(16, 3))
    found = pruning.discover(network.eval(), tokens(2, 5))
    attention = next(layer for layer in found.layers() if layer.kind == "head")
    heads = select(found, {attention.name: torch.tensor([0, 3])})
    assert stand_ins(pruning.deployed(heads)) == ["1.layers.0.self_attn"]
    both = pruning.deployed(select(found, {attention.name: torch.tensor([0, 3]), "0": torch.arange(8)}))
    assert not stand_ins(both)
    assert (both[1].layers[0].self_attn.num_heads, both[1].layers[0].self_attn.embed_dim) == (2, 8)


class Stateful(nn.Module):
    """A GRU from a state that is made in forward, by a number of the module's or by one that is written there."""

    def __init__(self, literal: bool = False) -> None:
        super().__init__()
        self.hidden, self.literal = 5, literal
        self.rnn, self.out = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if state is None:
            state = torch.zeros(1, len(inputs), 5 if self.literal else self.hidden)
        outputs, state = self.rnn(inputs, state)
        return self.out(outputs), state


@pytest.mark.parametrize("given", [True, False], ids=["given", "made"])
def test_a_state_is_as_wide_as_the_layers_that_are_left_and_its_module_pytorchs_own(
    given: bool, tmp_path: Path
) -> None:
    inputs = (torch.randn(2, 4, 3), torch.randn(1, 2, 5))
    smaller = pruned(Stateful().eval(), inputs if given else inputs[:1])
    pruning.save(smaller, tmp_path)
    restored = pruning.restore(blank(Stateful()), tmp_path)
    width = smaller.widths()[0] if hasattr(smaller, "widths") else smaller.layers()[0].width
    assert not stand_ins(restored)
    narrow = inputs[1][..., :width]
    outputs, state = restored(inputs[0], narrow) if given else restored(inputs[0])
    expected, padded = smaller(*inputs) if given else smaller(inputs[0])
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(state, padded[..., :width])
    assert pruning.program_of(smaller)
    if not given:
        assert restored.hidden == width


def test_a_network_that_makes_states_of_a_width_written_in_its_code_goes_on_with_what_stands_in() -> None:
    smaller = pruned(Stateful(literal=True).eval(), (torch.randn(2, 4, 3),))
    assert stand_ins(pruning.deployed(smaller)) == ["rnn"]


class Sized(WordModel):
    """One that makes its first state by a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 5

    def init_hidden(self, batch: int) -> Any:
        return (torch.zeros(2, batch, self.hidden), torch.zeros(2, batch, self.hidden))


@pytest.mark.parametrize(("kind", "left"), [(Sized, []), (WordModel, ["rnn"])], ids=["by a number", "written there"])
def test_what_makes_the_first_state_of_a_restored_network_serves_it(
    kind: type[WordModel], left: list[str], tmp_path: Path
) -> None:
    network = kind().eval()
    inputs = (tokens(4, 2), network.init_hidden(2))
    smaller = pruned(network, inputs)
    pruning.save(smaller, tmp_path)
    restored = pruning.restore(blank(kind()), tmp_path)
    assert stand_ins(restored) == left
    outputs, _ = restored(inputs[0], restored.init_hidden(2))
    torch.testing.assert_close(outputs, smaller(*inputs)[0])


def test_a_network_is_restored_in_another_process(tmp_path: Path) -> None:
    smaller = pruned(WordModel("GRU").eval(), (tokens(4, 2), torch.zeros(2, 2, 5)))
    pruning.save(smaller, tmp_path / "saved")
    save_file({"text": tokens(4, 2), "state": torch.ones(2, 2, 5)}, tmp_path / "inputs")
    code = f"""
import torch, pruning
from safetensors.torch import load_file, save_file
from tests.networks import WordModel
network = pruning.restore(WordModel("GRU"), {str(tmp_path / "saved")!r})
with torch.no_grad():
    outputs, state = network(*(load_file({str(tmp_path / "inputs")!r})[name] for name in ("text", "state")))
save_file({{"outputs": outputs, "state": state}}, {str(tmp_path / "outputs")!r})
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "outputs")
    with torch.no_grad():
        outputs, state = smaller(tokens(4, 2), torch.ones(2, 2, 5))
    assert torch.equal(found["outputs"], outputs)
    assert torch.equal(found["state"], state)


def test_buffers_frozen_flags_types_and_repaired_weights_are_kept(tmp_path: Path) -> None:
    network = tagger()
    network.norm.running_mean.normal_()
    network.emb.weight.requires_grad_(False)
    data = [(tokens(3, 5), tokens(3, 5) % 3), (tokens(3, 5) % 4, tokens(3, 5) % 2)]
    model = pruning.adapt(network, tokens(3, 5), criterion=nn.CrossEntropyLoss())
    _, covariances = pruning.activations(model, data, activation_samples=2, bins=4)
    smaller = pruning.reconstruct(model, halved(model), covariances, repair="mean").to(torch.bfloat16)
    pruning.save(smaller, tmp_path)
    restored = pruning.restore(blank(tagger()), tmp_path)
    assert not restored.training
    assert restored.emb.weight.dtype == restored.norm.running_mean.dtype == torch.bfloat16
    assert [name for name, own in restored.named_parameters() if not own.requires_grad] == ["emb.weight"]
    assert torch.equal(restored.norm.running_mean, smaller.module.norm.running_mean)
    assert torch.equal(restored.out.weight, smaller.module.out.weight)


@pytest.mark.parametrize("anew", [True, False], ids=["tied", "untied"])
def test_tied_parameters_stay_tied_whatever_the_network_built_anew_is(anew: bool, tmp_path: Path) -> None:
    def build(tied: bool) -> nn.Module:
        network = nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), nn.Linear(4, 11))
        if tied:
            network[4].weight = network[0].weight
        return network

    smaller = pruned(build(tied=True), tokens(3, 5))
    pruning.save(smaller, tmp_path)
    restored = pruning.restore(build(tied=anew), tmp_path)
    assert restored[4].weight is restored[0].weight
    assert torch.equal(restored(tokens(3, 5)), smaller(tokens(3, 5)))
    assert len(load_file(next(tmp_path.glob("*.safetensors")))) == 6


def test_parameters_that_were_not_tied_are_not_tied_by_the_network_built_anew(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    smaller = pruned(network, floats(3, 4).float())
    pruning.save(smaller, tmp_path)
    anew = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    anew[2].weight = anew[0].weight
    assert torch.equal(pruning.restore(anew, tmp_path)(floats(3, 4).float()), smaller(floats(3, 4).float()))
    assert anew[2].weight is anew[0].weight


def test_a_plan_names_which_neurons_of_the_dense_network_are_left_also_after_several_cuts(tmp_path: Path) -> None:
    found = pruning.discover(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), floats(2, 3).float())
    once = select(found, {"0": torch.tensor([7, 1, 5])})
    pruning.save(
        pruning.adapt(select(once, {"0": torch.tensor([2, 0])}), floats(2, 3).float(), criterion=nn.MSELoss()), tmp_path
    )
    (layer,) = json.loads((tmp_path / "plan.json").read_text())["layers"]
    assert (layer["width"], layer["left"], layer["kept"]) == (8, 2, [5, 7])
    assert layer["owned"][0] == {
        "parameter": "network.0.weight", "dim": 0, "blocks": 1, "bias": "", "start": 0, "length": 8, "size": 1
    }  # fmt: skip


def test_a_restored_network_is_found_and_pruned_again(tmp_path: Path) -> None:
    pruning.save(pruned(tagger(hidden=8), tokens(3, 5)), tmp_path / "one")
    restored = pruning.restore(tagger(hidden=8), tmp_path / "one")
    smaller = pruned(restored, tokens(3, 5))
    pruning.save(smaller, tmp_path / "two")
    again = pruning.restore(pruning.restore(tagger(hidden=8), tmp_path / "one"), tmp_path / "two")
    assert_same(again, smaller, (tokens(3, 5),))
    assert again.rnn.hidden_size == 2


@pytest.mark.parametrize("family", ["lstm", "gru", "snn", "lstm + snn"])
def test_a_model_that_says_where_its_neurons_are_is_saved_too(family: str, tmp_path: Path) -> None:
    build = lambda seed: tiny(family=family, dtype=torch.float32, seed=seed)  # noqa: E731
    model = build(0)
    smaller = select(model, halved(model))
    pruning.save(smaller, tmp_path)
    restored: Any = pruning.restore(build(1), tmp_path)
    assert restored.widths() == smaller.widths()
    text = torch.arange(12).view(4, 3)
    for one, other in zip(tensors_in(restored(text)), tensors_in(smaller(text)), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match=r"Expected a model with the layers \['"):
        pruning.restore(Classifier(), tmp_path)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    pruning.save(pruned(tagger(), tokens(3, 5)), tmp_path / "saved")
    return tmp_path / "saved"


def test_a_network_built_without_memory_is_restored_on_the_cpu(saved: Path) -> None:
    with torch.device("meta"):
        network = tagger()
    assert torch.equal(pruning.restore(network, saved)(tokens(3, 5)), pruning.restore(tagger(), saved)(tokens(3, 5)))


def test_restored_tensors_lie_as_new_ones_do_so_that_sums_round_as_they_did(saved: Path) -> None:
    restored = pruning.restore(tagger(), saved)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in restored.state_dict().values() if tensor.numel())


def tensors(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "got no such folder": shutil.rmtree,
    "got no plan.json; name a folder that was written whole": lambda folder: (folder / "plan.json").unlink(),
    "got a damaged plan.json": lambda folder: cut(folder / "plan.json"),
    "got another plan.json": lambda folder: (folder / "plan.json").write_text("[]"),
    "in format 1, got format 2; read it with the version that wrote it": lambda folder: changed(
        folder / "plan.json", format=2
    ),
    "got a plan.json that was changed since": lambda folder: changed(folder / "plan.json", trained=[]),
    "got no such file; copy the whole folder": lambda folder: tensors(folder).unlink(),
    "got a damaged file; copy the whole folder": lambda folder: cut(tensors(folder)),
    "got a damaged file; copy the whole": lambda folder: flipped(tensors(folder)),
}


@pytest.mark.parametrize("sentence", DAMAGES)
def test_a_folder_that_is_not_whole_is_refused_with_one_sentence(saved: Path, sentence: str) -> None:
    DAMAGES[sentence](saved)
    with pytest.raises(ValueError, match=r"^Expected .*\.$") as refusal:
        pruning.restore(tagger(), saved)
    assert sentence in str(refusal.value)


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (
            lambda: tagger(layers=1),
            "got one without rnn.weight_ih_l1 (24, 12); build it with the settings that it had.",
        ),
        (lambda: tagger(layers=3), "got one that also has rnn.weight_ih_l2; build it with the settings that it had."),
        (lambda: tagger(hidden=5), "got one whose rnn.weight_ih_l0 is (20, 4) instead of (24, 4); build it with"),
        (lambda: nn.Linear(2, 3), "got one without emb.weight (11, 4)"),
        (
            lambda: pruning.discover(tagger(), tokens(3, 5)),
            "Expected the user's own network, built anew, got Discovered;",
        ),
    ],
)
def test_another_network_is_refused_with_the_first_difference(saved: Path, network: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^Expected .*\.$") as refusal:
        pruning.restore(network(), saved)
    assert sentence in str(refusal.value)


@pytest.mark.parametrize("wrong", [nn.Linear(2, 3), {"0": 1}], ids=["network", "dictionary"])
def test_what_does_not_know_where_it_came_from_is_refused(wrong: Any, tmp_path: Path) -> None:
    for function in (pruning.deployed, lambda model: pruning.save(model, tmp_path)):
        with pytest.raises(TypeError, match=r"Expected what `discover`, .* gave, got (Linear|dict); hand that over"):
            function(wrong)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"Expected a folder that can be written to at .*/file, got File exists"):
        pruning.save(pruned(tagger(), tokens(3, 5)), tmp_path / "file")


@pytest.mark.parametrize("step", [1, 2])
def test_a_kill_while_a_folder_is_written_anew_leaves_the_earlier_network(
    saved: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pruning.restore(tagger(), saved)
    calls = []
    replace = Path.replace

    def killed(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == step:
            raise KeyboardInterrupt
        return replace(path, target)

    other = pruned(tagger(), tokens(3, 5))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            pruning.save(other, saved)
    after = pruning.restore(tagger(), saved)
    assert torch.equal(after(tokens(3, 5)), before(tokens(3, 5)))
    (saved / "notes").touch()
    pruning.save(other, saved)
    assert torch.equal(pruning.restore(tagger(), saved)(tokens(3, 5)), pruning.deployed(other).eval()(tokens(3, 5)))
    assert {path.name for path in saved.iterdir()} == {"plan.json", "notes", tensors(saved).name}


def test_files_hold_no_code_and_may_be_read_by_whom_the_folder_may(saved: Path) -> None:
    assert {path.suffix for path in saved.iterdir()} == {".json", ".safetensors"}
    assert len({path.stat().st_mode for path in saved.iterdir()}) == 1
    restored = pruning.restore(tagger(), saved)
    assert load_file(tensors(saved)).keys() == restored.state_dict().keys()


@pytest.mark.parametrize("repair", ["ridge", "imitate"])
def test_what_the_front_door_pruned_and_trained_is_restored(repair: str, tmp_path: Path) -> None:
    data = [(tokens(3, 5), tokens(3, 5) % 3), (tokens(3, 5).flip(0), tokens(3, 5).flip(0) % 3)]
    found = pruning.discover(tagger(), data[0][0])
    importance = pruning.importance(found, data, nn.CrossEntropyLoss())
    smaller = pruning.prune(found, importance, keep=0.5, repair=repair, data=data)
    tuned = pruning.finetune(smaller, data)
    for number, model in enumerate((smaller, tuned)):
        pruning.save(model, tmp_path / str(number))
        restored = pruning.restore(blank(tagger()), tmp_path / str(number))
        torch.testing.assert_close(restored(data[0][0]), model.eval()(data[0][0]), rtol=1e-5, atol=1e-6)
        layers = json.loads((tmp_path / str(number) / "plan.json").read_text())["layers"]
        assert all(len(layer["kept"]) == layer["left"] for layer in layers)
        assert sum(layer["left"] for layer in layers) < sum(layer["width"] for layer in layers)
