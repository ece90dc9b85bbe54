"""The Hessian signal converges to the exact Hessian of the unrolled twin."""

import contextlib
import logging
from functools import cache
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from pruning import adapt
from pruning.core.neurons import select
from pruning.core.statistics import Moments
from pruning.data.windows import Windows
from pruning.signals.curvature import Curvature
from pruning.signals.hessian import FEWEST_PROBES, hessian, rank_reliability
from tests.tiny import VOCABULARY, loss_on, tensors_of, text, tiny, twin_with

WINDOWS = Windows(text(12), first=0, batch=3, bptt=4)
"""One window: every probe reads it, so the text adds no variance."""
PROBES = 160
MODELS = {
    "untied": ("untied", (5, 6)),
    "projected": ("projected", (5,)),
    "gru": ("untied", (5,), "gru"),
    "tanh": ("untied", (5,), "tanh"),
    "snn": ("untied", (5,), "snn"),
    "mixed": ("projected", (5,), "lstm + snn"),
}


@cache
def model_of(name):
    return tiny(*MODELS[name])


@cache
def measured(name):
    return hessian(model_of(name), WINDOWS, probes=PROBES, stability=2, seed=1)


@cache
def exact_of(name):
    return exact(model_of(name))


def exact(model):
    """Return layer → (traces, mean squares) from each neuron's full Hessian."""
    found = {}
    for layer in model.layers():
        pairs = [exact_neuron(model, layer, neuron) for neuron in range(layer.width)]
        found[layer.name] = tuple(np.array(values) for values in zip(*pairs, strict=True))
    return found


def exact_neuron(model, layer, neuron):
    """Return the trace and the mean square of a neuron's own weights: their rows in each of its layer's parameters."""
    tensors = tensors_of(model)
    names = [name for name in tensors if name.startswith(f"{layer.name}.")]
    rows = {name: range(neuron, len(tensors[name]), layer.width) for name in names}
    pieces = [tensors[name][list(rows[name])] for name in names]
    own = torch.cat([piece.flatten() for piece in pieces])

    def loss(weights):
        parts = weights.split([piece.numel() for piece in pieces])
        changed = {
            name: tensors[name].index_copy(0, torch.tensor(rows[name]), part.view(piece.shape))
            for name, part, piece in zip(names, parts, pieces, strict=True)
        }
        return loss_on(twin_with({**tensors, **changed}, model), WINDOWS[0])

    curvature = torch.autograd.functional.hessian(loss, own)
    return curvature.trace().item(), own.square().mean().item()


@pytest.mark.parametrize("name", MODELS)
def test_the_trace_converges_to_the_exact_one(name):
    for layer, (traces, _) in exact_of(name).items():
        rows = measured(name)[measured(name)["layer"] == layer]
        errors = (rows["trace"] - traces) / rows["trace_standard_error"]
        assert errors.abs().max() <= 4
        assert np.corrcoef(rows["trace"], traces)[0, 1] > 0.9


@pytest.mark.parametrize("name", MODELS)
def test_the_error_of_the_trace_is_about_one_standard_error(name):
    traces = np.concatenate([traces for traces, _ in exact_of(name).values()])
    errors = (measured(name)["trace"] - traces) / measured(name)["trace_standard_error"]
    assert 0.3 < np.sqrt((errors**2).mean()) < 2


@pytest.mark.parametrize("name", MODELS)
def test_importance_is_the_trace_times_the_mean_square_weight(name):
    table = measured(name)
    squares = np.concatenate([squares for _, squares in exact_of(name).values()])
    np.testing.assert_allclose(table["mean_square"], squares, rtol=1e-12)
    np.testing.assert_allclose(table["importance"], table["trace"] * squares, rtol=1e-12)
    np.testing.assert_allclose(table["standard_error"], table["trace_standard_error"] * squares, rtol=1e-12)


def test_relabelling_neurons_relabels_their_exact_traces():
    model = model_of("untied")
    order = {"lstm.0": torch.tensor([3, 0, 4, 1, 2]), "lstm.1": torch.tensor([5, 1, 0, 3, 2, 4])}
    relabelled = exact(select(model, order))
    for layer, (traces, _) in exact_of("untied").items():
        np.testing.assert_allclose(relabelled[layer][0], traces[order[layer]], atol=1e-12)


def test_relabelling_neurons_relabels_their_measured_traces_within_their_errors():
    model, order = model_of("untied"), {"lstm.0": torch.tensor([3, 0, 4, 1, 2])}
    table = hessian(select(model, order), WINDOWS, probes=PROBES, stability=2, seed=2)
    before, after = measured("untied").iloc[:5].iloc[order["lstm.0"].numpy()], table.iloc[:5]
    errors = np.hypot(before["trace_standard_error"].to_numpy(), after["trace_standard_error"].to_numpy())
    assert (np.abs(before["trace"].to_numpy() - after["trace"].to_numpy()) <= 4 * errors).all()


def test_the_same_seed_gives_the_same_probes_and_another_seed_gives_others(windows):
    one, same, other = (hessian(tiny(), windows, probes=8, stability=2, seed=seed) for seed in (1, 1, 2))
    assert one.equals(same)
    assert not one["trace"].equals(other["trace"])


def weakest_agreement(one, other):
    """Return the Spearman correlation of two tables' importance in the layer where it is lowest."""
    both = one.assign(other=other["importance"]).groupby("layer")
    return min(spearmanr(rows["importance"], rows["other"]).statistic for _, rows in both)


@pytest.mark.parametrize("stability", [0.6, 0.8])
def test_independent_runs_rank_neurons_as_much_alike_as_promised(stability):
    model, once = tiny(widths=(16, 12)), Windows(text(24, seed=3), first=0, batch=6, bptt=4)
    tables = [hessian(model, once, probes=3000, stability=stability, seed=seed) for seed in range(3)]
    assert all(table["samples"].max() < 3000 for table in tables)
    found = [weakest_agreement(one, other) for one, other in combinations(tables, 2)]
    assert np.mean(found) >= stability


def test_the_reliability_seldom_promises_more_than_independent_runs_agree_on():
    random, scale, kept = np.random.default_rng(1), torch.ones(24, dtype=torch.float64), []
    for _ in range(20):
        truth, groups = random.normal(size=24), [Moments.empty(24) for _ in range(8)]

        def probes(count, truth=truth):
            return torch.tensor(truth + 2 * random.normal(size=(count, 24)))

        while groups[0].count < 2 or rank_reliability(groups, scale) < 0.8:
            for group in groups:
                group.update(probes(1))
        count = 8 * groups[0].count
        pairs = [spearmanr(probes(count).mean(0), probes(count).mean(0)).statistic for _ in range(10)]
        kept.append(np.mean(pairs) >= 0.8)
    assert np.mean(kept) >= 0.9


def test_reliability_is_the_lower_bound_from_all_splits_into_halves():
    random, scale = np.random.default_rng(1), torch.linspace(0.5, 2, 12, dtype=torch.float64)
    truth = torch.tensor(random.normal(size=12))
    groups = []
    for _ in range(8):
        groups.append(Moments.empty(12))
        groups[-1].update(truth + torch.tensor(random.normal(size=(3, 12))))
    found = []
    for one in combinations(range(8), 4):
        halves = [
            np.mean([(groups[g].mean * scale).numpy() for g in members], axis=0)
            for members in (one, set(range(8)) - set(one))
        ]
        found.append(spearmanr(*halves).statistic)
    whole = 2 * np.mean(found) / (1 + np.mean(found))
    assert rank_reliability(groups, scale) == pytest.approx(np.tanh(np.arctanh(whole) - 1.645 / 3), abs=1e-12)


def test_dead_neurons_agree_on_nothing_and_equals_share_their_ranks():
    random, scale = np.random.default_rng(1), torch.ones(128, dtype=torch.float64)

    def groups_of(dead):
        groups = [Moments.empty(128) for _ in range(8)]
        for group in groups:
            values = torch.tensor(random.normal(size=(3, 128)))
            values[:, :dead] = 0
            group.update(values)
        return groups

    assert rank_reliability(groups_of(128), scale) < 0
    assert rank_reliability(groups_of(120), scale) < 0.3
    groups, found = groups_of(64), []
    for one in combinations(range(8), 4):
        rest = set(range(8)) - set(one)
        found.append(spearmanr(*(np.mean([groups[g].mean for g in half], axis=0) for half in (one, rest))).statistic)
    whole = 2 * np.mean(found) / (1 + np.mean(found)) if np.mean(found) > 0 else 0
    expected = np.tanh(np.arctanh(whole) - 1.645 / 125**0.5)
    assert rank_reliability(groups, scale) == pytest.approx(expected, abs=1e-9)


def test_where_no_stability_is_asked_for_nothing_is_said_of_it(caplog):
    with caplog.at_level(logging.WARNING, logger="pruning"):
        hessian(tiny(), WINDOWS, probes=2, stability=0.0, seed=1)
    assert "stable" not in caplog.text


@pytest.mark.parametrize(("probes", "known"), [(24, "they show "), (9, "too few to tell")])
def test_a_budget_that_is_too_small_for_the_stability_is_reported(caplog, probes, known):
    with caplog.at_level(logging.WARNING, logger="pruning"):
        hessian(tiny(), WINDOWS, probes=probes, stability=1, seed=1)
    assert f"ranking by {probes} probes is not shown to agree with that by other probes to 1.00 ({known}" in caplog.text
    assert "give more probes, or the method 'gauss_newton'" in caplog.text


def test_one_probe_is_refused_for_its_error_would_be_said_to_be_none(windows):
    with pytest.raises(ValueError, match=r"Expected at least two probes for hessian.*, got 1"):
        hessian(tiny(), windows, probes=1, stability=0.9, seed=1)


def test_probing_stops_once_two_halves_rank_alike():
    assert (hessian(tiny(), WINDOWS, probes=99, stability=-1, seed=1)["samples"] == FEWEST_PROBES).all()


def test_probing_ends_with_its_budget_when_two_halves_never_rank_alike(windows):
    assert (hessian(tiny(), windows, probes=23, stability=2, seed=1)["samples"] == 23).all()


def test_probes_read_the_text_in_order_and_carry_its_state(windows):
    seen, model = [], tiny()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    hessian(model, windows, probes=len(windows) + 2, stability=2, seed=1)
    expected = [*windows, windows[0], windows[1]]
    assert all(torch.equal(tokens, window.tokens) for tokens, window in zip(seen, expected, strict=True))


def test_a_layer_of_one_neuron_is_measured_too(windows):
    table = hessian(tiny(widths=(1, 5)), windows, probes=10, stability=0.99, seed=1)
    assert table["trace"].notna().all()


def test_every_component_differs_between_neurons_of_a_trained_model(trained, windows):
    table = hessian(trained, windows, probes=20, stability=2, seed=1)
    columns = ["trace", "trace_standard_error", "mean_square", "importance"]
    assert (table.groupby("layer")[columns].std() > 0).all(axis=None)


SMOOTH = [name for name in MODELS if "snn" not in MODELS[name][-1]]


@pytest.mark.parametrize("name", ["untied", "gru", "tanh", "mixed", "stacked"])
def test_exact_products_are_those_of_pytorchs_own_second_derivatives(name, windows, monkeypatch):
    model = adapted_lstm() if name == "stacked" else model_of(name)
    found = hessian(model, windows, probes=16, stability=-1, seed=1)
    monkeypatch.setattr("pruning.core.devices._Unrolling", contextlib.nullcontext)
    monkeypatch.setattr("pruning.models.likelihood.differentiated_twice", lambda: False)
    expected = hessian(model, windows, probes=16, stability=-1, seed=1)
    np.testing.assert_allclose(found["trace"], expected["trace"], rtol=1e-9, atol=1e-12)


def adapted_lstm():
    """Return a network of a user's own, with a stacked LSTM in two directions."""

    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, 3)
            self.lstm = nn.LSTM(3, 4, num_layers=2, bidirectional=True)
            self.tags = nn.Linear(8, VOCABULARY)

        def forward(self, tokens):
            return self.tags(self.lstm(self.embedding(tokens))[0])

    torch.manual_seed(1)
    return adapt(Tagger().double(), WINDOWS[0].tokens, loss=nn.CrossEntropyLoss(), example_dim=1)


@pytest.mark.parametrize("name", SMOOTH)
def test_differences_of_gradients_give_the_exact_products_of_smooth_networks(name, windows, caplog):
    one, other = (
        hessian(model_of(name), windows, probes=16, stability=-1, seed=1, method=method)
        for method in ("exact", "differences")
    )
    assert not caplog.records
    np.testing.assert_allclose(other["trace"], one["trace"], rtol=1e-6, atol=1e-9)
    assert not one["trace"].equals(other["trace"])


def test_differences_in_float32_are_nearer_to_the_exact_products_than_to_any_ranking(windows):
    model = tiny().float()
    one, other = (
        hessian(model, windows, probes=16, stability=-1, seed=1, method=method)["trace"]
        for method in ("exact", "differences")
    )
    assert np.linalg.norm(one - other) < 1e-3 * np.linalg.norm(one)


@pytest.mark.parametrize(
    ("family", "reason"), [("relu", "the derivative of Relu jumps"), ("snn", "exact traces in layer")]
)
def test_networks_that_differences_do_not_suit_are_probed_exactly_and_it_is_said_once(family, reason, windows, caplog):
    model = tiny("untied", (5,), family)
    one, other = (
        hessian(model, windows, probes=16, stability=-1, seed=1, method=method) for method in ("exact", "differences")
    )
    assert one.equals(other)
    assert [reason in record.message for record in caplog.records] == [True]


def test_differences_leave_the_weights_as_they_were_also_after_an_error(windows):
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def broken(*_, **__):
        raise ArithmeticError

    model.loss, whole = broken, model.loss
    probe = Curvature(model, model.layers(), method="differences", generator=torch.Generator())
    signs = {name: torch.ones_like(p) for name, p in probe.parameters.items()}
    with pytest.raises(ArithmeticError):
        probe._by_differences(signs, *windows[0], None)
    model.loss = whole
    probe.estimate(*windows[0], None)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_an_unknown_method_and_one_that_the_loss_cannot_serve_are_refused(windows):
    with pytest.raises(ValueError, match=r"Unknown method 'fisher' of hessian; known: \['exact', 'differences', 'gau"):
        hessian(tiny(), windows, probes=8, stability=0, seed=1, method="fisher")
    model = adapt(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), torch.ones(1, 2), loss=nn.L1Loss())
    batches = [(torch.ones(4, 2), torch.ones(4, 1))]
    with pytest.raises(ValueError, match=r"Expected a loss whose targets can be drawn .*got L1Loss; use method exact"):
        hessian(model, batches, probes=8, stability=0, seed=1, method="gauss_newton")
