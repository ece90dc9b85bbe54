"""What is said of what cannot be pruned: each sentence where it is true."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributions as D
from torch import Tensor, nn
from torch.nn import functional as F

import pruning
from pruning.discovery.summary import ADVICE
from tests.discovery.test_forms import Network
from tests.discovery.test_spellings import made
from tests.foreign import floats

Run = Callable[..., Any]
LINE, SIX = floats(4, 3), floats(4, 6)


def first(run: Run, module: str = "one", inputs: Tensor = LINE, **parts: Any) -> tuple[nn.Module, Tensor, str]:
    """A network and a module of it that is asked about; `one` has six neurons, which `run` reads."""
    return Network(run, **{"one": nn.Linear(inputs.shape[-1], 6), "out": nn.Linear(6, 2), **parts}), inputs, module


def compiled(module: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(module)


def shared_key(self: Any, inputs: Tensor) -> Tensor:
    queries = self.one(inputs).unflatten(-1, (-1, 2)).transpose(1, 2)
    heads = F.scaled_dot_product_attention(queries, *self.two(inputs)[:, None].chunk(2, -1))
    return self.out(heads.transpose(1, 2).flatten(2))


def resized(self: Any, inputs: Tensor) -> Tensor:
    """Give places beside what they stand for; that they are resized together is not why their width stays."""
    image = self.places[:, 1:].reshape(1, 2, 2, 6).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=(2, 2), mode="bilinear").permute(0, 2, 3, 1).reshape(1, 4, -1)
    return self.one(inputs) + torch.cat([self.places[:, :1], image], 1)


FIXED = Network(lambda s, x: F.linear(x, s.made) * s.scale, scale=nn.Parameter(floats(1)))
FIXED.register_buffer("made", floats(6, 3))
OTHER, TABLE = nn.Parameter(floats(3, 6)), nn.Parameter(floats(1, 5, 6))
REASONS: dict[str, Callable[[], tuple[nn.Module, Tensor, str]]] = {
    "the model returns it": lambda: first(lambda s, x: s.one(x)),
    "model returns it": lambda: first(lambda s, x: (s.out(s.one(x)), s.two), "two", two=nn.Parameter(floats(4, 4))),
    "the model returns": lambda: (Network(resized, one=nn.Linear(3, 6), places=TABLE), floats(2, 5, 3), "places"),
    "is in what TorchScript compiled, which takes no other weights": lambda: first(
        lambda s, x: s.out(s.inner(x)), "inner", inner=compiled(nn.Linear(3, 6))
    ),
    "no weights read its neurons, and it is computed outside of any module": lambda: first(
        lambda s, x: s.out(s.one(x)).sum(-1) + (x @ s.two).square().sum(-1), "two", two=OTHER
    ),
    "what the model returns does not depend on it": lambda: first(
        lambda s, x: (s.three(s.one(x)), s.out(x @ s.two))[1], two=OTHER, three=nn.Linear(6, 2)
    ),
    "the example inputs do not reach it": lambda: first(lambda s, x: s.out(x @ s.two), two=OTHER),
    "it is a single number": lambda: first(
        lambda s, x: s.out(s.one(x)) * s.scale, "scale", scale=nn.Parameter(floats(1))
    ),
    "it computes a single number": lambda: first(lambda s, x: s.out(s.one(x) * s.two(x)), "two", two=nn.Linear(3, 1)),
    "it computes a single": lambda: first(  # what it scales is put beside what it does not scale
        lambda s, x: s.out(
            torch.cat([s.one(x[..., None]) * s.two(s.one(x[..., None])), s.one(x[..., None])], 1)[..., 0]
        ),
        "two",
        one=nn.Conv1d(3, 3, 1),
        two=nn.Conv1d(3, 1, 1),
    ),
    "linalg_svd, which is not known to keep neurons apart": lambda: first(
        lambda s, x: s.out(F.linear(x, s.own)) * torch.linalg.svdvals(s.own).max(),
        "own",
        own=nn.Parameter(floats(6, 3)),
    ),
    "no parameter computes it, only the buffer fixed.made": lambda: first(
        lambda s, x: s.out(s.fixed(x)), "fixed", fixed=FIXED
    ),
    "avg_pool2d in norm mixes all of it": lambda: first(  # of channels that zeros are put before
        lambda s, x: s.out(s.norm(s.one(x)[..., None])[..., 0]), norm=nn.LocalResponseNorm(3)
    ),
    "conv1d in near takes neighbours in it together, and so counts on its order": lambda: first(
        lambda s, x: s.out(s.one(x) * s.near(s.one(x)[:, None])[:, 0].sigmoid()), near=nn.Conv1d(1, 1, 3, padding=1)
    ),
    "sort mixes all of it": lambda: first(lambda s, x: s.out(s.one(x).argsort().to(x))),
    "mixes all of it by kernels that are computed in each call": lambda: first(
        lambda s, x: s.out(F.conv1d(s.one(x)[..., None], s.two(x).view(6, 6, 1))[..., 0]), "one", two=nn.Linear(3, 9)
    ),
    "conv1d mixes all of it": lambda: first(  # whose kernels filter along neurons
        lambda s, x: s.out(F.conv1d(s.one(x)[None], s.two(x).view(4, 4, 3), padding=1)[0]), "one", two=nn.Linear(3, 12)
    ),
    "matmul multiplies it by a matrix that is computed in each call": lambda: first(
        lambda s, x: s.out((s.one(x)[:, None] @ s.two(x).view(-1, 6, 6))[:, 0]), two=nn.Linear(3, 36)
    ),
    "triu counts on the order of its rows and columns": lambda: first(
        lambda s, x: s.out(s.one(x) @ s.two.triu()), "two", two=nn.Parameter(floats(6, 6))
    ),
    "which is not known to keep neurons apart": lambda: first(
        lambda s, x: s.out(torch.masked_select(s.one(x), s.one(x) > 0)[:1].expand(4, 6))
    ),
    "cat puts it beside values of a fixed width": lambda: first(
        lambda s, x: s.out(torch.cat([s.one(x), x], 0)), inputs=SIX
    ),
    "combines it with values of a fixed width": lambda: first(lambda s, x: s.out(s.one(x) + x), inputs=SIX),
    "no neurons run along it where add uses it": lambda: first(
        lambda s, x: s.out(s.one(x) + s.rows[:, None]), "rows", rows=nn.Parameter(floats(4))
    ),
    "argmax says which of them it is": lambda: first(lambda s, x: s.out(s.one(x) + s.one(x).argmax(1)[:, None])),
    "each of its groups reads some of the model's inputs": lambda: first(
        lambda s, x: s.out(s.deep(x[..., None])[..., 0]), "deep", SIX, deep=nn.Conv1d(6, 6, 1, groups=6)
    ),
    "it normalises what no neuron gives": lambda: first(
        lambda s, x: s.out(s.one(s.norm(x))), "norm", norm=nn.BatchNorm1d(3)
    ),
    "sums over it with values of a fixed width": lambda: first(lambda s, x: s.one(x) @ x.T, inputs=SIX),
    "pairs each of it with each": lambda: first(
        lambda s, x: s.out((s.one(x)[:, :, None] @ s.one(x)[:, None, :]).mean(1))
    ),
    "all heads of scaled_dot_product_attention share it": lambda: first(
        shared_key, "two", floats(2, 4, 3), two=nn.Linear(3, 4)
    ),
    "begins with a state of a fixed width": lambda: first(
        lambda s, x: s.out(s.cell(x, x)), "cell", SIX, cell=nn.GRUCell(6, 6)
    ),
    "follow no regular order": lambda: first(lambda s, x: s.out(s.one(x)[:, torch.tensor([0, 1, 4, 3, 5, 2])])),
    "own code counts on its width (test_reasons.py:": lambda: first(lambda s, x: s.out(s.one(x) * torch.eye(6)[0])),
    "what is no mean over it": lambda: first(
        lambda s, x: s.out(s.one(x)[:, torch.arange(s.inner(s.one(x)))] * s.inner(s.one(x))),
        inner=Network(lambda _, x: x.shape[1]),
    ),
    "the model computes something else than where nobody reads them": lambda: first(
        lambda s, x: s.out(s.one(x) + torch.linspace(0, 1, s.one(x).shape[1]))
    ),
}


def test_code_that_runs_once_its_modules_number_follows_is_not_blamed_for_counting_on_the_width() -> None:
    class Ramp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.out, self.width = nn.Linear(3, 6), nn.Linear(6, 2), 6

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.one(inputs).expand(len(inputs), self.width)
            return self.out(hidden * torch.linspace(0, 1, self.width))

    reason = pruning.discover(Ramp(), floats(4, 3).float()).unprunable["one"]
    assert reason.endswith("the model computes something else than where nobody reads them")


@pytest.mark.parametrize("sentence", REASONS)
def test_the_reason_that_is_given_is_the_true_one(sentence):
    network, inputs, module = REASONS[sentence]()
    model = pruning.discover(network.double().eval(), (inputs,))
    assert sentence in model.unprunable[module]


class Mixture(nn.Module):
    """A mixture of Gaussians as an answer: a distribution of two others."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.out = nn.Linear(3, 6), nn.Linear(6, 6)

    def forward(self, inputs: Tensor) -> D.MixtureSameFamily:
        shares, means, spreads = self.out(torch.tanh(self.one(inputs))).chunk(3, -1)
        return D.MixtureSameFamily(D.Categorical(logits=shares), D.Normal(means, F.softplus(spreads)))


def test_a_distribution_of_others_depends_on_what_these_do():
    model = pruning.discover(Mixture().double().eval(), LINE)
    assert [(layer.name, layer.width) for layer in model.layers()] == [("one", 6)]
    assert model.unprunable == {"out": "the model returns it"}


def test_modules_that_are_called_within_vmap_are_refused_by_name():
    network = Network(
        lambda s, x: torch.vmap(lambda row: s.out(s.one(row)))(x), one=nn.Linear(3, 6), out=nn.Linear(6, 2)
    )
    with pytest.raises(
        ValueError, match=r"^Expected modules that are called with whole batches, got one called within"
    ):
        pruning.discover(network.double(), LINE)


def test_what_others_seemed_to_cross_is_said_to_stay_for_its_own_reason():
    network, inputs = made("channels_mixed_in_a_stream_in_which_steps_are_mixed")
    reasons = pruning.discover(network, inputs).unprunable
    assert "values of a fixed width" in reasons["steps"]
    assert reasons["back"] == "the model returns it"


def test_a_user_is_told_what_to_do_about_a_reason_where_something_can_be_done():
    network, inputs, _ = REASONS["combines it with values of a fixed width"]()
    text = pruning.discover(network.double().eval(), (inputs,)).summary()
    assert ADVICE["values of a fixed width"] in " ".join(text.split())


class Sorting(nn.Module):
    """Three matrices in one module, of which the neurons of the second stay."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.middle, self.leave = (nn.Parameter(floats(*shape)) for shape in ((5, 3), (6, 5), (4, 6)))

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(F.linear(F.linear(inputs, self.enter).relu(), self.middle).sort()[0], self.leave)


def test_each_parameter_that_stays_in_a_module_of_which_others_lose_neurons_says_why():
    network = nn.Sequential(Sorting(), nn.Tanh(), nn.Linear(4, 2)).double()
    model = pruning.discover(network, LINE)
    assert [layer.name for layer in model.layers()] == ["0.enter", "0.leave"]
    assert model.unprunable == {"2": "the model returns it", "0.middle": "sort in 0 mixes all of it"}
    assert "0.middle (38.0%): sort in 0 mixes all of it" in str(model)


def test_a_parameter_that_nothing_uses_is_named_beside_those_of_its_module_that_are_neurons():
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.others = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6, 6))

        def forward(self, x):
            return (x @ self.first).relu()

    found = pruning.discover(nn.Sequential(Steps(), nn.Linear(6, 2)), torch.randn(3, 4))
    assert [layer.name for layer in found.layers()] == ["0"]
    assert found.unprunable["0.others"] == "what the model returns does not depend on it"


def test_who_prepared_a_network_for_quantization_is_told_to_prune_it_before():
    network = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).train()
    network.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    with warnings.catch_warnings(action="ignore"):
        prepared = torch.ao.quantization.prepare_qat(network)
        text = str(pruning.discover(prepared.eval(), floats(2, 3).float()))
    assert "prune the network before it is prepared for quantization" in " ".join(text.split())


def test_a_vector_that_two_modules_share_goes_with_its_neurons_and_is_not_said_to_stay():
    class Scaled(nn.Module):
        def __init__(self, scale: nn.Parameter) -> None:
            super().__init__()
            self.scale = scale

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * x

    scale = nn.Parameter(floats(6))
    run = lambda s, x: s.out(s.again(s.once(s.one(x)).tanh()))  # noqa: E731
    network, inputs, _ = first(run, once=Scaled(scale), again=Scaled(scale))
    network = network.double()
    found = pruning.discover(network, inputs)
    assert [layer.width for layer in found.layers()] == [6]
    assert list(found.unprunable) == ["out"]


def test_an_answer_that_a_matrix_computes_step_by_step_is_said_to_be_returned():
    def run(self: Any, inputs: Tensor) -> Tensor:
        state = inputs.new_zeros(len(inputs), 6)
        for step in inputs.unbind(1):
            seen = (torch.sigmoid(step.unsqueeze(-1) - self.one) * self.weight).sum(1)
            state = seen + (torch.sigmoid(state.unsqueeze(-1) - self.two) * self.other).sum(1)
        return state

    parts = {"one": (3, 6), "weight": (3, 6), "two": (6, 6), "other": (6, 6)}
    network = Network(run, **{name: nn.Parameter(floats(*shape)) for name, shape in parts.items()})
    found = pruning.discover(network, floats(2, 4, 3))
    assert found.unprunable == dict.fromkeys(parts, "the model returns it")
