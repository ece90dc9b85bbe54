"""A user's network as a copy that can be cut: unwrapped, its parameters plain, stand-ins where widths must differ."""

import dis
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.prune import BasePruningMethod

from pruning.core.nested import tensors_in
from pruning.core.neurons import NeuronLayer
from pruning.core.rebinding import put, rebind
from pruning.discovery.attention import Attention, is_attention
from pruning.discovery.discovered import PREFIX
from pruning.discovery.folding import fold
from pruning.discovery.recurrent import Narrowed, Recurrent, is_recurrent
from pruning.discovery.remembering import MEMORIES
from pruning.discovery.running import copied

BUFFERS = {"buffers", "named_buffers", "_buffers"}
"""What names a module's buffers in its code."""


def expect_listed(model: nn.Module) -> None:
    """Refuse modules of a class with a `modules()` or `parameters()` of another kind than PyTorch's.

    Raises:
        TypeError: It names the class.
    """
    for module in nn.Module.modules(model):
        for name, told in (("modules", {}), ("parameters", {"recurse": False})):
            own, usual = getattr(module, name), getattr(nn.Module, name)
            if getattr(own, "__func__", own) is usual:
                continue
            try:
                same = [id(part) for part in own(**told)] == [id(part) for part in usual(module, **told)]
            except TypeError:
                same = False
            if not same:
                raise TypeError(
                    f"Expected a network whose modules list their parts as PyTorch's do, got {type(module).__name__} "
                    f"with a {name}() of its own; give it with PyTorch's, as Rockpool's modules have after to_torch()."
                )


def expect_numbers(model: nn.Module, inputs: Iterable[Any]) -> None:
    """Refuse weights and inputs that are shapes alone, and inputs with no example in them: nothing is seen by them.

    Raises:
        ValueError: It says what to do.
    """
    tensors = [*tensors_in(list(inputs))]
    shapes = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if shapes:
        raise ValueError(
            f"Expected weights, got {shapes[0]} on the device meta, which holds none; load them first, as by "
            "`network.to_empty(device='cpu')` and `load_state_dict`."
        )
    if any(tensor.is_meta for tensor in tensors):
        raise ValueError("Expected inputs with numbers in them, got those of the device meta; give them on another.")
    if tensors and not any(tensor.numel() for tensor in tensors):
        raise ValueError(f"Expected inputs with at least one example, got a tensor {tuple(tensors[0].shape)}.")


def simplified(model: nn.Module) -> tuple[nn.Module, dict[str, str]]:
    """Return a copy of the model whose parameters and buffers are all there is, and what was folded into them.

    It may have parameters of the model's own, which are not written into.
    """
    network = _unwrapped(forgetful(copied(model, sharing=_can_share(model))))
    folded = fold(network)
    for module in network.modules():
        tensors = {name: value for name, value in vars(module).items() if type(value) is Tensor}
        begun = begun_with(type(module)) if tensors else {}
        kept = bool(tensors) and lists_buffers(type(module))
        for name, value in tensors.items():
            number = not value.ndim and not value.is_floating_point()
            if name in begun:  # a state that the last call left
                setattr(module, name, begun[name])
            elif not (name.startswith("_") or number or kept):  # it is cut as a buffer is
                delattr(module, name)
                module.register_buffer(name, value)
    return network, folded


@contextmanager
def bounded(network: nn.Module) -> Iterator[None]:
    """Within the context no embedding bounds the norms of the rows that it looks up: all of them are bounded before.

    A row with fewer numbers has no larger norm, so that bounding it again changes nothing, whichever neurons go. A
    table that another module reads, too, is left alone: what that reads follows from which rows were looked up.
    """
    held = Counter(id(parameter) for module in network.modules() for parameter in module._parameters.values())
    tables = [module for module in network.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag))]
    bounds = {table: table.max_norm for table in tables if table.max_norm is not None and held[id(table.weight)] == 1}
    for table, bound in bounds.items():
        rows = torch.arange(len(table.weight), device=table.weight.device)
        whole = torch.embedding_renorm_(table.weight.detach().clone(), rows, bound, table.norm_type)
        table.weight, table.max_norm = nn.Parameter(whole, table.weight.requires_grad), None
    try:
        yield
    finally:
        for table, bound in bounds.items():
            table.max_norm = bound


def begun_with(kind: type[nn.Module]) -> dict[str, float]:
    """Return the attributes that `forward`, or a method that it calls, sets to a plain number: how a state begins.

    A tensor that stands there is what the call before has left, as of a membrane potential (`self.potential = 0.0`).

    >>> class Neuron(nn.Module):
    ...     def forward(self, inputs):
    ...         self.potential = self.spikes = 0.0
    ...         for current in inputs:
    ...             self.potential = self.potential + current
    ...         return self.potential
    >>> begun_with(Neuron)
    {'potential': 0.0, 'spikes': 0.0}
    """
    numbers: dict[str, float] = {}
    names, seen = ["forward"], {"__init__"}
    while names:
        name = names.pop()
        method = getattr(kind, name, None)
        if name in seen or not isinstance(method, FunctionType) or f"{method.__module__}".startswith("torch."):
            continue
        seen.add(name)
        names += method.__code__.co_names
        value: Any = None
        for instruction in dis.get_instructions(method):
            operation = instruction.opname
            if operation.startswith("LOAD_CONST") or operation == "LOAD_SMALL_INT":
                value = instruction.argval
            elif operation == "STORE_ATTR" and type(value) in (int, float):
                numbers[instruction.argval] = value
            elif operation == "UNPACK_SEQUENCE" and type(value) is tuple and len(set(value)) == 1:
                value = value[0]  # a, b = 0.0, 0.0
            elif not operation.startswith(("LOAD_FAST", "COPY", "STORE_ATTR")):
                value = None
    return numbers


def lists_buffers(kind: type[nn.Module]) -> bool:
    """Return whether a class's code goes through its buffers: one more of them would be another state to it."""
    own = (part for above in kind.__mro__ if not above.__module__.startswith("torch.") for part in vars(above).values())
    return any(BUFFERS & {*part.__code__.co_names} for part in own if isinstance(part, FunctionType))


def _can_share(model: nn.Module) -> bool:
    """Return whether making a copy ready writes into no parameters, as pruning masks and a GPU's kernels do."""
    hooks = (hook for part in model.modules() for hook in part._forward_pre_hooks.values())
    masked = any(isinstance(hook, BasePruningMethod) for hook in hooks)
    return not masked and all(parameter.device.type == "cpu" for parameter in model.parameters())


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter by its every name: what tells networks of one class and size.

    Raises:
        ValueError: If a parameter of a lazy module has none yet.
    """
    own = dict(network.named_parameters(remove_duplicate=False))
    lazy = next((name for name, parameter in own.items() if isinstance(parameter, UninitializedParameter)), None)
    if lazy is not None:
        raise ValueError(
            f"Expected parameters that have shapes, got a lazy one, {lazy}; call the network once on the inputs."
        )
    return {name: tuple(parameter.shape) for name, parameter in own.items()}


def _unwrapped(network: nn.Module) -> nn.Module:
    """Return the network without what runs it on several devices or compiles it, wherever in it that is."""
    while (inner := _within(network)) is not None:
        network = inner
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            while (inner := _within(child)) is not None:
                rebind(network, {id(child): inner})
                child = inner
                setattr(parent, name, child)
    return network


def _within(module: nn.Module) -> nn.Module | None:
    """Return what a wrapper of PyTorch's wraps; None if the module is none."""
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return module.module  # type: ignore[no-any-return]
    return getattr(module, "_orig_mod", None) if type(module).__name__ == "OptimizedModule" else None


def forgetful(network: nn.Module) -> nn.Module:
    """Let neurons of `snntorch` and `spikingjelly` forget the last potential, which they keep outside of what is saved.

    As `snntorch.utils.reset` and `spikingjelly.activation_based.functional.reset_net` do.
    """
    for module in network.modules():
        reset: Any = getattr(module, "reset", None)
        if MEMORIES in vars(module) and reset is not None:
            reset()
        if type(module).__module__.startswith("snntorch"):
            for name in module._non_persistent_buffers_set:
                own = module._buffers[name]
                module._buffers[name] = torch.zeros(0, device=None if own is None else own.device)
    return network


def replaced(network: nn.Module) -> nn.Module:
    """Return the network with equivalents in place of modules that cannot hold unequal widths or fewer heads.

    An encoder of PyTorch's no longer packs padded sequences into nested tensors for its layers, which it does in
    evaluation alone and which no other attention than PyTorch's can read; what stands at padding is as in training.
    """
    for encoder in (module for module in network.modules() if isinstance(module, nn.TransformerEncoder)):
        encoder.enable_nested_tensor = encoder.use_nested_tensor = False
    for condition, make in _REPLACEMENTS:
        if condition(network):
            return make(network)
    done: dict[nn.Module, nn.Module] = {}
    for parent in [module for module in network.modules() if not isinstance(module, Recurrent)]:
        for name, child in list(parent.named_children()):
            for make in (make for condition, make in _REPLACEMENTS if condition(child)):
                done[child] = done.get(child) or make(child)
                setattr(parent, name, done[child])
    rebind(network, {id(child): own for child, own in done.items()})
    return network


def persist(network: nn.Module, layers: Sequence[NeuronLayer]) -> None:
    """Let buffers that are cut with neurons be saved, so that they are where a state is loaded."""
    for name in {piece.parameter.removeprefix(PREFIX) for layer in layers for piece in layer.buffers}:
        above, _, own = name.rpartition(".")
        if not own.isdigit():  # a place in a tuple that a module keeps
            network.get_submodule(above)._non_persistent_buffers_set.discard(own)


def read_by(network: nn.Module, names: Iterable[str]) -> None:
    """Let buffers that read neurons, such as a fixed basis, be frozen parameters, as other weights that do are."""
    for name in names:
        above, _, own = name.removeprefix(PREFIX).rpartition(".")
        module = network.get_submodule(above)
        if own in dict(module.named_buffers(recurse=False)):
            buffer = module.get_buffer(own)
            delattr(module, own)
            module.register_parameter(own, nn.Parameter(buffer, requires_grad=False))


def narrow(network: nn.Module, path: str) -> None:
    """Let a linear layer read a recurrent state of which only a part holds neurons."""
    linear = network.get_submodule(path)
    if isinstance(linear, nn.Linear) and not isinstance(linear, Narrowed):
        put(network, path, Narrowed.of(linear))


_REPLACEMENTS: tuple[tuple[Callable[[nn.Module], bool], Callable[[Any], nn.Module]], ...] = (
    (is_recurrent, Recurrent.of),
    (is_attention, Attention.of),
)
