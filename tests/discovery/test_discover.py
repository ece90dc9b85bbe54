"""Any PyTorch model: what is found in it, the three properties of what is found, and what is refused."""

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import pruning
from pruning.core.hooks import record
from pruning.core.neurons import gather, mask, named_tensors, removed_neurons, select
from pruning.discovery import Discovered
from tests.foreign import FOREIGN, First, floats, made
from tests.tiny import bytes_of, tensors_of

every_model = pytest.mark.parametrize("name", FOREIGN)
every_seed = pytest.mark.parametrize("seed", [1, 2])


@cache
def found(name: str) -> tuple[Discovered, Any]:
    model, inputs = made(name)
    return pruning.discover(model, inputs), inputs


def shuffled(width: int, seed: int) -> Tensor:
    return torch.randperm(width, generator=torch.Generator().manual_seed(seed))


def subset(width: int, seed: int) -> Tensor:
    """Return some neurons in any order: unequal numbers of them for unequal seeds, all or one included."""
    kept = torch.randint(1, width + 1, (), generator=torch.Generator().manual_seed(seed))
    return shuffled(width, seed)[:kept]


def answers(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Return all tensors that a model gives."""
    with torch.no_grad():
        given_back = model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
    return [leaf for leaf in pytree.tree_leaves(given_back) if isinstance(leaf, Tensor)]


def answer(model: nn.Module, inputs: Any) -> Tensor:
    """Return the first tensor that a model gives, which is no state."""
    return answers(model, inputs)[0]


def assert_equal(one: Tensor, other: Tensor, rounding: float = 1e-10) -> None:
    assert one.isfinite().all()
    assert one.std() > 1e-3
    torch.testing.assert_close(one, other, rtol=0, atol=rounding * other.abs().max().item())


@every_model
def test_the_discovered_model_answers_and_carries_state_as_the_users_own(name):
    model, inputs = made(name)
    for one, other in zip(answers(found(name)[0], inputs), answers(model, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@every_model
@every_seed
def test_relabelling_neurons_changes_no_output(name, seed):
    model, inputs = found(name)
    orders = {layer.name: shuffled(layer.width, seed) for layer in model.layers()}
    rounding = 1e-10 if name != "Qwen3" else 1e-6  # it normalises in float32
    assert_equal(answer(select(model, orders), inputs), answer(model, inputs), rounding)


@every_model
@every_seed
def test_removing_neurons_equals_masking_them(name, seed):
    model, inputs = found(name)
    layers = [layer for layer in model.layers() if layer.exact]
    keep = {layer.name: subset(layer.width, seed + place) for place, layer in enumerate(layers)}
    smaller = select(model, keep)
    assert [layer.width for layer in smaller.layers() if layer.exact] == [len(kept) for kept in keep.values()]
    torch.testing.assert_close(answer(smaller, inputs), answer(mask(model, keep), inputs), rtol=0, atol=1e-10)


@every_model
def test_keeping_all_changes_nothing(name):
    model, inputs = found(name)
    whole = select(model, {layer.name: torch.arange(layer.width) for layer in model.layers()})
    assert bytes_of(whole.state_dict()) == bytes_of(model.state_dict())
    assert torch.equal(answer(whole, inputs), answer(model, inputs))


@every_model
def test_cutting_twice_equals_cutting_once(name):
    model, inputs = found(name)
    keep = {layer.name: torch.arange(layer.width - 1, 0, -1) for layer in model.layers()}
    again = {layer.name: torch.arange((layer.width - 1) // 2 + 1) for layer in model.layers()}
    twice = select(select(model, keep), again)
    once = select(model, {layer: kept[again[layer]] for layer, kept in keep.items()})
    assert twice.layers() == once.layers()
    assert torch.equal(answer(twice, inputs), answer(once, inputs))


@every_model
def test_every_module_with_parameters_is_a_layers_or_named_with_the_reason(name):
    model, _ = found(name)
    owned = {piece.parameter.removeprefix("network.") for layer in model.layers() for piece in layer.owned}
    known = {parameter.rpartition(".")[0] or parameter for parameter in owned} | set(model.unprunable)
    for parameter, _ in model.network.named_parameters(remove_duplicate=False):
        assert (parameter.rpartition(".")[0] or parameter) in known
    assert all(model.unprunable.values())


@every_model
def test_what_is_recorded_is_what_the_readers_read(name):
    model, inputs = found(name)
    seen: dict[str, list[Tensor]] = {}
    with record(model, model.layers(), lambda layer, values: seen.setdefault(layer, []).append(values)):
        answer(model, inputs)
    for layer in model.layers():
        assert all(values.shape[1] == layer.width for values in seen[layer.name])
    keep = {layer.name: torch.arange(layer.width - 1, 0, -1) for layer in model.layers()}
    first = model.layers()[0]
    smaller, again = select(model, keep), []
    with record(smaller, smaller.layers()[:1], lambda _, values: again.append(values)):
        answer(smaller, inputs)
    assert {values.shape[1] for values in again} == {first.width - 1}


@every_model
def test_discovering_leaves_the_model_and_the_random_state_as_they_were(name):
    model, inputs = made(name)
    model.train()
    before, state = bytes_of(tensors_of(model)), torch.get_rng_state()
    names = [(key, type(module), module.training) for key, module in model.named_modules()]
    pruning.discover(model, inputs)
    assert [(key, type(module), module.training) for key, module in model.named_modules()] == names
    assert bytes_of(tensors_of(model)) == before
    assert torch.equal(torch.get_rng_state(), state)


LAYERS = {
    "LSTM language model": {"encoder": ("dense", 6), "rnn.0": ("rnn", 6), "rnn.1": ("rnn", 6)},
    "tied LSTM language model": {"rnn.0": ("rnn", 6), "rnn.1": ("rnn", 6)},
    "LSTM and linear": {"lstm.0": ("rnn", 4), "lstm.1": ("rnn", 4)},
    "classifier of states": {"embedding": ("dense", 4)}
    | {f"lstm.{part}": ("rnn", 5) for part in ("0", "0_reverse", "1", "1_reverse")},
    "translator": {"encoder.0": ("rnn", 6)},
    "concatenated": {"left": ("conv", 4), "right": ("conv", 6), "wide": ("conv", 4), "grouped": ("conv", 4)}
    | {"gate": ("dense", 6)},
    "hard-coded": {"conv": ("conv", 6), "fc1": ("dense", 8)},
    "ResNet": {
        "conv1": ("conv", 64),
        "layer1.0.conv1": ("conv", 64),
        "layer2.0.conv1": ("conv", 128),
        "layer2.0.conv2": ("conv", 128),
        "layer3.0.conv1": ("conv", 256),
        "layer3.0.conv2": ("conv", 256),
        "layer4.0.conv1": ("conv", 512),
        "layer4.0.conv2": ("conv", 512),
    },
    "VGG": {f"features.{place}": ("conv", width) for place, width in ((0, 8), (4, 12), (7, 10), (11, 6))}
    | {"classifier.0": ("dense", 20)},
    "GPT-2": {"transformer.wpe": ("dense", 16)}
    | {
        f"transformer.h.{block}.{part}": shape
        for block in (0, 1)
        for part, shape in (("attn.c_attn", ("head", 4)), ("mlp.c_fc", ("dense", 20)))
    },
    "Qwen3": {"model.embed_tokens": ("dense", 16)}
    | {
        f"model.layers.{block}.{part}": shape
        for block in (0, 1)
        for part, shape in (("self_attn.q_proj", ("head", 3)), ("mlp.gate_proj", ("dense", 20)))
    },
    "BERT": {"bert.embeddings.word_embeddings": ("dense", 16)}
    | {
        f"bert.encoder.layer.{block}.{part}": shape
        for block in (0, 1)
        for part, shape in (("attention.self.query", ("head", 4)), ("intermediate.dense", ("dense", 24)))
    }
    | {"bert.pooler.dense": ("dense", 16)},
    "ViT": {"conv_proj": ("conv", 16)}
    | {
        f"encoder.layers.encoder_layer_{block}.{part}": shape
        for block in (0, 1)
        for part, shape in (("self_attention", ("head", 4)), ("mlp.0", ("dense", 24)))
    },
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_layers_are_those_that_one_finds_by_reading_the_model(name):
    layers = found(name)[0].layers()
    assert {layer.name: (layer.kind, layer.width) for layer in layers} == LAYERS[name]
    assert [layer.name for layer in layers] == list(LAYERS[name])


@pytest.mark.parametrize(
    ("name", "module", "reason"),
    [
        ("LSTM language model", "decoder", "the model returns it"),
        ("tied LSTM language model", "decoder", "a row for each type of the embedding encoder"),
        ("LSTM and linear", "lstm.2", "the model returns it"),
        ("encoder", "0.layers.0.norm1", "add in 0.layers.0 combines it with values of a fixed width"),
        ("ResNet", "fc", "the model returns it"),
        ("GPT-2", "lm_head", "it is tied to transformer.wte"),
        ("Qwen3", "model.layers.0.self_attn.q_norm", "all neurons share it where mul in"),
    ],
)
def test_what_cannot_be_pruned_is_named_with_the_reason(name, module, reason):
    assert reason in found(name)[0].unprunable[module]


def test_a_summary_says_which_readers_cannot_be_refitted_because_they_compute_neurons_too():
    text = str(found("tied LSTM language model")[0])
    assert next(line for line in text.splitlines() if line.startswith("rnn.1")).endswith("in part")
    said = "of rnn.1, its other readers are repaired: encoder.weight computes its neurons too"
    assert said in " ".join(text.split())


@pytest.mark.parametrize(
    ("name", "layer", "obstacle"),
    [
        ("LSTM language model", "rnn.1", ""),
        ("classifier of outputs", "lstm.0_reverse", ""),
        ("classifier of states", "lstm.1", "weight_hh_l0 and fc.weight read different functions of its neurons"),
        ("ResNet", "conv1", "layer1.0.conv1.weight and layer2.0.conv1.weight read different functions"),
        ("ResNet", "layer1.0.conv1", "layer1.0.conv2 puts zeros around what it reads"),
        ("VGG", "features.11", ""),
        ("tied LSTM language model", "rnn.1", "encoder.weight computes its neurons as well as reading them"),
        ("GPT-2", "transformer.h.0.mlp.c_fc", ""),
    ],
)
def test_a_layer_says_why_its_readers_cannot_be_refitted_exactly(name, layer, obstacle):
    (told,) = [known.obstacle for known in found(name)[0].layers() if known.name == layer]
    assert obstacle in told
    assert bool(obstacle) == bool(told)


def test_a_reader_that_reads_two_functions_of_neurons_is_named_once():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.leave(self.enter(inputs).tanh()) + self.leave(self.enter(inputs).sin())

    (layer,) = pruning.discover(Twice(), torch.randn(4, 3)).layers()
    assert layer.obstacle == "leave.weight reads different functions of its neurons"


@pytest.mark.parametrize(
    ("name", "module"),
    [("GPT-2", "transformer.h.1.mlp.c_proj"), ("BERT", "classifier"), ("VGG", "classifier.0"), ("concatenated", "out")],
)
def test_recorded_activations_give_what_the_reader_computes_from_them(name, module):
    model, inputs = found(name)
    reader, seen, read = model.network.get_submodule(module), [], []
    (layer,) = [known for known in model.layers() if known.output == f"network.{module}"]
    (piece,) = layer.read
    handle = reader.register_forward_hook(lambda _, __, outputs: read.append(outputs.flatten(0, -2).clone()))
    with record(model, [layer], lambda _, values: seen.append(values)):
        answer(model, inputs)
    handle.remove()
    tensors = named_tensors(model)
    columns = piece.split(tensors[piece.parameter]).reshape(layer.width, piece.size, -1)
    values = seen[0].view(piece.size, -1, layer.width)
    expected = torch.einsum("pnw,wpr->nr", values, columns) + tensors[piece.bias]
    torch.testing.assert_close(read[0], expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["LSTM language model", "GRU language model", "tied ReLU language model"])
def test_a_pruned_recurrent_model_carries_the_state_that_the_users_code_makes(name):
    model, (text, state) = found(name)
    layers = [layer for layer in model.layers() if layer.kind == "rnn"]
    keep = {layer.name: torch.arange(layer.width - 1, place, -1) for place, layer in enumerate(layers)}
    smaller, masked = select(model, keep), mask(model, keep)
    small, large = state, state
    for _ in range(3):
        with torch.no_grad():
            found_here, small = smaller(text, small)
            expected, large = masked(text, large)
        torch.testing.assert_close(found_here, expected, rtol=0, atol=1e-11)
    for one, other, start in zip(
        pytree.tree_leaves(small), pytree.tree_leaves(large), pytree.tree_leaves(state), strict=True
    ):
        assert one.shape == start.shape
        for place, kept in enumerate(keep.values()):
            torch.testing.assert_close(one[place, :, : len(kept)], other[place][:, kept], rtol=0, atol=1e-11)
            assert not one[place, :, len(kept) :].any()


def test_a_state_says_more_than_the_outputs_are_told_by_the_user_only_where_neurons_are_left():
    model, (text, state) = found("LSTM language model")
    keep = {"rnn.0": torch.tensor([4, 1]), "rnn.1": torch.tensor([0])}
    smaller = select(model, keep)
    with torch.no_grad():
        noise = tuple(part + floats(*part.shape) for part in state)
        cleared = tuple(part.clone() for part in noise)
        for part in cleared:
            part[0, :, 2:] = part[1, :, 1:] = 0
        assert torch.equal(smaller(text, noise)[0], smaller(text, cleared)[0])


def test_the_network_alone_is_a_plain_module_whose_tied_weights_stay_tied():
    model, inputs = found("GPT-2")
    smaller = select(model, {"transformer.h.0.attn.c_attn": torch.tensor([3, 0])})
    assert type(smaller.network) is type(made("GPT-2")[0])
    assert smaller.network.lm_head.weight is smaller.network.transformer.wte.weight
    assert smaller.network.transformer.h[0].attn.num_heads == 2
    assert torch.equal(smaller.network(**inputs).logits, smaller(**inputs).logits)
    generated = smaller.network.generate(inputs["input_ids"], max_new_tokens=3, do_sample=False)
    assert generated.shape == (2, 10)


@pytest.mark.parametrize("name", ["classifier of states", "concatenated", "ViT"])
def test_a_pruned_model_trains_and_its_weights_load_into_one_of_its_widths(name):
    model, inputs = found(name)
    smaller = select(model, {layer.name: torch.arange(1, layer.width) for layer in model.layers()}).train()
    assert all(module.training for module in smaller.modules())
    smaller(*inputs).square().sum().backward()
    assert all(parameter.grad is not None for parameter in smaller.parameters())
    other = model.resized([layer.width for layer in smaller.layers()])
    other.load_state_dict(smaller.eval().state_dict())
    assert torch.equal(answer(other.eval(), inputs), answer(smaller, inputs))


@pytest.mark.parametrize("name", ["LSTM language model", "classifier of states", "concatenated", "ViT", "GPT-2"])
def test_a_pruned_network_is_found_and_pruned_again_as_any_other(name):
    model, inputs = found(name)
    wide = [layer for layer in model.layers() if layer.width > 2]  # a single group is no grouped convolution
    keep = {layer.name: torch.arange(layer.width - 1, place % 2, -1) for place, layer in enumerate(wide)}
    smaller = select(model, keep)
    again = pruning.discover(smaller.network, inputs)
    assert again.layers() == smaller.layers()
    assert torch.equal(answer(again, inputs), answer(smaller, inputs))
    keep = {layer.name: torch.tensor([1, 0]) for layer in again.layers() if layer.exact}
    torch.testing.assert_close(
        answer(select(again, keep), inputs), answer(mask(smaller, keep), inputs), rtol=0, atol=1e-11
    )


def test_a_part_that_was_frozen_in_evaluation_mode_stays_so():
    model, inputs = made("concatenated")
    model.train().norm.eval()
    discovered = pruning.discover(model, inputs)
    for network in (discovered.network, discovered.resized([layer.width for layer in discovered.layers()]).network):
        assert {name for name, module in network.named_modules() if not module.training} == {"norm"}


def test_weights_that_lack_a_parameter_are_refused():
    model, _ = found("concatenated")
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"network.left.bias\""):
        model.load_state_dict({name: value for name, value in tensors_of(model).items() if name != "network.left.bias"})


def test_a_layer_of_spiking_neurons_takes_its_leak_and_threshold_along():
    snntorch = pytest.importorskip("snntorch")

    class Spiking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            learnt = {"learn_beta": True, "learn_threshold": True}
            self.fc1, self.fc2, self.fc3 = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 4)
            self.lif1 = snntorch.Leaky(beta=torch.linspace(0.5, 0.9, 8), threshold=torch.full((8,), 0.4), **learnt)
            self.lif2 = snntorch.Leaky(beta=torch.linspace(0.5, 0.9, 7), threshold=0.3)

        def forward(self, currents: Tensor) -> Tensor:
            first, second, found = self.lif1.reset_mem(), self.lif2.reset_mem(), []
            for current in currents:
                spikes, first = self.lif1(self.fc1(current), first)
                spikes, second = self.lif2(self.fc2(spikes), second)
                found.append(self.fc3(spikes))
            return torch.stack(found)

    torch.manual_seed(0)
    inputs = (3 * floats(9, 2, 6).float(),)  # snntorch's spikes are float32 whatever goes in
    network = Spiking()
    network(*inputs).sum().backward()  # its layers keep the last potential, which belongs to a graph
    model = pruning.discover(network, inputs)
    first, second = model.layers()
    assert {piece.parameter for piece in first.owned} >= {"network.lif1.beta", "network.lif1.threshold"}
    assert "network.lif2.beta" in {piece.parameter for piece in second.buffers}
    assert (first.kind, first.obstacle, second.kind) == ("snn", "", "snn")
    keep = {"fc1": torch.tensor([7, 2, 3]), "fc2": torch.tensor([1, 0, 5, 6])}
    assert answer(model, inputs).std() > 0.01
    torch.testing.assert_close(answer(select(model, keep), inputs), answer(mask(model, keep), inputs))


@pytest.mark.parametrize("name", ["ResNet", "VGG", "MobileNetV2", "convolutions", "linear chain", "ViT"])
def test_the_same_kept_neurons_give_bit_for_bit_what_torch_pruning_gives(name):
    peer = pytest.importorskip("torch_pruning")
    theirs, inputs = made(name)
    model, _ = found(name)
    layers = [layer for layer in model.layers() if layer.kind != "head" and layer.exact]
    keep = {layer.name: torch.arange(place % 2, layer.width, 2) for place, layer in enumerate(layers)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = peer.DependencyGraph().build_dependency(theirs, example_inputs=inputs)
    for layer in layers:
        module = theirs.get_submodule(layer.name)
        cut = peer.prune_conv_out_channels if isinstance(module, nn.Conv2d) else peer.prune_linear_out_channels
        graph.get_pruning_group(module, cut, idxs=removed_neurons(layer, keep).tolist()).prune()
    assert torch.equal(answer(select(model, keep), inputs), answer(theirs, inputs))


def test_a_lone_tensor_is_an_input():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    assert [layer.name for layer in pruning.discover(model, floats(5, 3)).layers()] == ["0"]


def test_inputs_without_a_tensor_are_refused():
    with pytest.raises(TypeError, match="Expected inputs with a tensor in them, got int; an object that holds"):
        pruning.discover(nn.Linear(2, 2), 3)


def test_a_model_that_no_neuron_can_leave_is_returned_with_all_reasons():
    model = pruning.discover(nn.Linear(3, 2).double(), floats(4, 3))
    assert model.layers() == []
    assert model.unprunable == {"weight": "the model returns it", "bias": "the model returns it"}


def test_a_model_that_does_not_run_on_the_inputs_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="runs on the example inputs, got RuntimeError: mat1 and mat2 shapes cannot"):
        pruning.discover(nn.Linear(2, 3), (torch.ones(4, 5),))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_model_that_asks_for_the_class_of_its_recurrent_layer_computes_the_same(kind):
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = kind(3, 5, batch_first=True, bidirectional=True), nn.Linear(10, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs, state = self.rnn(inputs)
            hidden = state[0] if isinstance(self.rnn, nn.LSTM) else state
            read = outputs.mean(1) if isinstance(self.rnn, (nn.LSTM, nn.GRU)) else torch.cat(list(hidden), dim=1)
            return self.out(read) * self.rnn.weight_hh_l0_reverse.shape[1] ** (not self.rnn.batch_first)

    model, inputs = Asking().double(), (floats(2, 4, 3),)
    discovered = pruning.discover(model, inputs)
    torch.testing.assert_close(answer(discovered, inputs), answer(model, inputs), rtol=0, atol=1e-12)
    assert [layer.name for layer in discovered.layers()] == ["rnn.0", "rnn.0_reverse"]


@pytest.mark.parametrize(
    ("asks", "sentence"),
    [
        (lambda rnn: 0.5 if type(rnn) is nn.LSTM else 1.0, r"that replacing rnn by .*, got outputs that are .* apart"),
        (lambda rnn: torch.ones(1 + (type(rnn) is nn.LSTM), 1, 1, 1).double(), "got outputs of other shapes"),
        (lambda rnn: {nn.LSTM: 1.0}[type(rnn)], "got KeyError: .*RecurrentLSTM"),
    ],
)
def test_a_model_that_computes_something_else_with_its_modules_replaced_is_refused_with_the_reason(asks, sentence):
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.LSTM(3, 5), nn.Linear(5, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.out(self.rnn(inputs)[0]) * asks(self.rnn)

    model, inputs = Asking().double(), (floats(2, 4, 3),)
    with pytest.raises(ValueError, match=sentence):
        pruning.discover(model, inputs)


def test_a_width_that_the_code_counts_on_is_found_though_the_weights_hide_it():
    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 2)
            nn.init.zeros_(self.second.weight)  # so that nothing depends on the first layer

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.first(inputs)
            return self.last(self.second(hidden + torch.linspace(0, 1, hidden.shape[-1])).relu())

    discovered = pruning.discover(Halved().double(), (floats(4, 3),))
    assert [layer.name for layer in discovered.layers()] == ["second"]
    assert "the model computes something else than where nobody reads them" in discovered.unprunable["first"]


def test_what_a_recurrent_layer_projects_its_cells_to_is_a_layer():
    model = nn.Sequential(
        nn.Linear(3, 6), nn.Tanh(), First(nn.LSTM(6, 4, proj_size=2)), nn.Linear(2, 5), nn.Linear(5, 3)
    )
    discovered = pruning.discover(model.double(), (floats(5, 2, 3),))
    assert [(layer.name, layer.width) for layer in discovered.layers()] == [("0", 6), ("2.layer.0", 2), ("3", 5)]
    keep = {"2.layer.0": torch.tensor([1]), "0": torch.tensor([5, 2])}
    expected = answer(mask(discovered, keep), (floats(5, 2, 3),))
    torch.testing.assert_close(answer(select(discovered, keep), (floats(5, 2, 3),)), expected, rtol=0, atol=1e-12)


def test_gathered_weights_are_those_of_each_neuron_by_hand():
    model, _ = found("concatenated")
    tensors = named_tensors(model)
    right = next(layer for layer in model.layers() if layer.name == "right")
    expected = [
        tensors["network.right.weight"][2].flatten(),
        *(tensors[f"network.norm.{n}"][6:7] for n in ("weight", "bias")),
    ]
    assert torch.equal(gather(right.owned, tensors)[2], torch.cat(expected))
    assert torch.equal(gather(right.read, tensors)[2], tensors["network.wide.weight"][:, 6].flatten())


def test_a_summary_says_what_was_found_what_it_reaches_and_why_the_rest_stays():
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.second = nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 4)
            self.added, self.last = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.last(inputs + self.added(self.second(self.norm(self.first(inputs))).relu()))

    discovered = pruning.discover(Summed().double(), floats(5, 3))
    text = str(discovered)
    assert text == discovered.summary()
    header, *lines = text.splitlines()
    # first 18 + 6, norm 6 + 6, second 24 + 4, added 12; not the biases of what stays, nor its rows
    assert header == "2 layers of neurons, with 87% of 87 parameters within reach"
    assert lines[0].split() == ["layer", "kind", "width", "parameters", "exact", "repairable"]
    assert lines[1].split() == ["first", "dense", "6", "60", "no", "yes"]
    assert lines[2].split() == ["second", "dense", "4", "40", "yes", "yes"]
    text = text.replace("\n    ", " ").replace("\n  ", " ")
    assert " added (17.2%): add combines it with values of a fixed width; map these to a width" in text
    assert " last (9.2%): the model returns it; its width is that of the answer" in text
    assert "carried" not in text  # of a network that takes one argument
    assert "folded into parameters: added.weight: WeightNorm\n" in text
    assert "not exact: what is computed over all neurons" in text
    assert text.endswith("`found.experts()` look for them, `pruning.shorten(found, names)` takes them out")
    assert "(network): Summed(" in repr(discovered)


@pytest.mark.parametrize("attends", [False, True])
def test_a_recurrent_layers_state_that_goes_in_and_out_may_be_read_besides(attends: bool):
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score, self.rnn, self.out = nn.Linear(9, 4), nn.GRU(3, 6), nn.Linear(6, 2)

        def forward(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            if attends:  # by the state that the call before gave
                inputs = inputs * self.score(torch.cat([inputs[0], state[0]], dim=1)).softmax(1)[:, :1]
            outputs, state = self.rnn(inputs, state)
            return self.out(outputs), state

    inputs, kept = (floats(4, 2, 3), floats(1, 2, 6)), torch.tensor([5, 0, 2])
    found = pruning.discover(Attending().double(), inputs)
    assert [layer.name for layer in found.layers() if layer.exact] == ["rnn.0"]
    masked, smaller = mask(found, {"rnn.0": kept}), pruning.select(found, {"rnn.0": kept})
    whole, state = inputs[1], torch.cat([inputs[1][..., kept], inputs[1][..., :3]], dim=-1)
    for _ in range(3):
        (one, whole), (other, state) = masked(inputs[0], whole), smaller(inputs[0], state)
        torch.testing.assert_close(other, one, rtol=0, atol=1e-13)
        torch.testing.assert_close(state[..., :3], whole[..., kept], rtol=0, atol=1e-13)
        assert (state.shape, bool(state[..., 3:].any())) == ((1, 2, 6), False)


def test_a_model_that_computes_gradients_in_its_forward_is_followed_with_them():
    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 6), nn.Linear(6, 1)

        def forward(self, inputs: Tensor) -> Tensor:
            inputs = inputs.detach().requires_grad_()
            energy = self.second(self.first(inputs).tanh()).sum()
            return torch.autograd.grad(energy, inputs, create_graph=True)[0]

    model = Slope().double()
    found = pruning.discover(model, floats(4, 3))
    assert [(layer.name, layer.width, layer.exact) for layer in found.layers()] == [("first", 6, True)]
    assert torch.equal(found(floats(4, 3)), model(floats(4, 3)))
    keep = {"first": torch.tensor([4, 1, 0])}
    torch.testing.assert_close(select(found, keep)(floats(4, 3)), mask(found, keep)(floats(4, 3)))
    data = [(floats(4, 3, seed=seed), floats(4, 3, seed=seed + 9)) for seed in range(3)]
    half = pruning.prune(model, pruning.importance(model, data, nn.MSELoss()), keep=0.5)
    assert half.module.first.out_features == 3
