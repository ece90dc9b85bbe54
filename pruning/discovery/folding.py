"""Parameters that are computed from others at each call (a weight norm, a mask) made parameters again."""

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def fold(network: nn.Module) -> dict[str, str]:
    """Let each parameter that something computes have the values that it computes now; return what that was, by name.

    Parametrizations (weight norm, spectral norm, orthogonal maps, a user's own), their older forms, and pruning masks.
    """
    folded: dict[str, str] = {}
    for path, module in list(network.named_modules()):
        if parametrize.is_parametrized(module):
            folded.update({f"{path}.{name}".lstrip("."): what for name, what in _computed(module).items()})
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, prune.BasePruningMethod):
                name, what = hook._tensor_name, "a pruning mask"
                prune.remove(module, name)  # type: ignore[no-untyped-call]
            elif isinstance(hook, (WeightNorm, SpectralNorm)):
                name, what = hook.name, type(hook).__name__
                with torch.no_grad():
                    hook.remove(module)
                del module._forward_pre_hooks[key]
                if isinstance(hook, SpectralNorm):
                    _forget_states(module, hook)
            else:
                continue
            folded[f"{path}.{name}".lstrip(".")] = what
    return folded


def _computed(module: nn.Module) -> dict[str, str]:
    """Let a module's parametrized parameters be plain ones; return what computed them.

    PyTorch's own `remove_parametrizations` would take them from every copy of the module, the user's among them.
    """
    parts: Any = module._modules.pop("parametrizations")
    found = {}
    for name, maps in parts.items():
        with torch.no_grad():
            value = maps()
        found[name] = " of ".join(reversed([type(part).__name__.strip("_") for part in maps]))
        module.__dict__.pop(name, None)
        held = value.detach().clone(), any(original.requires_grad for original in maps.parameters())
        module._parameters[name] = nn.Parameter(held[0], requires_grad=held[1])
    module.__class__ = type(module).__bases__[0]
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()
    return found


def _forget_states(module: nn.Module, hook: SpectralNorm) -> None:
    """Remove the hooks by which an older spectral norm saves and loads its vectors."""
    for hooks in (module._state_dict_hooks, module._load_state_dict_pre_hooks):
        for key, own in list(hooks.items()):
            if getattr(own, "fn", getattr(getattr(own, "hook", None), "fn", None)) is hook:
                del hooks[key]
