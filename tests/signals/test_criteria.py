"""Every criterion against loops over the unrolled twin: gates, weights, readers and states by hand."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from pruning.core.modes import carried
from pruning.core.neurons import select
from pruning.core.statistics import Covariance, merged
from pruning.core.tables import table
from pruning.data.windows import Windows
from pruning.signals import formulas
from pruning.signals.criteria import Wiring, criteria, known_of, wiring_of
from pruning.signals.evidence import TOTALS, Evidence, _joint, gather_evidence, partition
from pruning.signals.schemas import CRITERIA, CRITERIA_TABLE, EXACT
from tests.signals.test_cooperative import edges_by_hand
from tests.tiny import DECODERS, VOCABULARY, Unrolled, entropy_by_hand, tensors_of, text, tiny

OWN = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
SETTINGS = {"batches": 99, "bins": 4, "classes": 3, "ridge": 1e-3, "seed": 1}
WINDOWS = Windows(text(110), first=0, batch=3, bptt=5)
"""Eight windows, the last of them shorter and partly padded: one to each group."""
MODELS = {"untied": ("untied", (5, 4)), "projected": ("projected", (4,))}


@cache
def model_of(name):
    return tiny(*MODELS[name])


@cache
def measured(name):
    return criteria(model_of(name), WINDOWS, **SETTINGS)


@cache
def evidence_of(name):
    """Return each window's evidence, one window after the other."""
    model, generator = model_of(name), torch.Generator().manual_seed(SETTINGS["seed"])
    parts, state, found = partition(model, WINDOWS[0], bins=4, classes=3), None, []
    for window in WINDOWS:
        one, state = gather_evidence(
            model, model.layers(), window, carried(state), partition=parts, generator=generator
        )
        found.append(one)
    return found


def token_losses(logits, labels):
    """Return the loss of each place, (T, B), 0 where nothing follows."""
    losses = -logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    return losses * (labels >= 0)


def labels_by_hand(logits, targets, generator):
    """Return one label a place: the first token type at which the cumulative probability exceeds a random number."""
    shares = logits.detach().flatten(0, 1).softmax(-1)
    chances = torch.rand(len(shares), 1, generator=generator, dtype=shares.dtype)
    drawn = [
        next(token for token in range(VOCABULARY) if sum(row[: token + 1]) > chance or token == VOCABULARY - 1)
        for row, chance in zip(shares.tolist(), chances.flatten().tolist(), strict=True)
    ]
    return torch.where(targets < 0, targets, torch.tensor(drawn).view_as(targets))


class ByHand:
    """Sums over windows of what the criteria need, from gates for each column and one derivative at a time."""

    def __init__(self, model):
        self.tensors = {name: tensor.requires_grad_() for name, tensor in tensors_of(model).items()}
        self.widths = model.widths()
        self.totals = [{name: np.zeros(width) for name in TOTALS} for width in self.widths]
        self.gradients = [[] for _ in self.widths]  # γ with sampled labels, one (T · B, width) a window
        self.hidden = [[] for _ in self.widths]  # places that are predicted only
        self.predicted = []
        self.tokens = 0

    def read(self, windows, seed):
        generator = torch.Generator().manual_seed(seed)
        twin = Unrolled(self.tensors)
        for window in windows:
            self._window(twin, window, generator)
            twin.detach()
            twin.gates, twin.offsets = [torch.ones(width, dtype=torch.float64) for width in self.widths], None
        return self

    def _window(self, twin, window, generator):
        steps, columns = window.tokens.shape
        gates = [torch.ones(columns, width, dtype=torch.float64, requires_grad=True) for width in self.widths]
        before = [len(outputs) for outputs in twin.hidden]
        offsets = [torch.zeros(steps, columns, width, dtype=torch.float64) for width in self.widths]
        offsets = [offset.requires_grad_() for offset in offsets]
        # What a window starts from is a constant, also where the gates are concerned.
        twin.gates = gates
        twin.offsets = [[None] * start + list(offset) for start, offset in zip(before, offsets, strict=True)]
        for index, start in enumerate(before):
            if start:
                constant = twin.hidden[index][-1]
                twin.offsets[index][start - 1] = constant - constant * gates[index]
        logits = twin(window.tokens)
        sampled = labels_by_hand(logits, window.targets, generator)
        tokens = int((window.targets >= 0).sum())
        loss = token_losses(logits, window.targets).sum()
        drawn = token_losses(logits, sampled).sum()
        names = [[f"lstm.{index}.{what}_l0" for what in OWN] for index in range(len(self.widths))]
        flat = [self.tensors[name] for layer in names for name in layer]
        gradients = torch.autograd.grad(loss, flat, create_graph=True)
        norm = sum((g / tokens).square().sum() for g in gradients) / 2
        curved = torch.autograd.grad(norm, flat, retain_graph=True)  # ∇ ½‖g‖² = H g
        drawn_gradients = torch.autograd.grad(drawn, flat, retain_graph=True)
        wanted = window.targets.flatten() >= 0
        for index, width in enumerate(self.widths):
            total = self.totals[index]
            s = torch.autograd.grad(loss, gates[index], retain_graph=True)[0].numpy()
            r = torch.autograd.grad(drawn, gates[index], retain_graph=True)[0].numpy()
            total["gate"] += s.sum(0)
            total["gate_size"] += np.abs(s).sum(0)
            total["gate_window"] += s.sum(0) ** 2 / tokens
            total["gate_true"] += (s**2).sum(0)
            total["gate_sampled"] += (r**2).sum(0)
            for place in range(4 * index, 4 * index + 4):
                w, g, d, c = (
                    x[place].detach().numpy().reshape(4, width, -1) for x in (flat, gradients, drawn_gradients, curved)
                )
                total["snip"] += np.abs(w * g).sum((0, 2))
                total["weight_sampled"] += (w**2 * d**2).sum((0, 2))
                total["grasp"] += tokens * (w * c).sum((0, 2))
            gamma = torch.autograd.grad(drawn, offsets[index], retain_graph=True)[0]
            self.gradients[index].append(gamma.flatten(0, 1).numpy())
            outputs = torch.stack(twin.hidden[index][-steps:]).detach().flatten(0, 1)
            self.hidden[index].append(outputs[wanted].numpy())
        self.predicted.append(logits.detach().flatten(0, 1)[wanted].softmax(-1).numpy())
        self.tokens += tokens


@cache
def by_hand(name):
    return ByHand(model_of(name)).read(WINDOWS, SETTINGS["seed"])


def readers_of(tensors, index):
    """Return the stacked matrices that read a layer's outputs, (m, width)."""
    follower = f"lstm.{index + 1}.weight_ih_l0"
    last = "projection.weight" if "projection.weight" in tensors else "decoder.weight"
    names = [f"lstm.{index}.weight_hh_l0", follower if follower in tensors else last]
    return np.concatenate([tensors[name].detach().numpy() for name in names])


def pagerank_by_hand(edges):
    """Return where a walker is who follows an edge with chance 0.85 and else jumps anywhere."""
    follow, ranks = edges / edges.sum(0), np.full(len(edges), 1 / len(edges))
    for _ in range(300):
        ranks = 0.15 / len(edges) + 0.85 * follow @ ranks
    return ranks


@pytest.mark.parametrize("alone", [(), (2,), range(6)])
def test_pagerank_is_where_a_walker_is_who_jumps_anywhere_from_neurons_without_edges(alone):
    half = np.triu(np.random.default_rng(3).random((6, 6)), 1)
    edges = half + half.T
    edges[list(alone)], edges[:, list(alone)] = 0, 0
    states = Covariance(2, torch.zeros(6), torch.eye(6, dtype=torch.float64))
    evidence = Evidence(1, {}, states, torch.ones(6), torch.ones(6, 2, 2))
    known = replace(known_of(Wiring(half, half, None), evidence, 1.0), edges=torch.tensor(edges))
    walk = np.where(edges.sum(0) > 0, edges / np.maximum(edges.sum(0), 1e-300), 1 / 6)
    expected = np.linalg.solve(np.eye(6) - 0.85 * walk, np.full(6, 0.15 / 6))
    np.testing.assert_allclose(formulas.pagerank(known), expected, rtol=1e-12)


def test_the_joint_counts_take_no_number_for_each_bin_token_and_neuron():
    width, tokens, bins = 40, 500, 64
    hidden, random = torch.randn(tokens, width, dtype=torch.float64), np.random.default_rng(0)
    predicted = torch.tensor(random.dirichlet(np.ones(3), size=tokens))
    edges = torch.quantile(hidden, torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1], dim=0).T.contiguous()
    with torch.profiler.profile(profile_memory=True) as seen:
        joint = _joint(hidden, edges, predicted)
    largest = max(event.cpu_memory_usage for event in seen.events())
    assert largest <= 2 * 8 * max(width * tokens, width * bins * 3)
    places = (hidden[:, :, None] > edges).sum(-1).numpy()
    expected = [[predicted[places[:, j] == b].sum(0).tolist() for b in range(bins)] for j in range(width)]
    np.testing.assert_allclose(joint, expected, atol=1e-9)


def information_by_hand(values, predicted, first_values, first_predicted):
    """Return the mutual information of bins of `values` and groups of `predicted`, both from the first window."""
    edges = np.quantile(first_values, [0.25, 0.5, 0.75])
    mean, classes, reached = first_predicted.mean(0), {}, 0.0
    for token in sorted(range(VOCABULARY), key=lambda token: -mean[token]):
        classes[token] = min(int(3 * (reached + mean[token] / 2) / mean.sum()), 2)
        reached += mean[token]
    joint = np.zeros((4, 3))
    for value, shares in zip(values, predicted, strict=True):
        for token, share in enumerate(shares):
            joint[sum(value > edge for edge in edges), classes[token]] += share
    alone = entropy_by_hand(joint.sum(1)) + entropy_by_hand(joint.sum(0))
    return alone - entropy_by_hand(joint.flatten())


def expected_of(name, index):
    """Return each criterion of one layer by its definition."""
    found, model = by_hand(name), model_of(name)
    total, tokens, width = found.totals[index], found.tokens, found.widths[index]
    hidden, gamma = np.concatenate(found.hidden[index]), np.concatenate(found.gradients[index])
    readers = readers_of(found.tensors, index)
    own = np.concatenate(
        [
            found.tensors[f"lstm.{index}.{what}_l0"]
            .detach()
            .numpy()
            .reshape(4, width, -1)
            .transpose(1, 0, 2)
            .reshape(width, -1)
            for what in OWN
        ],
        axis=1,
    )
    covariance = np.cov(hidden.T)
    precision = np.linalg.inv(covariance + SETTINGS["ridge"] * np.trace(covariance) / width * np.eye(width))
    edges = edges_by_hand(hidden, found.tensors[f"lstm.{index}.weight_hh_l0"].detach().numpy())
    # The first window's outputs are binned from a pass without padding; it has none here.
    first_hidden, first_predicted = found.hidden[index][0], found.predicted[0]
    predicted = np.concatenate(found.predicted)
    assert len(model.layers()) == len(found.widths)
    return {
        "magnitude_in": np.sqrt((own**2).sum(1)),
        "magnitude_out": np.sqrt((readers**2).sum(0)),
        "taylor_first": total["gate_size"] / tokens,
        "taylor_square": total["gate_window"] / tokens,
        "taylor_second": total["gate_sampled"] / tokens / 2 - total["gate"] / tokens,
        "gate_fisher": total["gate_true"] / tokens / 2,
        "gate_fisher_sampled": total["gate_sampled"] / tokens / 2,
        "weight_fisher": total["weight_sampled"] / tokens / 2,
        "snip": total["snip"] / tokens,
        "grasp": total["grasp"] / tokens,
        "fluctuation": hidden.var(0, ddof=1) * (readers**2).sum(0),
        "wanda": np.abs(readers).sum(0) * np.sqrt((hidden**2).mean(0)),
        "kfac_trace": (hidden**2).mean(0) * (gamma**2).sum(0) / tokens / 2,
        "kfac_obs": (gamma**2).sum(0) / tokens / np.diag(precision) / 2,
        "mutual_information": [
            information_by_hand(hidden[:, j], predicted, first_hidden[:, j], first_predicted) for j in range(width)
        ],
        "pagerank": pagerank_by_hand(edges),
    }


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", MODELS)
def test_every_criterion_equals_its_twin(name, criterion):
    for index in range(len(MODELS[name][1])):
        rows = measured(name)[measured(name)["layer"] == f"lstm.{index}"]
        np.testing.assert_allclose(rows[criterion], expected_of(name, index)[criterion], rtol=1e-6, atol=1e-12)
        assert rows[criterion].nunique() > 1


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name not in EXACT])
def test_the_error_of_an_estimate_is_the_jackknife_over_windows(criterion):
    model, found = model_of("untied"), evidence_of("untied")
    layer = model.layers()[0]
    without = []
    for left in range(8):
        rest = merged([one[layer.name] for place, one in enumerate(found) if place != left])
        known = known_of(wiring_of(model, layer), rest, 1e-3)
        without.append(formulas.CRITERIA[criterion].formula(known).numpy())
    errors = measured("untied")[f"{criterion}_error"].iloc[: layer.width]
    np.testing.assert_allclose(errors, np.sqrt(7 * np.var(without, axis=0)), rtol=1e-6, atol=1e-15)
    assert (errors > 0).any()


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_weight_fisher_is_that_of_labels_drawn_from_the_model_whatever_the_decoder(decoder):
    model, window = tiny(decoder, (5, 6)), WINDOWS[0]
    parts = partition(model, window, bins=4, classes=3)
    found, _ = gather_evidence(
        model, model.layers(), window, None, partition=parts, generator=torch.Generator().manual_seed(3)
    )
    tensors = {name: tensor.requires_grad_() for name, tensor in tensors_of(model).items()}
    logits = Unrolled(tensors)(window.tokens)
    labels = labels_by_hand(logits, window.targets, torch.Generator().manual_seed(3))
    gradients = torch.autograd.grad(token_losses(logits, labels).sum(), list(tensors.values()), allow_unused=True)
    squares = dict(zip(tensors, gradients, strict=True))
    for index, layer in enumerate(model.layers()):
        own = [f"lstm.{index}.{what}_l0" for what in OWN]
        expected = sum(
            (tensors[name] * squares[name]).square().detach().view(4, layer.width, -1).sum((0, 2)) for name in own
        )
        np.testing.assert_allclose(found[layer.name].totals["weight_sampled"], expected, rtol=1e-8)
        assert found[layer.name].readers.shape == (layer.width,)


def test_labels_sampled_from_the_model_make_the_gate_fisher_the_gauss_newton_matrix():
    model, window = tiny(widths=(4,)), Windows(text(6), first=0, batch=2, bptt=3)[0]
    parts, generator = partition(model, window, bins=4, classes=3), torch.Generator().manual_seed(1)
    draws = [
        gather_evidence(model, model.layers(), window, None, partition=parts, generator=generator)[0]["lstm.0"]
        for _ in range(600)
    ]
    samples = torch.stack([draw.totals["gate_sampled"] for draw in draws])
    exact = gauss_newton(model, window)
    errors = (samples.mean(0) - exact) / (samples.std(0) / len(draws) ** 0.5)
    assert errors.abs().max() < 4
    assert (samples.mean(0) / exact - 1).abs().max() < 0.25


def gauss_newton(model, window):
    """Return the diagonal, over gates, of Σ Jᵀ (diag p − p pᵀ) J, summed over the window's places."""
    gates = torch.ones(4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda g: Unrolled(tensors_of(model), [g])(window.tokens), gates)
    shares = Unrolled(tensors_of(model))(window.tokens).softmax(-1)
    found = torch.zeros(4, dtype=torch.float64)
    for step in range(window.tokens.shape[0]):
        for column in range(window.tokens.shape[1]):
            p, j = shares[step, column], jacobian[step, column]
            found += (j.T @ (p.diag() - torch.outer(p, p)) @ j).diagonal()
    return found


def test_relabelling_neurons_relabels_every_criterion():
    model = model_of("untied")
    order = {"lstm.0": torch.tensor([3, 0, 4, 1, 2]), "lstm.1": torch.tensor([2, 3, 0, 1])}
    after = criteria(select(model, order), WINDOWS, **SETTINGS).drop(columns=["layer", "neuron", "fisher"])
    places = [*order["lstm.0"].tolist(), *(5 + order["lstm.1"]).tolist()]
    before = measured("untied").drop(columns=["layer", "neuron", "fisher"]).iloc[places]
    np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-10)


def test_the_same_seed_gives_the_same_table_and_another_other_labels():
    again = criteria(model_of("untied"), WINDOWS, **SETTINGS)
    other = criteria(model_of("untied"), WINDOWS, **{**SETTINGS, "seed": 2})
    assert again.equals(measured("untied"))
    assert other["gate_fisher"].equals(again["gate_fisher"])
    assert not other["gate_fisher_sampled"].equals(again["gate_fisher_sampled"])


def test_the_table_counts_the_tokens_that_are_predicted_once():
    assert (measured("untied")["samples"] == 110).all()
    assert table(CRITERIA_TABLE, measured("untied")).equals(measured("untied"))


def test_no_more_windows_are_read_than_asked_for():
    assert (criteria(model_of("untied"), WINDOWS, **{**SETTINGS, "batches": 2})["samples"] == 30).all()


def test_one_window_is_too_few_to_know_an_error():
    with pytest.raises(ValueError, match=r"Expected at least two batches for criteria.*, got 1"):
        criteria(model_of("untied"), WINDOWS, **{**SETTINGS, "batches": 1})


def test_with_as_many_directions_as_tokens_every_criterion_is_as_by_exact_covariances():
    model, windows = tiny(widths=(48,), family="tanh"), Windows(text(31), first=0, batch=2, bptt=5)
    exact, few = (criteria(model, windows, **SETTINGS, rank=rank) for rank in (None, 20))
    for name in exact.columns[2:]:
        if exact[name].dtype == "float64":
            np.testing.assert_allclose(few[name], exact[name], rtol=1e-6, atol=1e-12, err_msg=name)


def test_few_directions_change_what_rests_on_the_covariance_and_nothing_else():
    model = tiny(widths=(9, 4), family="tanh")
    exact, few = (criteria(model, WINDOWS, **SETTINGS, rank=rank).set_index("layer") for rank in (None, 3))
    one, other = exact.loc["rnn.0"], few.loc["rnn.0"]
    changed = [name for name in CRITERIA if not np.allclose(one[name], other[name], rtol=1e-12, atol=0)]
    assert changed == ["kfac_obs", "pagerank"]
    assert few.loc["rnn.1"].equals(exact.loc["rnn.1"])  # of which the rank is no less than half


def test_neurons_that_say_nothing_have_finite_criteria():
    model = tiny(widths=(4, 3))
    for parameter in model.lstm.parameters():
        parameter.data.zero_()
    frame = criteria(model, WINDOWS, **SETTINGS)
    assert np.isfinite(frame.drop(columns=["layer", "fisher"]).to_numpy(dtype=float)).all()
    np.testing.assert_allclose(frame[frame["layer"] == "lstm.1"]["pagerank"], 1 / 3)
    assert (frame[["taylor_first", "fluctuation", "mutual_information"]].abs() < 1e-12).all(axis=None)


def test_a_model_is_left_without_hooks_gradients_or_another_mode():
    model = tiny().train()
    before = torch.get_rng_state()
    criteria(model, WINDOWS, **SETTINGS)
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)
