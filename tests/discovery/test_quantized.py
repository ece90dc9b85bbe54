"""Networks whose weights are quantized, or about to be, and others that PyTorch's tools have made of a network."""

import pytest
import torch
import torch.ao.nn.quantizable
from torch import nn
from torch.ao import quantization

from pruning.core.neurons import mask, select
from pruning.discovery import discover
from pruning.discovery.quantized import PREPARED
from tests.foreign import floats

pytestmark = pytest.mark.filterwarnings("ignore")
INPUTS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
STEPS = torch.randn(5, 2, 6, generator=torch.Generator().manual_seed(0))


def layered() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


class Tagger(nn.Module):
    def __init__(self, kind: type[nn.Module] = nn.LSTM) -> None:
        super().__init__()
        self.rnn, self.out = kind(6, 8), nn.Linear(8, 3)

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(steps)[0])


def observed() -> nn.Module:
    network = nn.Sequential(quantization.QuantStub(), layered(), quantization.DeQuantStub()).eval()
    network.qconfig = quantization.get_default_qconfig("x86")
    return quantization.prepare(network)


def static() -> nn.Module:
    network = observed()
    network(INPUTS)
    return quantization.convert(network)


def learning() -> nn.Module:
    network = nn.Sequential(quantization.QuantStub(), layered(), quantization.DeQuantStub()).train()
    network.qconfig = quantization.get_default_qat_qconfig("x86")
    return quantization.prepare_qat(network)


class Halves(nn.Linear):
    """Has two weights of four bits in a byte each."""

    def __init__(self, entering: int, leaving: int) -> None:
        super().__init__(entering, leaving)
        packed = torch.arange(entering * leaving // 2).to(torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        halves = torch.stack([self.weight >> 4, self.weight & 15], -1).to(inputs) - 8
        return inputs @ halves.view(self.out_features, self.in_features).T + self.bias


def dynamic(network: nn.Module, *kinds: type[nn.Module]) -> nn.Module:
    return quantization.quantize_dynamic(network.eval(), set(kinds), dtype=torch.qint8)


QUANTIZED = {
    "dynamic": (lambda: dynamic(layered(), nn.Linear), INPUTS, ["0", "2", "4"]),
    "recurrent": (lambda: dynamic(Tagger(), nn.Linear, nn.LSTM), STEPS, ["rnn", "out"]),
    "static": (static, INPUTS, ["1.0", "1.2", "1.4"]),
    "of four bits": (lambda: nn.Sequential(Halves(6, 8), nn.ReLU(), Halves(8, 8), nn.Linear(8, 3)), INPUTS, ["0", "2"]),
}


@pytest.mark.parametrize("which", QUANTIZED)
def test_every_module_that_is_quantized_says_so_and_what_to_do(which):
    made, inputs, modules = QUANTIZED[which]
    found = discover(made(), inputs)
    assert not found.layers()
    assert [
        name for name, reason in found.unprunable.items() if reason.startswith("its weights are quantized, ")
    ] == modules
    assert "prune the network first, and quantize what comes of it" in " ".join(str(found).split())


def test_a_layer_that_is_read_by_quantized_weights_says_by_which():
    found = discover(dynamic(Tagger(), nn.Linear), STEPS)
    assert found.unprunable["rnn.0"] == "quantized.linear_dynamic in out reads it by weights that are packed"
    assert "prune the network first" in str(found)


@pytest.mark.parametrize("made", [learning, observed])
def test_a_network_that_is_prepared_for_quantization_says_so_of_each_module_and_what_to_do(made):
    found = discover(made(), INPUTS)
    assert found.unprunable == dict.fromkeys(("1.0", "1.2", "1.4"), PREPARED)
    assert "prune the network before it is prepared for quantization" in " ".join(str(found).split())


def fused() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    parts = nn.utils.fusion.fuse_conv_bn_eval(network[0], network[1]), network[2], network[3]
    return nn.Sequential(*parts).double()


def exported() -> torch.export.ExportedProgram:
    return torch.export.export(layered(), (INPUTS,))


MADE = {
    "fused": (fused, floats(2, 3, 8, 8), [4]),
    "a graph": (lambda: torch.fx.symbolic_trace(layered()), INPUTS, [8, 8]),
    "exported": (lambda: exported().module(), INPUTS, [8, 8]),
    "unflattened": (lambda: torch.export.unflatten(exported()), INPUTS, [8, 8]),
    "compiled": (lambda: torch.compile(layered(), backend="eager"), INPUTS, [8, 8]),
    "on several devices": (lambda: nn.DataParallel(layered()), INPUTS, [8, 8]),
    "to be quantized": (lambda: Tagger(torch.ao.nn.quantizable.LSTM).eval(), STEPS, [8]),
}


@pytest.mark.parametrize("which", MADE)
def test_a_network_that_pytorch_made_of_another_is_pruned_as_that_is(which):
    made, inputs, widths = MADE[which]
    found = discover(made(), inputs)
    assert [layer.width for layer in found.layers()] == widths
    keep = {layer.name: torch.tensor([3, 0, 1]) for layer in found.layers()}
    torch.testing.assert_close(select(found, keep)(inputs), mask(found, keep)(inputs))


def test_an_exported_program_is_refused_with_what_to_give():
    with pytest.raises(TypeError, match=r"got ExportedProgram; give its `\.module\(\)`"):
        discover(exported(), INPUTS)
