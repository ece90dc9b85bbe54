"""Sizes that a user's code says in a call (`view(B, T, 4, 16)`, `zeros(B, 12)`) made to follow the widths of layers.

A call is known by where it stands in the code of the module that it is made in. While that module runs, a mode of
PyTorch's gives the call the size that fits; the code itself, and every other module, stay as they are.
"""

import itertools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, handle_torch_function
from torch.utils import _pytree as pytree

from pruning.core.rebinding import keep_in_copies
from pruning.discovery.comparing import plain
from pruning.discovery.widths import Width, among, answered, computed, reads, sizes_told

MADE_BY = {"zeros", "ones", "full", "empty", "rand", "randn"}
_BY_SIZES = {"view", "reshape", "expand", "new", "new_zeros", "new_ones", "new_full", "new_empty", *MADE_BY}
_AT = {**dict.fromkeys(_BY_SIZES, 1), **dict.fromkeys(MADE_BY, 0)}
"""Function → at which of its arguments the sizes of what it gives begin."""
_PARTED = {"split", "chunk"}
SIZED = _BY_SIZES | _PARTED | {"unflatten", "layer_norm", "narrow", "__getitem__"}
"""Functions that are told sizes."""
_OWN = ("comparing", "sizes", "states", "statistics", "widths")
_SKIPPED = (f"{torch.__path__[0]}/", *(__file__.replace("sizes.py", f"{name}.py") for name in _OWN))
"""Where code lies whose lines say nothing of a call."""
_MODES = (__file__, __file__.replace("sizes.py", "statistics.py"))
"""Where modes lie that are handed a call one after the other."""
Known = dict[tuple[int, str], int]
"""What a size was, and whose it is → what it is now."""
_WRAPPING = {id(Tensor.__len__.__code__), id(handle_torch_function.__code__)}
"""What stands between a call and the first mode."""


@dataclass(frozen=True)
class Counted:
    """A number that a call is told, and what it counts.

    Attributes:
        module: The module in whose code the call stands.
        call: Where it stands.
        place: Which of the call's numbers it is.
        number: The number.
        places: The places of what it counts, one each; None of a tensor that the code makes of numbers.
    """

    module: str
    call: str
    place: int
    number: int
    places: Tensor | None


def numbered(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], change: Callable[[int, Any], Any]) -> Any:
    """Return a call's arguments with each number changed; `change` is told which one it is, and the number."""
    counter = itertools.count()

    def walked(value: Any) -> Any:
        if isinstance(value, slice):
            return slice(walked(value.start), walked(value.stop), value.step)
        if isinstance(value, (tuple, list)):
            found = [walked(part) for part in value]
            return tuple(found) if isinstance(value, tuple) else found
        if isinstance(value, int | torch.SymInt) and not isinstance(value, bool):
            return change(next(counter), value)
        return value

    first = _AT.get(name, 1)
    own = (*args[:first], *(walked(part) for part in args[first:]))
    return own, {key: walked(value) if key in ("size", "shape") else value for key, value in kwargs.items()}


def counted_dims(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], outputs: Any
) -> Iterable[tuple[int, int, int, int | None]]:
    """Return for each number of a call that counts something: which it is, the tensor, its dimension, up to where.

    The tensor is an output, given by its index, or −1 for the first argument.
    """
    if name in _BY_SIZES:
        return [(dim, 0, dim, None) for dim in range(outputs.ndim)]
    if name == "unflatten" and not kwargs:
        first = args[1] % args[0].ndim
        return [(1 + dim, 0, first + dim, None) for dim in range(len(args[2]))]
    if name in _PARTED:
        return [(place, place, _parted(args, kwargs)[1], None) for place in range(len(outputs))]
    if name == "layer_norm":
        return [(place, -1, place - len(args[1]), None) for place in range(len(args[1]))]
    if name == "narrow" and not kwargs:
        return [(1, -1, args[1], args[2]), (2, 0, args[1], None)]
    return _of_slices(args[0], args[1]) if name == "__getitem__" else []


def parts_told(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], outputs: Any) -> tuple[Any, ...]:
    """Return a call's arguments with the sizes of all parts where it was told one for all, or how many there are."""
    if name not in _PARTED:
        return args
    dim = _parted(args, kwargs)[1]
    return args[0], [part.shape[dim] for part in outputs], *args[2:]


def _parted(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, int]:
    """Return what `split` or `chunk` is told of its parts, and along which dimension they lie."""
    known = ("split_size", "split_size_or_sections", "split_sizes", "chunks")
    parts = args[1] if len(args) > 1 else next((kwargs[name] for name in known if name in kwargs), None)
    return parts, args[2] if len(args) > 2 else kwargs.get("dim", 0)


def _of_slices(tensor: Tensor, index: Any) -> Iterator[tuple[int, int, int, int]]:
    """Yield the numbers of slices that begin or end somewhere."""
    parts = index if isinstance(index, tuple) else (index,)
    if any(not isinstance(part, (int, slice)) and part is not None and part is not Ellipsis for part in parts):
        return
    place, dim, taken = 0, 0, sum(isinstance(part, (int, slice)) for part in parts)
    for part in parts:
        if part is Ellipsis:
            dim += tensor.ndim - taken
        elif isinstance(part, slice):
            for end in (part.start, part.stop):
                if isinstance(end, int) and not isinstance(end, bool):
                    yield place, -1, dim, end
                    place += 1
            dim += 1
        elif part is not None:
            place, dim = place + (not isinstance(part, bool)), dim + 1


def call_of(name: str, frame: FrameType | None) -> tuple[str, object]:
    """Return where a call stands, by its function and the code around it, and the module that runs this code."""
    parts = [name]
    while frame is not None:
        code = frame.f_code
        if code is nn.Module._call_impl.__code__:
            return "<".join(parts), frame.f_locals["self"]
        if not code.co_filename.startswith(_SKIPPED):
            parts.append(_where(code, frame.f_lasti))
        frame = frame.f_back
    return "<".join(parts), None


_KNOWN: dict[tuple[int, int], tuple[str, CodeType]] = {}
"""By identity of code, whose hash takes longer, and instruction: where that is, and the code, which so lives on."""


def _where(code: CodeType, instruction: int) -> str:
    """Return the function, line and column of an instruction, counted from where its function begins."""
    found = _KNOWN.get((id(code), instruction))
    if found is None:
        line, _, column, end = next(itertools.islice(code.co_positions(), instruction // 2, None))
        found = f"{code.co_name}+{(line or 0) - code.co_firstlineno}:{column}-{end}", code
        _KNOWN[id(code), instruction] = found
    return found[0]


def read_by_code(function: Any, frame: FrameType | None) -> str:
    """Return by which of `READ` a network's own code asks for a tensor's sizes; empty if it is not its code that does.

    Args:
        function: What is called.
        frame: Where a mode is handed it.
    """
    name = reads(function)
    while name and frame is not None:
        code = frame.f_code
        if not (code.co_filename.startswith(_MODES) or id(code) in _WRAPPING):
            return "" if code.co_filename.startswith(_SKIPPED) else name
        frame = frame.f_back
    return ""


class Watching(TorchFunctionMode):
    """A mode that hands over every call that is told sizes, or tells them to the network's code, once it was made."""

    def __init__(self, told: Callable[..., Any]) -> None:
        super().__init__()
        self._told = told

    def __torch_function__(
        self, function: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do what is asked, and tell; what is told in return is what the code gets."""
        given = args, kwargs or {}
        args, kwargs = plain(args), plain(kwargs or {})
        outputs = function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if name not in SIZED:
            name = read_by_code(function, sys._getframe(1))
        if name:
            call, module = call_of(name, sys._getframe(1))
            return self._told(module, call, name, args, kwargs, outputs, given)
        return outputs


class _Following(TorchFunctionMode):
    """A mode that gives calls in modules' code the sizes that fit, and widths that it computes with as they were.

    It is one for all that run within the outermost: a call then passes it once, however deep it stands.
    """

    def __init__(self) -> None:
        super().__init__()
        self._running: dict[int, Sizing] = {}

    @contextmanager
    def telling(self, told: "Sizing") -> Iterator[None]:
        """Within the context a module runs whose calls get other sizes."""
        key = id(told.module)
        before, self._running[key] = self._running.get(key), told
        try:
            yield
        finally:
            self._running.pop(key)
            if before is not None:
                self._running[key] = before

    def __torch_function__(
        self, function: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do what is asked, with other sizes where these are known."""
        named: Mapping[str, Any] = kwargs or {}
        name = getattr(function, "__name__", "")
        if name in SIZED:
            call, module = call_of(name, sys._getframe(1))
            told = self._running.get(id(module))
            sizes = told.sizes.get(call) if told else None
            if sizes and name in _PARTED:
                return _in_parts(call, sizes, function, args, named)
            if told and sizes:
                left = name in ("view", "reshape") and -1 not in pytree.tree_leaves(args[1:])
                fitting = partial(_fitting, call, sizes, told.before, left)
                args, named = numbered(name, args, named, fitting)
        args, named = sizes_told(function, args, named)
        if name := read_by_code(function, sys._getframe(1)):
            call, module = call_of(name, sys._getframe(1))
            told = self._running.get(id(module))
            if told and call in told.read:
                return _as_before(call, told.read[call], function, name, args, named)
        return function(*args, **named)


_OUTERMOST = threading.local()
"""Of each thread the mode that follows the sizes of the modules that run."""


@contextmanager
def _followed(told: "Sizing") -> Iterator[None]:
    """Within the context a module's calls get other sizes, by the mode that is entered already if there is one."""
    outer: _Following | None = getattr(_OUTERMOST, "mode", None)
    entered = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    if outer is not None and any(mode is outer for mode in entered):
        with outer.telling(told):
            yield
        return
    _OUTERMOST.mode = mode = _Following()
    try:
        with mode, mode.telling(told):
            yield
    finally:
        _OUTERMOST.mode = outer


def _as_before(
    call: str, read: Mapping[int, Known], function: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Return the sizes that code reads of a tensor, computed with as they were."""
    told = {dim: {now: number for (number, _), now in known.items()} for dim, known in read.items()}
    sizes = among(told, args[0].shape)
    found = answered(function, name, args, kwargs, sizes)
    if _NOTED is not None and any(args[0].shape[dim] != size for dim, size in sizes.items()):
        _NOTED.update((call, place) for place in sizes)
    return found


def _in_parts(
    call: str, sizes: Mapping[int, int], function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Return what `split` or `chunk` gives where its parts are to have these sizes, as far as these are all known."""
    (told, dim), tensor = _parted(args, kwargs), args[0]
    wanted = [sizes[place] for place in sorted(sizes)]
    if sum(wanted) != tensor.shape[dim] or sorted(sizes) != [*range(len(wanted))]:
        if isinstance(told, int):
            return function(*args, **kwargs)
        wanted = [sizes.get(place, number) for place, number in enumerate(told)]
    if _NOTED is not None:
        _NOTED.update((call, place) for place in sizes)
    return torch.split(tensor, wanted, dim)


def _fitting(
    call: str, sizes: Mapping[int, int], before: Mapping[tuple[str, int], int], left: bool, place: int, number: Any
) -> Any:
    """Return the size that fits; −1 is what is left over.

    Along the first dimension that depends on the size of the batch: it is what is left over of a view, if nothing else
    is, and otherwise so many times as large as it was with the example inputs.
    """
    found = sizes.get(place, number)
    if place not in sizes or number == -1 or (found == number and not isinstance(number, Width)):
        return number
    if _NOTED is not None:
        _NOTED.add((call, place))
    if left and not place:
        return -1
    told, whole = computed(number), before[call, place]
    if isinstance(told, torch.SymInt):  # a size that `torch.export` leaves free
        return told * found // whole
    return told * found // whole if not place and call.partition("<")[0] in _BY_SIZES else found


_NOTED: set[tuple[str, int]] | None = None


@contextmanager
def noted() -> Iterator[set[tuple[str, int]]]:
    """Yield the set of the calls, and their numbers, that get another number within the context."""
    global _NOTED  # a run's copy of a network could not hand it back
    before, _NOTED = _NOTED, set()
    try:
        yield _NOTED
    finally:
        _NOTED = before


def noting() -> bool:
    """Return whether it is noted which calls get another number: of a run that is not made nothing is."""
    return _NOTED is not None


class Standing:
    """What a module calls in the place of its own `forward`, which it calls.

    Attributes:
        module: The module.
        inner: What stood there before; None for the method of its class.
    """

    def __init__(self, module: nn.Module, inner: Callable[..., Any] | None) -> None:
        self.module, self.inner = module, inner

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The module's own `forward`, whose arguments it takes."""
        return self.inner or type(self.module).forward.__get__(self.module)

    @property
    def __code__(self) -> CodeType:
        """The code of this, as that of a function or a method: `torch.export` asks for it."""
        return type(self).__call__.__code__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module's own `forward` does."""
        return self.__wrapped__(*args, **kwargs)


class Sizing(Standing):
    """What a module calls as its `forward`: its own, with other sizes in some of its calls.

    Attributes:
        sizes: Call → which of its numbers → what it is to be.
        before: Call and which of its numbers → what the code made of it with the example inputs.
        read: Call that asks for sizes → dimension → what was there, and whose that is → what is there now.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, vars(module).get("forward"))
        self.sizes = dict[str, dict[int, int]]()
        self.before = dict[tuple[str, int], int]()
        self.read = dict[str, dict[int, Known]]()

    @staticmethod
    def of(module: nn.Module) -> "Sizing":
        """Return what a module calls, put in the place of its own `forward` if it is not there yet."""
        forward = vars(module).get("forward")
        if not isinstance(forward, Sizing):
            forward = vars(module)["forward"] = Sizing(module)
            keep_in_copies(module, "forward")
        return forward

    def tell(self, call: str, place: int, before: int, now: int) -> None:
        """Let one of a call's numbers be another one."""
        self.sizes.setdefault(call, {})[place] = now
        self.before.setdefault((call, place), before)

    def keep(self, call: str, dim: int, before: tuple[int, str], now: int) -> None:
        """Let code that reads a size compute with what it was; of several sizes, each with its own."""
        self.read.setdefault(call, {}).setdefault(dim, {})[before] = now

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module's own `forward` does, never compiled: that would take the sizes for constants."""
        if "torch._dynamo" in sys.modules:
            return torch.compiler.disable(self._run)(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self._run(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        with _followed(self):
            return self.__wrapped__(*args, **kwargs)
