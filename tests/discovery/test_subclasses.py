"""Networks whose classes are not PyTorch's own: layers that derive from its bases, what they save, what is frozen."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pruning
from pruning.core.neurons import mask, select
from pruning.discovery import Discovered
from tests.foreign import floats

INPUTS = floats(3, 2, 4)
DATA = [(INPUTS, floats(3, 2)), (INPUTS.flip(0), floats(3, 2))]


class Stepped(nn.RNNBase):
    """An LSTM that Python steps, as those of packages for reinforcement learning: PyTorch's base, not its LSTM."""

    def __init__(self) -> None:
        super().__init__("LSTM", 4, 6, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:  # type: ignore[override]
        hidden, cell = inputs.new_zeros(2, len(inputs), self.hidden_size)
        for step in inputs.unbind(1):
            gates = F.linear(step, self.weight_ih_l0, self.bias_ih_l0)
            gates = gates + F.linear(hidden, self.weight_hh_l0, self.bias_hh_l0)
            enter, forget, new, out = gates.chunk(4, 1)
            cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
            hidden = out.sigmoid() * cell.tanh()
        return hidden


class Coupled(nn.RNNCellBase):
    """A cell of two gates, a number that no cell of PyTorch's has, run over time."""

    def __init__(self) -> None:
        super().__init__(4, 6, bias=True, num_chunks=2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs.new_zeros(len(inputs), self.hidden_size)
        for step in inputs.unbind(1):
            gates = F.linear(step, self.weight_ih, self.bias_ih) + F.linear(hidden, self.weight_hh, self.bias_hh)
            gate, new = gates.chunk(2, 1)
            hidden = torch.lerp(hidden, new.tanh(), gate.sigmoid())
        return hidden


class Resting(nn.Module):
    """Leaky neurons whose rest and leak are numbers in frozen parameters, which PyTorch takes for Python's."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(4, 6), nn.Linear(6, 2)
        self.rest, self.leak = (nn.Parameter(torch.tensor(number), requires_grad=False) for number in (-0.5, 0.7))

    def forward(self, inputs: Tensor) -> Tensor:
        current = self.enter(inputs)
        potential = torch.full_like(current[:, 0], self.rest)
        for step in current.unbind(1):
            potential = self.leak * potential + step.tanh()
        return self.out(potential)


class Remade(nn.Sequential):
    """A network whose `state_dict` has the arguments that it was made with among the tensors."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        state = super().state_dict(*args, **kwargs)
        state["_metadata"] = {"width": 6}
        return state


def removed(network: nn.Module, widths: dict[str, int], inputs: Tensor = INPUTS) -> Discovered:
    """Return a network with its neurons found, having seen that removing them equals masking them."""
    found = pruning.discover(network.double(), inputs)
    assert {layer.name: layer.width for layer in found.layers() if layer.exact} == widths
    keep = {name: torch.arange(width - 1, width // 3, -1) for name, width in widths.items()}
    torch.testing.assert_close(select(found, keep)(inputs), mask(found, keep)(inputs), rtol=0, atol=1e-10)
    return found


def test_layers_and_cells_of_classes_of_ones_own_keep_as_many_gates_as_they_have():
    torch.manual_seed(0)
    removed(nn.Sequential(Stepped(), nn.Linear(6, 2)), {"0": 6})
    removed(nn.Sequential(Coupled(), nn.Linear(6, 2)), {"0": 6})


def test_frozen_numbers_that_code_takes_for_python_s_stay_frozen_while_a_network_is_discovered_and_measured():
    torch.manual_seed(0)
    found = removed(Resting(), {"enter": 6})
    pruning.importance(found, DATA, nn.MSELoss(), by="gradients")
    assert [name for name, p in found.network.named_parameters() if not p.requires_grad] == ["rest", "leak"]


def test_what_a_network_adds_to_its_state_is_no_tensor_of_it():
    torch.manual_seed(0)
    found = removed(Remade(nn.Linear(4, 6), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)), {"0": 6})
    smaller = pruning.prune(found, pruning.importance(found, DATA, nn.MSELoss(), by="weights"), repair="none")
    pruning.finetune(smaller, DATA, epochs=1)
    assert smaller.module[0].out_features == 3
