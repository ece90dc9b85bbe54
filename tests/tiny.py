"""Tiny models of every family, texts and masks, and the slow, obvious twin that the tests compare with."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning.core.neurons import PrunableModule
from pruning.data.windows import Window, Windows
from pruning.models import build
from pruning.models.base import LanguageModel
from pruning.signals.activations import activations
from pruning.signals.cooperative import cooperative
from pruning.signals.gradients import gradients
from pruning.signals.hessian import hessian
from pruning.signals.weights import weights
from pruning.training.recipes import Recipe

VOCABULARY, EMBEDDING = 20, 6
WIDTHS = {1: (6,), 2: (7, 6), 3: (5, 8, 6)}
DECODERS = ("untied", "projected", "tied, then projected", "tied, then untied")
_SPIKING = {"recurrent": True, "leak": 0.7, "threshold": 0.5, "slope": 2.0}
FAMILIES: dict[str, dict[str, Any]] = {
    "lstm": {"family": "lstm"},
    "gru": {"family": "gru"},
    "tanh": {"family": "rnn", "nonlinearity": "tanh"},
    "relu": {"family": "rnn", "nonlinearity": "relu"},
    "snn": {"family": "snn", **_SPIKING},
    "feed-forward snn": {"family": "snn", **_SPIKING, "recurrent": False},
    "lstm + snn": {"family": "mixed", "cell": "lstm", **_SPIKING},
    "relu + feed-forward snn": {"family": "mixed", "cell": "rnn_relu", **_SPIKING, "recurrent": False},
}
"""What is tested of each family: a name → its settings, but for the widths."""

SIGNALS = {
    "weights": lambda model, _: weights(model, threshold=0.1, bins=8),
    "hessian": lambda model, windows: hessian(model, windows, probes=12, stability=2, seed=1),
    "activations": lambda model, windows: activations(model, windows, activation_samples=16, bins=8)[0],
    "gradients": lambda model, windows: gradients(model, windows, batches=16),
    "cooperative": lambda model, windows: cooperative(
        model, activations(model, windows, activation_samples=16, bins=8)[1], strong=0.6
    ),
}
"""Each signal of a model on windows, with settings that suit tiny models."""


def tiny(
    decoder: str = "untied",
    widths: Sequence[int] = WIDTHS[2],
    family: str = "lstm",
    *,
    dtype: torch.dtype = torch.float64,
    dropout: float = 0.0,
    spread: float = 0.5,
    seed: int = 0,
) -> Any:
    """Return a tiny model in evaluation mode with normal weights, of one of `FAMILIES` and `DECODERS` or a tied one."""
    kind, _, how = decoder.partition(", then ")
    shape = halved(widths) if FAMILIES[family]["family"] == "mixed" else {"widths": widths}
    model = build(
        vocabulary=VOCABULARY, embedding=EMBEDDING, decoder=kind, dropout=dropout, **FAMILIES[family], **shape
    ).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        tame = "relu" in family and "weight_hh" in name  # ReLU does not bound what goes round
        nn.init.normal_(parameter, std=0.4 * spread if tame else spread, generator=generator)
    return (model.decoupled("project" if how == "projected" else "untie") if how else model).eval()


def halved(widths: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return widths of recurrent and spiking halves that make up these."""
    spiking = tuple(width // 2 for width in widths)
    return {"widths": tuple(w - s for w, s in zip(widths, spiking, strict=True)), "snn_widths": spiking}


def recipe(**changes: float) -> Recipe:
    """Return a short training recipe with these changes."""
    usual = {"epochs": 3, "portion": 1.0, "learning_rate": 0.02, "warmup": 0.1, "weight_decay": 0.01}
    return Recipe(**{**usual, "clip": 1.0, "patience": 9, **changes})  # type: ignore[arg-type]


def text(length: int, *, seed: int = 0, step: int = 3) -> Tensor:
    """Return tokens of which four in five follow from the one before."""
    random = np.random.default_rng(seed)
    tokens = [1]
    while len(tokens) < length:
        follows = random.random() < 0.8
        tokens.append((step * tokens[-1] + 1) % VOCABULARY if follows else int(random.integers(VOCABULARY)))
    return torch.tensor(tokens)


def subsets(model: PrunableModule) -> st.SearchStrategy[dict[str, Tensor]]:
    """Generate kept neurons: any that leave at least one in each layer, in ascending order."""
    return st.fixed_dictionaries(
        {
            layer.name: st.sets(st.integers(0, layer.width - 1), min_size=1).map(
                lambda kept: torch.tensor(sorted(kept))
            )
            for layer in model.layers()
        }
    )


def permutations(model: PrunableModule) -> st.SearchStrategy[dict[str, Tensor]]:
    """Generate an order of all neurons of each layer."""
    return st.fixed_dictionaries(
        {layer.name: st.permutations(range(layer.width)).map(torch.tensor) for layer in model.layers()}
    )


def logits_of(model: LanguageModel, windows: Windows) -> Tensor:
    """Return the logits of all windows one after the other, the state carried from each to the next."""
    state, found = None, []
    with torch.no_grad():
        for window in windows:
            logits, state = model(window.tokens, state)
            found.append(logits)
    return torch.cat(found)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the model's parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def bytes_of(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Return what each tensor's memory holds."""
    return {name: tensor.detach().numpy().tobytes() for name, tensor in tensors.items()}


class Unrolled:
    """A language model written out step by step, with a gate on the output of each neuron.

    A spike is the step function; its derivative is the arctangent's, for what is added to the step is
    σ(z) less the same number, taken for a constant.

    Attributes:
        tensors: Parameters by the names that the real model gives them.
        gates: One vector for each layer of neurons; whoever reads a neuron reads its output times its gate, plus
            `offsets[layer][step]` where those are given, (T, B, width) for each layer.
        hidden: Layer → outputs before the gate, one (B, width) for each step so far.
        steps: What was added to σ(z) to make each spike, in order; those of another twin when they are given, which
            makes the loss a smooth function: the surrogate loss.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        gates: Sequence[Tensor] | None = None,
        *,
        nonlinearity: str = "tanh",
        steps: Sequence[Tensor] = (),
    ) -> None:
        self.tensors = tensors
        self.nonlinearity = nonlinearity
        self.names = sorted(
            {name.rpartition(".")[0] for name in tensors if "weight_ih" in name},
            key=lambda name: (int(name[-1]), name.startswith("snn")),
        )
        self.widths = [self._width(name) for name in self.names]
        self.gates = gates or [torch.ones(width, dtype=torch.float64) for width in self.widths]
        self.offsets: list[Tensor] | None = None
        self.hidden: list[list[Tensor]] = [[] for _ in self.widths]
        self.memory: list[Tensor] = []
        self.steps: list[Tensor] = list(steps)
        self.given = iter(steps) if steps else None

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the logits (T, B, V), going on from where the last call ended."""
        return torch.stack([self._step(row) for row in tokens])

    def detach(self) -> None:
        """Cut off what is carried from the graph that computed it."""
        self.memory = [memory.detach() for memory in self.memory]
        self.hidden = [[output.detach() for output in outputs] for outputs in self.hidden]

    def _width(self, name: str) -> int:
        """Return the number of neurons of a layer."""
        own = self.tensors.get(f"{name}.weight_hh_l0")
        return len(self.tensors[f"{name}.leak"]) if own is None else own.shape[1]

    def _step(self, tokens: Tensor) -> Tensor:
        read = self.tensors["encoder.weight"][tokens]
        if not self.memory:
            self.memory = [read.new_zeros(len(tokens), width) for width in self.widths]
        for depth in sorted({name[-1] for name in self.names}):
            halves = [index for index, name in enumerate(self.names) if name[-1] == depth]
            for index in halves:
                before = self._read(index) if self.hidden[index] else torch.zeros_like(self.memory[index])
                self._layer(index, read, before)
            read = torch.cat([self._read(index) for index in halves], dim=1)
        if "projection.weight" in self.tensors:
            read = read @ self.tensors["projection.weight"].T + self.tensors["projection.bias"]
        decoder = self.tensors.get("decoder.weight", self.tensors["encoder.weight"])
        return read @ decoder.T + self.tensors["decoder.bias"]

    def _read(self, index: int) -> Tensor:
        """Return what readers of a layer's last outputs read."""
        offset = 0 if self.offsets is None else self.offsets[index][len(self.hidden[index]) - 1]
        return self.hidden[index][-1] * self.gates[index] + offset

    def _layer(self, index: int, read: Tensor, before: Tensor) -> None:
        name = self.names[index]
        own = {key.removeprefix(f"{name}."): t for key, t in self.tensors.items() if key.startswith(f"{name}.")}
        if name.startswith("snn"):
            fed_back = before @ own["weight_hh"].T if "weight_hh" in own else 0
            charge = own["leak"].sigmoid() * self.memory[index] + read @ own["weight_ih"].T + own["bias"] + fed_back
            spikes = self._spikes(charge - own["threshold"])
            self.memory[index] = charge - own["threshold"] * spikes
            self.hidden[index].append(spikes)
            return
        above = read @ own["weight_ih_l0"].T + own["bias_ih_l0"]
        beside = before @ own["weight_hh_l0"].T + own["bias_hh_l0"]
        self.hidden[index].append(getattr(self, f"_{name.partition('.')[0]}")(index, above, beside))

    def _lstm(self, index: int, above: Tensor, beside: Tensor) -> Tensor:
        enter, forget, content, leave = (above + beside).split(self.widths[index], dim=1)
        self.memory[index] = forget.sigmoid() * self.memory[index] + enter.sigmoid() * content.tanh()
        return leave.sigmoid() * self.memory[index].tanh()

    def _gru(self, index: int, above: Tensor, beside: Tensor) -> Tensor:
        width = self.widths[index]
        reset = (above[:, :width] + beside[:, :width]).sigmoid()
        update = (above[:, width : 2 * width] + beside[:, width : 2 * width]).sigmoid()
        content = (above[:, 2 * width :] + reset * beside[:, 2 * width :]).tanh()
        self.memory[index] = update * self.memory[index] + (1 - update) * content
        return self.memory[index]

    def _rnn(self, _index: int, above: Tensor, beside: Tensor) -> Tensor:
        return (above + beside).tanh() if self.nonlinearity == "tanh" else (above + beside).relu()

    def _spikes(self, distance: Tensor) -> Tensor:
        smooth = (torch.pi / 2 * _SPIKING["slope"] * distance).atan() / torch.pi + 0.5
        if self.given:
            return smooth + next(self.given)
        self.steps.append((distance.detach() >= 0).to(distance) - smooth.detach())
        return (distance.detach() >= 0).to(distance) + (smooth - smooth.detach())


def twin_of(model: LanguageModel, gates: Sequence[Tensor] | None = None) -> Unrolled:
    """Return the twin of a model."""
    return twin_with(tensors_of(model), model, gates)


def twin_with(
    tensors: Mapping[str, Tensor],
    model: LanguageModel,
    gates: Sequence[Tensor] | None = None,
    steps: Sequence[Tensor] = (),
) -> Unrolled:
    """Return the twin of a model with these tensors in place of its own."""
    config = model.to_config()
    relu = config.get("nonlinearity") == "relu" or config.get("cell") == "rnn_relu"
    return Unrolled(tensors, gates, nonlinearity="relu" if relu else "tanh", steps=steps)


def loss_on(unrolled: Unrolled, window: Window) -> Tensor:
    """Return the twin's mean loss on one window, nat/token, padding left out."""
    shares = unrolled(window.tokens).log_softmax(-1)
    wanted = window.targets >= 0
    return -shares[wanted].gather(1, window.targets[wanted][:, None]).mean()


def scaled_by_hand(values: Sequence[float]) -> np.ndarray:
    """Return values between their quantiles 0.05 and 0.95, or their extremes, or one half."""
    array = np.asarray(values, dtype=float)
    low, high = np.quantile(array, [0.05, 0.95])
    if low == high:
        low, high = array.min(), array.max()
    return np.full(len(array), 0.5) if low == high else np.clip((array - low) / (high - low), 0, 1)


def weighted_by_hand(components: Mapping[str, Any], shares: Mapping[str, float]) -> np.ndarray:
    """Return Σ share × scaled component."""
    return sum(share * scaled_by_hand(components[name]) for name, share in shares.items())


def entropy_by_hand(counts: Sequence[int]) -> float:
    """Return −Σ p log p."""
    shares = np.array([count for count in counts if count > 0]) / sum(counts)
    return float(-(shares * np.log(shares)).sum())


def binned_by_hand(values: np.ndarray, edges: np.ndarray) -> list[int]:
    """Return how many values lie in each bin, an edge belonging to the bin below it."""
    bins = [0] * (len(edges) + 1)
    for value in values:
        bins[sum(value > edge for edge in edges)] += 1
    return bins
