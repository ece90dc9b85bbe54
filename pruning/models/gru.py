"""The GRU language model: one gated recurrent unit (Cho et al. 2014) a layer, in PyTorch's variant."""

from collections.abc import Sequence

from pruning.models.base import Decoder
from pruning.models.cells import Cell, recurrent_cell
from pruning.models.recurrent import RecurrentConfig, RecurrentLanguageModel


class GRULanguageModel(RecurrentLanguageModel[RecurrentConfig]):
    """A word-level language model of GRU layers; each runs through PyTorch's fused kernel."""

    @staticmethod
    def cells(config: RecurrentConfig) -> tuple[Cell, ...]:  # noqa: ARG004 - nothing to configure
        """Return the one kind of cell of every layer."""
        return (recurrent_cell("gru"),)


def build(
    *, vocabulary: int, embedding: int, widths: Sequence[int], decoder: Decoder, dropout: float
) -> GRULanguageModel:
    """Return a GRU language model; its initial weights are drawn from the current random state."""
    config = RecurrentConfig(
        vocabulary=vocabulary, embedding=embedding, widths=tuple(widths), decoder=decoder, dropout=dropout
    )
    return GRULanguageModel(config)
