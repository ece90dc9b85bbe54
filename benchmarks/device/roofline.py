"""What a device could do at best (Williams, Waterman & Patterson 2009), and how much of it some work reaches.

A product of an m × k and a k × n matrix takes at least 2 m k n / (operations a second) and at least what its three
matrices take to be read and written once. Both rates are measured, by one large product of the same type and one large
copy. What a work's matrix products take at least, over what the work takes in all, is its share of the roofline.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.device.report import Report

LAYERS = ("_cudnn_rnn", "_cudnn_rnn_backward", "mkldnn_rnn_layer", "mkldnn_rnn_layer_backward")
"""Fused recurrent layers."""


class Product(NamedTuple):
    """A matrix product, m × k by k × n, `count` of them in one call."""

    m: int
    k: int
    n: int
    dtype: torch.dtype
    count: int = 1

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.m * self.k * self.n * self.count

    @property
    def bytes(self) -> int:
        """Of the three matrices."""
        return (self.m * self.k + self.k * self.n + self.m * self.n) * self.count * self.dtype.itemsize


def products_of(name: str, arguments: Sequence[Any]) -> list[Product]:
    """Return the products that an operator of PyTorch computes."""
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    if name in ("mm", "addmm", "bmm", "baddbmm"):
        one, other = tensors[-2:]
        count = one.shape[0] if one.ndim == 3 else 1
        return [Product(one.shape[-2], one.shape[-1], other.shape[-1], one.dtype, count)]
    if name in LAYERS:
        text, weights = tensors[0], [w for w in (arguments[1] if "cudnn" in name else tensors[1:3]) if w.ndim == 2]
        tokens = math.prod(text.shape[:-1])
        forwards = [Product(tokens, weight.shape[1], weight.shape[0], weight.dtype) for weight in weights]
        return forwards * (2 if name.endswith("backward") else 1)  # by what was read and by the weights
    return []


@dataclass
class Recorded(TorchDispatchMode):  # type: ignore[misc] # its base has no types
    """Counts the matrix products of what runs inside it, backward passes too."""

    products: Counter[Product] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        """Begin as every mode does."""
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count, and do."""
        self.products.update(products_of(func.overloadpacket.__name__, args))
        return func(*args, **(kwargs or {}))


@dataclass
class Roofline:
    """What a device reaches at best: measured once for each type."""

    report: Report
    device: torch.device
    rates: dict[torch.dtype, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Measure what a large copy moves."""
        size = 2**22 if self.device.type == "cpu" else 2**28
        source = torch.zeros(size, device=self.device)
        target = torch.zeros_like(source)
        self.bandwidth = 2 * source.nbytes / self.report.seconds(lambda: target.copy_(source), self.device)

    def operations(self, dtype: torch.dtype) -> float:
        """Return operations a second of a large product."""
        if dtype not in self.rates:
            size = 1024 if self.device.type == "cpu" else 8192 if dtype.itemsize < 8 else 4096
            matrix = torch.randn(size, size, device=self.device).to(dtype)
            self.rates[dtype] = 2 * size**3 / self.report.seconds(lambda: matrix @ matrix, self.device)
        return self.rates[dtype]

    def least(self, product: Product) -> float:
        """Return the fewest seconds that a product takes."""
        return max(product.operations / self.operations(product.dtype), product.bytes / self.bandwidth)

    def share(self, work: Callable[[], object], seconds: float) -> tuple[float, str]:
        """Return the share of a work's seconds that its products take at least, and its largest product."""
        with Recorded() as recorded:
            work()
        least = {product: self.least(product) * often for product, often in recorded.products.items()}
        if not least:
            return 0.0, "–"
        largest = max(least, key=lambda product: least[product])
        kind = str(largest.dtype).removeprefix("torch.")
        name = f"{largest.m:,} × {largest.k:,} × {largest.n:,} {kind}"
        return sum(least.values()) / seconds, f"{name}, {least[largest] / seconds:.0%}"

    def row(self) -> str:
        """Return what was measured, as a sentence."""
        rates = ", ".join(f"{rate / 1e12:.1f} TFLOP/s of {str(dtype).removeprefix('torch.')}"
                          for dtype, rate in self.rates.items())  # fmt: skip
        return f"Roofline of {self.device}: {rates}; {self.bandwidth / 1e9:,.0f} GB/s."
