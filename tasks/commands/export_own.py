"""A model of the user's own as files: what `pruning.restore` reads, and graphs, each compared with the model."""

import json
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import pruning
from pruning.discovery.running import tensors_in
from pruning.models.adapted import Adapted, arguments_for
from tasks.commands.folders import replacing_folder
from tasks.common.job import Job
from tasks.own import read_own
from tasks.shown.tables import shown_table

PLAN, PROGRAM, GRAPH = "plan.json", "model.pt2", "model.onnx"
REPORT, CARD = "export.json", "README.md"
TOLERANCE = 1e-4
"""Largest difference of a file's outputs from the model's, relative to the largest output: single precision's."""
Reader = Callable[..., list[Tensor]]


def write_own(folder: Path, job: Job, phase: str, model: Adapted) -> tuple[dict[str, Any], list[Any]]:
    """Write a folder, whole or not at all; return what is known of it, and that as it is shown.

    Raises:
        ValueError: If a file does not give the model's outputs.
    """
    source = getattr(model.use, "source", "")
    inputs = arguments_for(model)
    with replacing_folder(folder, "export") as aside:
        pruning.save(model, aside)
        refused = _write_graphs(aside, model, inputs)
        readers = _readers(aside, refused, read_own(source).model)
        rounded = pytree.tree_map(lambda part: part.float() if _is_real(part) else part, inputs)
        measured = [_measured(aside, file, reader, model.float().eval(), rounded) for file, reader in readers.items()]
        report = {
            "variant": job.stage.variant,
            "phase": phase,
            "source": source,
            "widths": {layer.name: layer.width for layer in model.layers()},
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "tolerance": TOLERANCE,
            "measured": measured,
            "refused": refused,
            "made_with": {"python": platform.python_version(), "torch": version("torch")},
        }
        (aside / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (aside / CARD).write_text(_card(report), encoding="utf-8")
        names = sorted(path.name for path in aside.iterdir())
    table = shown_table(f"{job.stage.variant}, {phase}: the same model in each file", [_cells(row) for row in measured])
    return report, [table, *(f"no {file}: {why}" for file, why in refused.items()), f"{folder}: {', '.join(names)}"]


def _write_graphs(folder: Path, model: Adapted, inputs: Any) -> dict[str, str]:
    """Write the graphs that can be made; return, by file, why one cannot."""
    import onnx  # of an extra

    refused: dict[str, str] = {}
    makers: dict[str, Callable[[], None]] = {
        PROGRAM: lambda: torch.export.save(pruning.program_of(model, inputs), folder / PROGRAM),
        GRAPH: lambda: onnx.save(pruning.onnx_of(model, inputs), folder / GRAPH),
    }
    for file, make in makers.items():
        try:
            make()
        except ValueError as error:
            refused[file] = str(error)
    return refused


def _readers(folder: Path, refused: Mapping[str, str], dense: nn.Module) -> dict[str, Reader]:
    """Return what gives a file's outputs, by file."""
    import onnxruntime  # of an extra

    restored = pruning.restore(dense, folder).cpu().float()
    found: dict[str, Reader] = {PLAN: lambda *given, **named: tensors_in(restored(*given, **named))}
    if PROGRAM not in refused:
        program = torch.export.load(folder / PROGRAM).module()
        found[PROGRAM] = lambda *given, **named: tensors_in(program(*given, **named))
    if GRAPH not in refused:
        session = onnxruntime.InferenceSession(folder / GRAPH, providers=["CPUExecutionProvider"])

        def run(*given: Any, **named: Any) -> list[Tensor]:
            tensors = [tensor.numpy() for tensor in tensors_in((given, named))]
            feed = dict(zip([put.name for put in session.get_inputs()], tensors, strict=True))
            return [torch.as_tensor(array) for array in session.run(None, feed)]

        found[GRAPH] = run
    return found


def _measured(folder: Path, file: str, reader: Reader, model: Adapted, inputs: Any) -> dict[str, Any]:
    """Return what a file costs, and how far what it gives is from what the model gives.

    Raises:
        ValueError: If that is too far.
    """
    given, named = ((), inputs) if isinstance(inputs, Mapping) else (inputs, {})
    with torch.no_grad():
        outputs, expected = reader(*given, **named), tensors_in(model(*given, **named))
    apart = max(
        ((one.double() - other.double()).abs().max() / other.double().abs().max().clamp(min=1e-30)).item()
        for one, other in zip(outputs, expected, strict=True)
    )
    if not apart <= TOLERANCE:  # so that a NaN is refused too
        raise ValueError(f"Expected {file} to give the model's outputs within {TOLERANCE:g}, got {apart:.1e}.")
    written = folder.glob("*.safetensors") if file == PLAN else [folder / file]
    return {"file": file, "bytes": sum(path.stat().st_size for path in written), "difference": apart}


def _is_real(part: Any) -> bool:
    return isinstance(part, Tensor) and part.is_floating_point()


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    return {"file": row["file"], "MB": f"{row['bytes'] / 1e6:.3f}", "difference": f"{row['difference']:.0e}"}


def _card(report: Mapping[str, Any]) -> str:
    """Return what the folder is and how each file is loaded, as Markdown."""
    rows = "\n".join(
        f"| `{row['file']}` | {row['bytes'] / 1e6:.3f} | {row['difference']:.0e} | `{_LOADED[row['file']]}` |"
        for row in report["measured"]
    )
    refused = "".join(f"\nNo `{file}`: {why}\n" for file, why in report["refused"].items())
    widths = ", ".join(f"{name} {width}" for name, width in report["widths"].items())
    return _CARD.format(**{**report, "widths": widths, "rows": rows, "refused": refused, **report["made_with"]})


_LOADED = {
    PLAN: 'import pruning; model = pruning.restore(network, "folder")',
    PROGRAM: 'import torch; model = torch.export.load("folder/model.pt2").module()',
    GRAPH: 'import onnxruntime; model = onnxruntime.InferenceSession("folder/model.onnx")',
}
_CARD = """# `{source}`, variant `{variant}`, {phase}

{parameters:,} parameters; neurons by layer: {widths}.

| file | MB | difference | load in one line |
|---|---:|---:|---|
{rows}

`network` is the network as its author builds it, dense; `plan.json` and the tensors beside it make it the pruned one.
The graphs are in single precision, free in every dimension that the network leaves free. Difference: of the outputs on
the batch that the model was measured with, relative to the largest; above {tolerance:g} nothing is written.
{refused}
Made with Python {python}, PyTorch {torch}.
"""
