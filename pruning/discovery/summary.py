"""What was found in a network as a short text: each layer, what of the network it reaches, and why the rest stays."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from pruning.core.neurons import NeuronLayer, Slice
from pruning.core.words import table_of, wrapped
from pruning.discovery.values import COMBINED

_DECIDED_ONCE = "let the code decide that once, when a module is made, and not by the widths of a call"
_QUANTIZED_AFTER = "prune the network first, and quantize what comes of it"
ADVICE: dict[str, str] = {
    "its weights are quantized": _QUANTIZED_AFTER,
    "by weights that are packed": _QUANTIZED_AFTER,
    "prepared for quantization": "prune the network before it is prepared for quantization",
    "the model returns it": "its width is that of the answer; neurons that it reads can go, its own cannot",
    "where it is as wide as": _DECIDED_ONCE,
    " neurons beside ": _DECIDED_ONCE,
    "of its neurons is left": _DECIDED_ONCE,
    "of its neurons are left": _DECIDED_ONCE,
    "own code counts on its width": "let the code read sizes from a module's number or a tensor's shape, not as halves",
    "are NaN or infinite": "train the network anew at a lower learning rate, or load earlier weights",
    "computes something else than where nobody reads them": "look for a width, an order or a scale in the code",
    "topk mixes all of it": "of a router, whole experts can go with their rows: see `found.experts()`",
    "takes all of it together": "let the code read the width from a module's number or a tensor's shape",
    "values of a fixed width": "map these to a width of their own first, by a linear layer",
    "reads the model's inputs": "its inputs stay; neurons of a layer put between them and it could go",
    "a row for each type of the embedding": "its rows are the vocabulary, which `discover` leaves",
    "post_process mixes all of it": "prune the network before it is prepared for quantization",
    "_obs_fq_helper in": "prune the network before it is prepared for quantization",
    "fake_quantize": "prune the network before it is prepared for quantization",
    "not known to keep neurons apart": "compute the same with operations that keep them apart",
    "by kernels that are computed": "give it kernels that are parameters",
    "by a matrix that is computed": "give it a matrix that is a parameter",
    "mixes all of it": "compute the same for each neuron by itself",
    "TorchScript compiled": "give `discover` the module that was compiled, and compile what comes of it",
    "is tied to": "give it a weight of its own",
    "it is tied": "give its reader a weight of its own",
    "it is computed outside of any module": "hold it in an `nn.Embedding`, or compute it by an `nn.Linear`",
    "outside of any module": "read it by an `nn.Linear`",
    "does not depend on it": "it can be left out of the model",
    "counts on the order of": "compute the same in any order of them",
    "follow no regular order": "let the code keep them in one order",
    "share it": "it stays; what reads or gives the rest can go",
    "uses its single number for all": "its neurons are one number; there is nothing to remove",
    "applies it to each neuron alike": "it stays as long as that dimension does",
    "do not reach it": "give example inputs that use it, further ones as `also=[...]`",
}
"""Part of a reason → what a user can do about it; the first that fits is said."""
CARRIED = "; if it is a state that the next call is given, `discover(…, carried=argument)` says so"
"""What else can be done about what a model returns that takes several arguments."""
INEXACT = "not exact: what is computed over all neurons (statistics, say), or drawn, differs where some are gone"
AVOIDED = "widths that are stepped over, for the network's code does something else there, or stops:"
STAYS = "what stays, with its share of the parameters; what of it reads neurons of a layer goes with them:"
WHOLE = (
    "residual blocks and experts that can go as a whole: `found.blocks()` and `found.experts()` look for them, "
    "`pruning.shorten(found, names)` takes them out"
)
"""What the layers do not tell, since it is looked for only when it is asked for."""


def summary(
    network: nn.Module,
    layers: Sequence[NeuronLayer],
    unprunable: Mapping[str, str],
    folded: Mapping[str, str],
    told: Iterable[tuple[str, str]] = (),
    carried: Iterable[tuple[str, str]] = (),
    *,
    one_argument: bool = False,
) -> str:
    """Return what was found, as text.

    Args:
        network: What holds the layers' parameters by their names.
        layers: The layers that were found.
        unprunable: Module, in the user's network → why it is none.
        folded: Parameter → what computed it.
        told: Modules in whose code calls are told sizes that follow, each with such a call.
        carried: Arguments of forward that are a state, each with a layer whose neurons are in it.
        one_argument: Whether forward takes one alone, so that none is a state.
    """
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    whole = max(sum(sizes.values()), 1)
    pieces = [piece for layer in layers for piece in (*layer.owned, *layer.read)]
    reached = covered(network, pieces)
    several = "layer" if len(layers) == 1 else "layers"
    lines = [f"{len(layers)} {several} of neurons, with {reached / whole:.0%} of {whole:,} parameters within reach"]
    if layers:
        header = ["layer", "kind", "width", "parameters", "exact", "repairable"]
        lines += table_of(header, [_row(network, layer) for layer in layers])
    said = _repaired_in_part(layers)
    if not all(layer.exact for layer in layers):
        said.append(INEXACT)
    said += _listed(AVOIDED, ((one.name, _spans(one.avoided)) for one in layers if one.avoided))
    if unprunable:
        said += ["", STAYS]
    for reason, modules in _grouped(unprunable).items():
        own = sum(_own(network, module) for module in modules)
        advice = next((what for part, what in ADVICE.items() if part in reason), "")
        advice += CARRIED if "the model returns it" in reason and not one_argument else ""
        said.append(f"  {', '.join(modules)} ({own / whole:.1%}): {reason}{'; ' + advice if advice else ''}")
    if folded:
        said += ["", "folded into parameters:", *(f"  {name}: {what}" for name, what in folded.items())]
    said += _listed(
        "called with sizes that follow, or computing with widths as before, by a mode in which these modules now run:",
        ((module or "the network", call) for module, call in told),
    )
    said += _listed(
        "states that forward takes and gives back, as wide as they were, the neurons of these first and zeros behind:",
        carried,
    )
    return "\n".join([*lines, *wrapped([*said, "", WHOLE])])


def _listed(what: str, pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Return lines: what is listed, then each first with all its seconds; none of nothing."""
    several: dict[str, dict[str, None]] = {}
    for one, other in pairs:
        several.setdefault(one, {})[other] = None
    return ["", what, *(f"  {one}: {', '.join(others)}" for one, others in several.items())] if several else []


def _spans(numbers: Sequence[int]) -> str:
    """Return ascending whole numbers in words.

    >>> _spans([1, 2, 3, 7, 9, 10])
    '1 to 3, 7, 9, 10'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    told = (f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
    return ", ".join(told)


def _row(network: nn.Module, layer: NeuronLayer) -> list[str]:
    coupled = f"{covered(network, (*layer.owned, *layer.read)):,}"
    exact = "yes" if layer.exact else "no"
    return [layer.name, layer.kind, str(layer.width), coupled, exact, _repairable(layer)]


def _repairable(layer: NeuronLayer) -> str:
    """Return which of the readers can be refitted on what they read: all but those whose weights are neurons' too."""
    if _stays(layer):
        return "no"
    if not layer.tied:
        return "yes"
    return "biases alone" if len(layer.tied) == len(layer.read) else "in part"


def _stays(layer: NeuronLayer) -> bool:
    """Return whether nothing that reads its neurons is refitted."""
    return layer.unread or layer.obstacle.endswith(COMBINED)


def _repaired_in_part(layers: Iterable[NeuronLayer]) -> list[str]:
    """Return a line for each layer of whose readers some keep their weights, with the reason."""
    lines = []
    for layer in layers:
        tied = sorted({piece.parameter.removeprefix("network.") for piece in layer.tied})
        what = "its readers' biases alone" if len(layer.tied) == len(layer.read) else "its other readers"
        lines += [f"of {layer.name}, {what} are repaired: {', '.join(tied)} computes its neurons too"] if tied else []
        lines += [f"of {layer.name}, nothing is repaired: {layer.obstacle}"] if _stays(layer) else []
    return lines


def covered(network: nn.Module, pieces: Iterable[Slice]) -> int:
    """Return how many parameters these slices hold, each counted once, and buffers that are not parameters yet."""
    along: dict[str, dict[int, torch.Tensor]] = {}
    parameters = {**dict(network.named_buffers()), **dict(network.named_parameters())}
    for piece in pieces:
        shape = parameters[piece.parameter].shape
        mask = along.setdefault(piece.parameter, {}).setdefault(piece.dim, torch.zeros(shape[piece.dim]).bool())
        mask.narrow(0, piece.start, shape[piece.dim] if piece.length is None else piece.length).fill_(True)
    found = 0
    for name, masks in along.items():
        shape = parameters[name].shape
        left = [int((~masks[dim]).sum()) if dim in masks else size for dim, size in enumerate(shape)]
        found += parameters[name].numel() - math.prod(left)
    return found


def _own(network: nn.Module, path: str) -> int:
    """Return how many parameters a module of the user's network has by itself, or a parameter by itself."""
    inner = network.get_submodule("network")
    try:
        return sum(parameter.numel() for parameter in inner.get_submodule(path).parameters(recurse=False))
    except AttributeError:
        return next((p.numel() for name, p in inner.named_parameters(remove_duplicate=False) if name == path), 0)


def _grouped(unprunable: Mapping[str, str]) -> dict[str, list[str]]:
    """Return reasons, each with the modules that it is given for."""
    found: dict[str, list[str]] = {}
    for module, reason in unprunable.items():
        found.setdefault(reason, []).append(module)
    return found
