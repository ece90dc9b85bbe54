"""Seeing what layers do while a model runs, and leaving the model as it was."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.rnn import PackedSequence

from pruning.core.neurons import NeuronLayer, Slice
from pruning.core.operands import operands

CHANNELS_FIRST = (_ConvNd, _NormBase, nn.GroupNorm)
"""Modules whose outputs hold their neurons along dimension 1."""
HIDDEN = (nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention, _ConvTransposeNd)
"""Modules whose outputs are not what their parameters' rows compute."""
Observer = Callable[[str, Tensor], None]
"""Called with a layer's name and its activations, (samples, width), each time the layer has run."""
Found = TypeVar("Found")


@contextmanager
def record(model: nn.Module, layers: Sequence[NeuronLayer], observe: Observer) -> Iterator[None]:
    """Within the context, pass the activations of each layer to `observe` whenever the model runs.

    No hook is left behind, also after an error.

    >>> import torch, pruning
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    >>> network[0].weight.data = torch.tensor([[1.0], [2.0]])
    >>> model = pruning.adapt(network, torch.ones(1, 1), loss=nn.CrossEntropyLoss())
    >>> seen = {}
    >>> with record(model, model.layers(), seen.__setitem__):
    ...     _ = model(torch.tensor([[1.0], [-1.0], [3.0]]))
    >>> seen["0"].tolist()
    [[1.0, 2.0], [0.0, 0.0], [3.0, 6.0]]

    Args:
        model: The model whose modules the layers name.
        layers: Which layers to observe.
        observe: Receives detached activations with time and batch flattened into samples; so are the places of an
            image of which each channel is a neuron, and what a neuron has of `size` (the dimensions of a head), the
            samples of its first place first.
    """

    def hook_of(layer: NeuronLayer) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
            observe(layer.name, _activations(layer, module, inputs, outputs)[0])

        return hook

    with watching(model, layers, hook_of):
        yield


def recorded(
    model: nn.Module,
    layers: Sequence[NeuronLayer],
    run: Callable[[], Found],
    *,
    wanted: Tensor | Callable[[Found], Tensor],
    example_dim: int,
) -> tuple[dict[str, Tensor], Found]:
    """Run a model once and return each layer's activations where a target counts, (samples, width), and what it gave.

    Samples are in the order in which `record` passes them. As many targets belong to each example, and each target to
    as many of the layer's places in the example, in their order. Where these are no whole number for each (the places
    of an encoder, say), all places of an example count if any of its targets does; where a layer's outputs do not tell
    the examples apart, all count if any target of the batch does.

    Args:
        model: The model whose modules the layers name.
        layers: Which layers to observe.
        run: Runs the model.
        wanted: Whether each target counts, (n,); examples come first if `example_dim` is 0, else last. Or what tells it
            of what `run` gave.
        example_dim: The dimension of the layers' outputs (…, width) that runs over the examples.
    """
    calls: dict[str, list[tuple[Tensor, Places | None]]] = {layer.name: [] for layer in layers}

    def hook_of(layer: NeuronLayer) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
            values, shape = _activations(layer, module, inputs, outputs)
            calls[layer.name].append((values, None if shape is None else _places(layer, shape, example_dim)))

        return hook

    with watching(model, layers, hook_of):
        given = run()
    wanted = wanted(given) if callable(wanted) else wanted
    if not wanted.any():
        return {}, given
    some = not wanted.all()
    found = {}
    for name, own in calls.items():
        values = [values for values, _ in own]
        if some:
            masks = counting(wanted, [places for _, places in own], targets_last=example_dim > 0)
            values = values if masks is None else [v[mask] for v, mask in zip(values, masks, strict=True)]
        if own:
            found[name] = values[0] if len(values) == 1 else torch.cat(values)
    return found, given


def shown(model: nn.Module, layers: Sequence[NeuronLayer], run: Callable[[], object]) -> list[NeuronLayer]:
    """Return the layers whose module `output` gives a number for each of their neurons when the model runs.

    They say in `along` which dimension runs over the neurons: in PyTorch's convolutions and normalisations of channels
    it is not the last. What a container gives, a table of embeddings or attention are not what its own rows compute.
    """
    layers_shown: dict[str, NeuronLayer] = {}

    def hook_of(layer: NeuronLayer) -> Callable[..., None]:
        def hook(module: nn.Module, _inputs: tuple[Any, ...], outputs: Any) -> None:
            first = outputs[0] if isinstance(outputs, tuple | list) and outputs else outputs
            values = first.data if isinstance(first, PackedSequence) else first
            along = 1 if isinstance(module, CHANNELS_FIRST) and values.ndim > 1 else -1
            several = isinstance(module, nn.RNNBase) and module.num_layers > 1
            known = isinstance(values, Tensor) and values.is_floating_point() and values.ndim and not several
            if known and values.shape[along] == layer.width:
                layers_shown[layer.name] = replace(layer, along=along)

        return hook

    with ExitStack() as handles:
        for layer in layers:
            module = model.get_submodule(layer.output)
            if not layer.operand and not isinstance(module, HIDDEN) and next(module.children(), None) is None:
                handles.enter_context(module.register_forward_hook(hook_of(layer)))
        run()
    return [layers_shown[layer.name] for layer in layers if layer.name in layers_shown]


@contextmanager
def watching(
    model: nn.Module,
    layers: Sequence[NeuronLayer],
    hook_of: Callable[[NeuronLayer], Callable[[nn.Module, tuple[Any, ...], Any], None]],
) -> Iterator[None]:
    """Within the context, call each layer's hook with what shows its activations, whenever that is computed."""
    within = [layer for layer in layers if layer.operand]
    with ExitStack() as handles:
        for layer in (layer for layer in layers if not layer.operand):
            handles.enter_context(model.get_submodule(layer.output).register_forward_hook(hook_of(layer)))
        while within:
            some = {layer.operand: layer for layer in reversed(within)}  # one parameter may read several layers
            along = {name: p.dim for name, layer in some.items() for p in layer.read if p.parameter == name}
            hooks = {name: hook_of(layer) for name, layer in some.items()}
            tables = {name for name, layer in some.items() if layer.seen is None}
            handles.enter_context(operands(model, hooks, along, tables))
            within = [layer for layer in within if layer is not some[layer.operand]]
        yield


def at_targets(outputs: Tensor, wanted: Tensor, example_dim: int) -> Tensor:
    """Return what belongs to a layer's outputs, (steps, examples, …), where a target counts, (samples, …).

    See `recorded` on which those are; all of them if every target counts.
    """
    flat = outputs.flatten(0, 1)
    if wanted.all():
        return flat
    masks = counting(wanted, [Places(tuple(outputs.shape[:2]), 1)], targets_last=example_dim > 0)
    return flat if masks is None else flat[masks[0]]


@dataclass(frozen=True)
class Places:
    """Where the samples of one run of a layer come from.

    Attributes:
        shape: Of the samples, but for the neuron's own several places.
        example: Which of its dimensions runs over examples.
        repeats: How many places the neuron has at each; the samples of its first place come first.
    """

    shape: tuple[int, ...]
    example: int
    repeats: int = 1


def counting(wanted: Tensor, calls: Sequence[Places | None], *, targets_last: bool) -> list[Tensor] | None:
    """Return whether each sample of each of a layer's runs counts; None if they do not tell examples apart.

    Args:
        wanted: Whether each target counts, (n,).
        calls: Where the samples come from, for each run of the layer; later runs are later steps.
        targets_last: Whether examples are the last dimension of the targets, not the first.
    """
    sizes = {0 if places is None else places.shape[places.example] for places in calls}
    examples = sizes.pop() if sizes else 0
    if sizes or not examples:
        return None
    if examples > len(wanted) and examples % len(wanted) == 0:  # steps and examples lie in one dimension
        each = examples // len(wanted)
        wanted = wanted.repeat(each) if targets_last else wanted.repeat_interleave(each)
    if len(wanted) % examples:
        return None
    own = wanted.view(-1, examples).T if targets_last else wanted.view(examples, -1)
    steps = [math.prod(places.shape) // examples for places in calls if places is not None]
    whole = sum(steps) % own.shape[1] == 0
    each = sum(steps) // own.shape[1] if whole else sum(steps)
    by_step = (own if whole else own.any(1, keepdim=True)).repeat_interleave(each, dim=1)
    found = []
    for places, part in zip(calls, torch.split(by_step, steps, dim=1), strict=True):
        assert places is not None  # noqa: S101 - for the type checker: then there were no examples
        others = [size for dim, size in enumerate(places.shape) if dim != places.example]
        found.append(part.reshape(examples, *others).movedim(0, places.example).flatten().repeat(places.repeats))
    return found


def by_groups(module: nn.Module, values: Tensor, dim: int) -> Tensor:
    """Return what a module reads with the groups of a grouped convolution before its channels, all else as it is.

    A column of its kernels reads one channel of each group.

    >>> by_groups(nn.Conv1d(6, 4, 1, groups=2), torch.ones(3, 6, 5), -2).shape
    torch.Size([3, 2, 3, 5])

    Args:
        module: What reads.
        values: What it is given.
        dim: Which dimension of that channels run along, counted from the last.
    """
    groups = module.groups if isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd) else 1
    return values if groups == 1 else values.unflatten(dim, (groups, -1))  # type: ignore[no-untyped-call]


def _activations(
    layer: NeuronLayer, module: nn.Module, inputs: tuple[Any, ...], outputs: Any
) -> tuple[Tensor, torch.Size | None]:
    """Return a layer's activations, (samples, width), and the shape of what shows them; None if that is packed."""
    first = inputs[0] if layer.seen is not None else outputs
    if isinstance(first, Tensor) and first.is_complex():
        raise TypeError(
            f"Expected real numbers from the neurons of layer {layer.name}, got complex ones; they can be cut "
            "(`pruning.select`), but what they say is not measured."
        )
    if layer.seen is not None:
        packed = isinstance(inputs[0], PackedSequence)
        values = (inputs[0].data if packed else inputs[0]).detach()
        values = by_groups(module, values, layer.seen.dim)
        return layer.seen.split(values).flatten(1).T, None if packed or layer.operand else values.shape
    activations = outputs if isinstance(outputs, Tensor) else outputs[0]
    if layer.given is not None:
        return layer.given.split(activations.detach()).flatten(1).T, activations.shape
    if isinstance(activations, PackedSequence):
        return activations.data.detach().reshape(-1, layer.width), None
    return activations.detach().movedim(layer.along, -1).reshape(-1, layer.width), activations.shape


def _places(layer: NeuronLayer, shape: torch.Size, example_dim: int) -> Places | None:
    """Return where the samples of a tensor that shows a layer's activations come from; None if it has no examples."""
    neurons = (layer.along if layer.seen is None else layer.seen.dim) % len(shape)
    others = tuple(size for dim, size in enumerate(shape) if dim != neurons)
    if layer.seen is not None and example_dim == neurons:
        return None
    example = example_dim - (layer.seen is not None and example_dim > neurons)
    if example >= len(others):  # one step alone has no dimension of steps
        example = 0
    part = layer.seen or layer.given
    repeats = 1 if part is None else _length(part, shape) // layer.width
    return Places(others, example, repeats) if others else None


def _length(piece: Slice, shape: torch.Size) -> int:
    return shape[piece.dim] - piece.start if piece.length is None else piece.length
