"""Adam and AdamW take PyTorch's steps, to the last digit."""

import pytest
import torch
from torch import nn

from pruning.core.optimizers import Adam, AdamW


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
