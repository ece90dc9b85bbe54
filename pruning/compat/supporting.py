"""Which models the older pruner can handle, and what makes each of them one that the library can measure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.compat.calling import Batch, Caller, Criterion, example_dim, judged, moved, output_of, untouched
from pruning.data.windows import IGNORED, Window
from pruning.discovery import discover
from pruning.models.adapted import adapt, own_module
from pruning.models.base import LanguageModel


@dataclass(frozen=True)
class Supported:
    """A model that signals, choices and surgery can handle, and what it reads.

    Attributes:
        model: Says where its neurons are; every layer has readers of its own.
        batches: (data, targets) as this model takes them.
        given_back: What is given to the caller of a smaller version of `model`.
    """

    model: Any
    batches: Any
    given_back: Callable[[Any], nn.Module]


def supported(
    model: nn.Module, batches: Sequence[Batch], criterion: Criterion, device: torch.device, *, classes: int | None
) -> Supported:
    """Return the model as the library can measure it.

    Args:
        model: One of the library's language models, or any other that `pruning.discover` can read.
        batches: (data, targets).
        criterion: (output, targets) → loss.
        device: Where the model computes.
        classes: How many classes the model tells apart, as a check; None for any.

    Raises:
        ValueError: If it cannot be measured, or tells another number of classes apart.
    """
    data, targets = batches[0]
    with untouched(model), torch.no_grad():
        output = Caller(model, device)(data)
    if classes is not None and output.shape[-1] != classes:
        raise ValueError(f"Expected a model of {classes} tokens (ntokens), got one of {output.shape[-1]}.")
    if isinstance(model, LanguageModel):
        _check_cross_entropy(output, targets.to(output.device), criterion)
        return Supported(model.decoupled(), [_window(batch, criterion) for batch in batches], lambda one: one)
    return _adapted(model, list(batches), criterion, device)


def _adapted(model: nn.Module, batches: list[Batch], criterion: Criterion, device: torch.device) -> Supported:
    """Return a model that the library did not make, read by `pruning.discover` and run as `pruning.adapt` says."""
    data, dim = moved(batches[0][0], device), example_dim(model, batches[0][0])
    init_hidden = getattr(model, "init_hidden", None)
    inputs = (data,) if init_hidden is None else (data, init_hidden(data.shape[dim]))
    found = discover(model, inputs)
    ready = adapt(found, data, criterion=criterion, call=partial(_call, dim), example_dim=dim)
    return Supported(ready, batches, lambda smaller: smaller.module)


def _call(dim: int, network: nn.Module, inputs: Any, state: Any) -> tuple[Any, Any]:
    """Return the output and the state of a network that `discover` read, run as `Caller` runs a model."""
    init_hidden = getattr(own_module(network), "init_hidden", None)
    if init_hidden is None:
        return output_of(network(inputs)), None
    found = network(inputs, init_hidden(inputs.shape[dim]) if state is None else state)
    return output_of(found), found[1] if isinstance(found, tuple | list) and len(found) > 1 else None


def _check_cross_entropy(output: Tensor, targets: Tensor, criterion: Criterion) -> None:
    """Refuse a criterion other than the cross-entropy, which is what the library's language models are measured by."""
    ignored = getattr(criterion, "ignore_index", IGNORED)
    own = F.cross_entropy(output.flatten(0, -2), targets.flatten(), ignore_index=ignored, reduction="none")
    got = judged(output, targets, criterion)
    known = (own.sum() / (targets != ignored).sum(), own.sum())
    if got.ndim or not any(torch.isclose(got, one.to(got), rtol=1e-4) for one in known):
        raise ValueError(
            f"Expected the cross-entropy as criterion of a language model, {known[0]:.4g} on the first batch, "
            f"got {got.mean():.4g}."
        )


def _window(batch: Batch, criterion: Criterion) -> Window:
    """Return a batch as the library's language models read it, (T, B) both."""
    tokens, targets = batch
    if targets.numel() != tokens.numel() or tokens.ndim != 2:
        raise ValueError(
            f"Expected data (T, B) with a target for each token, got {tuple(tokens.shape)} and {tuple(targets.shape)}."
        )
    ignored = getattr(criterion, "ignore_index", IGNORED)
    return Window(tokens, targets.reshape(tokens.shape).masked_fill(targets.reshape(tokens.shape) == ignored, IGNORED))
