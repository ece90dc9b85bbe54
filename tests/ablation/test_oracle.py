"""Measured removal against models that are really smaller, one at a time, and what stopping early does to errors."""

import copy
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import pruning.ablation.batched
from pruning.ablation.batched import OneByOne, SideBySide, removals
from pruning.ablation.joint_removal import joint_removal, removal_sets
from pruning.ablation.losses import SampledLoss, WholeLoss
from pruning.ablation.oracle import Ablation, clear_places, neurons_to_measure, oracle, split_half_reliability
from pruning.core.neurons import NeuronLayer, Slice, select
from pruning.core.statistics import ClusteredMean
from pruning.data.windows import IGNORED, Windows
from pruning.models.base import LanguageModel
from pruning.models.lstm import LSTMLanguageModel
from tests.tiny import DECODERS, FAMILIES, VOCABULARY, WIDTHS, bytes_of, logits_of, tensors_of, text, tiny

ALL = Ablation(neurons="all", tokens=10**6, most=10**6, tolerance=0.0, words="all", seed=1)


def losses_by_hand(model, windows):
    """Return each token's loss, (T, B), of all windows one after the other; NaN where nothing is predicted."""
    shares, targets = logits_of(model, windows).log_softmax(-1), windows.targets
    found = -shares.gather(2, targets.clamp(min=0)[..., None])[..., 0]
    return found.masked_fill(targets == IGNORED, torch.nan).numpy()


def without(model, layer, *removed):
    others = torch.tensor([neuron for neuron in range(layer.width) if neuron not in removed])
    return select(model, {layer.name: others})


def ratio_by_hand(differences, bptt):
    """Return mean and standard error, each window's column a cluster, with loops."""
    sums, counts = [], []
    for start in range(0, len(differences), bptt):
        for column in differences[start : start + bptt].T:
            kept = column[~np.isnan(column)]
            if len(kept):
                sums.append(kept.sum())
                counts.append(len(kept))
    mean, clusters = sum(sums) / sum(counts), len(sums)
    spread = sum((s - mean * n) ** 2 for s, n in zip(sums, counts, strict=True))
    return mean, np.sqrt(clusters / (clusters - 1) * spread) / sum(counts)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("widths", WIDTHS.values())
@pytest.mark.parametrize("words", ["all", VOCABULARY + 1])
def test_the_increase_of_every_neuron_equals_that_of_a_model_really_without_it(decoder, widths, words):
    model, windows = tiny(decoder, widths), Windows(text(118), first=0, batch=3, bptt=6)
    dense, table = losses_by_hand(model, windows), oracle(model, windows, replace(ALL, words=words))
    for layer in model.layers():
        rows = table[table["layer"] == layer.name]
        for neuron in range(layer.width):
            mean, error = ratio_by_hand(losses_by_hand(without(model, layer, neuron), windows) - dense, 6)
            assert rows["loss_increase"].iloc[neuron] == pytest.approx(mean, abs=1e-12)
            assert rows["standard_error"].iloc[neuron] == pytest.approx(error, abs=1e-12)
            assert abs(mean) > 1e-6
    assert (table["samples"] == 118).all()


@pytest.mark.parametrize("words", ["all", VOCABULARY + 1])
@pytest.mark.parametrize("decoder", DECODERS)
def test_the_divergence_of_every_neuron_equals_that_from_a_model_really_without_it(decoder, words):
    model, windows = tiny(decoder, WIDTHS[2]), Windows(text(118), first=0, batch=3, bptt=6)
    dense, table = logits_of(model, windows).log_softmax(-1), oracle(model, windows, replace(ALL, words=words))
    for layer in model.layers():
        rows = table[table["layer"] == layer.name]
        for neuron in range(layer.width):
            others = logits_of(without(model, layer, neuron), windows).log_softmax(-1)
            apart = (dense.exp() * (dense - others)).sum(-1).masked_fill(windows.targets == IGNORED, torch.nan).numpy()
            mean, error = ratio_by_hand(apart, 6)
            assert rows["divergence"].iloc[neuron] == pytest.approx(mean, abs=1e-12)
            assert rows["divergence_error"].iloc[neuron] == pytest.approx(error, abs=1e-12)
            assert mean > 1e-8


def test_sampled_words_give_the_divergence_of_all_words_and_far_less_noise_than_the_increase(trained, windows):
    whole, sampled = oracle(trained, windows, ALL), oracle(trained, windows, replace(ALL, words=10))
    apart = (whole["divergence"] - sampled["divergence"]).abs()
    assert apart.max() > 0
    assert (apart <= 0.2 * whole["standard_error"]).all()
    assert whole["divergence_error"].mean() < 0.5 * whole["standard_error"].mean()


def test_removals_of_any_subset_side_by_side_equal_one_after_the_other_also_after_some_were_dropped():
    model, windows = tiny(widths=WIDTHS[3]), Windows(text(100), first=0, batch=2, bptt=5)
    with torch.no_grad():
        for layer in model.layers():
            neurons = torch.tensor([4, 1, 2])
            fast, slow = SideBySide(model, layer, neurons), OneByOne(model, layer, neurons)
            for index, window in enumerate(windows):
                if index == 3:
                    fast.keep(torch.tensor([2, 0]))
                    slow.keep(torch.tensor([2, 0]))
                one, other = fast.features(window.tokens), slow.features(window.tokens)
                assert one.shape == (len(window.tokens), 3 if index < 3 else 2, 2, 6)
                assert (one - other).abs().max() <= 1e-14


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "lstm"])
def test_in_every_family_removals_side_by_side_equal_masked_models_one_after_the_other(family, decoder):
    model, windows = tiny(decoder, WIDTHS[2], family), Windows(text(50), first=0, batch=2, bptt=5)
    with torch.no_grad():
        for layer in model.layers():
            neurons = torch.tensor([2, 0])
            fast, slow = removals(model, layer, neurons), OneByOne(model, layer, neurons)
            assert isinstance(fast, SideBySide)
            for index, window in enumerate(windows):
                if index == 3:
                    fast.keep(torch.tensor([1]))
                    slow.keep(torch.tensor([1]))
                one, other = fast.features(window.tokens), slow.features(window.tokens)
                assert one.shape[:3] == (len(window.tokens), 2 if index < 3 else 1, 2)
                assert (one - other).abs().max() <= 1e-13


@pytest.mark.parametrize("family", ["gru", "relu", "snn", "feed-forward snn", "lstm + snn"])
def test_the_increase_in_every_family_equals_that_of_a_model_really_without_the_neuron(family):
    model, windows = tiny("tied, then projected", WIDTHS[2], family), Windows(text(60), first=0, batch=3, bptt=5)
    dense, table = losses_by_hand(model, windows), oracle(model, windows, ALL).set_index(["layer", "neuron"])
    for layer in model.layers():
        for neuron in range(layer.width):
            apart = losses_by_hand(without(model, layer, neuron), windows) - dense
            assert table.loc[(layer.name, neuron), "loss_increase"] == pytest.approx(np.nanmean(apart), abs=1e-12)


def test_a_family_without_a_scan_is_measured_one_model_after_the_other_with_equal_results(
    monkeypatch, trained, windows
):
    usual = oracle(trained, windows, ALL)
    monkeypatch.setattr(pruning.ablation.batched, "SCANS", {})
    assert isinstance(removals(trained, trained.layers()[0], torch.tensor([0])), OneByOne)
    pd.testing.assert_frame_equal(oracle(trained, windows, ALL), usual, rtol=0, atol=1e-12)


def test_a_layer_that_reads_the_removed_neuron_and_has_no_scan_runs_as_it_is():
    class Another(nn.LSTM):
        """A kind of module that no scan is known for."""

    model, windows = tiny(), Windows(text(60), first=0, batch=2, bptt=5)
    other = copy.deepcopy(model)
    other.lstm[1].__class__ = Another
    layer, neurons = other.layers()[0], torch.arange(7)
    with torch.no_grad():
        fast, slow = removals(other, layer, neurons), OneByOne(model, layer, neurons)
        assert isinstance(fast, SideBySide)
        for window in windows:
            assert (fast.features(window.tokens) - slow.features(window.tokens)).abs().max() <= 1e-14


class Halves(LanguageModel):
    """A layer of two halves that read the embedding, and above it one LSTM; the decoder reads that and a half."""

    def __init__(self, left=4, right=5, top=3):
        super().__init__()
        self.encoder = nn.Embedding(VOCABULARY, 6)
        self.left, self.right, self.top = nn.LSTM(6, left), nn.LSTM(6, right), nn.LSTM(4, top)
        self.from_left, self.to_top = nn.Linear(left, 4), nn.Linear(right, 4)
        self.from_top, self.decoder = nn.Linear(top, 4), nn.Linear(4, VOCABULARY)

    def features(self, tokens, state=None, offsets=None):  # noqa: ARG002 - the signature is the base's
        read, (one, two, three) = self.encoder(tokens), state or (None, None, None)
        left, one = self.left(read, one)
        right, two = self.right(read, two)
        top, three = self.top(self.to_top(right), three)
        return self.from_left(left) + self.from_top(top), [one, two, three]

    def decode(self, features):
        return self.decoder(features)

    @property
    def decoder_weight(self):
        return self.decoder.weight

    def layers(self):
        def layer(name, width, reader):
            owned = tuple(Slice(f"{name}.{own}_l0", dim=0, blocks=4) for own in ("weight_ih", "weight_hh"))
            read = (Slice(f"{name}.weight_hh_l0", dim=1), Slice(f"{reader}.weight", dim=1))
            return NeuronLayer(name, "rnn", width, owned, read, name)

        return [
            layer("left", self.left.hidden_size, "from_left"),
            layer("right", self.right.hidden_size, "to_top"),
            layer("top", self.top.hidden_size, "from_top"),
        ]

    def resized(self, widths):
        return type(self)(*widths).double()

    def widths(self):
        return (self.left.hidden_size, self.right.hidden_size, self.top.hidden_size)

    def decoupled(self, how="project"):  # noqa: ARG002 - the signature is the base's
        return self

    def multiply_adds(self):
        return 0

    def to_config(self):
        return {}


def test_a_layer_beside_the_removed_neurons_layer_speaks_to_all_models():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Halves().double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(parameter)))
    windows = Windows(text(60), first=0, batch=2, bptt=5)
    with torch.no_grad(), torch.random.fork_rng():
        for layer in model.layers():
            fast, slow = removals(model, layer, torch.arange(3)), OneByOne(model, layer, torch.arange(3))
            assert isinstance(fast, SideBySide)
            for index, window in enumerate(windows):
                if index == 2:
                    fast.keep(torch.tensor([0, 2]))
                    slow.keep(torch.tensor([0, 2]))
                one = fast.features(window.tokens)
                assert (one - one[:, :1]).abs().max() > 1e-3
                assert (one - slow.features(window.tokens)).abs().max() <= 1e-12


def test_the_size_of_a_batch_of_models_changes_no_result(monkeypatch, trained, windows):
    usual = oracle(trained, windows, ALL)
    monkeypatch.setattr(sys.modules["pruning.ablation.oracle"], "COLUMNS", 9)
    pd.testing.assert_frame_equal(oracle(trained, windows, ALL), usual, rtol=0, atol=1e-13)


def test_the_average_over_many_draws_of_words_is_the_increase_from_all_words(windows):
    model, window = tiny(spread=0.3), windows[0]
    with torch.no_grad():
        dense, _ = model.features(window.tokens)
        other = dense[:, None] + 0.3 * torch.randn(
            6, 5, 4, 6, dtype=dense.dtype, generator=torch.Generator().manual_seed(0)
        )
        whole = WholeLoss(model, dense, window.targets).compared(other)[0]
        draws = torch.stack(
            [
                SampledLoss(model, dense, window.targets, 8, torch.Generator().manual_seed(seed)).compared(other)[0]
                for seed in range(300)
            ]
        )
    noise = draws.std(0)
    assert noise.max() > 1e-3
    assert ((draws.mean(0) - whole).abs() <= 5 * noise / 300**0.5 + noise.square()).all()


def test_sampled_words_add_little_to_the_error_of_the_increase(trained, windows):
    whole, sampled = oracle(trained, windows, ALL), oracle(trained, windows, replace(ALL, words=10))
    apart = (whole["loss_increase"] - sampled["loss_increase"]).abs()
    assert apart.max() > 0
    assert (apart <= 0.2 * whole["standard_error"]).all()


def test_an_estimate_never_falls_below_what_the_certain_words_alone_give():
    model, window = tiny(spread=1.0), Windows(text(40), first=0, batch=2, bptt=10)[0]
    with torch.no_grad():
        dense, _ = model.features(window.tokens)
        other = dense[:, None] + 20 * torch.randn(
            10, 6, 2, 6, dtype=dense.dtype, generator=torch.Generator().manual_seed(0)
        )
        loss = SampledLoss(model, dense, window.targets, 4, torch.Generator().manual_seed(0))
        assert loss.compared(other)[0].isfinite().all()


EXTREMES = {
    "large logits": (lambda model: model.decoder.weight.mul_(60), 1.0),
    "confident": (lambda model: model.decoder.bias[3].add_(120), 3.0),
    "confident, then another word": (lambda model: model.decoder.bias[3].add_(90), 20.0),
    "one loud word that is never expected": (
        lambda model: (model.decoder.bias[7].sub_(12), model.decoder.weight[7].mul_(20)),
        1.0,
    ),
    "far apart": (lambda model: model.decoder.weight.mul_(4), 30.0),
}
"""How a model's decoder comes to be extreme, and how far a removal changes what it reads."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", EXTREMES)
def test_sampled_words_are_as_exact_as_all_words_where_logits_are_extreme(how, dtype):
    model, window = tiny(dtype=dtype), Windows(text(102), first=0, batch=4, bptt=30)[0]
    change, size = EXTREMES[how]
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        change(model)
        dense, _ = model.features(window.tokens)
        other = dense[:, None] + size * torch.randn(len(dense), 5, 4, 6, dtype=dtype, generator=noise)
        wholes = WholeLoss(model.double(), dense.double(), window.targets).compared(other.double())
        loss = SampledLoss(model.to(dtype), dense, window.targets, 8, torch.Generator().manual_seed(0))
        estimates = loss.compared(other)
    assert (window.targets < 0).any()
    assert wholes[0].abs().max() > 3
    for estimate, whole in zip(estimates, wholes, strict=True):
        tolerance = 1e-5 * (1 + wholes[0].abs().max())
        assert ((estimate - whole).abs() <= tolerance).float().mean() > 0.9
        assert (estimate - whole).abs().max() < 0.3


@pytest.mark.parametrize("words", [2, 8, 10])
def test_measured_removal_of_a_model_with_large_logits_is_finite_and_as_with_all_words(words):
    model, windows = tiny(dtype=torch.float32), Windows(text(400), first=0, batch=4, bptt=10)
    with torch.no_grad():
        model.decoder.weight.mul_(100)
    whole, found = (oracle(model, windows, replace(ALL, words=some)) for some in ("all", words))
    for column in ("loss_increase", "standard_error", "even", "odd"):
        np.testing.assert_allclose(found[column], whole[column], rtol=1e-4, atol=1e-3)


def test_small_changes_keep_their_digits_in_single_precision():
    """log(1 + e) of an e below the rounding of 1 is 0; log1p is e."""
    model, window = tiny(dtype=torch.float32), Windows(text(40), first=0, batch=2, bptt=10)[0]
    with torch.no_grad():
        dense, _ = model.features(window.tokens)
        other = dense[:, None] + 1e-5 * torch.randn(10, 3, 2, 6, generator=torch.Generator().manual_seed(0))
        found = SampledLoss(model, dense, window.targets, 8, torch.Generator().manual_seed(0)).compared(other)[0]
        whole = WholeLoss(model.double(), dense.double(), window.targets).compared(other.double())[0]
    torch.testing.assert_close(found.double(), whole, rtol=1e-3, atol=1e-9)


def test_hardly_a_token_of_an_ordinary_model_needs_all_words(trained, windows, monkeypatch):
    counts, whole = [], SampledLoss._whole

    def counted(self, read, step, column):
        counts.append(len(read))
        return whole(self, read, step, column)

    monkeypatch.setattr(SampledLoss, "_whole", counted)
    table = oracle(trained, windows, replace(ALL, words=10))
    assert sum(counts) <= 0.02 * table["samples"].sum()


def test_one_neuron_alone_is_measured_with_a_pilot_too():
    windows = Windows(text(400), first=0, batch=4, bptt=10)
    table = oracle(tiny(widths=(1,)), windows, replace(ALL, tokens=100, most=300))
    assert table["loss_increase"].notna().all()


def test_neurons_that_all_cost_the_same_without_error_have_no_place_to_look_for():
    pilot = ClusteredMean.empty(4)
    pilot.update(torch.ones(5, 4), torch.ones(5))
    assert clear_places(pilot, 100, 0.0).all()


def test_a_sample_holds_neurons_of_each_layer_in_proportion_and_repeats_itself(trained, windows):
    layers = tiny(widths=WIDTHS[3]).layers()
    found = neurons_to_measure(layers, 9, seed=3)
    assert [len(found[layer.name]) for layer in layers] == [2, 4, 3]
    assert all(found[n].tolist() == v.tolist() for n, v in neurons_to_measure(layers, 9, seed=3).items())
    table, whole = oracle(trained, windows, replace(ALL, neurons=4)), oracle(trained, windows, ALL)
    both = table.merge(whole, on=["layer", "neuron"])
    assert len(both) == len(table) == 4
    np.testing.assert_allclose(both["loss_increase_x"], both["loss_increase_y"], atol=1e-13)


def test_halves_and_reliability_come_from_alternate_windows(trained, windows):
    table, dense = oracle(trained, windows, ALL), losses_by_hand(trained, windows)
    layer = trained.layers()[1]
    even = np.arange(len(dense)) // 6 % 2 == 0
    for neuron in range(layer.width):
        apart = losses_by_hand(without(trained, layer, neuron), windows) - dense
        row = table[(table["layer"] == layer.name) & (table["neuron"] == neuron)].iloc[0]
        assert row["even"] == pytest.approx(np.nanmean(apart[even]), abs=1e-12)
        assert row["odd"] == pytest.approx(np.nanmean(apart[~even]), abs=1e-12)
    rows = table[table["layer"] == layer.name]
    places = [np.argsort(np.argsort(rows[half])) for half in ("even", "odd")]
    rho = np.corrcoef(*places)[0, 1]
    assert rows["reliability"].to_numpy() == pytest.approx(2 * rho / (1 + rho))


def test_reliability_is_one_for_equal_halves_and_nan_where_nothing_can_be_ranked():
    frame = pd.DataFrame({"even": [1.0, 2.0, 3.0], "odd": [10.0, 20.0, 30.0]})
    assert split_half_reliability(frame) == pytest.approx(1)
    assert split_half_reliability(frame.assign(odd=[3.0, 2.0, 1.0])) == pytest.approx(-1)
    assert np.isnan(split_half_reliability(frame.iloc[:1]))
    assert np.isnan(split_half_reliability(frame.assign(odd=1.0)))


def test_clear_neurons_stop_at_the_tokens_for_all_and_the_pilot_that_decides_is_left_out():
    model, windows = tiny(), Windows(text(2000), first=0, batch=8, bptt=6)
    table = oracle(model, windows, replace(ALL, tokens=480, most=960, tolerance=0.1))
    assert set(table["samples"]) == {480, 960}
    dense, places = losses_by_hand(model, windows), table.set_index(["layer", "neuron"])
    for layer in model.layers():
        for neuron in range(layer.width):
            row = places.loc[(layer.name, neuron)]
            apart = losses_by_hand(without(model, layer, neuron), windows) - dense
            mean, error = ratio_by_hand(apart[12 : 12 + int(row["samples"]) // 8], 6)  # two windows are the pilot
            assert row["loss_increase"] == pytest.approx(mean, abs=1e-12)
            assert row["standard_error"] == pytest.approx(error, abs=1e-12)


def test_everyone_stops_where_any_place_is_clear_and_nobody_where_none_is(trained, windows):
    for tolerance, samples in ((1.0, 120), (-1.0, 240)):
        table = oracle(trained, windows, replace(ALL, tokens=120, most=240, tolerance=tolerance))
        assert (table["samples"] == samples).all()


def test_a_place_is_clear_where_few_others_are_within_the_error_that_the_pilot_foretells():
    pilot, random = ClusteredMean.empty(5), np.random.default_rng(0)
    truth = torch.tensor([0.0, 0.001, 0.002, 1.0, 2.0])
    noise = torch.tensor(random.normal(size=(50, 3)))[:, [0, 0, 0, 1, 2]]
    pilot.update(100 * truth + 20 * noise, torch.full((50,), 100))
    mean, error = pilot.mean.numpy(), pilot.standard_error.numpy()
    mean = mean * np.sqrt(1 - np.mean(error**2) / np.var(mean, ddof=1))
    for tolerance in (0.05, 0.15, 0.25):
        expected = []
        for i in range(5):
            near = [np.hypot(error[i], error[j]) / 2 > abs(mean[i] - mean[j]) for j in range(5) if j != i]
            expected.append(sum(near) / 2 <= tolerance * 5)
        assert clear_places(pilot, 20_000, tolerance).tolist() == expected
    assert clear_places(pilot, 20_000, 0.05).tolist() == [False, False, False, True, True]


def test_intervals_cover_the_truth_also_of_neurons_that_stop_early():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(64, dtype=torch.float64, generator=generator).pow(3)

    def read(state, clusters, places):
        noise = torch.randn(clusters, len(places), dtype=torch.float64, generator=generator)
        state.update(100 * truth[places] + 40 * noise, torch.full((clusters,), 100), places)

    apart, stopped = [], []
    for _ in range(80):
        pilot, state = ClusteredMean.empty(64), ClusteredMean.empty(64)
        read(pilot, 10, torch.arange(64))
        clear = clear_places(pilot, 5000, tolerance=0.05)
        read(state, 50, torch.arange(64))
        read(state, 50, (~clear).nonzero().flatten())
        apart.append((state.mean - truth) / state.standard_error)
        stopped.append(clear)
    outward = torch.stack(apart) * (truth - truth.median()).sign()
    for chosen in (torch.stack(stopped), ~torch.stack(stopped)):
        assert chosen.sum() > 500
        assert 0.93 <= float((outward[chosen].abs() < 2.0).double().mean()) <= 0.97
        assert abs(float(outward[chosen].mean())) < 0.1


def test_clusters_merge_and_may_be_of_some_variables_only():
    random = np.random.default_rng(0)
    sums, counts = torch.tensor(random.normal(size=(9, 3))), torch.tensor(random.integers(0, 5, 9))
    one, two, whole = (ClusteredMean.empty(3) for _ in range(3))
    whole.update(sums, counts)
    one.update(sums[:4], counts[:4])
    for place in (2, 0, 1):
        two.update(sums[4:, [place]], counts[4:], torch.tensor([place]))
    both = one.merge(two)
    kept = counts > 0
    assert whole.clusters.tolist() == [int(kept.sum())] * 3
    np.testing.assert_allclose(both.mean, (sums[kept].sum(0) / counts.sum()).numpy(), rtol=1e-12)
    np.testing.assert_allclose(both.standard_error, whole.standard_error, rtol=1e-12)


def test_removing_sets_together_equals_smaller_models_and_stands_beside_the_sum_of_single_increases(trained, windows):
    measured = oracle(trained, windows, ALL)
    sets = {"two": {"lstm.0": [1, 3]}, "both": {"lstm.0": [0], "lstm.1": [5, 2]}}
    table = joint_removal(trained, windows, measured, sets=sets, tokens=10**6).set_index("set")
    layers, dense = trained.layers(), losses_by_hand(trained, windows)
    smaller = {
        "two": without(trained, layers[0], 1, 3),
        "both": without(without(trained, layers[0], 0), layers[1], 5, 2),
    }
    single = measured.set_index(["layer", "neuron"])["loss_increase"]
    for name, model in smaller.items():
        mean, error = ratio_by_hand(losses_by_hand(model, windows) - dense, 6)
        assert table.loc[name, "loss_increase"] == pytest.approx(mean, abs=1e-12)
        assert table.loc[name, "standard_error"] == pytest.approx(error, abs=1e-12)
        pairs = [(layer, neuron) for layer, neurons in sets[name].items() for neuron in neurons]
        assert table.loc[name, "single_sum"] == pytest.approx(sum(single[pair] for pair in pairs))
        assert table.loc[name, "neurons"] == len(pairs)
    assert (table["phase"] == "pruned").all()
    assert (table["samples"] == 470).all()


def test_repair_and_finetuning_are_measured_after_removal_against_a_dense_model_with_the_same_training(
    trained, windows
):
    def repair(model, keep):
        smaller = select(model, keep)
        smaller.decoder.bias.data[3] += 0.2
        return smaller

    def finetune(model):
        model.decoder.bias.data[5] += 0.3
        return model

    before, sets = bytes_of(tensors_of(trained)), {"two": {"lstm.0": [1, 3]}}
    measured = oracle(trained, windows, ALL)
    table = joint_removal(
        trained, windows, measured, sets=sets, tokens=10**6, repair=repair, finetune=finetune
    ).set_index("phase")["loss_increase"]
    smaller, dense = without(trained, trained.layers()[0], 1, 3), losses_by_hand(trained, windows)
    smaller.decoder.bias.data[3] += 0.2
    assert table["reconstructed"] == pytest.approx(np.nanmean(losses_by_hand(smaller, windows) - dense), abs=1e-12)
    control = finetune(copy.deepcopy(trained))
    finetuned = losses_by_hand(finetune(smaller), windows) - losses_by_hand(control, windows)
    assert table["finetuned"] == pytest.approx(np.nanmean(finetuned), abs=1e-12)
    assert bytes_of(tensors_of(trained)) == before


def test_sets_to_remove_are_the_least_harmful_of_each_layer_and_as_many_at_random(trained, windows):
    measured = oracle(trained, windows, ALL)
    sets = removal_sets(measured, shares=[0.3, 0.5], seed=1)
    assert list(sets) == ["least 0.3", "random 0.3", "least 0.5", "random 0.5"]
    for layer, rows in measured.groupby("layer"):
        ascending = rows.sort_values("loss_increase")["neuron"].tolist()
        assert sets["least 0.5"][layer] == sorted(ascending[: len(rows) // 2])
        assert len(set(sets["random 0.5"][layer])) == len(rows) // 2
    assert sets["random 0.5"] == removal_sets(measured, shares=[0.5], seed=1)["random 0.5"]
    assert sets["random 0.5"] != removal_sets(measured, shares=[0.5], seed=2)["random 0.5"]


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_model_mode_hooks_and_random_state_as_they_were(training, windows):
    model: LSTMLanguageModel = tiny(dropout=0.5).train(training)
    before, random, inner = bytes_of(tensors_of(model)), torch.get_rng_state(), [*map(vars, model.lstm)]
    oracle(model, windows, replace(ALL, words=6))
    assert bytes_of(tensors_of(model)) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training == training for module in model.modules())
    assert all("forward" not in vars(module) for module in model.modules())
    assert [*map(vars, model.lstm)] == inner


def test_single_precision_gives_the_same_increases_far_within_their_errors(trained, windows):
    exact = oracle(trained, windows, ALL)
    rough = oracle(copy.deepcopy(trained).float(), windows, replace(ALL, words=VOCABULARY))
    assert ((exact["loss_increase"] - rough["loss_increase"]).abs() < 0.01 * exact["standard_error"]).all()


def test_too_little_text_or_budget_and_tied_decoders_are_refused(windows):
    with pytest.raises(ValueError, match="Expected at least two windows of text"):
        oracle(tiny(), Windows(text(20), first=0, batch=4, bptt=6), ALL)
    with pytest.raises(ValueError, match="and 2 before them for the pilot, got 3"):
        oracle(tiny(), Windows(text(60), first=0, batch=4, bptt=5), replace(ALL, tokens=200, most=400))
    few = r"Expected more tokens than a window's 20 \(4 × 5\), since two are compared, got 20"
    with pytest.raises(ValueError, match=few):
        oracle(tiny(), Windows(text(60), first=0, batch=4, bptt=5), replace(ALL, tokens=20))
    with pytest.raises(ValueError, match="Expected most to be at least tokens"):
        oracle(tiny(), windows, replace(ALL, most=10))
    with pytest.raises(ValueError, match="decoupled"):
        oracle(tiny("tied"), windows, ALL)
