"""A variant's model as MLflow keeps it: a program of `torch.export` that needs nothing of this project to run."""

import inspect
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
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
from tasks.commands.tracking import several_tensors
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
            program, inputs, names = _program(model)
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
            signature=_signature(program, inputs, names),
            names=names,
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
    def save_model(
        path: str,
        program: ExportedProgram,
        input_example: list[np.ndarray],
        names: list[str],
        mlflow_model: Any,
        **how: Any,
    ) -> None:
        """Write the folder of a model as MLflow does, then the program over the one that it made."""
        import mlflow.pytorch

        one = input_example if names else input_example[0]
        how |= {"mlflow_model": mlflow_model, "serialization_format": "pt2"}
        mlflow.pytorch.save_model(program.module(), path, input_example=one, **how)
        torch.export.save(program, Path(path, "data", several_tensors.PROGRAM))
        if names:
            _let_serve(Path(path), mlflow_model, names)


def _let_serve(folder: Path, about: Any, names: list[str]) -> None:
    """Say how a server calls a program of several tensors, for which MLflow has nothing, in a model's folder."""
    from mlflow import pyfunc

    code = Path(several_tensors.__file__)
    (folder / "code").mkdir()
    shutil.copy(code, folder / "code")
    (folder / "data" / several_tensors.NAMES).write_text(json.dumps(names), encoding="utf-8")
    environment = {"conda_env": "conda.yaml", "python_env": "python_env.yaml"}
    pyfunc.add_to_model(about, loader_module=code.stem, data="data", code="code", **environment)
    about.save(str(folder / "MLmodel"))


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

    def __init__(self, network: nn.Module, arranged: Callable[[Sequence[Tensor]], tuple[Any, Any]]) -> None:
        super().__init__()
        self.network, self._arranged = network, arranged

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the first tensor of what the network gives."""
        args, kwargs = self._arranged(tensors)
        return tensors_in(self.network(*args, **kwargs))[0]


def _program(model: Measurable) -> tuple[ExportedProgram, list[Tensor], list[str]]:
    """Return a model as a program of tensors alone, an example of these, and their names where there are several."""
    if isinstance(model, LanguageModel):
        inputs = [torch.arange(EXAMPLE[0] * EXAMPLE[1]).reshape(EXAMPLE) % model.encoder.num_embeddings]
        return program_of(_Logits(model.cpu()), tuple(inputs)), inputs, []
    assert isinstance(model, Adapted)  # noqa: S101 - there are no others
    given, network = arguments_for(model.cpu()), deployed(model)
    placed, spec = pytree.tree_flatten_with_path(((), dict(given)) if isinstance(given, dict) else (tuple(given), {}))
    known = {_name(path, network): leaf for path, leaf in placed}
    tensors = {name: leaf for name, leaf in known.items() if isinstance(leaf, Tensor)}
    inputs = [leaf.float() if leaf.is_floating_point() else leaf for leaf in tensors.values()]

    def arranged(own: Sequence[Tensor]) -> tuple[Any, Any]:
        rest = iter(own)
        leaves = [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in known.values()]
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        return args, kwargs

    program = program_of(_Positional(network, arranged), tuple(inputs))
    return program, inputs, list(tensors) if len(tensors) > 1 else []


def _name(path: pytree.KeyPath, network: nn.Module) -> str:
    """Return what an argument of a network is called, or a part of one, such as `images` or `boxes.0`."""
    _, place, *rest = (str(key).strip("[]'.") for key in path)
    parameters = list(inspect.signature(network.forward).parameters)
    positional = place.isdecimal() and int(place) < len(parameters)
    return ".".join([parameters[int(place)] if positional else place, *rest])


def _signature(program: ExportedProgram, inputs: list[Tensor], names: list[str]) -> Any:
    """Return what MLflow checks a request by: types and shapes, −1 for whatever is free, and names of several."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    placed = set(program.graph_signature.user_inputs)
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in placed]
    (output,) = (node.meta["val"] for node in program.graph.output_node().args[0])
    known: list[str | None] = [*names] if names else [None]
    takes: list[Any] = [
        TensorSpec(tensor.numpy().dtype, _shape(node.meta["val"]), name)
        for node, tensor, name in zip(nodes, inputs, known, strict=True)
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
