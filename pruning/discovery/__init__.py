"""The layers of neurons of any PyTorch model: found by tracing it, proved by removing some.

Why `torch.export`, and a propagation of our own over its graph:

- It gives one graph of some two thousand operations with fixed meanings whatever the user's code looks like, with the
  parameters named as in the model, tied ones recognised, and the module of each operation. `torch.fx` traces Python
  symbolically, so that it fails on control flow that depends on shapes, which `transformers` is full of, and stops at
  modules, whose every class would need a rule of its own.
- `torch-pruning`'s dependency graph finds couplings from the graph of gradients: it knows no recurrent layers, silently
  unties tied weights, and passes over what it does not know. Here an operation that is not known is a reason, by name,
  why the neurons that it reads stay.
- Only structure is taken from the graph. What is pruned and deployed is the user's own module, with its own code.

Recurrent layers and `nn.MultiheadAttention` cannot hold unequal widths and fewer heads; they are first replaced by
equivalents that can (`Recurrent`, `Attention`). At last every layer is put to the proof on the example inputs: with
random weights, a model without some of its neurons, the others in another order, must give what a model gives in which
nobody reads them. Where the user's own code counts on a width this fails, and the layer is named with the error.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pruning.core.devices import drawing, full_precision
from pruning.core.neurons import NeuronLayer, select, silence
from pruning.discovery.attention import Attention, is_attention
from pruning.discovery.discovered import PREFIX, Discovered
from pruning.discovery.recurrent import Narrowed, Recurrent, is_recurrent
from pruning.discovery.structure import layers_of
from pruning.discovery.tracing import Inputs, copied, propagated

__all__ = ["Attention", "Discovered", "Narrowed", "Recurrent", "discover"]


def discover(model: nn.Module, example_inputs: tuple[Any, ...] | Mapping[str, Any]) -> Discovered:
    """Return the model with its layers of neurons found, ready for every signal, choice and cut.

    Recurrent states keep the shape that they have in the model, whatever the widths become: see `Recurrent`.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> found = discover(model, (torch.ones(1, 3),))
    >>> [(layer.name, layer.width) for layer in found.layers()], found.unprunable
    ([('0', 4)], {'2': 'the model returns it'})
    >>> select(found, {"0": torch.tensor([3, 1])}).network
    Sequential(
      (0): Linear(in_features=3, out_features=2, bias=True)
      (1): ReLU()
      (2): Linear(in_features=2, out_features=2, bias=True)
    )

    Args:
        model: Any module; it is left as it was.
        example_inputs: What it is called with: positional arguments, or arguments by name. A few samples do; every
            part of the model that shall be pruned must take part in the answer.

    Raises:
        TypeError: If the inputs are neither a tuple nor named.
        ValueError: If the model does not run on the inputs, computes something else once its recurrent layers and
            attention are replaced, cannot be traced, or has not one layer that can be pruned; the sentence says why.
    """
    if not isinstance(example_inputs, (tuple, Mapping)):
        raise TypeError(f"Expected a tuple or a mapping of inputs, got {type(example_inputs).__name__}.")
    inputs: Inputs = ((), dict(example_inputs)) if isinstance(example_inputs, Mapping) else (example_inputs, {})
    network = _replaced(_forgetful(copied(model)))
    _compare(model, network, inputs)
    modes = {name: module.training for name, module in network.named_modules()}
    with _uncached(network):
        found = propagated(network, inputs, PREFIX)
        layers, reasons = layers_of(found, Discovered(network.eval(), [], {}), PREFIX)
        for reading in found.readings:
            if reading.padded and any(reading.axis == (p.parameter, p.dim) for layer in layers for p in layer.read):
                _narrow(network, reading.module.removeprefix(PREFIX))
        proved, refuted = _proved(Discovered(network, layers, {}), inputs, found.states)
    for name, module in network.named_modules():
        module.training = modes.get(name, module.training)
    if not proved:
        raise ValueError(f"Expected a model with a layer that can be pruned, got none: {dict(reasons, **refuted)}.")
    return Discovered(network, proved, {**reasons, **refuted})


def _forgetful(network: nn.Module) -> nn.Module:
    """Let `snntorch`'s neurons forget the last potential, which they keep in buffers that are not saved."""
    for module in network.modules():
        if type(module).__module__.startswith("snntorch"):
            for name in module._non_persistent_buffers_set:
                own = module._buffers[name]
                module._buffers[name] = torch.zeros(0, device=None if own is None else own.device)
    return network


def _replaced(network: nn.Module) -> nn.Module:
    """Return the network with equivalents in place of modules that cannot hold unequal widths or fewer heads."""
    for condition, make in _REPLACEMENTS:
        if condition(network):
            return make(network)
    done: dict[nn.Module, nn.Module] = {}
    for parent in [module for module in network.modules() if not isinstance(module, Recurrent)]:
        for name, child in list(parent.named_children()):
            for make in (make for condition, make in _REPLACEMENTS if condition(child)):
                done[child] = done.get(child) or make(child)
                setattr(parent, name, done[child])
    return network


_REPLACEMENTS: tuple[tuple[Callable[[nn.Module], bool], Callable[[Any], nn.Module]], ...] = (
    (is_recurrent, Recurrent.of),
    (is_attention, Attention.of),
)


def _compare(model: nn.Module, network: nn.Module, inputs: Inputs) -> None:
    """Refuse a network that, only because of what stands in for some of its modules, gives something else."""
    given = _forgetful(copied(model, sharing=True)).eval()
    try:
        expected = _outputs(given, inputs, set())
    except Exception as error:  # whatever a user's code raises
        raise ValueError(f"Expected a model that runs on the example inputs, got {_said(error)}.") from error
    names = [name or "it" for name, module in network.named_modules() if isinstance(module, (Recurrent, Attention))]
    if not names:
        return
    what = f"that replacing {', '.join(names)} by a module of the same class, but of widths of its own, changes nothing"
    try:
        found = _outputs(copied(network, sharing=True).eval(), inputs, set())
    except Exception as error:  # whatever a user's code raises
        raise ValueError(f"Expected {what}, got {_said(error)}; ask nothing else of it than its class says.") from error
    if [part.shape for part in found] != [part.shape for part in expected]:
        raise ValueError(f"Expected {what}, got outputs of other shapes; ask for its class by `isinstance` alone.")
    if not all(map(_close, found, expected)):
        apart = max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True) if a.numel())
        raise ValueError(
            f"Expected {what}, got outputs that are {apart:.1e} apart; ask for its class by `isinstance` alone."
        )


def _said(error: Exception) -> str:
    """Return an error's kind and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".removesuffix(".")


def _narrow(network: nn.Module, path: str) -> None:
    """Let a linear layer read a recurrent state of which only a part holds neurons."""
    above, _, name = path.rpartition(".")
    linear = network.get_submodule(path)
    if isinstance(linear, nn.Linear) and not isinstance(linear, Narrowed):
        setattr(network.get_submodule(above), name, Narrowed.of(linear))


@contextmanager
def _uncached(network: nn.Module) -> Iterator[None]:
    """Within the context a language model of `transformers` returns no cache of keys and values, which is a state."""
    configs: list[Any] = [getattr(module, "config", None) for module in network.modules()]
    cached = [config for config in configs if getattr(config, "use_cache", None) is True]
    for config in cached:
        config.use_cache = False
    try:
        yield
    finally:
        for config in cached:
            config.use_cache = True


def _proved(model: Discovered, inputs: Inputs, states: set[int]) -> tuple[list[NeuronLayer], dict[str, str]]:
    """Return the layers that can be cut, and why the others cannot after all."""
    layers, model = model.layers(), _generic(model, inputs)
    if not _failure(model, layers, inputs, states):
        return layers, {}
    failures = {layer.name: _failure(model, [layer], inputs, states) for layer in layers}
    return [layer for layer in layers if not failures[layer.name]], {n: f for n, f in failures.items() if f}


def _generic(model: Discovered, inputs: Inputs) -> Discovered:
    """Return the model with weights in general position, so that none hides what depends on a neuron by being zero.

    Its own weights stay where others give no finite answer.
    """
    found = model.resized([layer.width for layer in model.layers()])
    generator = torch.Generator().manual_seed(0)
    for tensor in found.parameters():
        if tensor.is_floating_point() and tensor.ndim:
            drawn = torch.randn(tensor.shape, generator=generator) * (len(tensor) / tensor.numel()) ** 0.5
            tensor.data.copy_(drawn if tensor.ndim > 1 else 1 + drawn / 4)
    finite = all(bool(leaf.isfinite().all()) for leaf in _outputs(found, inputs, set()))
    return found if finite else model


def _failure(model: Discovered, layers: Sequence[NeuronLayer], inputs: Inputs, states: set[int]) -> str:
    """Return why removing neurons of these layers differs from nobody reading them; empty if it does not."""
    keep = {
        layer.name: torch.arange(layer.width - 1, 0, -1) for layer in layers
    }  # all but the first, the last one first
    expected = _outputs(silence(model, keep), inputs, states)
    try:
        found = _outputs(select(model, keep), inputs, states)
    except Exception as error:  # whatever a user's code raises at other widths
        return f"its model's own code counts on its width: {str(error).strip().partition(chr(10))[0]}"
    if len(found) == len(expected) and all(map(_close, found, expected)):
        return ""
    return "its model's own code counts on its width or order: without some neurons it computes something else"


def _outputs(model: nn.Module, inputs: Inputs, states: set[int]) -> list[Tensor]:
    """Return the tensors that a model gives, but for its states, whose neurons lie elsewhere in a smaller model."""
    args, kwargs = pytree.tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, inputs)
    with drawing(model), full_precision(), torch.no_grad():
        leaves = pytree.tree_leaves(model(*args, **kwargs))
    return [leaf for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and index not in states]


def _close(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal up to the rounding of a sum in another order."""
    if one.shape != other.shape or not (one.is_floating_point() or one.is_complex()):
        return one.shape == other.shape and torch.equal(one, other)
    scale = max(other.detach().abs().max().item(), 1e-30) if other.numel() else 1.0
    return torch.allclose(one, other, rtol=0, atol=scale * torch.finfo(one.dtype).eps ** 0.75, equal_nan=True)
