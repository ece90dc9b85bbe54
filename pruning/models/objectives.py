"""What a network is for: its loss, targets drawn from its own outputs, how far two outputs are apart, and metrics."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pruning.core.devices import moved
from pruning.core.nested import mapped, parts_of
from pruning.core.words import described
from pruning.data.batches import Unlabelled

Criterion = Callable[..., Tensor]
"""(outputs, targets) → their mean loss, such as `nn.CrossEntropyLoss()`, `nn.MSELoss()`, or a function."""
Direction = Literal["higher", "lower"]
"""Which numbers of a metric are better."""
OF_INPUTS = "which of an autoencoder are its inputs, `split=lambda batch: (batch, batch)`"
"""What can be done where batches have no targets."""


@dataclass(frozen=True)
class Objective(ABC):
    """What signals, repair, training and evaluation ask about a network's outputs and targets.

    Outputs are as the network gives them and targets as they stand in the batch, or `Unlabelled` where it has none;
    `rows` says what of them is one target. Losses are summed over targets that count, so that a sum divided by their
    `weight` is the mean.

    >>> class Counts(Objective):
    ...     def rows(self, outputs, targets):
    ...         return outputs
    ...     def counted(self, targets):
    ...         return torch.ones(len(targets), dtype=torch.bool)
    ...     def mean(self, outputs, targets):
    ...         return self.criterion(outputs[:, 0], targets)
    >>> counts = Counts(torch.nn.PoissonNLLLoss())
    >>> round(counts.mean(torch.zeros(2, 1), torch.tensor([1, 2])).item(), 3)
    1.0

    Attributes:
        criterion: (outputs, targets) → mean loss.
    """

    criterion: Criterion
    metrics: ClassVar[Mapping[str, Direction]] = {}
    """The metrics that `totals` gives, and which direction is better."""
    tempered: ClassVar[bool] = False
    """Whether outputs are logits, which a temperature can divide before they are compared."""
    drawn: ClassVar[str] = ""
    """What `fisher_loss` draws targets from; nothing if it takes the true ones (the empirical Fisher)."""
    whole: ClassVar[bool] = False
    """Whether it reads all that the network gives, and not its main output alone."""

    @property
    def name(self) -> str:
        """What the criterion is called."""
        function = self.criterion.func if isinstance(self.criterion, partial) else self.criterion
        return getattr(function, "__name__", type(function).__name__)

    @property
    def likelihood(self) -> bool:
        """Whether the loss is the negative log-likelihood of a class, nat, of which the perplexity is the exponent."""
        return False

    @abstractmethod
    def rows(self, outputs: Any, targets: Any) -> Tensor:
        """Return the outputs, one row for each target, (n, values)."""

    @abstractmethod
    def counted(self, targets: Any) -> Tensor:
        """Return which targets count, (n,), where the targets are."""

    def steps_that_count(self, outputs: Any, targets: Any) -> Tensor | None:  # noqa: ARG002
        """Return which steps of each example are no padding, (steps, examples); None where the loss does not know."""
        return None

    def weight(self, targets: Any) -> float:
        """Return what the mean loss is a mean over; the number of targets that count unless they have weights."""
        return int(self.counted(targets).sum())

    @abstractmethod
    def mean(self, outputs: Any, targets: Any) -> Tensor:
        """Return the criterion's loss.

        Raises:
            ValueError: If targets and outputs do not fit each other, or there is no single loss.
        """

    def likelihood_loss(self, outputs: Any, targets: Any) -> Tensor:
        """Return the loss that the true targets are scored by, summed over those that count."""
        return self.mean(outputs, targets) * self.weight(targets)

    def fisher_loss(self, outputs: Any, targets: Any, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Return a sum over the targets that count whose gradient's second moment is the Fisher information.

        With targets drawn from the distribution of which the loss is the negative logarithm, that moment is the
        Gauss–Newton part of the loss's Hessian, in the loss's own units. Without such a distribution, it is the
        empirical Fisher information: the gradient by the true targets.

        Args:
            outputs: What the network gave.
            targets: The true ones, or `Unlabelled` where they are drawn.
            generator: On the CPU, so that draws are the same on any device.
        """
        return self.likelihood_loss(outputs, targets)

    def logarithms(self, outputs: Any, targets: Any) -> Tensor | None:  # noqa: ARG002
        """Return log-probabilities that loss and divergence both need; None where they need none."""
        return None

    def divergence(
        self,
        outputs: Any,
        taught: Any,
        targets: Any,
        *,
        temperature: float,  # noqa: ARG002
        logarithms: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Return how far outputs are from a teacher's, the mean over the targets that count, but for a constant.

        Without a distance between outputs, it is what the loss is larger by.

        Args:
            outputs: What the network gave.
            taught: What the teacher gave.
            targets: The true ones, which say what counts; `Unlabelled` where all does.
            temperature: Divides both outputs before they are compared, where they are logits (`tempered`).
            logarithms: `logarithms(outputs, targets)`, where it is at hand already.
        """
        with torch.no_grad():
            before = self.mean(taught, targets)
        return self.mean(outputs, targets) - before

    def totals(self, outputs: Any, targets: Any) -> dict[str, float]:  # noqa: ARG002
        """Return the sum of each of `metrics` over the targets that count."""
        return {}

    def expect_labelled(self, targets: Any) -> None:
        """Refuse batches without targets where the true ones are asked for.

        Raises:
            ValueError: If there are none.
        """
        if targets is None or isinstance(targets, Unlabelled):
            raise ValueError(
                f"Expected targets for the loss {self.name}, got batches of inputs alone; give (inputs, targets), "
                f"{OF_INPUTS}, or use what needs no labels: weights, activations, cooperative, surgeon, reconstruct."
            )


def setting(criterion: Criterion, name: str, usual: Any) -> Any:
    """Return a setting of a criterion, also where it is a function with some arguments given (`functools.partial`)."""
    if isinstance(criterion, partial):
        return criterion.keywords.get(name, usual)
    return getattr(criterion, name, usual)


def is_one_of(criterion: Any, known: tuple[Any, ...]) -> bool:
    """Return whether the criterion is an instance of one of these classes, or one of these functions."""
    function = criterion.func if isinstance(criterion, partial) else criterion
    kinds = tuple(kind for kind in known if isinstance(kind, type))
    return isinstance(criterion, kinds) or any(function is kind for kind in known)


def single(loss: Any) -> Tensor:
    """Return a loss that is one number; of a dictionary, what it calls `loss`.

    Raises:
        ValueError: If it is none.
    """
    if isinstance(loss, Mapping) and isinstance(loss.get("loss"), Tensor):
        loss = loss["loss"]
    if not isinstance(loss, Tensor):
        parts = "; name the one: `lambda outputs, targets: loss(outputs, targets)[…]`" if parts_of(loss) else ""
        raise ValueError(f"Expected a criterion that gives one number as a tensor, got {described(loss)}{parts}.")
    if loss.numel() != 1:
        raise ValueError(
            f"Expected a criterion that gives one number, got {described(loss)}; give their mean: "
            "`lambda outputs, targets: loss(outputs, targets).mean()`."
        )
    return loss.reshape(())


def placed(targets: Any, device: torch.device) -> Any:
    """Return targets, however nested, on the device."""
    return mapped(lambda tensor: moved(tensor, device), targets)


def counting_all(targets: Unlabelled) -> Tensor:
    """Return that every example counts, (examples,)."""
    return torch.ones(targets.examples, dtype=torch.bool)


def first_taken(criterion: Criterion, *forms: tuple[Any, ...], blamed: int = 0) -> Any:
    """Return what a function of a user's gives for the first form of its arguments that it can take.

    Args:
        criterion: The function.
        forms: Its arguments.
        blamed: Which form tells its author most, where it takes none.

    Raises:
        Exception: What it raised at the form that is blamed, if it takes none.
    """
    errors: list[Exception] = []
    for form in forms:
        try:
            return criterion(*form)
        except Exception as error:  # whatever a user's code raises
            errors.append(error)
    raise errors[blamed]
