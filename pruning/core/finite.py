"""Weights that are numbers: a model that holds others is refused before anything is measured of it."""

import torch
from torch import Tensor, nn

from pruning.core.neurons import named_tensors


def not_finite(model: nn.Module) -> str:
    """Return what of the weights that learn is no finite number, in words; empty if all is."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not parameter.is_meta and (places := ~parameter.isfinite()).any():
            return f"{int(places.sum())} of the {places.numel()} numbers in {name}"
    return ""


def expect_finite(model: nn.Module) -> None:
    """Refuse a model that holds numbers that are none, for most of what is measured of it would hide them.

    Buffers may hold infinities, as masks of attention do.

    Raises:
        FloatingPointError: If a parameter is not finite everywhere, or a buffer is NaN somewhere.
    """
    wrong = {name: ~parameter.isfinite() for name, parameter in named_tensors(model).items()}
    wrong |= {name: buffer.isnan() for name, buffer in model.named_buffers()}
    by_device: dict[torch.device, list[Tensor]] = {}
    for places in wrong.values():
        by_device.setdefault(places.device, []).append(places.any())
    if not any(torch.stack(flags).any() for device, flags in by_device.items() if device.type != "meta"):
        return  # one answer from each device, for each is waited for
    for name, places in wrong.items():
        if not places.is_meta and places.any():
            raise FloatingPointError(
                f"Expected finite weights, got {int(places.sum())} of {places.numel()} in {name} that are NaN or "
                "infinite; train the model anew at a lower learning_rate or clip, or load an earlier one."
            )
