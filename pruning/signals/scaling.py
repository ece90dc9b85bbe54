"""How components with different units become one importance: scaled within their layer, then weighted."""

import logging
from collections.abc import Collection, Mapping

import pandas as pd
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

LOW, HIGH = 0.05, 0.95
"""Quantiles of a layer that become 0 and 1; what lies outside is clipped, so one outlier cannot flatten the rest."""


def scaled(values: Tensor) -> Tensor:
    """Return one layer's values on a common scale, robust to outliers: (x − q05) / (q95 − q05), clipped to [0, 1].

    Where more than nine tenths of the values are equal, the extremes take the quantiles' place; a constant becomes ½.

    >>> scaled(torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])).round(decimals=2)
    tensor([0.0000, 0.2200, 0.5000, 0.7800, 1.0000], dtype=torch.float64)
    """
    exact = values.cpu().double()
    low, high = torch.quantile(exact, torch.tensor([LOW, HIGH], dtype=exact.dtype))
    if low == high:
        low, high = exact.min(), exact.max()
    if low == high:
        return torch.full_like(exact, 0.5)
    relative: Tensor = (exact - low) / (high - low)
    return relative.clamp(0, 1)


def weighted(components: Mapping[str, Tensor], shares: Mapping[str, float]) -> Tensor:
    """Return Σ share × scaled(component) over the components of one layer, (width,) in [0, 1].

    Raises:
        ValueError: If a component is not a finite number for every neuron.
    """
    for name, values in components.items():
        if not values.isfinite().all():
            others = int((~values.isfinite()).sum())
            raise ValueError(
                f"Expected finite values of {name}, got {others} others; look for weights or inputs that are "
                "not finite."
            )
    return torch.stack([share * scaled(components[name]) for name, share in shares.items()]).sum(0)


def signal_rows(
    layer: str,
    components: Mapping[str, Tensor],
    importance: Tensor,
    standard_error: Tensor,
    samples: int,
    *,
    alike: Collection[str] = (),
) -> pd.DataFrame:
    """Return one layer's rows of a signal's table; of components that are `alike` by what the layer is, none warns."""
    for name, values in components.items():
        if name not in alike and len(values) > 1 and values.min() == values.max():
            logger.warning("%s of layer %s is %g for every neuron and ranks none.", name, layer, values[0])
    columns = {name: values.cpu().double().numpy() for name, values in components.items()}
    return pd.DataFrame(
        {
            "layer": layer,
            "neuron": range(len(importance)),
            **columns,
            "importance": importance.cpu().double().numpy(),
            "standard_error": standard_error.cpu().double().numpy(),
            "samples": samples,
        }
    )
