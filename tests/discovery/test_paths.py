"""Calls of several paths (a task by name, a branch that data choose, code for long texts), an example for each."""

import copy
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import pruning


class Tasks(nn.Module):
    """A head for each task, chosen by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 8, batch_first=True)
        self.heads = nn.ModuleDict({"tag": nn.Linear(8, 5), "kind": nn.Linear(8, 2)})

    def forward(self, x: Tensor, task: str = "tag") -> Tensor:
        states, _ = self.rnn(x)
        answer: Tensor = self.heads[task](states if task == "tag" else states[:, -1])
        return answer


class Branches(nn.Module):
    """Another layer where the numbers say so."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high, self.out = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.high if x.mean() > 0 else self.low
        answer: Tensor = self.out(branch(x).relu())
        return answer


class Lengths(nn.Module):
    """A recurrent layer for what is long, which a short example does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.short, self.long = nn.Embedding(9, 6), nn.Linear(6, 8), nn.LSTM(6, 8, batch_first=True)
        self.out = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        words = self.embedding(x)
        states = self.long(words)[0] if x.shape[1] > 4 else self.short(words).tanh()
        answer: Tensor = self.out(states.mean(1))
        return answer


X = torch.linspace(-1, 1, 24).view(2, 4, 3)
WORDS = torch.arange(12).view(2, 6) % 9
Known = tuple[type[nn.Module], list[tuple[Any, ...]], dict[str, tuple[str, ...]]]
PATHS: dict[str, Known] = {
    "tasks": (
        Tasks,
        [(X, "tag"), (X, "kind")],
        {"rnn.0": ("rnn.weight_hh_l0", "heads.tag.weight", "heads.kind.weight")},
    ),
    "branches": (Branches, [(X - 2,), (X + 2,)], {"low": ("out.weight",)}),
    "lengths": (
        Lengths,
        [(WORDS[:, :3],), (WORDS,)],
        {"embedding": ("short.weight", "long.weight_ih_l0"), "short": ("out.weight", "long.weight_hh_l0")},
    ),
}
"""What is made, an example for each path, and its layers with the matrices that read them."""


def cut_and_zeroed(kind: str) -> tuple[Any, nn.Module, Sequence[tuple[Any, ...]]]:
    """Return the network without every other neuron, and the given one with zeros where those are read."""
    make, paths, readers = PATHS[kind]
    torch.manual_seed(1)
    network = make().double()
    real = [tuple(p.double() if p.is_floating_point() else p for p in path[:1]) + path[1:] for path in paths]
    found = pruning.discover(network, real[0], also=real[1:])
    smaller = pruning.select(found, {layer.name: torch.arange(0, layer.width, 2) for layer in found.layers()})
    zeroed = copy.deepcopy(network)
    with torch.no_grad():
        for names in readers.values():
            for name in names:
                zeroed.get_parameter(name)[:, 1::2] = 0
    return smaller, zeroed, real


@pytest.mark.parametrize("kind", PATHS)
def test_what_any_path_reads_goes_with_the_neurons(kind: str) -> None:
    smaller, zeroed, paths = cut_and_zeroed(kind)
    assert {layer.name for layer in smaller.layers()} == set(PATHS[kind][2])
    for path in paths:
        torch.testing.assert_close(smaller(*path), zeroed(*path))
        torch.testing.assert_close(pruning.deployed(smaller)(*path), zeroed(*path))


def test_a_network_of_several_paths_is_measured_repaired_saved_and_restored(tmp_path: Any) -> None:
    torch.manual_seed(1)
    found = pruning.discover(Tasks(), (X, "tag"), also=[(X, "kind")])
    data = [((torch.randn(3, 4, 3), "kind"), torch.tensor([0, 1, 1])) for _ in range(4)]
    importance = pruning.importance(found, data, nn.CrossEntropyLoss(), signals=["weights", "gradients"], by="fused")
    smaller = pruning.prune(found, importance, keep=0.5, data=data)
    pruning.save(smaller, tmp_path / "smaller")
    restored = pruning.restore(Tasks(), tmp_path / "smaller")
    for task in ("tag", "kind"):
        torch.testing.assert_close(restored(X, task), smaller.module(X, task))


def test_the_front_door_finds_what_only_later_batches_call() -> None:
    torch.manual_seed(1)
    tags = [((torch.randn(3, 4, 3), "tag"), torch.zeros(3, dtype=torch.long)) for _ in range(2)]
    kinds = [((torch.randn(3, 4, 3), "kind"), torch.tensor([0, 1, 1])) for _ in range(2)]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs if outputs.ndim == 2 else outputs[:, -1], targets)

    importance = pruning.importance(Tasks(), [*tags, *kinds], loss, signals=["weights"], by="fused")
    smaller = pruning.prune(importance.model, importance, keep=0.5, repair="mean", data=[*tags, *kinds])
    assert [smaller.module(X, task).shape for task in ("tag", "kind")] == [(2, 4, 5), (2, 2)]


def test_blocks_that_several_paths_run_through_are_found_and_go() -> None:
    class Deep(Tasks):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))

        def forward(self, x: Tensor, task: str = "tag") -> Tensor:
            for block in self.blocks:
                x = x + block(x).tanh()
            return super().forward(x, task)

    found = pruning.discover(Deep(), (X, "tag"), also=[(X, "kind")])
    smaller = pruning.shorten(found, [found.blocks()[0].name])
    assert [smaller(X, task).shape for task in ("tag", "kind")] == [(2, 4, 5), (2, 2)]
    assert smaller.origin is not None
    assert len(smaller.origin.inputs) == 2


def test_what_no_example_reaches_is_named_with_what_to_do() -> None:
    told = str(pruning.discover(Tasks(), (X, "tag")))
    assert "heads.kind" in told
    assert "further ones as `also=[...]`" in told


def test_further_inputs_that_are_no_list_are_refused() -> None:
    with pytest.raises(TypeError, match=r"Expected further example inputs in a list, also=\[...\], got a tensor"):
        pruning.discover(Tasks(), X, also=X)  # type: ignore[arg-type]


def test_batches_of_several_paths_are_measured_by_every_signal_whatever_comes_first() -> None:
    class Routes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"arm": nn.Linear(3, 6), "leg": nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 6))})
            self.out = nn.Linear(6, 2)

        def forward(self, x: Tensor, part: str) -> Tensor:
            answer: Tensor = self.out(self.parts[part](x).relu())
            return answer

    torch.manual_seed(1)
    data = [((torch.randn(6, 3), part), torch.arange(6) % 2) for part in ("arm", "leg") * 2]
    found = pruning.discover(Routes(), data[0][0], also=[data[1][0]])
    importance = pruning.importance(found, data, nn.CrossEntropyLoss())
    assert set(importance.table["layer"]) == {layer.name for layer in found.layers()} == {"parts.arm", "parts.leg.0"}
    with pytest.raises(ValueError, match=r"to run every layer, got none that runs parts\.leg\.0; give"):
        pruning.importance(found, data[::2], nn.CrossEntropyLoss(), signals=["activations"], by="fused")
    model = pruning.adapt(found, data[0][0], loss=nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match=r"to run every layer, got none that runs parts\.leg\.0; give"):
        pruning.criteria(model, [*data[::2], data[1]], batches=2, bins=3, classes=2, ridge=1e-4, seed=1)


def test_criteria_of_a_layer_are_those_of_the_batches_that_run_it() -> None:
    class Routes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"arm": nn.Linear(3, 6), "leg": nn.Linear(3, 5)})
            self.heads = nn.ModuleDict({"arm": nn.Linear(6, 2), "leg": nn.Linear(5, 4)})  # with labels of their own

        def forward(self, x: Tensor, part: str) -> Tensor:
            answer: Tensor = self.heads[part](self.parts[part](x).relu())
            return answer

    def criteria(model: Any, batches: Sequence[Any]) -> Any:
        return pruning.criteria(model, batches, batches=4, bins=3, classes=2, ridge=1e-4, seed=1)

    torch.manual_seed(1)
    data = [((torch.randn(6, 3), part), torch.arange(6) % 2) for part in ("arm", "leg") * 2]
    network = Routes()
    found = pruning.discover(network, data[0][0], also=[data[1][0]])
    model = pruning.adapt(found, data[0][0], loss=nn.CrossEntropyLoss())
    table = criteria(model, data)
    assert (table["samples"] == 12).all()
    for part, only in ("arm", data[::2]), ("leg", data[1::2]):
        path = nn.Sequential(network.parts[part], nn.ReLU(), network.heads[part])
        alone = pruning.adapt(path, data[0][0][0], loss=nn.CrossEntropyLoss())
        own = criteria(alone, [(x, y) for (x, _), y in only])
        rows = table[table["layer"] == f"parts.{part}"].reset_index(drop=True)
        exact = [
            "magnitude_in",
            "taylor_first",
            "gate_fisher",
            "snip",
            "grasp",
            "fluctuation",
            "wanda",
        ]
        pd.testing.assert_frame_equal(rows[exact], own[exact])
