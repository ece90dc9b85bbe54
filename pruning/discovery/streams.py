"""The residual sums of a network, and which modules nothing needs once some give zeros or hand their input on."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruning.core.operands import storage_of
from pruning.discovery.absent import Form, form_of
from pruning.discovery.running import Inputs, Seeing, kept_tensors, name_of, running, written
from pruning.discovery.values import flat

Terms = frozenset[int]
"""What a tensor is the sum of, by numbers in the order in which the network computes it."""

_SUMS = {"add", "sub", "subtract"}
_PASSING = (
    "view _unsafe_view _reshape_alias reshape permute transpose t numpy_T mT unsqueeze squeeze expand expand_as "
    "view_as flatten unflatten movedim moveaxis swapaxes swapdims reshape_as clone contiguous alias detach "
    "lift_fresh _to_copy to type_as float double half bfloat16 dropout feature_dropout alpha_dropout "
    "feature_alpha_dropout native_dropout"
)
"""What gives the numbers that it is given."""
_OF_ONE = "layer_norm rms_norm group_norm batch_norm instance_norm relu gelu silu elu leaky_relu hardswish tanh"
"""What a stream may go through at the end of a block."""
_OF_ZERO = "div true_divide neg relu gelu silu tanh roll slice select narrow index index_select pad"
"""What gives zeros where its first input is zero."""
PRODUCTS = {"mul", "multiply"}
PASSING, OF_ONE, OF_ZERO = (frozenset(names.split()) for names in (_PASSING, _OF_ONE, _OF_ZERO))


@dataclass(frozen=True)
class Given:
    """A tensor that a module was given.

    Attributes:
        place: Its place among the arguments, or its name.
        terms: What it was the sum of then.
        shape: Its shape.
        storage: The memory that it lies in.
    """

    place: int | str
    terms: Terms
    shape: tuple[int, ...]
    storage: int


@dataclass(frozen=True)
class Called:
    """One call of a module.

    Attributes:
        path: The module.
        given: The tensors that it was given.
        first: The number of the last operation before it.
        last: The number of the last operation in it.
        whole: What its first output is the sum of, and what terms of that are normalised sums of.
        shape: Of that output.
        form: How what it gives looks; None if that output is no tensor.
    """

    path: str
    given: tuple[Given, ...]
    first: int
    last: int
    whole: Terms
    shape: tuple[int, ...]
    form: Form | None


@dataclass(frozen=True)
class Branch:
    """A term of a sum that was computed from others of it.

    Attributes:
        term: Its number.
        exits: The modules that it is zero with, the innermost first; none if code outside of modules computes it.
        at: The number of the operation that adds it.
    """

    term: int
    exits: tuple[str, ...]
    at: int


class Streams(Seeing):  # type: ignore[no-untyped-call]
    """What one run of a network tells.

    Attributes:
        calls: The calls of its modules, in the order in which they end.
        branches: By their terms.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Called] = []
        self.branches: dict[int, Branch] = {}
        self._terms: dict[int, Terms] = {}
        self._zeroed: dict[int, tuple[str, ...]] = {}  # tensor → the modules that it is zero with
        self._held: list[Tensor] = []  # so that no tensor's number is given to another one
        self._parents: list[Terms] = []
        self._bases: list[Terms] = []
        self._exits: dict[int, tuple[str, ...]] = {}
        self._stack: list[tuple[str, int, tuple[Given, ...], Tensor | None]] = []
        self._operations: list[tuple[set[int], set[int], tuple[str, ...]]] = []
        self._outputs: set[int] = set()

    @classmethod
    def of(cls, network: nn.Module, inputs: Inputs) -> "Streams":
        """Return what a run of the network tells; it is left as it was."""
        found = cls()
        with running(network, inputs, found) as (traced, outputs):
            found._outputs = {storage_of(tensor) for tensor in (*outputs, *kept_tensors(traced).values())}
        found._held.clear()
        return found

    def begin(self, network: nn.Module, inputs: Inputs, prefix: str) -> None:  # noqa: ARG002 - as every mode is told
        """Follow the modules."""
        for path, module in network.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                module.register_forward_pre_hook(self._enter(path), with_kwargs=True)
                module.register_forward_hook(self._leave, always_call=True)

    def _enter(self, path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            places: list[tuple[int | str, Any]] = [*enumerate(args), *named.items()]
            tensors = [pair for pair in places if isinstance(pair[1], Tensor)]
            given = (Given(place, self._of(own), tuple(own.shape), storage_of(own)) for place, own in tensors)
            like = tensors[0][1] if tensors else None
            self._stack.append((path, self.index, tuple(given), like))

        return hook

    def _leave(self, _: nn.Module, __: object, outputs: Any) -> None:
        path, first, given, like = self._stack.pop()
        value = next(iter(outputs), None) if type(outputs) in (tuple, list) else outputs
        if not isinstance(value, Tensor):
            self.calls.append(Called(path, given, first, self.index, frozenset(), (), None))
            return
        whole = self._whole(self._of(value))
        if len(self._of(value)) > 1 and not any(own.terms <= whole for own in given):
            self._new([value], self._of(value))
        if len(self._of(value)) == 1:
            self._zeroed[id(value)] = (*self._zeroed.get(id(value), ()), path)
        form, shape = form_of(outputs, like), tuple(value.shape)
        self.calls.append(Called(path, given, first, self.index, whole, shape, form))

    def _of(self, tensor: Tensor) -> Terms:
        """Return what a tensor is the sum of: itself, if it came from nowhere."""
        return self._terms[id(tensor)] if id(tensor) in self._terms else self._new([tensor])

    def _new(self, tensors: Iterable[Tensor], parents: Terms = frozenset(), bases: Terms = frozenset()) -> Terms:
        """Let tensors be a term of their own, which was computed from others."""
        terms = frozenset([len(self._parents)])
        self._parents.append(parents)
        self._bases.append(bases)
        for tensor in tensors:
            self._know(tensor, terms, ())
        return terms

    def _know(self, tensor: Tensor, terms: Terms, zeroed: tuple[str, ...]) -> None:
        self._held.append(tensor)
        self._terms[id(tensor)], self._zeroed[id(tensor)] = terms, zeroed

    def _whole(self, terms: Terms) -> Terms:
        """Return terms, and what they are the normalised sums of."""
        found, waiting = set(terms), list(terms)
        while waiting:
            more = self._bases[waiting.pop()] - found
            found |= more
            waiting += more
        return frozenset(found)

    def see(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the operation and note what its results are the sums of."""
        read = [tensor for tensor in flat((args, kwargs)) if isinstance(tensor, Tensor)]
        changed = written(operation, args, kwargs)
        terms, zeroed = [self._of(tensor) for tensor in read], [self._zeroed[id(tensor)] for tensor in read]
        found = operation(*args, **kwargs)
        name = name_of(operation)
        gives = [tensor for tensor in (*flat(found), *changed) if isinstance(tensor, Tensor)]
        storages = set(map(storage_of, read)), set(map(storage_of, gives))
        if changed or not storages[1] <= storages[0]:  # what only looks at memory computes nothing
            self._operations.append((*storages, tuple(path for path, *_ in self._stack)))
        name = name if name in PASSING else name.removesuffix("_")
        first = bool(args) and bool(read) and args[0] is read[0]
        if name in PASSING and first:
            for tensor in gives:
                self._know(tensor, terms[0], zeroed[0])
        elif name in _SUMS and len(read) == 2 and gives:
            self._add(gives[0], read, terms, zeroed)
        elif gives:
            self._new(gives, frozenset().union(*terms), terms[0] if first and name in OF_ONE else frozenset())
            exits = zeroed[0] if first and name in OF_ZERO else ()
            if name in PRODUCTS:
                exits = next((own for own, part in zip(zeroed, terms, strict=True) if own and len(part) == 1), ())
            for tensor in gives:
                self._zeroed[id(tensor)] = exits
        return found

    def _add(self, result: Tensor, read: list[Tensor], terms: list[Terms], zeroed: list[tuple[str, ...]]) -> None:
        """Note a sum, and which of its terms were computed from others of it."""
        whole: Terms = frozenset()
        shape = result.shape
        for tensor, own, exits in zip(read, terms, zeroed, strict=True):
            if tensor.shape != shape:  # what is repeated is no stream
                own = self._new([], own)
            if len(own) == 1:
                self._exits[min(own)] = exits
            whole |= own
        self._know(result, whole, ())
        for term in whole - self.branches.keys():
            if self._reads(term, whole - {term}):
                self.branches[term] = Branch(term, self._exits.get(term, ()), self.index)

    def _reads(self, term: int, others: Terms) -> bool:
        """Return whether a term was computed from one of the others."""
        first = min(others, default=term)
        seen, waiting = {term}, [term]
        while waiting:
            for parent in self._parents[waiting.pop()]:
                if parent in others:
                    return True
                if parent > first and parent not in seen:
                    seen.add(parent)
                    waiting.append(parent)
        return False

    def live(self, gone: Mapping[str, int | str | None]) -> set[str]:
        """Return the modules some of whose operations the outputs depend on.

        Args:
            gone: Modules that are not run, and which argument each hands on instead; None if it gives zeros.
        """
        handed = {
            call.path: {own.storage for own in call.given if own.place == gone[call.path]}
            for call in self.calls
            if call.path in gone
        }
        live, found = set(self._outputs), set[str]()
        for read, gives, stack in reversed(self._operations):
            if live & gives:
                inside = next((path for path in stack if path in gone), None)
                live |= read if inside is None else handed[inside]
                found.update(stack if inside is None else ())
        return found
