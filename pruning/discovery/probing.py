"""Whose the results of an operation are, told by running it again with some neurons changed.

A binary code numbers the neurons. For each of its bits the operation runs with the neurons changed whose code has that
bit, and with the others: a result that changes with exactly one of the two in every pair is that neuron's whose code
the pairs spell; one that ever changes with both depends on several.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pruning.core.devices import accelerators_among, seeded_on

DRAWS = 4
"""How often each change is tried, with other and larger numbers: a maximum or a threshold may hide one."""


@dataclass(frozen=True)
class Told:
    """What a probe tells.

    Attributes:
        owners: For each tensor that the operation gives, the places that its elements belong to by each argument.
        mixed: Places of which some result depends on several.
    """

    owners: list[list[Tensor]]
    mixed: list[Tensor]


def owners(
    operation: Any, arguments: tuple[tuple[Any, ...], dict[str, Any]], places: list[Tensor | None], outputs: Any
) -> Told | None:
    """Return whose an operation's results are; None if that cannot be told.

    Args:
        operation: It writes into none of its arguments that are needed again.
        arguments: What it is called with, as positional arguments and by name.
        places: For each leaf of the arguments the places of its elements, 0 for nobody's; None if it is no tensor.
        outputs: What it gives.
    """
    leaves, layout = pytree.tree_flatten(arguments)
    if len(leaves) != len(places):
        return None
    expected = _run(operation, leaves, layout)
    if expected is None or len(expected) != len([leaf for leaf in pytree.tree_leaves(outputs) if _is_tensor(leaf)]):
        return None
    found: list[list[tuple[Tensor, bool]]] = [[] for _ in expected]
    mixed: list[Tensor] = []
    for place, whose in enumerate(places):
        if whose is None or not bool(whose.any()):
            continue
        told = _of_argument(operation, leaves, layout, place, whose, expected)
        if told is None:
            return None
        for own, (owner, blended) in zip(found, told, strict=True):
            own.append((owner, blended))
            if blended:
                mixed.append(whose)
    return Told([_apart(own) for own in found], mixed)


def _apart(told: list[tuple[Tensor, bool]]) -> list[Tensor]:
    """Return to whom a result belongs by each argument: not to what is mixed, where all of it is another's."""
    another = any(not blended and bool((owner > 0).all()) for owner, blended in told)
    return [torch.zeros_like(owner) if blended and another else owner for owner, blended in told]


def _of_argument(
    operation: Any, leaves: list[Any], layout: Any, place: int, whose: Tensor, expected: list[Tensor]
) -> list[tuple[Tensor, bool]] | None:
    """Return for each result to whom it belongs by one argument, and whether some of it belongs to several."""
    numbers, codes = torch.unique(whose, return_inverse=True)
    bits = max(1, (len(numbers) - 1).bit_length())
    owner = [torch.zeros(part.shape, dtype=torch.int64) for part in expected]
    any_changed = [torch.zeros(part.shape, dtype=torch.bool) for part in expected]
    several = [torch.zeros(part.shape, dtype=torch.bool) for part in expected]
    for bit in range(bits):
        has = (codes >> bit & 1).bool()
        sides = []
        for side in (has, ~has):
            changed = _changed(operation, leaves, layout, place, side & (whose > 0), expected)
            if changed is None:
                return None
            sides.append(changed)
        for number, (one, other) in enumerate(zip(*sides, strict=True)):
            owner[number] += one.long() << bit
            several[number] |= one & other
            any_changed[number] |= one | other
    return [
        (torch.where(changed & ~mixed, numbers[code.clamp(max=len(numbers) - 1)], 0), bool(mixed.any()))
        for code, changed, mixed in zip(owner, any_changed, several, strict=True)
    ]


def _changed(
    operation: Any, leaves: list[Any], layout: Any, place: int, chosen: Tensor, expected: list[Tensor]
) -> list[Tensor] | None:
    """Return where results differ once the chosen elements of one argument do; None if they have another shape."""
    found = [torch.zeros(part.shape, dtype=torch.bool) for part in expected]
    if not bool(chosen.any()):
        return found
    for draw in range(DRAWS):
        changed = list(leaves)
        changed[place] = _other(leaves[place], chosen, draw)
        results = _run(operation, changed, layout)
        if results is None or [part.shape for part in results] != [part.shape for part in expected]:
            return None
        for known, result, before in zip(found, results, expected, strict=True):
            known |= ((result != before) & ~((result != result) & (before != before))).cpu()
    return found


def _other(tensor: Tensor, chosen: Tensor, draw: int) -> Tensor:
    """Return the tensor with other numbers in the chosen places."""
    if tensor.dtype == torch.bool:
        other = ~tensor
    elif tensor.is_floating_point() or tensor.is_complex():
        finite = tensor[tensor.isfinite()]
        size = finite.abs().max().item() if finite.numel() else 1.0
        noise = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(draw), dtype=tensor.dtype)
        odd, size = draw % 2, size + 1.0
        noise = (
            noise.sub(0.5 * odd) if draw < DRAWS // 2 else noise.add(1).mul(8 - 16 * odd)
        )  # then beyond any threshold
        other = tensor * (1.5 - odd) + noise.to(tensor.device) * size
    else:
        other = tensor + 1 - 2 * (draw % 2)
    return torch.where(chosen.to(tensor.device), other, tensor)


def _run(operation: Any, leaves: list[Any], layout: Any) -> list[Tensor] | None:
    """Return what the operation gives for copies of these arguments, its random numbers always the same."""
    copies = [leaf.clone() if _is_tensor(leaf) else leaf for leaf in leaves]
    args, kwargs = pytree.tree_unflatten(copies, layout)
    with seeded_on(accelerators_among(filter(_is_tensor, copies)), 0):
        try:
            found = operation(*args, **kwargs)
        except Exception:
            return None
    return [leaf for leaf in pytree.tree_leaves(found) if _is_tensor(leaf)]


def _is_tensor(leaf: object) -> bool:
    return isinstance(leaf, Tensor)
