"""Networks that their authors call in other ways than by `forward` alone: what a call is given, draws and takes."""

import logging
from collections import namedtuple
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F

import pruning
from pruning.core.devices import states_of
from pruning.steps.removing import apart


class Trained(nn.Module):
    """As networks of Lightning are: a batch goes to a method, which gives the loss."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.first(x).relu())

    def training_step(self, batch, number):  # noqa: ARG002 - as Lightning calls it
        x, y = batch
        return F.cross_entropy(self(x), y)


@pytest.fixture
def batches():
    torch.manual_seed(0)
    return [(torch.randn(6, 4), torch.randint(3, (6,))) for _ in range(4)]


def whole(batch):
    return tuple(batch), None


def noisy(network, inputs, state):  # noqa: ARG001 - as `call` is called
    """Return what a network makes of noise that is drawn, and the noise, as diffusion models are trained."""
    noise = torch.randn_like(inputs)
    return (network(inputs + noise), noise), None


def adversarial(network, inputs, state):  # noqa: ARG001 - likewise
    x, y = inputs
    with torch.enable_grad():
        moved = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(network(moved), y), moved)
    return network(x + 0.1 * slope.sign()), None


def learned(network, inputs, state):  # noqa: ARG001 - likewise
    """Return the loss after a step of learning, by which MAML learns."""
    x, y = inputs
    with torch.enable_grad():
        weights = dict(network.named_parameters())
        loss = F.cross_entropy(torch.func.functional_call(network, weights, (x,)), y)
        slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        moved = {name: weight - 0.1 * slope for (name, weight), slope in zip(weights.items(), slopes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(network, moved, (x,)), y), None


def contrast(one, other):
    return F.cross_entropy(F.normalize(one, dim=1) @ F.normalize(other, dim=1).T, torch.arange(len(one)))


def test_a_call_that_reads_all_views_of_a_batch_is_given_all_of_them():
    views = [(torch.randn(5, 4), torch.randn(5, 4)) for _ in range(2)]
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    how = {"call": lambda own, given, _: ((own(given[0]), own(given[1])), None), "signals": ["surgeon"]}
    found = pruning.importance(network, views, contrast, **how)
    said = pruning.importance(network, views, contrast, split=lambda batch: (tuple(batch), None), **how)
    assert found.table.equals(said.table)


def test_what_stands_beside_inputs_of_its_kind_is_a_target_where_a_call_cannot_read_both():
    pairs = [(torch.randn(5, 4), torch.randn(5, 4)) for _ in range(2)]
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
    how = {"signals": ["surgeon"]}
    found = pruning.importance(network, pairs, nn.MSELoss(), call=lambda own, x, _: (own(x), None), **how)
    assert found.table.equals(pruning.importance(network, pairs, nn.MSELoss(), **how).table)


CALLS = {
    "training_step": (lambda network, batch, _: (network.training_step(batch, 0), None), lambda loss, _: loss),
    "adversarial": (adversarial, nn.CrossEntropyLoss()),
    "learned": (learned, lambda loss, _: loss),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_given_its_authors_own_module_and_what_stands_in_a_batch(name, batches):
    call, loss = CALLS[name]
    network, split = Trained(), whole if name != "adversarial" else lambda batch: (tuple(batch), batch[1])
    found = pruning.discover(network, batches[0][0])
    importance = pruning.importance(found, batches, loss, signals=["surgeon"], call=call, split=split)
    smaller = pruning.prune(found, importance, keep=0.5)
    with torch.no_grad():
        expected = sum(loss(call(smaller.module, tuple(batch), None)[0], batch[1]).item() for batch in batches) / len(
            batches
        )
    assert pruning.evaluate(smaller, batches).mean == pytest.approx(expected, rel=1e-5)
    taught = pruning.finetune(smaller, batches, epochs=1, teacher=network)
    assert pruning.evaluate(taught, batches).mean < expected


def test_the_last_part_of_a_batch_is_no_state_where_a_call_goes_through_the_steps(batches):
    """Names letter by letter: `forward` takes a letter and a state, a batch holds a name and its class."""

    class Letters(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.last = nn.Linear(4 + 8, 8), nn.Linear(8, 3)

        def forward(self, letter, hidden):
            hidden = self.cell(torch.cat([letter, hidden], 1)).tanh()
            return self.last(hidden).log_softmax(1), hidden

    def read(network, letters, state):  # noqa: ARG001 - as `call` is called
        hidden = torch.zeros(1, 8)
        for letter in letters:
            outputs, hidden = network(letter[None], hidden)
        return outputs, None

    names = [(letters, numbers[:1]) for letters, numbers in batches]
    found = pruning.discover(Letters(), (names[0][0][:1], torch.zeros(1, 8)))
    importance = pruning.importance(found, names, nn.NLLLoss(), signals=["surgeon"], call=read)
    smaller = pruning.prune(found, importance)
    own = sum(F.nll_loss(read(smaller.module, *name)[0], name[1]).item() for name in names) / len(names)
    assert pruning.evaluate(smaller, names).mean == pytest.approx(own, rel=1e-5)


def test_networks_are_compared_on_what_is_drawn_once(batches):
    """Without it the distance of a network from itself is that of two draws of noise."""
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    found = pruning.discover(network, batches[0][0])
    how = {"call": noisy, "split": lambda batch: (batch[0], None)}

    def loss(outputs, _):
        return F.mse_loss(*outputs)

    importance = pruning.importance(found, batches, loss, signals=["surgeon"], **how)
    assert apart(importance.model, importance.model, importance.data) == pytest.approx(0, abs=1e-6)
    smaller = pruning.prune(found, importance, keep=0.75)
    assert smaller.report.apart["layer"] < 0.1
    assert smaller.report.repair == "ridge"
    imitated = pruning.prune(found, importance, keep=0.75, repair="imitate")
    assert imitated.report.apart["imitated"] < 0.1
    network[2].weight.data[:, 3] = 0  # which nobody misses, whatever is drawn
    model = pruning.adapt(network, batches[0][0], loss=loss, **how)
    removed = pruning.oracle(model, batches, pruning.Ablation(neurons="all", tokens=24, seed=1))
    assert removed["divergence"][3] == pytest.approx(0, abs=1e-9)
    assert removed["loss_increase"][3] == pytest.approx(0, abs=1e-9)


def test_draws_go_on_as_if_those_that_are_repeated_had_not_been_made():
    network = nn.Linear(1, 1)
    torch.manual_seed(1)
    expected = torch.rand(2), torch.rand(1)
    torch.manual_seed(1)
    states = states_of(network)
    assert states.untouched()
    one = torch.rand(2)
    assert not states.untouched()
    with states.again():
        assert torch.equal(torch.rand(2), one)
    assert torch.equal(torch.cat([one, torch.rand(1)]), torch.cat(expected))


class Policy(nn.Module):
    """An actor that gives a distribution, whose parameters PyTorch looks at, and a critic."""

    def __init__(self):
        super().__init__()
        self.body, self.actor, self.critic = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, seen):
        seen = self.body(seen).relu()
        return Categorical(logits=self.actor(seen)), self.critic(seen)


def test_a_network_that_gives_a_distribution_is_counted_and_is_no_graph(batches, caplog):
    def loss(outputs, actions):
        return -outputs[0].log_prob(actions).mean() + outputs[1].square().mean()

    found = pruning.discover(Policy(), batches[0][0])
    importance = pruning.importance(found, batches, loss, signals=["weights"])
    assert "it costs: 9 parameters, 8 multiply-adds a step" in str(importance.card("body", 0))
    for kind, value in (("multiply_adds", 40), ("memory", "1KiB")):
        smaller = pruning.prune(found, importance, budget={"kind": kind, "value": value})
        assert smaller.report.after.multiply_adds <= smaller.report.before.multiply_adds
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match="gives Categorical, which no graph holds"):
        pruning.program_of(found)
    assert not caplog.records


def test_what_is_shown_fits_80_columns(batches):
    found = pruning.discover(Policy(), batches[0][0])
    importance = pruning.importance(found, batches, lambda o, t: -o[0].log_prob(t).mean())
    smaller = pruning.prune(found, importance, keep=0.5)
    for shown in (found, importance, smaller, importance.card("body", 1)):
        assert max(map(len, str(shown).splitlines())) <= 80
    text = " ".join(str(found).split())
    assert "the model returns it; its width is that of the answer; neurons that it reads can go" in text


def test_sparse_gradients_of_an_embedding_are_learnt_from():
    class Bags(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.last = nn.EmbeddingBag(9, 8, sparse=True), nn.Linear(8, 2)

        def forward(self, text, offsets):
            return self.last(self.words(text, offsets))

    torch.manual_seed(0)
    texts = [torch.randint(9, (12,)) for _ in range(4)]
    loader = [(text, torch.arange(0, 12, 3), text[::3] % 2) for text in texts]
    found = pruning.discover(Bags(), loader[0][:2])
    importance = pruning.importance(found, loader, nn.CrossEntropyLoss(), signals=["surgeon"])
    smaller = pruning.prune(found, importance, repair="imitate")
    before = pruning.evaluate(smaller, loader).mean
    pruning.finetune(smaller, loader, learning_rate=0.05)
    assert pruning.evaluate(smaller, loader).mean < before
    assert smaller.module.words.sparse


class Words(nn.Module):
    """As PyTorch's example of a language model: the state goes in and out, and `init_hidden` makes the first one."""

    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.last = nn.Embedding(9, 6), nn.LSTM(6, 8, 2), nn.Linear(8, 9)

    def init_hidden(self, batch):
        return torch.zeros(2, batch, 8), torch.zeros(2, batch, 8)

    def forward(self, tokens, hidden):
        outputs, hidden = self.rnn(self.embed(tokens), hidden)
        return self.last(outputs).log_softmax(-1).view(-1, 9), hidden


def test_a_state_that_init_hidden_makes_may_be_left_out_where_neurons_are_discovered():
    torch.manual_seed(0)
    network, text = Words(), torch.randint(9, (21, 3))
    found = pruning.discover(network, text[:5])
    given = pruning.discover(network, (text[:5], network.init_hidden(3)))
    assert [layer.name for layer in found.layers()] == [layer.name for layer in given.layers()]
    steps = [(text[a:b], text[a + 1 : b + 1].flatten()) for a, b in pairwise(range(0, 21, 5))]
    importance = pruning.importance(found, steps, nn.NLLLoss(), signals=["surgeon"])
    smaller = pruning.prune(found, importance)
    hidden, losses = smaller.module.init_hidden(3), []
    with torch.no_grad():
        for tokens, targets in steps:
            outputs, hidden = smaller.module(tokens, hidden)
            losses.append(F.nll_loss(outputs, targets).item())
    assert pruning.evaluate(smaller, steps).mean == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_lengths_that_may_be_left_out_are_no_state_that_init_hidden_makes():
    class Tagger(Words):
        def forward(self, tokens, lengths=None):
            outputs, _ = self.rnn(self.embed(tokens), self.init_hidden(tokens.shape[1]))
            return self.last(outputs if lengths is None else outputs[:lengths])

    torch.manual_seed(0)
    batches = [(text, text % 3) for text in torch.randint(9, (3, 5, 2))]
    found = pruning.discover(Tagger(), batches[0][0])
    importance = pruning.importance(found, batches, nn.CrossEntropyLoss(), signals=["surgeon"])
    assert pruning.evaluate(pruning.prune(found, importance), batches).mean > 0


def test_a_dictionary_of_a_class_of_its_own_is_followed_and_is_no_graph(batches):
    class Parts(dict):
        __getattr__ = dict.get

    class Deep(Trained):
        def forward(self, x):
            return Parts(out=super().forward(x))

    found = pruning.discover(Deep(), batches[0][0])
    assert [layer.name for layer in found.layers()] == ["first"]
    with pytest.raises(ValueError, match="gives Parts, which no graph holds"):
        pruning.program_of(found)


def test_lengths_that_forward_needs_are_no_state_that_init_hidden_makes():
    class Reader(Words):
        def forward(self, tokens, lengths):
            outputs, _ = self.rnn(self.embed(tokens), self.init_hidden(tokens.shape[1]))
            return self.last(outputs[lengths - 1, torch.arange(len(lengths))])

    torch.manual_seed(0)
    batches = [(text, torch.tensor([2, 5, 3]), text[0]) for text in torch.randint(9, (3, 5, 3))]
    found = pruning.discover(Reader(), batches[0][:2])
    importance = pruning.importance(found, batches, nn.CrossEntropyLoss(), signals=["surgeon"])
    smaller = pruning.prune(found, importance)
    with torch.no_grad():
        own = sum(F.cross_entropy(smaller.module(x, n), y).item() for x, n, y in batches) / 3
    assert pruning.evaluate(smaller, batches).mean == pytest.approx(own, rel=1e-5)


def test_a_named_tuple_that_is_one_argument_is_exported_as_one():
    Pair = namedtuple("Pair", ["premise", "hypothesis"])

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.last = nn.Linear(4, 6), nn.Linear(12, 3)

        def forward(self, pair):
            return self.last(torch.cat([self.body(pair.premise), self.body(pair.hypothesis)], 1).relu())

    network, pair = Both(), Pair(torch.randn(5, 4), torch.randn(5, 4))
    program = pruning.program_of(network, pair)
    assert torch.allclose(program.module()(pair), network(pair), atol=1e-6)


def test_fine_tuning_that_its_user_stops_leaves_the_best_finished_epoch_to_go_on_from(batches):
    def stopping(steps, what):
        if what.startswith("epoch 3"):
            raise KeyboardInterrupt
        return steps

    network = Trained().train()
    found = pruning.discover(network, batches[0][0])
    smaller = pruning.prune(found, pruning.importance(found, batches, nn.CrossEntropyLoss(), signals=["surgeon"]))
    before = pruning.evaluate(smaller, batches).mean
    with pytest.raises(KeyboardInterrupt):
        pruning.finetune(smaller, batches, epochs=5, learning_rate=0.01, track=stopping)
    stopped = pruning.evaluate(smaller, batches).mean
    assert stopped == pytest.approx(smaller.history["valid_loss"].min())
    assert stopped < before
    assert not any(module.training for module in smaller.modules())
    assert pruning.evaluate(pruning.finetune(smaller, batches, learning_rate=0.01), batches).mean < stopped


def test_fine_tuning_that_ends_in_an_error_leaves_the_network_in_its_mode(batches):
    smaller = pruning.adapt(Trained().train(), batches[0][0], loss=nn.CrossEntropyLoss())

    def failing(steps, what):  # noqa: ARG001 - as a track is called
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        pruning.finetune(smaller, batches, track=failing)
    assert all(module.training for module in smaller.module.modules())


def test_batches_that_are_objects_of_a_class_of_its_own_go_all_the_way(batches):
    class Texts:
        def __init__(self, premise, label):
            self.premise, self.label = premise, label

    class Reader(Trained):
        def forward(self, texts):
            return super().forward(texts.premise)

    loader = [Texts(*batch) for batch in batches]
    found = pruning.discover(Reader(), (loader[0],))
    how = {"split": lambda texts: ((texts,), texts.label)}
    importance = pruning.importance(found, loader, nn.CrossEntropyLoss(), signals=["surgeon"], **how)
    smaller = pruning.prune(found, importance)
    assert smaller.report.after.multiply_adds < smaller.report.before.multiply_adds
    with torch.no_grad():
        own = sum(F.cross_entropy(smaller.module(texts), texts.label).item() for texts in loader) / len(loader)
    assert pruning.evaluate(smaller, loader).mean == pytest.approx(own, rel=1e-5)
    assert pruning.evaluate(pruning.finetune(smaller, loader), loader).mean < own


def test_a_call_that_runs_another_network_than_the_one_it_is_given_is_refused_with_that_reason(batches):
    network = Trained()
    found = pruning.discover(network, batches[0][0])
    with pytest.raises(ValueError, match="in which no neurons were seen; call that network, its first argument"):
        pruning.importance(found, batches, nn.CrossEntropyLoss(), call=lambda _, x, state: (network(x), state))
