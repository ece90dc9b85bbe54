"""What Torch-Pruning does with a network: half of its channels removed by magnitude, and what is left."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.answers import tensors_of
from pruning.discovery.running import copied

HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
PROJECTIONS = ("qkv", "query", "key", "value", "q_proj", "k_proj", "v_proj", "q", "k", "v", "q_lin", "k_lin", "v_lin")
"""What modules of attention call the linear layers whose rows are heads."""
TOGETHER = ("layernorm", "rmsnorm", "groupnorm", "instancenorm", "layer_norm", "rms_norm")
"""In the names of classes that normalise over what is removed."""
AGREEMENT = 1e-3


def torch_pruned(
    network: nn.Module, inputs: Any, roots: Sequence[str], answer: Callable[[nn.Module], list[Tensor]]
) -> str:
    """Return in a few words what became of it.

    Args:
        network: It is left as it was.
        inputs: What it is called with, a tuple or a mapping.
        roots: Modules that give the answer, which Torch-Pruning is told to leave.
        answer: What a network gives, as tensors.
    """
    try:
        import torch_pruning
    except ImportError:
        return ""
    smaller, masked = copied(network).requires_grad_(True), copied(network)
    before = sum(parameter.numel() for parameter in smaller.parameters())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruner = torch_pruning.pruner.MagnitudePruner(
                smaller,
                dict(inputs) if isinstance(inputs, Mapping) else inputs,
                torch_pruning.importance.MagnitudeImportance(p=2),
                pruning_ratio=0.5,
                ignored_layers=[smaller.get_submodule(path) for path in roots],
                num_heads=_heads(smaller),
                output_transform=lambda given: answer_of(given),
            )
            comparable = _cut(pruner, smaller, masked)
    except Exception as error:  # whatever it or the network raises
        return f"refuses: {type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:160]}"
    left = sum(parameter.numel() for parameter in smaller.parameters())
    if left == before:
        return "cuts nothing"
    cut = f"{left / before - 1:+.0%}".replace("-", "−")
    _agree(smaller)
    dense = answer(network)
    try:
        found = answer(smaller)
    except Exception as error:  # its code counts on a width
        return f"breaks: {cut}, then {type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:160]}"
    if [part.shape for part in found] != [part.shape for part in dense]:
        return f"breaks: {cut}, and the answer has another shape"
    if not comparable:
        return f"runs, {cut}"
    expected = answer(masked)
    far = max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-9)) for a, b in zip(found, expected, strict=True))
    return f"works, {cut}" if far < AGREEMENT else f"differs: {cut}, {far:.0e} apart from the channels masked"


def answer_of(given: Any) -> Any:
    """Return tensors that carry gradients, from which Torch-Pruning goes back."""
    return [part for part in tensors_of(given) if part.grad_fn is not None]


def _cut(pruner: Any, smaller: nn.Module, masked: nn.Module) -> bool:
    """Cut one group after another, and zero in the other network what reads it; return whether that can be compared."""
    names = {module: name for name, module in smaller.named_modules()}
    bare = (module for module in smaller.modules() if not any(True for _ in module.parameters()))
    comparable = not any("norm" in type(module).__name__.lower() for module in bare)  # these are in no group
    left: dict[str, Tensor] = {}
    for group in pruner.step(interactive=True):
        for dependency, places in group:
            module, takes = dependency.target.module, dependency.handler.__name__
            if module not in names:
                comparable = comparable and not isinstance(module, nn.Parameter)
                continue
            kind = type(module).__name__.lower()
            if any(word in kind for word in TOGETHER) and not isinstance(module, nn.modules.batchnorm._BatchNorm):
                comparable = False
            if takes.endswith("in_channels") and isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
                if getattr(module, "groups", 1) > 1:
                    comparable = False
                    continue
                other, dim = masked.get_submodule(names[module]).weight, int(not getattr(module, "transposed", False))
                known = left.setdefault(names[module], torch.arange(other.shape[dim]))
                stays = torch.ones(len(known), dtype=torch.bool)
                stays[torch.as_tensor(places)] = False
                other.data.index_fill_(dim, known[~stays], 0.0)
                left[names[module]] = known[stays]
        group.prune()
    return comparable


def _heads(network: nn.Module) -> dict[nn.Module, int]:
    """Return for the linear layers of attention how many heads they have, as its documentation asks for."""
    found = {}
    for module in network.modules():
        number = next((getattr(module, name) for name in HEADS if isinstance(getattr(module, name, None), int)), None)
        for name in PROJECTIONS:
            child = getattr(module, name, None)
            if number and isinstance(child, nn.Linear):
                found[child] = number
    return found


def _agree(network: nn.Module) -> None:
    """Let modules of attention know the width of a head, as its documentation does after a cut."""
    for module in network.modules():
        number = next((getattr(module, name) for name in HEADS if isinstance(getattr(module, name, None), int)), None)
        if isinstance(getattr(module, "conv_proj", None), nn.Conv2d) and hasattr(module, "hidden_dim"):
            module.hidden_dim = module.conv_proj.out_channels  # as its tests do for torchvision's ViT
        children = (getattr(module, name, None) for name in PROJECTIONS)
        rows = next((child.out_features for child in children if isinstance(child, nn.Linear)), None)
        if not number or rows is None:
            continue
        rows = rows // 3 if isinstance(getattr(module, "qkv", None), nn.Linear) else rows
        for name, size in (
            ("head_dim", rows // number),
            ("attention_head_size", rows // number),
            ("all_head_size", rows),
            ("attn_dim", rows),
        ):
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, size)
