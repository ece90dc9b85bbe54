"""The LSTM language model: embedding, one LSTM a layer with its own width, decoder (tied, projected or untied)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.layers import NeuronLayer, Slice
from pruning.models.base import Decoder, LanguageModel, State

GATES = 4


@dataclass(frozen=True, kw_only=True)
class LSTMConfig:
    """What an LSTM language model is made of; a pruned model is one with smaller `widths`.

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
        if min(self.vocabulary, self.embedding, *self.widths) < 1:
            raise ValueError(f"Expected sizes of at least 1, got {self}.")
        if self.decoder == "tied" and self.widths[-1] != self.embedding:
            raise ValueError(
                f"Expected a last layer as wide as the embedding ({self.embedding}) for a tied decoder, "
                f"got {self.widths[-1]}; use decoder 'projected' or 'untied'."
            )


class LSTMLanguageModel(LanguageModel):
    """A word-level language model whose recurrent layers may have unequal widths.

    A stacked `nn.LSTM(num_layers=2)` cannot hold layers of unequal width, so each layer is a module of its own;
    each still runs through PyTorch's fused kernel.
    """

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = nn.Embedding(config.vocabulary, config.embedding)
        inputs = (config.embedding, *config.widths[:-1])
        self.lstm = nn.ModuleList(nn.LSTM(i, w) for i, w in zip(inputs, config.widths, strict=True))
        if config.decoder == "projected":
            self.projection = nn.Linear(config.widths[-1], config.embedding)
        self.decoder = nn.Linear(config.widths[-1], config.vocabulary)
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        if config.decoder != "untied":
            self.decoder.register_parameter("weight", None)  # the embedding's serves, and is stored once

    def features(
        self, tokens: Tensor, state: State | None = None, offsets: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, State]:
        """Return what the decoder reads, (T, B, E or H), and the state; see `LanguageModel.features`."""
        hidden, carried = self.encoder(tokens), []
        for index, lstm in enumerate(self.lstm):
            offset = (offsets or {}).get(f"lstm.{index}")
            before = None if state is None else state[index]
            hidden, layer_state = _run(lstm, self._drop(hidden), before, offset)
            carried.append(layer_state)
        hidden = self._drop(hidden)
        return (self.projection(hidden) if self.config.decoder == "projected" else hidden), carried

    def decode(self, features: Tensor) -> Tensor:
        """Return the logits (…, V) that the decoder gives `features` (…, E or H)."""
        return F.linear(features, self.decoder_weight, self.decoder.bias)

    @property
    def decoder_weight(self) -> Tensor:
        """The decoder's matrix (V, E or H), which is the embedding's unless the decoder is untied."""
        return self.decoder.weight if self.config.decoder == "untied" else self.encoder.weight

    def _drop(self, activations: Tensor) -> Tensor:
        return F.dropout(activations, self.config.dropout, self.training)

    def layers(self) -> list[NeuronLayer]:
        """Return one layer of neurons for each LSTM layer.

        Raises:
            ValueError: If the decoder is tied: its columns are the embedding's too, so no neuron is its only reader.
        """
        if self.config.decoder == "tied":
            raise ValueError("Expected a decoder with columns of its own, got a tied one; call `decoupled()` first.")
        readers = [
            Slice(f"lstm.{index}.weight_ih_l0", dim=1, bias=f"lstm.{index}.bias_ih_l0")
            for index in range(1, len(self.lstm))
        ]
        last = "projection" if self.config.decoder == "projected" else "decoder"
        readers.append(Slice(f"{last}.weight", dim=1, bias=f"{last}.bias"))
        return [
            NeuronLayer(
                name=f"lstm.{index}",
                kind="rnn",
                width=width,
                owned=tuple(
                    Slice(f"lstm.{index}.{parameter}_l0", dim=0, blocks=GATES)
                    for parameter in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                ),
                read=(Slice(f"lstm.{index}.weight_hh_l0", dim=1, bias=f"lstm.{index}.bias_hh_l0"), reader),
                output=f"lstm.{index}",
            )
            for index, (width, reader) in enumerate(zip(self.config.widths, readers, strict=True))
        ]

    def widths(self) -> tuple[int, ...]:
        """Return the number of neurons of each layer."""
        return self.config.widths

    def resized(self, widths: Sequence[int]) -> Self:
        """Return a new model with these widths on the same device and of the same type, not yet meaningful."""
        return self._like(replace(self.config, widths=tuple(widths)))

    def decoupled(self, how: Literal["untie", "project"] = "project") -> Self:
        """Return an equal model whose last layer has a reader of its own; itself if it has one already.

        Args:
            how: `untie` copies the embedding into a decoder of its own (V × H more parameters, a faster decoder once
                H shrinks); `project` puts an identity projection before the shared matrix (E × H + E more).
        """
        if self.config.decoder != "tied":
            return self
        equal = self._like(replace(self.config, decoder="untied" if how == "untie" else "projected"))
        equal.load_state_dict(self.state_dict(), strict=False)
        if how == "untie":
            equal.decoder.weight.data.copy_(self.encoder.weight.data)
        else:
            nn.init.eye_(equal.projection.weight)
            nn.init.zeros_(equal.projection.bias)
        return equal.train(self.training)

    def _like(self, config: LSTMConfig) -> Self:
        """Build a model from `config` without touching the global random state."""
        with torch.random.fork_rng(devices=[]):
            model = type(self)(config)
        return model.to(self.encoder.weight)

    def multiply_adds(self) -> int:
        """Return the multiply-adds of one token: every weight matrix once, the embedding being a look-up."""
        recurrent = sum(p.numel() for p in self.lstm.parameters() if p.ndim > 1)
        projection = self.projection.weight.numel() if self.config.decoder == "projected" else 0
        return int(recurrent + projection + self.decoder_weight.numel())

    def to_config(self) -> dict[str, object]:
        """Return the configuration as plain values, for `config.json`."""
        return asdict(self.config)


def _run(
    lstm: nn.Module, inputs: Tensor, state: tuple[Tensor, ...] | None, offset: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return one layer's outputs plus `offset`, as each step after also reads them, and its state.

    What W_hh reads in addition, the step before's offset, enters as more inputs with W_hh as their weights, so the
    fused kernel serves.
    """
    if offset is None:
        outputs, after = lstm(inputs, state)
        return outputs, after
    weights: dict[str, Tensor] = dict(lstm.named_parameters())
    wider = nn.LSTM(inputs.shape[2] + offset.shape[2], offset.shape[2], device="meta")
    weights["weight_ih_l0"] = torch.cat([weights["weight_ih_l0"], weights["weight_hh_l0"]], dim=1)
    earlier = torch.cat([torch.zeros_like(offset[:1]), offset[:-1]])
    outputs, after = torch.func.functional_call(wider, weights, (torch.cat([inputs, earlier], dim=2), state))
    return outputs + offset, after


def build(
    *, vocabulary: int, embedding: int, widths: Sequence[int], decoder: Decoder, dropout: float
) -> LSTMLanguageModel:
    """Return an LSTM language model; its initial weights are drawn from the current random state."""
    config = LSTMConfig(
        vocabulary=vocabulary, embedding=embedding, widths=tuple(widths), decoder=decoder, dropout=dropout
    )
    return LSTMLanguageModel(config)
