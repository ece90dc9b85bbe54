"""Frozen parameters: measured as the others are, never trained, and as frozen after every surgery as before."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pruning.core.neurons import Keep, NeuronLayer, PrunableModule, Slice, mask, select
from pruning.models import describe, rebuild
from pruning.models.adapting import adapt
from pruning.repair.imitation import Imitation, imitate
from pruning.repair.reconstruction import REPAIRS, reconstruct
from pruning.signals.activations import activations
from pruning.signals.criteria import criteria
from pruning.signals.sensitivity import sensitivities
from pruning.signals.surgeon import surgeon
from pruning.training.gradual import prune_gradually, pruned
from pruning.training.loop import train
from pruning.training.thinning import Schedule, Thinning
from tests.tiny import FAMILIES, SIGNALS, bytes_of, recipe, tensors_of, tiny

KEEP: Keep = {"lstm.0": torch.tensor([0, 2, 3, 6]), "lstm.1": torch.tensor([1, 2, 5])}
CRITERIA = {"batches": 4, "bins": 4, "classes": 4, "ridge": 1e-4, "seed": 1}
THINNING = Thinning(retain=0.5, floor=1, schedule=Schedule(begin=0.0, end=0.6, every=4), momentum=0.9, penalty=0.01)
IMITATION = Imitation(tokens=240, learning_rate=0.02, warmup=0.1, clip=1.0)

MEASURED = SIGNALS | {
    "criteria": lambda model, windows: criteria(model, windows, **CRITERIA),
    "surgeon": lambda model, windows: surgeon(
        activations(model, windows, activation_samples=4, bins=4)[1],
        sensitivities(model, windows, batches=4, seed=1),
        damping=1e-4,
    ),
}


def frozen(model, *names):
    """Freeze the parameters whose names start so; all of them if none is named."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (not names or name.startswith(names)))
    return model


def flags(model):
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("names", [("lstm.0",), ("decoder", "encoder"), ()])
@pytest.mark.parametrize("signal", MEASURED)
def test_a_frozen_model_is_measured_as_one_that_learns_and_stays_frozen(signal, names, windows):
    model = frozen(tiny(), *names)
    before = flags(model)
    found = MEASURED[signal](model, windows)
    assert flags(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert found.equals(MEASURED[signal](tiny(), windows))


def test_a_frozen_spiking_model_is_measured_as_one_that_learns(windows):
    found = MEASURED["criteria"](frozen(tiny(family="snn"), "snn.0"), windows)
    assert found.equals(MEASURED["criteria"](tiny(family="snn"), windows))


def test_parameters_are_frozen_again_after_an_error(windows):
    model = frozen(tiny())
    model.judged = None
    with pytest.raises(TypeError):
        MEASURED["hessian"](model, windows)
    assert not any(flags(model).values())


@pytest.mark.parametrize("family", FAMILIES)
def test_surgery_and_masking_keep_what_is_frozen_frozen(family):
    model = tiny(family=family)
    layer = model.layers()[0]
    model.get_parameter(layer.owned[0].parameter).requires_grad_(False)
    model.encoder.requires_grad_(False)
    keep = {layer.name: torch.arange(layer.width - 1)}
    for other in (select(model, keep), mask(model, keep), model.resized(model.widths())):
        assert flags(other) == flags(model)


@pytest.mark.parametrize("repair", REPAIRS)
def test_a_repaired_model_is_as_frozen_as_before(repair, windows):
    model = frozen(tiny(), "lstm.0", "decoder")
    states = activations(model, windows, activation_samples=8, bins=4)[1]
    assert flags(reconstruct(model, KEEP, states, repair=repair)) == flags(model)


class Own(PrunableModule):
    """A model of a user's that makes its smaller self from nothing."""

    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.Linear(3, width), nn.Linear(width, 2)

    def forward(self, inputs):
        return self.second(self.first(inputs).tanh())

    def layers(self):
        owned = (Slice("first.weight", dim=0), Slice("first.bias", dim=0))
        read = (Slice("second.weight", dim=1, bias="second.bias"),)
        return [NeuronLayer("hidden", "dense", self.first.out_features, owned, read, output="first")]

    def resized(self, widths):
        return Own(*widths)


def test_a_model_that_makes_its_smaller_self_from_nothing_stays_frozen_too():
    own = frozen(Own(4), "first")
    keep = {"hidden": torch.tensor([0, 2])}
    assert flags(select(own, keep)) == flags(own)
    adapted = adapt(own, torch.zeros(2, 3), loss=nn.CrossEntropyLoss())
    assert flags(select(adapted, keep)) == flags(adapted)


@pytest.mark.parametrize("how", ["untie", "project"])
@pytest.mark.parametrize("learns", [True, False])
def test_the_reader_that_a_tied_decoder_gets_is_frozen_if_the_shared_matrix_is(how, learns):
    model = tiny("tied")
    model.encoder.requires_grad_(learns)
    model.lstm[0].requires_grad_(False)
    found = model.decoupled(how)
    new = found.decoder.weight if how == "untie" else found.projection.weight
    assert new.requires_grad is learns
    assert {name: flag for name, flag in flags(found).items() if name in flags(model)} == flags(model)


def test_a_saved_model_says_what_is_frozen_and_only_where_something_is():
    model = frozen(tiny(), "lstm.0", "encoder")
    config, tensors = describe(model)
    assert config["frozen"] == [name for name, learns in flags(model).items() if not learns]
    assert flags(rebuild(config, tensors)) == flags(model)
    assert "frozen" not in describe(tiny())[0]


def test_a_frozen_parameter_that_the_model_does_not_have_is_refused():
    config, tensors = describe(tiny())
    with pytest.raises(ValueError, match="Unknown parameter 'lstm' among the frozen ones; known"):
        rebuild({**config, "frozen": ["lstm"]}, tensors)


def test_training_leaves_frozen_parameters_alone(windows):
    model = frozen(tiny(), "lstm.0", "encoder")
    before = tensors_of(model)
    for _ in train(model, windows, windows, recipe=recipe(epochs=1, weight_decay=0.5), seed=1):
        pass
    after = tensors_of(model)
    assert {name for name in after if torch.equal(before[name], after[name])} == {
        name for name, learns in flags(model).items() if not learns
    }


@pytest.mark.parametrize("function", ["train", "prune_gradually"])
def test_training_a_model_that_is_frozen_as_a_whole_is_refused(function, windows):
    model = frozen(tiny())
    runs = {
        "train": lambda: train(model, windows, windows, recipe=recipe(), seed=1),
        "prune_gradually": lambda: prune_gradually(model, windows, windows, recipe=recipe(), thinning=THINNING, seed=1),
    }
    with pytest.raises(ValueError, match="Expected parameters to train, got a model in which all are frozen"):
        next(runs[function]())


def test_gradual_pruning_cuts_frozen_parameters_and_changes_them_in_no_other_way(windows):
    model = frozen(tiny(), "lstm.0", "lstm.1.weight_hh_l0")
    settings = {"recipe": recipe(epochs=2, weight_decay=0.5), "thinning": THINNING, "seed": 1}
    states = list(prune_gradually(model, windows, windows, **settings))
    found = pruned(model, states[-1])
    kept = {layer.name: states[-1].tensors[f"kept.{layer.name}"] for layer in model.layers()}
    expected, own = tensors_of(select(model, kept)), tensors_of(found)
    still = {name for name in own if torch.equal(expected[name], own[name])}
    assert still == {name for name, learns in flags(model).items() if not learns}
    assert flags(found) == flags(model)
    assert sum(found.widths()) == 7
    resumed = list(prune_gradually(model, windows, windows, **settings, resume=states[0]))
    assert bytes_of(resumed[-1].tensors) == bytes_of(states[-1].tensors)


def test_the_importance_in_gradual_pruning_does_not_depend_on_what_is_frozen(windows):
    """Before the first step nothing has learnt, so the first step's gradients are the same."""
    settings = {"recipe": recipe(epochs=1, portion=0.05), "thinning": replace(THINNING, retain=1.0), "seed": 1}
    first, second = (
        list(prune_gradually(model, windows, windows, **settings))[-1].tensors
        for model in (tiny(), frozen(tiny(), "lstm", "encoder"))
    )
    for name in ("importance.lstm.0", "importance.lstm.1"):
        assert first[name].gt(0).all()
        assert torch.equal(first[name], second[name])


def test_imitation_leaves_frozen_parameters_alone_and_frozen(windows):
    teacher = tiny(spread=0.4)
    student = frozen(select(teacher, KEEP), "lstm.0", "decoder")
    found = imitate(student, teacher, windows, imitation=IMITATION)
    before, after = tensors_of(student), tensors_of(found)
    learnt = {name for name in after if not torch.equal(before[name], after[name])}
    assert learnt == {name for name in after if name.startswith("lstm.1")}
    assert flags(found) == flags(student)


def test_imitation_with_nothing_that_can_learn_is_refused(windows):
    teacher = tiny()
    with pytest.raises(ValueError, match="Expected parameters between embedding and decoder that can learn"):
        imitate(frozen(select(teacher, KEEP)), teacher, windows, imitation=replace(IMITATION, tokens=1))
