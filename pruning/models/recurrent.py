"""What recurrent language models share, whatever their cells: embedding, halves side by side, decoder, state."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Generic, Self, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.core.neurons import NeuronLayer, Slice, frozen_as
from pruning.core.options import Decoder, Decoupling, check_tied, expect_known
from pruning.models.base import LanguageModel, State
from pruning.models.cells import Cell
from pruning.models.spiking import LIF, SPIKE_SIZE

EMBEDDED = 0.1
"""Largest entry of an embedding at first."""


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """What a recurrent language model is made of; a pruned model is one with smaller `widths`.

    Attributes:
        vocabulary: Number of token types, V.
        embedding: Size of the token embedding, E.
        widths: Hidden units of each layer, from input to output; the last is H.
        decoder: `untied` (a V × H matrix of its own), `tied` (the embedding itself, needs H = E), or `projected`
            (the embedding after an E × H projection with bias, which lets a tied model lose neurons).
        dropout: Probability of dropping an activation between layers in training.
    """

    vocabulary: int
    embedding: int
    widths: tuple[int, ...]
    decoder: Decoder
    dropout: float

    def __post_init__(self) -> None:
        if min(self.vocabulary, self.embedding, *(width for row in self.rows for width in row)) < 1:
            raise ValueError(f"Expected sizes of at least 1, got {self}.")
        expect_known("decoder", get_args(Decoder), self.decoder)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"Expected a dropout in [0, 1), got {self.dropout}.")
        check_tied(self.decoder, self.embedding, self.rows[-1])

    @property
    def rows(self) -> tuple[tuple[int, ...], ...]:
        """The widths of each layer's halves, from input to output."""
        return tuple((width,) for width in self.widths)

    def resized(self, widths: Sequence[int]) -> Self:
        """Return the configuration with these widths, half after half of each layer after layer."""
        return replace(self, widths=tuple(widths))


Config = TypeVar("Config", bound=RecurrentConfig)


class RecurrentLanguageModel(LanguageModel, Generic[Config]):
    """A word-level language model whose recurrent layers may have unequal widths.

    A stacked `nn.LSTM(num_layers=2)` cannot hold layers of unequal width, so each layer is a module of its own. A
    layer may be several halves, each of its own kind of cell: all read the layer below, and what they say,
    concatenated, is what the layer above reads.

    Attributes:
        config: What the model is made of.
        halves: The kind of cell of each half of every layer.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.halves = self.cells(config)
        self.encoder = nn.Embedding(config.vocabulary, config.embedding)
        inputs = (config.embedding, *(sum(row) for row in config.rows[:-1]))
        for place, cell in enumerate(self.halves):
            made = (cell.make(i, row[place]) for i, row in zip(inputs, config.rows, strict=True))
            self.add_module(cell.name, nn.ModuleList(made))
        last = sum(config.rows[-1])
        if config.decoder == "projected":
            self.projection = nn.Linear(last, config.embedding)
        self.decoder = nn.Linear(last, config.vocabulary)
        nn.init.uniform_(self.encoder.weight, -EMBEDDED, EMBEDDED)
        nn.init.zeros_(self.decoder.bias)
        for module in self.modules():
            if isinstance(module, LIF):
                first = module is self.get_submodule("snn.0")
                module.awake(EMBEDDED / math.sqrt(3) if first else SPIKE_SIZE)
        if config.decoder != "untied":
            self.decoder.register_parameter("weight", None)  # the embedding's serves, and is stored once

    @staticmethod
    @abstractmethod
    def cells(config: Config) -> tuple[Cell, ...]:
        """Return the kind of cell of each half of every layer."""

    def features(
        self, tokens: Tensor, state: State | None = None, offsets: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, State]:
        """Return what the decoder reads, (T, B, E or H), and the state; see `LanguageModel.features`.

        The state holds the tensors of each layer of neurons, in the order of `layers()`.
        """
        hidden, carried = self.encoder(tokens), State()
        for index, modules in enumerate(zip(*(getattr(self, cell.name) for cell in self.halves), strict=True)):
            read, outputs = self._drop(hidden), []
            for cell, module in zip(self.halves, modules, strict=True):
                before = None if state is None else state[len(carried)]
                offset = offsets.get(f"{cell.name}.{index}") if offsets else None
                half, after = cell.run(module, read, before, offset)
                outputs.append(half)
                carried.append(after)
            hidden = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
        hidden = self._drop(hidden)
        return (self.projection(hidden) if self.config.decoder == "projected" else hidden), carried

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.encoder.weight.device

    def decode(self, features: Tensor) -> Tensor:
        """Return the logits (…, V) that the decoder gives `features` (…, E or H)."""
        return F.linear(features, self.decoder_weight, self.decoder.bias)

    @property
    def decoder_weight(self) -> Tensor:
        """The decoder's matrix (V, E or H), which is the embedding's unless the decoder is untied."""
        return self.decoder.weight if self.config.decoder == "untied" else self.encoder.weight

    def _drop(self, activations: Tensor) -> Tensor:
        dropping = self.training and self.config.dropout
        return F.dropout(activations, self.config.dropout) if dropping else activations

    def layers(self) -> list[NeuronLayer]:
        """Return one layer of neurons for each half of each layer.

        Raises:
            ValueError: If the decoder is tied: its columns are the embedding's too, so no neuron is its only reader.
        """
        if self.config.decoder == "tied":
            raise ValueError("Expected a decoder with columns of its own, got a tied one; call `decoupled()` first.")
        last = "projection" if self.config.decoder == "projected" else "decoder"
        decoder = (Slice(f"{last}.weight", dim=1, bias=f"{last}.bias"),)
        declared = []
        for index, row in enumerate(self.config.rows):
            above = index + 1 == len(self.config.rows)
            readers = decoder if above else tuple(cell.reader_of(index + 1) for cell in self.halves)
            start = 0
            for cell, width in zip(self.halves, row, strict=True):
                part = tuple(replace(reader, start=start, length=width) for reader in readers)
                declared.append(cell.layer(index, width, part))
                start += width
        return declared

    def widths(self) -> tuple[int, ...]:
        """Return the number of neurons of each layer of neurons."""
        return tuple(width for row in self.config.rows for width in row)

    def resized(self, widths: Sequence[int]) -> Self:
        """Return a new model with these widths on the same device and of the same type, not yet meaningful."""
        return self._like(self.config.resized(widths))

    def decoupled(self, how: Decoupling = "project") -> Self:
        """Return an equal model whose last layer has a reader of its own; itself if it has one already.

        The new reader is frozen if the shared matrix, which it stands for, is.

        Args:
            how: `untie` copies the embedding into a decoder of its own (V × H more parameters, a faster decoder once
                H shrinks); `project` puts an identity projection before the shared matrix (E × H + E more).
        """
        if self.config.decoder != "tied":
            return self
        equal = self._like(replace(self.config, decoder="untied" if how == "untie" else "projected"))
        equal.load_state_dict(self.state_dict(), strict=False)
        shared = self.encoder.weight
        if how == "untie":
            equal.decoder.weight.data.copy_(shared.data)
            equal.decoder.weight.requires_grad_(shared.requires_grad)
        else:
            nn.init.eye_(equal.projection.weight)
            nn.init.zeros_(equal.projection.bias)
            equal.projection.requires_grad_(shared.requires_grad)
        return equal.train(self.training)

    def _like(self, config: Config) -> Self:
        """Build a model from `config` without touching the global random state."""
        with torch.random.fork_rng(devices=[]):
            model = type(self)(config)
        return frozen_as(self, model.to(self.encoder.weight))

    def multiply_adds(self) -> int:
        """Return the multiply-adds of one token: every weight matrix once, the embedding being a look-up."""
        return sum(self.get_parameter(name).numel() for name in self.multiplied())

    def multiplied(self) -> list[str]:
        """Return the weight matrices; the embedding's only where it is the decoder's, too."""
        looked_up = "encoder.weight" if self.config.decoder == "untied" else ""
        return [name for name, p in self.named_parameters() if p.ndim > 1 and name != looked_up]

    def to_config(self) -> dict[str, object]:
        """Return the configuration as plain values, for `config.json`."""
        return asdict(self.config)
