"""A network made a model that can be run, judged and tapped: by what its author says of it, and what a run tells."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from pruning.core.hearing import front_door
from pruning.core.neurons import PrunableModule
from pruning.data.batches import Split
from pruning.discovery import Discovered, StateNames, discover
from pruning.models.adapted import Adapted
from pruning.models.asking import once_run
from pruning.models.calling import (
    Call,
    example_dim_of,
    expect_call,
    first_given,
    takes_state,
    usual_arguments,
    usual_call,
)
from pruning.models.losses import kind_of_loss
from pruning.models.metrics import metrics_of
from pruning.models.objectives import Criterion, Objective
from pruning.models.use import Use, one_loss


@front_door
def adapt(
    network: nn.Module,
    inputs: Any,
    *,
    loss: Criterion | Objective | None = None,
    metrics: Mapping[str, Any] | Sequence[Any] | str | None = None,
    call: Call | None = None,
    split: Split | None = None,
    example_dim: int | None = None,
    stream: bool = False,
    carried: StateNames | None = None,
    criterion: Criterion | None = None,
) -> Adapted:
    """Return a model that signals, fusion, repair, training and evaluation can handle, whoever wrote the network.

    A network is run as `network(inputs)`; inputs in a tuple or list become its arguments, in a dictionary its keyword
    arguments. One with `init_hidden` whose forward takes a state after the inputs is run as `network(inputs, state)`
    and returns (outputs, state): a recurrent language model, whose inputs are (T, B). `call` says it otherwise.
    One that keeps a state in attributes or buffers finds there, before each batch, what was there when its neurons were
    found (or what `init_hidden` makes for the batch, where forward takes no state); with `stream`, what the batch
    before left.

    Batches are (inputs, targets); dictionaries or dataclasses with `labels` or `targets`; tuples of as many inputs as
    the network was given here, and then targets; or inputs alone. `split` says it otherwise.

    >>> import torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3))
    >>> model = adapt(network, torch.ones(4, 2), loss=nn.CrossEntropyLoss())
    >>> model.widths(), model.multiply_adds(), model.module is network
    ((5,), 25, False)

    Args:
        network: Any module, in which `discover` then finds the neurons; or a `PrunableModule`: what it found before,
            or a model that says itself where its neurons are. It is left as it was.
        inputs: Inputs of one batch, with which neurons are discovered and sizes and latency measured; nothing is
            learnt from them.
        loss: (outputs, targets) → mean loss. Of PyTorch's: `CrossEntropyLoss` and `NLLLoss` judge classes (logits
            (…, classes), or (examples, classes, …), and class numbers; `ignore_index` marks targets that do not
            count), `BCEWithLogitsLoss` and `BCELoss` labels, `MSELoss`, `L1Loss`, `SmoothL1Loss` and `HuberLoss`
            numbers, `GaussianNLLLoss` numbers of which the network gives (mean, variance), `CTCLoss` sequences,
            `CosineEmbeddingLoss`, `MarginRankingLoss` and `TripletMarginLoss` two or three outputs; their functions
            likewise. Any other callable is one of classes where targets are whole numbers that the outputs have rows
            of logits for; else it is given what the network gives and the targets as they are, and its mean is one
            over the examples of a batch. An `Objective` says everything itself. None: the loss that the network gives
            itself, if its forward takes labels; else there is none, and what needs no labels can be done.
        metrics: What `loss_of` reports beside the loss's own: names (`accuracy`, `mean_squared_error`,
            `mean_absolute_error`, `cosine_similarity`), `pruning.Metric`, or objects as of `torchmetrics`.
        call: (network, inputs, state or None) → (outputs, state), if it is run in another way.
        split: Batch → (inputs, targets), if batches are of another form.
        example_dim: The dimension of inputs and of layers' outputs (…, width) that runs over the examples of a batch;
            1 for a network with `init_hidden` that is not `batch_first`, else 0.
        stream: Whether each batch goes on where the one before it ended, so that a state in the network's attributes is
            carried over.
        carried: Which arguments of forward are a state that the network gives back, where `discover` cannot tell; see
            there.
        criterion: The older name of `loss`.

    Raises:
        TypeError: For a `call` that is no function.
        ValueError: For a criterion that does not take the mean, or a network in which no neurons are found.
    """
    expect_call(call)
    loss = one_loss(network, loss, criterion)
    dim = example_dim_of(network, inputs) if example_dim is None else example_dim
    use = Use(
        inputs=inputs,
        criterion=loss,
        call=call or usual_call(network, inputs, dim),
        example_dim=dim,
        carries=takes_state(network, inputs),
        split=split,
        metrics=metrics_of(metrics),
        stream=stream,
    )
    if not isinstance(network, PrunableModule):
        network = _found(network, inputs, dim, call, carried)
        if not network.layers():
            raise ValueError(f"Expected a model with a layer that can be pruned, got none: {network.unprunable}.")
    model = Adapted(network, use)
    if loss is None or kind_of_loss(loss) is None:
        model.use = once_run(model, use)
    return model


def _found(network: nn.Module, inputs: Any, dim: int, call: Call | None, carried: StateNames | None) -> Discovered:
    """Return what is found in a network, by the inputs or, where it does not run on these, by what `call` gives it.

    A call may give forward one of two views after the other, or the steps of a sequence.
    """
    try:
        return discover(network, usual_arguments(network, inputs, dim), carried=carried)
    except (TypeError, ValueError) as error:
        if call is None:
            raise
        given = first_given(call, network, inputs)
        if given is None:
            raise type(error)(
                f"{str(error).removesuffix('.')}; where `call` gives forward something else than it is given itself, "
                "give `adapt` what `discover(network, …)` finds with that."
            ) from error
    return discover(network, given, carried=carried)
