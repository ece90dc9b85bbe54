"""How a model that nobody here wrote is run, judged and tapped: what a `LanguageModel` knows by itself."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence
from torch.utils.flop_counter import FlopCounterMode

from pruning.core.devices import moved, twice_differentiable
from pruning.core.modes import evaluating
from pruning.core.neurons import TIED, NeuronLayer, PrunableModule, Slice
from pruning.discovery import Recurrent, discover
from pruning.models.base import Measurable
from pruning.models.calling import WITHIN, Call, own_module, usual_call
from pruning.models.cells import recurrent_cell
from pruning.models.objectives import Classes, Criterion, Objective, class_numbers, objective_of, setting

Tap = Callable[[Tensor], Tensor | None]
"""(values that hold a layer's outputs) → zeros to add to them; None where nothing can be added."""


@dataclass(frozen=True, kw_only=True)
class Use:
    """What a network's author knows and its code does not say.

    Attributes:
        inputs: Inputs of one batch.
        criterion: What it loses.
        call: How it is run.
        example_dim: The dimension of inputs and of layers' outputs that runs over the examples of a batch.
        carries: Whether it carries a state from batch to batch, its inputs being steps (T, B) of B sequences.
    """

    inputs: Any
    criterion: Criterion
    call: Call
    example_dim: int
    carries: bool


def adapt(
    network: nn.Module,
    inputs: Any,
    *,
    criterion: Criterion,
    call: Call | None = None,
    example_dim: int | None = None,
) -> "Adapted":
    """Return a model that signals, fusion, repair, training and evaluation can handle, whoever wrote the network.

    A network with `init_hidden(examples)` is run as `network(inputs, state)` and returns (logits, state): a recurrent
    language model, whose inputs are (T, B). Any other is run as `network(inputs)`; inputs in a tuple or list become
    its arguments, in a dictionary its keyword arguments; it returns one tensor, first or alone, or as `logits`.
    `call` says it otherwise. The last dimension of logits runs over classes, the others over targets (for class numbers
    (examples, …) also the second one of logits (examples, classes, …), as PyTorch has it); numbers and labels have
    targets of the outputs' shape.

    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3))
    >>> model = adapt(network, torch.ones(4, 2), criterion=nn.CrossEntropyLoss())
    >>> model.widths(), model.multiply_adds(), model.module is network
    ((5,), 25, False)

    Args:
        network: Any module, in which `discover` then finds the neurons; or a `PrunableModule`: what it found before,
            or a model that says itself where its neurons are. It is left as it was.
        inputs: Inputs of one batch, with which neurons are discovered and sizes and latency measured; nothing is
            learnt from them.
        criterion: (outputs, targets) → mean loss. `nn.BCEWithLogitsLoss`, `nn.MSELoss`, `nn.L1Loss`,
            `nn.SmoothL1Loss` and `nn.HuberLoss`, or their functions, say that targets are labels and numbers. Any
            other is one of classes, such as `nn.CrossEntropyLoss()`: (logits (n, classes), class numbers (n,)) →
            mean loss; its `ignore_index`, if any, marks targets that do not count. With targets that are no whole
            numbers, it is given outputs and targets as they are, and its mean is one over the examples of a batch.
        call: (network, inputs, state or None) → (outputs, state), if it is run in another way.
        example_dim: The dimension of inputs and of layers' outputs (…, width) that runs over the examples of a batch;
            1 for a network with `init_hidden`, else 0.

    Raises:
        ValueError: For a criterion that does not take the mean, or a network in which no neurons are found.
    """
    if (reduction := setting(criterion, "reduction", "mean")) != "mean":
        raise ValueError(f"Expected a criterion with reduction 'mean', got {reduction!r}.")
    carries = hasattr(own_module(network), "init_hidden")
    dim = int(carries) if example_dim is None else example_dim
    use = Use(
        inputs=inputs, criterion=criterion, call=call or usual_call(network, dim), example_dim=dim, carries=carries
    )
    if isinstance(network, PrunableModule):
        return Adapted(network, use)
    found = discover(network, _arguments(network, inputs, dim))
    if not found.layers():
        raise ValueError(f"Expected a model with a layer that can be pruned, got none: {found.unprunable}.")
    return Adapted(found, use)


def _arguments(network: Any, inputs: Any, example_dim: int) -> tuple[Any, ...] | Mapping[str, Any]:
    """Return what a network is called with when it is run on inputs in the usual way."""
    if isinstance(inputs, Mapping):
        return inputs
    arguments = tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)
    if not hasattr(network, "init_hidden"):
        return arguments
    return (*arguments, network.init_hidden(arguments[0].shape[example_dim]))


class Adapted(Measurable):
    """A network with what its author knows of its use; made by `adapt`.

    Attributes:
        network: What says where the neurons are.
        use: How it is run and judged.
    """

    def __init__(self, network: PrunableModule, use: Use) -> None:
        super().__init__()
        self.network, self.training = network, network.training
        self.use = use
        self.example_dim = use.example_dim

    @property
    def module(self) -> nn.Module:
        """The user's own module."""
        return own_module(self.network)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Return what the network gives."""
        return self.network(*arguments, **named)

    def layers(self) -> list[NeuronLayer]:
        """Return the network's layers, their parameters and modules under the names that they have here."""
        return [_within(layer) for layer in self.network.layers()]

    def resized(self, widths: Sequence[int]) -> Self:
        """Return a new model with these widths, its parameters not yet meaningful."""
        return type(self)(self.network.resized(widths), self.use)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Let the network load its own, whose ways it knows."""
        own = {name.removeprefix(f"{WITHIN}."): tensor for name, tensor in state_dict.items()}
        return self.network.load_state_dict(own, strict=strict, assign=assign)

    def read(self, inputs: Any, state: Any = None) -> Any:
        """Run the network and return the state."""
        return self.use.call(self.network, _on(self.device, inputs), state)[1]

    def logits(self, inputs: Any, state: Any = None) -> tuple[Tensor, Any]:
        """Return the outputs (…, classes or values) as rows, and the state."""
        outputs, state = self.predicted(inputs, state)
        return outputs.flatten(0, -2) if outputs.ndim > 1 else outputs[:, None], state

    def predicted(self, inputs: Any, state: Any = None) -> tuple[Tensor, Any]:
        """Return the outputs as the network gives them, and the state.

        Raises:
            TypeError: If what the network returns is neither one tensor nor holds it as `logits`.
        """
        outputs, state = self.use.call(self.network, _on(self.device, inputs), state)
        found = outputs["logits"] if isinstance(outputs, Mapping) else getattr(outputs, "logits", outputs)
        if not isinstance(found, Tensor) or not found.ndim:
            got = "a number" if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(
                f"Expected one tensor of outputs, such as logits (…, classes), from the network, got {got}; "
                "`call` can say where it is."
            )
        return found, state

    def untappable(self, inputs: Any) -> dict[str, str]:
        """Return why a layer is left out by `tapped` and `outputs`, by layer."""
        with torch.no_grad(), _tapping(self) as found:
            self.read(inputs)
        return found.reasons

    def tapped(self, inputs: Any, state: Any = None) -> tuple[Tensor, dict[str, Tensor], Any]:
        """Return outputs, the zeros added to each layer's outputs, (steps, examples, width), and the state."""
        with _tapping(self) as found:
            outputs, state = self.predicted(inputs, state)
        return (
            outputs,
            {layer.name: found.zeros[layer.name] for layer in self.layers() if layer.name in found.zeros},
            state,
        )

    def outputs(self, inputs: Any, state: Any = None) -> dict[str, Tensor]:
        """Return each layer's outputs by layer, (steps, examples, width)."""
        with torch.no_grad(), _tapping(self) as found:
            self.read(inputs, state)
        return found.outputs

    def objective(self, targets: Tensor) -> Objective:
        """Return what the network is for, which its criterion says, and for one that is not known the targets' kind."""
        use = self.use
        return objective_of(use.criterion, targets, example_dim=use.example_dim, steps_first=use.carries)

    def labels(self, targets: Tensor) -> Tensor:
        """Return the class that each row of logits is to predict; `IGNORED` where the criterion ignores it.

        Raises:
            ValueError: If the targets are no class numbers.
        """
        objective = self.objective(targets)
        found = objective.labels(targets) if isinstance(objective, Classes) else class_numbers(targets)
        return moved(found, self.device)

    def judged(
        self,
        logits: Tensor,
        targets: Tensor,
        *,
        reduction: str = "mean",
        logarithms: Tensor | None = None,  # noqa: ARG002 - a criterion takes what it takes
    ) -> Tensor:
        """Return the criterion's loss, `mean` or `sum` (the mean times `weight`, and 0 where nothing counts).

        Raises:
            ValueError: If outputs and targets do not fit each other, or there is no single loss.
        """
        loss = self.objective(targets).mean(logits, targets)
        if reduction == "mean":
            return loss
        weight = self.weight(targets)
        return loss * weight if weight else logits.sum() * 0

    def weight(self, targets: Tensor) -> float:
        """Return what the criterion's mean is a mean over; see `Objective.weight`."""
        return self.objective(targets).weight(targets)

    def example(self, batch: int) -> Any:
        """Return inputs of `batch` examples; of their first step, where a state is carried."""

        def some(tensor: Tensor) -> Tensor:
            places = torch.arange(batch, device=tensor.device) % tensor.shape[self.example_dim]
            chosen = tensor.index_select(self.example_dim, places)
            return chosen[:1] if self.use.carries else chosen

        return _mapped(some, _on(self.device, self.use.inputs))

    def multiply_adds(self) -> int:
        """Return the multiply-adds of one example (of one step of it, where a state is carried)."""
        counter = FlopCounterMode(display=False)
        with evaluating(self), torch.no_grad(), twice_differentiable(), _unfused(), counter:
            self.read(self.example(1))
        return int(counter.get_total_flops()) // 2


@contextmanager
def _unfused() -> Iterator[None]:
    """Within the context, let recurrent layers run as products of matrices, which can be counted."""
    before: tuple[Any, ...] = torch.backends.mkldnn.set_flags(_enabled=False)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=before[0])  # type: ignore[no-untyped-call]


def _within(layer: NeuronLayer) -> NeuronLayer:
    """Return the layer as it is named in what holds the network."""

    def moved(piece: Slice) -> Slice:
        bias = piece.bias and f"{WITHIN}.{piece.bias}"
        return replace(piece, parameter=f"{WITHIN}.{piece.parameter}", bias=bias)

    kinds = ("owned", "read", "buffers", "silenced")
    pieces: dict[str, Any] = {kind: tuple(map(moved, getattr(layer, kind))) for kind in kinds}
    seen = layer.seen and moved(layer.seen)
    return replace(layer, **pieces, seen=seen, output=f"{WITHIN}.{layer.output}")


def _on(device: torch.device, inputs: Any) -> Any:
    return _mapped(lambda tensor: moved(tensor, device), inputs)


def _mapped(change: Callable[[Tensor], Tensor], inputs: Any) -> Any:
    """Return the inputs with every tensor in them changed."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, Mapping):
        return {name: _mapped(change, part) for name, part in inputs.items()}
    if isinstance(inputs, list | tuple):
        parts = [_mapped(change, part) for part in inputs]
        return type(inputs)(*parts) if hasattr(inputs, "_fields") else type(inputs)(parts)
    return inputs


@dataclass(frozen=True)
class _Taps:
    """What one run of a network told: by layer the zeros that were added, the outputs, or why there are none."""

    zeros: dict[str, Tensor]
    outputs: dict[str, Tensor]
    reasons: dict[str, str]


@contextmanager
def _tapping(model: Adapted) -> Iterator[_Taps]:
    """Within the context, add zeros to each layer's outputs; collect them and the outputs, (steps, examples, width).

    A layer that several modules read has the same zeros added to what each of them reads. No hook is left behind.
    """
    found = _Taps({}, {}, {})
    with ExitStack() as handles:
        for layer in model.layers():
            reason = _reason(model, layer)
            if reason:
                found.reasons[layer.name] = reason
                continue
            for number, (name, piece) in enumerate(_places(model, layer)):
                module = model.get_submodule(name)
                register = module.register_forward_hook if layer.seen is None else module.register_forward_pre_hook
                tap: Tap = partial(_tap, found, layer, piece, model.example_dim, number == 0)
                tap = tap if (time := _backwards(model, name)) is None else partial(_turned, tap, time)
                hook = (_output_hook if layer.seen is None else _input_hook)(tap)
                handles.enter_context(register(hook, with_kwargs=True))
        yield found
    for name in found.reasons:
        found.zeros.pop(name, None)
        found.outputs.pop(name, None)


def _tap(
    found: _Taps, layer: NeuronLayer, piece: Slice, example_dim: int, first: bool, values: Tensor
) -> Tensor | None:
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
    if layer.name in found.reasons:
        return None
    place = _Place(piece, layer.width, values.shape, dims)
    if layer.name not in found.zeros:
        found.outputs[layer.name] = place.arranged(values.detach())
        found.zeros[layer.name] = torch.zeros_like(found.outputs[layer.name], requires_grad=True)
    return place.restored(found.zeros[layer.name])


def _backwards(model: Adapted, name: str) -> int | None:
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


def _places(model: Adapted, layer: NeuronLayer) -> list[tuple[str, Slice]]:
    """Return the modules that show the layer's outputs, and where in them: its own module, or all that read it."""
    if layer.seen is None:
        return [(layer.output, Slice("", dim=layer.along))]
    return [
        (piece.parameter.rpartition(".")[0], replace(piece, dim=1 - model.get_parameter(piece.parameter).ndim))
        for piece in layer.read
    ]


def _reason(model: Adapted, layer: NeuronLayer) -> str:
    """Return why nothing can be added to the layer's outputs so that all its readers see it; empty if it can."""
    module = model.get_submodule(layer.output)
    if layer.seen is not None:
        return layer.obstacle if len(layer.read) > 1 else ""
    if layer.obstacle.endswith(TIED):
        return layer.obstacle
    if isinstance(module, nn.RNNBase):
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
        if isinstance(module, nn.RNNBase):
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


class _Place:
    """Where a tensor holds a layer's outputs: which of its dimensions run over examples and neurons, and what part."""

    def __init__(self, piece: Slice, width: int, shape: torch.Size, dims: tuple[int, int]) -> None:
        self.piece, self.width, self.shape, self.dims = piece, width, shape, dims
        self.length = shape[dims[1]] - piece.start if piece.length is None else piece.length

    def arranged(self, values: Tensor) -> Tensor:
        """Return the outputs as (steps, examples, width); a neuron's several places are steps of it."""
        piece, examples = self.piece, self.shape[self.dims[0]]
        own = values.movedim(self.dims, (0, -1)).narrow(-1, piece.start, self.length)
        parts = own.reshape(examples, -1, self.length // self.width // piece.size, self.width, piece.size)
        return parts.permute(1, 2, 4, 0, 3).reshape(-1, examples, self.width)

    def restored(self, arranged: Tensor) -> Tensor:
        """Return what `arranged` gave in its place in a tensor of the whole shape, zeros around it."""
        piece, examples = self.piece, self.shape[self.dims[0]]
        others = [size for dim, size in enumerate(self.shape) if dim not in self.dims]
        parts = arranged.view(-1, self.length // self.width // piece.size, piece.size, examples, self.width)
        own = parts.permute(3, 0, 1, 4, 2).reshape(examples, *others, self.length)
        whole = F.pad(own, (piece.start, self.shape[self.dims[1]] - piece.start - self.length))
        return whole.movedim((0, -1), self.dims)


def _recurrent(rnn: nn.RNNBase, tap: Tensor, inputs: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
    """Return what PyTorch's recurrent layer gives if it, too, reads at each step what was added at the step before."""
    cell = recurrent_cell(f"rnn_{rnn.nonlinearity}" if isinstance(rnn, nn.RNN) else rnn.mode.lower())  # type: ignore[arg-type]
    state = hx if hx is None or isinstance(hx, tuple) else (hx,)
    turned = (inputs.transpose(0, 1), tap.transpose(0, 1)) if rnn.batch_first else (inputs, tap)
    outputs, after = cell.run(rnn, turned[0], state, turned[1])
    after = (after[0] + turned[1][-1], *after[1:])  # whoever reads the last output from the state reads it there
    return (outputs.transpose(0, 1) if rnn.batch_first else outputs), after if len(after) > 1 else after[0]
