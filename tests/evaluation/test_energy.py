"""Synaptic operations and energy against counting spike by spike, and firing rates against the twin's spikes."""

import pytest
import torch

from pruning.core.neurons import select
from pruning.data.windows import IGNORED, Windows
from pruning.evaluation.energy import energy_of, firing_rates
from tests.tiny import VOCABULARY, bytes_of, tensors_of, text, tiny, twin_of

WIDTHS = (5, 6)
SPIKING = ["snn", "feed-forward snn", "lstm + snn", "relu + feed-forward snn"]
WINDOWS = Windows(text(37), first=0, batch=3, bptt=5)
"""Three windows, the last of them shorter and partly padded."""


def spikes_of(model):
    """Return layer → its spikes at every predicted token, (tokens, width), by the unrolled twin."""
    twin = twin_of(model)
    for window in WINDOWS:
        twin(window.tokens)
    real = torch.cat([window.targets for window in WINDOWS]) != IGNORED
    layers = zip(twin.names, twin.hidden, strict=True)
    return {name: torch.stack(outputs)[real] for name, outputs in layers if name.startswith("snn")}


def readers_of(model, name, neuron):
    """Return every weight that reads a neuron's spike."""
    tensors, depth, last = tensors_of(model), int(name[-1]), len(WIDTHS) - 1
    found = []
    if f"{name}.weight_hh" in tensors:
        found += tensors[f"{name}.weight_hh"][:, neuron].tolist()
    place = neuron + sum(t.shape[1] for key, t in tensors.items() if key.endswith(f"{depth}.weight_hh_l0"))
    above = [t for key, t in tensors.items() if f".{depth + 1}.weight_ih" in key]
    if depth == last:
        tied = tensors.get("decoder.weight", tensors["encoder.weight"])
        above = [tensors.get("projection.weight", tied)]
    for matrix in above:
        found += [row[place].item() for row in matrix]
    return found


@pytest.mark.parametrize("decoder", ["untied", "projected", "tied"])
@pytest.mark.parametrize("family", SPIKING)
def test_synaptic_operations_and_energy_equal_counting_spike_by_spike(family, decoder):
    model = tiny(decoder, widths=WIDTHS, family=family)
    spikes, operations, never = spikes_of(model), 0, 0
    for name, fired in spikes.items():
        for neuron in range(fired.shape[1]):
            readers = readers_of(model, name, neuron)
            never += len(readers)
            for spike in fired[:, neuron].tolist():
                operations += len(readers) if spike else 0
    found = energy_of(model, WINDOWS)
    assert 0 < operations < never * 37
    assert found.synaptic_operations == pytest.approx(operations / 37, rel=1e-12)
    multiplied = model.multiply_adds() - never
    assert found.energy == pytest.approx(4.6 * multiplied + 0.9 * operations / 37, rel=1e-12)


@pytest.mark.parametrize("family", ["lstm", "gru", "tanh", "relu"])
def test_a_continuous_model_has_no_synaptic_operations_and_reads_no_text(family):
    model = tiny("tied", widths=WIDTHS, family=family)
    found = energy_of(model, [])
    assert (found.synaptic_operations, type(found.synaptic_operations)) == (0, float)  # as the table wants it
    assert found.energy == pytest.approx(4.6 * model.multiply_adds())


def test_a_spiking_model_multiplies_only_what_reads_the_embedding():
    model = tiny(widths=WIDTHS, family="snn")
    found = energy_of(model, WINDOWS)
    embedding = model.encoder.weight.shape[1]
    assert found.energy - 0.9 * found.synaptic_operations == pytest.approx(4.6 * embedding * WIDTHS[0])


@pytest.mark.parametrize("family", ["snn", "lstm + snn"])
def test_firing_rates_are_the_twins(family):
    model = tiny(widths=WIDTHS, family=family)
    layers = [layer for layer in model.layers() if layer.kind == "snn"]
    found = firing_rates(model, layers, WINDOWS)
    for name, spikes in spikes_of(model).items():
        torch.testing.assert_close(found[name], spikes.mean(0))


def test_a_smaller_spiking_model_takes_fewer_synaptic_operations():
    model = tiny(widths=WIDTHS, family="snn")
    torch.nn.init.constant_(model.snn[1].threshold, -100.0)
    smaller = select(model, {"snn.1": torch.tensor([0, 3])})
    ours, theirs = energy_of(model, WINDOWS), energy_of(smaller, WINDOWS)
    rates = firing_rates(model, model.layers()[:1], WINDOWS)["snn.0"].sum().item()
    assert ours.synaptic_operations - theirs.synaptic_operations == pytest.approx(
        4 * rates + 6 * (6 + VOCABULARY) - 2 * (2 + VOCABULARY)
    )


def test_measuring_leaves_the_model_as_it_was():
    model = tiny("tied", widths=WIDTHS, family="lstm + snn", dropout=0.5).train()
    before, random = bytes_of(tensors_of(model)), torch.get_rng_state()
    energy_of(model, WINDOWS)
    assert bytes_of(tensors_of(model)) == before
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)
