"""The model families by name; a new family is one module here and one line in `FAMILIES`."""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from pruning.layers import named_tensors
from pruning.models import gru, lstm, mixed, rnn, snn
from pruning.models.base import LanguageModel

FAMILIES: dict[str, Callable[..., LanguageModel]] = {
    "lstm": lstm.build,
    "gru": gru.build,
    "rnn": rnn.build,
    "snn": snn.build,
    "mixed": mixed.build,
}


def settings(family: str) -> tuple[str, ...]:
    """Return the names of the settings that `build` wants for a family.

    Raises:
        ValueError: For a family that is not in `FAMILIES`.
    """
    return tuple(signature(_known(family)).parameters)


def build(family: str, **config: Any) -> LanguageModel:
    """Return a new model of `family` from the family's own configuration.

    Raises:
        ValueError: For a family that is not in `FAMILIES`.
    """
    return _known(family)(**config)


def _known(family: str) -> Callable[..., LanguageModel]:
    """Return what builds a family's models, or refuse a family that is not known."""
    if family not in FAMILIES:
        raise ValueError(f"Unknown family {family!r}; known: {sorted(FAMILIES)}.")
    return FAMILIES[family]


def rebuild(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LanguageModel:
    """Return the model that `describe` took apart.

    Raises:
        ValueError: If the tensors are not those of the configuration.
    """
    with torch.random.fork_rng(devices=[]):  # the initial weights are replaced at once
        model = build(**config)
    model.to(next((tensor.dtype for tensor in tensors.values()), None))
    try:
        model.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise ValueError(f"Expected the weights of {dict(config)}, got others: {error}.") from error
    return model


def describe(model: LanguageModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the model as (configuration, tensors)."""
    family = next(name for name, make in FAMILIES.items() if make.__module__ == type(model).__module__)
    return {"family": family, **model.to_config()}, named_tensors(model)
