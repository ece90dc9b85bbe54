"""What cannot be at the front door is refused in one sentence that says what was given."""

import math
import re
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pruning

torch.manual_seed(0)
X = torch.randn(32, 4)
CLASSES = X.argmax(1) % 3
BATCHES = list(zip(X.split(16), CLASSES.split(16), strict=True))
NARROW = [(X[:16, :3], CLASSES[:16])] * 2
NOT_NUMBERS = [(X * math.nan, CLASSES)] * 2
LOSS = nn.CrossEntropyLoss()
ELSE = torch.ones((), requires_grad=True)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


class Detector(nn.Module):
    """Gives its losses in training, which it needs targets for, and else its answers, as torchvision's detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 3)

    def forward(self, images: Any, targets: Any = None) -> Any:
        scores = self.head(self.body(images))
        return {"classes": sum(LOSS(scores, one) for one in targets)} if self.training else scores


def beside(outputs: Any, targets: Any) -> Any:  # noqa: ARG001 - no loss of the network's
    return ELSE.square()


def alone(network: nn.Module, inputs: Any, state: Any) -> Any:  # noqa: ARG001 - what forgets the state
    return network(inputs[:2])


def scripted() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(network())


FOUND = pruning.discover(network(), X)
MEASURED = pruning.importance(FOUND, BATCHES, LOSS, signals=["weights"])
SMALLER = pruning.prune(FOUND, MEASURED, repair="none")
HALF = pruning.Allocation(retain=0.5, floor=1, scope="layer")


RECIPE: Any = pruning.Recipe(
    epochs=1, portion=1.0, learning_rate=0.01, warmup=0.1, weight_decay=0.0, clip=1.0, patience=1
)
TEACHER: Any = pruning.Teacher(model=network(), share=0.5, temperature=1.0)  # type: ignore[arg-type]
ROUNDS = pruning.Rounds(retain=0.5, rounds=2, floor=1, calibration=2, damping=1e-4, last=0.5)
THINNING = pruning.Thinning(
    retain=0.5, floor=1, schedule=pruning.Schedule(begin=0.1, end=0.5, every=1), momentum=0.9, penalty=0.0
)


def measured(data: Any = BATCHES, loss: Any = LOSS, **how: Any) -> Any:
    return pruning.importance(FOUND, data, loss, **{"signals": ["weights", "gradients"], **how})


def diverged() -> nn.Module:
    one = network()
    with torch.no_grad():
        one[0].weight[0, 0] = math.inf  # type: ignore[index]
    return one


def measured_of(one: nn.Module) -> Any:
    return pruning.importance(pruning.discover(one, X), BATCHES, LOSS, signals=["weights"])


def pruned(keep: Any = 0.5, **how: Any) -> Any:
    return pruning.prune(FOUND, MEASURED, keep, **how)


def finetuned(data: Any = BATCHES, **how: Any) -> Any:
    return pruning.finetune(deepcopy(SMALLER), data, **how)


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    **{
        f"to discover {said}": (
            lambda given=given: pruning.discover(given, X),
            TypeError,
            f"Expected a network, an nn.Module, got {said}.",
        )
        for given, said in (
            (None, "nothing"),
            (nn.Linear, "the class Linear"),
            ("net", "str"),
            ([], "an empty list"),
        )
    },
    "to measure a class": (
        lambda: pruning.importance(nn.Linear, BATCHES, LOSS),
        TypeError,
        "Expected a network, or what `pruning.discover` found in one, got the class Linear.",
    ),
    "to measure on one tensor": (
        lambda: measured(X),
        TypeError,
        "Expected batches, such as a DataLoader or a list, got a tensor (32, 4) of float32 alone; give "
        "tensor.split(32).",
    ),
    "to measure on one batch by names": (
        lambda: measured({"input": X, "labels": CLASSES}),
        TypeError,
        "got a dict of input: a tensor (32, 4) of float32, labels: a tensor (32,) of int64 alone; give [batch].",
    ),
    "to measure on batches that the network cannot read": (
        lambda: measured(NARROW),
        ValueError,
        "Expected batches that the network runs on, such as a tensor (32, 4) of float32, got a tensor (16, 3) of "
        "float32, on which it raises RuntimeError: mat1 and mat2 shapes cannot be multiplied (16x3 and 4x8).",
    ),
    "to measure on what is no number": (lambda: measured(NOT_NUMBERS), ValueError, "inputs that are not finite."),
    **{
        f"to measure by a loss {how}": (
            lambda loss=loss: measured(loss=loss),
            ValueError,
            "Expected a loss that depends on what the network gives, got one whose gradient reaches neither that nor",
        )
        for how, loss in (
            ("of nothing", lambda outputs, targets: LOSS(outputs.detach(), targets)),
            ("of what is learnt beside", beside),
        )
    },
    "to train by a loss of what is learnt beside": (
        lambda: pruning.finetune(deepcopy(SMALLER), BATCHES, beside),
        ValueError,
        "Expected a loss that depends on the weights, got one whose gradient does not reach them;",
    ),
    **{
        f"to measure on the parts of one batch, {said}": (
            lambda data=data: measured(data),
            TypeError,
            f"Expected batches, such as a DataLoader or a list, got {said}, the parts of one; give DataLoader(",
        )
        for data, said in (
            ((X, CLASSES), "a tuple of a tensor (32, 4) of float32 and a tensor (32,) of int64"),
            ([X, CLASSES], "a list of a tensor (32, 4) of float32 and a tensor (32,) of int64"),
            ((X, X), "a tuple of a tensor (32, 4) of float32 and a tensor (32, 4) of float32"),
        )
    },
    "to train what needs targets in training alone": (
        lambda: pruning.finetune(Detector(), BATCHES, lambda outputs, targets: LOSS(outputs, targets)),
        ValueError,
        "Expected a network that reads in training what it reads in evaluation, got one that raises TypeError: ",
    ),
    "to learn from itself": (
        lambda: pruning.finetune(SMALLER, BATCHES, teacher=SMALLER),
        ValueError,
        "Expected the dense network as teacher, got the one that is trained, which agrees with itself;",
    ),
    "to train with a teacher that is no model": (
        lambda: next(pruning.train(SMALLER, BATCHES, BATCHES, recipe=RECIPE, seed=1, teacher=TEACHER)),
        TypeError,
        "Expected a network whose neurons are known, got Sequential; `pruning.adapt(network, inputs, loss=…)` finds",
    ),
    "to prune in rounds what has no loss": (
        lambda: next(pruning.prune_iteratively(FOUND, BATCHES, BATCHES, rounds=ROUNDS, recipe=RECIPE, seed=1)),
        TypeError,
        "Expected a network that knows its loss and its batches, got one whose neurons alone are known;",
    ),
    "to prune a network of one's own while it is trained": (
        lambda: next(pruning.prune_gradually(SMALLER, BATCHES, BATCHES, recipe=RECIPE, thinning=THINNING, seed=1)),
        TypeError,
        "Expected a language model of the library to prune while it is trained, got Adapted;",
    ),
    "to be run by a name": (
        lambda: pruning.importance(network(), BATCHES, LOSS, call="forward"),
        TypeError,
        "Expected `call` as a function (network, inputs, state) → (outputs, state), got str; such as",
    ),
    "to be run by what gives outputs alone": (
        lambda: pruning.importance(network(), BATCHES, LOSS, call=alone),
        TypeError,
        "Expected `call` to give (outputs, state), got a tensor (2, 3) of float32; give None as the state",
    ),
    "a budget of time without times": (
        lambda: pruned(budget={"kind": "latency", "value": 1e-3}),
        ValueError,
        "for a budget of latency, got nothing; give `latency`, in seconds as `value` then is: pruning.selection.costs.",
    ),
    **{
        f"to measure from the seed {seed!r}": (lambda seed=seed: measured(seed=seed), kind, said)
        for seed, kind, said in (
            ("a", TypeError, "Expected a whole number as seed, such as 1, got 'a'."),
            (1.5, TypeError, "Expected a whole number as seed, such as 1, got 1.5."),
            (-1, ValueError, "Expected a seed from 0, got -1."),
        )
    },
    **{
        f"to keep {said}": (
            lambda keep=keep: pruned(keep),
            TypeError,
            f"Expected a share to keep, such as 0.5, or shares by layer, got {said};",
        )
        for keep, said in ((True, "bool"), (None, "nothing"), ("half", "str"), ([1, 2], "a list of int and int"))
    },
    **{
        f"to keep {keep} of all": (
            lambda keep=keep: pruned(keep),
            ValueError,
            "Expected a share to keep in (0, 1], got",
        )
        for keep in (0, -1, 50, math.nan)
    },
    "to keep numbers of a layer": (
        lambda: pruned({"0": torch.tensor([1, 2])}),
        TypeError,
        "Expected a share of layer '0' to keep, such as 0.5, or shares by layer, got a tensor (2,) of int64;",
    ),
    "example inputs without an example": (
        lambda: pruning.discover(network(), X[:0]),
        ValueError,
        "Expected inputs with at least one example, got a tensor (0, 4).",
    ),
    "a batch with its targets as inputs": (
        lambda: pruning.discover(network(), [X, CLASSES]),
        ValueError,
        "give the inputs alone, without targets, if it is a batch.",
    ),
    "a network without numbers": (
        lambda: pruning.discover(network().to("meta"), X),
        ValueError,
        "Expected weights, got 0.weight on the device meta, which holds none; load them first",
    ),
    "batches without numbers": (
        lambda: measured([(X.to("meta"), CLASSES.to("meta"))]),
        ValueError,
        "Expected batches with numbers in them, got those of the device meta, which holds none.",
    ),
    "infinite weights": (lambda: measured_of(diverged()), FloatingPointError, "Expected finite weights, got 1 of 32"),
    "half a batch": (
        lambda: measured(batches=2.5),
        TypeError,
        "Expected a whole number of batches, such as 50, got 2.5.",
    ),
    "no batch asked for": (
        lambda: measured(batches=0),
        ValueError,
        "Expected at least 1 batch to be asked for, got batches=0.",
    ),
    "a generator that has ended": (
        lambda: pruned(data=iter(())),
        ValueError,
        "Expected at least one batch, got a tuple_iterator that has ended or gives none; give `list(…)` of it",
    ),
    "a loader that drops all": (
        lambda: measured(DataLoader(TensorDataset(X, CLASSES), 64, drop_last=True)),
        ValueError,
        "got a DataLoader that drops the last one and has 32 examples in batches of 64; lower batch_size, or",
    ),
    "a multiple that is no whole number": (
        lambda: pruned(multiple=2.5),
        TypeError,
        "Expected a multiple that is a whole number of neurons, such as 8, got 2.5.",
    ),
    "a split into one": (
        lambda: measured(split=lambda batch: batch[0]),
        TypeError,
        "Expected `split` to give (inputs, targets), got a tensor (16, 4) of float32; give None as the targets where",
    ),
    "neurons kept by a table without them": (
        lambda: pruning.keep_of(MEASURED.table),
        ValueError,
        "Expected a table of retention with the columns ['layer', 'neuron', 'kept'], got one without ['kept'].",
    ),
    "what is no table to retain by": (
        lambda: pruning.retention(MEASURED, HALF, variant="half", by="fused"),
        TypeError,
        "Expected a table of importance, a pandas DataFrame, got Importance; give its `.table`.",
    ),
    "a graph of what does not run": (
        lambda: pruning.program_of(network(), X[:, :3]),
        ValueError,
        "Expected inputs that the network runs on, got RuntimeError: mat1 and mat2 shapes cannot be multiplied",
    ),
    "to keep percents": (lambda: pruned(50), ValueError, "Expected a share to keep in (0, 1], got 50; 50% is 0.5."),
    "to repair on what is no number": (
        lambda: pruned(data=NOT_NUMBERS),
        FloatingPointError,
        "Expected finite numbers of layer 0 to refit its readers by, got others; look for inputs that are not finite.",
    ),
    "to repair on batches that the network cannot read": (
        lambda: pruned(data=NARROW),
        ValueError,
        "got a tensor (16, 3) of float32",
    ),
    "to train on nothing": (lambda: finetuned([]), ValueError, "Expected at least one batch to train on, got none."),
    "to validate on nothing": (
        lambda: finetuned(valid=[]),
        ValueError,
        "Expected at least one batch to validate on, got none.",
    ),
    **{
        f"to train with {name} {number!r}": (lambda how={name: number}: finetuned(**how), kind, said)
        for name, number, kind, said in (
            ("epochs", 0, ValueError, "Expected at least 1 epoch to fine-tune for, got 0."),
            ("epochs", 1.5, TypeError, "Expected epochs as a whole number to train by, got 1.5."),
            (
                "learning_rate",
                0,
                ValueError,
                "Expected learning_rate above 0 to fine-tune by, got 0, by which nothing is",
            ),
            ("learning_rate", -1, ValueError, "Expected learning_rate from 0 to train by, got -1."),
            ("learning_rate", math.nan, ValueError, "Expected learning_rate from 0 to train by, got nan."),
            ("learning_rate", "fast", TypeError, "Expected learning_rate as a number to train by, got 'fast'."),
        )
    },
    "to evaluate on nothing": (
        lambda: pruning.evaluate(SMALLER, []),
        ValueError,
        "Expected at least one batch to evaluate on, got none.",
    ),
    "to evaluate on batches that the network cannot read": (
        lambda: pruning.evaluate(SMALLER, NARROW),
        ValueError,
        "Expected batches that the network runs on, such as a tensor (32, 4) of float32, got a tensor (16, 3) of",
    ),
    **{
        f"to measure {said}": (lambda how=how: pruning.importance(FOUND, BATCHES, LOSS, **how), ValueError, said)
        for how, said in (
            ({"signals": "weights"}, "Expected a list of signals, such as ['weights'], got str."),
            ({"signals": []}, "Expected a list of signals, such as ['weights'], got an empty list."),
            (
                {"strategy": "learned"},
                "Unknown fusion 'learned' without measured removals; known: ['simple', 'adaptive'].",
            ),
        )
    },
    "to choose by a criterion without targets": (
        lambda: pruning.importance(FOUND, [X, X], LOSS, by="taylor_first"),
        ValueError,
        "Expected targets for the signal 'criteria', got batches of inputs alone; give (inputs, targets), which of an "
        "autoencoder are its inputs, `split=lambda batch: (batch, batch)`.",
    ),
    "to measure by a loss that is no number": (
        lambda: measured(loss=lambda outputs, targets: LOSS(outputs, targets) * math.nan, signals=["weights"]),
        ValueError,
        "Expected a finite loss, got nan on the first batch;",
    ),
    "to measure on a text": (
        lambda: measured("train.csv"),
        TypeError,
        "Expected batches, such as a DataLoader or a list, got str.",
    ),
    "to measure by several losses": (
        lambda: measured(loss=lambda outputs, targets: (LOSS(outputs, targets), outputs.mean())),
        ValueError,
        "got a tuple of a tensor () of float32 and a tensor () of float32; name the one:",
    ),
    "to measure by each example's loss": (
        lambda: measured(loss=lambda outputs, targets: nn.functional.cross_entropy(outputs, targets, reduction="none")),
        ValueError,
        "Expected a criterion that gives one number, got a tensor (16,) of float32; give their mean:",
    ),
    "scores as log-probabilities": (
        lambda: pruning.evaluate(FOUND, BATCHES, nn.NLLLoss()),
        ValueError,
        "Expected log-probabilities for NLLLoss, got numbers whose exponents sum to",
    ),
    "scores as probabilities": (
        lambda: pruning.evaluate(FOUND, [(X, X[:, :3].sigmoid())], nn.BCELoss()),
        ValueError,
        "Expected probabilities for BCELoss, got numbers from",
    ),
    "to keep nothing that is named": (
        lambda: pruned({}),
        ValueError,
        "a share to keep of some layer, got an empty dict.",
    ),
    **{
        f"to take neurons from {said}": (
            lambda layers=layers: pruned(layers=layers),
            ValueError,
            f"Expected a list of layers that neurons may be taken from, got {said}.",
        )
        for layers, said in (("0", "str"), ([], "an empty list"))
    },
    **{
        f"a budget of {budget}": (lambda budget=budget: pruned(budget=budget), kind, said)
        for budget, kind, said in (
            (500, TypeError, "Expected what `pruning.budget_of` gave, or its arguments by name, such as"),
            ({"kind": "parameters"}, ValueError, "Expected a budget with `kind` and `value`, got a dict of kind: str."),
            (
                {"kind": "parameters", "value": "half"},
                TypeError,
                "Expected a number as the value of a budget, got 'half'.",
            ),
            ({"kind": "parameters", "value": 9, "unit": "M"}, ValueError, "Unknown setting 'unit' of a budget; known:"),
        )
    },
    **{
        f"to measure by {said} on targets of another name": (
            lambda loss=loss: measured([{"input": X, "digit": CLASSES}], loss),
            TypeError,
            "Expected targets under one of ['labels', 'label', 'targets', 'target', 'y'] in a batch, got ['digit'] "
            "beside the inputs; let `split` say what of a batch is what: `lambda batch: (…, batch['digit'])`.",
        )
        for said, loss in (("a loss", LOSS), ("one of one's own", lambda outputs, targets: LOSS(outputs, targets)))
    },
    **{
        f"{name} by an argument that it does not have": (
            lambda asked=asked, given=given: asked(**{given: 1}),
            TypeError,
            f"Unknown argument '{given}' of {name}; known: [",
        )
        for name, given, asked in (
            ("prune", "within", pruned),
            ("finetune", "optimizer", finetuned),
            ("importance", "method", measured),
            ("discover", "inputs", pruning.discover),
        )
    },
    "to prune another network": (
        lambda: pruning.prune(nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3)), MEASURED),
        ValueError,
        "Expected the network whose importance was measured, with the layers [('0', 8), ('2', 6)], got one with",
    ),
    "to train by a loss that the weights do not reach": (
        lambda: pruning.finetune(deepcopy(SMALLER), BATCHES, lambda outputs, targets: LOSS(outputs.detach(), targets)),
        ValueError,
        "Expected a loss that depends on the weights, got one whose gradient does not reach them;",
    ),
    "to train by a dictionary": (
        lambda: finetuned(recipe={"epochs": 1}),
        TypeError,
        "Expected a pruning.Recipe to train by, got a dict of epochs: int.",
    ),
    "to learn from a teacher of other outputs": (
        lambda: finetuned(teacher=nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5))),
        ValueError,
        "Expected a teacher that gives what the network gives, a tensor (16, 3) of float32, got a tensor (16, 5) of",
    ),
    "what TorchScript compiled": (
        lambda: pruning.discover(scripted(), X),
        TypeError,
        "Expected a network as Python runs it, got what TorchScript compiled,",
    ),
    "a lazy network that has not run": (
        lambda: pruning.discover(nn.Sequential(nn.LazyLinear(3)), X),
        ValueError,
        "Expected parameters that have shapes, got a lazy one, 0.weight; call the network once on the inputs.",
    ),
    "to save nothing": (lambda: pruning.save(None, "folder"), TypeError, "or `adapt` gave, got NoneType;"),
    "to save into a number": (lambda: pruning.save(SMALLER, 3), TypeError, "Expected a folder's name, got int;"),
    "to restore the other way round": (
        lambda: pruning.restore("folder", network()),
        TypeError,
        "Expected a folder's name, got Sequential; the network comes first, then the folder.",
    ),
    "a neuron by its name": (
        lambda: MEASURED.card("0", "a"),
        TypeError,
        "Expected a neuron of 0 by its number, got 'a'.",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_refused_in_a_sentence(what: str) -> None:
    ask, kind, sentence = REFUSED[what]
    with pytest.raises(kind, match=re.escape(sentence)) as refusal:
        ask()
    assert "\n" not in str(refusal.value)


def test_layers_with_weights_that_are_no_numbers_say_so() -> None:
    reasons = pruning.discover(diverged(), X).unprunable
    assert reasons["0"] == "1 of the 32 numbers in 0.weight are NaN or infinite, so that nothing tells what it computes"


def test_an_unknown_importance_is_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match="Unknown importance 'hesian'; known:"):
        measured(iter(()), by="hesian")


@pytest.mark.parametrize("may", [True, False])
def test_a_loss_that_is_given_no_targets_where_there_may_be_some_says_so(
    caplog: pytest.LogCaptureFixture, may: bool
) -> None:
    def least(outputs: Any, targets: Any = None) -> Any:
        return outputs.square().mean() if targets is None else LOSS(outputs, targets)

    loss = least if may else lambda outputs: outputs.square().mean()
    found = measured([{"input": X, "digit": CLASSES}] * 2, loss)
    assert np.isfinite(found.table["gradients"]).all()
    said = [record.getMessage() for record in caplog.records if "no targets" in record.getMessage()]
    assert (
        said
        == [
            "The loss is given no targets: of a batch digit stands beside the inputs, under none of the names "
            "labels, label, targets, target, y; let `split` say what of a batch is what."
        ]
        * may
    )


@pytest.mark.parametrize("given", [None, nn.Linear])
def test_what_is_no_network_is_not_restored(tmp_path: Path, given: Any) -> None:
    pruning.save(SMALLER, tmp_path)
    with pytest.raises(TypeError, match="Expected the user's own network, built anew, got"):
        pruning.restore(given, tmp_path)


def test_a_network_whose_fine_tuning_breaks_is_left_as_it_was() -> None:
    smaller = deepcopy(SMALLER)
    before = deepcopy(smaller.state_dict())
    with pytest.raises(FloatingPointError, match="Expected a finite training loss, got nan at step"):
        pruning.finetune(smaller, [*BATCHES, *NOT_NUMBERS], LOSS)
    assert all(torch.equal(before[name], tensor) for name, tensor in smaller.state_dict().items())


def test_a_network_whose_training_stops_at_a_batch_is_left_as_it_was() -> None:
    smaller = deepcopy(SMALLER)
    before = deepcopy(smaller.state_dict())
    with pytest.raises(ValueError, match="Expected batches that the network runs on"):
        pruning.finetune(smaller, [*BATCHES, *NARROW], LOSS)
    assert all(torch.equal(before[name], tensor) for name, tensor in smaller.state_dict().items())


def test_a_network_that_gives_its_losses_in_training_alone_is_put_there_by_its_call() -> None:
    def training(network: nn.Module, inputs: Any, state: Any) -> Any:
        network.train()
        return network(*inputs), state

    detector, data = Detector().eval(), [(one, [classes]) for one, classes in BATCHES]
    how: dict[str, Any] = {"call": training, "split": lambda batch: (tuple(batch), None)}
    importance = pruning.importance(detector, data, lambda losses, _: sum(losses.values()), **how)
    smaller = pruning.prune(detector, importance, keep=0.5)
    before = pruning.evaluate(smaller, data).mean
    pruning.finetune(smaller, data, epochs=2, learning_rate=0.05)
    assert pruning.evaluate(smaller, data).mean < before
    assert not smaller.module.training
