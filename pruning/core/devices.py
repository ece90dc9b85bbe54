"""What depends on where tensors live: random states, waiting, kernels for derivatives, and float32's precision."""

import copy
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from pruning.core.memory import tensors_of
from pruning.core.unrolled import KINDS, unrolled

Module = TypeVar("Module", bound=nn.Module)
_TWICE: ContextVar[bool] = ContextVar("twice", default=False)


class _Unrolling(TorchFunctionMode):
    """Runs recurrent layers, and what else has no second derivative, by what has one, at the least cost."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name == "hardsigmoid":  # MobileNet's; of its kernel's gradient there is no derivative
            return nn.functional.relu6((args[0] if args else (kwargs or {})["input"]) + 3) / 6
        if name == "view":  # what is unrolled lies otherwise than a kernel's outputs, which a user's code may view
            try:
                return function(*args, **(kwargs or {}))
            except RuntimeError:
                return function(args[0].contiguous(), *args[1:], **(kwargs or {}))
        if name not in KINDS or function is not getattr(torch._VF, name) or not torch.is_grad_enabled():
            return function(*args, **(kwargs or {}))
        if not _in_one_direction(args):
            with unfused():
                return function(*args)
        with torch.no_grad():
            outputs, *after = function(*args)
        inputs, start, weights, *_, batch_first = args
        turned = [tensor.transpose(0, 1) if batch_first else tensor for tensor in (inputs, outputs)]
        state = [start] if isinstance(start, Tensor) else start
        outputs, *after = unrolled(name, turned[0], state, weights, (turned[1], *after))
        return outputs.transpose(0, 1) if batch_first else outputs, *after


def _in_one_direction(args: Sequence[Any]) -> bool:
    """Return whether a recurrent layer is a single one, of sequences that are not packed, and not projected."""
    if isinstance(args[1], Tensor) and not args[1].is_floating_point():  # how many examples are left at each step
        return False
    _, _, weights, _, layers, _, _, bidirectional, _ = args
    return layers == 1 and not bidirectional and len(weights) in (2, 4)


class _Unfilled(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if getattr(function, "__module__", "") == nn.init.__name__:
            return given["tensor"] if "tensor" in given else args[0]
        return function(*args, **given)


@contextmanager
def without_values() -> Iterator[None]:
    """Make new tensors and modules of their shapes alone, on the meta device.

    What gives modules their first values passes: PyTorch would do it there by references in Python, for which it
    imports its compiler, a second of each process's.

    >>> with without_values():
    ...     layer = nn.LSTM(400, 100_000)
    >>> layer.weight_ih_l0.device, layer.weight_ih_l0.shape
    (device(type='meta'), torch.Size([400000, 400]))
    """
    with torch.device("meta"), _Unfilled(), unvalidated():
        yield


@contextmanager
def unvalidated() -> Iterator[None]:
    """Let distributions be made of parameters whose numbers nobody can look at.

    >>> with unvalidated():
    ...     torch.distributions.Categorical(logits=torch.ones(2, 3, device="meta")).batch_shape
    torch.Size([2])
    """
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device. Towards an accelerator nobody waits for the copy; from one it must be there."""
    return tensor.to(device, non_blocking=device.type != "cpu")


def finest(device: torch.device) -> torch.dtype:
    """Return the finest floating-point type that a device computes with: float64, or float32 where there is none."""
    return torch.float32 if device.type == "mps" else torch.float64


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was told; a CPU has."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)


def accelerators_of(module: nn.Module) -> list[torch.device]:
    """Return the devices besides the CPU on which a module's parameters and buffers live."""
    return accelerators_among(tensors_of(module))


def accelerators_among(tensors: Iterable[Tensor]) -> list[torch.device]:
    """Return the devices besides the CPU on which some of the tensors live."""
    devices = {tensor.device for tensor in tensors}
    return sorted((device for device in devices if device.type not in ("cpu", "meta")), key=str)


def expect_on(module: nn.Module, device: torch.device | str | None) -> None:
    """Refuse a module that is not on the device that it is said to compute on; None says nothing.

    Raises:
        ValueError: If it is elsewhere.
    """
    device_of_model = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    wanted = device_of_model if device is None else torch.device(device)
    if wanted.type != device_of_model.type or wanted.index not in (None, device_of_model.index):
        raise ValueError(
            f"Expected a model on {wanted}, got one on {device_of_model}; call model.to({str(wanted)!r}) first."
        )


class RandomStates:
    """The global random states of Python, NumPy, PyTorch on the CPU and some other devices, to be put back later."""

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self.python, self.numpy, self.cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - whatever a user's code draws from
        self.others = [(device, _state(device)) for device in devices]

    def restore(self) -> None:
        """Put the states back."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002
        torch.set_rng_state(self.cpu)
        for device, state in self.others:
            module, place = torch.get_device_module(device), _place(device)
            module.set_rng_state(state, *place)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Within the context, what is drawn is what was drawn from these states on; then it goes on as without it.

        So a network that draws, or is called by what does (noise and a time for each example), reads what the one did
        that it is compared with.

        >>> states = RandomStates([])
        >>> one = torch.rand(1)
        >>> with states.again():
        ...     other = torch.rand(1)
        >>> bool(one == other), bool(torch.rand(1) == one)
        (True, False)
        """
        after = RandomStates(device for device, _ in self.others)
        self.restore()
        try:
            yield
        finally:
            after.restore()

    def untouched(self) -> bool:
        """Return whether nothing was drawn since."""
        now = RandomStates(device for device, _ in self.others)
        arrays = zip(self.numpy, now.numpy, strict=True)
        tensors = ((one, other) for (_, one), (_, other) in zip(self.others, now.others, strict=True))
        return (
            self.python == now.python
            and all(np.array_equal(one, other) for one, other in arrays)
            and all(torch.equal(one, other) for one, other in ((self.cpu, now.cpu), *tensors))
        )


def states_of(module: nn.Module) -> RandomStates:
    """Return the random states of where a module lives."""
    return RandomStates(accelerators_of(module))


def _state(device: torch.device) -> Tensor:
    state: Tensor = torch.get_device_module(device).get_rng_state(*_place(device))
    return state


def _place(device: torch.device) -> tuple[Any, ...]:
    """Return what says which device of its kind is meant; of MPS there is one, and its functions take no device."""
    return () if device.type == "mps" else (device,)


def expect_seed(seed: Any) -> None:
    """Refuse what random numbers cannot begin from.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it is below 0.
    """
    if not isinstance(seed, Integral):
        raise TypeError(f"Expected a whole number as seed, such as 1, got {seed!r}.")
    if seed < 0:
        raise ValueError(f"Expected a seed from 0, got {seed}.")


@contextmanager
def seeded(module: nn.Module, seed: int) -> Iterator[None]:
    """Within the context, what is drawn where the module lives comes from `seed`; random states are then as before."""
    with seeded_on(accelerators_of(module), seed):
        yield


@contextmanager
def seeded_on(devices: Iterable[torch.device], seed: int) -> Iterator[None]:
    """Within the context, what is drawn on the CPU and these devices comes from `seed`; states are then as before.

    So does what Python's `random` and NumPy's global state give: teacher forcing draws by them whether to force.
    `torch.manual_seed` would seed every other device too, whose state nobody here puts back, and keep a traceback of
    each call for every kind of device that was not used yet: milliseconds, and memory that grows.
    """
    expect_seed(seed)
    devices = list(devices)
    states = RandomStates(devices)
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        for device in devices:
            if device.type == "mps":
                torch.mps.manual_seed(seed)
            else:
                torch.get_device_module(device).default_generators[device.index].manual_seed(seed)
        yield
    finally:
        states.restore()


@contextmanager
def drawing(module: nn.Module) -> Iterator[None]:
    """Within the context, the module may draw random numbers where it lives; random states are then as before."""
    states = states_of(module)
    try:
        yield
    finally:
        states.restore()


def twin_of(module: Module) -> Module:
    """Return a copy of a module, its recurrent layers laid out as cuDNN reads them, which copying alone undoes."""
    twin = copy.deepcopy(module)
    for part in twin.modules():
        if isinstance(part, nn.RNNBase):
            part.flatten_parameters()
    return twin


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Within the context, cuDNN is left out; what else was set of it stays."""
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Within the context, choose kernels whose gradients can be differentiated: fused ones mostly cannot.

    Recurrent layers of one direction, and each layer of stacked ones that were taken apart, are `unrolled`, where
    gradients are asked for; what of an LSTM is left, packed or projected, runs without oneDNN.
    """
    token = _TWICE.set(True)
    try:
        with without_cudnn(), sdpa_kernel(SDPBackend.MATH), _Unrolling():
            yield
    finally:
        _TWICE.reset(token)


def differentiated_twice() -> bool:
    """Return whether gradients are to be differentiated again, in a context of `twice_differentiable`."""
    return _TWICE.get()


@contextmanager
def unfused() -> Iterator[None]:
    """Within the context, let recurrent layers run as products of matrices, which can be counted."""
    before: tuple[Any, ...] = torch.backends.mkldnn.set_flags(_enabled=False)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=before[0])  # type: ignore[no-untyped-call]


@contextmanager
def full_precision() -> Iterator[None]:
    """Within the context, a GPU computes float32 as such; by default its recurrent layers and convolutions do not."""
    cudnn: Any = torch.backends.cudnn
    kinds: tuple[Any, ...] = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    before = [kind.fp32_precision for kind in kinds]
    for kind in kinds:
        kind.fp32_precision = "ieee"
    try:
        yield
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision
