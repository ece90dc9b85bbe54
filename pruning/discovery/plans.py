"""A pruned network as a plan: plain values that make a freshly built one of its class into it, and its tensors."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from pruning.core.avoiding import expect_width
from pruning.core.neurons import NeuronLayer, Slice
from pruning.discovery.absent import Form
from pruning.discovery.attention import Attention
from pruning.discovery.computed import plainly
from pruning.discovery.configured import Entry, configure
from pruning.discovery.discovered import PREFIX, Discovered
from pruning.discovery.experts import Fewer, Mixture
from pruning.discovery.following import Number, number_of
from pruning.discovery.plain import made_plain
from pruning.discovery.preparing import narrow, persist, read_by, replaced, shapes_of, simplified
from pruning.discovery.recurrent import Narrowed, Recurrent
from pruning.discovery.running import copied, kept_tensors
from pruning.discovery.shortening import Cut, Standing, shortened

KINDS = ("owned", "read", "buffers", "silenced", "tied")
"""A layer's lists of slices."""
STAND_INS: dict[str, type[nn.Module]] = {"Recurrent": Recurrent, "Attention": Attention, "Narrowed": Narrowed}
"""What stands in for a module of PyTorch's, by the name that plans have for it."""


def plan_of(model: Discovered, plain: Sequence[str], numbers: Sequence[Number]) -> dict[str, Any]:
    """Return how a network built anew becomes this one.

    Args:
        model: A network some of whose neurons were removed.
        plain: Which of its stand-ins are made PyTorch's own modules again.
        numbers: Numbers in the user's modules that follow widths only then.

    Raises:
        ValueError: If it is not known what the network was.
    """
    if model.origin is None:
        raise ValueError("Expected a network that `discover` gave, or one cut from it, got one made in another way.")
    return {
        "network": f"{type(model.network).__module__}.{type(model.network).__qualname__}",
        "parameters": {name: list(shape) for name, shape in model.origin.shapes.items()},
        "one": {name: first for name, first in model.origin.names.items() if name != first},
        "folded": dict(model.folded),
        "computed": dict(model.origin.computed),
        "layers": [
            {**dataclasses.asdict(before), "left": after.width, "kept": _kept(model, after)}
            for before, after in zip(model.origin.layers, model.layers(), strict=True)
        ],
        "numbers": [dataclasses.asdict(number) for number in (*model.numbers, *numbers)],
        "replaced": _stand_ins(model.network),
        "plain": list(plain),
        "entries": [dataclasses.asdict(entry) for entry in model.entries],
        "earlier": None if model.earlier is None else dataclasses.asdict(model.earlier),
    }


def planned(plan: Mapping[str, Any], network: nn.Module) -> nn.Module:
    """Return the network as the plan has it, its tensors not yet meaningful.

    Args:
        plan: What `plan_of` gave.
        network: One of the same class and size as the one that was pruned; it is left as it was.

    Raises:
        ValueError: If it is another network.
    """
    if plan.get("earlier"):
        network = _shallower(plan["earlier"], network)
    network, _ = simplified(network)
    network = plainly(network, plan.get("computed", {}))
    _check_same(plan["parameters"], shapes_of(network))
    network = replaced(_tied(network, plan["one"]))
    for path, settings in plan["replaced"].items():
        if settings["by"] == "Narrowed":
            narrow(network, path)
        elif settings["by"] == "Recurrent":
            recurrent: Any = network.get_submodule(path)
            recurrent.even = settings["even"]
    if _stand_ins(network) != plan["replaced"]:
        raise ValueError("Expected a network with the recurrent layers and attention that it had, got other classes.")
    known = kept_tensors(network)
    layers = [_layer(layer, known) for layer in plan["layers"]]
    expect_width(layers, {layer["name"]: layer["left"] for layer in plan["layers"]})
    persist(network, layers)
    read_by(network, [piece.parameter for layer in layers for piece in layer.read])
    numbers = [number_of(number) for number in plan["numbers"]]
    dense = Discovered(network, layers, {}, numbers)
    smaller = made_plain(dense.resized([layer["left"] for layer in plan["layers"]]).network, plan["plain"])
    return configure(smaller, _entries(plan["entries"]))


def _shallower(plan: Mapping[str, Any], network: nn.Module) -> nn.Module:
    """Return the network without the blocks that it lost."""
    cut = plan["cut"]
    standing = (
        Standing(one["path"], Form(one["form"]["parts"], tuple(one["form"]["shape"])), one["passes"])
        for one in cut["standing"]
    )
    experts = (
        Fewer(Mixture(**{**one["mixture"], "tensors": tuple(one["mixture"]["tensors"])}), tuple(one["gone"]))
        for one in cut["experts"]
    )
    found = Cut(tuple(standing), tuple(cut["leaving"]), tuple(cut["counts"]), tuple(experts))
    return configure(shortened(planned(plan["plan"], network), found), _entries(plan["entries"]))


def _entries(plan: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """Return what was changed in configurations."""
    return [Entry(**{**entry, "path": tuple(entry["path"])}) for entry in plan]


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Return what a network is saved with, by its every name: parameters, buffers that are saved, what modules keep."""
    found: dict[str, Tensor] = dict(network.named_parameters(remove_duplicate=False))
    unsaved = _unsaved(network)
    for name, tensor in (*network.named_buffers(remove_duplicate=False), *kept_tensors(network).items()):
        if name not in unsaved:
            found.setdefault(name, tensor)
    return found


def unsaved_types(network: nn.Module) -> dict[str, str]:
    """Return the type of each buffer that is made anew by its network's own code, where it holds real numbers."""
    unsaved = _unsaved(network)
    floats = {name: buffer for name, buffer in network.named_buffers() if buffer.is_floating_point()}
    return {name: str(buffer.dtype).removeprefix("torch.") for name, buffer in floats.items() if name in unsaved}


def filled(network: nn.Module, tensors: Mapping[str, Tensor], trained: Iterable[str]) -> nn.Module:
    """Return the network with these tensors, those of one identity as one, each on the device of what it replaces.

    What a module keeps between calls and this network's modules do not keep yet is left out.

    Args:
        network: It gets the parameters; what is returned is a copy that shares them.
        tensors: What `tensors_of` gave of a network of this form.
        trained: The parameters that are not frozen.

    Raises:
        ValueError: If they are another network's.
    """
    expected, learnt = tensors_of(network), set(trained)
    parameters = dict(network.named_parameters(remove_duplicate=False))
    done: dict[int, Tensor] = {}
    replacing: dict[int, Tensor] = {}
    missing = [name for name in parameters if name not in tensors]
    for name, tensor in tensors.items():
        above, _, own = name.rpartition(".")
        before = expected.get(name)
        if before is None and own in ("weight", "bias") and _lacks(network, above, own):
            before = next(network.get_submodule(above).parameters())  # a bias that a repair added
        elif name in parameters and parameters[name].shape != tensor.shape:
            missing.append(name)
        if before is None:
            continue
        moved = done.setdefault(id(tensor), tensor if before.is_meta else tensor.to(before.device))
        if isinstance(before, nn.Parameter):
            if not isinstance(moved, nn.Parameter):
                moved = done[id(tensor)] = nn.Parameter(moved, requires_grad=name in learnt)
            setattr(network.get_submodule(above), own, moved)
        elif own in getattr(_module(network, above), "_buffers", {}):
            network.get_submodule(above)._buffers[own] = moved
        else:
            replacing[id(before)] = moved
    if missing:
        raise ValueError(f"Expected a tensor that fits {missing[0]}, got another or none.")
    return copied(network, sharing=True, replacing=replacing) if replacing else network


def _tied(network: nn.Module, one: Mapping[str, str]) -> nn.Module:
    """Return the network with those parameters as one that were, and no others."""
    taken: dict[int, str] = {}
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        first = one.get(name, name)
        if taken.setdefault(id(parameter), first) != first:
            parameters[name] = parameter = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
        above, _, own = name.rpartition(".")
        setattr(network.get_submodule(above), own, parameters[first])
    return network


def _lacks(network: nn.Module, path: str, name: str) -> bool:
    """Return whether a module has a place for a parameter, and none in it."""
    module = _module(network, path)
    return module is not None and name in module._parameters and module._parameters[name] is None


def _module(network: nn.Module, path: str) -> nn.Module | None:
    try:
        return network.get_submodule(path)
    except AttributeError:
        return None


def _unsaved(network: nn.Module) -> set[str]:
    return {
        f"{path}.{name}".lstrip(".")
        for path, module in network.named_modules(remove_duplicate=False)
        for name in module._non_persistent_buffers_set
    }


def _kept(model: Discovered, layer: NeuronLayer) -> list[int] | None:
    """Return which neurons of the network as it was a layer has; None where nobody told."""
    kept = model.chosen.get(layer.name)
    return None if kept is None or len(kept) != layer.width else kept.tolist()


def _stand_ins(network: nn.Module) -> dict[str, dict[str, Any]]:
    """Return what stands in for modules of PyTorch's, by path."""
    found: dict[str, dict[str, Any]] = {}
    for path, module in network.named_modules():
        for name, kind in STAND_INS.items():
            if isinstance(module, kind):
                found[path] = {"by": name} | ({"even": module.even} if isinstance(module, Recurrent) else {})
    return found


def _layer(plan: Mapping[str, Any], known: Mapping[str, Tensor]) -> NeuronLayer:
    """Return a layer as it was; a buffer that modules do not keep yet is none of it."""
    fields = {field.name: plan[field.name] for field in dataclasses.fields(NeuronLayer) if field.name in plan}
    fields["avoided"] = tuple(plan.get("avoided", ()))
    for kind in KINDS:
        fields[kind] = tuple(Slice(**piece) for piece in plan[kind])
    fields["buffers"] = tuple(p for p in fields["buffers"] if p.parameter.removeprefix(PREFIX) in known)
    for kind in ("seen", "given"):
        fields[kind] = Slice(**plan[kind]) if plan.get(kind) else None
    return NeuronLayer(**fields)


def _check_same(expected: Mapping[str, Sequence[int]], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a network of other parameters."""
    what = "Expected the network that was pruned, as large as it was before"
    for name, shape in expected.items():
        if name not in shapes:
            raise ValueError(f"{what}, got one without {name} {tuple(shape)}; build it with the settings that it had.")
        if tuple(shape) != shapes[name]:
            raise ValueError(
                f"{what}, got one whose {name} is {shapes[name]} instead of {tuple(shape)}; "
                "build it with the settings that it had."
            )
    if more := [name for name in shapes if name not in expected]:
        raise ValueError(f"{what}, got one that also has {more[0]}; build it with the settings that it had.")
