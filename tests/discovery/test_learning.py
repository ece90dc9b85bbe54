"""Code that runs only while a network is trained: what it reads is cut with the neurons that it belongs to."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pruning
from pruning.core.neurons import mask, select
from tests.discovery.test_forms import Made, Network, answers, drawn
from tests.foreign import floats, tokens


def drawing() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = self.enter(inputs).relu()
        latent = self.mean(hidden)
        if self.training:
            latent = latent + torch.randn_like(latent) * (0.5 * self.spread(hidden)).exp()
        return self.out(self.inner(latent).relu())

    sizes = {"enter": (4, 7), "mean": (7, 5), "spread": (7, 5), "inner": (5, 6), "out": (6, 2)}
    return Network(run, **{name: nn.Linear(*size) for name, size in sizes.items()}), (floats(8, 4),)


class Noisy(nn.Module):
    """A linear layer whose weights have noise of a learned size while it is trained."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mean, self.scale = (nn.Parameter(torch.randn(outputs, inputs)) for _ in range(2))
        self.register_buffer("noise", torch.randn(outputs, inputs))

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.mean + self.scale * self.noise if self.training else self.mean)


def noisy() -> Made:
    return nn.Sequential(Noisy(4, 7), nn.ReLU(), Noisy(7, 2)), (floats(8, 4),)


def helped() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = self.norm(self.enter(inputs)).relu()
        answer = self.out(F.dropout(self.inner(hidden), 0.2, self.training).relu())
        return answer + self.help(hidden) if self.training else answer

    parts = {"enter": nn.Linear(4, 7), "norm": nn.BatchNorm1d(7), "inner": nn.Linear(7, 6), "out": nn.Linear(6, 2)}
    return Network(run, **parts, help=nn.Sequential(nn.Linear(7, 3), nn.ReLU(), nn.Linear(3, 2))), (floats(8, 4),)


TRAINED = {
    drawing: {"enter": 7, "mean": 5, "inner": 6},
    noisy: {"0": 7},
    helped: {"enter": 7, "inner": 6},
}
"""How a network is made with its inputs → its layers' widths."""


@pytest.mark.parametrize("make", TRAINED, ids=lambda make: make.__name__)
def test_a_network_that_does_more_while_it_is_trained_loses_its_neurons_there_too(make, tmp_path):
    network, inputs = drawn(make)
    before = copy.deepcopy(network.state_dict())
    model = pruning.discover(network, inputs)
    assert {layer.name: layer.width for layer in model.layers()} == TRAINED[make]
    assert all(layer.exact for layer in model.layers())
    keep = {layer.name: torch.arange(layer.width - 1, layer.width // 3, -1) for layer in model.layers()}
    smaller = select(model, keep)
    torch.testing.assert_close(answers(smaller, inputs), answers(mask(model, keep), inputs), rtol=0, atol=1e-10)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    pruning.save(smaller, tmp_path)
    restored = pruning.restore(drawn(make)[0], tmp_path)
    for trained, other in ((smaller, mask(model, keep)), (restored, smaller)):
        torch.testing.assert_close(while_trained(trained, inputs), while_trained(other, inputs), rtol=0, atol=1e-10)


def while_trained(network: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return what a network gives while it is trained, but for what it draws: nothing."""
    network = copy.deepcopy(network).train()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "randn_like", torch.zeros_like)
        patched.setattr(F, "dropout", lambda values, *_: values)
        return answers(network, inputs)


def test_a_network_that_draws_while_it_is_trained_is_pruned_and_trained():
    network, inputs = drawn(drawing)
    data = [(floats(8, 4, seed=seed), floats(8, 2, seed=9 + seed)) for seed in range(3)]
    found = pruning.discover(network, inputs)
    smaller = pruning.prune(found, pruning.importance(found, data, nn.MSELoss()), keep=0.5, data=data)
    before = smaller.module.spread.weight.clone()
    pruning.finetune(smaller, data, epochs=1)
    assert not torch.equal(smaller.module.spread.weight, before)


def test_a_network_that_cannot_run_on_the_example_while_it_is_trained_has_the_neurons_that_it_has_otherwise():
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = self.norm(self.enter(inputs)).relu()
        return self.out(hidden) + (self.help(hidden) if self.training else 0)

    parts = {"enter": nn.Linear(4, 7), "norm": nn.BatchNorm1d(7), "out": nn.Linear(7, 2), "help": nn.Linear(7, 2)}
    model = pruning.discover(Network(run, **parts).eval(), torch.randn(1, 4))  # one example has no variance
    assert [layer.name for layer in model.layers()] == ["enter"]


def test_what_a_network_keeps_of_its_neurons_while_it_is_trained_is_cut_with_them():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.out = nn.Linear(4, 7), nn.Linear(7, 2)
            self.register_buffer("rate", torch.zeros(7))

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.enter(inputs).relu()
            if self.training:
                self.rate.lerp_(hidden.detach().mean(0), 0.5)
            return self.out(hidden)

    found = pruning.discover(Counting(), torch.randn(5, 4))
    kept = torch.tensor([6, 1, 3])
    smaller, whole = select(found, {"enter": kept}).train(), copy.deepcopy(found).train()
    smaller(torch.ones(5, 4)), whole(torch.ones(5, 4))
    torch.testing.assert_close(smaller.network.rate, whole.network.rate[kept])


def test_what_a_network_keeps_of_pairs_of_neurons_while_it_is_trained_is_cut_along_both_axes():
    class Paired(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.inner, self.out = nn.Linear(4, 7), nn.Linear(7, 5), nn.Linear(5, 2)
            for name, sizes in {"precision": (7, 7), "covariance": (5, 5), "outer": (7, 7), "cross": (7, 5)}.items():
                self.register_buffer(name, torch.ones(sizes))

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.enter(inputs).relu()
            inner = self.inner(hidden).relu()
            one, two = hidden.detach(), inner.detach()
            if self.training:
                self.precision.add_(one.T @ one)
                self.covariance = 0.9 * self.covariance + two.T @ two / len(two)
                self.outer.lerp_((one[:, :, None] * one[:, None]).mean(0), 0.1)
                self.cross += one.T @ two
            return self.out(inner)

    found = pruning.discover(Paired().double().eval(), torch.randn(5, 4).double())
    keep, inputs = {"enter": torch.tensor([6, 1, 3]), "inner": torch.tensor([4, 0])}, torch.ones(5, 4).double()
    smaller, wide = select(found, keep), mask(found, keep)
    torch.testing.assert_close(smaller(inputs), wide(inputs), rtol=1e-10, atol=1e-10)
    smaller.train()(inputs), wide.train()(inputs)
    for name, axes in {"precision": "11", "covariance": "22", "outer": "11", "cross": "12"}.items():
        rows, columns = ((keep["enter"], keep["inner"])[int(axis) - 1] for axis in axes)
        expected = getattr(wide.network, name)[rows][:, columns]
        torch.testing.assert_close(getattr(smaller.network, name), expected, rtol=1e-10, atol=1e-10)


def test_a_teacher_that_follows_by_momentum_while_it_is_trained_keeps_the_neurons_that_its_student_keeps():
    def run(self: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            for own, follows in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
                if self.training:
                    follows.copy_(0.5 * follows + 0.5 * own)
            target = self.teacher(inputs)
        return self.student(inputs), target

    torch.manual_seed(0)
    student, teacher = (nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 2)) for _ in range(2))
    network, inputs = Network(run, student=student, teacher=teacher.requires_grad_(False)).double(), floats(5, 4)
    found = pruning.discover(network, inputs)
    assert [(layer.width, layer.exact) for layer in found.layers()] == [(7, True)]
    keep = {layer.name: torch.tensor([6, 1, 3]) for layer in found.layers()}
    smaller, masked = select(found, keep).train(), mask(found, keep).train()
    for one, other in zip((*smaller(inputs), *smaller(inputs)), (*masked(inputs), *masked(inputs)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_an_encoder_that_packs_padded_sequences_is_measured_and_runs_with_fewer_heads():
    def run(self: Any, text: Tensor) -> Tensor:
        padding = text == 0
        kept = (~padding).unsqueeze(-1)
        hidden = self.encoder(self.text(text), src_key_padding_mask=padding)
        return self.out((hidden * kept).sum(1) / kept.sum(1))

    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    parts = {"text": nn.Embedding(20, 8), "encoder": nn.TransformerEncoder(layer, 1), "out": nn.Linear(8, 2)}
    network = Network(run, **parts).eval()
    text = tokens(4, 5)
    text[1:, 3:] = 0
    found = pruning.discover(network, text)
    data = [(text, torch.arange(4) % 2), (text.flip(0), torch.arange(4) % 2)]
    importance = pruning.importance(found, data, nn.CrossEntropyLoss(), signals=["activations", "weights"])
    smaller = pruning.prune(found, importance, keep=0.5, data=data)
    keep = {name: kept for name, kept in smaller.report.keep.items() if name != "text"}
    with torch.no_grad():
        assert smaller.module(text).isfinite().all()
        expected = mask(found, keep)(text)
        torch.testing.assert_close(select(found, keep)(text), expected, rtol=0, atol=1e-5)
    assert network.encoder.use_nested_tensor


class Centres(nn.Module):
    """Gathers the centre of each class while it is trained, in a way that nobody follows."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.middle, self.out = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 2)
        self.register_buffer("centres", torch.zeros(2, 6))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.enter(inputs).relu()
        if self.training:
            self.centres.index_add_(0, (inputs[:, 0] > 0).long(), hidden.detach())
        out: Tensor = self.out(self.middle(hidden).relu())
        return out


def test_neurons_without_which_the_network_could_not_be_trained_stay_and_others_go() -> None:
    found = pruning.discover(Centres(), torch.ones(4, 3))
    assert [layer.name for layer in found.layers()] == ["middle"]
    assert found.unprunable["enter"].startswith("while it is trained its model's own code counts on its width (")
    pruning.select(found, {"middle": torch.arange(3)}).train()(torch.ones(4, 3))
