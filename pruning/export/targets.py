"""A network for one target: converted, opened again, compared with the network, and what it needs of memory."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from pruning.core.options import Numbers, expect_known
from pruning.core.units import in_bytes
from pruning.core.words import table_of
from pruning.evaluation.memory import Memory, check_numbers
from pruning.export import executorch_files, litert_files, onnx_files, onnx_of, openvino_files
from pruning.export.calls import outputs_of
from pruning.export.fixed import Fixed, fixed
from pruning.export.made import Made, Run

TOLERANCE = 1e-4
"""Largest difference of a float32 file's outputs from the network's, relative to the largest: single precision's."""


@dataclass(frozen=True)
class Target:
    """How files of one target come about.

    Attributes:
        opened: Files and threads → what runs them.
        extra: The extra that brings its packages.
        packages: What it imports of them.
        words: What it is.
    """

    opened: Callable[[Mapping[str, bytes], int], Run]
    extra: str
    packages: tuple[str, ...]
    words: str


TARGETS = {
    "onnx": Target(onnx_files.opened, "export", ("onnx", "onnxscript", "onnxruntime"), "ONNX, run by onnxruntime"),
    "openvino": Target(openvino_files.opened, "openvino", ("openvino",), "OpenVINO, on Intel's and ARM's processors"),
    "executorch": Target(
        executorch_files.opened, "executorch", ("executorch",), "ExecuTorch with XNNPACK, on phones and boards"
    ),
    "litert": Target(
        litert_files.opened, "litert", ("ai_edge_litert",), "LiteRT (TensorFlow Lite), on phones and boards"
    ),
}
"""Name → how its files come about."""


@dataclass(frozen=True)
class Exported:
    """A network as files of a target, which were opened again and compared with it.

    Attributes:
        target: One of `TARGETS`.
        numbers: What its weights are held in.
        files: Name → contents.
        memory: What one step needs: weights as the files hold them, state and activations counted from the operations.
        arena: Bytes that the target itself plans for all but the weights; None where it does not tell.
        difference: Largest difference of its outputs from the network's, relative to the largest of each.
        fixed: The network that it was made of, and its shapes.
        threads: On how many it runs.
    """

    target: str
    numbers: str
    files: Mapping[str, bytes]
    memory: Memory
    arena: int | None
    difference: float
    fixed: Fixed = field(repr=False)
    threads: int = 1

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(map(len, self.files.values()))

    def opened(self) -> Run:
        """Return what runs the files here: tensors of the inputs, in their order → tensors of the outputs."""
        with quietly():
            return TARGETS[self.target].opened(self.files, self.threads)

    def __str__(self) -> str:
        """Return what it is and what it needs."""
        rows = [["files", f"{', '.join(self.files)}, {in_bytes(self.bytes)}"]]
        rows += [[name, in_bytes(value)] for name, value in vars(self.memory).items()]
        if self.arena is not None:
            rows.append(["arena", f"{in_bytes(self.arena)}, planned for all but the weights"])
        rows.append(["difference", f"{self.difference:.0e} of the largest output"])
        return "\n".join(table_of([self.target, self.numbers], rows))


def exported(
    model: nn.Module,
    target: str,
    *,
    numbers: Numbers = "float32",
    inputs: Any = None,
    converter: str | None = None,
    threads: int = 1,
) -> Exported:
    """Return a network as files of a target that were opened again here and gave what the network gives.

    Shapes are fixed to one step of one example, a state that is carried in and out, but in ONNX, where they are free.
    Recurrences are done step by step, but in ONNX, which has operations for them. Of `int8` are the matrices of
    products and embeddings, one scale a row: rounded activations meet them in ONNX, ExecuTorch and LiteRT, OpenVINO
    turns them to floats as it reads. ONNX leaves recurrences other than LSTMs in floats.

    >>> import torch
    >>> network = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3))
    >>> made = exported(network, "onnx", inputs=torch.ones(1, 2))
    >>> print(made.memory)
    memory       bytes
    weights      156 B
    state        0 B
    activations  48 B
    total        204 B
    >>> made.opened()([torch.ones(1, 2)])[0].shape
    torch.Size([1, 3])

    Args:
        model: A model of a built-in family, what `adapt`, `discover`, `select` or `prune` gave, or a network; it
            stays as it was.
        target: `onnx`, `openvino`, `executorch` or `litert`.
        numbers: `float32` or `int8`.
        inputs: What it is called with, as of `program_of`; by default one example of what it was adapted with.
        converter: For LiteRT: a Python that has `litert-torch`, which does not fit beside this library's pins.
        threads: On how many it runs here.

    Raises:
        ValueError: For an unknown target, a network that it cannot hold, or a file in float32 that gives other numbers.
        ModuleNotFoundError: If the target's packages are missing, in a sentence that names the extra.
    """
    check_numbers(numbers)
    expect_known("target", TARGETS, target)
    with quietly():
        shapes = fixed(model, inputs)
        found = _made(model, shapes, target, numbers == "int8", inputs, converter)
        run = TARGETS[target].opened(found.files, threads)
        expected, given = outputs_of(shapes.network, (shapes.example, {})), run(shapes.example)
    difference = apart(given, expected)
    if numbers == "float32" and not difference <= TOLERANCE:  # so that a NaN is refused too
        raise ValueError(
            f"Expected {', '.join(found.files)} to give the network's outputs within {TOLERANCE:g}, "
            f"got {difference:.1e}; export a part of it, or for another target."
        )
    memory = Memory(found.weights, int(shapes.trace.state), int(max(shapes.trace.alive(), default=0)))
    return Exported(target, numbers, found.files, memory, found.arena, difference, shapes, threads)


def _made(model: nn.Module, shapes: Fixed, target: str, int8: bool, inputs: Any, converter: str | None) -> Made:
    """Return the files."""
    if target == "onnx":
        return onnx_files.made(onnx_of(model, inputs), int8=int8)
    program = shapes.program()
    if target == "litert":
        if converter is None:
            raise ValueError(
                "Expected a Python that has litert-torch to convert with, got none; its packages do not fit beside "
                f"this library's pins, so install {' and '.join(litert_files.CONVERTER)} in an environment of its own."
            )
        return litert_files.made(program, int8=int8, converter=converter)
    make = openvino_files.made if target == "openvino" else executorch_files.made
    return make(program, int8=int8)


def apart(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest difference of tensors from those expected, relative to the largest number of each."""
    if [tuple(one.shape) for one in outputs] != [tuple(one.shape) for one in expected]:
        return float("inf")
    pairs = zip(outputs, expected, strict=True)
    return max(
        ((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-30)).item() for a, b in pairs
    )


class quietly(warnings.catch_warnings):  # noqa: N801 - a context manager reads as a verb
    """Within the context, exporters keep to themselves what they say of their own insides."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
