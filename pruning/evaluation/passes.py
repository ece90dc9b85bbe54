"""How often a model reads a window and how often derivatives flow back, counted while something else runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch

from pruning.models.base import LanguageModel


@dataclass
class Passes:
    """What has been counted so far.

    Attributes:
        forward: Windows that the model has read.
        backward: Calls of `torch.autograd.grad` or `backward`; a Hessian-vector product is two, and a batch of
            derivatives computed in one call is one.
    """

    forward: int = 0
    backward: int = 0


@contextmanager
def counted(model: LanguageModel) -> Iterator[Passes]:
    """Within the context, count the forward passes of `model` and all backward passes of the process.

    Forward passes are seen by a hook on the embedding, which every pass looks words up in once. Backward passes are
    seen by standing in for PyTorch's two functions, so nothing else should differentiate meanwhile. Hook and functions
    are as they were afterwards, also after an error.
    """
    passes, within = Passes(), False

    def read(*_: object) -> None:
        passes.forward += 1

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*arguments: Any, **settings: Any) -> Any:
            nonlocal within
            if within:  # a pass of a layer's own derivative, which differentiates itself (`pruning.core.unrolled`)
                return function(*arguments, **settings)
            passes.backward, within = passes.backward + 1, True
            try:
                return function(*arguments, **settings)
            finally:
                within = False

        return call

    before = torch.autograd.grad, torch.autograd.backward
    handle = model.encoder.register_forward_hook(read)
    torch.autograd.grad, torch.autograd.backward = (counting(function) for function in before)
    try:
        yield passes
    finally:
        handle.remove()
        torch.autograd.grad, torch.autograd.backward = before
