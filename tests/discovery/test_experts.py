"""Experts of mixtures: found, gone as if they were never chosen, their neurons too, and restored."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.discovery.running import close, tensors_in
from tests.foreign import floats, tokens, transformers


class Mixed(nn.Module):
    """A mixture in a list, chosen from or weighed, gone through as a list or by number."""

    def __init__(self, *, chosen: int, numbered: bool = False) -> None:
        super().__init__()
        self.inputs, self.router, self.out = nn.Linear(3, 6), nn.Linear(6, 4), nn.Linear(6, 2)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 6)) for _ in range(4))
        self.chosen, self.num_experts, self.numbered = chosen, 4, numbered

    def forward(self, x: Tensor, closed: Tensor | None = None) -> Tensor:
        x = self.inputs(x)
        scores = self.router(x)
        scores = scores if closed is None else scores.masked_fill(closed, -torch.inf)
        weights = scores.softmax(-1)
        if not self.chosen:
            return self.out(x + sum(expert(x) * weights[:, n, None] for n, expert in enumerate(self.experts)))
        weights, places = weights.topk(self.chosen, -1)
        y = torch.zeros_like(x)
        for number in range(self.num_experts if self.numbered else len(self.experts)):
            token, column = (places == number).nonzero(as_tuple=True)
            y = y.index_add(0, token, self.experts[number](x[token]) * weights[token, column, None])
        return self.out(x + y)


def model(kind: str, **settings: Any) -> nn.Module:
    library = transformers()
    usual = {"vocab_size": 11, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "hidden_size": 8}
    sizes = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2, "intermediate_size": 12}
    network: nn.Module = getattr(library, f"{kind}ForCausalLM")(
        getattr(library, f"{kind}Config")(**usual, **sizes, num_experts_per_tok=2, **settings)
    )
    return network


QWEN = {"num_experts": 4, "moe_intermediate_size": 12, "decoder_sparse_step": 1}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "Mixtral": lambda: model("Mixtral", num_local_experts=4),
    "Qwen2Moe": lambda: model("Qwen2Moe", shared_expert_intermediate_size=12, **QWEN),
    "Qwen3Moe": lambda: model("Qwen3Moe", head_dim=4, **QWEN),
}


def found_in(network: nn.Module, inputs: Tensor) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in network.eval().parameters():
            nn.init.normal_(parameter, std=0.5)
    return pruning.discover(network, inputs)


@pytest.mark.parametrize("chosen", [0, 1, 2])
@pytest.mark.parametrize("numbered", [False, True])
def test_an_expert_that_is_gone_is_one_that_is_never_chosen(chosen: int, numbered: bool, tmp_path: Path) -> None:
    network, x = Mixed(chosen=chosen, numbered=numbered).double(), floats(40, 3)
    found = found_in(network, x)
    assert [expert.name for expert in found.experts()] == [f"experts.{n}" for n in range(4)]
    smaller = pruning.shorten(found, ["experts.1", "experts.2"])
    closed = torch.tensor([False, True, True, False])
    assert close(smaller.network(x), network(x, closed))
    assert (len(smaller.network.experts), smaller.network.num_experts, smaller.network.router.out_features) == (2, 2, 2)
    sizes = [sum(own.numel() for own in each.parameters()) for each in (network, smaller.network)]
    assert sizes[0] - sizes[1] == sum(expert.parameters for expert in found.experts()[1:3])
    narrow = pruning.select(smaller, {layer.name: torch.arange(layer.width - 1) for layer in smaller.layers()})
    pruning.save(narrow, tmp_path)
    assert torch.equal(pruning.restore(copy.deepcopy(network), tmp_path)(x), narrow.network(x))


def test_as_many_experts_stay_as_are_chosen() -> None:
    found = found_in(Mixed(chosen=2), floats(40, 3).float())
    message = r"^Expected at least 2 experts of experts to stay, since so many are chosen for each token, got 1\.$"
    with pytest.raises(ValueError, match=message):
        pruning.shorten(found, ["experts.0", "experts.1", "experts.3"])


@pytest.mark.parametrize("name", MODELS)
def test_experts_in_one_tensor_go_and_the_configuration_says_so(name: str, tmp_path: Path) -> None:
    network, ids = MODELS[name](), tokens(2, 24)
    found = found_in(network, ids)
    paths = [f"model.layers.{layer}.mlp.experts" for layer in range(2)]
    assert [expert.name for expert in found.experts()] == [f"{path}.{n}" for path in paths for n in range(4)]
    smaller: Any = pruning.shorten(found, [f"{paths[0]}.3", f"{paths[1]}.0"]).network
    routers: Any = [network.get_submodule(f"model.layers.{layer}.mlp.gate") for layer in range(2)]

    def scored(router: nn.Module, gone: int) -> Any:  # the router's own code, with no chance for one expert
        def forward(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits = x.reshape(-1, 8) @ router.weight.T
            weights, places = logits.index_fill(-1, torch.tensor([gone]), -torch.inf).softmax(-1).topk(2, -1)
            normed = getattr(router, "norm_topk_prob", True)
            return logits, weights / weights.sum(-1, keepdim=True) if normed else weights, places

        return forward

    closed = copy.deepcopy(network)
    for layer, gone in ((0, 3), (1, 0)):
        router: Any = closed.get_submodule(f"model.layers.{layer}.mlp.gate")
        router.forward = scored(router, gone)
    with torch.no_grad():
        assert close(smaller(ids).logits, closed(ids).logits)
        assert not close(smaller(ids).logits, network(ids).logits)
    assert len(routers[0].weight) == 4
    assert getattr(smaller.config, "num_local_experts", getattr(smaller.config, "num_experts", 0)) == 3
    smaller.save_pretrained(tmp_path)
    again = type(smaller).from_pretrained(tmp_path)
    with torch.no_grad():
        assert close(again(ids).logits, smaller(ids).logits)
    settings = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(*(smaller.generate(ids, use_cache=cached, **settings) for cached in (True, False)))


def test_neurons_of_experts_in_one_tensor_are_found_whatever_product_runs_them() -> None:
    network, ids = MODELS["Mixtral"](), tokens(2, 16)
    assert network.config._experts_implementation == "grouped_mm"
    found = found_in(network, ids)
    name = "model.layers.0.mlp.experts"
    assert {layer.name: layer.exact for layer in found.layers()}[name]
    keep = {name: torch.tensor([0, 2, 3, 5, 7])}
    smaller, masked = pruning.select(found, keep), pruning.mask(found, keep)
    with torch.no_grad():
        one, other = (tensors_in(each(ids))[0] for each in (smaller.network, masked.network))
    assert close(one, other)
    assert smaller.network.config._experts_implementation == "eager"
    assert network.config._experts_implementation == "grouped_mm"
    aligned = pruning.select(found, {name: torch.arange(8)}).network
    assert aligned.config._experts_implementation == "grouped_mm"
