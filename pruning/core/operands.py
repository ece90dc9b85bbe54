"""Seeing what a parameter is multiplied with, or what its rows are, where only a network's own code reads them."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruning.core.uncompiled import Mode

_PRODUCTS = {
    **dict.fromkeys(("mm", "bmm", "mv", "linear", "matmul", "grouped_mm", "_grouped_mm"), 0),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), 1),
}
"""Product → which of its arguments is the first factor, the next being the second."""
_CONVOLUTIONS = ("convolution", "conv1d", "conv2d", "conv3d")
LOOKUPS = ("index", "index_select", "gather", "embedding")
"""What looks up rows of a table, its first argument."""
Hook = Callable[[nn.Module, tuple[Any, ...], Any], None]
"""Called like a forward hook: with a module, its inputs and what it gave."""


@contextmanager
def operands(
    model: nn.Module,
    hooks: Mapping[str, Hook],
    along: Mapping[str, int] | None = None,
    tables: Collection[str] = (),
) -> Iterator[None]:
    """Within the context, call each parameter's hook with what it is multiplied with, and with the product.

    What is summed over lies along the last dimension of what the hook is given, complex numbers as two of each, one
    after the other. Views of the parameter count as it, and so does what is computed of it number by number.
    The hook of one of the `tables` is called where rows of that parameter are looked up instead: with no inputs, and
    with what is found.
    Where `along` says which dimension of a parameter reads, products that sum over another one are none of it: a tied
    decoder reads by the rows of a matrix whose columns read something else.

    >>> import torch
    >>> model, seen = nn.ParameterDict({"w": torch.ones(2, 3)}), []
    >>> with operands(model, {"w": lambda _, inputs, product: seen.append(inputs[0].tolist())}):
    ...     _ = model["w"] @ torch.tensor([[4.0], [5.0], [6.0]])
    >>> seen
    [[[4.0, 5.0, 6.0]]]
    """
    watched: dict[int, list[_Watched]] = {}
    for name, hook in hooks.items():
        module, parameter = model.get_submodule(name.rpartition(".")[0]), model.get_parameter(name)
        told = along is not None and name in along and parameter.ndim == 2  # others are read by several dimensions
        lies = (parameter.stride(along[name]), parameter.shape[along[name]]) if told and along else None
        watched.setdefault(storage_of(parameter), []).append(_Watched(module, hook, lies, name in tables))
    weights = {storage_of(tensor) for tensor in (*model.parameters(), *model.buffers())}
    with _Products(watched, weights):
        yield


@dataclass(frozen=True)
class _Watched:
    """A parameter that is watched: its module, its hook, of a matrix how far apart what reads lies, and its size.

    And whether it is watched where its rows are looked up, not where it is multiplied.
    """

    module: nn.Module
    hook: Hook
    lies: tuple[int, int] | None
    looked: bool = False

    def reads(self, factor: Tensor, dim: int) -> bool:
        """Return whether a product that sums over a dimension of a view of it is one that is looked for."""
        if self.lies is None or factor.ndim != 2:
            return True
        stride, size = self.lies
        if size == 1 or factor.shape[dim] == 1:  # no stride tells the dimensions of a single column apart
            return factor.shape[dim] == size
        return factor.stride(dim) == stride


class _Products(Mode):  # type: ignore[no-untyped-call]
    """A mode that calls hooks where a product has one of some tensors as a factor."""

    def __init__(self, watched: Mapping[int, list[_Watched]], weights: Collection[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watched, self._weights = dict(watched), set(weights)

    def __torch_dispatch__(
        self, operation: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        product = operation(*args, **(kwargs or {}))
        name = str(operation.overloadpacket).removeprefix("aten.")
        for tensor, dim, inputs in _uses(name, args):
            for one in self._watched.get(storage_of(tensor), ()):
                if one.looked == (dim is None) and (dim is None or one.reads(tensor, dim)):
                    one.hook(one.module, inputs, product)
        for result in product if isinstance(product, tuple | list) else (product,):
            if isinstance(result, Tensor):
                chosen = name in LOOKUPS and args[0].ndim > 2  # matrices of a table, which read as the whole does
                sources = () if name in _PRODUCTS else args[:1] if chosen else args
                self._follow(sources, result, repeated=chosen or name == "repeat")
        return product

    def _follow(self, args: tuple[Any, ...], result: Tensor, *, repeated: bool) -> None:
        """Know what is computed of weights alone as weights, and as the one of its shape, or repeated, that is seen."""
        memory, sources = storage_of(result), [part for part in args if isinstance(part, Tensor)]
        if any(storage_of(part) == memory for part in sources):
            return  # a view
        self._watched.pop(memory, None)  # what lay there before is gone
        self._weights.discard(memory)
        if sources and all(not part.ndim or storage_of(part) in self._weights for part in sources):
            self._weights.add(memory)
            of_shape = [storage_of(part) for part in sources if repeated or part.shape == result.shape]
            known = next((self._watched[one] for one in of_shape if one in self._watched), None)
            if known is not None:
                self._watched[memory] = known


def _uses(name: str, args: tuple[Any, ...]) -> Iterator[tuple[Tensor, int | None, tuple[Any, ...]]]:
    """Yield what may be a weight, which of its dimensions is summed over, and what it is multiplied with.

    Of a table whose rows are looked up that is no dimension, and nothing.
    """
    if name in LOOKUPS:
        yield args[0], None, ()
    elif name in _CONVOLUTIONS:
        yield args[1], 1, (_numbers(args[0].movedim(1 - args[1].ndim, -1)),)
    elif name in _PRODUCTS:
        left, right = args[_PRODUCTS[name] : _PRODUCTS[name] + 2]
        yield right, -1 if name == "linear" or right.ndim == 1 else -2, (_numbers(left),)
        yield left, -1, (_numbers(right.mT if right.ndim > 1 else right),)


def _numbers(factor: Tensor) -> Tensor:
    """Return real and imaginary parts of complex numbers, one after the other; others as they are."""
    return torch.view_as_real(factor).movedim(-1, 0) if factor.is_complex() else factor


def storage_of(tensor: Tensor) -> int:
    """Return a number of the memory that a tensor and its views share, also where no address is to be had."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # a sparse tensor has none
        return id(tensor)


def geometry(tensor: Tensor) -> tuple[Any, ...]:
    """Return how a tensor lies in its memory: two that lie alike there are one."""
    return tuple(tensor.shape), tuple(tensor.stride()), tensor.storage_offset(), tensor.dtype


def reach_of(tensor: Tensor) -> int:
    """Return how far into its memory a tensor reaches."""
    if not tensor.numel():
        return 0
    steps = ((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int(tensor.storage_offset() + 1 + sum(steps))
