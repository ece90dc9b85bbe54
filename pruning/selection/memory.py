"""What widths cost in memory: weights from tensors' shapes, activations from what is alive at each operation."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement

import numpy as np

from pruning.core.devices import without_values
from pruning.core.options import Numbers
from pruning.evaluation.memory import FLOAT, SCALE, Trace, check_numbers, memory_of, stored, traced
from pruning.models.base import Measurable
from pruning.selection.costs import Costs, quadratic, told_by_shapes

Pairs = Sequence[tuple[int, int]]


def memory_costs(model: Measurable, *, numbers: Numbers = "float32") -> Costs:
    """Return the bytes that the model needs in all (see `memory_of`) as a function of its widths.

    Weights are c + Σ a_l w_l + Σ q_lm w_l w_m, as sizes are. What is alive at an operation is of that form too, and the
    most of any operation counts: the coefficients follow from the operations of tiny models. Where each tensor has the
    width of one layer at most, as many models as a layer's number has bits tell which; only if that misses there is one
    for each layer, and then one for each two. Whatever comes out is compared with what `memory_of` counts of the
    model itself and of a small one.

    Raises:
        ValueError: If the memory is of another form, so that these are missed.
    """
    check_numbers(numbers)
    depth, full = len(model.layers()), np.array(model.widths())
    shapes = copy.deepcopy(model).to("meta")

    def smaller(widths: np.ndarray) -> Measurable:
        with without_values():
            return shapes.resized(widths.tolist())

    rows = np.stack([full, np.arange(depth) % 3 + 1])
    expected = [memory_of(smaller(row), numbers=numbers).total for row in rows]
    known: dict[tuple[int, ...], np.ndarray] = {}
    weights = _weights(model, numbers)

    def alive(widths: np.ndarray) -> np.ndarray:
        if tuple(widths) not in known:
            trace = traced(smaller(widths))
            known[tuple(widths)] = np.array(trace.alive(), dtype=float) + trace.state
        return known[tuple(widths)]

    every = list(combinations_with_replacement(range(depth), 2))
    ways: list[tuple[Callable[[], np.ndarray | None], Pairs]] = [
        (lambda: _forms_of_tensors(lambda widths: traced(smaller(widths)), depth), []),
        (lambda: _forms(alive, depth, []), []),
        (lambda: _forms(alive, depth, every), every),
    ]
    for way, pairs in ways:
        forms = way()
        if forms is not None and (costs := MemoryCosts(weights, forms, pairs))(rows).tolist() == expected:
            return costs
    raise ValueError("Expected memory with at most a product of two widths in each tensor, got another form.")


def _weights(model: Measurable, numbers: Numbers) -> Costs:
    """Return the bytes of what is stored; see `bytes_of`."""
    tensors = stored(model)
    rounded = [name for name, own in tensors.items() if numbers == "int8" and own.is_floating_point() and own.ndim > 1]
    each = {
        name: 1 if name in rounded else FLOAT if own.is_floating_point() else own.itemsize
        for name, own in tensors.items()
    }
    parts = [
        (size, told_by_shapes(model, [name for name in tensors if each[name] == size])) for size in set(each.values())
    ]
    parts.append((SCALE, told_by_shapes(model, rounded, dims=1)))
    return lambda widths: np.asarray(np.sum([size * costs(widths) for size, costs in parts], axis=0))


def _forms(alive: Callable[[np.ndarray], np.ndarray], depth: int, pairs: Pairs) -> np.ndarray | None:
    """Return the coefficients of what is alive, (terms, operations): of 1, of each width, and of each pair's product.

    None if which operations there are depends on the widths. Operations at which another one never holds less are left
    out.
    """
    unit = np.eye(depth, dtype=int)
    widths = np.full(depth, 2) + np.stack([0 * unit[0], *unit, *(unit[i] + unit[j] for i, j in pairs)])
    held = [alive(row) for row in widths]
    if len({len(row) for row in held}) > 1:
        return None
    return _greatest(np.round(2 * np.linalg.solve(quadratic(widths, pairs), np.stack(held))) / 2)


def _forms_of_tensors(trace_of: Callable[[np.ndarray], Trace], depth: int) -> np.ndarray | None:
    """Return the coefficients of what is alive, (1 + depth, operations), from those of each tensor.

    One model has all widths larger by one, the others those of the layers in whose number a bit is set: the models in
    which a tensor is larger are the bits of its layer. None if a tensor is larger in one of them by something else, or
    the operations are not the same.
    """
    bits = [np.arange(depth) >> bit & 1 for bit in range(max(depth - 1, 1).bit_length())]
    traces = [trace_of(2 + more) for more in (np.zeros(depth, dtype=int), np.ones(depth, dtype=int), *bits)]
    first = traces[0]
    if any((t.reads, t.gives, t.kept) != (first.reads, first.gives, first.kept) for t in traces):
        return None
    forms: dict[str, dict[int, np.ndarray]] = {"sizes": {}, "held": {}}
    for kind, known in forms.items():
        for number in getattr(first, kind):
            least, most, *larger = (getattr(trace, kind)[number] for trace in traces)
            more = most - least
            if any(size not in (least, most) for size in larger):
                return None
            layer = sum(int(size > least) << bit for bit, size in enumerate(larger))
            known[number] = np.zeros(1 + depth)
            known[number][0] = least - 2 * more
            if more and layer >= depth:
                return None
            known[number][1 + layer % depth] = more
    alive = Trace(first.reads, first.gives, forms["sizes"], first.kept, forms["held"])
    return _greatest(np.stack([np.zeros(1 + depth) + held + alive.state for held in alive.alive()], axis=1))


def _greatest(told: np.ndarray) -> np.ndarray:
    """Return the coefficients, (terms, operations), of those operations at which no other one always holds as much."""
    forms = np.unique(told, axis=1)
    least = [np.any(np.all(forms >= own[:, None], axis=0) & np.any(forms > own[:, None], axis=0)) for own in forms.T]
    return np.asarray(forms[:, ~np.array(least)])


@dataclass(frozen=True)
class MemoryCosts:
    """What weights need and, beside them, the operation that holds most: widths (n, layers) → bytes, (n,).

    Attributes:
        weights: Widths → bytes of what is stored.
        forms: Coefficients of what is alive at each operation, (terms, operations).
        pairs: The layers whose widths are multiplied in the terms.
    """

    weights: Costs
    forms: np.ndarray
    pairs: Pairs

    def __call__(self, widths: np.ndarray) -> np.ndarray:
        """Return the bytes of each row of widths."""
        return np.asarray(self.weights(widths) + (quadratic(widths, self.pairs) @ self.forms).max(axis=1))

    def nearby(self, widths: np.ndarray) -> Costs:
        """Return the costs as they are around some widths, (layers,): of the operation alone that holds most there."""
        most = int((quadratic(widths[None], self.pairs) @ self.forms)[0].argmax())
        return replace(self, forms=self.forms[:, [most]])
