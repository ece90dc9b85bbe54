"""Exported files as models: called, judged and timed like the model that they were made of."""

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pruning.export.language_models import initial_state
from pruning.export.targets import Exported
from pruning.models.adapted import Adapted
from pruning.models.base import LanguageModel, Measurable, State


def stand_in(model: Measurable, files: Exported) -> Any:
    """Return a model that runs the files where `model` runs its network; a copy of it opens them anew.

    Files of fixed shapes are run once for each step of each example.

    Raises:
        ValueError: If the network's answer is no nest of tensors, so that it cannot be put together again.
    """
    if isinstance(model, LanguageModel):
        return cast(LanguageModel, _Language(model, files))
    assert isinstance(model, Adapted)  # noqa: S101 - there is no third kind
    if files.fixed.returned is None:
        raise ValueError("Expected a network that gives tensors in tuples, lists or dictionaries, got another answer.")
    twin = copy.copy(model)
    twin._modules = {"network": _Network(model, files)}
    return twin


class _Files(nn.Module):
    """Files that are run; a copy opens them anew, so that it lies elsewhere in memory."""

    def __init__(self, model: Measurable, files: Exported) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # who runs a model asks a parameter for it
        self.before = [model]  # in a list: a module would be copied, and switched to evaluation
        self.files, self.run = files, files.opened()

    def __deepcopy__(self, memo: Any) -> "_Files":
        """Return the same files, opened anew."""
        return type(self)(self.before[0], self.files)

    def stepped(
        self, tensors: Sequence[Tensor], examples: Sequence[int | None], steps: int | None
    ) -> list[list[Tensor]]:
        """Return what the files give, each output by example, run for each example and each step.

        Args:
            tensors: Inputs, of any number of examples and steps.
            examples: The dimension of each that runs over examples, None where there is none.
            steps: The dimension of those that are no state that runs over steps; None where all are read at once.
        """
        inputs = len(tensors) - self.files.fixed.states
        count = max((one.shape[dim] for one, dim in zip(tensors, examples, strict=True) if dim is not None), default=1)
        length = 1 if steps is None else tensors[0].shape[steps]
        rows = []
        for number in range(count):
            own = [
                one if dim is None else one.narrow(dim, number, 1) for one, dim in zip(tensors, examples, strict=True)
            ]
            state, given = own[inputs:], []
            for step in range(length):
                read = own[:inputs] if steps is None else [one.narrow(steps, step, 1) for one in own[:inputs]]
                answer = self.run([*read, *state])
                split = len(answer) - len(state)
                given.append(answer[:split])
                state = answer[split:]
            outputs = [torch.cat(parts, steps) if steps is not None else parts[0] for parts in zip(*given, strict=True)]
            rows.append([*outputs, *state])
        return [list(parts) for parts in zip(*rows, strict=True)]


class _Language(_Files):
    """Files of a language model, with the manners that measuring one counts on.

    It is no `LanguageModel`, for it has neither layers nor parameters to speak of; what it borrows needs none.
    """

    device, example, count = LanguageModel.device, LanguageModel.example, LanguageModel.count
    logits, labels, judged = LanguageModel.logits, LanguageModel.labels, LanguageModel.judged
    weight, predicted, objective = LanguageModel.weight, LanguageModel.predicted, LanguageModel.objective
    counted, pairs, measured_by = LanguageModel.counted, LanguageModel.pairs, LanguageModel.measured_by

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return the logits (T, B, V) and the state."""
        first = initial_state(self.before[0], tokens.shape[1]) if state is None else state  # type: ignore[arg-type]
        flat, spec = pytree.tree_flatten(first)
        if self.files.target == "onnx":
            logits, *after = self.run([tokens, *flat])
        else:
            parts = self.stepped([tokens, *flat], [1, *(one.ndim - 2 for one in flat)], 0)
            logits, *after = (torch.cat(list(part), max(part[0].ndim - 2, 0)) for part in parts)
        return logits, pytree.tree_unflatten(after, spec)


class _Network(_Files):
    """Files of a network of a user's, in its place in what `adapt` gave."""

    def __init__(self, model: Measurable, files: Exported) -> None:
        super().__init__(model, files)
        own: Any = model
        if hasattr(own.module, "init_hidden"):
            self.init_hidden = own.module.init_hidden

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Return what the network gives."""
        model: Any = self.before[0]
        tensors = [leaf for leaf in pytree.tree_leaves((arguments, named)) if isinstance(leaf, Tensor)]
        example = self.files.fixed.example
        steps = 1 - model.example_dim if model.use.carries else None
        examples = [_first(one, other, steps) for one, other in zip(tensors, example, strict=True)]
        parts = self.stepped([_single(one) for one in tensors], examples, steps)
        found = [torch.cat(list(part), _dim(part[0], model.example_dim)) if part[0].ndim else part[0] for part in parts]
        return pytree.tree_unflatten(found, self.files.fixed.returned)


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _first(given: Tensor, example: Tensor, steps: int | None) -> int | None:
    """Return the dimension in which there is more than in the example of one, but that of steps."""
    sizes = zip(given.shape, example.shape, strict=True)
    return next((dim for dim, (one, other) in enumerate(sizes) if one != other and other == 1 and dim != steps), None)


def _dim(output: Tensor, usual: int) -> int:
    """Return the dimension of one example's output that runs over examples: the usual one, or the first of size 1."""
    dims = [dim for dim in (usual, *range(output.ndim)) if dim < output.ndim and output.shape[dim] == 1]
    return dims[0] if dims else 0
