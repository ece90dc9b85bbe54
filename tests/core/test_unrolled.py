"""Recurrent layers differentiated twice, beside PyTorch's own way, of which every operation is differentiated."""

import contextlib

import pytest
import torch
from torch import nn

from pruning.core import devices
from pruning.core.devices import twice_differentiable
from pruning.core.modes import operations_behind

LAYERS = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "tanh": nn.RNN,
    "relu": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
}
OTHERS = {
    "stacked": {"num_layers": 2},
    "bidirectional": {"bidirectional": True},
    "projected": {"proj_size": 2},
}


def layer_of(kind, *, dtype=torch.float64, **options):
    torch.manual_seed(1)
    return LAYERS[kind](3, 4, dtype=dtype, **options)


def derived(layer, inputs, state=None):
    """Return what a layer gives, the gradient of a loss of all of it, and the Hessian's product with a vector."""
    generator = torch.Generator().manual_seed(2)

    def vector(tensor):
        return torch.randn(tensor.shape, generator=generator).to(tensor)

    outputs, after = layer(inputs, state)
    packed = isinstance(outputs, nn.utils.rnn.PackedSequence)
    answer = [outputs.data if packed else outputs, *(after if isinstance(after, tuple) else [after])]
    loss = sum((vector(part) * part).sum() + part.pow(3).sum() for part in answer)
    by = [*layer.parameters(), *(part for part in _parts(inputs, state) if part.requires_grad)]
    gradients = torch.autograd.grad(loss, by, create_graph=True)
    products = torch.autograd.grad(gradients, by, grad_outputs=[vector(part) for part in by])
    return [*answer, *gradients, *products]


def _parts(inputs, state):
    parts = [inputs.data if isinstance(inputs, nn.utils.rnn.PackedSequence) else inputs]
    return parts + list(state if isinstance(state, tuple) else [] if state is None else [state])


def assert_equal(found, expected, **tolerance):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def inputs_of(steps=5, *, batch_first=False, dtype=torch.float64):
    torch.manual_seed(3)
    shape = (2, steps, 3) if batch_first else (steps, 2, 3)
    return torch.randn(shape, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"batch_first": True}], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_recurrent_layer_gives_pytorchs_numbers_derivatives_and_second_ones(kind, options):
    layer, inputs = layer_of(kind, **options), inputs_of(batch_first=options.get("batch_first", False))
    parts = [torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(1 + (kind == "lstm"))]
    state = tuple(parts) if kind == "lstm" else parts[0]
    with twice_differentiable():
        found = derived(layer, inputs, state)
    assert_equal(found, derived(layer, inputs, state), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", LAYERS)
def test_float32_gives_the_same_numbers_but_for_rounding(kind):
    layer, inputs = layer_of(kind, dtype=torch.float32), inputs_of(dtype=torch.float32)
    with twice_differentiable():
        found = derived(layer, inputs)
    assert_equal(found, derived(layer, inputs), rtol=1e-4, atol=1e-4)


def test_many_steps_are_looked_at_in_stretches(monkeypatch):
    monkeypatch.setattr("pruning.core.unrolled.STRETCH", 100)  # three steps of two examples of four neurons
    layer, inputs = layer_of("lstm"), inputs_of(steps=8)
    with twice_differentiable():
        found = derived(layer, inputs)
    assert_equal(found, derived(layer, inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", LAYERS)
def test_what_is_differentiated_again_does_not_grow_with_the_steps(kind):
    layer = layer_of(kind, dtype=torch.float32)
    assert nodes_of(layer, inputs_of(4, dtype=torch.float32)) == nodes_of(layer, inputs_of(40, dtype=torch.float32))


def nodes_of(layer, inputs):
    """Return how many operations a gradient is made of, as far as they are differentiated again."""
    with twice_differentiable():
        loss = layer(inputs)[0].square().sum()
        (gradient,) = torch.autograd.grad(loss, [layer.weight_hh_l0], create_graph=True)
    nodes, seen = [gradient.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [before for before, _ in node.next_functions]
    return len(seen)


@pytest.mark.parametrize(
    ("kind", "options"), [("gru", {"num_layers": 2}), *(("lstm", each) for each in OTHERS.values())]
)
def test_other_layers_are_differentiated_as_pytorch_does(kind, options):
    layer, inputs = layer_of(kind, **options), inputs_of()
    with twice_differentiable():
        found = derived(layer, inputs)
    assert_equal(found, derived(layer, inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", LAYERS)
def test_packed_sequences_are_differentiated_as_pytorch_does(kind):
    layer = layer_of(kind, dtype=torch.float32)
    packed = nn.utils.rnn.pack_padded_sequence(inputs_of(dtype=torch.float32), torch.tensor([5, 3]))
    with twice_differentiable():
        found = derived(layer, packed)
    assert_equal(found, derived(layer, packed), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", LAYERS)
def test_what_a_layer_gives_and_its_state_are_its_own_kernels_to_the_bit(kind):
    layer, inputs = layer_of(kind, dtype=torch.float32), inputs_of(dtype=torch.float32)
    outputs, state = layer(inputs)
    with twice_differentiable():
        found, after = layer(inputs)
    assert torch.equal(found, outputs)
    for one, other in zip(_parts(found, after), _parts(outputs, state), strict=True):
        assert torch.equal(one, other)


def test_without_gradients_a_layer_runs_as_it_always_does():
    layer, inputs = layer_of("lstm", dtype=torch.float32), inputs_of(dtype=torch.float32)
    with torch.no_grad():
        expected = layer(inputs)[0]
        with twice_differentiable():
            assert torch.equal(layer(inputs)[0], expected)


@pytest.mark.parametrize(("kind", "seen"), [("relu", True), ("tanh", False)])
def test_a_graph_names_the_kinks_of_a_recurrent_layer(kind, seen):
    with twice_differentiable():
        names = operations_behind([layer_of(kind)(inputs_of())[0].sum()])
    assert any(name.startswith("Relu") for name in names) == seen


def test_outside_the_context_nothing_is_unrolled(monkeypatch):
    monkeypatch.setattr(devices, "unrolled", lambda *_: pytest.fail("it was"))
    with contextlib.suppress(RuntimeError), twice_differentiable():
        raise RuntimeError
    layer_of("lstm")(inputs_of())


def test_mobilenets_gate_has_the_second_derivatives_of_what_it_is_made_of():
    inputs = torch.linspace(-4, 4, 7, dtype=torch.float64, requires_grad=True)
    expected = [(nn.functional.relu6(inputs + 3) / 6).square().sum(), ((inputs > -3) & (inputs < 3)).double() / 18]
    with twice_differentiable():
        found = nn.Hardsigmoid()(inputs).square().sum()
        (gradient,) = torch.autograd.grad(found, inputs, create_graph=True)
        (curvature,) = torch.autograd.grad(gradient.sum(), inputs)
    torch.testing.assert_close(found, expected[0])
    torch.testing.assert_close(curvature, expected[1])


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_can_be_viewed_as_those_of_the_layers_own_kernel_can(kind, batch_first):
    layer, inputs = layer_of(kind, batch_first=batch_first), inputs_of(batch_first=batch_first)
    with torch.no_grad():
        own = layer(inputs)[0].contiguous().view(-1, 4)
    with twice_differentiable():
        found = layer(inputs)[0].view(-1, 4)
        with pytest.raises(RuntimeError, match="is invalid for input of size 40"):
            layer(inputs)[0].view(-1, 7)
    assert found.requires_grad
    torch.testing.assert_close(found, own)
