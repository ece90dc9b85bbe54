"""What is added to the outputs of a layer in a network that nobody here wrote, so that all its readers see it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from pruning.core.hooks import by_groups
from pruning.core.neurons import TIED, UNSEEN, NeuronLayer, Slice
from pruning.core.stepping import runs_as_its_own
from pruning.discovery import Recurrent
from pruning.models.apart import Place
from pruning.models.base import Measurable
from pruning.models.cells import recurrent_cell

Tap = Callable[[Tensor], Tensor | None]
"""(values that hold a layer's outputs) → zeros to add to them; None where nothing can be added."""


@dataclass(frozen=True)
class Taps:
    """What one run of a network told: by layer the zeros that were added, the outputs, or why there are none."""

    zeros: dict[str, Tensor]
    outputs: dict[str, Tensor]
    reasons: dict[str, str]
    _read: dict[str, tuple[Slice, Tensor]] = field(default_factory=dict)


@contextmanager
def tapping(model: Measurable, without: frozenset[str] = frozenset()) -> Iterator[Taps]:
    """Within the context, add zeros to each layer's outputs; collect them and the outputs, (steps, examples, width).

    A layer that several modules read has the same zeros added to what each of them reads, unless they read different
    numbers of it: other steps, say. No hook is left behind.
    """
    found = Taps({}, {}, {})
    with ExitStack() as handles:
        for layer in model.layers():
            if layer.name in without:
                continue
            reason = _reason(model, layer)
            if reason:
                found.reasons[layer.name] = reason
                continue
            for number, (name, piece) in enumerate(_places(model, layer)):
                module = model.get_submodule(name)
                register = module.register_forward_hook if layer.seen is None else module.register_forward_pre_hook
                tap: Tap = partial(_tap, found, layer, piece, model.example_dim, number == 0)
                tap = tap if (time := _backwards(model, name)) is None else partial(_turned, tap, time)
                tap = tap if layer.seen is None else partial(_of_groups, tap, module, piece.dim)
                hook = (_output_hook if layer.seen is None else _input_hook)(tap)
                handles.enter_context(register(hook, with_kwargs=True))
        yield found
    for name in found.reasons:
        found.zeros.pop(name, None)
        found.outputs.pop(name, None)


def with_recurrent_readers(model: Measurable, names: Iterable[str]) -> frozenset[str]:
    """Return layers that no one place shows, and the recurrent ones that read them: these are not to run again here."""
    known, layers = set(names), model.layers()
    recurrent = [layer for layer in layers if isinstance(model.get_submodule(layer.output), nn.RNNBase)]
    for _ in recurrent:
        read = {piece.parameter for layer in layers if layer.name in known for piece in layer.read}
        known |= {layer.name for layer in recurrent if any(name.startswith(f"{layer.output}.") for name in read)}
    return frozenset(known)


def _tap(found: Taps, layer: NeuronLayer, piece: Slice, example_dim: int, first: bool, values: Tensor) -> Tensor | None:
    """Return the zeros to add to values that hold the layer's outputs, the same ones at each of its readers.

    None where the layer turns out to be one that nothing can be added to.
    """
    if isinstance(values, PackedSequence):
        found.reasons[layer.name] = "its outputs are packed, so that examples are not apart"
        return None
    dims = (example_dim, piece.dim % values.ndim)
    if first and layer.name in found.zeros:
        found.reasons[layer.name] = "it runs more than once in a batch"
    elif dims[0] == dims[1]:
        found.reasons[layer.name] = f"its outputs {tuple(values.shape)} have no dimension of examples"
    elif piece.start + (piece.length or 0) > values.shape[dims[1]]:
        found.reasons[layer.name] = f"{piece.parameter} reads something else than what its module is given"
    if layer.name in found.reasons:
        return None
    place = Place(piece, layer.width, values.shape, dims)
    if layer.name not in found.zeros:
        found.outputs[layer.name] = place.arranged(values.detach())
        found.zeros[layer.name] = torch.zeros_like(found.outputs[layer.name], requires_grad=True)
        found._read[layer.name] = piece, values
    elif not _is_read_alike(found, layer.name, place, values):
        found.reasons[layer.name] = f"{piece.parameter} reads other numbers of it than its first reader"
        return None
    return place.restored(found.zeros[layer.name])


def _is_read_alike(found: Taps, name: str, place: Place, values: Tensor) -> bool:
    """Return whether a further reader of a layer reads what its first one does: all steps, not one of them, say."""
    piece, first = found._read[name]
    same = replace(piece, parameter="", bias="") == replace(place.piece, parameter="", bias="")
    return (same and values is first) or torch.equal(place.arranged(values.detach()), found.outputs[name])


def _backwards(model: Measurable, name: str) -> int | None:
    """Return the dimension of steps of a module that is given them from the last to the first; None for any other."""
    above, _, own = name.rpartition(".")
    around = model.get_submodule(above)
    if not isinstance(around, Recurrent) or not own.endswith("_reverse"):
        return None
    return 1 if around.batch_first else 0


def _turned(tap: Callable[[Tensor], Tensor | None], time: int, values: Tensor) -> Tensor | None:
    """Return what `tap` gives for values in the order of their steps, in the order in which they are."""
    if isinstance(values, PackedSequence):
        return tap(values)
    added = tap(values.flip(time))
    return None if added is None else added.flip(time)


def _of_groups(tap: Tap, module: nn.Module, dim: int, values: Tensor) -> Tensor | None:
    """Return what `tap` gives for what a convolution reads, where that has several groups for each of them."""
    if isinstance(values, PackedSequence) or (parts := by_groups(module, values, dim)) is values:
        return tap(values)
    added = tap(parts)
    return None if added is None else added.flatten(dim - 1, dim)


def _places(model: Measurable, layer: NeuronLayer) -> list[tuple[str, Slice]]:
    """Return the modules that show the layer's outputs, and where in them: its own module, or all that read it."""
    if layer.seen is None:
        return [(layer.output, Slice("", dim=layer.along))]
    places = []
    for piece in layer.read:
        shape = model.get_parameter(piece.parameter).shape
        length = shape[piece.dim] - piece.start if piece.length is None else piece.length
        places.append((piece.parameter.rpartition(".")[0], replace(piece, dim=1 - len(shape), length=length)))
    return places


def _reason(model: Measurable, layer: NeuronLayer) -> str:
    """Return why nothing can be added to the layer's outputs so that all its readers see it; empty if it can."""
    module = model.get_submodule(layer.output)
    if layer.unread or layer.obstacle.endswith(UNSEEN):
        return layer.obstacle
    if layer.seen is not None:
        return layer.obstacle if len(layer.read) > 1 else ""
    if layer.obstacle.endswith(TIED):
        return layer.obstacle
    if isinstance(module, nn.RNNBase) and runs_as_its_own(module):
        several = module.num_layers > 1 or module.bidirectional or module.proj_size or not module.bias
        return "it is not one recurrent layer in one direction with biases" if several else ""
    if any(piece.parameter.startswith(f"{layer.output}.") for piece in layer.read):
        return f"it feeds itself within {type(module).__name__}, which is no LSTM, GRU or RNN of PyTorch"
    return ""


def _output_hook(tap: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
    """Return a hook that adds what `tap` gives to a module's first output."""

    def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], outputs: Any) -> Any:
        values = outputs if isinstance(outputs, Tensor) else outputs[0]
        zeros = tap(values)
        if zeros is None:
            return outputs
        if isinstance(module, nn.RNNBase) and runs_as_its_own(module):
            return _recurrent(module, zeros, *arguments, **named)
        added = values + zeros
        return added if isinstance(outputs, Tensor) else (added, *outputs[1:])

    return hook


def _input_hook(tap: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
    """Return a hook that adds what `tap` gives to a module's first input."""

    def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        values, *others = arguments
        zeros = tap(values)
        return (values if zeros is None else values + zeros, *others), named

    return hook


def _recurrent(rnn: nn.RNNBase, tap: Tensor, inputs: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
    """Return what PyTorch's recurrent layer gives if it, too, reads at each step what was added at the step before."""
    cell = recurrent_cell(f"rnn_{rnn.nonlinearity}" if isinstance(rnn, nn.RNN) else rnn.mode.lower())  # type: ignore[arg-type]
    state = hx if hx is None or isinstance(hx, tuple) else (hx,)
    turned = (inputs.transpose(0, 1), tap.transpose(0, 1)) if rnn.batch_first else (inputs, tap)
    outputs, after = cell.run(rnn, turned[0], state, turned[1])
    after = (after[0] + turned[1][-1], *after[1:])  # whoever reads the last output from the state reads it there
    return (outputs.transpose(0, 1) if rnn.batch_first else outputs), after if len(after) > 1 else after[0]
