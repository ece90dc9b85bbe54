"""How each operation passes neurons on: what it computes them from, who reads them, what binds them.

What only moves elements (`view`, `cat`, `split`, …) is executed on the numbers of places as it stands; what combines
elements links them; what reads them linearly links them with its columns; what mixes a whole width is the reason why
its neurons cannot go. A new operation is a function in the file of its kind and its line in `RULES`.
"""

import itertools
from dataclasses import replace
from typing import Any

from pruning.discovery.convolutions import convolution, transposed_convolution
from pruning.discovery.elementwise import copy, elementwise, glu, prelu
from pruning.discovery.moves import chosen, index, move, paired, put, same, strided
from pruning.discovery.pairs import distances
from pruning.discovery.products import addmm, attention, bilinear, grouped, linear, matmul
from pruning.discovery.propagation import Call, Rule
from pruning.discovery.recurrences import GATES, recurrent, recurrent_step
from pruning.discovery.reductions import (
    batch_norm,
    distance,
    embedding,
    group_norm,
    layer_norm,
    ordered,
    patches,
    reduce,
    sampled,
    spatial,
    triangle,
    unpool,
)
from pruning.discovery.values import Address, Value, flat


def _nothing(call: Call) -> Any:
    return call.fresh()


def _zeroed(call: Call) -> Any:
    """`zero_`, `fill_` and `zeros_like`: numbers that the code makes, as many as there are of what they are like."""
    found, like = call.fresh(made=True), call.args[0] if call.args else None
    if call.name in ("zero_", "fill_") and isinstance(like, Address):  # `w.clone().fill_diagonal_(0)`: what lies there
        for axis in range(len(like.extent)):
            sides = [call.into.place(like, dim) for dim in like.dims(axis)]
            for one, other in itertools.pairwise(sides):
                call.positions.link(one, other)
    if call.name.removesuffix("_") in _LIKE and isinstance(like, Value) and isinstance(found, Value):
        return replace(found, places=like.places, padded=like.padded)
    return found


_LIKE = ("zeros_like", "empty_like", "zero", "fill")
_MOVES = (
    "view _unsafe_view _reshape_alias reshape permute transpose t numpy_T mT unsqueeze squeeze expand expand_as "
    "view_as cat concat concatenate stack split split_with_sizes chunk unbind slice select flatten unflatten narrow "
    "tensor_split movedim moveaxis flip roll repeat repeat_interleave swapaxes swapdims unfold diagonal pixel_shuffle "
    "pixel_unshuffle tile reshape_as hsplit vsplit dsplit hstack vstack dstack"
)

_SAME = (
    "clone contiguous alias detach lift_fresh lift_fresh_copy _to_copy to type_as _conj resolve_conj resolve_neg float "
    "double half bfloat16 dropout feature_dropout alpha_dropout feature_alpha_dropout native_dropout"
)


_ELEMENTWISE = (
    "add sub rsub mul div true_divide divide multiply subtract neg abs relu relu6 gelu silu elu celu selu leaky_relu "
    "hardtanh hardswish hardsigmoid sigmoid tanh softplus softsign mish log_sigmoid logsigmoid exp exp2 expm1 "
    "log log1p log2 log10 sqrt rsqrt pow square float_power reciprocal sin cos tan sinh cosh asinh erf erfc sign sgn "
    "floor ceil round trunc clamp clip clamp_min clamp_max threshold where masked_fill addcmul addcdiv lerp maximum "
    "minimum fmod remainder atan atan2 ones_like full_like rand_like randn_like bernoulli gt ge lt le eq ne greater "
    "less logical_not logical_and logical_or bitwise_not bitwise_and bitwise_or isnan isinf isfinite nan_to_num "
    "poisson heaviside hardshrink softshrink tanhshrink xlogy logaddexp hypot positive rrelu polar complex"
)

_REDUCTIONS = (
    "mean sum amax amin max min var std norm linalg_vector_norm softmax log_softmax _softmax _log_softmax softmin "
    "logsumexp argmax argmin any all prod median nansum nanmean var_mean std_mean"
)


_DISTANCES = "mse_loss smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits soft_margin_loss"

_ORDERED = "topk sort argsort cumsum cumprod cummax cummin logcumsumexp"

_SPATIAL = (
    "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa upsample_bicubic2d "
    "_upsample_bicubic2d_aa _upsample_lanczos2d_aa upsample_trilinear3d pad constant_pad_nd reflection_pad1d "
    "reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d"
)

JUMPS = {"gt", "ge", "lt", "le", "greater", "less", "heaviside", "sign", "sgn", "floor", "ceil", "round", "trunc"}
"""What gives the same for many values."""
_MADE = "new_zeros new_ones new_full new_empty empty_like zeros_like zero fill new_empty_strided"

MOVING = {*_MOVES.split(), "clone", "contiguous", "alias", "detach", "_to_copy"}
"""What gives only what it is given, in another shape or order."""

_PASSING = {*_MOVES.split(), *_SAME.split(), *GATES, *(f"{name}_cell" for name in GATES)}
"""What reads an input only to pass it on, or says itself how it does."""


def follow(call: Call) -> Any:
    """Return the values of what an operation gives, by its rule or by a probe, after noting what it binds."""
    values = list(flat((call.args, call.kwargs)))
    name = call.name.removesuffix("_")
    if name not in _PASSING:
        call.uses(values)
    if name in JUMPS and any(isinstance(value, Value) and bool(value.places.any()) for value in values):
        call.into.steps = True
    rule = RULES.get(call.name) or RULES.get(name)
    if rule is None:
        return call.unknown([value for value in values if isinstance(value, (Value, Address))])
    return rule(call)


RULES: dict[str, Rule] = {
    **dict.fromkeys(_MOVES.split(), move),
    **dict.fromkeys(_SAME.split(), same),
    **dict.fromkeys(_ELEMENTWISE.split(), elementwise),
    **dict.fromkeys(_REDUCTIONS.split(), reduce),
    **dict.fromkeys(_DISTANCES.split(), distance),
    **dict.fromkeys(_ORDERED.split(), ordered),
    **dict.fromkeys(_SPATIAL.split(), spatial),
    **dict.fromkeys(_MADE.split(), _zeroed),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), convolution),
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), matmul),
    **dict.fromkeys(GATES, recurrent),
    **dict.fromkeys((f"{name}_cell" for name in GATES), recurrent_step),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), transposed_convolution),
    **dict.fromkeys(("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training"), batch_norm),
    **dict.fromkeys(("layer_norm", "rms_norm"), layer_norm),
    **dict.fromkeys(("embedding", "embedding_bag"), embedding),
    **dict.fromkeys(("index_select", "gather"), chosen),
    "_assert_tensor_metadata": _nothing,
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), unpool),
    **dict.fromkeys(("im2col", "col2im"), patches),
    **dict.fromkeys(("grid_sampler", "grid_sampler_2d", "grid_sampler_3d"), sampled),
    **dict.fromkeys(("tril", "triu"), triangle),
    "glu": glu,
    "prelu": prelu,
    "linear": linear,
    **dict.fromkeys(("addmm", "baddbmm", "_sparse_addmm"), addmm),
    **dict.fromkeys(("grouped_mm", "_grouped_mm"), grouped),
    "bilinear": bilinear,
    "scaled_dot_product_attention": attention,
    **dict.fromkeys(("cdist", "_cdist_forward", "_euclidean_dist"), distances),
    "group_norm": group_norm,
    **dict.fromkeys(("index", "_unsafe_index"), index),
    "index_put": put,
    "as_strided": strided,
    "copy": copy,
    **dict.fromkeys(("view_as_real", "view_as_complex"), paired),
}
"""Operation → how it passes neurons on."""
