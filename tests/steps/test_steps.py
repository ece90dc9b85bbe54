"""The front door: measured, pruned, repaired and fine-tuned in a line each, whatever network and data."""

import re
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import pruning
from pruning.core.modes import NOT_FINITE, ONCE
from pruning.core.neurons import select
from pruning.data.batches import Pair, Unlabelled
from pruning.data.windows import Windows
from pruning.signals.schemas import CRITERIA
from pruning.steps.given import KEPT, measurable
from pruning.steps.losing import errors_by_share
from pruning.steps.removing import apart
from tests.models.test_losses import LENGTHS, LONG, SIZES, SPOKEN, Speech
from tests.tiny import text, tiny


class Net(nn.Module):
    """Two hidden layers, one much wider than it need be."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(4, 24), nn.Linear(24, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(F.relu(self.two(F.relu(self.one(x)))))


@cache
def trained() -> tuple[Any, TensorDataset]:
    torch.manual_seed(0)
    x = torch.randn(240, 4)
    y = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 0.5).long()
    network = Net()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(150):
        loss = F.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval(), TensorDataset(x, y)


def test_intervention_is_measured_where_it_is_named_with_labels_from_elsewhere():
    network, data = trained()
    usual = measured()
    assert usual.table["intervention"].isna().all()
    held_out = [(inputs, (labels + 1) % 3) for inputs, labels in loader()]
    asked = {"signals": ["weights", "intervention"], "by": "intervention"}
    ours, theirs = (
        pruning.importance(network, loader(), nn.CrossEntropyLoss(), labelled=labelled, **asked)
        for labelled in (None, held_out)
    )
    assert ours.by == "intervention"
    assert ours.table["intervention"].notna().all()
    assert not ours.table["intervention"].equals(theirs.table["intervention"])
    model = pruning.adapt(network, data[:2][0], loss=nn.CrossEntropyLoss())
    read = [*loader()]
    expected = pruning.intervention(model, held_out, held_out, pruning.Intervention(batches=100), trained=read)
    np.testing.assert_allclose(theirs.table["intervention"], expected["importance"], atol=1e-7)
    ranked = ours.table[ours.table["layer"] == "one"].nlargest(12, "intervention")["neuron"]
    assert sorted(ranked) == ours.keep(0.5)["one"].tolist()


def loader(**how: Any) -> DataLoader[Any]:
    return DataLoader(trained()[1], batch_size=24, **how)


@cache
def measured() -> Any:
    network, data = trained()
    return pruning.importance(pruning.discover(network, data[:2][0]), loader(), nn.CrossEntropyLoss())


def test_six_lines_make_a_smaller_network_that_says_what_it_is():
    network, data = trained()
    net, x, loss = network, data[:2][0], nn.CrossEntropyLoss()
    found = pruning.discover(net, x)
    importance = pruning.importance(found, loader(), loss)
    smaller = pruning.prune(found, importance, keep=0.5, repair="ridge", data=loader())
    before = pruning.evaluate(smaller, loader())
    pruning.finetune(smaller, loader(), loss, epochs=2, learning_rate=5e-3)
    assert sum(smaller.widths()) == 15
    assert pruning.evaluate(smaller, loader()).mean < before.mean < pruning.loss_of(cut_by_fused(), loader()).mean
    assert isinstance(smaller.module, Net)
    assert "importance of 30 neurons by `surgeon`\nFisher information: targets drawn from a categorical" in str(
        importance
    )
    assert re.search(r"^neurons +30 +15 +50%$", str(smaller), re.MULTILINE)
    assert "accuracy" in str(before)
    assert "perplexity" in str(before)


def cut_by_fused() -> Any:
    return pruning.prune(measured().model, measured(), keep=0.5, repair="none", scope="layer")


def test_a_plain_network_is_found_by_the_way():
    network, _ = trained()
    found = pruning.importance(network, loader(), nn.CrossEntropyLoss())
    pd.testing.assert_frame_equal(found.table, measured().table)
    assert set(found.table.columns) >= {"fused", "surgeon", "hessian"}


def test_the_scope_that_leaves_outputs_closer_is_taken_and_both_distances_are_reported():
    model = measured().model
    smaller = pruning.prune(model, measured(), keep=0.4)
    each = {s: pruning.prune(model, measured(), keep=0.4, scope=s) for s in ("layer", "absolute")}
    assert smaller.report.apart == {s: m.report.apart[s] for s, m in each.items()}
    assert smaller.report.scope == min(smaller.report.apart, key=smaller.report.apart.__getitem__)
    with torch.no_grad():
        for scope, other in each.items():
            shares = [model.module(x).log_softmax(1) for x, _ in loader()]
            ours = [other.module(x).log_softmax(1) for x, _ in loader()]
            apart_by_hand = torch.stack(
                [F.kl_div(o, s, log_target=True, reduction="batchmean") for o, s in zip(ours, shares, strict=True)]
            )
            assert apart_by_hand.mean().item() == pytest.approx(smaller.report.apart[scope], rel=1e-4)
    assert apart(model, model, measured().data) == 0


def test_labels_without_a_loss_are_left_alone():
    found = pruning.importance(trained()[0], loader())
    alone = pruning.importance(trained()[0], [x for x, _ in loader()])
    pd.testing.assert_frame_equal(found.table, alone.table)
    assert found.left_out["hessian"] == "it needs a loss, and there is none"


def test_imitation_brings_outputs_still_closer_without_labels():
    alone = [x for x, _ in loader()]
    smaller = pruning.prune(measured().model, measured(), keep=0.3, repair="imitate", data=alone)
    closest = min(value for scope, value in smaller.report.apart.items() if scope != "imitated")
    assert smaller.report.apart["imitated"] < closest
    assert "imitated" in str(smaller)


def test_inputs_alone_are_enough_to_prune_and_repair():
    network, _ = trained()
    alone = [x for x, _ in loader()]
    found = pruning.importance(network, alone)
    assert found.by == "surgeon"
    assert set(found.left_out) == {"hessian", "gradients"}
    assert "not measured: hessian, because it needs targets, and the batches have none" in str(found)
    assert "targets drawn from a Gaussian distribution" in str(found)
    repaired, cut = (pruning.prune(network, found, keep=0.5, repair=repair, data=alone) for repair in ("ridge", "none"))
    assert min(repaired.report.apart.values()) < min(cut.report.apart.values())
    assert isinstance(next(iter(found.data)).targets, Unlabelled)
    with pytest.raises(ValueError, match="Expected a loss, got none; give `loss`"):
        pruning.finetune(repaired, alone)
    with pytest.raises(ValueError, match="Expected targets for the signal 'hessian', got batches of inputs alone"):
        pruning.importance(network, alone, signals=["hessian"])


def test_a_loader_that_shuffles_is_read_in_the_same_order_for_the_same_seed_and_draws_nothing():
    network, _ = trained()
    shuffled = loader(shuffle=True)
    before = torch.get_rng_state()
    tables = [pruning.importance(network, shuffled, nn.CrossEntropyLoss(), batches=4, seed=s).table for s in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert not tables[0]["hessian"].equals(tables[2]["hessian"])


def test_a_loader_that_shuffles_is_read_in_one_order_however_often():
    pairs = pruning.importance(trained()[0], loader(shuffle=True), nn.CrossEntropyLoss(), signals=["weights"]).data
    first, second = ([pair.targets for pair in pairs] for _ in range(2))
    assert all(map(torch.equal, first, second))
    assert not torch.equal(torch.cat(first), torch.cat([y for _, y in loader()]))


def test_the_loss_that_a_network_was_taught_is_its_own_afterwards():
    alone = [x for x, _ in loader()]
    smaller = pruning.prune(trained()[0], pruning.importance(trained()[0], alone, signals=["weights"]))
    pruning.finetune(smaller, loader(), nn.CrossEntropyLoss(), epochs=1)
    assert pruning.evaluate(smaller, loader()).metrics["accuracy"] > 0.3


def test_data_that_end_after_once_are_kept_as_far_as_they_are_used():
    def stream() -> Iterator[Any]:
        yield from loader()

    found = pruning.importance(trained()[0], stream(), nn.CrossEntropyLoss(), batches=10)
    pd.testing.assert_frame_equal(found.table, measured().table)


@pytest.mark.parametrize("most", [KEPT, 4000])
def test_a_loader_with_workers_is_read_once_and_its_order_is_that_of_one_without(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    readings = []

    class Loader(DataLoader[Any]):
        def __iter__(self) -> Any:
            readings.append(self.num_workers)
            self.num_workers = 0  # which would only take time
            batches = [*super().__iter__()]
            self.num_workers = readings[-1]
            return iter(batches)

    monkeypatch.setattr("pruning.steps.given.KEPT", most)
    tables = []
    for workers in (0, 2):
        readings.clear()
        data = Loader(trained()[1], batch_size=24, shuffle=True, num_workers=workers)
        found = pruning.importance(trained()[0], data, nn.CrossEntropyLoss(), signals=["gradients", "surgeon"])
        tables.append(found.table)
        before = len(readings)
        pruning.prune(trained()[0], found, data=data)
    assert (before, len(readings)) == (1, 2) if most == KEPT else before > 1
    pd.testing.assert_frame_equal(*tables)


def test_shares_may_be_of_layers_and_others_stay_whole():
    smaller = pruning.prune(measured().model, measured(), keep={"one": 0.25})
    assert smaller.widths() == (6, 6)
    assert pruning.prune(measured().model, measured(), keep=0.5, layers=["two"]).widths() == (24, 3)
    assert pruning.prune(measured().model, measured(), keep=0.5, multiple=4).widths()[0] % 4 == 0


def test_what_is_kept_makes_the_same_network_by_select():
    smaller = pruning.prune(measured().model, measured(), keep=0.5, repair="none")
    expected = select(measured().model, smaller.report.keep)
    x = trained()[1][:9][0]
    assert torch.equal(smaller(x), expected(x))


def test_pictures_of_importance_show_what_there_is_of_each_layer():
    found = measured()
    picture = found.plot(keep=0.5)
    assert [axes.get_ylabel().split("\n")[:2] for axes in picture.axes[:: len(picture.axes) // 2]] == [
        ["one", "12 of 24 kept"],
        ["two", "3 of 6 kept"],
    ]
    assert [axes.get_title() for axes in found.plot(by="fused").axes] == ["one\n24 neurons", "two\n6 neurons"]
    assert [axes.get_title() for axes in found.plot(keep={"two": torch.arange(2)}, by=["fused"]).axes] == [
        "one\n24 of 24 kept",
        "two\n2 of 6 kept",
    ]
    assert found.plot("correlations", by=["hessian", "fused"]).axes[0].texts[0].get_text()
    assert "two: all 6 neurons" in [axes.get_title() for axes in found.plot("cooperation", 0.5).axes]
    with pytest.raises(ValueError, match=r"Unknown importance 'size'; known: "):
        found.plot(by="size")
    with pytest.raises(ValueError, match=r"Unknown picture 'grpah'; known: \['importance', 'correlations'"):
        found.plot("grpah")


def test_errors_by_share_are_the_losses_above_the_dense_networks():
    found = measured()
    errors = errors_by_share(found, [0.5]).set_index(["phase", "retain"])
    for phase, repair in (("removed", "none"), ("repaired", "ridge")):
        smaller = pruning.prune(found.model, found, 0.5, repair=repair)
        losses = [
            [F.cross_entropy(model(x), y).item() for x, y in loader()] for model in (smaller, found.model.decoupled())
        ]
        differences = np.subtract(*losses)
        assert errors.loc[(phase, 0.5), "error"] == pytest.approx(differences.mean(), abs=1e-6)
        spread = differences.std(ddof=1) / np.sqrt(len(differences))
        assert errors.loc[(phase, 0.5), "standard_error"] == pytest.approx(spread, rel=1e-4)
    axes = found.plot("error", shares=[0.5, 0.25]).axes[0]
    assert axes.get_ylabel() == "loss above the dense network's, nat per target"
    assert axes.containers[0].lines[0].get_xdata().tolist() == [0.25, 0.5, 1.0]


def test_without_a_loss_errors_by_share_are_distances_of_outputs():
    found = pruning.importance(trained()[0], [trained()[1][:24][0], trained()[1][24:48][0]])
    axes = found.plot("error", shares=[0.5]).axes[0]
    assert axes.get_ylabel() == "distance of outputs from the dense network's"
    assert axes.containers[0].lines[0].get_ydata()[0] > 0


@pytest.mark.parametrize("bags", [True, False])
def test_criteria_of_one_derivative_are_measured_where_a_second_cannot_be_had(bags: bool) -> None:
    def at_nought(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs, targets) + (outputs[:, None] - outputs[None]).norm(dim=-1).square().mean()

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    loss: Any = nn.CrossEntropyLoss() if bags else at_nought
    batches = [(torch.randn(8, 4), torch.arange(8) % 3) for _ in range(4)]
    if bags:
        network[0], batches = nn.EmbeddingBag(9, 6), [(x.mul(9).long() % 9, y) for x, y in batches]
    found = pruning.importance(network, batches, loss, signals=["weights"], by="taylor_first")
    assert found.left_out == {"grasp": ONCE if bags else NOT_FINITE}
    assert found.table["grasp"].isna().all()
    assert np.isfinite(found.table[[name for name in CRITERIA if name != "grasp"]]).all(axis=None)
    assert (found.table["taylor_first"] > 0).all()
    with pytest.raises(ValueError, match=r"'grasp' to choose by, got none: (PyTorch|its second derivatives)"):
        pruning.importance(network, batches, loss, signals=["weights"], by="grasp")


def test_a_loss_that_is_differentiated_once_alone_leaves_out_what_needs_it_twice():
    def spoken(outputs: torch.Tensor, targets: Any) -> torch.Tensor:
        return F.ctc_loss(outputs, *targets)  # by another name than PyTorch's, so that it is no CTC to anybody

    batches = [(x, SPOKEN, LENGTHS, SIZES) for x in LONG]
    found = pruning.importance(Speech().double(), batches, spoken, split=lambda batch: (batch[0], batch[1:]))
    assert found.left_out == {"hessian": "PyTorch cannot differentiate the network and its loss twice"}
    assert found.table["fused"].notna().all()
    assert "not measured: hessian, because PyTorch cannot differentiate the network and" in str(found)


def test_a_function_marked_once_differentiable_leaves_out_second_derivatives_and_no_zeros_stand_for_them():
    class Bent(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(values.tanh())
            return values.tanh()

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, slopes: torch.Tensor) -> torch.Tensor:
            return slopes * (1 - ctx.saved_tensors[0] ** 2)

    class Bend(nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return Bent.apply(values)

    batches = [(torch.randn(8, 4), torch.arange(8) % 3) for _ in range(4)]
    network = nn.Sequential(nn.Linear(4, 6), Bend(), nn.Linear(6, 3))
    found = pruning.importance(network, batches, nn.CrossEntropyLoss(), signals=["weights", "hessian", "criteria"])
    assert found.left_out == {"hessian": ONCE, "grasp": ONCE}
    assert found.table[["hessian", "grasp"]].isna().all(axis=None)
    assert (found.table["taylor_first"] > 0).all()


def test_a_function_whose_derivative_writes_over_what_it_needs_leaves_out_second_derivatives():
    class Bent(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(1 - values.tanh() ** 2)
            return values.tanh()

        @staticmethod
        def backward(ctx: Any, slopes: torch.Tensor) -> torch.Tensor:
            (room,) = ctx.saved_tensors
            found = slopes * room
            room.zero_()  # as scans do that need the memory
            return found

    class Bend(nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return Bent.apply(values)

    batches = [(torch.randn(8, 4), torch.arange(8) % 3) for _ in range(4)]
    network = nn.Sequential(nn.Linear(4, 6), Bend(), nn.Linear(6, 3))
    found = pruning.importance(network, batches, nn.CrossEntropyLoss(), signals=["gradients", "hessian"])
    assert found.left_out == {"hessian": ONCE}
    assert found.table["gradients"].notna().all()


def test_a_loss_with_a_distance_of_each_example_to_itself_leaves_out_the_hessian_alone():
    def contrastive(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        distances = (outputs[:, None] - outputs[None]).norm(dim=-1)
        alike = (labels[:, None] == labels[None]).to(distances)
        return (alike * distances**2 + (1 - alike) * F.relu(1 - distances) ** 2).mean()

    found = pruning.importance(trained()[0], [trained()[1][:24], trained()[1][24:48]], contrastive)
    assert list(found.left_out) == ["hessian"]
    assert "second derivatives are not finite" in found.left_out["hessian"]
    assert found.table[found.by].notna().all()


class Carrying(nn.Module):
    """A recurrent language model as PyTorch's example has it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.rnn, self.out = nn.Embedding(9, 5), nn.GRU(5, 8), nn.Linear(8, 9)

    def forward(self, tokens: torch.Tensor, state: torch.Tensor) -> Any:
        outputs, state = self.rnn(self.embedding(tokens), state)
        return self.out(outputs), state

    def init_hidden(self, batch: int) -> torch.Tensor:
        return torch.zeros(1, batch, 8)


def test_a_network_with_a_state_is_found_with_it_and_read_without():
    torch.manual_seed(0)
    network = Carrying()
    tokens = torch.arange(60).view(20, 3) % 9
    data = [(tokens[i : i + 5], tokens[i + 1 : i + 6]) for i in (0, 5, 10)]
    found = pruning.discover(network, (data[0][0], network.init_hidden(3)))
    importance = pruning.importance(found, data, nn.CrossEntropyLoss())
    assert importance.model.example_dim == 1
    smaller = pruning.prune(found, importance)
    assert sum(smaller.widths()) < sum(layer.width for layer in found.layers())
    pruning.finetune(smaller, data, epochs=1)
    assert np.isfinite(pruning.evaluate(smaller, data).perplexity)


def test_a_state_is_known_by_its_name_where_forward_takes_more_than_it():
    class Returning(Carrying):
        def forward(self, tokens: torch.Tensor, hidden: torch.Tensor, return_h: bool = False) -> Any:
            outputs, hidden = super().forward(tokens, hidden)
            return (outputs, hidden, outputs) if return_h else (outputs, hidden)

    network, tokens = Returning(), torch.arange(15).view(5, 3) % 9
    model = measurable(pruning.discover(network, (tokens, network.init_hidden(3))), [(tokens, tokens)], None)
    assert model.use.inputs is tokens


def test_a_language_model_of_the_library_goes_the_same_way():
    model = tiny(family="lstm")
    windows = Windows(text(16 * 12), first=0, batch=3, bptt=4)
    importance = pruning.importance(model, windows)
    smaller = pruning.prune(model, importance, keep=0.5)
    assert set(smaller.report.apart) == {"layer", "absolute"}
    pruning.finetune(smaller, windows, epochs=1)
    assert pruning.evaluate(smaller, windows).perplexity > 1


def test_dictionaries_say_themselves_what_is_what():
    network, _ = trained()
    batches = [{"x": x, "labels": y, "name": "a"} for x, y in loader()]
    found = pruning.importance(network, batches, nn.CrossEntropyLoss())
    pd.testing.assert_frame_equal(found.table, measured().table)


def test_a_teacher_and_validation_batches_may_stand_beside_the_training():
    network, _ = trained()
    smaller = pruning.prune(network, measured())
    batches = list(loader())
    tuned = pruning.finetune(smaller, batches[:6], valid=batches[6:], teacher=network, epochs=2, learning_rate=0.01)
    assert tuned is smaller
    assert pruning.evaluate(smaller, batches[6:]).mean == pytest.approx(smaller.history["valid_loss"].min(), rel=1e-5)


REFUSED = {
    "an unknown signal": (
        lambda: pruning.importance(trained()[0], loader(), nn.CrossEntropyLoss(), signals=["hesian"]),
        r"Unknown signal 'hesian'; known: \['weights'",
    ),
    "an unknown column": (
        lambda: pruning.importance(trained()[0], loader(), nn.CrossEntropyLoss(), by="size", signals=["weights"]),
        "Unknown importance 'size'; known: ",
    ),
    "an unknown scope": (
        lambda: pruning.prune(None, measured(), scope="best"),
        r"Unknown scope 'best'; known: \['measured'",
    ),
    "an unknown repair": (
        lambda: pruning.prune(None, measured(), repair="glue"),
        r"Unknown repair 'glue'; known: \['none'",
    ),
    "an unknown layer": (
        lambda: pruning.prune(measured().model, measured(), layers=["three"]),
        r"Unknown layer 'three'; known: \['one', 'two'\].",
    ),
    "a share of all": (
        lambda: pruning.prune(measured().model, measured(), keep=50),
        r"Expected a share to keep in \(0, 1\], got 50.",
    ),
    "a word": (
        lambda: pruning.prune(measured().model, measured(), keep="half"),
        "Expected a share to keep, such as 0.5, or shares by layer, got str",
    ),
    "nothing that can be pruned": (
        lambda: pruning.importance(
            pruning.discover(nn.Linear(4, 3), torch.ones(2, 4)), loader(), nn.CrossEntropyLoss()
        ),
        "Expected a network with a layer that can be pruned, got none; print",
    ),
    "examples one by one": (
        lambda: pruning.importance(measured().model, trained()[1]),
        r"such as a DataLoader or a list, got TensorDataset; give DataLoader\(TensorDataset, batch_size=32\).",
    ),
    "a signal without a loss": (
        lambda: pruning.importance(trained()[0], loader(), signals=["gradients"]),
        "Expected a loss for the signal 'gradients', got none; give `loss`.",
    ),
    "a table": (
        lambda: pruning.prune(None, measured().table),
        "Expected what `pruning.importance` gave, got DataFrame.",
    ),
    "another network": (
        lambda: pruning.prune(
            pruning.discover(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), torch.ones(2, 4)), measured()
        ),
        "Expected the network whose importance was measured, with the layers .* measure its own importance.",
    ),
    "no network": (
        lambda: pruning.importance("net", loader()),
        "Expected a network, or what `pruning.discover` found in one, got str.",
    ),
    "no batch": (lambda: pruning.importance(measured().model, []), "Expected at least one batch, got none."),
    "one batch": (
        lambda: pruning.importance(measured().model, list(loader())[:1]),
        "Expected at least two batches for activations",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_with_what_can(case):
    act, sentence = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=sentence):
        act()


def test_pairs_that_were_taken_apart_stay_so():
    (first, *_) = measured().data
    assert isinstance(first, Pair)
    assert pruning.loss_of(measured().model, list(measured().data)) == pruning.loss_of(measured().model, loader())


def test_a_recipe_and_a_teacher_with_settings_of_their_own_are_taken() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))
    data = [(x := torch.randn(8, 2), x[:, :1]) for _ in range(4)]
    recipe = pruning.Recipe(
        epochs=2, learning_rate=0.01, portion=0.5, warmup=0.1, weight_decay=0.0, clip=1.0, patience=2
    )
    teacher = pruning.Teacher(model=network, share=0.9, temperature=2.0)  # type: ignore[arg-type]
    found = [pruning.discover(network, data[0][0]) for _ in range(2)]
    learnt = pruning.finetune(found[0], data, nn.MSELoss(), recipe=recipe, teacher=teacher)
    assert learnt.history["step"].max() == 4
    longer = pruning.finetune(found[1], data, nn.MSELoss(), recipe=recipe, epochs=3)
    assert longer.history["step"].max() == 6


def test_wide_layers_are_measured_and_repaired_by_few_directions_where_asked():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 24), nn.Tanh(), nn.Linear(24, 3))
    data = [(torch.randn(16, 3), torch.arange(16) % 3) for _ in range(4)]
    found = pruning.discover(network, data[0][0])
    importance = pruning.importance(found, data, nn.CrossEntropyLoss(), rank=4)
    assert {type(group).__name__ for groups in importance.covariances.values() for group in groups} == {"Sketch"}
    assert importance.by == "surgeon"
    smaller = pruning.prune(found, importance, 0.5)
    apart = [(smaller(inputs) - network(inputs)).abs().max().item() for inputs, _ in data]
    cut = pruning.prune(found, importance, 0.5, repair="none")
    assert max(apart) < max((cut(inputs) - network(inputs)).abs().max().item() for inputs, _ in data)


@pytest.mark.parametrize("by", ["taylor_first", "magnitude_out", "hessian"])
def test_what_is_chosen_by_is_measured(by):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3))
    data = [(torch.randn(8, 2), torch.arange(8) % 3) for _ in range(3)]
    importance = pruning.importance(network, data, nn.CrossEntropyLoss(), signals=["weights"], by=by)
    kept = importance.keep(0.5)["0"]
    assert torch.equal(kept, torch.tensor(importance.table[by].to_numpy()).argsort(descending=True)[:3].sort().values)


def test_a_network_as_it_was_given_is_pruned_with_the_weights_that_it_has_now():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3))
    data = [(torch.randn(8, 2), torch.arange(8) % 3) for _ in range(3)]
    importance = pruning.importance(network, data, nn.CrossEntropyLoss(), signals=["weights"])
    with torch.no_grad():
        network[2].bias += 1.0
    smaller = pruning.prune(network, importance, repair="none")
    assert torch.equal(smaller.module[2].bias, network[2].bias)


class Uneven(nn.Module):
    """A layer that is normalised, and so not exact, before one that is."""

    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two, self.out = nn.Linear(2, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, inputs):
        return self.out(self.two(self.norm(self.one(inputs).tanh())).tanh())


def test_a_budget_is_met_by_the_layers_that_neurons_may_be_taken_from():
    torch.manual_seed(0)
    data = [(torch.randn(8, 2), torch.arange(8) % 3) for _ in range(3)]
    importance = pruning.importance(Uneven(), data, nn.CrossEntropyLoss(), signals=["weights"])
    assert [layer.exact for layer in importance.model.layers()] == [False, True]
    smaller = pruning.prune(importance.model, importance, budget={"kind": "neurons", "value": 9}, repair="none")
    assert smaller.widths() == (6, 3)
    assert list(importance.keep(1.0, budget={"kind": "neurons", "value": 9})) == ["two"]


class Holding(nn.Module):
    """Keeps what Python cannot copy."""

    def __init__(self):
        super().__init__()
        self.inner, self.lock = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3)), threading.Lock()
        self.kept = {"batches": (number for number in range(3)), "calls": [0]}

    def forward(self, inputs):
        with self.lock:
            return self.inner(inputs)


def test_a_network_shares_with_its_copies_what_cannot_be_copied(tmp_path):
    torch.manual_seed(0)
    network, data = Holding(), [(torch.randn(8, 2), torch.arange(8) % 3) for _ in range(3)]
    importance = pruning.importance(network, data, nn.CrossEntropyLoss(), signals=["weights"])
    smaller = pruning.prune(network, importance, repair="imitate", budget={"kind": "parameters", "value": 25})
    assert smaller.module.lock is network.lock
    assert smaller.module.inner[0] is not network.inner[0]
    pruning.finetune(smaller, data, epochs=1)
    pruning.save(smaller, tmp_path)
    assert torch.equal(pruning.restore(Holding(), tmp_path)(data[0][0]), smaller.module(data[0][0]))


class Graph(nn.Module):
    """Reads neighbours by a sparse matrix."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(2, 6), nn.Linear(6, 3)

    def forward(self, nodes, edges):
        return self.two(torch.spmm(edges, self.one(torch.spmm(edges, nodes)).relu()))


def test_a_sparse_matrix_may_be_an_input():
    torch.manual_seed(0)
    edges = (torch.rand(8, 8) < 0.4).float().to_sparse()
    data = [((torch.randn(8, 2), edges), torch.arange(8) % 3) for _ in range(3)]
    importance = pruning.importance(Graph(), data, nn.CrossEntropyLoss(), signals=["surgeon"])
    assert pruning.prune(importance.model, importance, repair="ridge").widths() == (3,)


class Losing(nn.Module):
    """Gives (loss, logits) where it is given labels, as models of `transformers` did before they gave names."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3))

    def forward(self, inputs, labels=None):
        logits = self.inner(inputs)
        return (logits,) if labels is None else (nn.functional.cross_entropy(logits, labels), logits)


def test_a_loss_before_the_logits_is_no_output():
    torch.manual_seed(0)
    network, data = Losing(), [(torch.randn(8, 2), torch.arange(8) % 3) for _ in range(3)]
    found = pruning.discover(network, data[0][0])
    importance = pruning.importance(found, data, signals=["surgeon", "gradients"])
    smaller = pruning.prune(found, importance, repair="ridge")
    expected = sum(network(*batch)[0].item() for batch in data) / 3
    assert pruning.evaluate(found, data).mean == pytest.approx(expected)
    assert smaller.report.apart["layer"] > 0


class Named(NamedTuple):
    """A batch in another order."""

    target: torch.Tensor
    image: torch.Tensor


FORMS = {
    "an image by another name, beside its number": lambda x, y: {"image": x, "label": y, "id": y, "path": ["a", "b"]},
    "a named tuple in another order": lambda x, y: Named(y, x),
    "class numbers of 32 bits": lambda x, y: (x, y.int()),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_may_have(form):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3))
    pairs = [(torch.randn(8, 2), torch.arange(8) % 3) for _ in range(2)]
    model = pruning.adapt(network, pairs[0][0], loss=nn.CrossEntropyLoss())
    found, expected = (pruning.evaluate(model, data) for data in ([FORMS[form](*pair) for pair in pairs], pairs))
    assert found == expected
