"""What tells a batch's inputs from its targets: the network's arguments, and what its loss reads."""

import math
from collections.abc import Mapping
from dataclasses import replace
from inspect import Parameter
from typing import Any

from torch import Tensor, nn

from pruning.core.arguments import PLACED, forward_places, parameters_of
from pruning.core.nested import parts_of
from pruning.data.batches import Form, Pairs, Split, taken_apart
from pruning.discovery.feeding import NAMES
from pruning.models.alignments import Alignments
from pruning.models.amounts import Amounts, Gaussian, Labels, Squared
from pruning.models.calling import arguments_of, forward_names, own_module
from pruning.models.classes import Classes
from pruning.models.examples import PAIRED, TRIPLE, own_loss
from pruning.models.losses import kind_of_loss
from pruning.models.objectives import is_one_of

JUDGING = (Classes, Labels, Squared, Amounts, Gaussian, Alignments)
"""What PyTorch's losses judge that need targets."""


def form_of(network: nn.Module, inputs: Any, loss: Any, example_dim: int) -> Form:
    """Return how the batches of a network with such inputs and loss are taken apart."""
    names, others = forward_names(network)
    arguments = arguments_of(network, inputs)
    given = 1 if isinstance(arguments, Mapping) else len(arguments)
    together = 3 if is_one_of(loss, TRIPLE) else 2 if is_one_of(loss, PAIRED) else 1
    parameters = parameters_of(own_module(network))
    kinds = (*PLACED, Parameter.KEYWORD_ONLY)
    like = (inputs.dtype, inputs.ndim) if isinstance(inputs, Tensor) else None
    return Form(
        arguments=given,
        names=names,
        others=others,
        needed=frozenset(each.name for each in parameters if each.kind in kinds and each.default is Parameter.empty),
        example_dim=example_dim,
        keeps_targets=loss is own_loss,
        together=together if given == 1 else 1,
        like=like,
        judged=kind_of_loss(loss) in JUDGING,
    )


def called_inputs(network: nn.Module, data: Any, split: Split | None, known: Any, loss: Any, dim: int = 0) -> Any:
    """Return the inputs of the first batch, which a call of its author's own is given.

    They need not be what forward takes: a call may draw, take gradients, or go through the steps of a sequence. What
    forward was given (`known`) says how many parts of a tuple they are, unless the last part is of another kind.
    """
    if split is not None:
        return first_inputs(network, data, split)
    first = next(iter(Pairs(data, lambda batch: (batch, None))), None)
    if first is None:
        raise ValueError("Expected at least one batch, got none.")
    form, batch = form_of(network, known, loss, dim), first.inputs
    places = list(batch) if isinstance(batch, list | tuple) and not hasattr(batch, "_fields") else []
    last = known[-1] if isinstance(known, tuple) else None
    if isinstance(last, Tensor) and len(places) == form.arguments and not _alike(places[-1], last):
        form = replace(form, arguments=form.arguments - 1)
    return form.pair(batch)[0]


def _alike(part: Any, other: Tensor) -> bool:
    return isinstance(part, Tensor) and (part.dtype, part.ndim) == (other.dtype, other.ndim)


def first_inputs(network: nn.Module, data: Any, split: Split | None = None) -> Any:
    """Return the inputs of the first batch, as far as the network's forward tells which these are.

    They are as many parts of a tuple as forward needs, and those that it can take as well, but for the last part.

    Raises:
        ValueError: If there is no batch.
    """
    first = next(iter(Pairs(data, lambda batch: (batch, None))), None)
    if first is None:
        raise ValueError("Expected at least one batch, got none.")
    batch = first.inputs
    if split is not None:
        return taken_apart(split, batch)[0]
    parameters = parameters_of(own_module(network))
    without = [each.name for each in parameters if each.kind in PLACED and each.default is Parameter.empty]
    makes = callable(getattr(own_module(network), "init_hidden", None)) and without
    needed = len(without) - bool(makes and NAMES.fullmatch(without[-1].lower()))  # a state that is made is in no batch
    most = forward_places(own_module(network))
    parts = parts_of(batch) if isinstance(batch, list | tuple) else None
    count = max(needed, min(math.inf if most is None else most, len(parts) - 1 if parts else 1), 1)
    names, others = forward_names(network)
    return Form(arguments=int(count), names=names, others=others).pair(batch)[0]
