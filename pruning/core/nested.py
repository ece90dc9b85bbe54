"""Tensors in tuples, lists, dictionaries and dataclasses, however they are nested: changed, listed, told apart."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """Return the value with every tensor in it changed; a packed sequence is one tensor in this.

    >>> import torch
    >>> mapped(lambda tensor: tensor + 1, {"a": (torch.tensor(1), "b")})
    {'a': (tensor(2), 'b')}
    """
    if isinstance(value, Tensor | PackedSequence):
        return change(value)
    if isinstance(value, Mapping):
        return {name: mapped(change, part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [mapped(change, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: mapped(change, getattr(value, f.name)) for f in fields(value) if f.init})
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a value, from the first to the last; of a packed sequence, its data."""
    if isinstance(value, PackedSequence):
        yield value.data
    elif isinstance(value, Tensor):
        yield value
    elif (parts := parts_of(value)) is not None:
        for part in parts.values():
            yield from tensors_in(part)


def parts_of(value: Any) -> dict[Any, Any] | None:
    """Return the parts of a tuple, list, dictionary or dataclass by place or name; None of anything else.

    >>> parts_of((1, 2)), parts_of(3)
    ({0: 1, 1: 2}, None)
    """
    if isinstance(value, Mapping):
        return dict(value.items())
    if isinstance(value, list | tuple) and not isinstance(value, PackedSequence):
        return dict(enumerate(value))
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return None


def numbers_in(entry: Any) -> list[float]:
    """Return every number of tensors, arrays or numbers, however they are nested in lists.

    >>> numbers_in([1, [torch.tensor([2.0, 3.0])]])
    [1.0, 2.0, 3.0]
    """
    return [float(n) for leaf in pytree.tree_leaves(entry) for n in torch.as_tensor(leaf).detach().flatten().tolist()]
