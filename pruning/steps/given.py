"""What users hand to the front door, a network in any state of preparation and batches, as a model and pairs."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pruning.core.arguments import parameters_of
from pruning.core.devices import seeded
from pruning.core.holding import holding
from pruning.core.modes import evaluating, untouched
from pruning.core.nested import mapped, tensors_in
from pruning.core.neurons import PrunableModule
from pruning.core.words import described
from pruning.data.batches import Pair, Pairs
from pruning.discovery import discover
from pruning.discovery.discovered import Discovered
from pruning.discovery.feeding import NAMES
from pruning.discovery.running import copied
from pruning.models.adapted import Adapted
from pruning.models.adapting import adapt
from pruning.models.base import Measurable
from pruning.models.batches import called_inputs, first_inputs
from pruning.models.calling import example_dim_of, first_state, own_module, takes_state, usual_arguments
from pruning.steps.paths import found_by_all_paths

KEPT = 2**28
"""Bytes of batches that are kept, so that a `DataLoader`'s workers need not be started again."""


def measurable(network: Any, data: Any, loss: Any, **how: Any) -> Measurable:
    """Return a model that knows its loss.

    Args:
        network: A module, what `discover` found in it, or a model that was adapted before, whose loss stays unless
            there is another.
        data: Batches; the first one says what the network is given, where nothing else does.
        loss: See `pruning.adapt`.
        how: Further arguments of `adapt`, those that are None left out.

    Raises:
        TypeError: If the network is none.
    """
    given = {name: value for name, value in how.items() if value is not None}
    if isinstance(network, Adapted):
        if loss is None and not given:
            return network
        use = network.use
        names = ("call", "split", "example_dim", "metrics", "stream")
        kept = {name: getattr(use, name) for name in names}
        return adapt(network.network, use.inputs, loss=use.criterion if loss is None else loss, **{**kept, **given})
    if isinstance(network, Measurable):
        return network
    if not isinstance(network, nn.Module):
        raise TypeError(f"Expected a network, or what `pruning.discover` found in one, got {described(network)}.")
    if callable(given.get("call")) and "split" not in given:
        model = _of_views(network, data, loss, given)
        if model is not None:
            return model
    inputs = _known_inputs(network)
    if inputs is None:
        inputs = first_inputs(network, data, given.get("split"))
    elif callable(given.get("call")):
        inputs = called_inputs(network, data, given.get("split"), inputs, loss)
    return adapt(network, inputs, loss=loss, **given)


def _of_views(network: nn.Module, data: Any, loss: Any, given: dict[str, Any]) -> Measurable | None:
    """Return a model that is called with whole batches, where all their parts are views; None where they are not.

    That is so where all parts are of one kind, and what a user's call makes of all of them the loss judges alone.
    """
    batch = next(iter(Pairs(data, lambda batch: (batch, None))), Pair(None, None)).inputs
    parts = list(batch) if isinstance(batch, list | tuple) and not hasattr(batch, "_fields") else []
    kinds = {(part.dtype, part.shape) if isinstance(part, Tensor) else None for part in parts}
    if loss is None or len(parts) < 2 or len(kinds) > 1 or None in kinds:
        return None
    own, whole = own_module(network), (lambda batch: (tuple(batch), None))
    twin = copied(own).eval()
    try:
        with seeded(twin, 0), torch.no_grad():
            given["call"](twin, mapped(Tensor.clone, tuple(batch)), None)
        model = adapt(network, tuple(batch), loss=loss, **given, split=whole)
        pair = model.pair_of(batch)
        with evaluating(model), untouched(model), holding(model), torch.no_grad():
            model.judged(model.predicted(pair.inputs)[0], pair.targets)
    except Exception:  # whatever a user's code raises that is given all, or no targets
        return None
    return model


def prunable(network: Any, data: Any, loss: Any, **how: Any) -> Measurable:
    """Return what `measurable` does, its neurons found by other batches too, where the first leaves parts out."""
    model = measurable(network, data, loss, **how)
    if isinstance(network, PrunableModule) or not isinstance(model, Adapted):
        return model
    found = found_by_all_paths(network, model, data)
    return model if found is None else Adapted(found, model.use)


def _same(network: nn.Module, other: nn.Module) -> bool:
    """Return whether two networks have the same parameters."""
    ours, theirs = (dict(each.named_parameters(remove_duplicate=False)) for each in (network, other))
    return ours.keys() == theirs.keys() and all(
        own.shape == theirs[name].shape and bool((own == theirs[name]).all()) for name, own in ours.items()
    )


def found_again(network: nn.Module, model: Adapted) -> PrunableModule:
    """Return what is found in a network with the inputs, and what is known of its states, of one that was measured."""
    origin = model.network.origin if isinstance(model.network, Discovered) else None
    if origin is None:
        return discover(network, usual_arguments(network, model.use.inputs, model.example_dim))
    places, named = origin.inputs[0]
    return discover(network, dict(named) if named else places, carried=origin.carried)


def _known_inputs(network: nn.Module) -> Any:
    """Return what the network's neurons were found with, but for a state that it makes itself; None if unknown."""
    origin = network.origin if isinstance(network, Discovered) else None
    if origin is None:
        return None
    places, named = origin.inputs[0]
    if named:
        return dict(named)
    if len(places) > 1 and takes_state(network, places[:-1]) and _is_made(network, places):
        places = places[:-1]
    return places[0] if len(places) == 1 else tuple(places)


def _is_made(network: nn.Module, places: Sequence[Any]) -> bool:
    """Return whether the last argument is a state that the network makes, and no lengths, say, which it reads too."""
    if NAMES.fullmatch(parameters_of(own_module(network))[len(places) - 1].name.lower()):
        return True
    try:
        made = first_state(network, tuple(places[:-1]), example_dim_of(network, places[:-1]))
    except ValueError:
        return False
    one, other = ([tensor.shape for tensor in tensors_in(state)] for state in (made, places[-1]))
    return one == other


def read_once(data: Any, most: int, seed: int) -> Any:
    """Return data that can be read again: what ends after once is read as far as it is used.

    So is a `DataLoader` with workers, which would start them anew at every reading, in the order that each reading has
    by the seed; one whose batches take more than `KEPT` bytes stays as it is.

    Raises:
        TypeError: If `most` is no whole number.
        ValueError: If it is below 1, or what ends after once has ended.
    """
    if not isinstance(most, Integral) or isinstance(most, bool):
        raise TypeError(f"Expected a whole number of batches, such as 50, got {most!r}.")
    if most < 1:
        raise ValueError(f"Expected at least 1 batch to be asked for, got batches={most}.")
    if isinstance(data, Iterator):
        if not (kept := list(islice(data, most))):
            raise ValueError(
                f"Expected at least one batch, got a {type(data).__name__} that has ended or gives none; give "
                "`list(…)` of it, which can be read again."
            )
        return kept
    if not isinstance(data, DataLoader) or not data.num_workers:
        return data
    batches, taken = [], 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for batch in islice(data, most):
            taken += (
                sum(tensor.nbytes for tensor in tensors_in(batch)) or KEPT + 1
            )  # of an object of a class of its own
            if taken > KEPT:
                return data
            batches.append(batch)
    return batches


def limited(model: Measurable, data: Any, most: int, seed: int) -> Any:
    """Return at most so many batches as pairs, always in the same order; a language model's windows as they are."""
    data = read_once(data, most, seed)
    if isinstance(model, Adapted):
        pairs = model.pairs(data)
        return Pairs(pairs.batches, pairs.split, most, seed) if isinstance(pairs, Pairs) else pairs
    return data


def like(model: Measurable, network: Any) -> Measurable:
    """Return a model of another network, or of the same with other weights, that is used as this one is.

    Raises:
        ValueError: If it has other layers.
    """
    if isinstance(network, Adapted):
        network = network.network
    if isinstance(model, Adapted) and isinstance(network, nn.Module) and not isinstance(network, PrunableModule):
        network = model.network if _same(network, model.module) else found_again(network, model)
    if not isinstance(model, Adapted) or not isinstance(network, PrunableModule) or network is model.network:
        return model
    other = Adapted(network, replace(model.use))
    ours, theirs = ([(layer.name, layer.width) for layer in each.layers()] for each in (other, model))
    if ours != theirs:
        raise ValueError(
            f"Expected the network whose importance was measured, with the layers {theirs}, got one with {ours}; "
            "measure its own importance."
        )
    return other
