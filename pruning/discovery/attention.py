"""Multi-head attention whose heads may be fewer than the width of what it reads asks for."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.core.devices import without_values


class Attention(nn.MultiheadAttention):
    """What `nn.MultiheadAttention` computes, from parameters of the same names, with any number of heads.

    PyTorch's own wants as many dimensions in all heads as its input has, so no head can be removed from it.

    Attributes:
        num_heads: How many heads are left.
        head_dim: Dimensions of each; of a single head's values some may have gone.
    """

    _qkv_same_embed_dim: bool

    @classmethod
    def of(cls, like: nn.MultiheadAttention) -> "Attention":
        """Return a module with the parameters of `like`."""
        with without_values():
            found = cls(
                like.embed_dim,
                like.num_heads,
                dropout=like.dropout,
                bias=like.in_proj_bias is not None,
                batch_first=like.batch_first,
                kdim=like.kdim,
                vdim=like.vdim,
            )
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            setattr(found, name, getattr(like, name))
        found.in_proj_bias = like.in_proj_bias
        found.out_proj = like.out_proj
        found._qkv_same_embed_dim = False  # so that no encoder takes its short cut around `forward`
        return found.train(like.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attended values and, where `need_weights`, the weights; see `nn.MultiheadAttention`."""
        if query.ndim == 2:
            return self._alone(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        if not self.batch_first:
            query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
        queries, keys, values = self._heads(query, key, value)
        mask = _merged(attn_mask, key_padding_mask, queries)
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            scores = queries @ keys.transpose(2, 3) * self.head_dim**-0.5
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            found = weights @ values
        else:
            weights = None
            found = F.scaled_dot_product_attention(queries, keys, values, mask, dropout)
        outputs = self.out_proj(found.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        return (outputs if self.batch_first else outputs.transpose(0, 1)), weights

    def _heads(self, *inputs: Tensor) -> list[Tensor]:
        """Return queries, keys and values, each (B, heads, T, head_dim); a single head's values may have fewer."""
        apart = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weights = apart if self.in_proj_weight is None else self._apart(self.in_proj_weight)
        biases: tuple[Tensor | None, ...] = (
            (None, None, None) if self.in_proj_bias is None else self._apart(self.in_proj_bias)
        )
        sizes = (-1, self.head_dim) if self.num_heads > 1 else (1, -1)
        return [
            F.linear(tensor, weight, bias).unflatten(-1, sizes).transpose(1, 2)  # type: ignore[no-untyped-call]
            for tensor, weight, bias in zip(inputs, weights, biases, strict=True)
        ]

    def _apart(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return the rows of queries, keys and values, of which those of a single head may be fewer."""
        values = self.out_proj.weight.shape[1]
        return rows.chunk(3) if self.num_heads > 1 else rows.split_with_sizes([self.head_dim, self.head_dim, values])

    def _alone(
        self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None, *settings: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return what `forward` does for one sequence without a batch."""
        batch = 0 if self.batch_first else 1
        inputs = (tensor.unsqueeze(batch) for tensor in (query, key, value))
        outputs, weights = self(*inputs, padding if padding is None else padding[None], *settings)
        return outputs.squeeze(batch), weights if weights is None else weights[0]


def is_attention(module: nn.Module) -> bool:
    """Return whether the module is one that `Attention` can stand for: of PyTorch's own class, without extras."""
    return type(module) is nn.MultiheadAttention and module.bias_k is None and not module.add_zero_attn


def _merged(mask: Tensor | None, padding: Tensor | None, queries: Tensor) -> Tensor | None:
    """Return what is added to the scores (B, heads, T, S), of a mask (T, S) or (B·heads, T, S) and a padding (B, S)."""
    found = None if mask is None else _added(mask, queries)
    if found is not None and found.ndim == 3:
        found = found.unflatten(0, (len(queries), -1))  # type: ignore[no-untyped-call]
    if padding is None:
        return found
    hidden = _added(padding, queries)[:, None, None, :]
    return hidden if found is None else found + hidden


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """Return the mask as numbers to be added: −∞ where a boolean one is true."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
