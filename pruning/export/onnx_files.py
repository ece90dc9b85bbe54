"""ONNX files: written with free dimensions, rounded to int8 and run by onnxruntime."""

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pruning.export.made import Made, Run
from pruning.extras import needed

FILE = "model.onnx"


def rounded(graph: Any) -> Any:
    """Return an ONNX graph with int8 matrices whose inputs become int8 as they come (dynamic quantisation).

    Embedding, LSTMs and products: one scale for each column of a matrix, one for the whole embedding. Other recurrences
    stay in floats, for no operation of onnxruntime takes them. A matrix that embedding and decoder share becomes two
    int8 ones, for each reads it with scales of its own. Seven bits of the eight are used, since processors without VNNI
    instructions overflow in silence on all eight.
    """
    onnx, quantization = needed("onnx", "export"), needed("onnxruntime.quantization", "export")
    inference = needed("onnxruntime.quantization.shape_inference", "export")
    with tempfile.TemporaryDirectory() as folder:
        given, folded, target = (f"{folder}/{name}.onnx" for name in ("given", "folded", "int8"))
        onnx.save(graph, given)
        inference.quant_pre_process(given, folded, skip_symbolic_shape=True)  # matrices must be constants
        quantization.quantize_dynamic(
            folded, target, per_channel=True, reduce_range=True, weight_type=quantization.QuantType.QInt8
        )
        return onnx.load(target)


def made(graph: Any, *, int8: bool) -> Made:
    """Return a graph as a file; see `onnx_of`."""
    helper = needed("onnx.numpy_helper", "export")
    graph = rounded(graph) if int8 else graph
    weights = sum(helper.to_array(tensor).nbytes for tensor in graph.graph.initializer)
    return Made({FILE: graph.SerializeToString()}, weights, None)


def opened(files: Mapping[str, bytes], threads: int) -> Run:
    """Return what runs a file on so many threads."""
    runtime = needed("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = runtime.InferenceSession(files[FILE], options, providers=["CPUExecutionProvider"])
    names = [put.name for put in session.get_inputs()]

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        feed = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        return [torch.as_tensor(array) for array in session.run(None, feed)]

    return run
