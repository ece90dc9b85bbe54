"""What a user's own loss is called with, where it does not take outputs and targets as two arguments."""

from collections.abc import Mapping, Sequence
from functools import partial
from inspect import Parameter, signature
from typing import Any

from torch import nn

from pruning.core.arguments import PLACED
from pruning.core.words import described
from pruning.data.batches import TARGETS

TRUE = (*TARGETS, "y_true", "true", "truth", "gt", "ground_truth", "tgt")
"""What a loss calls its argument that is the targets."""


def places_of(criterion: Any) -> list[Parameter] | None:
    """Return the arguments that a criterion takes by place; None where it takes any number, or that is not known.

    >>> [place.name for place in places_of(nn.MSELoss())]
    ['input', 'target']
    """
    inner = criterion
    while isinstance(inner, partial) and not inner.args and not inner.keywords:  # what only changes how it is called
        inner = inner.func
    try:
        taken = list(signature(inner.forward if isinstance(inner, nn.Module) else inner).parameters.values())
    except (TypeError, ValueError):
        return None
    if any(each.kind is Parameter.VAR_POSITIONAL for each in taken):
        return None
    return [each for each in taken if each.kind in PLACED]


def takes(criterion: Any, count: int) -> bool:
    """Return whether a criterion can be called with so many arguments by place; one that does not tell can.

    >>> takes(nn.MSELoss(), 2), takes(nn.MSELoss(), 1)
    (True, False)
    """
    places = places_of(criterion)
    if places is None:
        return True
    return sum(each.default is Parameter.empty for each in places) <= count <= len(places)


def forms_of(criterion: Any, outputs: Any, targets: Any) -> list[tuple[Any, ...]]:
    """Return the arguments that a loss may be called with, the usual ones first, as far as it can take as many.

    - (outputs, targets), as every loss of PyTorch's is;
    - (outputs), of one that takes a single argument;
    - (outputs, *targets), where the targets are a tuple or list: durations and events, labels and weights;
    - (*outputs), of several outputs where there are no targets;
    - (*outputs, targets), where the loss calls that argument a target (`TRUE`), at whichever place it does.

    >>> import torch
    >>> def contrastive(one, other, label): ...
    >>> [len(form) for form in forms_of(contrastive, (torch.ones(1), torch.ones(1)), torch.ones(1))]
    [3]

    Args:
        criterion: The loss.
        outputs: What the network gave.
        targets: Of the batch; None where there are none.
    """
    places = places_of(criterion)
    if places is None:
        return [(outputs, targets)]
    several = list(outputs) if _follow(outputs) else None
    forms: list[tuple[Any, ...]] = [(outputs, targets)] if takes(criterion, 2) else []
    if len(places) == 1:
        forms.append((outputs,))
    if _follow(targets) and takes(criterion, 1 + len(targets)):
        forms.append((outputs, *targets))
    if several and targets is None and takes(criterion, len(several)):
        forms.append(tuple(several))
    if several and targets is not None and len(several) > 1 and takes(criterion, len(several) + 1):
        found = [place for place, each in enumerate(places[: len(several) + 1]) if _is_target(each.name)]
        if len(found) == 1:
            forms.append((*several[: found[0]], targets, *several[found[0] :]))
    return forms


def refusal(criterion: Any, outputs: Any, targets: Any) -> str:
    """Return the sentence for a loss that cannot be called with what there is."""
    name = getattr(criterion, "__name__", type(criterion).__name__)
    names = ", ".join(each.name for each in places_of(criterion) or [])
    return (
        f"Expected a loss of (outputs, targets), got {name}({names}), outputs of {described(outputs)} and targets of "
        f"{described(targets)}; say what is what: `lambda outputs, targets: {name}(…)`."
    )


def _follow(value: Any) -> bool:
    """Return whether these are several, one after the other."""
    return isinstance(value, Sequence) and not isinstance(value, str | Mapping) and not hasattr(value, "batch_sizes")


def _is_target(name: str) -> bool:
    return name in TRUE or name.startswith(("target", "label")) or name.endswith(("target", "targets", "label"))
