"""A network run on its example inputs, every operation seen with the neurons that its tensors belong to."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from pruning.core.nested import mapped
from pruning.core.operands import LOOKUPS, geometry, reach_of, storage_of
from pruning.discovery.comparing import HIDDEN
from pruning.discovery.findings import Propagation, Ways, carry
from pruning.discovery.needs import Needs
from pruning.discovery.operations import follow
from pruning.discovery.positions import Axis, varies
from pruning.discovery.propagation import Call, normalised
from pruning.discovery.recurrent import Recurrent
from pruning.discovery.running import Inputs, Seeing, kept_tensors, name_of, running, written
from pruning.discovery.sizes import MADE_BY, Counted, Watching, counted_dims, numbered, parts_told
from pruning.discovery.states import Edge, Feeding, State
from pruning.discovery.values import GIVEN, MADE, Address, Value, column, flat, nobody, squeezed
from pruning.discovery.widths import ATTENTION, READ, read_dims


def propagated(
    network: nn.Module,
    inputs: Inputs,
    prefix: str,
    silent: Collection[Axis] = (),
    *,
    training: bool = False,
    feeding: Feeding | None = None,
    ways: Ways | None = None,
) -> Propagation:
    """Return what running the network on these inputs tells about its neurons.

    It runs twice: to see which operations its outputs depend on, and to follow the neurons through these.

    Args:
        network: It is left as it was.
        inputs: What it is called with.
        prefix: What its parameters' names are preceded by.
        silent: Where no neurons are looked for, as if parameters gave there what the network is given.
        training: Whether it runs as it does while it is trained.
        feeding: If the network's state goes from call to call: how; its inputs are those of this.
        ways: How what may be followed in two ways is; the likelier one by default.
    """
    seen = Needs()
    inputs = inputs if feeding is None else feeding.inputs
    with running(network, inputs, seen, training=training, feeding=feeding) as (traced, outputs):
        needed = seen.needed([*outputs, *kept_tensors(traced).values()])
    found = Propagation(silent=silent, ways=ways or Ways())
    following = Following(found, needed, seen.beside, feeding)
    with (
        Watching(following.told),
        running(network, inputs, following, prefix, training=training, feeding=feeding) as (traced, outputs),
    ):
        following.carry(traced, prefix)
        following.finish(outputs)
    return found


class Following(Seeing):  # type: ignore[no-untyped-call]
    """Neurons followed through the operations of a network."""

    def __init__(
        self, found: Propagation, needed: set[int], beside: Collection[int] = (), feeding: Feeding | None = None
    ) -> None:
        super().__init__()
        self.found, self.needed, self.beside, self.feeding = found, needed, beside, feeding
        self._values: dict[int, Value | Address] = {}
        self._tensors: dict[int, list[Tensor]] = {}
        self._stack: list[tuple[str, nn.Module, int]] = []
        self._entered = 0
        self._states: set[int] = set()

    def __deepcopy__(self, memo: object) -> "Following":
        """Return itself, for a network whose code copies modules in a call, and with them the hooks that lead here."""
        return self

    def begin(self, network: nn.Module, inputs: Inputs, prefix: str) -> None:
        """Know parameters, buffers and kept tensors by their places, and inputs as nobody's; follow the modules."""
        self._kept, self._prefix = kept_tensors(network), prefix
        for name, tensor in self._kept.items():
            self._know(tensor, Address.whole(prefix + name, tuple(tensor.shape)))
        given = [tensor for tensor in pytree.tree_leaves(inputs) if isinstance(tensor, Tensor)]
        for place, tensor in enumerate(given):
            number = torch.tensor(GIVEN - place if tensor.is_floating_point() else 0)
            self._know(tensor, Value(nobody(tensor.shape), number.expand(tensor.shape)))
        states = () if self.feeding is None else self.feeding.states
        for begun in (state.among(*arguments) for state in states for arguments in inputs):
            if begun is not None:  # it is as wide as its neurons are many, as what the code makes is
                self._know(begun, Value(nobody(begun.shape), torch.tensor(MADE).expand(begun.shape)))
        for path, module in network.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # whose operations are seen, and whose calls are not
                continue
            module.register_forward_pre_hook(self._enter(path))
            module.register_forward_hook(self._leave, always_call=True)

    def _enter(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._entered += 1
            self._stack.append((path, module, self._entered))
            if any(map(_is_wrapped, pytree.tree_leaves(inputs))):
                raise ValueError(
                    f"Expected modules that are called with whole batches, got {path or 'one'} called within "
                    "torch.vmap or another transform of torch.func, where its inputs cannot be recorded; call it "
                    "outside of that, with the batch in a dimension of its own."
                )
            self.found.called.add(f"{self._prefix}{path}")
            self._show(path, inputs[:1], entering=True)

        return hook

    def _leave(self, module: nn.Module, _: object, outputs: Any) -> None:
        path, *_ = self._stack.pop()
        around, above, _ = self._stack[-1] if self._stack else ("", None, 0)
        self._show(path, outputs[:1] if isinstance(outputs, (tuple, list)) else [outputs], entering=False)
        if not isinstance(outputs, tuple) or not isinstance(module, nn.RNNBase):
            return
        for state in flat([outputs[1]]):
            if isinstance(module, Recurrent):
                if not module.even or self.feeding is None:  # else it is as wide as the neurons are many
                    self._states.add(storage_of(state))
            elif isinstance(above, Recurrent) and not above.even:
                value = self.value(state)
                if isinstance(value, Value):
                    self._values[id(state)] = replace(value, padded=frozenset([around]))

    def _show(self, path: str, first: Sequence[Any], *, entering: bool) -> None:
        """Note what a module's first input or output shows; what holds no numbers shows nothing."""
        with _disable_current_modes():  # for what is done here is none of the network's operations
            for tensor in first:
                value = self.value(tensor) if isinstance(tensor, Tensor) else None
                if isinstance(value, Value):
                    self.found.show(f"{self._prefix}{path}", value, entering=entering)

    def told(
        self,
        module: object,
        call: str,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: Any,
        given: Any,
    ) -> Any:
        """Note what the numbers count that a call in the network's code is told, or tells it; return what it gives."""
        if not self._stack or self._stack[-1][1] is not module:
            return outputs
        if name in READ:
            return self._read(call, name, args, kwargs, outputs)
        numbers: list[int] = []
        args = parts_told(name, args, kwargs, outputs)
        numbered(name, args, kwargs, lambda _, number: numbers.append(number) or number)  # type: ignore[func-returns-value]
        tensors = [part for part in flat(outputs) if isinstance(part, Tensor)]
        with _disable_current_modes():
            for place, which, dim, end in counted_dims(name, args, kwargs, outputs):
                number = numbers[place] if place < len(numbers) else -1
                value = self.value(args[0] if which < 0 else tensors[which])
                free = number < 2 or (isinstance(value, Value) and value.free)
                places = None if free else self.found.along(value, dim, end)
                if number >= 0 and (places is None or bool(places.any())):
                    self.found.count(Counted(self._stack[-1][0], call, place, number, places))
            if name in MADE_BY or name.startswith("new_"):
                self._make(name, given[0], given[1], outputs)
        return outputs

    def _make(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> None:
        """Let what code makes as wide as neurons are be as many as they, as it is by `zeros_like`."""
        sizes: list[Any] = []
        numbered(name, args, kwargs, lambda _, size: sizes.append(size) or size)  # type: ignore[func-returns-value]
        value, places = self.value(made), self.found.as_many(sizes, made.shape)
        if places is not None and isinstance(value, Value) and value.free:
            self._know(made, replace(value, places=places))

    def _read(self, call: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> Any:
        """Note what the sizes of a tensor count that the network's code reads; return them as such that tell of it."""
        told: dict[int, Any] = {}
        with _disable_current_modes():
            value = self.value(args[0])
            sizes = value.places.shape if isinstance(value, Value) else value.extent
            for dim in read_dims(name, args, kwargs, len(sizes)):
                places = self.found.along(value, dim, None)
                if bool(places.any()):
                    self.found.count(Counted(self._stack[-1][0], call, dim, sizes[dim], places))
                    told[dim] = self.found.comparing(sizes[dim], places)
        whole = tuple(sizes) if name == "numel" else outputs  # Python takes no other whole number of `len`
        if name == "len" and told:
            told[0].tell((HIDDEN, told[0].formed, 0))
        if name in ("len", ATTENTION) or not told or any(isinstance(size, Tensor) for size in flat(whole)):
            return outputs
        if isinstance(outputs, tuple):
            return torch.Size([told.get(dim, size) for dim, size in enumerate(outputs)])
        return (
            math.prod(told.get(dim, size) for dim, size in enumerate(sizes)) if name == "numel" else told.popitem()[1]
        )

    def _know(self, tensor: Tensor, value: Value | Address) -> None:
        if id(tensor) not in self._values:
            self._tensors.setdefault(storage_of(tensor), []).append(tensor)
        self._values[id(tensor)] = value

    def value(self, tensor: Tensor) -> Value | Address:
        """Return whose a tensor's elements are; one that came from nowhere is nobody's."""
        if id(tensor) in self._values:
            return self._values[id(tensor)]
        others = self._tensors.get(storage_of(tensor), [])
        same = next((other for other in others if geometry(other) == geometry(tensor)), None)
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
        size = max(reach_of(tensor) for tensor in self._tensors[storage_of(tensors[0])])
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
            missing = max(0, reach_of(tensor) - size)
            longer = [torch.cat([whole, whole.new_zeros(missing)]) if missing else whole for whole in wholes]
            parts = (part.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()) for part in longer)
            places, functions = (squeezed(part.clone()) for part in parts)
            return Value(places, functions, padded)

        return view

    def _write(self, tensor: Tensor, value: Value) -> None:
        """Know a tensor that was written into, and all that see the same memory, by what is in it now."""
        self.value(tensor)
        others = [other for other in self._tensors[storage_of(tensor)] if other is not tensor]
        differing = [other for other in others if geometry(other) != geometry(tensor)]
        values = [self._values[id(other)] for other in (tensor, *others)]
        if differing and all(isinstance(known, Value) for known in values):
            before = self._spread([tensor, *others])
            reach = max(reach_of(other) for other in (tensor, *others))
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
            if geometry(other) == geometry(tensor):
                self._values[id(other)] = value

    def see(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the operation and note whose its results are."""
        if name_of(operation) == "set_":  # `copy.copy` of a tensor makes an empty one, and lets it see the same memory
            return self._moved(args[0], operation, args, kwargs)
        changed = written(operation, args, kwargs)
        needed = self.index in self.needed or name_of(operation) == "detach"
        before = None
        if changed:  # what it was given is needed to probe it
            before = mapped(Tensor.clone, (args, kwargs))
        lying = [geometry(tensor) for tensor in changed]
        found = operation(*args, **kwargs)
        self.found.positions.quiet = not needed  # widths that it computes with must follow all the same
        call = Call(self.found, operation, self.when, found, before or (args, kwargs), self._stack)
        call.alone = self.index in self.beside
        call.args, call.kwargs = normalised(operation, *mapped(lambda part: _whole(self.value(part)), (args, kwargs)))
        names = {value.name for value in flat((call.args, call.kwargs)) if isinstance(value, Address)}
        self.found.met |= names
        if needed:
            self.found.touched |= names
        table = call.args[0] if call.name in LOOKUPS else None
        values = call.result(follow)
        if isinstance(table, Address) and isinstance(values, Value):
            self.found.look(table.name, values)
        self.found.positions.quiet = False
        first = values[0] if isinstance(values, tuple) and values else values
        for tensor, value, lay in zip(changed, _each(values, len(changed)), lying, strict=True):
            own = value if isinstance(value, Value) else first
            if geometry(tensor) == lay:
                self._write(tensor, own)
            else:  # `squeeze_`: it sees the same memory in another way
                self._know(tensor, own)
        ids = {id(tensor) for tensor in changed}
        for tensor, value in zip(flat(found), flat(values), strict=True):
            if isinstance(tensor, Tensor) and id(tensor) not in ids and value is not None:
                self._know(tensor, value)
        return found

    def _moved(self, tensor: Tensor, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let a tensor see other memory; what is there is known by those that see it already."""
        if self._values.pop(id(tensor), None) is not None:
            alike = self._tensors[storage_of(tensor)]
            alike[:] = [other for other in alike if other is not tensor]
        found = operation(*args, **kwargs)
        self.value(found)
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
        fed = {} if self.feeding is None else {state.output: state for state in self.feeding.states}
        each = len(outputs) if self.feeding is None else len(outputs) // self.feeding.calls
        for index, (value, state) in enumerate(zip(values, states, strict=True)):
            output = index % each
            if isinstance(value, Value):
                self.found.given[output] = value.places
            if state and not all(states) and not self.found.begun & self.found.used:
                self.found.states.add(output)
            elif isinstance(value, Value) and output in fed:
                self.found.states.add(output)
                self._carry(fed[output], value)
            elif isinstance(value, Address):
                for dim, size in enumerate(value.shape):
                    if size > 1:
                        self.found.owning[value.name, dim] = None
                        self.found.positions.freeze(self.found.place(value, dim), "the model returns it")
            else:
                self.found.positions.freeze(value.places, "the model returns it")

    def _carry(self, state: State, value: Value) -> None:
        """Let places of a state belong with the neurons that they hold, so that it is known where these lie in it."""
        dims = [dim for dim in range(value.places.ndim) if varies(value.places, dim)]
        if not dims:
            return
        last, positions = dims[-1], self.found.positions
        for dim in dims[:-1]:  # several layers in one tensor, as wide as each other
            positions.link(value.places, value.places.narrow(dim, 0, 1).expand(value.places.shape))
        size = value.places.shape[last]
        edge = Edge(state, last - value.places.ndim, size)
        places = positions.number((str(state), edge.dim), size) + torch.arange(size)
        positions.link(places, column(value.places, last))
        self.found.carried[str(state), edge.dim] = edge

    def _is_state(self, tensor: Tensor, value: Value | Address) -> bool:
        if isinstance(value, Value) and value.padded:
            return True
        return storage_of(tensor) in self._states


def _is_wrapped(value: Any) -> bool:
    return isinstance(value, Tensor) and is_functorch_wrapped_tensor(value)


def _whole(value: Value | Address) -> Value | Address:
    """Return a value with what the code made beside neurons, as it pads sequences, as theirs whose column it is in."""
    if isinstance(value, Address) or not any(value.functions.stride()) or not any(value.places.stride()):
        return value
    made = (value.functions == MADE) & (value.places == 0)
    if not bool(made.any()) or bool(made.all()):
        return value
    for dim in range(made.ndim):
        whole = value.places.amax(dim, keepdim=True)
        if bool((made | (value.places == whole)).all()) and bool((whole > 0).all()):
            return replace(value, places=squeezed(whole.expand(made.shape)))
    return value


def _each(values: Any, count: int) -> list[Any]:
    """Return values for what was written: one serves all."""
    found = list(flat(values))
    return found if len(found) == count else [found[0] if found else None] * count
