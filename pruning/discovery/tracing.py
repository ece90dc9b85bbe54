"""A network run on its example inputs, every operation seen with the neurons that its tensors belong to."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pruning.core.devices import full_precision, seeded
from pruning.discovery.operations import RULES, follow
from pruning.discovery.propagation import (
    GIVEN,
    Address,
    Call,
    Propagation,
    Value,
    carry,
    flat,
    nobody,
    normalised,
    squeezed,
)
from pruning.discovery.recurrent import Recurrent

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""What a network is called with: positional arguments and arguments by name."""


def propagated(network: nn.Module, inputs: Inputs, prefix: str) -> Propagation:
    """Return what running the network on these inputs tells about its neurons.

    It runs twice: to see which operations its outputs depend on, and to follow the neurons through these.

    Args:
        network: It is left as it was.
        inputs: What it is called with.
        prefix: What its parameters' names are preceded by.
    """
    seen = Needs()
    with running(network, inputs, seen) as (traced, outputs):
        needed = seen.needed([*outputs, *kept_tensors(traced).values()])
    found = Propagation()
    following = Following(found, needed)
    with running(network, inputs, following, prefix) as (traced, outputs):
        following.carry(traced, prefix)
        following.finish(outputs)
    return found


@contextmanager
def running(
    network: nn.Module, inputs: Inputs, mode: "Seeing", prefix: str = "", *, calls: int = 1
) -> Iterator[tuple[nn.Module, list[Tensor]]]:
    """Run a copy of the network on copies of the inputs within a mode; yield that copy and the tensors that it gives.

    In inference mode PyTorch hands operations to a mode as they were called, so that a linear map or an LSTM is one.

    Args:
        network: It is left as it was.
        inputs: What it is called with.
        mode: What sees its operations, counting from 1 in each call.
        prefix: What its parameters' names are preceded by.
        calls: How often it is called, one time after the other; what each call gives is yielded.
    """
    traced = copied(network, sharing=True).eval()
    args, kwargs = pytree.tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, inputs)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation for a whole layer of a Transformer
    try:
        with seeded(network, 0), full_precision(), torch.inference_mode():
            mode.begin(traced, (args, kwargs), prefix)
            given = []
            for _ in range(calls):
                mode.index = 0
                with mode:
                    given += tensors_in(traced(*args, **kwargs))
            yield traced, given
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def tensors_in(given: object) -> list[Tensor]:
    """Return the tensors that an answer consists of, in order, also where it is an object that has them."""
    leaves = pytree.tree_leaves(given)
    found = (
        list(vars(leaf).values()) if not isinstance(leaf, Tensor) and hasattr(leaf, "__dict__") else [leaf]
        for leaf in leaves
    )
    return [part for parts in found for part in pytree.tree_leaves(parts) if isinstance(part, Tensor)]


def copied(module: nn.Module, *, sharing: bool = False, replacing: Mapping[int, Tensor] | None = None) -> Any:
    """Return a copy of a module, also where it keeps a state that belongs to a graph of gradients.

    Args:
        module: It is left as it was.
        sharing: Whether the copy has the same parameters; what it does to its buffers and attributes is its own.
        replacing: By identity of a tensor, what the copy has in its place.
    """
    held = (value for part in module.modules() for value in (*part._buffers.values(), *vars(part).values()))
    leaves = (leaf for value in held for leaf in flat(value))
    kept = (value for value in leaves if isinstance(value, Tensor) and not value.is_leaf)
    memo: dict[int, Any] = {id(value): value.detach().clone() for value in kept}
    if sharing:
        memo.update({id(parameter): parameter for parameter in module.parameters()})
    memo.update(replacing or {})
    return copy.deepcopy(module, memo)


def canonical(network: nn.Module) -> dict[str, str]:
    """Return each parameter's and buffer's every name → the one name that stands for what is stored once."""
    named = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


class Seeing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode that counts the operations of a network, each known by when it came."""

    def begin(self, network: nn.Module, inputs: Inputs, prefix: str) -> None:
        """Be told what will run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.index = 0

    def __torch_dispatch__(
        self, operation: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Take what is a composition of other operations apart; see all others."""
        kwargs = kwargs or {}
        name = name_of(operation)
        if name not in RULES and name.removesuffix("_") not in RULES and name not in _WHOLE:
            with self:
                found = operation.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        if name != "detach":  # PyTorch adds one where what an operation gave is held by a mode
            self.index += 1
        return self.see(operation, args, kwargs)

    def see(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what the operation gives."""
        return operation(*args, **kwargs)


_WHOLE = {"item", "is_nonzero", "_local_scalar_dense", "is_floating_point", "is_complex", "data", "size", "numel"}


def name_of(operation: Any) -> str:
    """Return an operation's name without its overload."""
    return str(operation.overloadpacket).removeprefix("aten.")


class Needs(Seeing):  # type: ignore[no-untyped-call]
    """Which operations what a network gives depends on."""

    def __init__(self) -> None:
        super().__init__()
        self._held: list[Tensor] = []  # so that no storage's number is given to another one
        self._calls: list[tuple[int, set[int], set[int]]] = []

    def see(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note what is read and written."""
        found = operation(*args, **kwargs)
        read = {_storage(tensor) for tensor in flat((args, kwargs)) if isinstance(tensor, Tensor)}
        changed = written(operation, args, kwargs)
        gives = [tensor for tensor in flat(found) if isinstance(tensor, Tensor)]
        self._held += gives
        if name_of(operation) != "detach":
            self._calls.append((self.index, read, {_storage(tensor) for tensor in (*gives, *changed)}))
        return found

    def needed(self, outputs: list[Tensor]) -> set[int]:
        """Return the operations on whose results these tensors depend."""
        live, found = {_storage(tensor) for tensor in outputs}, set()
        for index, read, gives in reversed(self._calls):
            if live & gives:
                live |= read
                found.add(index)
        return found


def written(operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the arguments that an operation writes into."""
    if not operation._schema.is_mutable:
        return []
    found: list[Tensor] = []
    for place, argument in enumerate(operation._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            found += [tensor for tensor in flat([value]) if isinstance(tensor, Tensor)]
    return found


def _storage(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # a sparse tensor has none
        return id(tensor)


class Following(Seeing):  # type: ignore[no-untyped-call]
    """Neurons followed through the operations of a network."""

    def __init__(self, found: Propagation, needed: set[int]) -> None:
        super().__init__()
        self.found, self.needed = found, needed
        self._values: dict[int, Value | Address] = {}
        self._tensors: dict[int, list[Tensor]] = {}
        self._stack: list[tuple[str, nn.Module, int]] = []
        self._entered = 0
        self._states: set[int] = set()

    def begin(self, network: nn.Module, inputs: Inputs, prefix: str) -> None:
        """Know parameters, buffers and kept tensors by their places, and inputs as nobody's; follow the modules."""
        self._kept = kept_tensors(network)
        for name, tensor in self._kept.items():
            self._know(tensor, Address.whole(prefix + name, tuple(tensor.shape)))
        given = [tensor for tensor in pytree.tree_leaves(inputs) if isinstance(tensor, Tensor)]
        for place, tensor in enumerate(given):
            number = torch.tensor(GIVEN - place if tensor.is_floating_point() else 0)
            self._know(tensor, Value(nobody(tensor.shape), number.expand(tensor.shape)))
        for path, module in network.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # whose operations are seen, and whose calls are not
                continue
            module.register_forward_pre_hook(self._enter(path))
            module.register_forward_hook(self._leave, always_call=True)

    def _enter(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: object) -> None:
            self._entered += 1
            self._stack.append((path, module, self._entered))

        return hook

    def _leave(self, module: nn.Module, _: object, outputs: Any) -> None:
        self._stack.pop()
        around, above, _ = self._stack[-1] if self._stack else ("", None, 0)
        if not isinstance(outputs, tuple) or not isinstance(module, nn.RNNBase):
            return
        for state in flat([outputs[1]]):
            if isinstance(module, Recurrent):
                self._states.add(_storage(state))
            elif isinstance(above, Recurrent) and not above.even:
                value = self.value(state)
                if isinstance(value, Value):
                    self._values[id(state)] = replace(value, padded=frozenset([around]))

    def _know(self, tensor: Tensor, value: Value | Address) -> None:
        if id(tensor) not in self._values:
            self._tensors.setdefault(_storage(tensor), []).append(tensor)
        self._values[id(tensor)] = value

    def value(self, tensor: Tensor) -> Value | Address:
        """Return whose a tensor's elements are; one that came from nowhere is nobody's."""
        if id(tensor) in self._values:
            return self._values[id(tensor)]
        others = self._tensors.get(_storage(tensor), [])
        same = next((other for other in others if _geometry(other) == _geometry(tensor)), None)
        if same is not None:
            value = self._values[id(same)]
        elif others and all(isinstance(self._values[id(other)], Value) for other in others):
            value = self._spread(others)(tensor)
        else:
            value = Value(nobody(tensor.shape), nobody(tensor.shape))
        self._know(tensor, value)
        return value

    def _spread(self, tensors: list[Tensor]) -> Callable[[Tensor], Value]:
        """Return a function that tells of any view of what these tensors share to whom its elements belong."""
        size = max(_reach(tensor) for tensor in self._tensors[_storage(tensors[0])])
        wholes = torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.int64)
        padded: frozenset[str] = frozenset()
        for tensor in sorted(tensors, key=Tensor.numel, reverse=True):
            value = self._values[id(tensor)]
            assert isinstance(value, Value)  # noqa: S101 - for the type checker
            padded |= value.padded
            for whole, part in zip(wholes, (value.places, value.functions), strict=True):
                once = tensor  # what a stride of 0 repeats
                for dim in range(tensor.ndim):
                    if tensor.stride(dim) == 0 and tensor.shape[dim]:
                        once, part = once.narrow(dim, 0, 1), part.narrow(dim, 0, 1)
                whole.as_strided(once.shape, once.stride(), once.storage_offset()).copy_(part)

        def view(tensor: Tensor) -> Value:
            missing = max(0, _reach(tensor) - size)
            longer = [torch.cat([whole, whole.new_zeros(missing)]) if missing else whole for whole in wholes]
            parts = (part.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()) for part in longer)
            places, functions = (squeezed(part.clone()) for part in parts)
            return Value(places, functions, padded)

        return view

    def _write(self, tensor: Tensor, value: Value) -> None:
        """Know a tensor that was written into, and all that see the same memory, by what is in it now."""
        self.value(tensor)
        others = [other for other in self._tensors[_storage(tensor)] if other is not tensor]
        differing = [other for other in others if _geometry(other) != _geometry(tensor)]
        values = [self._values[id(other)] for other in (tensor, *others)]
        if differing and all(isinstance(known, Value) for known in values):
            before = self._spread([tensor, *others])
            reach = max(_reach(other) for other in (tensor, *others))
            whole = tensor.as_strided((reach,), (1,), 0)
            old = before(whole)
            parts = [part.clone() for part in (old.places, old.functions)]
            for part, new in zip(parts, (value.places, value.functions), strict=True):
                part.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).copy_(new.expand(tensor.shape))
            for other in (tensor, *others):
                places, functions = (
                    squeezed(p.as_strided(other.shape, other.stride(), other.storage_offset())) for p in parts
                )
                known = Value(places, functions, old.padded | value.padded)
                self._values[id(other)] = known
            return
        for other in (tensor, *others):
            if _geometry(other) == _geometry(tensor):
                self._values[id(other)] = value

    def see(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the operation and note whose its results are."""
        changed = written(operation, args, kwargs)
        needed = self.index in self.needed or name_of(operation) == "detach"
        before = None
        if needed and changed:  # what it was given is needed to probe it
            before = _mapped((args, kwargs), lambda tensor: tensor.clone())
        found = operation(*args, **kwargs)
        if not needed:
            for tensor in flat(found):
                if isinstance(tensor, Tensor) and id(tensor) not in self._values:
                    self.value(tensor)
            return found
        call = Call(self.found, operation, self.index, found, before or (args, kwargs), self._stack)
        call.args, call.kwargs = normalised(operation, *_mapped((args, kwargs), self.value))
        values = call.result(follow)
        first = values[0] if isinstance(values, tuple) and values else values
        for tensor, value in zip(changed, _each(values, len(changed)), strict=True):
            self._write(tensor, value if isinstance(value, Value) else first)
        ids = {id(tensor) for tensor in changed}
        for tensor, value in zip(flat(found), flat(values), strict=True):
            if isinstance(tensor, Tensor) and id(tensor) not in ids and value is not None:
                self._know(tensor, value)
        return found

    def carry(self, network: nn.Module, prefix: str) -> None:
        """Let what a module keeps for the next call go with what it kept from the one before."""
        for name, tensor in kept_tensors(network).items():
            before, value = self._kept.get(name), self.value(tensor)
            if before is None or before is tensor or before.shape != tensor.shape or not isinstance(value, Value):
                continue
            carry(self.found, Address.whole(prefix + name, tuple(tensor.shape)), value)

    def finish(self, outputs: list[Tensor]) -> None:
        """Note that what the network returns stays; a whole recurrent state is returned only to be given back."""
        values = [self.value(tensor) for tensor in outputs]
        states = [self._is_state(tensor, value) for tensor, value in zip(outputs, values, strict=True)]
        for index, (value, state) in enumerate(zip(values, states, strict=True)):
            if state and not all(states) and not self.found.begun & self.found.used:
                self.found.states.add(index)
            elif isinstance(value, Address):
                for dim, size in enumerate(value.shape):
                    if size > 1:
                        self.found.positions.freeze(self.found.place(value, dim), "the model returns it")
            else:
                self.found.positions.freeze(value.places, "the model returns it")

    def _is_state(self, tensor: Tensor, value: Value | Address) -> bool:
        if isinstance(value, Value) and value.padded:
            return True
        return _storage(tensor) in self._states


def kept_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return parameters, buffers and the tensors that modules keep in other attributes, each by one name."""
    found: dict[str, Tensor] = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    known = {id(tensor) for tensor in found.values()}
    for path, module in network.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, (tuple, list, dict)) and not name.startswith("_"):
                for place, tensor in enumerate(flat(value)):
                    if isinstance(tensor, Tensor) and id(tensor) not in known:
                        found[f"{path}.{name}.{place}".lstrip(".")] = tensor
                        known.add(id(tensor))
    return found


class Remembering(Seeing):  # type: ignore[no-untyped-call]
    """Whether a network's modules keep something of a call: a state in an attribute or a buffer."""

    def begin(self, network: nn.Module, inputs: Inputs, prefix: str) -> None:  # noqa: ARG002 - as every mode is told
        """See what the modules keep."""
        self._before = _kept(network)

    def remembers(self, network: nn.Module) -> bool:
        """Return whether the modules keep something else now."""
        after = _kept(network)
        same = (a is b and one == other for (a, one), (b, other) in zip(self._before, after, strict=False))
        return len(after) != len(self._before) or not all(same)


def _kept(network: nn.Module) -> list[tuple[Any, int]]:
    """Return what modules keep besides their parameters, each with how often it was written into."""
    return [
        (leaf, leaf._version if isinstance(leaf, Tensor) and not leaf.is_inference() else 0)
        for module in network.modules()
        for name, value in (*vars(module).items(), *module._buffers.items())
        if not name.startswith("_")
        for leaf in flat([value])
    ]


def _geometry(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tuple(tensor.stride()), tensor.storage_offset(), tensor.dtype


def _reach(tensor: Tensor) -> int:
    """Return how far into its memory a tensor reaches."""
    if not tensor.numel():
        return 0
    steps = ((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int(tensor.storage_offset() + 1 + sum(steps))


def _mapped(values: Any, change: Callable[[Tensor], Any]) -> Any:
    if isinstance(values, (tuple, list)):
        return type(values)(_mapped(value, change) for value in values)
    if isinstance(values, dict):
        return {name: _mapped(value, change) for name, value in values.items()}
    return change(values) if isinstance(values, Tensor) else values


def _each(values: Any, count: int) -> list[Any]:
    """Return values for what was written: one serves all."""
    found = list(flat(values))
    return found if len(found) == count else [found[0] if found else None] * count
