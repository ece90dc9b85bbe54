"""The Elman language model (Elman 1990): one simple recurrent layer after the other, with tanh or ReLU."""

from dataclasses import dataclass
from typing import get_args

from pruning.core.options import Nonlinearity, expect_known
from pruning.models.cells import Cell, recurrent_cell
from pruning.models.recurrent import RecurrentConfig, RecurrentLanguageModel


@dataclass(frozen=True, kw_only=True)
class RNNConfig(RecurrentConfig):
    """What an Elman language model is made of.

    Attributes:
        nonlinearity: `tanh` or `relu`.
    """

    nonlinearity: Nonlinearity

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_known("nonlinearity", sorted(get_args(Nonlinearity)), self.nonlinearity)


class RNNLanguageModel(RecurrentLanguageModel[RNNConfig]):
    """A word-level language model of Elman layers; each runs through PyTorch's fused kernel."""

    @staticmethod
    def cells(config: RNNConfig) -> tuple[Cell, ...]:
        """Return the one kind of cell of every layer."""
        return (recurrent_cell("rnn_tanh" if config.nonlinearity == "tanh" else "rnn_relu"),)
