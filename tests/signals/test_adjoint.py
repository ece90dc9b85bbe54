"""What is measured of neurons that a function of a user's own runs without that PyTorch records it."""

import logging
from typing import Any

import torch
from torch import Tensor, nn

import pruning


class Adjoint(torch.autograd.Function):
    """A field's answer, run again for its derivatives, as solvers of differential equations do."""

    @staticmethod
    def forward(ctx: Any, field: nn.Module, state: Tensor, *parameters: Tensor) -> Tensor:
        ctx.field, ctx.parameters = field, parameters
        ctx.save_for_backward(state)
        with torch.no_grad():
            return field(state)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (state,) = ctx.saved_tensors
        with torch.enable_grad():
            state = state.detach().requires_grad_()
            found = torch.autograd.grad(ctx.field(state), (state, *ctx.parameters), gradient)
        return None, *found


class Moved(nn.Module):
    """A state that a field moves once."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.out = nn.Linear(3, 6), nn.Linear(6, 2)
        self.field = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))

    def forward(self, inputs: Tensor) -> Any:
        state = self.up(inputs)
        return self.out(state + Adjoint.apply(self.field, state, *self.field.parameters()))


def test_a_layer_whose_readers_an_adjoint_runs_is_not_ordered_by_derivatives_that_are_zero_and_says_so(caplog):
    torch.manual_seed(0)
    network = Moved()
    found = pruning.discover(network, torch.randn(4, 3))
    batches = [(torch.randn(4, 3), torch.randn(4, 2)) for _ in range(2)]
    with caplog.at_level(logging.WARNING):
        importance = pruning.importance(found, batches, nn.MSELoss(), signals=["surgeon", "weights"])
    assert "field.0, because the derivative of the loss by what its readers read is 0 everywhere" in caplog.text
    assert "layer up," not in caplog.text
    places = importance.table.set_index("layer")["surgeon"]
    assert places["field.0"].isna().all()
    assert places["up"].notna().all()


def test_the_neurons_of_a_layer_without_derivatives_are_chosen_by_what_else_was_measured_and_it_says_by_what(caplog):
    torch.manual_seed(0)
    found = pruning.discover(Moved(), torch.randn(4, 3))
    batches = [(torch.randn(4, 3), torch.randn(4, 2)) for _ in range(2)]
    with caplog.at_level(logging.WARNING):
        importance = pruning.importance(found, batches, nn.MSELoss(), signals=["surgeon"])
    told = "Chosen by 'fused', here of activations, since 'surgeon' has no numbers of them: the neurons of field.0."
    assert told in caplog.text
    own = importance.table[importance.table["layer"] == "field.0"].set_index("neuron")["activations"]
    assert set(importance.keep(0.5)["field.0"].tolist()) == set(own.nlargest(4).index)
