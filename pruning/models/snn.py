"""The spiking language model: leaky integrate-and-fire layers whose spikes the decoder reads."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from pruning.models.cells import Cell, spiking_cell
from pruning.models.recurrent import RecurrentConfig, RecurrentLanguageModel


@dataclass(frozen=True, kw_only=True)
class SpikingConfig(RecurrentConfig):
    """What a language model with spiking neurons is made of.

    Attributes:
        recurrent: Whether spiking layers read their own spikes of the step before.
        leak: Share of its potential that a neuron keeps in a step at first, in (0, 1); each neuron learns its own.
        threshold: Potential at which a neuron spikes at first, above 0; each neuron learns its own.
        slope: How steep the spike's surrogate derivative is, above 0.
        least_rate: Spikes a step below which training wakes a neuron, in [0, 1); 0 for none.
    """

    recurrent: bool
    leak: float
    threshold: float
    slope: float
    least_rate: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.leak < 1:
            raise ValueError(f"Expected a leak in (0, 1), got {self.leak}.")
        if min(self.threshold, self.slope) <= 0:
            raise ValueError(f"Expected threshold and slope above 0, got {self.threshold} and {self.slope}.")
        if not 0 <= self.least_rate < 1:
            raise ValueError(f"Expected a least_rate in [0, 1), got {self.least_rate}.")


def cell_of(config: SpikingConfig) -> Cell:
    """Return the spiking cell of a configuration."""
    return spiking_cell(
        recurrent=config.recurrent,
        leak=config.leak,
        threshold=config.threshold,
        slope=config.slope,
        least_rate=config.least_rate,
    )


class SNNLanguageModel(RecurrentLanguageModel[SpikingConfig]):
    """A word-level language model of spiking layers; spikes and membrane potentials are carried like any state."""

    @staticmethod
    def cells(config: SpikingConfig) -> tuple[Cell, ...]:
        """Return the one kind of cell of every layer."""
        return (cell_of(config),)

    def expect(self, targets: Tensor | Iterable[Tensor]) -> None:
        """Leave the decoder as it is, whatever is frequent in `targets`.

        A spiking model that started from the frequencies was seen to fall silent in its last layer, and to learn less.
        One that has to learn them needs spikes for it, and keeps them.
        """
