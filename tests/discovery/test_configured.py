"""Configurations of `transformers` say the widths that are left, where they can, so that others save and load them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.core.neurons import select
from tests.foreign import tokens, transformers

SPECIAL = {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
SMALL = {"vocab_size": 11, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}


def gpt2() -> Any:
    library = transformers()
    return library.GPT2LMHeadModel(
        library.GPT2Config(vocab_size=11, n_positions=16, n_embd=16, n_layer=2, n_head=4, **SPECIAL)
    )


def llama() -> Any:
    library = transformers()
    return library.LlamaForCausalLM(
        library.LlamaConfig(**SMALL, intermediate_size=20, num_key_value_heads=2, tie_word_embeddings=True, **SPECIAL)
    )


def bert() -> Any:
    library = transformers()
    return library.BertForSequenceClassification(
        library.BertConfig(**SMALL, intermediate_size=24, max_position_embeddings=16, num_labels=3)
    )


def t5() -> Any:
    library = transformers()
    settings = {"pad_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 1}
    return library.T5ForConditionalGeneration(
        library.T5Config(vocab_size=11, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, **settings)
    )


MODELS: dict[str, tuple[Callable[[], Any], str, dict[str, int]]] = {
    "GPT-2's inner width, which it left out": (gpt2, ".mlp.", {"n_inner": 32}),
    "GPT-2's stream and heads": (gpt2, "", {"n_embd": 8, "n_head": 2, "n_inner": 32}),
    "Llama's heads, two queries for a key": (llama, "self_attn", {"num_attention_heads": 2, "num_key_value_heads": 1}),
    "Llama's everything": (
        llama,
        "",
        {"hidden_size": 8, "intermediate_size": 10, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4},
    ),
    "BERT's inner width": (bert, "intermediate", {"intermediate_size": 12}),
    "BERT's everything": (bert, "", {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2}),
    "T5's inner width": (t5, "DenseReluDense", {"d_ff": 12}),
}


@cache
def known(make: Callable[[], Any]) -> tuple[Any, Any, dict[str, Tensor]]:
    """Return what was found in a model, the model, and its inputs; to be left as they are."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = make().eval()
    inputs = {"input_ids": tokens(2, 7)} | ({"decoder_input_ids": tokens(2, 5)} if make is t5 else {})
    return pruning.discover(dense, inputs), dense, inputs


def halved(name: str) -> tuple[Any, Any, dict[str, Tensor]]:
    """Return a model without every other neuron of the layers that are asked for, the dense one, and their inputs."""
    make, part, _ = MODELS[name]
    found, dense, inputs = known(make)
    keep = {layer.name: torch.arange(0, layer.width, 2) for layer in found.layers() if part in layer.name}
    assert keep
    return select(found, keep), dense, inputs


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_saved_and_loaded_by_its_configuration_and_gives_the_same(name: str, tmp_path: Path) -> None:
    smaller, dense, inputs = halved(name)
    expected = MODELS[name][2]
    said = {key: getattr(smaller.network.config, key) for key in expected}
    if name == "GPT-2's stream and heads":  # four times the width is what it takes where nothing is said
        said["n_inner"] = said["n_inner"] or 4 * said["n_embd"]
    assert said == expected
    smaller.network.save_pretrained(tmp_path)
    loaded = type(dense).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, smaller.network(**inputs).logits)
    if hasattr(dense, "generate") and loaded.can_generate():
        settings = {"attention_mask": torch.ones(2, 7).long(), "max_new_tokens": 5, "do_sample": False}
        one, other = (model.generate(tokens(2, 7), **settings) for model in (loaded, smaller.network))
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["Llama's everything", "T5's inner width"])
def test_a_restored_model_has_the_configuration_of_the_saved_one(name: str, tmp_path: Path) -> None:
    smaller, _, inputs = halved(name)
    pruning.save(smaller, tmp_path / "ours")
    restored: Any = pruning.restore(MODELS[name][0](), tmp_path / "ours")
    for module, other in zip(restored.modules(), smaller.network.modules(), strict=True):
        if hasattr(module, "config"):
            assert module.config.to_dict() == other.config.to_dict()
    restored.save_pretrained(tmp_path / "theirs")
    loaded = type(restored).from_pretrained(tmp_path / "theirs").eval()
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, smaller.network(**inputs).logits)


def test_a_second_cut_is_said_too_and_one_that_cannot_be_said_changes_nothing() -> None:
    found, *_ = known(llama)
    inner = [layer.name for layer in found.layers() if "mlp" in layer.name]
    unequal = select(found, {inner[0]: torch.arange(7)})
    assert unequal.network.config.intermediate_size == 20
    equal = select(unequal, {inner[1]: torch.arange(7)})
    assert equal.network.config.intermediate_size == 7
    assert select(equal, {name: torch.arange(3) for name in inner}).network.config.intermediate_size == 3
    assert found.network.config.intermediate_size == 20


class Settings(SimpleNamespace):
    """A configuration."""

    def to_dict(self) -> dict[str, Any]:
        return vars(self)


class Scaled(nn.Module):
    """A model whose class computes with a width that its configuration says."""

    def __init__(self, config: Settings) -> None:
        super().__init__()
        self.config = config
        self.scale = config.width**0.5
        self.first, self.last = nn.Linear(3, config.width), nn.Linear(config.width, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.first(inputs).relu() * self.scale)

    def save_pretrained(self, folder: str) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("inside", [False, True])
def test_a_configuration_by_which_a_class_would_compute_something_else_stays(inside: bool) -> None:
    torch.manual_seed(0)  # of weights by which some kept neuron says something, or the scale would not matter
    model = Scaled(Settings(width=8))
    network = nn.Sequential(model, nn.Tanh()) if inside else model
    found = pruning.discover(network, torch.randn(32, 3))
    smaller: Any = select(found, {found.layers()[0].name: torch.arange(4)}).network
    assert (smaller[0] if inside else smaller).config.width == 8


def test_the_configuration_of_a_part_of_a_network_follows() -> None:
    network = nn.Sequential(llama().model, nn.Identity())

    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = network[0], nn.Linear(16, 3)

        def forward(self, text: Tensor) -> Tensor:
            return self.head(self.body(text).last_hidden_state.mean(1))

    found = pruning.discover(Headed().eval(), tokens(2, 7))
    inner = {layer.name: torch.arange(10) for layer in found.layers() if "mlp" in layer.name}
    smaller: Any = select(found, inner).network
    assert smaller.body.config.intermediate_size == 10
