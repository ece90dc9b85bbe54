"""The GRU language model: one gated recurrent unit (Cho et al. 2014) a layer, in PyTorch's variant."""

from pruning.models.cells import Cell, recurrent_cell
from pruning.models.recurrent import RecurrentConfig, RecurrentLanguageModel


class GRULanguageModel(RecurrentLanguageModel[RecurrentConfig]):
    """A word-level language model of GRU layers; each runs through PyTorch's fused kernel."""

    @staticmethod
    def cells(config: RecurrentConfig) -> tuple[Cell, ...]:  # noqa: ARG004 - nothing to configure
        """Return the one kind of cell of every layer."""
        return (recurrent_cell("gru"),)
