"""Residual blocks of networks of others: found, gone as if they were skipped, with what fed them, and restored."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.discovery.absent import Absent, skipping
from pruning.discovery.discovered import Discovered
from pruning.discovery.running import close, tensors_in
from tests.discovery.residual import Basic, Biased, Named, Stack, Together, Transformer, Wrapped
from tests.foreign import floats, tokens, torchvision, transformers


def images() -> nn.Module:
    stages = [nn.Sequential(Basic(4, 4, 1), Basic(4, 4, 1)), nn.Sequential(Basic(4, 6, 2), Basic(6, 6, 1))]
    start = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)]
    return nn.Sequential(*start, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))


def encoder(*, first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=first)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


def resnet() -> nn.Module:
    models = torchvision().models
    network: nn.Module = models.ResNet(models.resnet.BasicBlock, [2, 1, 1, 1], num_classes=3)
    return network


def language_model(kind: str, **settings: Any) -> nn.Module:
    library = transformers()
    usual = {"vocab_size": 11, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    network: nn.Module = getattr(library, kind)(getattr(library, f"{KINDS[kind]}Config")(**usual, **settings))
    return network


KINDS = {"GPT2LMHeadModel": "GPT2", "LlamaForCausalLM": "Llama", "BertModel": "Bert", "Qwen3ForCausalLM": "Qwen3"}


def gpt2() -> nn.Module:
    return language_model("GPT2LMHeadModel", n_positions=32, n_embd=8, n_layer=3, n_head=2)


def llama() -> nn.Module:
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1}
    return language_model("LlamaForCausalLM", num_hidden_layers=3, **sizes)


def bert() -> nn.Module:
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2}
    return language_model("BertModel", num_hidden_layers=2, **sizes)


IDS, STEPS, IMAGES = (tokens(2, 6),), (floats(2, 5, 3),), (floats(2, 3, 9, 9),)
BERT = ("", ".attention", ".attention.output.dense", ".output", ".output.dense")
ENCODER = [f"layers.{n}{part}" for n in range(3) for part in ("", ".self_attn", ".linear2")]
CASES: dict[str, tuple[Callable[[], nn.Module], Any, list[str]]] = {
    "blocks in a loop": (
        Transformer,
        IDS,
        [name for n in range(3) for name in (f"blocks.{n}", f"blocks.{n}.proj", f"blocks.{n}.down")],
    ),
    "blocks by number": (
        lambda: Transformer(indexed=True),
        IDS,
        [name for n in range(3) for name in (f"blocks.{n}", f"blocks.{n}.proj", f"blocks.{n}.down")],
    ),
    "by attribute": (Named, (floats(2, 6),), ["ff", "mix"]),
    "recurrent": (Stack, STEPS, ["layers.0", "layers.1", "layers.2"]),
    "gated units": (lambda: Stack(nn.GRU), STEPS, ["layers.0", "layers.1", "layers.2"]),
    "in step": (Together, STEPS, ["parts.0", "parts.1"]),
    "wrapped": (
        lambda: nn.Sequential(nn.Linear(3, 4), Wrapped(nn.Linear(4, 4)), Wrapped(nn.Linear(4, 4)), nn.Linear(4, 2)),
        STEPS,
        ["1", "2"],
    ),
    "told by the first": (Biased, STEPS, ["parts.1", "parts.2", "parts.3", "parts.4"]),
    "images": (images, IMAGES, ["3.0", "3.1", "4.1"]),
    "normalised first": (lambda: encoder(first=True), (floats(2, 5, 8),), ENCODER),
    "normalised last": (lambda: encoder(first=False), (floats(2, 5, 8),), ENCODER),
    "ResNet": (resnet, (floats(1, 3, 33, 33),), ["layer1.0", "layer1.1"]),
    "GPT-2": (
        gpt2,
        IDS,
        [f"transformer.h.{n}{part}" for n in range(3) for part in ("", ".attn", ".mlp")],
    ),
    "Llama": (llama, IDS, [f"model.layers.{n}{part}" for n in range(3) for part in ("", ".self_attn", ".mlp")]),
    "BERT": (
        bert,
        IDS,
        [f"encoder.layer.{n}{part}" for n in range(2) for part in BERT],
    ),
}


@cache
def made(name: str) -> tuple[Discovered, nn.Module, Any]:
    """Return a network in which neurons and blocks were looked for, as its user has it, and its inputs; to be left."""
    make, inputs, _ = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make().double().eval()
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.5)
    return pruning.discover(network, inputs), network, inputs


def outputs(network: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.no_grad():
        found = network(**inputs) if isinstance(inputs, dict) else network(*inputs)
    return [tensor for tensor in tensors_in(found) if tensor.is_floating_point()][:1]


@pytest.mark.parametrize("name", CASES)
def test_residual_blocks_are_found(name: str) -> None:
    found, *_ = made(name)
    assert [block.name for block in found.blocks()] == CASES[name][2]


@pytest.mark.parametrize("name", CASES)
def test_gone_equals_skipped_and_the_parameters_are_gone(name: str) -> None:
    found, network, inputs = made(name)
    blocks = found.blocks()
    for gone in (blocks[:1], blocks[1::3]):
        smaller = pruning.shorten(found, [block.name for block in gone])
        with skipping(found.network, [(block.module, block.passes) for block in gone]):
            expected = outputs(found.network, inputs)
        assert all(map(close, outputs(smaller.network, inputs), expected))
        assert not all(map(close, outputs(network, inputs), expected))
    sizes = [sum(own.numel() for own in model.parameters()) for model in (network, smaller)]
    alone = [block for block in gone if block.within not in {other.name for other in gone}]
    assert sizes[0] - sizes[1] == sum(block.parameters for block in alone)


@pytest.mark.parametrize("name", ["blocks by number", "by attribute", "recurrent", "images", "GPT-2", "BERT"])
def test_neurons_go_beside_blocks_in_any_order_and_all_is_saved(name: str, tmp_path: Path) -> None:
    found, network, inputs = made(name)
    first = found.blocks()[0]
    narrow = pruning.select(
        found, {layer.name: torch.arange(layer.width - 1) for layer in found.layers() if layer.exact}
    )
    with skipping(narrow.network, [(first.module, first.passes)]):
        expected = outputs(narrow.network, inputs)
    shallow = pruning.shorten(narrow, [first.name])
    assert all(map(close, outputs(shallow.network, inputs), expected))
    keep = {layer.name: torch.arange(layer.width)[1:] for layer in shallow.layers() if layer.width > 2}
    smaller = pruning.select(shallow, keep)
    pruning.save(smaller, tmp_path)
    again = pruning.restore(copy.deepcopy(network), tmp_path)
    assert all(map(close, outputs(again, inputs), outputs(smaller.network, inputs)))


@pytest.mark.parametrize("name", ["blocks in a loop", "GPT-2", "Llama", "images", "recurrent"])
def test_what_is_left_is_discovered_exactly(name: str) -> None:
    found, _, inputs = made(name)
    smaller = pruning.shorten(found, [found.blocks()[-1].name])
    assert smaller.layers()
    keep = {layer.name: torch.arange(layer.width)[1:] for layer in smaller.layers() if layer.exact}
    masked = pruning.mask(smaller, keep)
    assert all(map(close, outputs(pruning.select(smaller, keep).network, inputs), outputs(masked.network, inputs)))


def test_a_list_is_shorter_and_numbers_that_count_it_follow() -> None:
    found, *_ = made("blocks by number")
    smaller = pruning.shorten(found, ["blocks.0", "blocks.2"]).network
    assert (len(smaller.blocks), smaller.n_layers) == (1, 1)
    assert not any(isinstance(module, Absent) for module in smaller.modules())


def test_what_feeds_a_sublayer_alone_goes_with_it() -> None:
    found, *_ = made("blocks in a loop")
    (block,) = [block for block in found.blocks() if block.name == "blocks.1.proj"]
    assert set(block.parts) == {f"blocks.1.{name}" for name in ("norm1", "q", "k", "v", "proj")}
    smaller = pruning.shorten(found, ["blocks.1.proj"]).network
    assert all(isinstance(getattr(smaller.blocks[1], name), Absent) for name in ("norm1", "q", "k", "v", "proj"))
    assert "Absent(zeros)" in str(smaller)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrent_layer_that_is_gone_gives_its_state_on(kind: type[nn.RNNBase]) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = kind(3, 3, batch_first=True), kind(3, 3, batch_first=True)

        def forward(self, x: Tensor, state: Any = None) -> Any:
            y, first = self.one(x, state)
            x = x + y
            y, second = self.two(x)
            return x + y, first, second

    found = pruning.discover(Pair(), STEPS[0].float())
    smaller = pruning.shorten(found, ["one"]).network
    expected, given = (tensors_in(network(STEPS[0].float())) for network in (found.network, smaller))
    assert [part.shape for part in given] == [part.shape for part in expected]
    states = len(expected) // 2
    assert not any(part.any() for part in given[1 : 1 + states])
    state = expected[1] if states == 1 else tuple(expected[1:3])
    assert smaller(STEPS[0].float(), state)[1] is state


def test_a_stack_of_recurrent_layers_gives_as_many_states_as_it_has_layers() -> None:
    found = pruning.discover(Stack(states=True), STEPS[0].float())
    assert len(pruning.shorten(found, ["layers.1"]).network(STEPS[0].float())[1]) == 2


def test_blocks_that_cannot_go_together_are_refused_and_unknown_ones_too() -> None:
    found = pruning.discover(Together(), STEPS[0].float())
    pruning.shorten(found, ["parts.0", "parts.1"])

    class Collected(Stack):
        def forward(self, x: Tensor) -> Any:
            h, seen = self.inputs(x), []
            for layer in self.layers[:2]:
                h = h + layer(h)[0]
                seen.append(h)
            return self.out(torch.stack(seen)[-1])

    found = pruning.discover(Collected(), STEPS[0].float())
    assert [block.name for block in found.blocks()] == ["layers.0", "layers.1"]
    with pytest.raises(ValueError, match=r"^Unknown block 'layers.7'; known: \['layers.0', 'layers.1'\]\.$"):
        pruning.shorten(found, ["layers.7"])
    with pytest.raises(TypeError, match=r"^Expected names of blocks in a list, got the text 'layers.0'\.$"):
        pruning.shorten(found, "layers.0")
    with pytest.raises(
        TypeError, match=r"^Expected what `pruning.discover` found in a network, got Collected; discover"
    ):
        pruning.shorten(Collected(), ["layers.0"])


def test_a_network_without_residual_sums_has_no_blocks() -> None:
    found = pruning.discover(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(1, 3))
    assert found.blocks() == []
    assert pruning.shorten(found, []) is found


@pytest.mark.parametrize("name", ["GPT-2", "Llama"])
@pytest.mark.parametrize("part", ["", ".attn"])
def test_language_models_generate_with_their_cache_afterwards(name: str, part: str, tmp_path: Path) -> None:
    found, network, (ids,) = made(name)
    names = [block.name for block in found.blocks()]
    gone = [names[0], names[6]] if not part else [name for name in names if "attn" in name][:2]
    smaller: Any = pruning.shorten(found, gone).network
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "attention_mask": torch.ones_like(ids)}
    with_cache, without = (smaller.generate(ids, use_cache=cached, **settings) for cached in (True, False))
    assert torch.equal(with_cache, without)
    assert smaller.config.num_hidden_layers == (1 if not part else 3)
    if not part:
        smaller.save_pretrained(tmp_path)
        again = type(smaller).from_pretrained(tmp_path).double()
        assert all(map(close, outputs(again, (ids,)), outputs(smaller, (ids,))))
    pruning.save(pruning.shorten(found, gone), tmp_path / "plan")
    restored: Any = pruning.restore(copy.deepcopy(network), tmp_path / "plan")
    assert torch.equal(restored.generate(ids, **settings), without)
    assert restored.config.num_hidden_layers == smaller.config.num_hidden_layers


def test_a_list_in_a_configuration_loses_the_entries_of_the_blocks_that_are_gone() -> None:
    transformers()
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
    }
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    network = language_model(
        "Qwen3ForCausalLM", num_hidden_layers=3, layer_types=kinds, sliding_window=3, use_sliding_window=True, **sizes
    ).eval()
    found = pruning.discover(network, IDS)
    smaller: Any = pruning.shorten(found, ["model.layers.0"]).network
    assert (smaller.config.num_hidden_layers, smaller.config.layer_types) == (2, kinds[1:])
    assert network.config.layer_types == kinds
    settings = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(IDS[0])}
    given = [smaller.generate(IDS[0], use_cache=cached, **settings) for cached in (True, False)]
    assert torch.equal(*given)
