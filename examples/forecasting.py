"""Half of an LSTM that forecasts the carbon dioxide in the air above Mauna Loa, by its mean squared error.

    pip install -e '.[examples]'
    python -m examples.forecasting

The weekly series, 1958 to 2001, is one that `statsmodels` ships. 64 weeks are read and the next 26 told; the last ten
years are for judging. No row but the dense one sees what came then: the smaller networks learn from the dense one's
forecasts. `as last year` tells what came a year ago, moved by what has changed since.
"""

import sys
from collections.abc import Sequence

import torch
from statsmodels.datasets import co2
from torch import Tensor, nn
from torch.nn import functional as F

from examples.fitting import fitted
from examples.halving import halved
from examples.shown import Shown, options

READ, TOLD, YEAR, JUDGED = 64, 26, 52, 520
"""Weeks."""
SCALE = 2
"""ppm that are 1 to the network."""


class Forecaster(nn.Module):
    """Two LSTM layers that read the series, and a linear one that tells what comes from their last output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 64, 2, batch_first=True)
        self.told = nn.Linear(64, TOLD)

    def forward(self, series: Tensor) -> Tensor:
        """Return how far the weeks to come are from the last one of series (examples, 64, 1): (examples, 26)."""
        outputs, _ = self.lstm(series)
        return self.told(outputs[:, -1])


class AsLastYear(nn.Module):
    """What came a year ago, from the week a year ago on."""

    def forward(self, series: Tensor) -> Tensor:
        """Return what `Forecaster` does."""
        then = READ - 1 - YEAR
        return series[:, then + 1 : then + 1 + TOLD, 0] - series[:, then]


def spans() -> tuple[Tensor, Tensor]:
    """Return what is read, (n, 64, 1), and what comes then, (n, 26), above the last value read, week by week."""
    weekly = co2.load_pandas().data["co2"].interpolate().to_numpy()
    whole = torch.tensor(weekly, dtype=torch.float32).unfold(0, READ + TOLD, 1)
    whole = (whole - whole[:, READ - 1 : READ]) / SCALE
    return whole[:, :READ, None].contiguous(), whole[:, READ:].contiguous()


def loss_of(network: nn.Module, series: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean squared error."""
    return F.mse_loss(network(series), wanted)


def main(words: Sequence[str]) -> Shown:
    """Train, prune and show what each step keeps."""
    asked = options(__doc__).parse_args(words)
    series, wanted = spans()
    order = torch.randperm(len(series) - JUDGED - TOLD, generator=torch.Generator().manual_seed(1))
    order = order[:256] if asked.quick else order
    batches = list(zip(series[order].split(32), wanted[order].split(32), strict=True))

    def error(other: nn.Module) -> float:
        with torch.no_grad():
            return loss_of(other, series[-JUDGED:], wanted[-JUDGED:]).item() * SCALE**2

    torch.manual_seed(1)
    network = fitted(Forecaster(), batches, loss_of, epochs=2 if asked.quick else 30, rate=5e-3)
    shown = Shown(f"Carbon dioxide, {len(order)} spans to fit on, {JUDGED} to judge", {"error, ppm²": error})
    shown.row("as last year", AsLastYear())
    shown.row("dense", network)
    with torch.no_grad():
        taught = [(read, network(read)) for read, _ in batches]
    for name, smaller in halved(network, taught, nn.MSELoss(), keep=asked.keep, epochs=5):
        shown.row(name, smaller)
    return shown


if __name__ == "__main__":
    main(sys.argv[1:])
