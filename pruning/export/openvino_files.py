"""OpenVINO's files: a program converted, its matrices held in int8 and multiplied as floats, and run on the CPU."""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from pruning.evaluation.memory import Trace
from pruning.export.made import Made, Run
from pruning.extras import needed

GRAPH, WEIGHTS = "model.xml", "model.bin"


def made(program: ExportedProgram, *, int8: bool) -> Made:
    """Return a program of fixed shapes as OpenVINO's two files."""
    openvino = needed("openvino", "openvino")
    frontend = needed("openvino.frontend", "openvino").FrontEndManager().load_by_framework("pytorch")
    decoding = needed("openvino.frontend.pytorch.fx_decoder", "openvino").TorchFXPythonDecoder
    with _unheard():  # that it has no rules for operations that PyTorch has not either, said to the root logger
        decoder = decoding.from_exported_program(program)  # held, for what is loaded reads it while it is converted
    loaded = frontend.load(decoder)
    model = frontend.convert(loaded)
    shapes = [openvino.PartialShape(list(tensor.shape)) for tensor in program.example_inputs[0]]
    model.reshape(dict(zip(model.inputs, shapes, strict=True)))
    if int8:
        _round(model, needed("openvino.opset13", "openvino"))
    with tempfile.TemporaryDirectory() as folder:
        openvino.save_model(model, f"{folder}/{GRAPH}", compress_to_fp16=False)
        files = {}
        for name in (GRAPH, WEIGHTS):
            with open(f"{folder}/{name}", "rb") as file:
                files[name] = file.read()
    constants = [
        one for one in model.get_ops() if one.get_type_name() == "Constant" and one.get_element_type().is_real()
    ]
    return Made(files, sum(one.get_byte_size() for one in constants) + _whole(model), _arena(model))


def opened(files: Mapping[str, bytes], threads: int) -> Run:
    """Return what runs the files on so many threads, in single precision."""
    openvino = needed("openvino", "openvino")
    core = openvino.Core()
    model = core.read_model(model=files[GRAPH], weights=files[WEIGHTS])
    how = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(model, "CPU", how)
    request = compiled.create_infer_request()

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        found = request.infer([tensor.numpy() for tensor in tensors])
        return [torch.from_numpy(np.array(found[put])) for put in compiled.outputs]

    return run


@contextmanager
def _unheard() -> Iterator[None]:
    """Keep to itself what the root logger is told, but not what other loggers hand on to it."""
    root, nowhere = logging.getLogger(), logging.NullHandler()
    before = root.disabled
    root.addHandler(nowhere)  # else `logging.warning` gives it one that stays
    root.disabled = True
    try:
        yield
    finally:
        root.disabled = before
        root.removeHandler(nowhere)


def _round(model: Any, operations: Any) -> None:
    """Let every matrix and kernel be held in int8, one scale a row, which the runtime turns to floats as it reads."""
    for constant in model.get_ops():
        if constant.get_type_name() != "Constant" or constant.get_element_type().get_type_name() != "f32":
            continue
        values = constant.data
        if values.ndim < 2 or values.size == values.shape[0]:
            continue
        scale = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True) / 127
        scale = np.where(scale > 0, scale, 1).astype(np.float32)
        readers = list(constant.output(0).get_target_inputs())
        whole = operations.constant(np.round(values / scale).astype(np.int8))
        floats = operations.multiply(operations.convert(whole, "f32"), operations.constant(scale))
        for reader in readers:
            reader.replace_source_output(floats.output(0))


def _whole(model: Any) -> int:
    """Return the bytes of the int8 matrices."""
    constants = (one for one in model.get_ops() if one.get_type_name() == "Constant")
    return sum(one.get_byte_size() for one in constants if one.get_element_type().get_type_name() == "i8")


def _arena(model: Any) -> int:
    """Return the most bytes that are alive at once, operation by operation, inputs and outputs included."""
    trace = Trace()
    constant: set[int] = set()
    numbers: dict[tuple[str, int], int] = {}
    for one in model.get_ordered_ops():
        name, kind = one.get_friendly_name(), one.get_type_name()
        sources = [put.get_source_output() for put in one.inputs()]
        reads = {numbers[put.get_node().get_friendly_name(), put.get_index()] for put in sources}
        if kind == "Result":
            trace.kept |= reads
            continue
        gives = {numbers.setdefault((name, put.get_index()), len(numbers)) for put in one.outputs()}
        if kind == "Constant" or (reads and reads <= constant):  # folded, or read where it lies
            constant |= gives
            continue
        trace.sizes |= {numbers[name, put.get_index()]: _bytes(put) for put in one.outputs()}
        if kind != "Parameter":
            trace.reads.append(reads - constant)
            trace.gives.append(gives)
    return int(max(trace.alive(), default=0))


def _bytes(put: Any) -> int:
    return int(np.prod(put.get_shape(), dtype=int)) * int(put.get_element_type().size)
