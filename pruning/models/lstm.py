"""The LSTM language model: embedding, one LSTM a layer with its own width, decoder (tied, projected or untied)."""

from collections.abc import Sequence

from pruning.models.base import Decoder
from pruning.models.cells import Cell, recurrent_cell
from pruning.models.recurrent import RecurrentConfig, RecurrentLanguageModel


class LSTMLanguageModel(RecurrentLanguageModel[RecurrentConfig]):
    """A word-level language model of LSTM layers; each runs through PyTorch's fused kernel."""

    @staticmethod
    def cells(config: RecurrentConfig) -> tuple[Cell, ...]:  # noqa: ARG004 - nothing to configure
        """Return the one kind of cell of every layer."""
        return (recurrent_cell("lstm"),)


def build(
    *, vocabulary: int, embedding: int, widths: Sequence[int], decoder: Decoder, dropout: float
) -> LSTMLanguageModel:
    """Return an LSTM language model; its initial weights are drawn from the current random state."""
    config = RecurrentConfig(
        vocabulary=vocabulary, embedding=embedding, widths=tuple(widths), decoder=decoder, dropout=dropout
    )
    return LSTMLanguageModel(config)
