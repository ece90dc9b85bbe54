"""The LSTM language model: embedding, one LSTM a layer with its own width, decoder (tied, projected or untied)."""

from pruning.models.cells import Cell, recurrent_cell
from pruning.models.recurrent import RecurrentConfig, RecurrentLanguageModel


class LSTMLanguageModel(RecurrentLanguageModel[RecurrentConfig]):
    """A word-level language model of LSTM layers; each runs through PyTorch's fused kernel."""

    @staticmethod
    def cells(config: RecurrentConfig) -> tuple[Cell, ...]:  # noqa: ARG004 - nothing to configure
        """Return the one kind of cell of every layer."""
        return (recurrent_cell("lstm"),)
