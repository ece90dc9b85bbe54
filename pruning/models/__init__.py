"""The model families by name; a new family is one module here and one line in `FAMILIES`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from pruning.core import options
from pruning.core.devices import without_values
from pruning.core.neurons import named_tensors
from pruning.models.base import LanguageModel
from pruning.models.gru import GRULanguageModel
from pruning.models.lstm import LSTMLanguageModel
from pruning.models.mixed import MixedConfig, MixedLanguageModel
from pruning.models.recurrent import RecurrentConfig
from pruning.models.rnn import RNNConfig, RNNLanguageModel
from pruning.models.snn import SNNLanguageModel, SpikingConfig


@dataclass(frozen=True)
class Family:
    """One kind of model.

    Attributes:
        config: The dataclass that says what its models are made of.
        model: Makes a model from one of these; its initial weights are drawn from the current random state.
    """

    config: type[Any]
    model: Callable[[Any], LanguageModel]


FAMILIES: dict[str, Family] = {
    "lstm": Family(RecurrentConfig, LSTMLanguageModel),
    "gru": Family(RecurrentConfig, GRULanguageModel),
    "rnn": Family(RNNConfig, RNNLanguageModel),
    "snn": Family(SpikingConfig, SNNLanguageModel),
    "mixed": Family(MixedConfig, MixedLanguageModel),
}


FROZEN = "frozen"
"""In a configuration: the names of the parameters that do not learn."""


def settings(family: str) -> tuple[str, ...]:
    """Return the names of the settings that `build` wants for a family.

    Raises:
        ValueError: For a family that is not in `FAMILIES`.
    """
    return tuple(field.name for field in fields(_known(family).config))


def build(family: str, **config: Any) -> LanguageModel:
    """Return a new model of `family` from the family's own configuration, in which a list may stand for a tuple.

    >>> settings = {"vocabulary": 9, "embedding": 4, "decoder": "untied", "dropout": 0.0}
    >>> [(layer.name, layer.width) for layer in build("lstm", widths=[6, 5], **settings).layers()]
    [('lstm.0', 6), ('lstm.1', 5)]

    Raises:
        ValueError: For a family that is not in `FAMILIES`.
    """
    found = _known(family)
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
    return found.model(found.config(**plain))


def _known(family: str) -> Family:
    """Return a family, or refuse one that is not known."""
    options.expect_known("family", sorted(FAMILIES), family)
    return FAMILIES[family]


def rebuild(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LanguageModel:
    """Return the model that `describe` took apart.

    Raises:
        ValueError: If the tensors are not those of the configuration, or what is frozen is no parameter.
    """
    known, frozen = {name: value for name, value in config.items() if name != FROZEN}, config.get(FROZEN, ())
    with without_values():  # so that a configuration is refused before it fills the memory
        wanted = {name: tensor.shape for name, tensor in build(**known).state_dict().items()}
    for name, tensor in sorted(tensors.items()):
        shape, got = tuple(wanted.get(name, tensor.shape)), tuple(tensor.shape)
        if shape != got or not tensor.is_floating_point():
            raise ValueError(
                f"Expected the weights of {dict(config)}, got others: "
                f"{name} holds {tensor.dtype} of shape {got} in place of {shape}."
            )
    with torch.random.fork_rng(devices=[]):  # the initial weights are replaced at once
        model = build(**known)
    model.to(next((tensor.dtype for tensor in tensors.values()), None))
    try:
        model.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise ValueError(f"Expected the weights of {dict(config)}, got others: {error}.") from error
    parameters = dict(model.named_parameters())
    options.expect_known("parameter", parameters, *frozen, where=" among the frozen ones")
    for name in frozen:
        parameters[name].requires_grad_(False)
    return model


def describe(model: LanguageModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the model as (configuration, tensors); the configuration also names what is `frozen`, if anything is."""
    family = next(name for name, known in FAMILIES.items() if known.model is type(model))
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    return {"family": family, **model.to_config(), **({FROZEN: frozen} if frozen else {})}, named_tensors(model)
