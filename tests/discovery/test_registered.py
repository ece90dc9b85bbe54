"""What networks register and hold: one module by two names, matrices in buffers, parameters that nothing uses."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pruning
from pruning.core.neurons import mask, select
from tests.discovery.test_forms import Made, Network, answers, drawn
from tests.foreign import floats


def twice_registered() -> Made:
    def run(self: Any, image: Tensor) -> Tensor:
        for part in self.parts:
            image = part(image).relu()
        return self.out(image)

    first, norm, second = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3)
    parts = {"first": first, "norm": norm, "parts": nn.ModuleList([first, norm, second]), "out": nn.Conv2d(6, 2, 1)}
    return Network(run, **parts), (floats(2, 3, 7, 7),)


def fixed_basis() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        return F.linear(self.enter(inputs).relu(), self.basis)

    network = Network(run, enter=nn.Linear(4, 9))
    network.register_buffer("basis", torch.randn(5, 9), persistent=False)
    return network, (floats(3, 4),)


def codebook() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = self.enter(inputs)
        distances = hidden.square().sum(1, keepdim=True) - 2 * hidden @ self.codes.t() + self.codes.t().square().sum(0)
        return self.out(F.embedding(distances.argmin(1), self.codes))

    network = Network(run, enter=nn.Linear(4, 6), out=nn.Linear(6, 2))
    network.register_buffer("codes", torch.randn(7, 6))
    return network, (floats(3, 4),)


def places_of_rows_beside_those_of_columns() -> Made:
    def run(self: Any, image: Tensor) -> Tensor:
        hidden = self.enter(image)
        height, width = hidden.shape[-2:]
        columns = self.columns[:width].unsqueeze(0).repeat(height, 1, 1)
        rows = self.rows[:height].unsqueeze(1).repeat(1, width, 1)
        places = torch.cat([columns, rows], dim=-1).flatten(0, 1)
        return self.out((hidden.flatten(2).transpose(1, 2) + places).relu())

    grids = {name: nn.Parameter(torch.randn(9, 4)) for name in ("rows", "columns")}
    return Network(run, enter=nn.Conv2d(3, 8, 1), out=nn.Linear(8, 2), **grids), (floats(2, 3, 3, 5),)


def random_features() -> Made:
    def parted(self: Any, inputs: Tensor) -> Tensor:
        return inputs.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def features(self: Any, inputs: Tensor) -> Tensor:
        projection = self.projection.expand(len(inputs), inputs.shape[1], -1, -1)
        return torch.einsum("bhnd,bhmd->bhnm", inputs, projection).relu()

    def run(self: Any, inputs: Tensor) -> Tensor:
        queries, keys = features(self, parted(self, self.q(inputs))), features(self, parted(self, self.k(inputs)))
        context = torch.einsum("bhnm,bhnd->bhmd", keys, parted(self, self.v(inputs)))
        return self.out(torch.einsum("bhmd,bhnm->bhnd", context, queries).transpose(1, 2).flatten(2))

    parts = {"q": nn.Linear(6, 8), "k": nn.Linear(6, 8), "v": nn.Linear(6, 8), "out": nn.Linear(8, 3)}
    return Network(run, projection=torch.randn(5, 4), heads=2, **parts), (floats(2, 5, 6),)


HELD = {
    twice_registered: {"first": 8, "parts.2": 6},
    fixed_basis: {"enter": 9},
    codebook: {"enter": 6},
    random_features: {"q": 2},
    places_of_rows_beside_those_of_columns: {"enter:0": 4, "enter:4": 4},
}
"""How a network is made with its inputs → its layers' widths."""


@pytest.mark.parametrize("make", HELD, ids=lambda make: make.__name__)
def test_neurons_of_what_a_network_holds_in_several_places_are_removed_as_they_are_masked_and_saved(make, tmp_path):
    network, inputs = drawn(make)
    before = {name: tensor.clone() for name, tensor in network.named_buffers()}
    model = pruning.discover(network, inputs)
    assert {layer.name: layer.width for layer in model.layers()} == HELD[make]
    assert all(layer.exact for layer in model.layers())
    keep = {layer.name: torch.arange(layer.width - 1, layer.width // 3, -1) for layer in model.layers()}
    smaller = select(model, keep)
    for one, other in zip(answers(smaller, inputs), answers(mask(model, keep), inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    for name, tensor in network.named_buffers():
        assert torch.equal(tensor, before[name])
    pruning.save(smaller, tmp_path)
    restored = pruning.restore(drawn(make)[0], tmp_path)
    for one, other in zip(answers(restored, inputs), answers(smaller, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_module_that_is_registered_twice_is_not_said_to_be_tied_to_itself():
    model = pruning.discover(*drawn(twice_registered))
    assert set(model.unprunable) == {"out"}
    assert model.network.first is model.network.parts[0]


def test_a_buffer_that_reads_neurons_is_a_parameter_that_does_not_learn():
    network, inputs = drawn(fixed_basis)
    smaller = select(pruning.discover(network, inputs), {"enter": torch.tensor([4, 1])})
    assert {name: (tuple(p.shape), p.requires_grad) for name, p in smaller.network.named_parameters()} == {
        "enter.weight": ((2, 4), True),
        "enter.bias": ((2,), True),
        "basis": ((5, 2), False),
    }


def test_signals_of_parameters_that_the_loss_does_not_depend_on_are_those_of_zero_derivatives():
    """As in a WaveNet, whose last residual convolution feeds nobody."""

    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = self.enter(inputs)
        skipped = self.skip(hidden.tanh())
        hidden = hidden + self.residual(hidden.tanh())
        return self.out(skipped.tanh())

    sizes = {"enter": (4, 6), "residual": (6, 6), "skip": (6, 5), "out": (5, 2)}
    torch.manual_seed(0)
    network = Network(run, **{name: nn.Linear(*size) for name, size in sizes.items()}).double()
    data = [(floats(8, 4, seed=seed), torch.arange(8) % 2) for seed in range(3)]
    found = pruning.discover(network, data[0][0])
    importance = pruning.importance(found, data, nn.CrossEntropyLoss())
    assert {"hessian_share", "snip", "surgeon"} <= set(importance.table.columns)
    assert importance.table["surgeon"].notna().all()
    assert pruning.prune(found, importance, keep=0.5, data=data).widths() == (3, 3)


def test_a_detector_that_sees_nothing_on_the_example_has_its_neurons_found():
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = self.enter(inputs).relu()
        seen = self.boxes(hidden)[self.score(hidden)[:, 0].sigmoid() > 2]
        return torch.stack([seen[:, 0], seen[:, 1].clamp(0, 1)], 1), self.boxes(hidden)

    parts = {"enter": nn.Linear(4, 6), "score": nn.Linear(6, 1), "boxes": nn.Linear(6, 2)}
    (layer,) = pruning.discover(Network(run, **parts), floats(3, 4).float()).layers()
    assert (layer.name, layer.width, layer.exact) == ("enter", 6, True)


def test_multiply_adds_are_counted_where_a_cell_begins_with_a_parameter():
    def run(self: Any, inputs: Tensor) -> Tensor:
        read, state = self.begin.unsqueeze(0).expand(len(inputs), -1), None
        for _ in range(2):
            state = self.cell(read, state)
            read = inputs
        return self.out(state[0])

    network = Network(run, begin=nn.Parameter(torch.randn(3)), cell=nn.LSTMCell(3, 5), out=nn.Linear(5, 2))
    model = pruning.adapt(network, torch.randn(4, 3), loss=nn.MSELoss())
    assert model.multiply_adds() == 2 * 4 * 5 * (3 + 5) + 5 * 2
    assert all(parameter.requires_grad for parameter in model.parameters())
