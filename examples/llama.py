"""A small Llama of `transformers`, which imports torchvision, whose wheel may belong to another build of PyTorch."""

from importlib import import_module
from typing import Any

import torch
from torch import nn

_KEPT: list[torch.library.Library] = []


def llama(*, words: int, steps: int) -> nn.Module:
    """Return a network of 4 layers, 128 wide, with 4 heads and MLPs of 512, not yet trained.

    Args:
        words: Size of the vocabulary.
        steps: Most words of a text.
    """
    transformers = _transformers()
    config = transformers.LlamaConfig(
        vocab_size=words, hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=steps, tie_word_embeddings=True, use_cache=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def _transformers() -> Any:
    """Return the package; the operations of a torchvision that fits another PyTorch are declared, none is called."""
    try:
        import_module("torchvision")
    except ModuleNotFoundError:
        pass
    except RuntimeError:
        _KEPT.append(torch.library.Library("torchvision", "FRAGMENT"))
        for name in ("nms", "qnms"):
            _KEPT[-1].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return import_module("transformers")
