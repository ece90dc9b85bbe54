"""Neurons that no weights read, as they meet others in a product or a distance alone: both sides of it go together."""

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pruning
from pruning.core.hooks import record
from pruning.core.neurons import mask, select
from pruning.signals.gradients import gate_gradients
from tests.discovery.test_forms import Made, Network, answers, drawn
from tests.foreign import floats, tokens

UNREAD: dict[str, tuple[Callable[[], Made], dict[str, int], set[str]]] = {}
"""Form → how a network of it is made with its inputs, the widths of its layers, and which of them are not exact."""


def unread(layers: dict[str, int], inexact: set[str] = frozenset()) -> Callable[..., Any]:
    def known(make: Callable[[], Made]) -> Callable[[], Made]:
        UNREAD[make.__name__] = make, layers, set(inexact)
        return make

    return known


def tables(run: Callable[..., Any], **others: Any) -> Made:
    """Return a network of two embeddings, and which of their rows it is asked for."""
    return Network(run, users=nn.Embedding(11, 8), items=nn.Embedding(11, 8), **others), (tokens(6), tokens(7)[1:])


def towers(run: Callable[..., Any]) -> Made:
    def tower() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5))

    return Network(run, one=tower(), other=tower()), (floats(12, 3)[:6], floats(12, 3)[6:])


def attending(run: Callable[..., Any]) -> Made:
    parts = {"query": nn.Linear(3, 8), "key": nn.Linear(3, 8), "value": nn.Linear(3, 5), "out": nn.Linear(5, 2)}
    return Network(run, **parts), (floats(2, 4, 3),)


@unread({"users": 8})
def factors_multiplied_and_summed() -> Made:
    return tables(lambda s, users, items: (s.users(users) * s.items(items)).sum(-1))


@unread({"users": 8})
def factors_in_a_product_of_batches() -> Made:
    return tables(lambda s, users, items: torch.bmm(s.users(users)[:, None], s.items(items)[..., None]).squeeze())


@unread({"users": 8})
def factors_by_einsum() -> Made:
    return tables(lambda s, users, items: torch.einsum("bd,bd->b", s.users(users), s.items(items)))


@unread({"users": 8})
def factors_of_all_with_all() -> Made:
    return tables(lambda s, users, items: s.users(users) @ s.items(items).T)


@unread({"users": 8})
def factors_at_an_angle() -> Made:
    return tables(lambda s, users, items: F.cosine_similarity(s.users(users), s.items(items)))


@unread({"users": 8})
def factors_at_a_distance() -> Made:
    return tables(lambda s, users, items: F.pairwise_distance(s.users(users), s.items(items), eps=0.0))


@unread({"users": 8})
def factors_at_a_distance_each_from_each() -> Made:
    return tables(lambda s, users, items: torch.cdist(s.users(users), s.items(items)))


@unread({"users": 8})
def translations_between_factors() -> Made:
    run = lambda s, users, items: (s.users(users) + s.relation - s.items(items)).abs().sum(-1)  # noqa: E731
    return tables(run, relation=nn.Parameter(floats(8)))


@unread({"users": 4})
def factors_that_are_rotated_by_angles() -> Made:
    def run(self: Any, users: Tensor, items: Tensor) -> Tensor:
        (a, b), (c, d) = (self.users(part).chunk(2, -1) for part in (users, items))
        turn = self.turns(items)
        real, imaginary = a * turn.cos() - b * turn.sin() - c, a * turn.sin() + b * turn.cos() - d
        return torch.stack([real, imaginary]).norm(dim=0).sum(-1)

    return Network(run, users=nn.Embedding(11, 8), turns=nn.Embedding(11, 4)), (tokens(6), tokens(7)[1:])


@unread({"factors": 8})
def a_factorisation_machine() -> Made:
    def run(self: Any, fields: Tensor) -> Tensor:
        factors = self.factors(fields)
        return self.weights(fields).sum((1, 2)) + 0.5 * (factors.sum(1).square() - factors.square().sum(1)).sum(1)

    return Network(run, factors=nn.Embedding(11, 8), weights=nn.Embedding(11, 1)), (tokens(6, 3),)


@unread({"one.0": 6, "one.2": 5, "other.0": 6})
def two_towers_whose_directions_are_compared() -> Made:
    return towers(lambda s, a, b: F.normalize(s.one(a), dim=-1) @ F.normalize(s.other(b), dim=-1).T)


@unread({"one.0": 6, "one.2": 5})
def one_tower_for_both_sides() -> Made:
    return towers(lambda s, a, b: (s.one(a) - s.one(b)).square().sum(-1).sqrt())


@unread({"one.0": 6, "one.2": 5})
def a_decoder_of_a_graph() -> Made:
    return towers(lambda s, a, _: (s.one(a) @ s.one(a).T).sigmoid())


@unread({"query": 8, "value": 5})
def one_head_whose_code_reads_its_width() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        queries, keys = self.query(inputs), self.key(inputs)
        return self.out((queries @ keys.mT / math.sqrt(keys.shape[-1])).softmax(-1) @ self.value(inputs))

    return attending(run)


@unread({"values": 5, "asked0": 4, "asked1": 4})
def heads_of_one_query_and_key_each_that_one_line_scales_by_the_width_it_reads() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        values, heads = self.values(inputs), []
        for asked, keys in ((self.asked0, self.keys0), (self.asked1, self.keys1)):
            scores = asked(inputs) @ keys(inputs).mT
            heads.append((scores / keys(inputs).size(-1) ** 0.5).softmax(-1) @ values)
        return self.out((heads[0] + heads[1]) / 2)

    parts = {f"{name}{head}": nn.Linear(3, 4) for name in ("asked", "keys") for head in range(2)}
    return Network(run, values=nn.Linear(3, 5), **parts, out=nn.Linear(5, 2)), (floats(4, 5, 3),)


@unread({"query": 8, "value": 5})
def one_head_that_pytorch_scales() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        parts = self.query(inputs), self.key(inputs), self.value(inputs)
        return self.out(F.scaled_dot_product_attention(*parts, scale=None))

    return attending(run)


@unread({"all:0": 8, "all:16": 8})
def one_head_of_one_projection() -> Made:
    run = lambda s, x: s.out(F.scaled_dot_product_attention(*s.all(x).chunk(3, -1), is_causal=True))  # noqa: E731
    return Network(run, all=nn.Linear(3, 24), out=nn.Linear(8, 2)), (floats(2, 4, 3),)


@unread({"one": 6, "two": 6})
def one_head_of_neurons_that_are_read_besides() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = self.one(inputs)
        return self.out(self.two(F.scaled_dot_product_attention(hidden, hidden, hidden)))

    return Network(run, one=nn.Linear(3, 6), two=nn.Linear(6, 6), out=nn.Linear(6, 2)), (floats(2, 4, 3),)


@unread({"query": 6, "value": 5})
def places_of_an_image_that_attend_to_each_other() -> Made:
    def run(self: Any, image: Tensor) -> Tensor:
        queries, keys, values = (part(image).flatten(2) for part in (self.query, self.key, self.value))
        return self.out((values @ (queries.mT @ keys).softmax(-1).mT).mean(-1))

    parts = {"query": nn.Conv2d(3, 6, 1), "key": nn.Conv2d(3, 6, 1), "value": nn.Conv2d(3, 5, 1)}
    return Network(run, **parts, out=nn.Linear(5, 2)), (floats(2, 3, 3, 3),)


@unread({"features": 6}, {"features"})
def correlations_of_shifted_features() -> Made:
    def run(self: Any, one: Tensor, other: Tensor) -> Tensor:
        one, other = self.features(one), self.features(other)
        return self.out(torch.stack([(one * other.roll(step, 3)).mean(1) for step in range(3)], 1))

    parts = {"features": nn.Conv2d(3, 6, 3, padding=1), "out": nn.Conv2d(3, 2, 1)}
    return Network(run, **parts), (floats(4, 3, 4, 4)[:2], floats(4, 3, 4, 4)[2:])


@unread({"one": 6, "left:1": 4, "left:0": 5})
def neurons_that_a_product_of_two_parameters_reads() -> Made:
    run = lambda s, x: s.out(F.linear(s.one(x).relu(), s.left @ s.right))  # noqa: E731
    parts = {"left": nn.Parameter(floats(5, 4)), "right": nn.Parameter(floats(4, 6)), "out": nn.Linear(5, 2)}
    return Network(run, one=nn.Linear(3, 6), **parts), (floats(4, 3),)


def rows(run: Callable[..., Any], **others: Any) -> Made:
    """Return a network of two tables that are parameters, and which of their rows it is asked for."""
    parts = {"users": nn.Parameter(floats(11, 8)), "items": nn.Parameter(floats(12, 8)), **others}
    return Network(run, **parts), (tokens(6), tokens(7)[1:])


@unread({"users": 8})
def factors_in_parameters_multiplied_and_summed() -> Made:
    others = {"of_users": nn.Parameter(floats(11)), "of_items": nn.Parameter(floats(12))}
    return rows(lambda s, u, i: (s.users[u] * s.items[i]).sum(-1) + s.of_users[u] + s.of_items[i], **others)


@unread({"users": 8})
def factors_in_parameters_all_multiplied_before_rows_are_chosen() -> Made:
    return rows(lambda s, u, i: (s.users @ s.items.T)[u, i])


@unread({"users": 8})
def factors_in_parameters_at_a_distance() -> Made:
    run = lambda s, u, i: (s.users[u] + s.relations[u] - s.users.index_select(0, i)).norm(dim=-1)  # noqa: E731
    return Network(run, users=nn.Parameter(floats(11, 8)), relations=nn.Parameter(floats(11, 8))), (
        tokens(6),
        tokens(7)[1:],
    )


@unread({"users": 8})
def factors_in_parameters_by_a_matrix_of_each_relation() -> Made:
    run = lambda s, u, i: (torch.bmm(s.users[u][:, None], s.turning[i])[:, 0] * s.users[i]).sum(-1)  # noqa: E731
    return Network(run, users=nn.Parameter(floats(11, 8)), turning=nn.Parameter(floats(11, 8, 8))), (
        tokens(6),
        tokens(7)[1:],
    )


@unread({"hidden": 6, "turning": 5})
def neurons_that_matrices_read_of_which_each_example_chooses_one() -> Made:
    run = lambda s, x, i: s.out(torch.einsum("ni,nio->no", s.hidden(x).relu(), s.turning[i]).relu())  # noqa: E731
    parts = {"hidden": nn.Linear(3, 6), "turning": nn.Parameter(floats(11, 6, 5)), "out": nn.Linear(5, 2)}
    return Network(run, **parts), (floats(6, 3), tokens(6))


@unread({"hidden": 6, "one": 4})
def neighbours_by_a_product_of_two_parameters() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        return self.out(((self.one @ self.other).relu().softmax(1) @ self.hidden(inputs)).relu())

    parts = {"one": nn.Parameter(floats(5, 4)), "other": nn.Parameter(floats(4, 5))}
    return Network(run, hidden=nn.Linear(3, 6), **parts, out=nn.Linear(6, 2)), (floats(2, 5, 3),)


@unread({"hidden": 6, "nodes": 4})
def neighbours_by_a_parameter_with_itself() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        return self.out(((self.nodes @ self.nodes.T).relu().softmax(1) @ self.hidden(inputs)).relu())

    return Network(run, hidden=nn.Linear(3, 6), nodes=nn.Parameter(floats(5, 4)), out=nn.Linear(6, 2)), (
        floats(2, 5, 3),
    )


@unread({"hidden": 6, "shares": 3, "basis": 4})
def relations_of_a_basis_by_einsum() -> Made:
    def run(self: Any, inputs: Tensor, neighbours: Tensor) -> Tensor:
        weights = torch.einsum("rb,bio->rio", self.shares, self.basis)
        found = torch.einsum("erst,eti,rio->eso", neighbours, self.hidden(inputs).relu(), weights)
        return self.out(found.relu())

    parts = {"shares": nn.Parameter(floats(4, 3)), "basis": nn.Parameter(floats(3, 6, 4)), "out": nn.Linear(4, 2)}
    return Network(run, hidden=nn.Linear(3, 6), **parts), (floats(2, 5, 3), floats(2, 4, 5, 5).abs())


@unread({"hidden": 6, "basis": 4, "nodes": 3})
def weights_of_each_node_from_what_is_learned_of_it() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        near = F.softmax((self.nodes @ self.nodes.T).relu(), dim=1)
        weights, biases = torch.einsum("nd,dio->nio", self.nodes, self.basis), self.nodes @ self.biases
        found = torch.einsum("nm,emi->eni", near, self.hidden(inputs).relu())
        return self.out((torch.einsum("eni,nio->eno", found, weights) + biases).relu())

    parts = {"nodes": nn.Parameter(floats(5, 3)), "basis": nn.Parameter(floats(3, 6, 4))}
    return Network(run, hidden=nn.Linear(3, 6), **parts, biases=nn.Parameter(floats(3, 4)), out=nn.Linear(4, 2)), (
        floats(2, 5, 3),
    )


@unread({"shares": 3, "own": 6})
def relations_of_a_basis() -> Made:
    def run(self: Any, inputs: Tensor, neighbours: Tensor) -> Tensor:
        weights = (self.shares @ self.basis.view(3, -1)).view(4, 3, 6)
        found = inputs @ self.own
        for number in range(4):
            found = found + neighbours[:, number] @ (inputs @ weights[number])
        return self.out(found.relu())

    parts = {"shares": nn.Parameter(floats(4, 3)), "basis": nn.Parameter(floats(3, 3, 6))}
    return Network(run, **parts, own=nn.Parameter(floats(3, 6)), out=nn.Linear(6, 2)), (
        floats(2, 5, 3),
        floats(2, 4, 5, 5).abs(),
    )


@unread({"one": 6}, {"one"})
def the_greatest_of_all() -> Made:
    return Network(lambda s, x: s.one(x).amax(-1), one=nn.Linear(3, 6)), (floats(4, 3),)


@unread({"one": 6}, {"one"})
def rates_that_are_not_zero_where_their_neurons_say_nothing() -> Made:
    return Network(lambda s, x: s.one(x).sigmoid().sum(-1), one=nn.Linear(3, 6)), (floats(4, 3),)


@pytest.mark.parametrize("name", UNREAD)
def test_where_no_weights_read_neurons_removing_them_equals_letting_them_say_zero(name):
    make, layers, inexact = UNREAD[name]
    network, inputs = drawn(make)
    found = pruning.discover(network, inputs)
    assert {layer.name: layer.width for layer in found.layers()} == layers
    assert {layer.name for layer in found.layers() if not layer.exact} == inexact
    for dtype, digits in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        model = found.to(dtype)
        given = [part.to(dtype) if part.is_floating_point() else part for part in inputs]
        for share in (0.8, 0.4):
            exact = [layer for layer in model.layers() if layer.exact]
            left = [math.ceil(share * layer.width) - number % 2 for number, layer in enumerate(exact)]
            keep = {one.name: torch.arange(one.width).flip(0)[:count] for one, count in zip(exact, left, strict=True)}
            for some in (given, [part[:1] for part in given]):
                removed, masked = answers(select(model, keep), some), answers(mask(model, keep), some)
                torch.testing.assert_close(removed, masked, rtol=digits, atol=digits)


@pytest.mark.parametrize(
    "name",
    [
        "factors_multiplied_and_summed",
        "factors_in_parameters_multiplied_and_summed",
        "neighbours_by_a_product_of_two_parameters",
        "one_head_of_one_projection",
    ],
)
def test_what_no_weights_read_is_measured_pruned_saved_and_trained_as_anything_else(name, tmp_path, caplog):
    make = UNREAD[name][0]
    network, inputs = drawn(make)
    network, inputs = network.float(), tuple(part.float() if part.is_floating_point() else part for part in inputs)
    with torch.no_grad():
        wanted = network(*inputs)
    data = [
        (inputs if len(inputs) > 1 else inputs[0], wanted + 0.1 * floats(*wanted.shape).float() * n) for n in (1, 2)
    ]
    found = pruning.discover(network, inputs)
    ((name, seen),) = [(layer.name, layer.seen) for layer in found.layers() if layer.unread]
    assert "no weights read its neurons" in str(found)
    signals = ["weights", "hessian", "activations", "gradients", "cooperative", "surgeon", "intervention", "criteria"]
    with caplog.at_level(logging.WARNING):
        importance = pruning.importance(found, data, nn.MSELoss(), signals=signals)
    told = f"Not measured by surgeon: layer {name}, because no weights read its neurons." in caplog.text
    assert told == (seen is None)  # of two parameters each reads what is in the other
    assert importance.table["fused"].notna().all()
    smaller = pruning.prune(found, importance, keep=0.5, repair="ridge", data=data)
    assert f"Cut and not repaired: layer {name}, because no weights read its neurons." in caplog.text
    pruning.prune(found, importance, keep=0.5, repair="imitate", data=data)
    pruning.reconstruct(smaller.decoupled(), {}, importance.covariances, repair="mean")
    pruning.save(smaller, tmp_path)
    restored = pruning.restore(drawn(make)[0].float(), tmp_path)
    torch.testing.assert_close(answers(restored, inputs), answers(smaller, inputs), rtol=0, atol=0)
    pruning.finetune(smaller, data, epochs=1)


def test_a_gate_on_what_computes_them_tells_what_removing_them_costs_at_first_order():
    network, inputs = drawn(UNREAD["translations_between_factors"][0])
    with torch.no_grad():
        network.relation.zero_()
        network.users.weight.copy_(network.items.weight.abs().sum() + 1)  # so that each distance is a sum
    model = pruning.adapt(network, inputs, loss=lambda outputs, _: outputs.mean())
    (layer,) = model.layers()
    gates, _ = gate_gradients(model, [layer], inputs, torch.zeros(6), None)
    whole = network(*inputs).mean()
    removed = [
        whole - select(model, {layer.name: torch.tensor([n for n in range(8) if n != neuron])}).module(*inputs).mean()
        for neuron in range(8)
    ]
    torch.testing.assert_close(gates[layer.name], torch.stack(removed).detach())


def test_activations_are_those_of_the_part_of_an_output_that_holds_the_neurons():
    network, inputs = drawn(UNREAD["one_head_of_one_projection"][0])
    found = pruning.discover(network, inputs)
    seen: dict[str, Tensor] = {}
    with record(found, [layer for layer in found.layers() if layer.unread], seen.__setitem__):
        answers(found, inputs)
        found(*inputs)
    queries, keys, _ = network.all(inputs[0]).chunk(3, -1)
    torch.testing.assert_close(seen["all:0"], torch.cat([queries.reshape(-1, 8), keys.reshape(-1, 8)]).detach())


@pytest.mark.parametrize(
    ("name", "layer", "samples"),
    [
        ("one_head_of_one_projection", "all:0", 16),
        ("factors_in_parameters_multiplied_and_summed", "users", 6),
        ("neighbours_by_a_product_of_two_parameters", "one", 5),
        ("neurons_that_matrices_read_of_which_each_example_chooses_one", "hidden", 6),
        ("neurons_that_a_product_of_two_parameters_reads", "one", 4),
        ("relations_of_a_basis_by_einsum", "hidden", 10),
    ],
)
def test_activations_of_fewer_neurons_are_those_that_are_left(name, layer, samples):
    network, inputs = drawn(UNREAD[name][0])
    found = pruning.discover(network, inputs)
    keep = {one.name: torch.arange(one.width).flip(0)[:2] for one in found.layers()}
    seen: list[dict[str, Tensor]] = [{}, {}]
    for model, own in zip((found, select(found, keep)), seen, strict=True):
        with record(model, [one for one in model.layers() if one.name == layer], own.__setitem__):
            answers(model, inputs)
            model(*inputs)
    torch.testing.assert_close(seen[1][layer], seen[0][layer][:, keep[layer]])
    assert seen[1][layer].shape == (samples, 2)


def test_the_classes_of_a_network_that_gives_its_own_loss_stay():
    def run(self: Any, inputs: Tensor, classes: Tensor) -> Tensor:
        return F.cross_entropy(self.out(self.hidden(inputs).relu()), classes)

    network = Network(run, hidden=nn.Linear(3, 6), out=nn.Linear(6, 4)).double()
    found = pruning.discover(network, (floats(5, 3), torch.tensor([0, 3, 1, 1, 2])))
    assert [layer.name for layer in found.layers()] == ["hidden"]
