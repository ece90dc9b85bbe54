"""Modules that compute their weight in each call (`W + B @ A`, a standardised `W`) made plain ones that have it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pruning.core.rebinding import put
from pruning.discovery.moves import RANDOM
from pruning.discovery.operations import MOVING
from pruning.discovery.propagation import normalised
from pruning.discovery.running import Inputs, Seeing, kept_tensors, name_of, running, written
from pruning.discovery.values import flat

_KINDS: dict[str, type[nn.Module]] = {
    "linear": nn.Linear,
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
}
"""What reads by a weight → the module that does only that."""


@dataclass(frozen=True)
class Computed:
    """A module that reads what it is given by a weight that it computes of its parameters alone.

    Attributes:
        operation: How it reads: see `_KINDS`.
        settings: What that operation is called with besides.
        weight: The weight that it computes.
        bias: What is added, if anything is.
    """

    operation: str
    settings: dict[str, Any]
    weight: Tensor
    bias: Tensor | None

    def plan(self) -> dict[str, Any]:
        """Return as plain values how the module is made that stands for it."""
        return {
            "operation": self.operation,
            "settings": self.settings,
            "shape": list(self.weight.shape),
            "bias": self.bias is not None,
        }


def computed_in(network: nn.Module, inputs: Inputs) -> dict[str, Computed]:
    """Return the modules, by their paths, that do nothing but compute a weight and read by it.

    Args:
        network: It is left as it was.
        inputs: What it is called with; it is run only if some module has a matrix of its own and is none of PyTorch's.
    """
    own = (
        module for path, module in network.named_modules() if path and not type(module).__module__.startswith("torch.")
    )
    if not any(parameter.ndim > 1 for module in own for parameter in module.parameters(recurse=False)):
        return {}
    seen = _Weighing()
    try:
        with running(network, inputs, seen):
            return {path: one for path, one in seen.found.items() if one is not None}
    except Exception:  # whatever a user's code raises; what it is says the one who needs it to run
        return {}


def plainly(network: nn.Module, computed: Mapping[str, Computed | Mapping[str, Any]]) -> nn.Module:
    """Return the network, changed in place, with modules that have their weights in place of those that compute them.

    Args:
        network: What has them.
        computed: Path → what was found there, or its plan: then the weights are not yet meaningful.
    """
    for path, one in computed.items():
        plan = one.plan() if isinstance(one, Computed) else one
        before = network.get_submodule(path)
        module = _made(plan).train(before.training)
        like = next(before.parameters())
        learnt = any(parameter.requires_grad for parameter in before.parameters())
        for name in ("weight", "bias"):
            shape = getattr(module, name)
            value = getattr(one, name) if isinstance(one, Computed) else None
            if shape is not None:
                value = like.new_zeros(shape.shape) if value is None else value.detach().clone()
                setattr(module, name, nn.Parameter(value, requires_grad=learnt))
        put(network, path, module)
    return network


def _made(plan: Mapping[str, Any]) -> nn.Module:
    """Return a module that reads as an operation does, its weights not there yet."""
    outputs, inputs, *kernel = plan["shape"]
    kind: Any = _KINDS[plan["operation"]]
    settings = dict(plan["settings"])
    if kernel:
        inputs *= settings["groups"]
        sizes = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        return kind(inputs, outputs, tuple(kernel), bias=plan["bias"], device="meta", **sizes)  # type: ignore[no-any-return]
    return kind(inputs, outputs, bias=plan["bias"], device="meta")  # type: ignore[no-any-return]


@dataclass
class _Frame:
    """One call of a module.

    Attributes:
        given: Its first input.
        calls: The operations on anything but parameters.
        inner: Whether it calls other modules.
    """

    given: object
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = field(default_factory=list)
    inner: bool = False


class _Weighing(Seeing):  # type: ignore[no-untyped-call]
    """What each module computes of its parameters alone, and what of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Computed | None] = {}
        self._frames: list[_Frame] = []
        self._own: dict[int, bool] = {}  # of what is computed of parameters: whether it is more than a view of one
        self._held: list[Tensor] = []

    def begin(self, network: nn.Module, inputs: Inputs, prefix: str) -> None:  # noqa: ARG002 - as every mode is told
        """Know the parameters; follow the modules."""
        self._own = {id(tensor): False for tensor in kept_tensors(network).values()}
        for path, module in network.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                module.register_forward_pre_hook(self._enter)
                module.register_forward_hook(lambda _, __, given, path=path: self._leave(path, given))

    def _enter(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        for frame in self._frames[-1:]:
            frame.inner = True
        self._frames.append(_Frame(inputs[0] if len(inputs) == 1 else None))

    def _leave(self, path: str, given: object) -> None:
        one = self._computed(self._frames.pop(), given)
        self.found[path] = one if path and self.found.get(path, one) is not None else None

    def _computed(self, frame: _Frame, given: object) -> Computed | None:
        """Return what a call of a module is, if it is nothing but reading what it is given by a computed weight."""
        if frame.inner or len(frame.calls) != 1:
            return None
        operation, args, kwargs, found = frame.calls[0]
        name = name_of(operation)
        if name not in _KINDS or found is not given:
            return None
        args, _ = normalised(operation, args, kwargs)
        value, weight, bias, *others = args
        if (
            value is not frame.given
            or not self._own.get(id(weight))
            or (bias is not None and id(bias) not in self._own)
        ):
            return None
        settings = dict(zip(("stride", "padding", "dilation", "groups"), others, strict=False))
        return Computed(name, settings, weight, bias)

    def see(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note whether the operation takes anything but parameters."""
        found, name = operation(*args, **kwargs), name_of(operation)
        given = [tensor for tensor in flat((args, kwargs)) if isinstance(tensor, Tensor)]
        if (
            all(id(tensor) in self._own for tensor in given)
            and name not in RANDOM
            and not written(operation, args, kwargs)
        ):
            more = name not in MOVING or any(self._own[id(tensor)] for tensor in given)
            for tensor in (part for part in flat(found) if isinstance(part, Tensor)):
                self._own[id(tensor)] = more
                self._held.append(tensor)
        elif self._frames and name != "detach":
            self._frames[-1].calls.append((operation, args, kwargs, found))
        return found
