"""ExecuTorch's file: a program lowered to XNNPACK, its products in int8 where that is asked, and run by its runtime."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pruning.export.made import Made, Run
from pruning.extras import needed

FILE, EXTRA = "model.pte", "executorch"


def made(program: ExportedProgram, *, int8: bool) -> Made:
    """Return a program of fixed shapes as a file; of int8 are the matrices of products and embeddings.

    What products read becomes int8 as it comes (dynamic quantisation), one scale for each row of a matrix.
    """
    exir = needed("executorch.exir", EXTRA)
    partitioner = needed("executorch.backends.xnnpack.partition.xnnpack_partitioner", EXTRA).XnnpackPartitioner
    example: Any = program.example_inputs
    if int8:
        program = _rounded(program, example[0])
    lowered = exir.to_edge_transform_and_lower(
        program, partitioner=[partitioner()], compile_config=exir.EdgeCompileConfig(_check_ir_validity=not int8)
    ).to_executorch()
    plan = lowered.executorch_program.execution_plan[0]
    constants = [*(part.storage for part in lowered.executorch_program.constant_buffer), *lowered._named_data.buffers]
    weights = sum(len(getattr(part, "buffer", part)) for part in constants)
    return Made({FILE: bytes(lowered.buffer)}, weights, sum(plan.non_const_buffer_sizes))


def opened(files: Mapping[str, bytes], threads: int) -> Run:
    """Return what runs a file on so many threads."""
    needed("executorch.kernels.quantized", EXTRA)
    needed("executorch.extension.pybindings.portable_lib", EXTRA)._unsafe_reset_threadpool(threads)
    program = needed("executorch.runtime", EXTRA).Runtime.get().load_program(files[FILE])
    method = program.load_method("forward")

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [output.clone() for output in method.execute([tensor.contiguous() for tensor in tensors])]

    return run


def _rounded(program: ExportedProgram, example: tuple[Tensor, ...]) -> ExportedProgram:
    """Return the program with int8 matrices."""
    xnnpack = needed("executorch.backends.xnnpack.quantizer.xnnpack_quantizer", EXTRA)
    pt2e = needed("torchao.quantization.pt2e.quantize_pt2e", EXTRA)
    how = xnnpack.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    prepared = pt2e.prepare_pt2e(_without_embeddings(program), xnnpack.XNNPACKQuantizer().set_global(how))
    with torch.no_grad():
        prepared(*example)
        return torch.export.export(pt2e.convert_pt2e(prepared), example, strict=False)


def _without_embeddings(program: ExportedProgram) -> Any:
    """Return the program as a module that reads its embeddings from rows of int8."""
    needed("executorch.exir.passes._quant_patterns_and_replacements", EXTRA)  # which names the operation
    read = torch.ops.quantized_decomposed.embedding_byte.default
    module: Any = copy.deepcopy(program).module()
    for node in list(module.graph.nodes):
        if node.target is not torch.ops.aten.embedding.default:
            continue
        place, numbers = node.args[0].target, node.args[1]
        weight = _at(module, place).detach()
        scale = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        name = place.replace(".", "_")
        module.register_buffer(f"{name}_int8", (weight / scale[:, None]).round().to(torch.int8))
        module.register_buffer(f"{name}_scale", scale)
        with module.graph.inserting_before(node):
            rows, scales = (module.graph.get_attr(f"{name}_{part}") for part in ("int8", "scale"))
            node.replace_all_uses_with(module.graph.call_function(read, (rows, scales, None, -128, 127, numbers)))
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _at(module: nn.Module, place: str) -> Tensor:
    owner, _, name = place.rpartition(".")
    found: Tensor = getattr(module.get_submodule(owner), name)
    return found
