"""How a model that nobody here wrote is run, judged and tapped: what a `LanguageModel` knows by itself."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, _FlopCounterMode

from pruning.core.devices import moved, twice_differentiable, unfused
from pruning.core.faults import said
from pruning.core.memory import kept
from pruning.core.modes import evaluating, untouched
from pruning.core.nested import mapped, tensors_in
from pruning.core.neurons import Keep, NeuronLayer, PrunableModule
from pruning.core.uncompiled import uncompiled
from pruning.core.words import described
from pruning.data.batches import Form, Pair, Pairs, Unlabelled, taken_apart
from pruning.data.windows import Windows
from pruning.discovery import Discovered
from pruning.models.answers import has_main, main_of
from pruning.models.apart import Apart
from pruning.models.asking import asked
from pruning.models.base import Measurable
from pruning.models.batches import form_of
from pruning.models.calling import (
    WITHIN,
    begin,
    called,
    held,
    on,
    own_module,
    takes_state,
    usual_arguments,
)
from pruning.models.classes import Classes, class_numbers
from pruning.models.examples import own_loss
from pruning.models.losses import kind_of_loss, objective_of
from pruning.models.metrics import Metric
from pruning.models.objectives import Objective
from pruning.models.parting import some_of
from pruning.models.residuals import WithGradients
from pruning.models.tapping import Taps, tapping, with_recurrent_readers
from pruning.models.use import Use


def arguments_for(
    model: "Adapted", batch: int | None = None, network: nn.Module | None = None
) -> tuple[Any, ...] | Mapping[str, Any]:
    """Return what a model's network is called with on the batch that it was adapted with, or on so many examples.

    Args:
        model: What `adapt` gave.
        batch: How many examples; None for that batch.
        network: What makes the first state, if not the model's own.
    """
    inputs = on(model.device, model.use.inputs) if batch is None else model.example(batch)
    return usual_arguments(model.module if network is None else network, inputs, model.example_dim)


class Adapted(Measurable):
    """A network with what its author knows of its use; made by `adapt`.

    Attributes:
        network: What says where the neurons are.
        use: How it is run and judged.
        report: What made it, where something did; `print` shows it.
    """

    report: Any = None

    def __init__(self, network: PrunableModule, use: Use) -> None:
        super().__init__()
        self.network, self.training = network, network.training
        self.use = use
        self.example_dim = use.example_dim
        self._scattered: frozenset[str] | None = None
        self._separable: bool | None = None

    @property
    def module(self) -> nn.Module:
        """The user's own module."""
        return own_module(self.network)

    @property
    def judge(self) -> Any:
        """The user's loss, which may keep something from call to call: see `pruning.core.holding`."""
        return self.use.criterion

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Return what the network gives."""
        return self.network(*arguments, **named)

    def __str__(self) -> str:
        """Return what made it, or what was found in the network; `repr` shows the modules."""
        return str(self.network if self.report is None else self.report)

    def layers(self) -> list[NeuronLayer]:
        """Return the network's layers, their parameters and modules under the names that they have here."""
        return [held(layer) for layer in self.network.layers()]

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
        """Return the inputs of a batch of any form; see `adapt`."""
        return self.pair_of(batch).inputs

    def pair_of(self, batch: Any) -> Pair:
        """Return a batch of any form as inputs and targets, `Unlabelled` where it has none."""
        if isinstance(batch, Pair):
            return batch
        inputs, targets = taken_apart(self.use.split or self.form.pair, batch)
        pair = Pair(inputs, self.form.unlabelled(inputs) if targets is None else targets)
        self.use = asked(self, pair)
        return pair

    def read(self, inputs: Any, state: Any = None) -> Any:
        """Run the network and return the state."""
        return self._called(inputs, state)[1]

    def _called(self, inputs: Any, state: Any) -> tuple[Any, Any]:
        """Return what the network gives and the state to carry on from; of a stream, what its modules keep is of it.

        Each batch, or the first of a stream, finds what they kept at first, and what they keep now stays as it is.
        """
        try:
            return self._answer(on(self.device, inputs), state)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a user's code raises
            if self.training and self._evaluates(inputs, state):
                raise ValueError(
                    "Expected a network that reads in training what it reads in evaluation, got one that raises "
                    f"{said(error)}; one that needs targets only then takes them, and gives its loss, by `call`."
                ) from error
            if (read := described(inputs)) == (known := described(self.use.inputs)):
                raise
            raise ValueError(
                f"Expected batches that the network runs on, such as {known}, got {read}, on which it raises "
                f"{said(error)}{self._without_state()}."
            ) from error

    def _without_state(self) -> str:
        """Return what to do where the model was adapted with a state that the network makes, which is in no batch."""
        known = self.use.inputs
        if not isinstance(known, tuple) or len(known) < 2 or not takes_state(self.network, known[:-1]):
            return ""
        return "; where batches hold no state, give `adapt` the inputs without it, as `init_hidden` makes it"

    def _evaluates(self, inputs: Any, state: Any) -> bool:
        """Return whether the network runs on inputs in evaluation mode."""
        with evaluating(self), untouched(self), torch.no_grad():
            try:
                self._answer(on(self.device, inputs), state)
            except Exception:  # likewise
                return False
        return True

    def _answer(self, given: Any, state: Any) -> tuple[Any, Any]:
        network = self.network
        if not isinstance(network, Discovered) or not network.remembered:
            return called(self.use.call, network, given, state)
        own, before = (state["call"], state["modules"]) if self.use.stream and state else (state, None)
        with network.begun(before):
            if before is None:
                begin(network, given, self.example_dim)
            outputs, own = called(self.use.call, network, given, own)
            after = kept(network.network, network.remembered)
        return outputs, {"call": own, "modules": after} if self.use.stream else own

    def logits(self, inputs: Any, state: Any = None) -> tuple[Tensor, Any]:
        """Return the main output (…, classes or values) as rows, and the state."""
        answer, state = self.predicted(inputs, state)
        outputs = main_of(answer)
        return outputs.flatten(0, -2) if outputs.ndim > 1 else outputs[:, None], state

    def answered(self, inputs: Any, state: Any = None) -> tuple[Any, Any]:
        """Return what the network gives, its main output where the loss reads one and there is one, and the state."""
        outputs, state = self._called(inputs, state)
        kind = kind_of_loss(self.use.criterion)
        whole = kind is None or kind.whole or not has_main(outputs)
        return outputs if whole else main_of(outputs), state

    def predicted(self, inputs: Any, state: Any = None) -> tuple[Any, Any]:
        """Return the outputs as the network gives them, and the state: its main one, or all that the loss reads.

        Raises:
            TypeError: If the loss reads one output and none of those that the network gives is the main one.
        """
        if self.use.differentiates and not torch.is_grad_enabled():
            with torch.enable_grad():
                outputs, state = self._called(inputs, state)
            return outputs, mapped(Tensor.detach, state)
        outputs, state = self._called(inputs, state)
        kind = kind_of_loss(self.use.criterion)
        return outputs if kind is None or kind.whole else main_of(outputs), state

    def pairs(self, batches: Any) -> Any:
        """Return batches of any form as (inputs, targets), again and again; see `adapt`."""
        if isinstance(batches, Pairs | Windows):
            return batches
        return Pairs(batches, self.pair_of)

    @property
    def form(self) -> Form:
        """What tells a batch's inputs from its targets."""
        return form_of(self.network, self.use.inputs, self.use.criterion, self.example_dim)

    def untappable(self, inputs: Any) -> dict[str, str]:
        """Return why a layer is left out by `tapped` and `outputs`, by layer."""
        apart = self._each_reader(inputs)
        with torch.no_grad(), apart:
            self.read(inputs)
        unread = {layer.name: layer.obstacle for layer in self.layers() if layer.unread}
        why = "no operation that is known was seen to read it"
        return {name: unread.get(name, why) for name, uses in apart.uses.items() if not uses.values}

    def tapped(self, inputs: Any, state: Any = None) -> tuple[Tensor, dict[str, Tensor], Any]:
        """Return outputs, the zeros added to each layer's outputs, (steps, examples, width), and the state.

        Where no one place shows them to all that read them, they are what each reader reads, one after the other.
        """
        apart = self._each_reader(inputs)
        if apart.uses:
            with torch.no_grad(), apart:
                self.read(inputs, state)
        read = {name: uses.outputs() for name, uses in apart.uses.items() if uses.values}
        zeros = {name: torch.zeros_like(values, requires_grad=True) for name, values in read.items()}
        apart.give(zeros)
        with tapping(self, frozenset(apart.uses)) as found, apart if zeros else nullcontext():
            outputs, after = self.predicted(inputs, state)
        if self._scatters(found):
            return self.tapped(inputs, state)
        zeros |= found.zeros
        return outputs, {layer.name: zeros[layer.name] for layer in self.layers() if layer.name in zeros}, after

    def outputs(self, inputs: Any, state: Any = None) -> dict[str, Tensor]:
        """Return each layer's outputs by layer, (steps, examples, width), see `tapped`."""
        apart = self._each_reader(inputs)
        with torch.no_grad(), tapping(self, frozenset(apart.uses)) as found, apart if apart.uses else nullcontext():
            self.read(inputs, state)
        if self._scatters(found):
            return self.outputs(inputs, state)
        return found.outputs | {name: uses.outputs() for name, uses in apart.uses.items() if uses.values}

    def _each_reader(self, inputs: Any) -> Apart:
        """Return a mode for the layers that no one place shows to all that read them."""
        if self._scattered is None:
            with torch.no_grad(), tapping(self) as found:
                self.read(inputs)
            names = (layer.name for layer in self.layers() if layer.name not in found.zeros)
            self._scattered = with_recurrent_readers(self, names)
        layers = [layer for layer in self.layers() if layer.name in self._scattered]
        first = next((part for part in tensors_in(inputs) if part.ndim > self.example_dim), None)
        examples = 0 if first is None else first.shape[self.example_dim]
        return Apart(self, layers, examples, self.example_dim)

    def _scatters(self, found: Taps) -> bool:
        """Return whether a batch shows that readers of a layer read different numbers, which in another were equal."""
        before = self._scattered or frozenset()
        self._scattered = with_recurrent_readers(self, before | found.reasons.keys())
        return self._scattered != before

    def objective(self, targets: Any) -> Objective:
        """Return what the network is for, which its loss says, and for one that is not known the targets' kind."""
        use, first = self.use, self.use.carries and self.example_dim == 1
        loss = WithGradients(use.criterion) if use.differentiates and callable(use.criterion) else use.criterion
        if loss is own_loss and isinstance(targets, Unlabelled) and not use.gives:
            loss = None
        return objective_of(
            loss, targets, example_dim=use.example_dim, steps_first=first, shape=use.shape, ignored=use.ignored
        )

    def counted_in(self, outputs: Any, targets: Any) -> Tensor:
        """See `Measurable.counted_in`."""
        steps = self.objective(targets).steps_that_count(outputs, targets)
        if steps is None:
            return self.counted(targets)
        return moved(steps if self.example_dim else steps.T, self.device).flatten()

    def measured_by(self) -> Mapping[str, Metric]:
        """Return what its author wants to see beside the loss."""
        return self.use.metrics

    def labels(self, targets: Any) -> Tensor:
        """Return the class that each row of logits is to predict; `IGNORED` where the criterion ignores it.

        Raises:
            ValueError: If the targets are no class numbers.
        """
        objective = self.objective(targets)
        found = objective.labels(targets) if isinstance(objective, Classes) else class_numbers(targets)
        return moved(found, self.device)

    def judged(
        self,
        logits: Any,
        targets: Any,
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
        return loss * weight if weight else next(tensors_in(logits)).sum() * 0

    def weight(self, targets: Any) -> float:
        """Return what the criterion's mean is a mean over; see `Objective.weight`."""
        return self.objective(targets).weight(targets)

    def example(self, batch: int) -> Any:
        """Return inputs of `batch` examples; of their first step, where a state is carried.

        Of nodes of a graph, which cannot be taken apart, all that the model was adapted with.
        """
        return self._some(batch) if self._apart() else on(self.device, self.use.inputs)

    def _apart(self) -> bool:
        """Return whether the network can be run on some examples of a batch alone."""
        if self._separable is None:
            with evaluating(self), torch.no_grad():
                self._separable = True
                try:
                    self.read(self._some(1))
                except (IndexError, RuntimeError, ValueError):
                    self.read(self.use.inputs)  # unless it does not run at all
                    self._separable = False
        return self._separable

    def _some(self, batch: int) -> Any:
        return some_of(on(self.device, self.use.inputs), batch, self.example_dim, steps=self.use.carries)

    def multiply_adds(self) -> int:
        """Return the multiply-adds of one example (of one step of it, where a state is carried).

        Raises:
            ValueError: If the network has shapes alone and does not run without its numbers.
        """
        if self.device.type != "meta":
            return self._multiply_adds()
        try:
            return self._multiply_adds()
        except Exception as error:  # whatever a user's code says of numbers that are not there
            raise ValueError(
                f"Expected a network whose multiply-adds can be counted from shapes alone, got {said(error)}."
            ) from error

    def _multiply_adds(self) -> int:
        counter, inputs = FlopCounterMode(display=False), self.example(1)
        counter.mod_tracker = _Whole()  # type: ignore[assignment]
        alone = uncompiled(_FlopCounterMode.__torch_dispatch__)
        with alone, evaluating(self), torch.no_grad(), twice_differentiable(), unfused(), counter:
            self.read(inputs)
        first = None if self._apart() else next(tensors_in(inputs), None)
        examples = 1 if first is None else first.shape[self.example_dim]
        return int(counter.get_total_flops()) // 2 // examples


class _Whole(nullcontext[None]):
    """In place of what tells the counter the module: that one's hooks forbid gradients that are taken in a forward."""

    parents = frozenset({"Global"})
