"""What every family of language models offers, whatever its neurons are."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal, Self, TypeAlias

from torch import Tensor, nn

from pruning.layers import PrunableModule

State: TypeAlias = list[tuple[Tensor, ...]]
"""What a model carries from window to window: some tensors for each layer."""
Decoder = Literal["untied", "tied", "projected"]


class LanguageModel(PrunableModule):
    """Reads tokens (T, B), carries a state, and gives the logits (T, B, V) of each next token."""

    encoder: nn.Embedding

    @abstractmethod
    def features(
        self, tokens: Tensor, state: State | None = None, offsets: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, State]:
        """Return what the decoder reads, (T, B, features), and the state; for whoever needs no logits.

        Args:
            tokens: What to read, (T, B).
            state: What the window before left, or None.
            offsets: Layer name → what is added to its outputs before any reader reads them, (T, B, width). The
                derivative of a loss by them (at zero) is how much it depends on each output, through every reader
                within these T steps.
        """

    @property
    @abstractmethod
    def decoder_weight(self) -> Tensor:
        """The matrix (V, features) that `decode` multiplies features by."""

    @abstractmethod
    def decode(self, features: Tensor) -> Tensor:
        """Return the logits (…, V) that the decoder gives `features` (…, features)."""

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return the logits (T, B, V) of the token after each of `tokens` (T, B), and the state to carry on from."""
        features, state = self.features(tokens, state)
        return self.decode(features), state

    @abstractmethod
    def widths(self) -> tuple[int, ...]:
        """Return the number of neurons of each layer."""

    @abstractmethod
    def decoupled(self, how: Literal["untie", "project"] = "project") -> Self:
        """Return an equal model in which every layer of neurons has readers of its own; itself if it is one already."""

    @abstractmethod
    def multiply_adds(self) -> int:
        """Return the multiply-adds of one token."""

    @abstractmethod
    def to_config(self) -> dict[str, object]:
        """Return the configuration as plain values, for `config.json`."""
