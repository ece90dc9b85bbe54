"""What a user's loss keeps from call to call, such as class counts or moving averages: put back once it was asked."""

import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from functools import partial, singledispatchmethod
from types import CellType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

ELSEWHERE = sys.stdlib_module_names | {"torch", "numpy", "pandas", __name__.partition(".")[0]}
"""Packages whose objects are no part of a loss, but for modules: loggers, optimizers, loaders, tables."""


class Holdings:
    """What a loss keeps, as it is now: `restore` puts it back.

    It keeps numbers, tensors, arrays and containers of these in its attributes and those of objects that it holds, the
    buffers of its modules, and the states of generators that it draws from; a function keeps what it closes over, and
    what stands in its defaults and attributes; `functools.partial` its arguments, a method its object. Parameters,
    which are learnt and not kept, and the globals of Python's modules are left as they become.

    Args:
        loss: Any callable, or None.
        apart: What is no part of it wherever it holds it, such as the modules of the network that is judged.
    """

    def __init__(self, loss: Any, apart: Iterable[Any] = ()) -> None:
        self._left, self._backs = [loss], list[Callable[[], object]]()
        seen = {id(part): part for part in apart}
        while self._left:
            part = self._left.pop()
            if id(part) not in seen:
                seen[id(part)] = part
                self._keep(part)

    def restore(self) -> None:
        """Put all back."""
        with torch.no_grad():
            for put_back in self._backs:
                put_back()

    @singledispatchmethod
    def _keep(self, part: Any) -> None:
        package = type(part).__module__.partition(".")[0]
        if hasattr(part, "__dict__") and not isinstance(part, type) and package not in ELSEWHERE:
            self._left.append(vars(part))

    @_keep.register
    def _(self, part: nn.Module) -> None:
        self._left.append(vars(part))

    @_keep.register
    def _(self, part: Dataset) -> None:  # type: ignore[type-arg]
        pass  # what is read, which is large

    @_keep.register
    def _(self, part: nn.Parameter) -> None:
        pass

    @_keep.register
    def _(self, part: Tensor) -> None:
        if part.layout is not torch.strided or part.is_meta:
            return
        before = part.detach().clone()

        def back() -> None:
            if part.shape != before.shape:
                part.data = before
            elif not torch.equal(part, before):  # what is written to cannot be differentiated any more
                part.copy_(before)

        self._backs.append(back)

    @_keep.register
    def _(self, part: np.ndarray) -> None:
        before = part.copy()

        def back() -> None:
            if part.flags.writeable:
                np.copyto(part, before)

        self._backs.append(back)

    @_keep.register(dict)
    def _(self, part: MutableMapping[Any, Any]) -> None:
        before = list(part.items())

        def back() -> None:
            if not _same([kept for item in part.items() for kept in item], [kept for item in before for kept in item]):
                part.clear()
                for name, kept in before:
                    part[name] = kept

        self._left += [kept for _, kept in before]
        self._backs.append(back)

    @_keep.register(list)
    @_keep.register(deque)
    @_keep.register(set)
    def _(self, part: Any) -> None:
        before = list(part)

        def back() -> None:
            if not _same(part, before):
                part.clear()
                (part.update if isinstance(part, set) else part.extend)(before)

        self._left += before
        self._backs.append(back)

    @_keep.register
    def _(self, part: tuple) -> None:  # type: ignore[type-arg]
        self._left += part

    @_keep.register
    def _(self, part: partial) -> None:  # type: ignore[type-arg]
        self._left += [part.func, part.args, part.keywords]

    @_keep.register
    def _(self, part: MethodType) -> None:
        self._left += [part.__self__, part.__func__]

    @_keep.register
    def _(self, part: FunctionType) -> None:
        self._left += [part.__closure__, part.__defaults__, part.__kwdefaults__, vars(part)]

    @_keep.register
    def _(self, part: CellType) -> None:
        try:
            before = part.cell_contents
        except ValueError:  # of a name that is not known yet
            return
        self._left.append(before)
        self._backs.append(lambda: setattr(part, "cell_contents", before))

    @_keep.register
    def _(self, part: torch.Generator) -> None:
        before = part.get_state()
        self._backs.append(lambda: part.set_state(before))

    @_keep.register
    def _(self, part: random.Random) -> None:
        before = part.getstate()
        self._backs.append(lambda: part.setstate(before))

    @_keep.register
    def _(self, part: np.random.Generator) -> None:
        before = part.bit_generator.state
        self._backs.append(lambda: setattr(part.bit_generator, "state", before))


def _same(one: Iterable[Any], other: Iterable[Any]) -> bool:
    """Return whether both hold the very same objects in the same order."""
    return list(map(id, one)) == list(map(id, other))


def holdings_of(model: nn.Module) -> Holdings:
    """Return what the loss keeps that a model is judged by, if it is by one."""
    return Holdings(getattr(model, "judge", None), model.modules())


@contextmanager
def holding(model: nn.Module) -> Iterator[None]:
    """Within the context the loss that judges the model may write into itself; what it keeps is then as it was.

    >>> model, counts = nn.Linear(1, 1), [0]
    >>> model.judge = partial(lambda counts, outputs: counts.append(len(counts)), counts)
    >>> with holding(model):
    ...     model.judge(torch.ones(1))
    ...     print(counts)
    [0, 1]
    >>> counts
    [0]
    """
    held = holdings_of(model)
    try:
        yield
    finally:
        held.restore()
