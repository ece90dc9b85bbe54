"""The intervention against models really without each neuron, and against gates that labels really pull at."""

import numpy as np
import pytest
import torch
from torch import nn

from pruning.ablation.intervention import Intervention, intervention
from pruning.ablation.oracle import Ablation, oracle
from pruning.data.windows import Windows
from pruning.models.adapted import adapt
from tests.signals.test_gradients import gradients_by_hand
from tests.tiny import FAMILIES, WIDTHS, text, tiny

SETTINGS = Intervention(tokens=10**6, words="all")


class Relabelled(Windows):
    """Windows whose labels are other ones."""

    labels: list[torch.Tensor]

    def __getitem__(self, index):
        return super().__getitem__(index)._replace(targets=self.labels[index])


def windows(seed: int = 0) -> Windows:
    return Windows(text(64, seed=seed), first=0, batch=4, bptt=4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_label_term_is_the_slope_of_the_loss_at_a_gate_that_closes(family):
    model = tiny("untied", WIDTHS[2], family)
    table = intervention(model, windows(), windows(1), SETTINGS)
    slopes = [np.mean(layer, axis=0) for layer in zip(*gradients_by_hand(model, windows(1)), strict=True)]
    for layer, expected in zip(model.layers(), slopes, strict=True):  # the table's rows are sorted by name
        rows = table[table["layer"] == layer.name]
        np.testing.assert_allclose(rows["label_term"], -expected, atol=1e-10)


def test_the_importance_is_divergence_and_label_term_and_its_error_both_of_theirs():
    table = intervention(tiny(), windows(), windows(1), Intervention(tokens=10**6, words="all", label_share=0.5))
    np.testing.assert_allclose(table["importance"], table["divergence"] + 0.5 * table["label_term"])
    errors = table["divergence_error"] ** 2 + (0.5 * table["label_error"]) ** 2
    np.testing.assert_allclose(table["standard_error"] ** 2, errors)


def test_the_divergence_does_not_depend_on_labels_and_is_the_oracles():
    model, read = tiny(), windows()
    table = intervention(model, read, windows(1), SETTINGS)
    other = Relabelled(text(64), first=0, batch=4, bptt=4)
    other.labels = [window.targets.flip(1) for window in read]
    again = intervention(model, other, windows(1), SETTINGS)
    np.testing.assert_allclose(again["divergence"], table["divergence"], atol=1e-14)
    measured = oracle(model, read, Ablation(neurons="all", tokens=10**6, seed=1))
    np.testing.assert_array_equal(table["divergence"], measured["divergence"])


def test_where_labels_are_what_the_model_expects_the_increase_is_the_divergence_alone():
    """Labels drawn from the model itself: E[p − y] = 0, so the label term is nothing but noise."""
    model, drawn = tiny(spread=0.5), Relabelled(text(4000), first=0, batch=40, bptt=10)
    with torch.no_grad():
        state, targets, noise = None, [], torch.Generator().manual_seed(1)
        for window in Windows(text(4000), first=0, batch=40, bptt=10):
            logits, state = model.logits(window.tokens, state)
            targets.append(torch.multinomial(logits.softmax(-1), 1, generator=noise).view(window.tokens.shape))
    drawn.labels = targets
    table = intervention(model, drawn, drawn, SETTINGS)
    assert (table["label_term"].abs() <= 4 * table["label_error"]).all()
    assert (table["label_term"].abs() > 0).all()


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MSELoss()])
def test_a_network_of_the_users_is_measured_by_the_divergence_of_its_loss(loss):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, inputs = (
            nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double(),
            torch.randn(8, 3).double(),
        )
        targets = torch.randint(2, (8,)) if isinstance(loss, nn.CrossEntropyLoss) else torch.randn(8, 2).double()
    model, batches = adapt(network, inputs, loss=loss), [(inputs[:4], targets[:4]), (inputs[4:], targets[4:])]
    table = intervention(model, batches, batches, SETTINGS)
    dense = network(inputs).detach()
    for neuron in range(5):
        hidden = network[1](network[0](inputs)).detach()
        hidden[:, neuron] = 0
        without = network[2](hidden).detach()
        if isinstance(loss, nn.MSELoss):
            expected = (without - dense).square().mean()
        else:
            expected = (dense.softmax(-1) * (dense.log_softmax(-1) - without.log_softmax(-1))).sum(-1).mean()
        assert table["divergence"][neuron] == pytest.approx(float(expected), abs=1e-12)


def test_a_network_of_too_many_neurons_is_left_out_and_a_family_never(caplog):
    network, inputs = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), torch.ones(4, 3)
    model, batches = adapt(network, inputs, loss=nn.CrossEntropyLoss()), [(inputs, torch.ones(4).long())] * 2
    table = intervention(model, batches, batches, Intervention(most=4))
    assert table["importance"].isna().all()
    assert table["neuron"].tolist() == [0, 1, 2, 3, 4]
    assert "Not measured: intervention, because each of 5 neurons costs a reading and at most 4 are to" in caplog.text
    assert intervention(tiny(), windows(), windows(1), Intervention(tokens=32, most=1))["importance"].notna().all()


def test_too_few_labelled_batches_are_refused():
    with pytest.raises(ValueError, match="Expected at least two batches with targets for `intervention`, got 1"):
        intervention(tiny(), windows(), windows(), Intervention(tokens=10**6, batches=1))
