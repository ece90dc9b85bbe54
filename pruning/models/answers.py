"""What a network gives: its main output, among several, and what else it holds beside."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pruning.core.nested import mapped, parts_of, tensors_in
from pruning.core.words import described

MAIN = ("logits", "out", "output", "outputs", "prediction", "predictions")
"""What the main one of several outputs is called."""


def main_of(answer: Any) -> Tensor:
    """Return the output that a loss of one output reads.

    It is the answer itself, what it calls by one of `MAIN`, the first part of a tuple or list that is no single number,
    as a loss is, or the only tensor.

    Raises:
        TypeError: If none of several outputs is the main one.
    """
    if isinstance(answer, PackedSequence):
        return answer.data
    parts = {0: answer} if isinstance(answer, Tensor) else parts_of(answer)
    if parts is None and isinstance(getattr(answer, "logits", None), Tensor):
        parts = {0: answer.logits}
    if parts and isinstance(answer, list | tuple):
        parts = {0: next((part for part in parts.values() if not _is_number(part)), parts[0])}  # (loss, logits)
    parts = parts or {}
    place = next((name for name in MAIN if isinstance(parts.get(name), Tensor)), None)
    tensors = list(tensors_in(parts))
    main = parts[place] if place is not None else tensors[0] if len(tensors) == 1 else None
    if not isinstance(main, Tensor) or not main.ndim:
        got = "a number" if isinstance(main, Tensor) else described(answer)
        raise TypeError(
            f"Expected one tensor of outputs, such as logits (…, classes), from the network, got {got}; "
            "`call` can say where it is, and a loss of your own is given all of it."
        )
    return main


def _is_number(part: Any) -> bool:
    return isinstance(part, Tensor) and not part.ndim


def has_main(answer: Any) -> bool:
    """Return whether one of an answer's outputs is the main one."""
    try:
        main_of(answer)
    except TypeError:
        return False
    return True


def several(answer: Any) -> bool:
    """Return whether an answer holds more than its main output."""
    return not isinstance(answer, Tensor)


def as_real(tensor: Tensor) -> Tensor:
    """Return complex numbers as two real ones each, (…, 2 n) of (…, n); others as they are.

    >>> import torch
    >>> as_real(torch.tensor([[1 + 2j, 3j]])).tolist()
    [[1.0, 2.0, 0.0, 3.0]]
    """
    if not tensor.is_complex():
        return tensor
    pairs = torch.view_as_real(tensor)
    return pairs.flatten(-2) if tensor.ndim > 1 else pairs


def amounts_in(answer: Any, example_dim: int = 0) -> list[Tensor]:
    """Return the outputs that are numbers, complex ones as two each; the answer's `loss` and single numbers left out.

    Of a tuple, what is beside the first output and has other examples, or other steps, than it is a state and no
    output.

    Args:
        answer: What a network gave.
        example_dim: The dimension of outputs that runs over examples.
    """
    if isinstance(answer, Mapping):
        answer = {name: part for name, part in answer.items() if name != "loss"}
    elif parts_of(answer) is None and not isinstance(answer, Tensor | PackedSequence):
        answer = main_of(answer) if has_main(answer) else ()  # of a distribution it is not known what its numbers are
    if isinstance(answer, list | tuple) and not isinstance(answer, PackedSequence):
        answer = [part for part in answer if not _is_number(part)]
    if (
        isinstance(answer, list | tuple)
        and answer
        and not isinstance(answer, PackedSequence)
        and isinstance(answer[0], Tensor)
    ):
        steps = answer[0].shape[: example_dim + 1]
        answer = [part for part in answer if isinstance(part, Tensor) and part.shape[: example_dim + 1] == steps]
    numbers = (tensor for tensor in tensors_in(answer) if tensor.is_floating_point() or tensor.is_complex())
    return [as_real(tensor) for tensor in numbers if tensor.ndim]


def detached(answer: Any) -> Any:
    """Return an answer without its graph."""
    return mapped(lambda value: value if isinstance(value, PackedSequence) else value.detach(), answer)
