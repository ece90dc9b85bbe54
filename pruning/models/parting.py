"""Some examples of a batch of any form: what of each of its tensors belongs to them."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from pruning.core.nested import mapped, tensors_in
from pruning.core.words import described


def some_of(inputs: Any, batch: int, example_dim: int, *, steps: bool) -> Any:
    """Return inputs of `batch` examples, those there are over and over; tensors without examples stay whole.

    >>> some_of((torch.tensor([[1, 2], [3, 4]]), "mean"), 3, 0, steps=False)
    (tensor([[1, 2],
            [3, 4],
            [1, 2]]), 'mean')

    Args:
        inputs: Of a batch.
        batch: How many examples.
        example_dim: The dimension of the first tensor that runs over them.
        steps: Whether the other one of the first two dimensions runs over steps, of which the first alone is wanted.
    """
    first = next(tensors_in(inputs), None)
    if first is None:  # of an object of its user's own
        raise ValueError(f"Expected inputs whose examples can be told apart, got {described(inputs)}.")
    count = first.shape[example_dim] if first.ndim > example_dim else len(first)

    def some(value: Any) -> Any:
        if isinstance(value, PackedSequence):
            whole, lengths = pad_packed_sequence(value)
            places = torch.arange(batch) % whole.shape[1]
            found = whole.index_select(1, places.to(whole.device))
            return pack_padded_sequence(found, lengths[places], enforce_sorted=False)
        sizes = [dim for dim in (example_dim, *range(value.ndim)) if dim < value.ndim]
        dim = next((dim for dim in sizes if value.shape[dim] == count), None)
        if dim is None:
            return value
        chosen: Tensor = value.index_select(dim, torch.arange(batch, device=value.device) % count)
        return chosen.narrow(1 - dim, 0, 1) if steps and value.ndim > 1 and dim < 2 else chosen

    return mapped(some, inputs)
