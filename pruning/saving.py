"""Pruned networks in folders: a plan in JSON and tensors in safetensors, which hold no code.

The plan says how a network of the user's class, built anew and dense, becomes the pruned one: which parts of its
parameters hold which layer's neurons, which of these are left, what stands in for modules that cannot hold the widths,
which numbers in its modules follow. So the class is the user's own, and only numbers are read from the folder.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pruning.core.neurons import PrunableModule
from pruning.core.stepping import stepping
from pruning.core.words import described
from pruning.discovery.discovered import Discovered
from pruning.discovery.plans import filled, plan_of, planned, tensors_of, unsaved_types
from pruning.discovery.running import copied
from pruning.models.adapted import Adapted
from pruning.models.deploying import plainly

FORMAT = 1
"""The version of plans that is written, and the only one that is read."""
PLAN = "plan.json"


def deployed(model: PrunableModule, *, steps: bool = False) -> nn.Module:
    """Return the user's own network as it is best deployed, in modules of PyTorch's wherever these can hold the widths.

    While neurons are removed, equivalents stand in for `nn.LSTM`, `nn.GRU`, `nn.RNN` and `nn.MultiheadAttention`, which
    cannot hold unequal widths and fewer heads. Here PyTorch's own take their places again where they can: where all
    layers and directions of a recurrent module are as wide as each other (the scope `layer` gives them equal shares),
    where all heads together are as wide as what attention reads. The network then gives what it gave, up to rounding:
    it is run on the example inputs to see it. A state, which had the width that it had before neurons were removed, is
    as wide as the layers are: what makes one by a number of the user's modules (`self.hidden_size`) then makes it so,
    and one that is an input is to be given so. Where its own code makes states of a width that is written into it, what
    stands in stays, and so do their shapes. `Linear`, convolutions and all others are PyTorch's own in any case.

    >>> import pruning
    >>> class Tagger(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.rnn, self.out = nn.LSTM(2, 6, num_layers=2), nn.Linear(6, 3)
    ...     def forward(self, inputs):
    ...         return self.out(self.rnn(inputs)[0])
    >>> found = pruning.discover(Tagger(), torch.ones(4, 1, 2))
    >>> deployed(pruning.select(found, {"rnn.0": torch.tensor([0, 5]), "rnn.1": torch.tensor([1, 2])}))
    Tagger(
      (rnn): LSTM(2, 2, num_layers=2)
      (out): Linear(in_features=2, out_features=3, bias=True)
    )

    Args:
        model: What `discover`, `select`, `reconstruct` or `adapt` gave; it is left as it was.
        steps: Whether its recurrent layers give single steps of up to 32 sequences, as a network that writes or listens
            takes them, by PyTorch's cells: on a processor, without gradients, a layer is then up to four times as fast.
            Their class is one of this library's below PyTorch's own. (The library's language models always do so.) And
            the matrix of an untied decoder lies by columns, which makes it twice as fast for one sequence.

    Raises:
        TypeError: If it is anything else.
    """
    model = _pruned(model)
    found: nn.Module = copied(plainly(model).network if isinstance(model, Discovered) else model)
    return stepping(found) if steps else found


def save(model: PrunableModule, folder: str | Path) -> None:
    """Write a pruned network as a folder: a plan (`plan.json`) and its tensors (safetensors), which hold no code.

    The tensors have the names that they have in `deployed(model)`. A folder that holds an earlier one is written anew:
    the plan takes the earlier one's place in the last step, so that a reader, or a kill, meets the one or the other.

    >>> import tempfile, pruning
    >>> network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> found = pruning.discover(network, torch.ones(1, 3))
    >>> smaller = pruning.select(found, {"0": torch.tensor([6, 1, 2])})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(smaller, folder)
    ...     plan = json.loads((Path(folder) / "plan.json").read_text())
    >>> [(layer["name"], layer["width"], layer["kept"]) for layer in plan["layers"]]
    [('0', 8, [6, 1, 2])]

    Args:
        model: What `discover`, `select`, `reconstruct`, `adapt` or `prune` gave, trained further or not.
        folder: It is made where there is none; other files in it stay.

    Raises:
        TypeError: If the model is a network by itself, which does not know what it was.
        ValueError: If the disk refuses, or the network is not one that `discover` found the neurons of.
    """
    model, path = _pruned(model), _folder(folder)
    if isinstance(model, Discovered):
        plain = plainly(model)
        network, plan = plain.network, plan_of(model, plain.places, plain.numbers)
    else:
        network = model
        plan = {"layers": [{"name": layer.name, "left": layer.width} for layer in model.layers()]}
    tensors = tensors_of(network)
    first: dict[int, str] = {}
    tied = {name: known for name, tensor in tensors.items() if (known := first.setdefault(id(tensor), name)) != name}
    plan |= {
        "tied": tied,
        "trained": [name for name, own in network.named_parameters(remove_duplicate=False) if own.requires_grad],
        "types": unsaved_types(network),
    }
    try:
        _write(path, plan, {name: tensors[name] for name in first.values()})
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"Expected a folder that can be written to at {folder}, got {reason}.") from error


def restore(network: nn.Module, folder: str | Path) -> nn.Module:
    """Return a network, built anew by the user's own code, as the pruned one that `save` wrote; in any process.

    It gives what `deployed` of the saved one gives, to the last bit. Tied parameters are tied, frozen ones are frozen,
    numbers have the types that they had; the device is the given network's, the CPU for one on `meta`, which needs no
    memory. It is in evaluation mode.

    >>> import tempfile, pruning
    >>> def build():
    ...     return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> smaller = pruning.select(pruning.discover(build(), torch.ones(1, 3)), {"0": torch.tensor([6, 1, 2])})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(smaller, folder)
    ...     restored = restore(build(), folder)
    >>> restored
    Sequential(
      (0): Linear(in_features=3, out_features=3, bias=True)
      (1): ReLU()
      (2): Linear(in_features=3, out_features=2, bias=True)
    )
    >>> torch.equal(restored(torch.ones(1, 3)), smaller(torch.ones(1, 3)))
    True

    Args:
        network: A network of the same class, with the settings of the one that was pruned; its weights do not matter,
            and it is left as it was.
        folder: What `save` wrote.

    Raises:
        TypeError: If the network is no module, or the folder no name.
        ValueError: If the folder is missing, damaged, half-written or of another version, or the network is another.
    """
    plan, written = saved(folder)
    if not isinstance(network, nn.Module):
        raise TypeError(f"Expected the user's own network, built anew, got {described(network)}.")
    new = {id(tensor): tensor.clone() for tensor in written.values()}  # lies where sums round as they did
    tensors = {name: new[id(tensor)] for name, tensor in written.items()}
    try:
        smaller = _resized(network, plan)
        filled_in = filled(smaller, tensors, plan["trained"])
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"Expected a network of the class {plan.get('network', 'that was pruned')}, got {type(network).__name__}, "
            f"of which {Path(folder) / PLAN} cannot be made ({error}); build it with the settings that it had."
        ) from error
    for name, kind in plan["types"].items():
        above, _, own = name.rpartition(".")
        buffers = filled_in.get_submodule(above)._buffers
        buffers[own] = buffers[own] if buffers.get(own) is None else buffers[own].to(getattr(torch, kind))  # type: ignore[union-attr]
    return filled_in.eval()


def saved(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the plan that `save` wrote in a folder, and the tensors by their every name, both as they were written.

    Raises:
        ValueError: If the folder is missing, damaged, half-written or of another version.
    """
    path = _folder(folder)
    plan = _plan(path)
    return plan, _tensors(path, plan)


def _folder(folder: Any) -> Path:
    """Return a folder's path; refuse what names none, such as arguments the other way round."""
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"Expected a folder's name, got {described(folder)}; the network comes first, then the folder.")
    return Path(folder)


def _resized(network: nn.Module, plan: Mapping[str, Any]) -> nn.Module:
    """Return the network with the widths and modules of the plan."""
    if isinstance(network, (Discovered, Adapted)):
        raise ValueError(
            f"Expected the user's own network, built anew, got {type(network).__name__}; restore it before it is "
            "discovered or adapted."
        )
    if "parameters" in plan:
        return planned(plan, network)
    if not isinstance(network, PrunableModule):
        raise ValueError(f"Expected a model that says itself where its neurons are, got {type(network).__name__}.")
    names, known = [layer["name"] for layer in plan["layers"]], [layer.name for layer in network.layers()]
    if names != known:
        raise ValueError(f"Expected a model with the layers {names}, got {known}; build it as it was.")
    return network.resized([layer["left"] for layer in plan["layers"]])


def _pruned(model: Any) -> PrunableModule:
    """Return what says where the neurons of a model are."""
    while isinstance(model, Adapted):
        model = model.network
    if not isinstance(model, PrunableModule):
        raise TypeError(
            f"Expected what `discover`, `select`, `reconstruct` or `adapt` gave, got {type(model).__name__}; "
            "hand that over, not the network in it."
        )
    return model


def _write(folder: Path, plan: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors under the name of what they are, then the plan that names them, then remove earlier ones."""
    folder.mkdir(parents=True, exist_ok=True)
    aside, beside = folder / f".{PLAN}.{os.getpid()}", folder / f".tensors.{os.getpid()}"
    try:
        aside.touch()
        save_file(_apart(tensors), beside)
        shutil.copymode(aside, beside)  # `save_file` would let nobody but its owner read it
        digest = _digest(beside)
        file = f"tensors-{digest[:16]}.safetensors"
        _settled(beside, folder / file)
        content = {"tensors": {"file": file, "sha256": digest}, **plan}
        whole = {"format": FORMAT, "sha256": _digest_of(content), **content}
        aside.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        _settled(aside, folder / PLAN)
    finally:
        aside.unlink(missing_ok=True)
        beside.unlink(missing_ok=True)
    for earlier in folder.glob("tensors-*.safetensors"):
        if earlier.name != file:
            earlier.unlink(missing_ok=True)


def _settled(aside: Path, path: Path) -> None:
    """Let a file that is written take its name, once the disk has it."""
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.replace(path)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, none of which sees another's memory."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        where = own.untyped_storage().data_ptr()
        found[name] = own.clone() if where in seen or own.nbytes != own.untyped_storage().nbytes() else own
        seen.add(where)
    return found


def _plan(folder: Path) -> dict[str, Any]:
    """Return the plan in a folder, or refuse what is none."""
    what = f"Expected a network that pruning.save wrote in {folder}"
    if not (folder / PLAN).is_file():
        got = f"no {PLAN}" if folder.is_dir() else "no such folder"
        raise ValueError(f"{what}, got {got}; name a folder that was written whole.")
    try:
        whole = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{what}, got a damaged {PLAN} ({error}); save it again.") from error
    if not isinstance(whole, dict) or "format" not in whole:
        raise ValueError(f"{what}, got another {PLAN}; name a folder that it wrote.")
    version = whole.pop("format")
    if version != FORMAT:
        raise ValueError(f"{what} in format {FORMAT}, got format {version!r}; read it with the version that wrote it.")
    if whole.pop("sha256", None) != _digest_of(whole):
        raise ValueError(f"{what}, got a {PLAN} that was changed since; save it again.")
    return whole


def _tensors(folder: Path, plan: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors that a plan names, by their every name."""
    path = folder / plan["tensors"]["file"]
    what = f"Expected the tensors of {folder / PLAN} in {path.name}"
    if not path.is_file():
        raise ValueError(f"{what}, got no such file; copy the whole folder, or save it again.")
    if _digest(path) != plan["tensors"]["sha256"]:
        raise ValueError(f"{what}, got a damaged file; copy the whole folder, or save it again.")
    found: dict[str, Tensor] = load_file(path)
    return {**found, **{name: found[first] for name, first in plan["tied"].items()}}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
