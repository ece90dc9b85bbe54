"""PyTorch without its compiler, whose import takes a processor as long as that of PyTorch itself."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from torch.utils._python_dispatch import TorchDispatchMode

MARK = "__dynamo_disable"
"""What PyTorch remembers at a function that is never compiled: what to call in its place."""
COMPILER = "torch._dynamo"
"""The compiler's module."""


@contextmanager
def uncompiled(function: Any) -> Iterator[None]:
    """Let a function of PyTorch's be called in a `with` without the import of its compiler, unless it is there already.

    PyTorch marks some functions as not to be compiled, such as how optimizers are made, and the mark imports the
    compiler at the first call. Where nothing is being compiled the function is called as it is. Where PyTorch marks it
    in another way, nothing changes.
    """
    plain = getattr(function, "__wrapped__", None)
    marked = plain is not None and not hasattr(plain, MARK) and COMPILER not in sys.modules
    if marked:
        setattr(plain, MARK, plain)
    try:
        yield
    finally:
        if marked and hasattr(plain, MARK):
            delattr(plain, MARK)


class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode that sees PyTorch's operations, and for which the compiler is not imported either.

    Once something else imported it, what the mode does is not compiled.
    """

    __torch_dispatch__: Callable[..., Any]

    def __enter__(self) -> Self:
        """Begin to see."""
        plain = getattr(type(self).__torch_dispatch__, "__wrapped__", None)
        if plain is not None and COMPILER not in sys.modules:
            setattr(plain, MARK, plain)
        elif plain is not None and getattr(plain, MARK, None) is plain:
            delattr(plain, MARK)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self
