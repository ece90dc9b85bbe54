"""Models of others, adapted: the numbers of a language model's own path, or of loops, and clear refusals."""

from functools import cache

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import pruning
from pruning.ablation.joint_removal import joint_removal
from pruning.ablation.oracle import Ablation, oracle
from pruning.core.neurons import mask, named_buffers, removed_neurons, select
from pruning.core.statistics import merged
from pruning.data.windows import Windows
from pruning.evaluation.latency import latencies
from pruning.evaluation.measures import loss_of, size_of
from pruning.models.adapting import adapt
from pruning.repair.reconstruction import reconstruct
from pruning.selection.allocation import Allocation
from pruning.selection.retention import keep_of, retention
from pruning.signals.activations import activations
from pruning.signals.criteria import criteria
from pruning.signals.gradients import gate_gradients
from pruning.signals.sensitivity import sensitivities
from pruning.signals.surgeon import surgeon
from pruning.training.distillation import Teacher
from pruning.training.loop import train
from tests import foreign
from tests.networks import (
    CLASSES,
    WORDS,
    Again,
    Branches,
    Classifier,
    Compared,
    Gated,
    Kernels,
    RecurrentWords,
    Skipping,
    Stacked,
    Started,
    Tagger,
    Transformer,
    WordModel,
    examples,
    images,
    made,
)
from tests.tiny import SIGNALS, bytes_of, recipe, tensors_of, text, tiny

TEXT = Windows(text(16 * 12), first=0, batch=3, bptt=4)
BATCHES = examples(16 * 5, batch=5)
ALL = {
    **SIGNALS,
    "surgeon": lambda model, batches: surgeon(
        activations(model, batches, activation_samples=16, bins=8)[1],
        sensitivities(model, batches, batches=16, seed=1),
        damping=1e-4,
    ),
    "criteria": lambda model, batches: criteria(model, batches, batches=16, bins=4, classes=3, ridge=1e-4, seed=1),
}
"""Every table of a model on batches."""


def classifier(**how):
    return adapt(made(Classifier), BATCHES[0][0], loss=nn.CrossEntropyLoss(), **how)


def words():
    return adapt(made(RecurrentWords), TEXT[0].tokens, loss=nn.NLLLoss())


MODELS = {"classifier": (classifier, BATCHES), "words": (words, TEXT)}


def disguised(model):
    """Return a language model adapted as if a user had written it."""
    call = lambda network, tokens, state: network(tokens, state)  # noqa: E731
    return adapt(model, TEXT[0].tokens, loss=nn.CrossEntropyLoss(), call=call, example_dim=1)


@pytest.mark.parametrize("signal", ALL)
@pytest.mark.parametrize("family", ["lstm", "gru", "tanh", "relu", "feed-forward snn"])
def test_a_language_model_in_disguise_has_the_numbers_of_its_own_path(family, signal):
    model = tiny(family=family)
    own, found = ALL[signal](model, TEXT), ALL[signal](disguised(model), TEXT)
    pd.testing.assert_frame_equal(found, own, rtol=1e-9, atol=1e-12)


def test_loss_training_and_distillation_equal_those_of_a_language_models_own_path():
    own, other = tiny(seed=3, spread=0.2), disguised(tiny(seed=3, spread=0.2))
    assert loss_of(other, TEXT).mean == pytest.approx(loss_of(own, TEXT).mean, rel=1e-12)
    assert loss_of(other, TEXT).tokens == loss_of(own, TEXT).tokens
    ends = [
        list(train(m, TEXT, TEXT, recipe=recipe(), seed=1, teacher=Teacher(model=t, share=0.5, temperature=2.0)))[-1]
        for m, t in ((own, tiny()), (other, disguised(tiny())))
    ]
    pd.testing.assert_frame_equal(ends[1].history, ends[0].history, rtol=1e-7)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("signal", ALL)
def test_every_signal_of_every_model_is_finite_and_leaves_it_as_it_was(kind, signal):
    make, batches = MODELS[kind]
    model = make()
    before, random = bytes_of(tensors_of(model)), torch.get_rng_state()
    found = ALL[signal](model, batches)
    assert found.select_dtypes("number").apply(lambda column: column.abs().max() < float("inf")).all()
    assert len(found) == sum(model.widths())
    assert bytes_of(tensors_of(model)) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks for module in model.modules())


def test_sensitivities_of_a_classifier_are_its_readers_gradients_written_out(monkeypatch):
    model, (inputs, targets) = classifier(), BATCHES[0]
    monkeypatch.setattr("pruning.models.classes.sampled_labels", lambda *_: targets)
    found = sensitivities(model, BATCHES[:2], batches=1, seed=0)
    own = model.module
    below = own.second(torch.tanh(own.first(inputs)))
    error = own.last(below.relu()).softmax(1) - F.one_hot(targets, CLASSES)
    above = error @ own.last.weight
    expected = {"second": above, "first": (above * (below > 0)) @ own.second.weight}
    for name, gamma in expected.items():
        assert torch.allclose(merged(found[name]).second_moment, gamma.T @ gamma / len(gamma), rtol=1e-10)


def test_targets_that_come_examples_first_give_what_steps_first_give():
    """A classifier of every step: batches (B, T, features) with targets (B, T), and the same turned round."""
    first = [(i.view(5, 4, -1), t.view(5, 4)) for i, t in examples(16 * 20, batch=20)]
    first[0][1][0, 1:3] = -100
    turned = [(i.transpose(0, 1), t.T) for i, t in first]
    one, other = classifier(), classifier(example_dim=1)
    for signal in ("activations", "gradients", "hessian"):
        pd.testing.assert_frame_equal(ALL[signal](one, first), ALL[signal](other, turned), rtol=1e-9)
    exact = ["fluctuation", "wanda", "snip", "grasp", "taylor_first", "taylor_square", "gate_fisher"]
    exact += ["mutual_information", "pagerank"]
    found = [ALL["criteria"](model, batches)[exact] for model, batches in ((one, first), (other, turned))]
    pd.testing.assert_frame_equal(*found, rtol=1e-9)


@pytest.mark.parametrize(
    "name", ["tied LSTM language model", "classifier of states", "hard-coded", "VGG", "ViT", "GPT-2", "BERT"]
)
def test_networks_that_nobody_here_wrote_are_tapped_and_measured(name):
    network, inputs = foreign.made(name)
    given = inputs[0] if hasattr(network, "init_hidden") else inputs
    model = adapt(network, given, loss=nn.CrossEntropyLoss())
    logits, taps, _ = model.tapped(given)
    logits = logits.flatten(0, -2)
    targets = torch.arange(len(logits)) % logits.shape[1]
    gammas = torch.autograd.grad(model.judged(logits, targets), list(taps.values()))
    outputs = model.outputs(given)
    expected, _ = gate_gradients(model, model.layers(), given, targets, None)
    assert model.untappable(given) == {}
    tied = {layer.name for layer in model.layers() if layer.tied}  # by whose weights other gradients come too
    for layer, gamma in zip(taps, gammas, strict=True):
        assert layer in tied or torch.allclose(
            (gamma * outputs[layer]).sum((0, 1)), expected[layer], rtol=1e-8, atol=1e-14
        )
    found = SIGNALS["hessian"](model, [(given, targets)] * 4)
    assert found["trace"].notna().all()
    assert size_of(model).multiply_adds > 0


def with_twins(model):
    """Return the model in which neuron 1 of each layer computes what neuron 0 does; readers differ."""
    tensors = {**tensors_of(model), **named_buffers(model)}
    for layer in model.layers():
        for piece in (*layer.owned, *layer.buffers):
            rows = piece.split(tensors[piece.parameter]).clone()
            rows[1] = rows[0]
            tensors[piece.parameter] = piece.join(rows, tensors[piece.parameter])
    twin = model.resized(model.widths())
    twin.load_state_dict(tensors)
    return twin


@pytest.mark.parametrize("kind", ["branches", "biasless", "images", "tagger", "transformer", "lstm", "gru"])
def test_removing_twins_costs_nothing_once_readers_are_refitted(kind, caplog):
    dense, batches = discovered(kind)
    model = with_twins(dense)
    others = {layer.name: [0, *range(2, layer.width)] for layer in model.layers() if not layer.obstacle}
    keep = {name: torch.tensor(kept) for name, kept in others.items()}
    covariances = activations(model, batches, activation_samples=16, bins=8)[1]
    expected, inputs = model.logits(batches[0][0])[0], batches[0][0]
    cut, refitted = (reconstruct(model, keep, covariances, repair=repair) for repair in ("none", "ridge"))
    assert (cut.logits(inputs)[0] - expected).abs().max() > 1e-2
    assert (refitted.logits(inputs)[0] - expected).abs().max() < 1e-3
    assert refitted.widths() == cut.widths()
    assert "Cut and not repaired" not in caplog.text


def test_a_layer_whose_readers_cannot_be_refitted_is_cut_and_named(caplog):
    model, batches = discovered("branches")
    covariances = activations(model, batches, activation_samples=16, bins=8)[1]
    keep = {"one": torch.tensor([0, 2])}
    found = [
        reconstruct(model, keep, covariances, repair=repair).logits(batches[0][0])[0] for repair in ("none", "ridge")
    ]
    assert torch.equal(*found)
    assert "Cut and not repaired: layer one, because inner.weight and last.weight read different" in caplog.text


def drawn(*shape, classes, most, seed=5):
    """Return batches of numbers or tokens `shape` and class numbers `classes`, below `most`."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(16, *shape, generator=generator, dtype=torch.float64)
    targets = torch.randint(most, (16, *classes), generator=generator)
    return [((20 * i.sigmoid()).long() if len(shape) == 2 else i, t) for i, t in zip(inputs, targets, strict=True)]


def biasless():
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, CLASSES, bias=False))


SEQUENCES = drawn(4, 5, classes=(4,), most=CLASSES)
DISCOVERED = {
    "biasless": (biasless, examples(16 * 4, batch=4), nn.CrossEntropyLoss()),
    "branches": (Branches, examples(16 * 4, batch=4), nn.CrossEntropyLoss()),
    "images": (images, drawn(4, 1, 6, 6, classes=(4,), most=CLASSES), nn.CrossEntropyLoss()),
    "tagger": (Tagger, drawn(4, 5, classes=(4, 5), most=CLASSES), nn.CrossEntropyLoss()),
    "transformer": (Transformer, SEQUENCES, nn.CrossEntropyLoss()),
    "lstm": (WordModel, list(TEXT)[:16], nn.NLLLoss()),
    "gru": (lambda: WordModel("GRU"), list(TEXT)[:16], nn.NLLLoss()),
}
"""Networks in which neurons are discovered, with batches and criterion."""


SEVERAL = {
    "skipping GRU": (Skipping, SEQUENCES, nn.CrossEntropyLoss()),
    "skipping LSTM": (lambda: Skipping("LSTM"), SEQUENCES, nn.CrossEntropyLoss()),
    "stacked": (Stacked, SEQUENCES, nn.CrossEntropyLoss()),
    "started": (Started, SEQUENCES, nn.CrossEntropyLoss()),
    "gated": (Gated, examples(16 * 4, batch=4), nn.CrossEntropyLoss()),
    "again": (Again, examples(16 * 4, batch=4), nn.CrossEntropyLoss()),
    "kernels": (Kernels, drawn(4, 1, 6, 6, classes=(4,), most=CLASSES), nn.CrossEntropyLoss()),
}
"""Networks of which one layer's neurons are computed, or read, by matrices of unequal shapes."""


@cache
def discovered(kind):
    make, batches, criterion = {**DISCOVERED, **SEVERAL}[kind]
    return adapt(made(make), batches[0][0], loss=criterion), batches


@pytest.mark.parametrize("kind", DISCOVERED)
def test_what_is_tapped_adds_up_to_the_gradients_by_gates_on_the_neurons(kind):
    """A gate's gradient is Σ γ h over outputs, and Σ w ∂L/∂w over the readers' weights."""
    model, batches = discovered(kind)
    inputs, targets = batches[0]
    outputs = model.outputs(inputs)
    logits, taps, _ = model.tapped(inputs)
    gammas = torch.autograd.grad(model.judged(logits, targets), list(taps.values()))
    expected, _ = gate_gradients(model, model.layers(), inputs, targets, None)
    assert model.untappable(inputs) == {}
    assert list(taps) == [layer.name for layer in model.layers()]
    for name, gamma in zip(taps, gammas, strict=True):
        assert expected[name].abs().max() > 1e-6
        assert torch.allclose((gamma * outputs[name]).sum((0, 1)), expected[name], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("kind", [*DISCOVERED, *SEVERAL])
def test_a_discovered_model_is_measured_fused_pruned_and_fine_tuned(kind):
    model, batches = discovered(kind)
    tables = {name: measure(model, batches) for name, measure in ALL.items()}
    importance = pruning.fuse(tables, pruning.Fusing(strategy="adaptive", seed=1))
    keep = keep_of(retention(importance, Allocation(retain=0.6, floor=1, scope="layer"), variant="v", by="fused"))
    keep = {layer.name: keep[layer.name] for layer in model.layers() if layer.exact}
    smaller = select(model, keep)
    assert torch.allclose(smaller.logits(batches[0][0])[0], mask(model, keep).logits(batches[0][0])[0], atol=1e-10)
    assert size_of(smaller).multiply_adds < size_of(model).multiply_adds
    before = loss_of(smaller, batches).mean
    *_, last = train(smaller, batches, batches, recipe=recipe(epochs=2, learning_rate=0.01), seed=1)
    smaller.load_state_dict(last.best())
    assert loss_of(smaller, batches).mean == pytest.approx(last.history["valid_loss"].min())
    assert loss_of(smaller, batches).mean < before


def test_one_target_for_many_steps_belongs_to_all_of_them():
    """A classifier of means over steps: its outputs are many, its targets one for each example."""

    def mean(network, inputs, _):
        return network(inputs).mean(1), None

    several = [(torch.stack([i, 2 * i, -i], dim=1), t) for i, t in BATCHES]
    model = classifier(call=mean)
    found = ALL["criteria"](model, several)
    assert (found["samples"] == 80).all()
    assert (found["mutual_information"] > 0).all()
    gates = torch.ones(7, dtype=torch.float64, requires_grad=True)
    inputs, targets = several[0]
    own = model.module
    below = own.second(torch.tanh(own.first(inputs)) * gates)
    losses = F.cross_entropy(own.last(below.relu()).mean(1), targets, reduction="none")
    each = torch.stack([torch.autograd.grad(loss, gates, retain_graph=True)[0] for loss in losses])
    first = ALL["criteria"](model, several[:2])
    second = ALL["criteria"](model, several[1:2] * 2)
    together = first.loc[first["layer"] == "first", "taylor_first"].to_numpy() * 2
    alone = second.loc[second["layer"] == "first", "taylor_first"].to_numpy()
    assert together - alone == pytest.approx(each.abs().mean(0).numpy(), rel=1e-9)


@cache
def measured(kind):
    """Return a model, its batches, every table of it and what removing each of its neurons alone costs."""
    make, batches = MODELS[kind]
    model = make()
    tables = {name: measure(model, batches) for name, measure in ALL.items()}
    return model, batches, tables, removals_of(model, batches)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    ("strategy", "repair"), [("simple", "none"), ("simple", "mean"), ("adaptive", "ridge"), ("learned", "ridge")]
)
def test_a_model_is_pruned_by_every_fusion_repaired_and_fine_tuned(kind, strategy, repair):
    model, batches, tables, oracle = measured(kind)
    importance = pruning.fuse(tables, pruning.Fusing(strategy=strategy, seed=1, folds=3), oracle=oracle)
    keep = keep_of(retention(importance, Allocation(retain=0.6, floor=2, scope="global"), variant="v", by="fused"))
    covariances = activations(model, batches, activation_samples=16, bins=8)[1]
    smaller = reconstruct(model, keep, covariances, repair=repair)
    assert smaller.widths() == tuple(len(keep[layer.name]) for layer in model.layers())
    assert size_of(smaller).parameters < size_of(model).parameters
    assert size_of(smaller).multiply_adds < size_of(model).multiply_adds
    before = loss_of(smaller, batches).mean
    *_, last = train(smaller, batches, batches, recipe=recipe(epochs=2, learning_rate=0.01), seed=1)
    assert last.history["valid_loss"].dropna().iloc[-1] < before


def removals_of(model, batches):
    """Return the measured loss of removing each neuron alone."""
    dense, rows = loss_of(model, batches).mean, []
    for layer in model.layers():
        for neuron in range(layer.width):
            others = torch.arange(layer.width)[torch.arange(layer.width) != neuron]
            lost = loss_of(mask(model, {layer.name: others}), batches).mean - dense
            rows.append((layer.name, neuron, lost, 1e-3))
    return pd.DataFrame(rows, columns=["layer", "neuron", "loss_increase", "standard_error"])


@pytest.mark.parametrize("kind", MODELS)
def test_removed_equals_masked(kind):
    make, batches = MODELS[kind]
    model = make()
    keep = {model.layers()[0].name: torch.tensor([1, 4, 5]), model.layers()[1].name: torch.tensor([0, 2])}
    inputs = batches[0][0]
    assert torch.allclose(select(model, keep).logits(inputs)[0], mask(model, keep).logits(inputs)[0], atol=1e-12)


def test_accuracy_is_the_share_of_right_answers():
    model = classifier()
    right = [(model.module(i).argmax(1) == t).sum().item() for i, t in BATCHES]
    assert loss_of(model, BATCHES).accuracy == pytest.approx(sum(right) / 80)


def test_the_state_is_carried_from_batch_to_batch():
    model, hidden, total = words(), None, 0.0
    with torch.no_grad():
        hidden = model.module.init_hidden(3)
        for window in TEXT:
            logits, hidden = model.module(window.tokens, hidden)
            total += F.nll_loss(logits, window.targets.flatten(), reduction="sum").item()
    assert loss_of(model, TEXT).total == pytest.approx(total, rel=1e-12)


def test_the_state_starts_anew_where_the_number_of_examples_changes():
    model, alone = words(), words()
    wide = list(TEXT)[:2]
    narrow = [(window.tokens[:, :2], window.targets[:, :2]) for window in wide]
    apart = loss_of(alone, wide).total + loss_of(alone, narrow).total
    assert loss_of(model, [*wide, *narrow]).total == pytest.approx(apart, rel=1e-12)


def test_a_loader_gives_what_a_list_gives_and_the_random_state_is_left_alone():
    data = TensorDataset(*(torch.cat(parts) for parts in zip(*BATCHES, strict=True)))
    model, loader, random = classifier(), DataLoader(data, batch_size=5), torch.get_rng_state()
    for measure in ALL.values():
        pd.testing.assert_frame_equal(measure(model, loader), measure(model, BATCHES))
    assert torch.equal(torch.get_rng_state(), random)


def test_training_on_a_loader_that_shuffles_repeats_its_bytes():
    data = TensorDataset(*(torch.cat(parts) for parts in zip(*BATCHES, strict=True)))
    loader, ends = DataLoader(data, batch_size=5, shuffle=True), []
    for seed in (7, 8):
        torch.manual_seed(seed)
        ends.append(list(train(classifier(), loader, BATCHES, recipe=recipe(), seed=1))[-1])
    assert bytes_of(ends[0].tensors) == bytes_of(ends[1].tensors)


def test_multiply_adds_and_latency_are_of_one_example():
    model = classifier()
    assert size_of(model).multiply_adds == 5 * 7 + 7 * 6 + 6 * 3
    assert model.example(32).shape == (32, 5)
    recurrent = words()
    assert recurrent.example(2).shape == (1, 2)
    assert size_of(recurrent).multiply_adds == 3 * (4 * 7 + 7 * 7 + 7 * 6 + 6 * 6) + 6 * WORDS
    found = latencies({"one": model, "two": recurrent}, batch=3, repeats=2)
    assert found["one"].seconds > 0


def test_targets_that_the_criterion_ignores_do_not_count():
    batches = [(i, t.clone()) for i, t in BATCHES]
    batches[0][1][:2] = 99
    model = adapt(made(Classifier), BATCHES[0][0], loss=nn.CrossEntropyLoss(ignore_index=99))
    loss = loss_of(model, batches)
    assert loss.tokens == 78
    left = [(i[2:], t[2:]) if place == 0 else (i, t) for place, (i, t) in enumerate(BATCHES)]
    assert loss.mean == pytest.approx(loss_of(classifier(), left).mean, rel=1e-12)


def test_inputs_may_be_several_tensors_by_place_or_name():
    class Two(Classifier):
        def forward(self, examples, *, scale=1.0, shift=0.0):
            return {"logits": super().forward(scale * examples + shift)}

    inputs, targets = BATCHES[0]
    named = {"examples": inputs, "scale": torch.full((5, 1), 2.0, dtype=torch.float64)}
    model = adapt(made(Two), named, loss=nn.CrossEntropyLoss())
    expected = classifier().loss(2 * inputs, targets)[0]
    assert model.loss(named, targets)[0].item() == pytest.approx(expected.item())
    assert model.loss((2 * inputs,), targets)[0].item() == pytest.approx(model.loss(named, targets)[0].item())


def twice(network, inputs, _):
    """Run a network so that no place shows a layer's outputs once and for all."""
    return network(inputs) + network(-inputs), None


def hidden(network, inputs, _):
    """Run it so that Python sees none of its operations either."""
    with torch._C.DisableTorchFunction():
        return twice(network, inputs, _)


@pytest.mark.parametrize(
    ("make", "batches"),
    [
        (lambda: disguised(tiny(family="lstm + snn")), TEXT),
        (lambda: classifier(call=twice), BATCHES),
        *(
            (
                lambda kind=kind: adapt(made(lambda: Compared(kind)), SEQUENCES[0][0], loss=nn.CrossEntropyLoss()),
                SEQUENCES,
            )
            for kind in ("LSTM", "GRU", "RNN")
        ),
    ],
)
def test_a_layer_that_no_one_place_shows_to_all_its_readers_has_numbers_by_each_of_them(make, batches, caplog):
    model = make()
    for signal, columns in (("surgeon", ["cost", "importance"]), ("criteria", ["gate_fisher", "wanda"])):
        found = ALL[signal](model, batches)
        assert found[columns].notna().all(axis=None)
    assert "Not measured" not in caplog.text
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_layer_that_cannot_be_tapped_is_named_with_the_reason_and_has_no_numbers(caplog):
    model = classifier(call=hidden)
    for signal, columns in (("surgeon", ["cost", "importance"]), ("criteria", ["gate_fisher", "wanda"])):
        found = ALL[signal](model, BATCHES)
        sentence = "layer first, because no operation that is known was seen to read it."
        assert f"Not measured by {signal}: {sentence}" in caplog.text
        assert found[columns].isna().all(axis=None)
        assert len(found) == sum(model.widths())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"network": nn.Linear(5, 3).double()}, ValueError, r"Expected a model with a layer that can be pruned"),
        (
            {"criterion": nn.CrossEntropyLoss(reduction="sum")},
            ValueError,
            "criterion with reduction 'mean', got 'sum'; make it with that",
        ),
    ],
)
def test_a_wrong_network_or_criterion_is_refused(change, error, sentence):
    given = {"network": made(Classifier), "inputs": BATCHES[0][0], "criterion": nn.CrossEntropyLoss(), **change}
    with pytest.raises(error, match=sentence):
        adapt(given.pop("network"), given.pop("inputs"), **given)


def test_wrong_logits_targets_and_losses_are_refused():
    inputs, targets = BATCHES[0]
    with pytest.raises(
        TypeError, match=r"Expected one tensor of outputs, such as logits \(…, classes\), from the network, got a dict"
    ):
        classifier(call=lambda network, inputs, _: ({"a": network(inputs), "b": inputs}, None)).logits(inputs)
    with pytest.raises(ValueError, match=r"Expected a row of logits for each of 4 targets, got 5 rows."):
        classifier().loss(inputs, targets[:4])
    with pytest.raises(ValueError, match=r"Expected class numbers, or shares of the logits' .* got torch.float64"):
        loss_of(classifier(), [(inputs, targets.double())])
    apart = adapt(
        made(Classifier), inputs, loss=lambda logits, labels: F.cross_entropy(logits, labels, reduction="none")
    )
    with pytest.raises(
        ValueError, match=r"Expected a criterion that gives one number, got a tensor \(5,\) of float64; give"
    ):
        apart.loss(inputs, targets)


MEASURE = Ablation(neurons="all", tokens=10**6, seed=1)


@pytest.mark.parametrize("name", MODELS)
def test_measured_removal_is_the_rise_of_the_loss_of_a_model_without_the_neuron(name):
    make, batches = MODELS[name]
    model = make()
    measured = oracle(model, batches, MEASURE)
    assert len(measured) == sum(model.widths())
    dense = loss_of(model, batches).mean
    for layer, rows in measured.groupby("layer"):
        for neuron, increase in zip(rows["neuron"], rows["loss_increase"], strict=True):
            keep = torch.tensor([other for other in range(len(rows)) if other != neuron])
            assert loss_of(select(model, {layer: keep}), batches).mean - dense == pytest.approx(increase, abs=1e-9)


def test_a_disguised_language_model_has_the_language_models_measured_removals():
    model = tiny(decoder="untied")
    own = oracle(model, TEXT, MEASURE)
    other = oracle(disguised(model), TEXT, MEASURE)
    assert (own["loss_increase"] - other["loss_increase"]).abs().max() < 1e-9


def test_joint_removal_of_a_classifier_is_the_rise_of_its_loss():
    model = classifier()
    measured = oracle(model, BATCHES, MEASURE)
    removed = {"first": [1, 3], "second": [0]}
    table = joint_removal(model, BATCHES, measured, sets={"some": removed}, tokens=10**6)
    keep = {layer.name: torch.arange(layer.width) for layer in model.layers()}
    keep = {name: own[[n not in removed[name] for n in own.tolist()]] for name, own in keep.items()}
    assert [removed_neurons(layer, keep).tolist() for layer in model.layers()] == [*removed.values()]
    rise = loss_of(select(model, keep), BATCHES).mean - loss_of(model, BATCHES).mean
    assert table["loss_increase"].tolist() == pytest.approx([rise])


def test_measured_removal_needs_two_batches():
    with pytest.raises(ValueError, match=r"Expected at least two batches with targets to measure removal on, got 1."):
        oracle(classifier(), BATCHES[:1], MEASURE)
