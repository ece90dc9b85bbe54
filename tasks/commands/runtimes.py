"""Exported files run as models: a torch.export program, and an ONNX graph in onnxruntime, in floats or in int8."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from pruning.export import initial_state
from pruning.export.onnx_files import rounded
from pruning.models.base import LanguageModel, State

Step = Callable[[Tensor, State], tuple[Tensor, State]]


def load_program(path: Path, model: LanguageModel) -> LanguageModel:
    """Return a `.pt2` file as something that is called like `model`, whose state it carries."""
    program = torch.export.load(path).module()
    return _loaded(program, model)


def load_onnx(path: Path, model: LanguageModel) -> LanguageModel:
    """Return an ONNX file, in onnxruntime on as many threads as PyTorch uses, called like `model`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [put.name for put in session.get_inputs()]

    def step(tokens: Tensor, state: State) -> tuple[Tensor, State]:
        given = [tokens, *(tensor for layer in state for tensor in layer)]
        feed = {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)}
        logits, *after = (torch.from_numpy(array) for array in session.run(None, feed))
        found = iter(after)
        return logits, [_as_many(layer, found) for layer in state]

    return _loaded(step, model)


def quantise(source: Path, target: Path) -> None:
    """Write an ONNX file with int8 matrices whose inputs become int8 as they come; see `rounded`."""
    onnx.save(rounded(onnx.load(source)), target)


class _Loaded(nn.Module):
    """What runs elsewhere, with the manners that measuring a language model counts on: a device, a first state, a loss.

    It is no `LanguageModel`, for it has neither layers nor parameters to speak of; what it borrows needs none.
    """

    device, example, count = LanguageModel.device, LanguageModel.example, LanguageModel.count
    logits, labels, judged = LanguageModel.logits, LanguageModel.labels, LanguageModel.judged
    weight, predicted, objective = LanguageModel.weight, LanguageModel.predicted, LanguageModel.objective
    counted, pairs, measured_by = LanguageModel.counted, LanguageModel.pairs, LanguageModel.measured_by

    def __init__(self, step: Step, model: LanguageModel) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # who runs a model asks a parameter for it
        self.before = [model]  # in a list, as is `step`: modules would be switched to evaluation, which programs refuse
        self.step = [step]

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        first = initial_state(self.before[0], tokens.shape[1]) if state is None else state
        return self.step[0](tokens, [tuple(tensor.cpu() for tensor in layer) for layer in first])


def _loaded(step: Step, model: LanguageModel) -> LanguageModel:
    """Return the step as a model that `loss_of` and `latencies` measure like any other; it can do nothing else."""
    return cast(LanguageModel, _Loaded(step, model))


def _as_many(layer: tuple[Tensor, ...], tensors: Iterator[Tensor]) -> tuple[Tensor, ...]:
    """Return the next tensors, as many as the layer has."""
    return tuple(next(tensors) for _ in layer)
