"""Widths with which a network's own code does something else, for it compares them as it runs, or stops."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from pruning import importance, prune
from pruning.core.neurons import mask, select
from pruning.discovery import discover
from pruning.saving import restore, save
from tests.foreign import floats


class Skipping(nn.Module):
    """Adds what it is given where that is as wide as what it gives, as its code sees in each call."""

    def __init__(self, entering: int, leaving: int) -> None:
        super().__init__()
        self.body, self.skip = nn.Linear(entering, leaving), nn.Linear(entering, leaving)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.body(inputs).tanh() + (inputs if inputs.shape[1] == self.body.out_features else self.skip(inputs))


class Adding(Skipping):
    """Adds it there, and nothing else elsewhere: it has no second path, so that its code fails where it takes one."""

    def __init__(self, entering: int, leaving: int) -> None:
        super().__init__(entering, leaving)
        del self.skip

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.body(inputs).tanh() + (self.skip(inputs) if inputs.shape[1] == self.body.out_features else 0)


def unseen(width: int) -> int:
    """Return the width as a plain number: the place of a list is one that tells of nothing."""
    return [*range(100)][width]


ANOTHER = "its model's own code computes something else"


def removed_is_masked(found, inputs):
    """Return with which widths of each layer `select` is refused; with all others, removed must be masked."""
    refused = {}
    for layer in found.layers():
        for width in range(1, layer.width + 1):
            keep = {layer.name: torch.arange(width).flip(0)}
            if width in layer.avoided:
                with pytest.raises(ValueError, match=f"in layer '{layer.name}' than {width}, with which"):
                    select(found, keep)
                refused.setdefault(layer.name, []).append(width)
            else:
                torch.testing.assert_close(select(found, keep)(inputs), mask(found, keep)(inputs), rtol=0, atol=1e-10)
    return refused


def test_the_wider_of_two_layers_stays_the_wider_where_their_widths_are_compared_in_each_call():
    network, inputs = nn.Sequential(nn.Linear(3, 5), Skipping(5, 8), Skipping(8, 4), nn.Linear(4, 2)), floats(2, 3)
    found = discover(network.double(), inputs)
    assert [(layer.name, layer.width) for layer in found.layers()] == [("0", 5), ("1.body", 8), ("2.body", 4)]
    assert removed_is_masked(found, inputs) == {"1.body": [1, 2, 3, 4, 5]}
    assert "  1.body: 1 to 5" in str(found)
    for widths in itertools.product((1, 4, 5), (6, 8), (1, 4)):
        keep = {layer.name: torch.arange(left) for layer, left in zip(found.layers(), widths, strict=True)}
        torch.testing.assert_close(select(found, keep)(inputs), mask(found, keep)(inputs))


def test_a_layer_stays_that_is_no_more_than_one_neuron_wider_than_another_with_which_it_is_compared():
    network = nn.Sequential(nn.Linear(3, 5), Skipping(5, 6), nn.Linear(6, 2))
    found = discover(network.double(), floats(2, 3))
    assert [layer.name for layer in found.layers()] == ["0"]
    assert found.unprunable["1.body"] == f"where it is as wide as 0, {ANOTHER}"
    assert "let the code decide that once" in str(found)


def test_a_layer_steps_over_the_width_of_the_inputs_with_which_it_is_compared():
    inputs = floats(2, 4)
    found = discover(nn.Sequential(Skipping(4, 6), nn.ReLU(), nn.Linear(6, 2)).double(), inputs)
    assert removed_is_masked(found, inputs) == {"0.body": [4]}


def test_the_line_is_said_that_fails_where_two_widths_are_equal():
    found = discover(nn.Sequential(nn.Linear(3, 5), Adding(5, 6), nn.Linear(6, 2)).double(), floats(2, 3))
    assert [layer.name for layer in found.layers()] == ["0"]
    assert (
        "where it is as wide as 0, its model's own code counts on its width (test_comparing"
        in found.unprunable["1.body"]
    )


class Scaled(nn.Module):
    """Takes twice as much of its neurons where its code finds a width to be such."""

    def __init__(self, asked) -> None:
        super().__init__()
        self.enter, self.leave, self.asked = nn.Linear(20, 16), nn.Linear(16, 30), asked

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        hidden = self.enter(steps).relu()
        return self.leave(hidden * (2 if self.asked(hidden) else 1))


ASKED = {
    "at least": (lambda hidden: hidden.shape[1] >= 3, {1, 2}),
    "nearly all": (lambda hidden: hidden.size(-1) >= 14, {*range(1, 14)}),
    "one": (lambda hidden: hidden.shape[1] == 7, {7}),
    "one of several": (lambda hidden: hidden.shape[1] in (7, 11), {7, 11}),
    "another": (lambda hidden: hidden.shape[1] != 15, {15}),
    "a multiple": (lambda hidden: hidden.shape[1] % 8 == 0, {*range(1, 16)} - {8}),
    "no rest": (lambda hidden: not hidden.shape[1] % 8, {*range(1, 16)} - {8}),
    "a part": (lambda hidden: hidden.shape[1] // 3 == 2, {6, 7, 8}),
    "half": (lambda hidden: hidden.shape[1] / 2 == 3.5, {7}),
    "a root": (lambda hidden: hidden.size(1) ** 0.5 == 3, {9}),
    "all numbers": (lambda hidden: hidden.numel() == 28, {7}),
    "a shape": (lambda hidden: hidden.shape == (4, 7), {7}),
    "a member": (lambda hidden: hidden.shape[1] in {7, 11}, {7, 11}),
    "a key": (lambda hidden: {(4, 7): True}.get(tuple(hidden.shape)), {7}),
    "words": (lambda hidden: str(hidden.shape[1]) == "7" or f"{hidden.shape[1]}" == "9", {7, 9}),
    "a function": (lambda hidden: math.sqrt(hidden.shape[1]) == 3, {9}),
    "rounded": (lambda hidden: round(hidden.shape[1] / 3) == 3, {8, 9, 10}),
    "a length": (lambda hidden: len(hidden.T) == 7, {7}),
    "as given": (lambda hidden: hidden.shape == hidden.sum().new_zeros(4, 9).shape, {9}),
}


@pytest.mark.parametrize("which", ASKED)
def test_the_widths_are_stepped_over_for_which_code_is_seen_to_decide_otherwise(which):
    asked, avoided = ASKED[which]
    inputs = floats(4, 20)
    found = discover(Scaled(asked).double().eval(), inputs)
    assert {*removed_is_masked(found, inputs)["enter"]} == avoided


def test_a_width_that_is_a_factor_and_a_word_is_stepped_over_where_the_word_says_so():
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = nn.Linear(4, 16), nn.Linear(4, 16), nn.Linear(4, 3)

        def forward(self, steps: torch.Tensor) -> torch.Tensor:
            query, key = self.query(steps), self.key(steps)
            weights = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)
            return weights @ self.value(steps) * (2 if str(query.shape[-1]) == "9" else 1)

    found = discover(Attending().double(), floats(2, 5, 4))
    assert {layer.name: layer.avoided for layer in found.layers()} == {"query": (9,)}


STOPPING = {
    "a part": (lambda hidden: hidden + hidden.new_zeros(1, hidden.shape[1] - 3)[:, :1], {1, 2, 3}),
    "a dimension that goes with the last of several": (lambda hidden: hidden.squeeze() * 1, {1}),
    "a spread": (lambda hidden: hidden / (1 + hidden.std(1, keepdim=True)), {1}),
    "one number of one example": (lambda hidden: nn.functional.group_norm(hidden[..., None, None], 1)[..., 0, 0], {1}),
}


@pytest.mark.parametrize("which", STOPPING)
def test_the_widths_are_stepped_over_with_which_code_stops_or_gives_no_numbers(which):
    class Stopping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(3, 12), nn.Linear(12, 2)

        def forward(self, steps: torch.Tensor) -> torch.Tensor:
            return self.leave(STOPPING[which][0](self.enter(steps)))

    found = discover(Stopping().double(), floats(4, 3))
    (layer,) = found.layers()
    assert {*layer.avoided} == STOPPING[which][1]
    smallest = select(found, {"enter": torch.arange(max(layer.avoided) + 1)})
    assert smallest(floats(1, 3)).isfinite().all()
    assert "does something else there, or stops" in " ".join(str(found).split())


def test_heads_of_which_code_takes_the_second_row_of_a_mask_are_never_a_single_one():
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = (nn.Linear(4, 9) for _ in range(3))
            self.leave = nn.Linear(9, 4)

        def forward(self, steps: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
            parts = (each(steps).unflatten(-1, (-1, 3)).transpose(1, 2) for each in (self.one, self.two, self.three))
            query, key, value = parts
            mask = steps.new_zeros(1, query.shape[1], 1, 5) + padding[:, None, None]
            heads = nn.functional.scaled_dot_product_attention(query, key, value, mask[:, 1:2])
            return steps + self.leave(heads.transpose(1, 2).flatten(2))

    (layer,) = discover(Heads().double(), (floats(2, 5, 4), floats(2, 5))).layers()
    assert (layer.kind, layer.width, layer.avoided) == ("head", 3, (1,))


def test_a_layer_stays_of_which_code_goes_one_way_with_all_neurons_alone():
    found = discover(Scaled(lambda hidden: hidden.shape[1] == 16).double().eval(), floats(4, 20))
    assert not found.layers()
    assert "computes something else" in found.unprunable["enter"]


def test_a_layer_stays_that_is_scaled_otherwise_where_it_is_narrow_and_nobody_sees_why():
    found = discover(Scaled(lambda hidden: unseen(hidden.shape[1]) >= 4).double().eval(), floats(4, 20))
    assert not found.layers()
    assert "where 2 of its neurons are left, its model's own code computes something else" in found.unprunable["enter"]


def test_layers_that_step_over_most_widths_stay_where_their_parts_fit_only_if_both_lose_as_many():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.leave = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(16, 2)

        def forward(self, steps: torch.Tensor) -> torch.Tensor:
            both = [self.one(steps).relu(), self.two(steps).tanh()]
            if any(part.shape[1] % 4 for part in both):
                both = [2 * part for part in both]
            first, second = torch.cat(both, 1).chunk(2, 1)
            return self.leave(torch.cat([first, -second], 1))

    assert not discover(Twice().double(), floats(2, 3)).layers()


@pytest.mark.parametrize("asked", [lambda one, two: one + 3 == two, lambda one, two: 2 * one < two])
def test_the_wider_of_two_layers_stays_where_their_widths_are_compared_otherwise_than_for_being_equal(asked):
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 7), nn.Linear(3, 9)
            self.leave, self.other = nn.Linear(7, 2), nn.Linear(9, 2)

        def forward(self, steps: torch.Tensor) -> torch.Tensor:
            one, two = self.one(steps).relu(), self.two(steps).tanh()
            return self.leave(one) * (2 if asked(one.shape[1], two.shape[1]) else 1) + self.other(two)

    inputs = floats(2, 3)
    found = discover(Beside().double(), inputs)
    assert [layer.name for layer in found.layers()] in (["one"], [])
    assert "its model" in found.unprunable["two"] or "the model" in found.unprunable["two"]
    removed_is_masked(found, inputs)


def test_avoided_widths_outlast_a_cut_and_a_folder(tmp_path):
    inputs = floats(4, 20)
    found = discover(Scaled(ASKED["one of several"][0]).double().eval(), inputs)
    once = select(found, {"enter": torch.arange(12)})
    assert [layer.avoided for layer in once.layers()] == [(7, 11)]
    with pytest.raises(ValueError, match=r"than 7, with which the network's own code.*; keep 8"):
        select(once, {"enter": torch.arange(7)})
    twice = select(once, {"enter": torch.arange(8)})
    assert removed_is_masked(twice, inputs) == {"enter": [7]}
    save(twice, tmp_path)
    torch.testing.assert_close(restore(Scaled(ASKED["one of several"][0]).double(), tmp_path)(inputs), twice(inputs))
    again = discover(twice.network, inputs)
    assert removed_is_masked(again, inputs) == {"enter": [7]}


def test_a_saved_plan_with_a_width_that_its_network_must_not_have_is_refused(tmp_path):
    found = discover(Scaled(ASKED["one"][0]).double().eval(), floats(4, 20))
    unheeding = [replace(layer, avoided=()) for layer in found.layers()]
    found._layers = unheeding
    smaller = select(found, {"enter": torch.arange(7)})
    smaller.origin = replace(smaller.origin, layers=tuple(replace(layer, avoided=(7,)) for layer in unheeding))
    save(smaller, tmp_path)
    with pytest.raises(ValueError, match=r"than 7, with which the network's own code.*; keep 8"):
        restore(Scaled(ASKED["one"][0]).double(), tmp_path)


def test_every_way_to_choose_neurons_steps_over_such_a_width():
    inputs = floats(4, 20)
    found = discover(Scaled(lambda hidden: hidden.shape[1] in (4, 8)).double().eval(), inputs)
    measured = importance(found, [(inputs, torch.arange(4))] * 2, nn.CrossEntropyLoss(), signals=["weights"])
    for scope, width in (("layer", 9), ("global", 7)):
        assert prune(found, measured, 0.5, scope=scope, repair="none").widths() == (width,)
    assert prune(found, measured, {"enter": 0.25}, repair="none").widths() == (5,)
    assert prune(found, measured, 0.5, scope="layer", multiple=4, repair="none").widths() == (12,)
    assert prune(found, measured, budget={"kind": "neurons", "value": 8}, repair="none").widths() == (7,)


class Firing(nn.Module):
    """Fires where a sum is above nearly nothing, by a factor that it computes with its width."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.middle, self.leave = nn.Linear(3, 12), nn.Linear(12, 8, bias=False), nn.Linear(8, 2)

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        hidden = self.enter(steps).relu()
        return self.leave((self.middle(hidden * hidden.shape[1] ** -0.5) > 1e-4).to(hidden))


@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_a_factor_stays_what_it_is_that_changes_no_spike_of_the_examples(kind):
    found = discover(Firing().to(kind).eval(), floats(2, 3).to(kind))
    assert [(layer.width, layer.avoided) for layer in found.layers()] == [(12, ()), (8, ())]
    assert [number.layer for number in found.numbers] == ["enter"]
    keep, inputs = {"enter": torch.arange(3)}, floats(64, 3).to(kind)
    heard = []
    for changed in (select(found, keep), mask(found, keep)):
        changed.network.middle.register_forward_hook(lambda *told: heard.append(told[-1]))
        changed(inputs)
    torch.testing.assert_close(*heard)


@pytest.mark.parametrize("beside", [False, True])
def test_a_layer_stays_that_is_equal_to_another_only_by_chance_where_something_else_comes(beside):
    class Some(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.leave = nn.Linear(4 if beside else 20, 16), nn.Linear(16, 4), nn.Linear(4, 30)
            self.two, self.leave = (nn.Identity(), nn.Linear(16, 30)) if beside else (self.two, self.leave)

        def forward(self, steps: torch.Tensor) -> torch.Tensor:
            hidden = self.one(steps).relu()
            return self.leave(self.two(hidden * (2 if unseen(hidden.shape[1]) in (4, 5) else 1)).tanh())

    found = discover(Some().double().eval(), floats(4, 4 if beside else 20))
    assert [layer.name for layer in found.layers()] == ([] if beside else ["two"])
    assert found.unprunable["one"] == f"where 4 of its neurons are left, {ANOTHER}"
