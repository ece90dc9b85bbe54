"""Networks whose examples cannot be taken apart, nodes of a graph, and networks that give complex numbers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import pruning
from tests.foreign import floats


class Messages(nn.Module):
    """Nodes that read what their neighbours say; with `graphs`, the sum of each graph's nodes is judged."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(5, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, nodes: Tensor, edges: Tensor, graphs: Tensor | None = None) -> Tensor:
        said = torch.relu(self.one(nodes))
        heard = torch.zeros_like(said).index_add(0, edges[1], said[edges[0]])
        known = torch.relu(self.two(said + heard))
        if graphs is not None:
            known = known.new_zeros(int(graphs.max()) + 1, 16).index_add(0, graphs, known)
        return self.out(known)


def graph(nodes: int, *, parted: bool) -> tuple[Tensor, ...]:
    edges = torch.randint(0, nodes, (2, 3 * nodes))
    return torch.randn(nodes, 5), edges, *([torch.arange(nodes) % 3] if parted else [])


def classes(inputs: tuple[Tensor, ...]) -> Tensor:
    return torch.randint(0, 3, (len(inputs[0]),))


def numbers(inputs: tuple[Tensor, ...]) -> Tensor:
    return torch.randn(len(inputs[0]), 3)


@pytest.mark.parametrize(
    ("parted", "targets", "loss"),
    [
        (False, classes, nn.CrossEntropyLoss()),
        (False, numbers, nn.MSELoss()),
        (False, lambda _: None, None),
        (True, lambda _: torch.randint(0, 3, (3,)), nn.CrossEntropyLoss()),
        (True, lambda _: torch.randn(3, 3), lambda outputs, wanted: (outputs - wanted).abs().mean()),
    ],
    ids=["classes of nodes", "numbers of nodes", "no loss", "classes of graphs", "numbers of graphs"],
)
def test_a_network_that_passes_messages_goes_through_the_front_door(
    parted: bool, targets: Callable[[Any], Any], loss: Any
) -> None:
    torch.manual_seed(0)
    data = [(inputs, targets(inputs)) for inputs in (graph(n, parted=parted) for n in (7, 9, 7, 11, 6))]
    found = pruning.discover(Messages().eval(), data[0][0])
    smaller = pruning.prune(found, pruning.importance(found, data, loss), 0.5, repair="imitate", scope="layer")
    assert smaller.report.apart["imitated"] < smaller.report.apart["layer"]
    if loss is not None:
        before = pruning.evaluate(smaller, data).mean
        pruning.finetune(smaller, data, epochs=2)
        assert pruning.evaluate(smaller, data).mean < before


def test_what_a_node_costs_is_its_share_of_the_batch_that_the_model_was_adapted_with() -> None:
    model = pruning.adapt(Messages(), graph(7, parted=False), loss=nn.CrossEntropyLoss())
    assert model.multiply_adds() == 5 * 16 + 16 * 16 + 16 * 3
    assert [len(part) for part in model.example(3)] == [7, 2]


class Wave(nn.Module):
    """A network that gives complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 16), nn.Linear(16, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.view_as_complex(self.two(torch.tanh(self.one(inputs))).unflatten(-1, (4, 2)))


@pytest.mark.parametrize(
    "loss",
    [nn.MSELoss(), nn.L1Loss(), lambda outputs, wanted: (outputs - wanted).abs().square().mean(), None],
    ids=["MSE", "L1", "own", "none"],
)
def test_a_network_that_gives_complex_numbers_goes_through_the_front_door(loss: Any) -> None:
    torch.manual_seed(0)
    draws = [(torch.randn(8, 6), torch.randn(8, 4, dtype=torch.cfloat)) for _ in range(5)]
    data: Any = draws if loss is not None else [inputs for inputs, _ in draws]
    found = pruning.discover(Wave().eval(), draws[0][0])
    smaller = pruning.prune(found, pruning.importance(found, data, loss), 0.5, repair="imitate")
    assert 0 <= smaller.report.apart["imitated"] < smaller.report.apart["layer"]


def test_the_squared_error_of_complex_numbers_is_that_of_their_parts() -> None:
    model = pruning.adapt(Wave(), torch.randn(8, 6), loss=nn.MSELoss())
    inputs, targets = torch.randn(8, 6), torch.randn(8, 4, dtype=torch.cfloat)
    found = pruning.loss_of(model, [(inputs, targets)])
    parts = torch.view_as_real(model(inputs).detach() - targets)
    assert found.mean == pytest.approx(parts.square().mean().item(), rel=1e-5)
    assert found.tokens == 8


def test_neurons_that_say_complex_numbers_are_cut_and_not_measured() -> None:
    network = nn.Sequential(nn.Linear(6, 8, dtype=torch.cfloat), nn.Linear(8, 3, dtype=torch.cfloat))
    data = [torch.randn(4, 6, dtype=torch.cfloat) for _ in range(3)]
    found = pruning.discover(network, data[0])
    keep = {"0": torch.arange(4)}
    torch.testing.assert_close(pruning.select(found, keep)(data[0]), pruning.mask(found, keep)(data[0]))
    with pytest.raises(TypeError, match="Expected real numbers from the neurons of layer 0, got complex ones"):
        pruning.importance(found, data)


class Waves(nn.Module):
    """A layer of neurons that is read in frequencies, by complex weights or by the same ones as real pairs."""

    def __init__(self, *, pairs: bool) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(2, 6), nn.Linear(4, 1)
        start = floats(6, 4, 3, 2) / 3
        self.waves = nn.Parameter(start if pairs else torch.view_as_complex(start))

    def forward(self, inputs: Tensor) -> Tensor:
        read = torch.fft.rfft(torch.tanh(self.enter(inputs)), dim=1)
        waves = self.waves if self.waves.is_complex() else torch.view_as_complex(self.waves)
        turned = torch.einsum("bki,iok->bko", read, waves)
        return self.out(torch.fft.irfft(turned, n=inputs.shape[1], dim=1))


def test_complex_weights_are_measured_and_trained_as_two_real_ones_each(caplog: pytest.LogCaptureFixture) -> None:
    data = [(floats(3, 4, 2, seed=seed), floats(3, 4, 1, seed=seed + 9)) for seed in range(3)]
    rows, losses = [], []
    for pairs in (False, True):
        torch.manual_seed(0)
        network = Waves(pairs=pairs).double()
        names = ["weights", "hessian", "activations", "gradients", "surgeon", "intervention"]
        importance = pruning.importance(network, data, nn.MSELoss(), signals=names)
        assert pairs or importance.table["surgeon"].notna().all()  # pairs become complex in no way that it follows
        rows.append(importance.table.set_index(["layer", "neuron"])[[*names[:4], "intervention", "fused"]])
        chosen = dataclasses.replace(importance, by="gradients")
        smaller = pruning.prune(network, chosen, keep={"enter": 0.5}, scope="layer", repair="ridge")
        pruning.finetune(smaller, data, epochs=2, learning_rate=1e-2)
        losses.append(pruning.evaluate(smaller, data).mean)
    assert len(rows[0]) == 10
    assert "waves, which reads layer enter, because its weights are complex numbers" in caplog.text
    pd.testing.assert_frame_equal(*rows, rtol=1e-9)
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
