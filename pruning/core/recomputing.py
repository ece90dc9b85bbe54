"""What checkpointed code computes again in the backward pass, when hooks that were there before are gone."""

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils import checkpoint


def _once(*_: Any, **__: Any) -> Iterator[None]:
    """Take the place of what records a function's call so that it can be repeated: `checkpoint` calls it between."""
    yield


class _Once:
    """Takes the place of the function of autograd that calls without a graph, and once more with it."""

    @staticmethod
    def apply(function: Callable[..., Any], _: bool, *arguments: Any) -> Any:
        return function(*arguments)


_PLAIN: dict[str, Any] = {"_checkpoint_without_reentrant_generator": _once, "CheckpointFunction": _Once}
"""What `torch.utils.checkpoint.checkpoint` finds by these names when it is called, whoever imported it and when."""


class _CallingOnce:
    """Within the context, `torch.utils.checkpoint.checkpoint` calls what it is given once, and keeps its graph.

    It else runs the code again in the backward pass, by when hooks that add something, or see what is computed, are
    gone: PyTorch then refuses or, where it calls by the reentrant way, no derivative reaches what they added. Numbers
    are those of the code without checkpoints, and memory is, too. Contexts may overlap.

    >>> import torch
    >>> x, calls = torch.ones(2, requires_grad=True), []
    >>> with calling_once:
    ...     y = checkpoint.checkpoint(lambda x: calls.append(1) or x.sin().sin(), x, use_reentrant=False)
    >>> y.sum().backward(), len(calls)
    (None, 1)
    """

    def __init__(self) -> None:
        self.within, self.own = 0, dict[str, Any]()

    def __enter__(self) -> None:
        if not self.within:
            self.own = {name: value for name, value in vars(checkpoint).items() if name in _PLAIN}
            vars(checkpoint).update((name, _PLAIN[name]) for name in self.own)
        self.within += 1

    def __exit__(self, *_: object) -> None:
        self.within -= 1
        if not self.within:
            vars(checkpoint).update(self.own)


calling_once = _CallingOnce()
"""The one context of `_CallingOnce`: what it changes belongs to PyTorch, and so to all models."""
