"""Where a parameter's neurons show what they say: which part of which module's outputs is theirs."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.rnn import PackedSequence

from pruning.core.neurons import NeuronLayer

HIDDEN = (nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention, _ConvTransposeNd)
"""Modules whose outputs are not what their parameters' rows compute."""
CHANNELS_FIRST = (_ConvNd, _NormBase, nn.GroupNorm)
"""Modules whose outputs hold their neurons along dimension 1."""
STACKED = re.compile(r"_l(\d+)(_reverse)?$")


class Site(NamedTuple):
    """One module's part of its outputs; parameters of the same neurons have the same one.

    Attributes:
        module: The module's name.
        layer: Which of its stacked layers.
        reverse: Whether the direction that reads backwards.
        width: How many neurons.
    """

    module: str
    layer: int
    reverse: bool
    width: int


def site_of(model: nn.Module, layer: NeuronLayer) -> Site | None:
    """Return where a layer's neurons are seen, None where they cannot be."""
    module = model.get_submodule(layer.output)
    if isinstance(module, HIDDEN) or next(module.children(), None) is not None:
        return None
    if not isinstance(module, nn.RNNBase):
        return Site(layer.output, 0, False, layer.width)
    place = STACKED.search(layer.owned[0].parameter)
    if place is None or layer.width != module.hidden_size or module.proj_size:
        return None
    return Site(layer.output, int(place[1]), bool(place[2]), layer.width)


@contextmanager
def watching(model: nn.Module, sites: Sequence[Site], observe: Callable[[Site, Tensor], None]) -> Iterator[None]:
    """Within the context, pass what is seen at each site, (samples, width), to `observe`; no hook is left behind."""
    with ExitStack() as handles:
        for name in {site.module for site in sites}:
            own = [site for site in sites if site.module == name]
            hook = _hook(own, observe)
            handles.enter_context(model.get_submodule(name).register_forward_hook(hook, with_kwargs=True))
        yield


def _hook(sites: Sequence[Site], observe: Callable[[Site, Tensor], None]) -> Callable[..., None]:
    def hook(module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any], outputs: Any) -> None:
        for site in sites:
            seen = _seen(module, site, arguments, named, outputs)
            if seen is not None:
                observe(site, seen.detach())

    return hook


def _seen(
    module: nn.Module, site: Site, arguments: tuple[Any, ...], named: Mapping[str, Any], outputs: Any
) -> Tensor | None:
    """Return what the neurons say, (samples, width); None if the outputs do not hold it."""
    if isinstance(module, nn.RNNBase):
        whole = _outputs_of(module, site.layer, outputs, *arguments, **named)
        values = whole.data if isinstance(whole, PackedSequence) else whole
        return values[..., site.reverse * site.width :][..., : site.width].reshape(-1, site.width)
    values = outputs[0] if isinstance(outputs, tuple | list) and outputs else outputs
    if not isinstance(values, Tensor) or not values.is_floating_point() or not values.ndim:
        return None
    ordered = values.movedim(1, -1) if isinstance(module, CHANNELS_FIRST) and values.ndim > 1 else values
    return ordered.reshape(-1, site.width) if ordered.shape[-1] == site.width else None


def _outputs_of(rnn: nn.RNNBase, layer: int, outputs: Any, inputs: Any, hx: Any = None) -> Any:
    """Return the outputs of one of the stacked layers; only the last one's leave the module, so others run again."""
    if layer == rnn.num_layers - 1:
        return outputs[0]
    directions = 2 if rnn.bidirectional else 1
    with torch.no_grad():
        for index in range(layer + 1):
            part = slice(index * directions, (index + 1) * directions)
            state = tuple(h[part] for h in hx) if isinstance(hx, tuple) else None if hx is None else hx[part]
            size = rnn.input_size if index == 0 else rnn.hidden_size * directions
            inputs, _ = torch.func.functional_call(_one_layer(rnn, size), _weights(rnn, index), (inputs, state))
    return inputs


def _one_layer(rnn: nn.RNNBase, inputs: int) -> nn.RNNBase:
    """Return a module of one such layer, without numbers of its own."""
    more = {"nonlinearity": rnn.nonlinearity} if isinstance(rnn, nn.RNN) else {}
    make: Callable[..., nn.RNNBase] = type(rnn)
    return make(
        inputs, rnn.hidden_size, bias=rnn.bias, batch_first=rnn.batch_first, bidirectional=rnn.bidirectional,
        device="meta", **more,
    )  # fmt: skip


def _weights(rnn: nn.RNNBase, layer: int) -> dict[str, Tensor]:
    """Return the weights of one stacked layer under the names that a single one's have."""
    own = {name: p for name, p in rnn.named_parameters() if (place := STACKED.search(name)) and int(place[1]) == layer}
    return {name.replace(f"_l{layer}", "_l0"): parameter for name, parameter in own.items()}
