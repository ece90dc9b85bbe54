"""Packed sequences while a graph is captured: padded instead, for a graph's shapes cannot depend on lengths.

What `pack_padded_sequence` gives then holds the padded steps (T, B, n) as its data, and the batch sizes that it should
have, from which the lengths follow. What is no step of a sequence is zero wherever it is read.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from pruning.discovery.recurrent import Recurrent

State = tuple[Tensor, ...]


class Padding(TorchFunctionMode):
    """A mode in which sequences are not packed but stay padded."""

    def __torch_function__(
        self, function: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do what is called for, or what stands for it."""
        if function is torch._VF._pack_padded_sequence:
            return _packed(*args)
        if function is torch._VF._pad_packed_sequence:
            return _padded(*args)
        return function(*args, **(kwargs or {}))


def lengths_of(sizes: Tensor, examples: int) -> Tensor:
    """Return how long each sequence is, the longest first, of the batch sizes of a packed sequence.

    >>> lengths_of(torch.tensor([3, 2, 2, 1]), 3)
    tensor([4, 3, 1])
    """
    return (sizes[None] > torch.arange(examples, device=sizes.device)[:, None]).sum(1)


def turned(steps: Tensor, lengths: Tensor) -> Tensor:
    """Return sequences (T, B, n), each read backwards within its length.

    >>> turned(torch.tensor([[[1], [4]], [[2], [0]], [[3], [0]]]), torch.tensor([3, 1])).squeeze(2).T
    tensor([[3, 2, 1],
            [4, 0, 0]])
    """
    places = torch.arange(steps.shape[0], device=steps.device)[:, None]
    there = torch.where(places < lengths, lengths - 1 - places, places)
    return steps.gather(0, there[:, :, None].expand(-1, -1, steps.shape[2]))


def within(steps: Tensor, lengths: Tensor) -> Tensor:
    """Return sequences (T, B, n) with zeros behind their lengths."""
    places = torch.arange(steps.shape[0], device=steps.device)[:, None]
    return steps * (places < lengths)[:, :, None]


def last(steps: Tensor, lengths: Tensor) -> Tensor:
    """Return the last step of each sequence (T, B, n), (1, B, n)."""
    return steps.gather(0, (lengths - 1)[None, :, None].expand(1, -1, steps.shape[2]))


def unequal(module: Recurrent, packed: PackedSequence, state: State | None) -> tuple[PackedSequence, Any]:
    """Return what parts of unequal widths give of sequences that are padded; see `Recurrent._packed`."""
    hidden, sizes, order, back = packed
    lengths = lengths_of(sizes, hidden.shape[1])
    state = state if state is None or order is None else tuple(part.index_select(1, order) for part in state)
    carried: list[State] = []
    outputs: list[Tensor] = []
    width = module.proj_size or module.hidden_size
    for index, (name, suffix) in enumerate(module._parts()):
        part: Any = module.get_submodule(name)
        widths = (part.proj_size or part.hidden_size, part.hidden_size)
        before = None
        if state is not None:
            before = tuple(
                each[index : index + 1, :, :own].contiguous() for each, own in zip(state, widths, strict=False)
            )
        backwards = "reverse" in suffix
        read = turned(hidden, lengths) if backwards else hidden
        given, after = part.over(read, before, lengths)
        outputs.append(turned(given, lengths) if backwards else given)
        carried.append(after)
        if len(outputs) == module._directions:
            hidden, outputs = torch.cat(outputs, dim=-1), []
    found = []
    for kind, whole in zip(zip(*carried, strict=True), (width, module.hidden_size), strict=False):
        wide = [each if module.even else torch.nn.functional.pad(each, (0, whole - each.shape[-1])) for each in kind]
        found.append(torch.cat(wide))
    if back is not None:
        found = [each.index_select(1, back) for each in found]
    return PackedSequence(hidden, sizes, order, back), tuple(found) if len(found) > 1 else found[0]


def _packed(steps: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """Return padded sequences (T, B, n), and how many of them have each step."""
    first = steps.transpose(0, 1) if batch_first else steps
    places = torch.arange(first.shape[0])[:, None]
    return first, (lengths.cpu()[None] > places).sum(1)


def _padded(
    steps: Tensor, sizes: Tensor, batch_first: bool, padding: float, _total: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the sequences, `padding` behind their lengths, and the lengths."""
    lengths = lengths_of(sizes, steps.shape[1])
    places = torch.arange(steps.shape[0], device=steps.device)[:, None]
    found = torch.where((places < lengths)[:, :, None], steps, steps.new_full((), padding))
    return (found.transpose(0, 1) if batch_first else found), lengths
