"""A device that is none: its tensors compute on the CPU, and meet the CPU's only where a GPU's might.

On PyTorch built without CUDA a fake `cuda` tensor cannot take part in a graph of gradients, and a fake tensor of any
kind has no values. These have both: each is a wrapper around a tensor of the CPU that says that it lives elsewhere, on
the device that PyTorch leaves free for others (`PrivateUse1`). Within `pretending()`, an operation on tensors of both
devices is refused as CUDA refuses it, `numpy` is refused, and what a GPU would be waited for is counted. As on a GPU,
recurrent layers run through fused cells. Drawn numbers come from the CPU's generator.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "pretended"
DEVICE = f"{NAME}:0"
aten: Any = torch.ops.aten
INDEXING = (
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
)
"""What takes the CPU's indices for tensors of a GPU, which are copied then."""
ASKING = (
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten._unique2.default,
    aten.masked_select.default,
    aten.equal.default,
)
"""What cannot be answered before the device is done."""
COPIES = (aten._to_copy.default, aten.copy_.default, *INDEXING)
"""What may see tensors of both devices."""


class _Module(backend_registration._DummyBackendModule):
    """What `torch.pretended` is; not there unless somebody pretends, for whoever asks for an accelerator."""

    active = False
    float64 = True
    default_generators = (torch.Generator(),)

    def is_available(self) -> bool:
        return self.active

    def get_rng_state(self, device: torch.device | int = 0) -> Tensor:  # noqa: ARG002 - there is one
        return self.default_generators[0].get_state()

    def set_rng_state(self, state: Tensor, device: torch.device | int = 0) -> None:  # noqa: ARG002 - likewise
        self.default_generators[0].set_state(state)

    def synchronize(self, device: torch.device | None = None) -> None:
        """Be done."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16]


MODULE = _Module()
REAL = torch.cuda.is_available()
if not REAL:  # a process computes gradients on one kind of accelerator alone
    backend_registration._setup_privateuseone_for_python_backend(NAME, MODULE)


class Pretended(Tensor):
    """A tensor elsewhere, whose numbers are held by one of the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Self:
        made: Any = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.held = held
        return made  # type: ignore[no-any-return]

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"pretended {self.held!r}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        found = self.detach().clone().requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            found._is_param = True  # type: ignore[attr-defined]
        memo[id(self)] = found
        return found  # type: ignore[return-value]

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:  # noqa: ARG002 - as Tensor's own
        raise TypeError("can't convert pretended device type tensor to numpy. Use Tensor.cpu() first.")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, None)


class _Mode(TorchDispatchMode):
    """Sees every operation, also one that makes a tensor elsewhere or brings one there."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self.waits)


def _run(func: Any, args: Any, kwargs: dict[str, Any], waits: list[str] | None) -> Any:
    tensors = _tensors((args, *kwargs.values()))
    there = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
    here = [tensor for tensor in tensors if not isinstance(tensor, Pretended)]
    target = kwargs.get("device")
    elsewhere = bool(there) if target is None else torch.device(target).type == NAME
    if func not in COPIES and there and any(tensor.ndim for tensor in here):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} found {DEVICE} and the CPU.")
    if func in INDEXING and not isinstance(args[0], Pretended) and there:
        raise RuntimeError(f"indices should be either on cpu or on the same device as the indexed tensor ({func}).")
    if waits is not None:
        _count(func, args, kwargs, there, here, waits)
    raw = {id(tensor.held): tensor for tensor in there}

    def plain(leaf: Any) -> Any:
        return leaf.held if isinstance(leaf, Pretended) else leaf

    own = {name: _mapped(plain, value) for name, value in kwargs.items()}
    own |= {} if target is None else {"device": torch.device("cpu")}
    found = KERNELS.get(func, func)(*_mapped(plain, args), **own)
    if func is aten._to_copy.default and target is not None and there and not elsewhere and found is there[0].held:
        found = found.clone()

    def wrapped(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return raw.get(id(leaf)) or (Pretended(leaf) if elsewhere else leaf) if id(leaf) not in raw else raw[id(leaf)]

    if elsewhere and not MODULE.float64 and any(leaf.dtype == torch.float64 for leaf in _tensors(found)):
        raise TypeError(f"Cannot convert to float64 as the {NAME} framework doesn't support float64 ({func}).")
    if func is aten.copy_.default:
        return args[0]
    return _mapped(wrapped, found)


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors among an operation's arguments or results, which are tuples and lists of them at most."""
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in _tensors(part)]
    return [value] if isinstance(value, Tensor) else []


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """Return arguments or results each of which is changed, in the place where it is."""
    if isinstance(value, (tuple, list)):
        parts = [_mapped(change, part) for part in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    return change(value)


def _count(func: Any, args: Any, kwargs: Any, there: list[Any], here: list[Any], waits: list[str]) -> None:
    """Note what a GPU would be waited for: a number that is asked for, or a copy that is not asked to go on its own."""
    name = str(func).removeprefix("aten.")
    if func in ASKING and there:
        waits.append(name)
    elif func in INDEXING and isinstance(args[0], Pretended) and any(tensor.ndim for tensor in here):
        waits.append(f"{name} of the CPU's indices")
    elif func is aten.copy_.default and isinstance(args[0], Pretended) != isinstance(args[1], Pretended):
        free = len(args) > 2 and args[2] and isinstance(args[0], Pretended)
        waits.extend([] if free else [name])
    elif func is aten._to_copy.default and kwargs.get("device") is not None:
        towards = torch.device(kwargs["device"]).type == NAME
        if towards != bool(there) and not (towards and kwargs.get("non_blocking")):
            waits.append(name)


def _lstm_cell(
    entering: Tensor, beside: Tensor, cell: Tensor, bias: Tensor | None = None, other: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    gates = entering + beside + (0 if bias is None else bias) + (0 if other is None else other)
    enter, forget, content, leave = gates.chunk(4, dim=1)
    known = (enter.sigmoid(), forget.sigmoid(), content.tanh(), leave.sigmoid())
    after = known[1] * cell + known[0] * known[2]
    return known[3] * after.tanh(), after, torch.cat(known, dim=1)


def _lstm_cell_backward(
    by_output: Tensor | None, by_cell: Tensor | None, before: Tensor, after: Tensor, workspace: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    enter, forget, content, leave = workspace.chunk(4, dim=1)
    bent = after.tanh()
    by_output = torch.zeros_like(after) if by_output is None else by_output
    by_after = (0 if by_cell is None else by_cell) + by_output * leave * (1 - bent.square())
    gates = torch.cat(
        [
            by_after * content * enter * (1 - enter),
            by_after * before * forget * (1 - forget),
            by_after * enter * (1 - content.square()),
            by_output * bent * leave * (1 - leave),
        ],
        dim=1,
    )
    return gates, by_after * forget, gates.sum(0) if has_bias else gates.new_zeros(0)


def _gru_cell(
    entering: Tensor, beside: Tensor, hidden: Tensor, bias: Tensor | None = None, other: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    above = (entering + (0 if bias is None else bias)).chunk(3, dim=1)
    own = (beside + (0 if other is None else other)).chunk(3, dim=1)
    reset, update = (above[0] + own[0]).sigmoid(), (above[1] + own[1]).sigmoid()
    content = (above[2] + reset * own[2]).tanh()
    return content + update * (hidden - content), torch.cat([reset, update, content, hidden, own[2]], dim=1)


def _gru_cell_backward(by_output: Tensor, workspace: Tensor, has_bias: bool) -> tuple[Tensor, ...]:
    reset, update, content, hidden, own = workspace.chunk(5, dim=1)
    by_content = by_output * (1 - update) * (1 - content.square())
    by_update = by_output * (hidden - content) * update * (1 - update)
    by_reset = by_content * own * reset * (1 - reset)
    above = torch.cat([by_reset, by_update, by_content], dim=1)
    beside = torch.cat([by_reset, by_update, by_content * reset], dim=1)
    biases = (above.sum(0), beside.sum(0)) if has_bias else (above.new_zeros(0), beside.new_zeros(0))
    return above, beside, by_output * update, *biases


KERNELS: dict[Any, Callable[..., Any]] = {
    aten._thnn_fused_lstm_cell.default: _lstm_cell,
    aten._thnn_fused_lstm_cell_backward_impl.default: _lstm_cell_backward,
    aten._thnn_fused_gru_cell.default: _gru_cell,
    aten._thnn_fused_gru_cell_backward.default: _gru_cell_backward,
}
"""The cells that only GPUs have a kernel for."""


def _without_graph(mode: bool = True) -> Any:
    return torch.no_grad() if mode else nullcontext()


@contextmanager
def pretending(*, float64: bool = True) -> Iterator[list[str]]:
    """Within the context there is a device `pretended`; yields what a program has waited for it for, in order.

    Args:
        float64: Whether it has this type; Apple's chips have not.
    """
    if REAL:
        pytest.skip("a real accelerator is there, and a process computes gradients on one kind alone")
    before, inference = torch.__future__.get_overwrite_module_params_on_conversion(), torch.inference_mode
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a wrapper's numbers cannot be put into another
    torch.inference_mode = _without_graph  # type: ignore[assignment,misc]  # a wrapper cannot be an inference tensor
    mode = _Mode()
    MODULE.active, MODULE.float64 = True, float64
    try:
        with mode:
            yield mode.waits
    finally:
        MODULE.active, MODULE.float64 = False, True
        torch.inference_mode = inference  # type: ignore[misc]
        torch.__future__.set_overwrite_module_params_on_conversion(before)
