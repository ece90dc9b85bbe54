"""What a model needs of a device's memory for one step of one example: counted from shapes, without any numbers."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn

from pruning.core.devices import unvalidated
from pruning.core.faults import said
from pruning.core.modes import evaluating
from pruning.core.nested import tensors_in
from pruning.core.neurons import named_buffers
from pruning.core.options import Numbers, expect_known
from pruning.core.uncompiled import Mode
from pruning.core.units import in_bytes
from pruning.core.words import table_of
from pruning.models.base import Measurable, expect_measurable

NUMBERS = get_args(Numbers)
FLOAT, SCALE = 4, 4
"""Bytes of a number in single precision, and of the scale that a row of int8 numbers has."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a model needs for one step of one example.

    Attributes:
        weights: What the file holds: parameters, buffers, and the scales of int8 ones.
        state: What is carried from step to step, once.
        activations: The most that is alive at once while a step is computed, beside those: inputs until they were read,
            what operations hand on, outputs and the next state.
    """

    weights: int
    state: int
    activations: int

    @property
    def total(self) -> int:
        """All three together."""
        return self.weights + self.state + self.activations

    def __str__(self) -> str:
        """Return a line on each."""
        rows = [[name, in_bytes(value)] for name, value in {**vars(self), "total": self.total}.items()]
        return "\n".join(table_of(["memory", "bytes"], rows))


def memory_of(model: Measurable, *, numbers: Numbers = "float32") -> Memory:
    """Return what the model needs of a device's memory for one step of one example (one token of one sequence).

    Weights of `float32` take four bytes a number. Of `int8` a number of a matrix or kernel takes one byte and the scale
    of each of its rows four; vectors (biases, thresholds, normalisations) stay in four. Activations are floats in both,
    as where int8 numbers meet activations that are rounded as they come. They are counted operation by operation, each
    of which is done before the next; see `Trace`. Runtimes add what is their own: code, tables, padding, matrices that
    they rearrange.

    >>> import pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> memory_of(model).weights == 4 * pruning.size_of(model).parameters
    True
    >>> print(memory_of(model))
    memory       bytes
    weights      684 B
    state        24 B
    activations  84 B
    total        792 B
    >>> memory_of(model, numbers="int8").weights  # matrices of 150 numbers in 30 rows, and 21 biases
    354

    Args:
        model: A model on any device; it is left as it was.
        numbers: `float32` or `int8`.

    Raises:
        ValueError: For unknown numbers, or a network that does not run without its numbers (on PyTorch's meta device).
    """
    expect_measurable(model)
    check_numbers(numbers)
    held = sum(bytes_of(tensor.shape, tensor.dtype, numbers) for tensor in stored(model).values())
    trace = traced(model)
    return Memory(held, trace.state, int(max(trace.alive())))


def check_numbers(numbers: str) -> None:
    """Refuse numbers that are not known."""
    expect_known("numbers", NUMBERS, numbers)


def stored(model: nn.Module) -> dict[str, Tensor]:
    """Return what a file of the model holds, parameters (shared ones once) and buffers, by name."""
    return dict(model.named_parameters()) | named_buffers(model)


def bytes_of(shape: Sequence[int], dtype: torch.dtype, numbers: Numbers) -> int:
    """Return the bytes of a tensor of this shape in a file.

    >>> bytes_of((6, 4), torch.float32, "float32"), bytes_of((6, 4), torch.float32, "int8")
    (96, 48)
    """
    count = torch.Size(shape).numel()
    if not dtype.is_floating_point:
        return count * dtype.itemsize
    return count + SCALE * shape[0] if numbers == "int8" and len(shape) > 1 else FLOAT * count


@dataclass
class Trace:
    """Operations in their order, by what they read and give, and the bytes of that.

    Attributes:
        reads: What each operation reads.
        gives: What each operation gives that was not there before.
        sizes: Bytes by number, weights and the state that is given left out.
        kept: What stays to the end: outputs and the next state.
        held: Bytes of the state that is given, by number.
    """

    reads: list[set[int]] = field(default_factory=list)
    gives: list[set[int]] = field(default_factory=list)
    sizes: dict[int, Any] = field(default_factory=dict)
    kept: set[int] = field(default_factory=set)
    held: dict[int, Any] = field(default_factory=dict)

    @property
    def state(self) -> Any:
        """Bytes of the state that is given."""
        return sum(self.held.values())

    def alive(self) -> list[Any]:
        """Return, for each operation, the sum of the sizes of what is alive while it runs.

        That is what was given before or is given now, and is read now or later, or kept. What no operation gives, the
        inputs, is there from the start.

        >>> chain = Trace([{0}, {1}], [{1}, {2}], {0: 40, 1: 80, 2: 20}, {2})
        >>> chain.alive()  # the first operation holds its input and its output
        [120, 100]
        """
        count = len(self.reads)
        start = {each: number for number in reversed(range(count)) for each in self.gives[number]}
        end = {each: number for number in range(count) for each in self.reads[number] | self.gives[number]}
        end |= dict.fromkeys(self.kept, count)
        begins: list[list[int]] = [[] for _ in range(count + 1)]
        ends: list[list[int]] = [[] for _ in range(count + 1)]
        for each in self.sizes:
            begins[start.get(each, 0)].append(each)
            ends[end.get(each, 0)].append(each)
        now, found = 0, []
        for number in range(count):
            now = sum((self.sizes[each] for each in begins[number]), now)
            found.append(now)
            now = now - sum(self.sizes[each] for each in ends[number])
        return found


def traced(model: Measurable) -> Trace:
    """Return the operations of one step of one example, the state given, as PyTorch's kernels are called.

    Raises:
        ValueError: If the network does not run without its numbers.
    """
    shapes = copy.deepcopy(model).to("meta")
    with torch.device("meta"), evaluating(shapes), torch.no_grad():
        with from_shapes_alone():
            inputs = shapes.example(1)
            _, state = shapes.predicted(inputs)
        call = partial(shapes.predicted, inputs, state)
        return traced_call(call, weights=stored(shapes).values(), state=state, inputs=inputs)


@contextmanager
def from_shapes_alone() -> Iterator[None]:
    """Within the context, say in one sentence that a network does not run without its numbers."""
    try:
        with unvalidated():
            yield
    except Exception as error:  # whatever a user's code says of numbers that are not there
        raise ValueError(
            f"Expected a network whose memory can be counted from shapes alone, got {said(error)}."
        ) from error


def traced_call(call: Callable[[], Any], *, weights: Iterable[Tensor], state: Any, inputs: Any) -> Trace:
    """Return the operations of a call, what it gives kept to the end.

    Args:
        call: Runs a network.
        weights: What is no activation.
        state: What it is given that stays there; its size is the trace's `state`.
        inputs: What else it is given.

    Raises:
        ValueError: If it does not run without numbers.
    """
    mode = _Tracing(weights, state)
    mode.given(inputs)
    with from_shapes_alone(), mode:
        outputs = call()
    return mode.ended(outputs)


class _Tracing(Mode):  # type: ignore[no-untyped-call]
    """A mode that notes what each operation reads and gives; views are what they look at."""

    def __init__(self, weights: Any, state: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._numbers: dict[int, int] = {}
        self._held: list[Tensor] = []  # so that no later tensor takes an address
        self.trace = Trace()
        self._apart = {self._number(tensor) for tensor in weights}
        before = {self._number(tensor): _bytes(tensor) for tensor in tensors_in(state)}
        self.trace.held = {number: size for number, size in before.items() if number not in self._apart}
        self._apart |= before.keys()

    def given(self, value: Any) -> None:
        """Note what is there from the start."""
        for tensor in tensors_in(value):
            self._note(tensor)

    def ended(self, value: Any) -> Trace:
        """Return what was noted, what the network gave kept to the end."""
        self.trace.kept = {self._number(tensor) for tensor in tensors_in(value)} - self._apart
        return self.trace

    def __torch_dispatch__(
        self, function: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do what is called for."""
        result = function(*args, **(kwargs or {}))
        reads = {self._note(tensor) for tensor in tensors_in((args, kwargs or {}))} - self._apart
        gives = {self._note(tensor) for tensor in tensors_in(result)} - self._apart
        self.trace.reads.append(reads)
        self.trace.gives.append(gives - reads)
        return result

    def _note(self, tensor: Tensor) -> int:
        number = self._number(tensor)
        if number not in self._apart:
            self.trace.sizes[number] = _bytes(tensor)
        return number

    def _number(self, tensor: Tensor) -> int:
        """Return the number of the storage that a tensor looks at."""
        address = tensor.untyped_storage()._cdata
        if address not in self._numbers:
            self._numbers[address] = len(self._numbers)
            self._held.append(tensor)
        return self._numbers[address]


def _bytes(tensor: Tensor) -> int:
    """Return the bytes of what a tensor looks at, real numbers in single precision."""
    size = tensor.untyped_storage().nbytes()
    return size // tensor.itemsize * FLOAT if tensor.is_floating_point() else size
