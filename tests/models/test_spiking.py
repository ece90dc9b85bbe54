"""Leaky integrate-and-fire layers: the scan against its steps, and derivatives against the surrogate loss."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pruning.core.hooks import record
from pruning.data.windows import Windows
from pruning.evaluation.measures import next_token_loss
from pruning.models.spiking import LIF, integrate_and_fire, stepwise, surrogate
from pruning.signals.evidence import gather_evidence, partition
from pruning.signals.hessian import hessian
from pruning.training.loop import train
from tests.tiny import loss_on, recipe, tensors_of, text, tiny, twin_of, twin_with

SPIKING = ["snn", "feed-forward snn", "lstm + snn", "relu + feed-forward snn"]
WINDOWS = Windows(text(40), first=0, batch=3, bptt=12)
WINDOW = WINDOWS[0]
SHORT = Windows(text(12), first=0, batch=3, bptt=4)[0]


def inputs_of(*, recurrent):
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "current": (7, 3, 5),
        "weight": (5, 5),
        "decay": (5,),
        "threshold": (5,),
        "spikes": (3, 5),
        "potential": (3, 5),
    }
    made = {name: torch.randn(shape, dtype=torch.float64, generator=generator) for name, shape in shapes.items()}
    made["decay"].sigmoid_()
    return {name: tensor.requires_grad_() for name, tensor in made.items() if recurrent or name != "weight"}


def derivatives(scan, inputs, *, again):
    """Return outputs and the first derivatives of a number made of them, or its second ones in one direction."""
    spikes, potential = scan(**{"weight": None, **inputs}, slope=2.0)
    number = (spikes.cumsum(0) * spikes.sin()).sum() + potential.square().sum()
    wanted = list(inputs.values())
    first = torch.autograd.grad(number, wanted, create_graph=again, allow_unused=True, materialize_grads=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted, materialize_grads=True) if again else ()
    return [spikes, potential, *first, *second]


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("again", [True, False])
def test_the_scan_and_its_derivatives_equal_those_of_its_steps(recurrent, again):
    inputs = inputs_of(recurrent=recurrent)
    pairs = zip(*(derivatives(scan, inputs, again=again) for scan in (integrate_and_fire, stepwise)), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


def test_spikes_leak_and_reset_follow_the_equations():
    layer = LIF(1, 1, recurrent=False, leak=0.5, threshold=1.0, slope=2.0).double()
    nn.init.ones_(layer.weight_ih)
    spikes, (last, potential) = layer(torch.tensor([0.75, 0.75, 0.5, 2.5, 0.0], dtype=torch.float64).view(5, 1, 1))
    assert spikes.flatten().tolist() == [0, 1, 0, 1, 0]  # charged to 0.75, 1.125, 0.5625, 2.78125, 0.890625
    assert last.item() == 0
    assert potential.item() == 0.890625


def test_the_surrogate_is_the_derivative_of_the_arctangent():
    distance = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    smooth = (torch.pi / 2 * 3.0 * distance).atan() / torch.pi + 0.5
    torch.testing.assert_close(surrogate(distance, 3.0), torch.autograd.grad(smooth.sum(), distance)[0])


def directions(model, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, dtype=p.dtype, generator=generator) for name, p in model.named_parameters()}


def surrogate_loss(model, *ways, window=WINDOW):
    """Return steps → the loss with the weights moved along `ways`, what the step function adds to σ held fixed: smooth.

    Parameters that a way does not name stay where they are along it.
    """
    reference = twin_of(model)
    loss_on(reference, window)

    def loss(*steps):
        moved = tensors_of(model)
        for step, way in zip(steps, ways, strict=True):
            for name, direction in way.items():
                moved[name] = moved[name] + step * direction
        return loss_on(twin_with(moved, model, steps=reference.steps), window).item()

    return loss


def own_weights(model, layer, neuron):
    """Return the places of a neuron's own weights: name → rows of that parameter."""
    names = [name for name in tensors_of(model) if name.startswith(f"{layer.name}.")]
    return {name: slice(neuron, None, layer.width) for name in names}


@pytest.mark.parametrize("family", SPIKING)
def test_the_gradient_equals_finite_differences_of_the_surrogate_loss(family):
    model = tiny(family=family)
    direction, step = directions(model, 1), 1e-5
    loss, _ = next_token_loss(model, *WINDOW, None)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    slope = sum((g * d).sum().item() for g, d in zip(gradients, direction.values(), strict=True))
    moved = surrogate_loss(model, direction)
    assert moved(0.0) == pytest.approx(loss.item(), abs=1e-12)
    assert slope == pytest.approx((moved(step) - moved(-step)) / (2 * step), rel=1e-6)


@pytest.mark.parametrize("family", SPIKING)
def test_the_curvature_equals_finite_differences_of_the_surrogate_loss(family):
    model = tiny(family=family)
    direction, step = directions(model, 2), 1e-3
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(next_token_loss(model, *WINDOW, None)[0], parameters, create_graph=True)
    products = torch.autograd.grad(gradients, parameters, grad_outputs=list(direction.values()))
    curvature = sum((h * d).sum().item() for h, d in zip(products, direction.values(), strict=True))
    moved = surrogate_loss(model, direction)
    weights = {-2: -1 / 12, -1: 4 / 3, 0: -5 / 2, 1: 4 / 3, 2: -1 / 12}
    expected = sum(weight * moved(place * step) for place, weight in weights.items()) / step**2
    assert curvature == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("family", ["snn", "feed-forward snn"])
def test_a_new_model_whose_neurons_are_silent_learns_to_spike(family):
    torch.manual_seed(1)
    model = rebuilt_new(family)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=0.02), []
    for _ in range(60):
        loss, state = next_token_loss(model, *WINDOW, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1
    assert all(0 < spikes.mean() < 1 for spikes, _ in state)


def rebuilt_new(family):
    """Return a model with the weights that it starts with."""
    old = tiny(family=family)
    return type(old)(old.config)


@pytest.mark.parametrize("family", ["snn", "feed-forward snn", "lstm + snn"])
def test_neurons_of_a_new_model_of_real_size_neither_all_fire_nor_all_stay_silent(family):
    torch.manual_seed(1)
    small = tiny(family=family)
    both = {"snn_widths": (64, 64)} if "+" in family else {}
    settings = {
        "vocabulary": 200,
        "embedding": 64,
        "widths": (64, 64),
        "decoder": "untied",
        "leak": 0.5,
        "threshold": 1.0,
    }
    model = type(small)(replace(small.config, **settings, **both))
    rates = {}

    def observe(name, spikes):
        rates[name] = spikes.mean(0)

    with torch.no_grad(), record(model, [layer for layer in model.layers() if layer.kind == "snn"], observe):
        model(torch.randint(200, (35, 16)))
    for spiking in rates.values():
        assert 0.05 < spiking.mean() < 0.6
        assert ((spiking > 0) & (spiking < 1)).float().mean() > 0.9


def test_training_adds_the_gradient_of_rates_that_are_too_low_and_nothing_else():
    torch.manual_seed(1)
    layer = LIF(4, 6, recurrent=True, leak=0.5, threshold=1.0, slope=2.0, least_rate=0.12).double()
    layer.awake(1.0)
    inputs, weights = (torch.randn(9, 5, n, dtype=torch.float64) for n in (4, 6))
    spikes, _ = layer.eval()(inputs)
    penalty = (0.12 - spikes.mean((0, 1))).clamp(min=0).square().sum() / 2
    assert penalty > 0
    assert (spikes.mean((0, 1)) > 0.12).any()
    expected = torch.autograd.grad((spikes * weights).sum() + penalty, list(layer.parameters()))
    heard, _ = layer.train()(inputs)
    assert torch.equal(heard, spikes)
    found = torch.autograd.grad((heard * weights).sum(), list(layer.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("least_rate", "awake"), [(0.0, False), (0.1, True)])
def test_neurons_that_the_loss_silences_are_woken_by_training_with_a_least_rate(least_rate, awake):
    torch.manual_seed(1)
    layer = LIF(3, 8, recurrent=False, leak=0.5, threshold=2.0, slope=2.0, least_rate=least_rate).train()
    optimizer, inputs = torch.optim.Adam(layer.parameters(), lr=0.02), torch.randn(20, 4, 3)
    for _ in range(80):
        spikes, _ = layer(inputs)
        optimizer.zero_grad()
        (spikes.mean() * 1e-3).backward()  # every spike costs a little, as one that says nothing does
        optimizer.step()
    assert bool((spikes.mean((0, 1)) > 0).all()) == awake


def test_spiking_layers_are_trained_at_their_own_pace():
    model = tiny(family="snn", dtype=torch.float32)
    before = tensors_of(model)
    list(train(model, WINDOWS, WINDOWS, recipe=recipe(epochs=1, portion=0.01, warmup=0.0, weight_decay=0.0), seed=1))
    moved = {name: (tensor - before[name]).abs().max().item() for name, tensor in tensors_of(model).items()}
    rate = recipe().learning_rate
    assert moved["decoder.weight"] == pytest.approx(rate, rel=0.01)
    assert moved["snn.0.weight_ih"] == pytest.approx(rate * LIF.pace, rel=0.01)


@pytest.mark.parametrize("family", ["snn", "lstm + snn"])
def test_the_hessian_signal_equals_second_differences_of_the_surrogate_loss(family):
    model, step = tiny(widths=(3,), family=family), 1e-3
    table = hessian(model, [SHORT], probes=160, stability=2, seed=1).set_index(["layer", "neuron"])
    here = surrogate_loss(model, {}, window=SHORT)(0.0)
    for layer in model.layers():
        for neuron in range(layer.width):
            expected = 0.0
            for name, rows in own_weights(model, layer, neuron).items():
                whole = tensors_of(model)[name]
                for place in torch.arange(whole.numel()).view(whole.shape)[rows].flatten().tolist():
                    unit = torch.zeros_like(whole)
                    unit.view(-1)[place] = 1
                    moved = surrogate_loss(model, {name: unit}, window=SHORT)
                    expected += (moved(step) - 2 * here + moved(-step)) / step**2
            row = table.loc[(layer.name, neuron)]
            assert abs(row["trace"] - expected) <= 4 * row["trace_standard_error"]
    assert (table["trace_standard_error"] < 0.5 * table["trace"].abs().max()).all()


@pytest.mark.parametrize("family", ["snn", "lstm + snn"])
def test_the_product_of_hessian_and_gradient_equals_mixed_differences_of_the_surrogate_loss(family):
    model, step = tiny(widths=(5, 4), family=family), 1e-3
    layers = model.layers()
    own = {name: p for name, p in model.named_parameters() if name.startswith(("snn", "lstm"))}
    loss, _ = next_token_loss(model, *WINDOW, None)
    gradient = dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))
    parts = partition(model, WINDOW, bins=4, classes=3)
    found, _ = gather_evidence(model, layers, WINDOW, None, partition=parts, generator=torch.Generator().manual_seed(1))
    tokens = int((WINDOW.targets >= 0).sum())
    for layer in layers:
        for neuron in range(layer.width):
            weights = {name: torch.zeros_like(own[name]) for name in own_weights(model, layer, neuron)}
            for name, rows in own_weights(model, layer, neuron).items():
                weights[name][rows] = own[name].detach()[rows]
            moved = surrogate_loss(model, gradient, weights)
            pairs = [(one, other) for one in (1, -1) for other in (1, -1)]
            expected = sum(one * other * moved(one * step, other * step) for one, other in pairs) / (4 * step**2)
            total = found[layer.name].totals["grasp"][neuron].item() / tokens
            assert total == pytest.approx(expected, rel=1e-3, abs=1e-6)
