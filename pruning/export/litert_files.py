"""LiteRT's file: converted by a Python of its own, whose packages do not fit ours, and run by LiteRT's interpreter."""

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from pruning.evaluation.memory import Trace
from pruning.export import run_litert_torch
from pruning.export.made import Made, Run
from pruning.extras import needed

FILE = "model.tflite"
CONVERTER = ("torch==2.13.0", "litert-torch==0.10.0")
"""What the converter's environment holds. Its xdsl wants typing-extensions below 4.13, other packages of ours above."""


def made(program: ExportedProgram, *, int8: bool, converter: str) -> Made:
    """Return a program of fixed shapes as a file; of int8 are the matrices of products and embeddings.

    What products read becomes int8 as it comes (dynamic quantisation), one scale for each row of a matrix.

    Args:
        program: What is converted.
        int8: Whether matrices are rounded.
        converter: A Python that has `CONVERTER`.

    Raises:
        ValueError: If it cannot convert the program.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{folder}/program.pt2", f"{folder}/{FILE}"
        torch.export.save(program, source)
        words = [converter, "-P", str(run_litert_torch.__file__), source, target, "int8" if int8 else "float32"]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False)
        except OSError as error:
            raise ValueError(f"Expected a Python that has litert-torch, got {converter}: {error.strerror}.") from error
        if done.returncode:
            last = done.stderr.strip().rpartition("\n")[2]
            raise ValueError(f"Expected a network that litert-torch can convert, got {last.removesuffix('.')}.")
        with open(target, "rb") as file:
            content = file.read()
    return Made({FILE: content}, *_needs(content))


def opened(files: Mapping[str, bytes], threads: int) -> Run:
    """Return what runs a file on so many threads."""
    interpreter = _interpreter(files[FILE], num_threads=threads)
    runner = interpreter.get_signature_runner()
    puts = {name: put["dtype"] for name, put in runner.get_input_details().items()}
    names = sorted(puts, key=_number)

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        given = {name: tensor.numpy().astype(puts[name]) for name, tensor in zip(names, tensors, strict=True)}
        found = runner(**given)
        return [torch.from_numpy(np.array(found[name])) for name in sorted(found, key=_number)]

    return run


def _interpreter(content: bytes, **settings: Any) -> Any:
    interpreter = needed("ai_edge_litert.interpreter", "litert").Interpreter(model_content=content, **settings)
    interpreter.allocate_tensors()
    return interpreter


def _number(name: str) -> int:
    """Return the number that an input or output is called by, as `args_3`."""
    return int(name.rpartition("_")[2])


_WEIGHTS = (np.float32, np.float16, np.int8)
"""What weights are held in; other constants are shapes."""


def _needs(content: bytes) -> tuple[int, int]:
    """Return the bytes of the weights, and the most of all else that are alive at once, operation by operation."""
    kinds = needed("ai_edge_litert.interpreter", "litert").OpResolverType
    interpreter = _interpreter(content, experimental_op_resolver_type=kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    sizes = {
        one["index"]: int(np.prod(one["shape"], dtype=int)) * np.dtype(one["dtype"]).itemsize
        for one in interpreter.get_tensor_details()
    }
    scales = {one["index"]: one["quantization_parameters"]["scales"].nbytes for one in interpreter.get_tensor_details()}
    inputs, outputs = (
        {one["index"] for one in puts} for puts in (interpreter.get_input_details(), interpreter.get_output_details())
    )
    steps = interpreter._get_ops_details()
    gives = [set(map(int, step["outputs"])) for step in steps]
    alive = inputs | set().union(*gives)
    reads = [set(map(int, step["inputs"])) & alive for step in steps]
    weights = {one["index"] for one in interpreter.get_tensor_details() if one["dtype"] in _WEIGHTS}
    constant = {int(each) for step in steps for each in step["inputs"]} & weights - alive
    trace = Trace(reads, gives, {each: sizes[each] for each in alive}, outputs)
    return sum(sizes[each] + scales[each] for each in constant), int(max(trace.alive(), default=0))
