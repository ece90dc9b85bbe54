"""Warnings that are worth one hearing, where the same is done several times over."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from typing import Any, ClassVar, ParamSpec, TypeVar

import torch

LIBRARIES = (f"{torch.__path__[0]}/", __file__.removesuffix("core/hearing.py"), contextlib.__file__)
"""Where code lies that is not the user's."""


P = ParamSpec("P")
R = TypeVar("R")


class _AtTheUsersLine:
    """Shows a warning as Python does, but once, and where the user's code called what warns."""

    said: ClassVar[set[tuple[str, type[Warning], str, int]]] = set()

    def __init__(self, shown: Any) -> None:
        self._shown = shown

    def __call__(
        self, message: Any, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        """Show the warning if it is new."""
        frame = sys._getframe(1) if filename.startswith(LIBRARIES) else None
        while frame is not None and frame.f_code.co_filename.startswith((*LIBRARIES, warnings.__file__)):
            frame = frame.f_back
        if frame is not None:
            filename, lineno = frame.f_code.co_filename, frame.f_lineno
        key = (str(message), category, filename, lineno)
        if key not in self.said:
            self.said.add(key)
            self._shown(message, category, filename, lineno, file, line)


@contextmanager
def warned_once() -> Iterator[None]:
    """Within the context what Python warns of is said once, at the line of the user's code that it is about.

    A network's code runs many times here, in modes of PyTorch's that stand between it and what warns.
    """
    before = warnings.showwarning
    if isinstance(before, _AtTheUsersLine):
        yield
        return
    warnings.showwarning = _AtTheUsersLine(before)
    try:
        yield
    finally:
        warnings.showwarning = before


def front_door(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that people call: within `warned_once`, and an argument that it does not have is refused.

    >>> @front_door
    ... def shorten(text, *, length=1): ...
    >>> shorten("abc", size=2)
    Traceback (most recent call last):
    TypeError: Unknown argument 'size' of shorten; known: ['text', 'length'].
    """
    known = list(signature(function).parameters)

    @wraps(function)
    def entered(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                raise TypeError(f"Unknown argument {name!r} of {function.__name__}; known: {known}.")
        with warned_once():
            return function(*args, **kwargs)

    return entered


@contextmanager
def heard_once(*loggers: logging.Logger) -> Iterator[None]:
    """Within the context, let these loggers say each sentence once.

    >>> import sys
    >>> logger, shown = logging.getLogger("told"), logging.StreamHandler(sys.stdout)
    >>> logger.addHandler(shown)
    >>> with heard_once(logger):
    ...     logger.warning("cut")
    ...     logger.warning("cut")
    cut
    >>> logger.removeHandler(shown)
    """
    said: set[str] = set()

    def first(record: logging.LogRecord) -> bool:
        sentence = record.getMessage()
        known = sentence in said
        said.add(sentence)
        return not known

    for logger in loggers:
        logger.addFilter(first)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(first)
