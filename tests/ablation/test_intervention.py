"""The intervention against models really without each neuron, and against gates that labels really pull at."""

import numpy as np
import pytest
import torch
from torch import nn

from pruning.ablation.intervention import Intervention, intervention
from pruning.ablation.oracle import Ablation, oracle
from pruning.core.modes import carried
from pruning.data.windows import Windows
from pruning.models.adapting import adapt
from tests.signals.test_gradients import gradients_by_hand
from tests.tiny import FAMILIES, WIDTHS, text, tiny

SETTINGS = Intervention(tokens=10**6, words="all")
ALL = Ablation(neurons="all", tokens=10**6, seed=1)
DIVERGENCE_AND_NOISE = (("divergence", 1), ("standard_error", 2))


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


def columns_by_hand(model, read):
    """Return Σ_t h_t ∂L/∂h_t of each column that is read alone, [window][column][layer][neuron]."""
    found = []
    for index, window in enumerate(read):
        found.append([])
        for column in range(window.tokens.shape[1]):
            tokens, state = window.tokens[:, [column]], None
            for before in read[:index]:
                _, state = model.logits(before.tokens[:, [column]], carried(state))
            logits, taps, _ = model.tapped(tokens, carried(state))
            loss = nn.functional.cross_entropy(logits, window.targets[:, column], reduction="sum")
            slopes = torch.autograd.grad(loss, list(taps.values()))
            outputs = model.outputs(tokens, carried(state))
            found[-1].append([
                [sum(float(h) * float(g) for h, g in zip(outputs[name][:, 0, i], slope[:, 0, i], strict=True))
                 for i in range(slope.shape[2])]
                for name, slope in zip(taps, slopes, strict=True)
            ])  # fmt: skip
    return found


def stretches_by_hand(columns, groups, tokens, i):
    """Return −Σ s / n of one neuron in each stretch of the text, in no order."""
    stretches = {}
    for window, count, places in zip(columns, tokens, groups, strict=True):
        for column, place in zip(window, places, strict=True):  # columns are equally long
            stretches.setdefault(place, []).append((-column[i], count / len(window)))
    return [sum(s for s, _ in parts) / sum(n for _, n in parts) for parts in stretches.values()]


def weights_by_hand(seen, stretches, calm, share, scales):
    """Return a, b, s + d ≥ 0, most probable by Σ (L_g − a T − b L_others − d D)² / D over stretches.

    Before that a and b are N(½, ¼²) and s + d is N(s, ½²).
    """

    def less_mean(values):
        mean = sum(v / s for v, s in zip(values, scales, strict=True)) / sum(1 / s for s in scales)
        return [(v - mean) / s**0.5 for v, s in zip(values, scales, strict=True)]

    def fitted(left):
        rows, wanted = [], []
        for g, of in enumerate(stretches):
            if g == left:
                continue
            rest = [s for k, s in enumerate(stretches) if k != g]
            others = [sum(s[i] for s in rest) / len(rest) for i in range(len(of))]
            rows += zip(less_mean(seen), less_mean(others), less_mean(calm), strict=True)
            wanted += less_mean(of)
        return np.linalg.lstsq(np.array(rows), np.array(wanted), rcond=None)[0]

    each = [fitted(left) for left in range(len(stretches))]
    mean = sum(each) / len(each)
    variance = sum(np.outer(w - mean, w - mean) for w in each) * (len(each) - 1) / len(each)
    known = np.linalg.inv(variance)
    before, certain = np.array([0.5, 0.5, share]), np.diag([1 / 0.25**2, 1 / 0.25**2, 1 / 0.5**2])
    precision, center = known + certain, known @ (fitted(None) + np.array([0, 0, share])) + certain @ before
    possible = []
    for used in ([], [0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]):
        weights = np.zeros(3)
        weights[used] = np.linalg.solve(precision[np.ix_(used, used)], center[used])
        if (weights >= 0).all():
            possible.append((weights @ precision @ weights / 2 - center @ weights, *weights))
    return min(possible)[1:]


def share_by_hand(removed, terms, curvature):
    """Return the share of a layer's divergence that is a loss, from rows of the oracle and label terms on its text."""
    rows = removed.to_dict("records")
    beyond = sum(row["loss_increase"] - term for row, term in zip(rows, terms, strict=True))
    divergence, noise = (sum(row[name] ** power for row in rows) for name, power in DIVERGENCE_AND_NOISE)
    idle = divergence - beyond
    trusted = max(0, 1 - noise / idle**2) if idle > 0 else 0
    precise, precise_too = divergence**2 / (2 * noise), 1 / 0.1**2
    share = (precise * beyond + precise_too * min(sum(curvature), divergence)) / divergence / (precise + precise_too)
    return max(0, 1 - trusted * (1 - share))


def expected_by_hand(divergence, error, share, columns, slopes, groups, tokens):
    """Return importance, curvature and what is trusted of the label term, neuron by neuron.

    Args:
        divergence: Measured.
        error: Its standard error.
        share: What counts of it.
        columns: Gate gradients, [window][column][neuron].
        slopes: Mean gate gradient, [window][neuron].
        groups: The stretch of text that each column of each window is of, [window][column].
        tokens: Of each window.
    """
    neurons, total = range(len(divergence)), sum(tokens)
    term = [-sum(n * window[i] for n, window in zip(tokens, slopes, strict=True)) / total for i in neurons]
    curvature = [sum(column[i] ** 2 for window in columns for column in window) / total / 2 for i in neurons]
    ratio = sum(divergence) / sum(curvature)
    explained = noise = 0.0
    for i in neurons:
        scale = (divergence[i] + ratio * curvature[i]) / 2
        explained += ((divergence[i] - ratio * curvature[i]) / scale) ** 2
        noise += 2 * (error[i] / scale) ** 2
    weight = max(0, 1 - noise / explained)
    completed = [weight * divergence[i] + (1 - weight) * ratio * curvature[i] for i in neurons]
    scales = [max(d, sum(completed) / len(completed) / 10) for d in completed]
    mean = sum(x / s for x, s in zip(term, scales, strict=True)) / sum(1 / s for s in scales)
    explained = noise = 0.0
    for i in neurons:
        means = stretches_by_hand(columns, groups, tokens, i)
        explained += (term[i] - mean) ** 2 / scales[i]
        noise += np.var(means, ddof=1) / len(means) / scales[i]
    trusted = max(0, 1 - noise / explained)
    calm = [share * d + (1 - share) * ratio * c for d, c in zip(completed, curvature, strict=True)]
    importance = [share * d + trusted * x for d, x in zip(calm, term, strict=True)]
    return importance, curvature, trusted


@pytest.mark.parametrize("family", ["lstm", "lstm + snn"])
def test_importance_curvature_and_trust_are_those_of_loops_over_columns_and_stretches(family):
    model, labelled = tiny("untied", WIDTHS[2], family), Windows(text(320, seed=1), first=0, batch=4, bptt=4)
    table = intervention(model, windows(), labelled, SETTINGS)
    columns, slopes = columns_by_hand(model, [*labelled]), gradients_by_hand(model, labelled)
    removed, there = oracle(model, windows(), ALL), gradients_by_hand(model, windows())
    order = [(column, index) for column in range(4) for index in range(len(labelled))]  # as the text runs
    groups = [[order.index((column, index)) * 8 // len(order) for column in range(4)] for index in range(len(labelled))]
    for place, layer in enumerate(model.layers()):
        rows = table[table["layer"] == layer.name]
        share = share_by_hand(
            removed[removed["layer"] == layer.name], -np.mean([w[place] for w in there], axis=0), rows["curvature"]
        )
        np.testing.assert_allclose(rows["divergence_share"], share, rtol=1e-6)
        expected = expected_by_hand(
            rows["divergence"].tolist(),
            rows["divergence_error"].tolist(),
            share,
            [[column[place] for column in window] for window in columns],
            [window[place] for window in slopes],
            groups,
            [window.targets.numel() for window in labelled],
        )
        for name, values in zip(("importance", "curvature", "trusted"), expected, strict=True):
            np.testing.assert_allclose(rows[name], values, rtol=1e-6, atol=1e-12, err_msg=name)


def test_text_that_was_trained_on_counts_as_far_as_it_tells_what_stretches_of_other_text_say():
    model, labelled = (
        tiny("untied", WIDTHS[2], "lstm", spread=0.5),
        Windows(text(320, seed=1), first=0, batch=4, bptt=4),
    )
    trained = Windows(text(320, seed=2), first=0, batch=4, bptt=4)
    table = intervention(model, windows(), labelled, SETTINGS, trained=trained)
    alone = intervention(model, windows(), labelled, Intervention(tokens=10**6, words="all", label_share=0.0))
    usual = intervention(model, windows(), labelled, SETTINGS)
    columns, slopes = columns_by_hand(model, [*labelled]), gradients_by_hand(model, labelled)
    seen = gradients_by_hand(model, Windows(text(320, seed=2), first=0, batch=4, bptt=4))
    order = [(column, index) for column in range(4) for index in range(len(labelled))]  # as the text runs
    groups = [[order.index((column, index)) * 8 // len(order) for column in range(4)] for index in range(len(labelled))]
    counts, counted = [window.targets.numel() for window in labelled], []
    for place, layer in enumerate(model.layers()):
        rows, known = (t[t["layer"] == layer.name] for t in (table, alone))
        divergence = known["importance"].to_numpy()
        scales, neurons = np.maximum(divergence, divergence.mean() / 10), range(layer.width)
        apart = [stretches_by_hand([[c[place] for c in w] for w in columns], groups, counts, i) for i in neurons]
        terms = [-np.mean([window[place][i] for window in seen]) for i in neurons]
        own = [-np.mean([window[place][i] for window in slopes]) for i in neurons]
        share = float(usual.loc[usual["layer"] == layer.name, "divergence_share"].iloc[0])
        assert share == 1  # what counts of the divergence is then what importance without labels is
        a, b, counts_too = weights_by_hand(terms, [*zip(*apart, strict=True)], divergence, share, scales)
        counted.append(a)
        np.testing.assert_allclose(rows["trusted"], a + b, rtol=1e-6)
        np.testing.assert_allclose(rows["divergence_share"], counts_too, rtol=1e-6)
        counted_divergence = rows["divergence_share"] * divergence
        expected = counted_divergence + a * np.array(terms) + b * np.array(own)
        np.testing.assert_allclose(rows["importance"], expected, rtol=1e-6)
        expected = counted_divergence + rows["trusted"] * rows["label_term"]
        np.testing.assert_allclose(rows["importance"], expected, rtol=1e-6)
    assert max(counted) > 0


def test_of_text_that_says_the_same_the_label_term_stays_what_it_is_and_none_is_read_where_a_share_is_given():
    model, labelled = tiny(spread=0.5), Windows(text(320), first=0, batch=4, bptt=4)
    usual, beside = (
        intervention(model, windows(), labelled, SETTINGS, trained=trained) for trained in (None, labelled)
    )
    assert (beside["trusted"] > usual["trusted"]).all()
    np.testing.assert_allclose(beside["label_term"], usual["label_term"], rtol=1e-9)
    share = Intervention(tokens=10**6, words="all", label_share=0.5)
    one, other = (intervention(model, windows(), labelled, share, trained=trained) for trained in (None, windows(2)))
    assert one.equals(other)


def test_a_share_of_the_label_term_that_is_given_is_what_counts_of_it():
    tables = {
        share: intervention(tiny(), windows(), windows(1), Intervention(tokens=10**6, words="all", label_share=share))
        for share in (0.0, 0.5)
    }
    rise = tables[0.5]["importance"] - tables[0.0]["importance"]
    np.testing.assert_allclose(rise, 0.5 * tables[0.0]["label_term"], atol=1e-14)
    assert (tables[0.5]["trusted"] == 0.5).all()
    errors = tables[0.5]["standard_error"] ** 2 - tables[0.0]["standard_error"] ** 2
    np.testing.assert_allclose(errors, (0.5 * tables[0.0]["label_error"]) ** 2, atol=1e-14)


def test_text_whose_documents_differ_is_trusted_less_than_the_same_lines_shuffled():
    """Two kinds of document, one in each half: windows of four columns hold both, whatever their step."""
    model, lines = tiny(spread=0.5), text(1600).view(2, -1, 8).clone()
    lines[0] %= 3  # words that the other half hardly has
    mixed = lines.flatten(0, 1)[torch.randperm(lines.shape[1] * 2, generator=torch.Generator().manual_seed(1))]
    parted, shuffled = (
        intervention(model, windows(), Windows(read.flatten(), first=0, batch=4, bptt=4), SETTINGS)["trusted"].mean()
        for read in (lines, mixed)
    )
    assert parted < shuffled - 0.05


def test_labels_that_are_noise_alone_are_hardly_trusted_and_many_labels_are():
    model = tiny(spread=0.5)
    few, many = (
        intervention(model, windows(), Windows(text(length), first=0, batch=4, bptt=4), SETTINGS)["trusted"].mean()
        for length in (160, 6400)
    )
    assert few < many


def test_the_divergence_does_not_depend_on_labels_and_is_the_oracles():
    model, read = tiny(), windows()
    table = intervention(model, read, windows(1), SETTINGS)
    other = Relabelled(text(64), first=0, batch=4, bptt=4)
    other.labels = [window.targets.flip(1) for window in read]
    again = intervention(model, other, windows(1), SETTINGS)
    np.testing.assert_allclose(again["divergence"], table["divergence"], atol=1e-14)
    measured = oracle(model, read, ALL)
    np.testing.assert_array_equal(table["divergence"], measured["divergence"])


def answered(model, seed=0, sure=1.0):
    """Return text whose labels are drawn from the model's answers, its logits divided by how much too sure it is."""
    windows, state, noise = [*Windows(text(4000, seed=seed), first=0, batch=40, bptt=10)], None, torch.Generator()
    drawn = Relabelled(text(4000, seed=seed), first=0, batch=40, bptt=10)
    drawn.labels = []
    noise.manual_seed(seed + 1)
    with torch.no_grad():
        for window in windows:
            logits, state = model.logits(window.tokens, state)
            chosen = torch.multinomial((logits / sure).softmax(-1), 1, generator=noise)
            drawn.labels.append(chosen.view(window.tokens.shape))
    return drawn


def test_the_divergence_counts_less_in_a_model_that_is_too_sure_of_its_answers():
    model, shares = tiny("untied", WIDTHS[2], "lstm", spread=2.0), []
    for sure in (1.0, 2.0):
        read, trained = answered(model, 0, sure), answered(model, 1, sure)
        shares.append(intervention(model, read, read, SETTINGS, trained=trained)["divergence_share"])
    np.testing.assert_allclose(shares[0], 1, atol=0.05)
    assert (shares[1] < 0.9).all()


def test_where_labels_are_what_the_model_expects_the_increase_is_the_divergence_alone():
    """Labels drawn from the model itself: E[p − y] = 0, so the label term is nothing but noise."""
    model = tiny(spread=0.5)
    drawn = answered(model)
    table = intervention(model, drawn, drawn, SETTINGS)
    assert (table["label_term"].abs() <= 4 * table["label_error"]).all()
    assert (table["label_term"].abs() > 0).all()


def test_all_of_the_divergence_counts_where_gates_scale_logits_or_labels_have_a_share_and_less_where_spikes_move():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
        inputs, targets = torch.randn(64, 3).double(), torch.randint(2, (64,))
    batches = [(inputs[i::2], targets[i::2]) for i in (0, 1)]
    table = intervention(adapt(network, inputs, loss=nn.CrossEntropyLoss()), batches, batches, SETTINGS)
    np.testing.assert_allclose(table["divergence_share"], 1, rtol=1e-9)
    spiking, whole = tiny(family="snn"), Intervention(tokens=10**6, words="all", label_share=1.0)
    shares = [intervention(spiking, windows(), windows(1), given)["divergence_share"] for given in (SETTINGS, whole)]
    assert shares[0].max() < 1
    assert (shares[1] == 1).all()


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


def test_of_a_sample_the_numbers_are_those_of_its_removal_and_the_others_have_none():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, inputs = (
            nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 2)).double(),
            torch.randn(8, 3).double(),
        )
    targets = torch.arange(8) % 2
    model, batches = adapt(network, inputs, loss=nn.CrossEntropyLoss()), [(inputs[i::2], targets[i::2]) for i in (0, 1)]
    whole = intervention(model, batches, batches, Intervention(label_share=0.5))
    some = intervention(model, batches, batches, Intervention(label_share=0.5, neurons=3, most=3))
    removed = some["importance"].notna()
    assert removed.sum() == 3
    assert some["neuron"].tolist() == list(range(7))
    assert some[removed].equals(whole[removed])
    assert some["label_term"].equals(whole["label_term"])
    assert some.loc[~removed, ["divergence", "divergence_error", "standard_error"]].isna().all(axis=None)


@pytest.mark.parametrize("share", [None, 1.0])
def test_a_sample_of_a_familys_neurons_says_by_itself_how_far_it_is_trusted(share):
    settings = Intervention(tokens=10**6, words="all", label_share=share, neurons=6)
    table = intervention(tiny(widths=(9, 8), spread=0.8), windows(), windows(1), settings)
    removed = table["importance"].notna()
    assert removed.groupby(table["layer"]).sum().tolist() == [3, 3]
    assert table["trusted"].between(0, 1).all()
    assert (table.loc[removed, "importance"] != table.loc[removed, "label_term"]).all()


def test_too_few_labelled_batches_are_refused():
    with pytest.raises(ValueError, match="Expected at least two batches with targets for `intervention`, got 1"):
        intervention(tiny(), windows(), windows(), Intervention(tokens=10**6, batches=1))
