"""How a model that nobody here wrote is run, judged and tapped: what a `LanguageModel` knows by itself."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pruning.core.devices import moved, twice_differentiable
from pruning.core.modes import evaluating
from pruning.core.neurons import Keep, NeuronLayer, PrunableModule, Slice
from pruning.discovery import discover
from pruning.models.base import Measurable
from pruning.models.calling import WITHIN, Call, inputs_in, own_module, usual_call
from pruning.models.objectives import Classes, Criterion, Objective, class_numbers, objective_of, setting
from pruning.models.tapping import tapping


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

    def settle(self, before: PrunableModule, keep: Keep) -> None:
        """Let the network know which neurons it has."""
        if isinstance(before, Adapted):
            self.network.settle(before.network, keep)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Let the network load its own, whose ways it knows."""
        own = {name.removeprefix(f"{WITHIN}."): tensor for name, tensor in state_dict.items()}
        return self.network.load_state_dict(own, strict=strict, assign=assign)

    def inputs_in(self, batch: Any) -> Any:
        """Return the inputs of a batch (inputs, targets), or of one of inputs alone, of the form of the example's."""
        return inputs_in(batch, self.use.inputs)

    def read(self, inputs: Any, state: Any = None) -> Any:
        """Run the network and return the state."""
        return self.use.call(self.network, _on(self.device, inputs), state)[1]

    def logits(self, inputs: Any, state: Any = None) -> tuple[Tensor, Any]:
        """Return the outputs (…, classes or values) as rows, and the state."""
        outputs, state = self.predicted(inputs, state)
        return outputs.flatten(0, -2) if outputs.ndim > 1 else outputs[:, None], state

    def answered(self, inputs: Any, state: Any = None) -> tuple[Any, Any]:
        """Return what the network gives in whatever form, its `logits` where it has them, and the state."""
        outputs, state = self.use.call(self.network, _on(self.device, inputs), state)
        return outputs["logits"] if "logits" in _names(outputs) else getattr(outputs, "logits", outputs), state

    def predicted(self, inputs: Any, state: Any = None) -> tuple[Tensor, Any]:
        """Return the outputs as the network gives them, and the state.

        Raises:
            TypeError: If what the network returns is neither one tensor nor holds it as `logits`.
        """
        found, state = self.answered(inputs, state)
        if not isinstance(found, Tensor) or not found.ndim:
            got = "a number" if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(
                f"Expected one tensor of outputs, such as logits (…, classes), from the network, got {got}; "
                "`call` can say where it is."
            )
        return found, state

    def untappable(self, inputs: Any) -> dict[str, str]:
        """Return why a layer is left out by `tapped` and `outputs`, by layer."""
        with torch.no_grad(), tapping(self) as found:
            self.read(inputs)
        return found.reasons

    def tapped(self, inputs: Any, state: Any = None) -> tuple[Tensor, dict[str, Tensor], Any]:
        """Return outputs, the zeros added to each layer's outputs, (steps, examples, width), and the state."""
        with tapping(self) as found:
            outputs, state = self.predicted(inputs, state)
        return (
            outputs,
            {layer.name: found.zeros[layer.name] for layer in self.layers() if layer.name in found.zeros},
            state,
        )

    def outputs(self, inputs: Any, state: Any = None) -> dict[str, Tensor]:
        """Return each layer's outputs by layer, (steps, examples, width)."""
        with torch.no_grad(), tapping(self) as found:
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

    kinds = ("owned", "read", "buffers", "silenced", "tied")
    pieces: dict[str, Any] = {kind: tuple(map(moved, getattr(layer, kind))) for kind in kinds}
    seen, operand = layer.seen and moved(layer.seen), layer.operand and f"{WITHIN}.{layer.operand}"
    return replace(layer, **pieces, seen=seen, operand=operand, output=f"{WITHIN}.{layer.output}")


def _names(outputs: Any) -> set[str]:
    return set(outputs) if isinstance(outputs, Mapping) else set()


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
