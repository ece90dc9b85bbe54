"""PyTorch's compiler is imported where somebody compiles, and nowhere else."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.core.uncompiled import MARK, Mode, uncompiled
from tests.projects import ENVIRONMENT

PROGRAM = """
import sys, tempfile, torch, pruning
from torch import nn
network = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 3))
data = [(torch.randn(8, 2), torch.arange(8) % 3) for _ in range(2)]
found = pruning.discover(network, data[0][0])
importance = pruning.importance(found, data, nn.CrossEntropyLoss(), signals=["weights", "gradients"])
smaller = pruning.prune(found, importance, 0.5)
smaller = pruning.finetune(smaller, data, nn.CrossEntropyLoss(), epochs=1)
with tempfile.TemporaryDirectory() as folder:
    pruning.save(smaller, folder)
    pruning.restore(network, folder)
assert "torch._dynamo" not in sys.modules
torch.optim.Adam(network.parameters())
assert "torch._dynamo" in sys.modules
"""


class Counting(Mode):
    calls = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.calls += 1
        return operation(*args, **(kwargs or {}))


class Lazily(nn.Module):
    """Compiles what it computes when it is called, as a user's own code may."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.compile(torch.relu, backend="eager")(self.inner(x)))


def test_a_network_is_pruned_trained_and_saved_without_the_compiler_which_pytorch_imports_where_others_ask_for_it():
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_pytorch_s_mark_is_as_it_was_after_an_error(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    plain = torch.optim.Optimizer.add_param_group.__wrapped__
    before = vars(plain).copy()
    with pytest.raises(RuntimeError), uncompiled(torch.optim.Optimizer.add_param_group):
        raise RuntimeError
    assert vars(plain) == before


def test_what_a_mode_does_is_not_compiled_once_there_is_a_compiler(monkeypatch):
    import torch._dynamo

    plain = Counting.__torch_dispatch__.__wrapped__
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "torch._dynamo")
        with Counting() as mode:
            torch.ones(2).exp()
        assert getattr(plain, MARK) is plain
        assert mode.calls == 2
    with Counting() as mode:
        torch.ones(2).exp()
    assert getattr(plain, MARK)._torchdynamo_disable
    assert mode.calls == 2


def test_a_network_that_compiles_in_its_forward_is_looked_into_as_any_other():
    found = pruning.discover(Lazily(), torch.ones(2, 3))
    assert [layer.name for layer in found.layers()] == ["inner"]
