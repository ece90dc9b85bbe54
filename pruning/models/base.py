"""What signals, training and evaluation ask of a model, whoever wrote it, and what language models answer."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.core.devices import moved
from pruning.core.finite import expect_finite
from pruning.core.hooks import record
from pruning.core.modes import carried
from pruning.core.neurons import PrunableModule, expect_neurons
from pruning.core.options import Decoupling
from pruning.data.windows import IGNORED, Batches
from pruning.models.answers import detached
from pruning.models.classes import Classes, chances
from pruning.models.likelihood import cross_entropy
from pruning.models.metrics import Metric
from pruning.models.objectives import Objective

State: TypeAlias = list[tuple[Tensor, ...]]
"""What a model carries from window to window: some tensors for each layer."""


class Measurable(PrunableModule):
    """A model that can be run on batches of (inputs, targets) and that knows what it loses on them.

    `LanguageModel` is one by itself; `pruning.models.adapted.Adapted` makes one of any other model. What is carried
    from batch to batch, the state, is whatever the model gives back: tensors, in tuples or lists; None where nothing
    is.
    """

    example_dim: int
    """Dimension of the inputs that runs over the examples of a batch, which are independent."""
    report: Any
    """What `pruning.prune` did to make it; `print` shows it."""
    history: Any
    """What `pruning.finetune` saw while it was trained."""

    @property
    def module(self) -> nn.Module:
        """The user's own module; a model that is measurable by itself is its own."""
        return self

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.parameters()).device

    @abstractmethod
    def read(self, inputs: Any, state: Any = None) -> Any:
        """Run every layer on the inputs and return the state; for whoever watches the layers and needs no logits."""

    def passed(self, inputs: Any, state: Any) -> Any:
        """Return the state after a batch in which no target counts: it is read, and nothing is measured on it."""
        with torch.no_grad():
            return self.read(inputs, carried(state))

    def inputs_in(self, batch: Any) -> Any:
        """Return the inputs of a batch (inputs, targets)."""
        return batch[0]

    @abstractmethod
    def logits(self, inputs: Any, state: Any = None) -> tuple[Tensor, Any]:
        """Return the logits, one row for each target, (n, classes), and the state to carry on from."""

    def untappable(self, inputs: Any) -> dict[str, str]:  # noqa: ARG002 - for those who need it
        """Return why `tapped` and `outputs` leave out a layer, by layer; those that are not named are all there."""
        return {}

    def predicted(self, inputs: Any, state: Any = None) -> tuple[Any, Any]:
        """Return what the network gives, in the shape in which `objective` takes it, and the state to carry on from."""
        return self.logits(inputs, state)

    def pairs(self, batches: Batches) -> Batches:
        """Return batches as pairs (inputs, targets), whatever their form; a language model's are such pairs."""
        return batches

    def measured_by(self) -> Mapping[str, Metric]:
        """Return what is reported beside the loss and the metrics that the objective has by itself."""
        return {}

    @abstractmethod
    def tapped(self, inputs: Any, state: Any = None) -> tuple[Any, dict[str, Tensor], Any]:
        """Return what `predicted` gives and, by layer, zeros that were added to its outputs, and the state.

        They are shaped as `outputs` gives those, (steps, examples, width). The derivative of a loss by such zeros is
        how much it depends on each output, through every reader within this batch, the layer's own next steps
        included.
        """

    def passed_drawing(self, inputs: Any, targets: Any, state: Any, generator: torch.Generator, *, taps: bool) -> Any:
        """Return the state after a batch, with the generator as drawing targets for it (`fisher_loss`) leaves it.

        Both are to the bit what they are where the batch is measured, by `tapped` if there are to be `taps`, else by
        `predicted`; how much is drawn depends on shapes alone.
        """
        outputs, *_, after = self.tapped(inputs, state) if taps else self.predicted(inputs, state)
        self.objective(targets).fisher_loss(detached(outputs), targets, generator)
        return after

    @abstractmethod
    def outputs(self, inputs: Any, state: Any = None) -> dict[str, Tensor]:
        """Return each layer's outputs by layer, (steps, examples, width), without a graph.

        Steps are whatever an example has many of: times, places of an image, dimensions of a head; 1 where it has one.
        """

    @abstractmethod
    def objective(self, targets: Any) -> Objective:
        """Return what the network is for that has such targets."""

    def counted(self, targets: Any) -> Tensor:
        """Return which targets count, (n,), on the device."""
        return moved(self.objective(targets).counted(targets), self.device)

    @abstractmethod
    def labels(self, targets: Any) -> Tensor:
        """Return the class that each row of logits is to predict, (n,), on the device; `IGNORED` where none is."""

    @abstractmethod
    def judged(self, logits: Any, targets: Any, *, reduction: str = "mean", logarithms: Tensor | None = None) -> Tensor:
        """Return the loss of what `predicted` gave, `mean` (per target that counts) or `sum`, the mean times `weight`.

        The sum over no target is 0, their mean is not a number.

        Args:
            logits: What `predicted` gave.
            targets: As they are in the batch.
            reduction: `mean` or `sum`.
            logarithms: What `Objective.logarithms` gives of `logits`, where it is at hand already.
        """

    def loss(self, inputs: Any, targets: Any, state: Any = None, *, reduction: str = "mean") -> tuple[Tensor, Any]:
        """Return the loss of one batch, `mean` (per target that counts) or `sum`, and the state to carry on from."""
        outputs, state = self.predicted(inputs, state)
        return self.judged(outputs, targets, reduction=reduction), state

    def counted_in(self, outputs: Any, targets: Any) -> Tensor:  # noqa: ARG002 - for those whose steps count or not
        """Return what counts of the places that belong to a batch's targets, in their order, on the device.

        Each target; where one has steps of which some are padding, each step of each (`Objective.steps_that_count`).

        Args:
            outputs: What `predicted` gave.
            targets: As they stand in the batch.
        """
        return self.counted(targets)

    def count(self, targets: Any) -> int:
        """Return how many of the targets count."""
        return int(self.objective(targets).counted(targets).sum())

    def weight(self, targets: Any) -> float:
        """Return what the `mean` loss of a batch is a mean over: the targets that count, each by its class's weight."""
        return self.count(targets)

    def widths(self) -> tuple[int, ...]:
        """Return the number of neurons of each layer."""
        return tuple(layer.width for layer in self.layers())

    def decoupled(self, how: Decoupling = "project") -> Self:  # noqa: ARG002 - for those who need it
        """Return an equal model in which every layer of neurons has readers of its own; itself if it is one already."""
        return self

    @abstractmethod
    def example(self, batch: int) -> Any:
        """Return inputs of `batch` examples (of one step, where there are steps), to measure how long they take."""

    @abstractmethod
    def multiply_adds(self) -> int:
        """Return the multiply-adds of one example (one token)."""

    def multiplied(self) -> list[str] | None:
        """Return the parameters whose numbers are all that one example is multiplied by, once; None if unknown."""
        return None


NEXT_TOKEN = Classes(nn.CrossEntropyLoss(ignore_index=IGNORED))
"""What a language model is for."""


def expect_measurable(model: object) -> None:
    """Refuse a network that nobody made ready to be run on batches.

    Raises:
        TypeError: If it does not know what a batch of it is.
    """
    if hasattr(model, "pairs"):  # a `Measurable`, or what is run and judged like one
        return
    expect_neurons(model)
    raise TypeError(
        "Expected a network that knows its loss and its batches, got one whose neurons alone are known; "
        "`pruning.adapt(network, inputs, loss=…)` makes one."
    )


def expect_ready(model: nn.Module) -> None:
    """Refuse a network of which nothing true can be measured.

    Raises:
        TypeError: If it does not know what a batch of it is.
        FloatingPointError: If a parameter is not finite everywhere, or a buffer is NaN somewhere.
    """
    expect_measurable(model)
    expect_finite(model)


class LanguageModel(Measurable):
    """Reads tokens (T, B), carries a state, and gives the logits (T, B, V) of each next token."""

    example_dim = 1

    encoder: nn.Embedding
    decoder: nn.Linear  # its `weight` is None where the embedding's serves

    @property
    @abstractmethod
    def decoder_weight(self) -> Tensor:
        """The matrix (V, features) that turns features into logits, wherever it is stored."""

    @abstractmethod
    def features(
        self, tokens: Tensor, state: State | None = None, offsets: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, State]:
        """Return what the decoder reads, (T, B, features), and the state; for whoever needs no logits.

        Args:
            tokens: What to read, (T, B).
            state: What the window before left, or None.
            offsets: Layer name → what is added to its outputs before any reader reads them, (T, B, width). The
                derivative of a loss by them (at zero) is how much it depends on each output, through every reader
                within these T steps.
        """

    @abstractmethod
    def decode(self, features: Tensor) -> Tensor:
        """Return the logits (…, V) that the decoder gives `features` (…, features)."""

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return the logits (T, B, V) of the token after each of `tokens` (T, B), and the state to carry on from."""
        features, state = self.features(tokens, state)
        return self.decode(features), state

    def read(self, inputs: Tensor, state: State | None = None) -> State:
        """Run every layer but the decoder on tokens (T, B) and return the state."""
        return self.features(moved(inputs, self.device), state)[1]

    def logits(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return the logits of the token after each of `inputs` (T, B), (T · B, V), and the state."""
        logits, state = self(moved(inputs, self.device), state)
        return logits.flatten(0, 1), state

    def tapped(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, dict[str, Tensor], State]:
        """Return logits, the zeros added to each layer's outputs, (T, B, width), and the state."""
        taps = self._taps(inputs)
        features, state = self.features(moved(inputs, self.device), state, taps)
        return self.decode(features).flatten(0, 1), taps, state

    def _taps(self, inputs: Tensor) -> dict[str, Tensor]:
        one = self.encoder.weight
        return {layer.name: one.new_zeros(*inputs.shape, layer.width, requires_grad=True) for layer in self.layers()}

    def passed_drawing(
        self, inputs: Tensor, targets: Tensor, state: State | None, generator: torch.Generator, *, taps: bool
    ) -> State:
        """See `Measurable.passed_drawing`: the decoder, which costs most, changes neither."""
        features, after = self.features(moved(inputs, self.device), state, self._taps(inputs) if taps else None)
        chances(targets.numel(), generator, features.dtype)
        return after

    def outputs(self, inputs: Tensor, state: State | None = None) -> dict[str, Tensor]:
        """Return each layer's outputs by layer, (T, B, width)."""
        found: dict[str, Tensor] = {}
        with torch.no_grad(), record(self, self.layers(), found.__setitem__):
            self.read(inputs, state)
        return {name: outputs.view(*inputs.shape, -1) for name, outputs in found.items()}

    def objective(self, targets: Tensor) -> Objective:  # noqa: ARG002 - whatever the targets, they are tokens
        """Return that the next token is predicted."""
        return NEXT_TOKEN

    def labels(self, targets: Tensor) -> Tensor:
        """Return what follows each token, (T · B,); `IGNORED` where nothing does."""
        return moved(targets, self.device).flatten()

    def judged(
        self, logits: Tensor, targets: Tensor, *, reduction: str = "mean", logarithms: Tensor | None = None
    ) -> Tensor:
        """Return the cross-entropy, padding left out: `mean` (nat/token) or `sum` (nat)."""
        if logarithms is None:
            return cross_entropy(logits, self.labels(targets), reduction=reduction)
        return F.nll_loss(logarithms, self.labels(targets), ignore_index=IGNORED, reduction=reduction)

    def count(self, targets: Tensor) -> int:
        """Return how many of the targets count, without waiting for the model's device."""
        return int((targets != IGNORED).sum())

    def expect(self, targets: Tensor | Iterable[Tensor]) -> None:
        """Set the decoder's biases to how frequent each type is in `targets`, so that training starts from there.

        bias_v = log((n_v + 1) / (n + V)), nat, where v is n_v of the n targets that count. A new model that has to
        learn these by gradient steps drives its neurons into saturation on the way, and then stays long at
        predicting the same for every context.

        Args:
            targets: What the model is going to be trained on, of any shape; or parts of it, read one after the other.
        """
        types = len(self.decoder.bias)
        parts = [targets] if isinstance(targets, Tensor) else targets
        counts = torch.zeros(types, dtype=torch.long)
        for part in parts:
            counts += torch.bincount(part[part != IGNORED], minlength=types).to(counts.device)
        known = counts + 1.0
        with torch.no_grad():
            self.decoder.bias.copy_((known / known.sum()).log())

    def example(self, batch: int) -> Tensor:
        """Return one token of each of `batch` sequences, (1, batch)."""
        return torch.zeros(1, batch, dtype=torch.long, device=self.device)

    @abstractmethod
    def widths(self) -> tuple[int, ...]:
        """Return the number of neurons of each layer."""

    @abstractmethod
    def decoupled(self, how: Decoupling = "project") -> Self:
        """Return an equal model in which every layer of neurons has readers of its own; itself if it is one already."""

    @abstractmethod
    def to_config(self) -> dict[str, object]:
        """Return the configuration as plain values, for `config.json`."""
