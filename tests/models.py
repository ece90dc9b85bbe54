"""Tiny models, texts and masks, and the slow, obvious twin of an LSTM that the tests compare with."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning.batching import Window, Windows
from pruning.layers import PrunableModule
from pruning.models import build
from pruning.models.base import LanguageModel
from pruning.models.lstm import LSTMLanguageModel
from pruning.signals.activations import activations
from pruning.signals.cooperative import cooperative
from pruning.signals.gradients import gradients
from pruning.signals.hessian import hessian
from pruning.signals.weights import weights
from pruning.training import Recipe

VOCABULARY, EMBEDDING = 20, 6
WIDTHS = {1: (6,), 2: (7, 6), 3: (5, 8, 6)}
DECODERS = ("untied", "projected", "tied, then projected", "tied, then untied")

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
    *,
    dtype: torch.dtype = torch.float64,
    dropout: float = 0.0,
    spread: float = 0.5,
    seed: int = 0,
) -> LSTMLanguageModel:
    """Return a tiny LSTM in evaluation mode with normal weights, of one of `DECODERS` or a tied one."""
    kind, _, how = decoder.partition(", then ")
    model = build("lstm", vocabulary=VOCABULARY, embedding=EMBEDDING, widths=widths, decoder=kind, dropout=dropout).to(
        dtype
    )
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=spread, generator=generator)
    return (model.decoupled("project" if how == "projected" else "untie") if how else model).eval()


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
    """An LSTM language model written out step by step, with a gate on the output of each neuron.

    Attributes:
        tensors: Parameters by the names that the real model gives them.
        gates: One vector for each layer; whoever reads a neuron reads its output times its gate, plus
            `offsets[layer][step]` where those are given, (T, B, width) for each layer.
        hidden: Layer → outputs before the gate, one (B, width) for each step so far.
    """

    def __init__(self, tensors: Mapping[str, Tensor], gates: Sequence[Tensor] | None = None) -> None:
        self.tensors = tensors
        depth = sum(name.endswith("weight_hh_l0") for name in tensors)
        self.widths = [tensors[f"lstm.{index}.weight_hh_l0"].shape[1] for index in range(depth)]
        self.gates = gates or [torch.ones(width, dtype=torch.float64) for width in self.widths]
        self.offsets: list[Tensor] | None = None
        self.hidden: list[list[Tensor]] = [[] for _ in self.widths]
        self.cells: list[Tensor] = []

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the logits (T, B, V), going on from where the last call ended."""
        return torch.stack([self._step(row) for row in tokens])

    def detach(self) -> None:
        """Cut off what is carried from the graph that computed it."""
        self.cells = [cell.detach() for cell in self.cells]
        self.hidden = [[output.detach() for output in outputs] for outputs in self.hidden]

    def _step(self, tokens: Tensor) -> Tensor:
        read = self.tensors["encoder.weight"][tokens]
        if not self.cells:
            self.cells = [read.new_zeros(len(tokens), width) for width in self.widths]
        for index, width in enumerate(self.widths):
            before = self._read(index) if self.hidden[index] else read.new_zeros(len(tokens), width)
            self._layer(index, read, before)
            read = self._read(index)
        if "projection.weight" in self.tensors:
            read = read @ self.tensors["projection.weight"].T + self.tensors["projection.bias"]
        decoder = self.tensors.get("decoder.weight", self.tensors["encoder.weight"])
        return read @ decoder.T + self.tensors["decoder.bias"]

    def _read(self, index: int) -> Tensor:
        """Return what readers of a layer's last outputs read."""
        offset = 0 if self.offsets is None else self.offsets[index][len(self.hidden[index]) - 1]
        return self.hidden[index][-1] * self.gates[index] + offset

    def _layer(self, index: int, read: Tensor, before: Tensor) -> None:
        own = {
            what: self.tensors[f"lstm.{index}.{what}_l0"] for what in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        sums = read @ own["weight_ih"].T + own["bias_ih"] + before @ own["weight_hh"].T + own["bias_hh"]
        enter, forget, content, leave = sums.split(self.widths[index], dim=1)
        self.cells[index] = forget.sigmoid() * self.cells[index] + enter.sigmoid() * content.tanh()
        self.hidden[index].append(leave.sigmoid() * self.cells[index].tanh())


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
