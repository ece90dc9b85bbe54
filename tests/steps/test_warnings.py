"""What a user's own network warns of is heard once, however often it runs, and at the line that it is about."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pruning


class Noisy(nn.Module):
    """Warns by itself, and by a function of PyTorch's that says who called it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        warnings.warn("of its own", UserWarning, stacklevel=1)
        return self.last(F.softmax(self.first(x).view(-1, 8)))


def test_a_networks_warnings_are_heard_once_and_at_its_own_lines() -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(8, 4), torch.arange(8) % 3) for _ in range(2)]
    shown = warnings.showwarning
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        found = pruning.discover(Noisy(), batches[0][0])
        importance = pruning.importance(found, batches, nn.CrossEntropyLoss(), signals=["gradients", "surgeon"])
        smaller = pruning.prune(found, importance)
        pruning.finetune(smaller, batches)
        pruning.evaluate(smaller, batches)
    first = Noisy.forward.__code__.co_firstlineno
    said = {(str(one.message)[:10], one.filename, one.lineno - first) for one in heard}
    assert len(heard) == len(said)
    assert said == {("of its own", __file__, 1), ("Implicit d", __file__, 2)}
    assert warnings.showwarning is shown


@pytest.mark.filterwarnings("error")
def test_a_warning_that_is_an_error_stays_one() -> None:
    with pytest.raises(ValueError, match="got UserWarning: of its own"):
        pruning.discover(Noisy(), torch.randn(8, 4))
