"""A variant's model as MLflow keeps it: a program of `torch.export` that needs nothing of this project to run."""

import json
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from pruning.discovery.running import tensors_in
from pruning.export import initial_state, program_of
from pruning.models.adapted import Adapted, arguments_for
from pruning.models.base import LanguageModel, Measurable
from pruning.saving import deployed
from tasks.commands.plain_text import REPORT, VOCABULARY
from tasks.commands.tracking.records import Exported
from tasks.common.models import read_model

EXAMPLE = (3, 2)
"""Steps × columns of the tokens that stand beside a language model as an example."""


def log_model(client: Any, run: Any, variant: str, exported: Exported) -> str:
    """Log the model with its signature and an example to a run; return why that cannot be, nothing if it can.

    Args:
        client: MLflow's.
        run: The run.
        variant: What the model is called there: `mlflow.pytorch.load_model("runs:/<run>/<variant>")`.
        exported: The model.
    """
    from mlflow.models import Model

    model = read_model(exported.folder)
    try:
        with warnings.catch_warnings():  # of a mode that pads packed sequences, in a loop of spikes, which has none
            warnings.filterwarnings("ignore", "While compiling, we found certain side effects", UserWarning)
            program, inputs = _program(model)
    except ValueError as error:  # torch.export cannot follow a user's network
        return str(error)[:500]
    params, tags = dict(run.data.params), {"variant": variant, "dvc.model": exported.hash}
    logged = client.create_logged_model(run.info.experiment_id, variant, run.info.run_id, tags, params)
    with tempfile.TemporaryDirectory() as beside:
        Model.log(
            None,
            flavor=_Program,
            flavor_name="pytorch",
            run_id=run.info.run_id,
            model_id=logged.model_id,
            program=program,
            input_example=[tensor.numpy() for tensor in inputs],
            signature=_signature(program, inputs),
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in ("torch", "numpy", "mlflow")],
            extra_files=_written(Path(beside), exported) or None,
        )
    return ""


class _Program:
    """MLflow's flavour `pytorch`, in its format `pt2`, whose program is one that is there already.

    MLflow itself exports whatever module it is given, and PyTorch then writes recurrences out step by step, for as many
    steps as the example has. `program_of` leaves the number of steps free.
    """

    @staticmethod
    def save_model(path: str, program: ExportedProgram, input_example: list[np.ndarray], **how: Any) -> None:
        """Write the folder of a model as MLflow does, then the program over the one that it made."""
        import mlflow.pytorch

        one = input_example[0] if len(input_example) == 1 else input_example  # what can be served is called with one
        mlflow.pytorch.save_model(program.module(), path, input_example=one, serialization_format="pt2", **how)
        torch.export.save(program, Path(path) / "data" / "model.pt2")


class _Logits(nn.Module):
    """A language model that starts from its initial state and gives logits alone, as one request can ask for."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model
        self._shapes = [[tensor.shape for tensor in layer] for layer in initial_state(model, 1)]

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits (T, B, V) of the token after each of `tokens` (T, B)."""
        state = [tuple(self._zeros(tokens, shape) for shape in layer) for layer in self._shapes]
        logits: Tensor = self.model(tokens, state)[0]
        return logits

    def _zeros(self, tokens: Tensor, shape: torch.Size) -> Tensor:
        """Return a part of the initial state for as many columns as there are."""
        return tokens.new_zeros((*shape[:-2], tokens.shape[1], shape[-1]), dtype=torch.float32)


class _Positional(nn.Module):
    """A user's network that is called with its tensors one after the other, and gives its first one."""

    def __init__(self, network: nn.Module, leaves: list[Any], spec: pytree.TreeSpec) -> None:
        super().__init__()
        self.network, self._leaves, self._spec = network, leaves, spec

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the first tensor of what the network gives."""
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        return tensors_in(self.network(*args, **kwargs))[0]


def _program(model: Measurable) -> tuple[ExportedProgram, list[Tensor]]:
    """Return a model as a program of tensors alone, and an example of what it is called with."""
    if isinstance(model, LanguageModel):
        inputs = [torch.arange(EXAMPLE[0] * EXAMPLE[1]).reshape(EXAMPLE) % model.encoder.num_embeddings]
        return program_of(_Logits(model.cpu()), tuple(inputs)), inputs
    assert isinstance(model, Adapted)  # noqa: S101 - there are no others
    given = arguments_for(model.cpu())
    leaves, spec = pytree.tree_flatten(((), dict(given)) if isinstance(given, dict) else (tuple(given), {}))
    inputs = [leaf.float() if leaf.is_floating_point() else leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return program_of(_Positional(deployed(model), leaves, spec), tuple(inputs)), inputs


def _signature(program: ExportedProgram, inputs: list[Tensor]) -> Any:
    """Return what MLflow checks a request by: types and shapes, −1 for whatever is free."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    placed = set(program.graph_signature.user_inputs)
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in placed]
    (output,) = (node.meta["val"] for node in program.graph.output_node().args[0])
    takes: list[Any] = [
        TensorSpec(tensor.numpy().dtype, _shape(node.meta["val"])) for node, tensor in zip(nodes, inputs, strict=True)
    ]
    return ModelSignature(Schema(takes), Schema([TensorSpec(np.dtype("float32"), _shape(output))]))


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else -1 for size in tensor.shape)


def _written(folder: Path, exported: Exported) -> list[str]:
    """Write how raw text becomes tokens beside a model that reads some, as `export` writes it; return the files."""
    if not exported.vocabulary:
        return []
    (folder / VOCABULARY).write_text(exported.vocabulary, encoding="utf-8", newline="\n")
    (folder / REPORT).write_text(json.dumps({"text": exported.text}, indent=2) + "\n", encoding="utf-8")
    return [str(folder / VOCABULARY), str(folder / REPORT)]
