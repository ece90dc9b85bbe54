"""Adam and AdamW take PyTorch's steps, to the last digit, and import no compiler."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from pruning.core.optimizers import Adam, AdamW, uncompiled
from tests.projects import ENVIRONMENT

PROGRAM = """
import sys, torch
from pruning.core.optimizers import AdamW
weight = torch.nn.Parameter(torch.ones(3))
optimizer = AdamW([{"params": [weight], "weight_decay": 0.1}], lr=0.1)
weight.grad = torch.ones(3)
optimizer.step()
assert "torch._dynamo" not in sys.modules
torch.optim.Adam([weight])
assert "torch._dynamo" in sys.modules
"""


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(5, 3, generator=generator)) for _ in range(3)]


@pytest.mark.parametrize(
    ("ours", "theirs", "settings"), [(Adam, torch.optim.Adam, {}), (AdamW, torch.optim.AdamW, {"weight_decay": 0.1})]
)
def test_a_step_and_what_is_remembered_of_it_are_those_of_pytorch(ours, theirs, settings):
    one, other = parameters(), parameters()
    first = ours([{"params": [p], "pace": 1.0} for p in one], lr=0.01, **settings)
    second = theirs([{"params": [p], "pace": 1.0} for p in other], lr=0.01, fused=True, **settings)
    for step in range(4):
        for group in (one, other):
            for place, parameter in enumerate(group):
                late = place == 2 and step < 2
                parameter.grad = None if late else torch.sin(3 * parameter.detach() + step)
        first.step()
        second.step()
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
    for mine, its in zip(one, other, strict=True):
        assert {name: tensor.tolist() for name, tensor in first.state[mine].items()} == {
            name: tensor.tolist() for name, tensor in second.state[its].items()
        }


def test_training_steps_import_no_compiler_and_leave_pytorch_to_import_it_where_others_ask_for_it():
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_pytorch_s_mark_is_as_it_was_after_an_error(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    plain = torch.optim.Optimizer.add_param_group.__wrapped__
    before = vars(plain).copy()
    with pytest.raises(RuntimeError), uncompiled():
        raise RuntimeError
    assert vars(plain) == before
