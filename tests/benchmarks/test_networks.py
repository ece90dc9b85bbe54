"""The benchmark of published networks on a few of them, and what its table says of those that are lacking or wrong."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from benchmarks.catalogue import Network
from benchmarks.networks import NETWORKS, in_precision, look, proof, separately
from benchmarks.tabled import page, row, summed
from pruning.core.neurons import NeuronLayer
from pruning.discovery import discover


def small() -> Network:
    return Network("torch", lambda: (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (torch.randn(4, 6),)))


@pytest.mark.parametrize("name", ["DenseNet", "GPT-2", "snntorch Leaky"])
def test_neurons_of_published_networks_are_found_and_rightly_removed(name):
    network = NETWORKS[name]
    if find_spec(network.package) is None:
        pytest.skip(f"{network.package} is not installed")
    facts = look(name, network)
    assert facts["layers"] > 0
    assert facts["reach"] > 0.9
    assert facts["proof"].startswith("yes")


def test_a_network_of_a_package_that_is_not_installed_is_passed_over_with_the_reason():
    facts = separately("absent", Network("a-package-that-nobody-has", small().make))
    assert "skipped: a-package-that-nobody-has is not installed" in row(facts)
    assert summed([facts, _facts()]).startswith("Of 1 networks")


def test_a_network_that_cannot_be_built_is_a_row_that_says_so():
    def broken() -> tuple[nn.Module, tuple[torch.Tensor]]:
        raise TypeError("no such size")

    assert "no: TypeError: no such size" in row(separately("broken", Network("torch", broken)))


def test_a_network_that_is_cut_wrongly_is_named_above_the_table():
    wrong = _facts() | {"name": "wrong", "proof": "no: 2e-01 apart"}
    assert "Wrong: wrong." in summed([_facts(), wrong])
    assert "no: 2e-01 apart" in page([_facts(), wrong])


def test_the_check_notices_a_layer_that_reads_what_was_removed():
    network = small()
    given, inputs = network.make()
    found = discover(given, inputs)
    assert proof(given, found, inputs) == "yes"
    (layer,) = found.layers()
    silent = NeuronLayer(layer.name, layer.kind, layer.width, layer.owned[:1], layer.read, layer.output)
    found._layers = [silent]
    with pytest.raises(RuntimeError, match="size"):
        proof(given, found, inputs)


def test_weights_that_were_folded_in_single_precision_are_not_taken_for_a_mistake():
    network = nn.Sequential(weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3))
    assert look("normed", Network("torch", lambda: (network, (torch.randn(4, 6),))))["proof"] == "yes"


def test_complex_weights_keep_their_imaginary_parts_in_another_precision():
    weights = nn.ParameterList([torch.tensor([1 + 2j]), torch.ones(1)])
    finer = in_precision(weights, torch.float64)
    assert [part.dtype for part in finer] == [torch.complex128, torch.float64]
    assert finer[0].item() == 1 + 2j


def _facts() -> dict[str, object]:
    return {"package": "torch", "rival": "works, −50%", **look("small", small())}
