"""The mixed language model: each layer is a recurrent half beside a spiking half, and both read both below."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from pruning.core.options import RecurrentCell, check_halves
from pruning.models.cells import Cell, recurrent_cell
from pruning.models.recurrent import RecurrentLanguageModel
from pruning.models.snn import SpikingConfig, cell_of


@dataclass(frozen=True, kw_only=True)
class MixedConfig(SpikingConfig):
    """What a mixed language model is made of; `widths` are those of the recurrent halves.

    Attributes:
        cell: What the recurrent halves are: `lstm`, `gru`, `rnn_tanh` or `rnn_relu`.
        snn_widths: Spiking neurons of each layer, from input to output.
    """

    cell: RecurrentCell
    snn_widths: tuple[int, ...]

    def __post_init__(self) -> None:
        check_halves(self.widths, self.snn_widths)
        super().__post_init__()

    @property
    def rows(self) -> tuple[tuple[int, ...], ...]:
        """The widths of each layer's halves, from input to output."""
        return tuple(zip(self.widths, self.snn_widths, strict=True))

    def resized(self, widths: Sequence[int]) -> Self:
        """Return the configuration with these widths: recurrent half, spiking half, layer after layer."""
        return replace(self, widths=tuple(widths[::2]), snn_widths=tuple(widths[1::2]))


class MixedLanguageModel(RecurrentLanguageModel[MixedConfig]):
    """A word-level language model whose layers are continuous and spiking halves side by side."""

    @staticmethod
    def cells(config: MixedConfig) -> tuple[Cell, ...]:
        """Return the kinds of cell of the two halves of every layer."""
        return recurrent_cell(config.cell), cell_of(config)
