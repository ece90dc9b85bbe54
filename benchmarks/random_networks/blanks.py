"""What a network computes without some neurons, by a slow twin that knows nothing of who reads them.

Parameters that compute a removed neuron are NaN, and so is the neuron, wherever elementwise operations, views and
concatenations take it. What adds up over neurons (a product, a convolution, a mean, a norm, a softmax) passes the NaNs
over: it sees those that are left. So of what `discover` found only which parameters *compute* neurons is used here, and
nothing of what reads them; no code runs that removes or masks.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from pruning.core.neurons import NeuronLayer
from pruning.discovery.running import copied

Keep = Mapping[str, Tensor]


def without(given: nn.Module, layers: Sequence[NeuronLayer], keep: Keep, inputs: Sequence[Tensor]) -> Any:
    """Return what the given network gives once the neurons outside `keep` are no more."""
    network = copied(given)
    for module in list(network.modules()):
        for name in list(getattr(module, "parametrizations", ())):
            parametrize.remove_parametrizations(module, name)
    tensors = dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers())
    with torch.no_grad():
        for layer in layers:
            gone = [n for n in range(layer.width) if n not in set(keep[layer.name].tolist())]
            for piece in (*layer.owned, *layer.tied):  # what reads by a matrix that computes, too
                copies = range(piece.blocks)
                places = [
                    piece.start + (copy * layer.width + neuron) * piece.size + place
                    for copy in copies
                    for neuron in gone
                    for place in range(piece.size)
                ]
                tensors[own_name(network, piece.parameter)].index_fill_(
                    piece.dim, torch.tensor(places, dtype=torch.long), float("nan")
                )
    with passed_over():  # and with gradients, without which PyTorch has one operation for a whole attention
        return network(*inputs)


def own_name(network: nn.Module, name: str) -> str:
    """Return what the given network calls a parameter of the rewritten one, whose recurrent layers are apart."""
    path = name.removeprefix("network.").split(".")
    for length in range(len(path)):
        module = network.get_submodule(".".join(path[:length]))
        if isinstance(module, nn.RNNBase) and len(path) == length + 2:
            return ".".join([*path[:length], path[-1].replace("_l0", f"_l{path[-2]}")])
    return ".".join(path)


def padded(data: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """Return a batch of packed sequences; a neuron that is no more is none behind their ends either."""
    sequences, lengths = torch._pad_packed_sequence(data, *args)
    return sequences.masked_fill(data.isnan().all(0), float("nan")), lengths


PADDED = patch("torch.nn.utils.rnn._VF._pad_packed_sequence", padded, create=True)
"""PyTorch takes that operation apart before a mode sees it."""


@contextmanager
def passed_over() -> Iterator[None]:
    """Within the context NaNs are neurons that are no more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what switching oneDNN off asks for on a GPU
        with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH), PADDED, Blanks():
            yield


class Blanks(TorchDispatchMode):
    """A mode in which whatever takes numbers together passes the NaNs over."""

    def __init__(self) -> None:
        super().__init__()
        self.compared: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do an operation, or what stands for it."""
        name = operation.overloadpacket.__name__
        found = STAND_INS.get(name, operation)(*args, **(kwargs or {}))
        if name in COMPARISONS:  # a neuron that is no more is neither above nor below
            blank = args[0].isnan() | (args[1].isnan() if isinstance(args[1], Tensor) else False)
            self.compared[id(found)] = found, blank
        if name == "_to_copy" and id(args[0]) in self.compared and found.is_floating_point():
            return found.masked_fill(self.compared[id(args[0])][1], float("nan"))
        return found


def alike(tensor: Tensor, value: float, options: dict[str, Any]) -> Tensor:
    """Return a tensor of one value, NaN where the given one is."""
    filled = torch.ops.aten.full_like(tensor, value, **options)
    return filled.masked_fill(tensor.isnan(), float("nan")) if tensor.is_floating_point() else filled


def zeroed(tensor: Tensor) -> Tensor:
    """Return the tensor with zeros for NaNs."""
    return torch.where(tensor.isnan(), torch.zeros_like(tensor), tensor)


def product(one: Tensor, other: Tensor) -> Tensor:
    """Return the product over the places where both are numbers; NaN where there is none."""
    common = (~one.isnan()).to(one.dtype) @ (~other.isnan()).to(one.dtype)
    return (zeroed(one) @ zeroed(other)).masked_fill(common == 0, float("nan"))


def added_product(base: Tensor, one: Tensor, other: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
    """Return a product beside what is added to it."""
    return beta * base + alpha * product(one, other)


def convolved(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int,
) -> Tensor:  # fmt: skip
    """Return a convolution over what is left; NaN where none of it is read that the whole would read."""
    how = (None, stride, padding, dilation, transposed, output_padding, groups)
    left, whole = (
        torch.ops.aten.convolution(*(present(tensor).to(tensor.dtype) for tensor in (inputs, weight)), *how)
        for present in (lambda tensor: ~tensor.isnan(), torch.ones_like)
    )
    found = torch.ops.aten.convolution(zeroed(inputs), zeroed(weight), bias, *how[1:])
    return found.masked_fill((left == 0) & (whole > 0), float("nan"))


def dims_of(tensor: Tensor, dim: Any) -> list[int]:
    """Return the dimensions that an operation goes over, all where it names none."""
    if dim is None or (isinstance(dim, Sequence) and not dim):
        return list(range(tensor.ndim))
    return [dim] if isinstance(dim, int) else list(dim)


def counted(tensor: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    """Return how many numbers there are."""
    return (~tensor.isnan()).to(tensor.dtype).sum(dims_of(tensor, dim), keepdim=keepdim)


def summed(tensor: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Return the sum of the numbers; NaN of none."""
    if not tensor.is_floating_point():
        return tensor.sum(dims_of(tensor, dim), keepdim=keepdim, dtype=dtype)
    found = zeroed(tensor).sum(dims_of(tensor, dim), keepdim=keepdim, dtype=dtype)
    return found.masked_fill(counted(tensor, dim, keepdim) == 0, float("nan"))


def averaged(tensor: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Return the mean of the numbers."""
    return summed(tensor, dim, keepdim, dtype=dtype) / counted(tensor, dim, keepdim)


def varied(tensor: Tensor, dim: Any = None, *, correction: float | None = 1, keepdim: bool = False) -> Tensor:
    """Return the variance of the numbers."""
    apart = (tensor - averaged(tensor, dims_of(tensor, dim), True)).square()
    return summed(apart, dim, keepdim) / (counted(tensor, dim, keepdim) - (1 if correction is None else correction))


def length(tensor: Tensor, order: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Return the norm of the numbers."""
    if order == float("inf"):
        return greatest(tensor.abs(), dim, keepdim)
    return summed(tensor.abs() ** order, dim, keepdim, dtype=dtype) ** (1 / order)


def greatest(tensor: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """Return the greatest of the numbers."""
    found = torch.ops.aten.amax(
        tensor.nan_to_num(float("-inf"), float("inf"), float("-inf")), dims_of(tensor, dim), keepdim
    )
    return found.masked_fill(counted(tensor, dim, keepdim) == 0, float("nan"))


def least(tensor: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """Return the least of the numbers."""
    return -greatest(-tensor, dim, keepdim)


def greatest_along(tensor: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """Return the greatest of the numbers, and where it is."""
    if dim is None or isinstance(dim, Tensor):
        return torch.ops.aten.maximum(tensor, dim) if isinstance(dim, Tensor) else greatest(tensor)
    filled = torch.where(tensor.isnan(), torch.full_like(tensor, float("-inf")), tensor)
    return greatest(tensor, dim, keepdim), filled.argmax(dim, keepdim=keepdim)


def shared_out(tensor: Tensor, dim: int, _half: Any = None) -> Tensor:
    """Return the softmax of the numbers."""
    power = (tensor - greatest(tensor, dim, True)).exp()
    return power / summed(power, dim, True)


def safely_shared_out(tensor: Tensor, dim: int, _dtype: Any = None) -> Tensor:
    """Return the softmax of the numbers, zero where all are minus infinity."""
    none = (tensor == float("-inf")).all(dim, keepdim=True)
    return shared_out(tensor, dim).masked_fill(none, 0.0)


def log_shared_out(tensor: Tensor, dim: int, _half: Any = None) -> Tensor:
    """Return the logarithm of the softmax of the numbers."""
    tensor = tensor - greatest(tensor, dim, True)
    return tensor - summed(tensor.exp(), dim, True).log()


def layer_normed(inputs: Tensor, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> tuple[Tensor, ...]:
    """Return what is normalised over its last dimensions."""
    dims = list(range(inputs.ndim - len(shape), inputs.ndim))
    mean, scale = averaged(inputs, dims, True), (varied(inputs, dims, correction=0, keepdim=True) + eps).rsqrt()
    found = (inputs - mean) * scale
    found = found if weight is None else found * weight
    return found if bias is None else found + bias, mean, scale


def group_normed(
    inputs: Tensor, weight: Any, bias: Any, _n: int, channels: int, _size: int, groups: int, eps: float
) -> tuple[Tensor, ...]:
    """Return what is normalised over its groups of channels."""
    parts = inputs.unflatten(1, (groups, -1)).flatten(2)
    parts, mean, scale = layer_normed(parts, parts.shape[2:], None, None, eps)
    shape = (1, channels, *[1] * (inputs.ndim - 2))
    found = parts.reshape(inputs.shape)
    found = found if weight is None else found * weight.view(shape)
    return found if bias is None else found + bias.view(shape), mean, scale


def root_normed(inputs: Tensor, shape: Sequence[int], weight: Any, eps: float | None) -> tuple[Tensor, Tensor]:
    """Return what is divided by its root mean square."""
    dims = list(range(inputs.ndim - len(shape), inputs.ndim))
    scale = (averaged(inputs.square(), dims, True) + (torch.finfo(inputs.dtype).eps if eps is None else eps)).rsqrt()
    return (inputs * scale if weight is None else inputs * scale * weight), scale


COMPARISONS = ("gt", "ge", "lt", "le")
STAND_INS: dict[str, Callable[..., Any]] = {
    "zeros_like": lambda tensor, **options: alike(tensor, 0, options),
    "ones_like": lambda tensor, **options: alike(tensor, 1, options),
    "mm": product,
    "bmm": product,
    "mv": product,
    "dot": product,
    "addmm": added_product,
    "baddbmm": added_product,
    "addmv": added_product,
    "convolution": convolved,
    "sum": summed,
    "mean": averaged,
    "var": varied,
    "std": lambda *args, **options: varied(*args, **options).sqrt(),
    "var_mean": lambda tensor, dim=None, **options: (
        varied(tensor, dim, **options),
        averaged(tensor, dim, options.get("keepdim", False)),
    ),
    "linalg_vector_norm": length,
    "norm": length,
    "amax": greatest,
    "amin": least,
    "max": greatest_along,
    "_softmax": shared_out,
    "_safe_softmax": safely_shared_out,
    "_log_softmax": log_shared_out,
    "native_layer_norm": layer_normed,
    "native_group_norm": group_normed,
    "_fused_rms_norm": root_normed,
}
"""Operation → what it is among the neurons that are left."""
