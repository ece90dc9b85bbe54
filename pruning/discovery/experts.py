"""Experts of a mixture that can go as a whole: the router's rows, the parameters, and what counts them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pruning.core.operands import storage_of
from pruning.discovery.configured import EXPERTS
from pruning.discovery.redrawing import redrawn
from pruning.discovery.running import (
    Inputs,
    Still,
    close,
    copied,
    kept_tensors,
    name_of,
    running,
)
from pruning.discovery.values import flat


@dataclass(frozen=True)
class Mixture:
    """Experts of which a router weighs, or chooses, some for each token.

    Attributes:
        name: The module that holds them.
        count: How many there are.
        least: How many must stay: those that are chosen for a token.
        router: The parameter with a row for each expert that scores them.
        tensors: Parameters and buffers with an entry for each along their first dimension, the router's included.
        listed: Whether the module that holds them is a list of them.
        around: The module that holds both router and experts.
        counts: Whether numbers in it that say how many experts there are follow.
    """

    name: str
    count: int
    least: int
    router: str
    tensors: tuple[str, ...]
    listed: bool
    around: str
    counts: bool = False


@dataclass(frozen=True)
class Expert:
    """One expert of a mixture.

    Attributes:
        name: Its name: that of the module that holds the experts, and its number.
        mixture: What it is one of.
        number: Its number in it.
        parameters: How many parameters go with it.
        within: The block that it is a part of; none is named.
    """

    name: str
    mixture: Mixture
    number: int
    parameters: int
    within: str = ""

    @property
    def kind(self) -> str:
        """What it is, beside blocks."""
        return "expert"


@dataclass(frozen=True)
class Fewer:
    """What is to be done so that a mixture has fewer experts.

    Attributes:
        mixture: It as it is.
        gone: The numbers of those that go.
    """

    mixture: Mixture
    gone: tuple[int, ...]


def fewer_of(experts: Iterable[Expert]) -> tuple[Fewer, ...]:
    """Return what is to be done so that experts go.

    Raises:
        ValueError: If fewer of a mixture would stay than are chosen for a token.
    """
    gone: dict[str, list[Expert]] = {}
    for expert in experts:
        gone.setdefault(expert.mixture.name, []).append(expert)
    for own in gone.values():
        mixture = own[0].mixture
        if mixture.count - len(own) < mixture.least:
            raise ValueError(
                f"Expected at least {mixture.least} experts of {mixture.name} to stay, since so many are chosen for "
                f"each token, got {mixture.count - len(own)}."
            )
    return tuple(Fewer(own[0].mixture, tuple(sorted(expert.number for expert in own))) for own in gone.values())


def with_fewer(network: nn.Module, parts: Iterable[Fewer]) -> nn.Module:
    """Return a network whose mixtures have fewer experts; it shares all other parameters with the given one."""
    tensors = kept_tensors(network)
    replacing: dict[int, Tensor] = {}
    parts = list(parts)
    for part in parts:
        left = torch.tensor([number for number in range(part.mixture.count) if number not in part.gone])
        for name in part.mixture.tensors:
            tensor = tensors[name]
            some = tensor.detach().index_select(0, left.to(tensor.device))
            is_parameter = isinstance(tensor, nn.Parameter)
            replacing[id(tensor)] = nn.Parameter(some, tensor.requires_grad) if is_parameter else some
    found: nn.Module = copied(network, sharing=True, replacing=replacing)
    alike = len({(part.mixture.count, len(part.gone)) for part in parts}) == 1  # so the whole network can count them
    for part in parts:
        mixture, count = part.mixture, part.mixture.count - len(part.gone)
        held: Any = found.get_submodule(mixture.name)
        for number in reversed(part.gone) if mixture.listed else ():
            del held[number]
        router = found.get_submodule(mixture.router.rpartition(".")[0])
        if isinstance(router, nn.Linear):
            router.out_features = count
        around = mixture.around.split(".")
        above = [found.get_submodule(".".join(around[:end])) for end in range(len(around))] if alike else []
        for module in (*above, *found.get_submodule(mixture.around).modules()) if mixture.counts else ():
            for name, value in list(vars(module).items()):
                if type(value) is int and value == mixture.count and EXPERTS.search(name):
                    setattr(module, name, count)
    return found


class Routed(Still):  # type: ignore[no-untyped-call]
    """A mode in which routers give some experts no chance: −∞ where these are scored."""

    def __init__(self, closed: Iterable[tuple[Tensor, int, Sequence[int]]] = ()) -> None:
        super().__init__()
        self.closed = {storage_of(router): (count, list(gone)) for router, count, gone in closed}
        self.chosen: dict[int, int] = {}

    def see(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what the operation gives, without a chance for some experts."""
        found = super().see(operation, args, kwargs)
        name = name_of(operation)
        if name == "topk":
            size, most = args[0].shape[-1], int(args[1] if len(args) > 1 else kwargs["k"])
            self.chosen[size] = max(most, self.chosen.get(size, 0))
        if name not in ("linear", "addmm", "mm", "matmul") or not isinstance(found, Tensor):
            return found
        for tensor in flat((args, kwargs)):
            if isinstance(tensor, Tensor):
                count, gone = self.closed.get(storage_of(tensor), (0, []))
                if count and found.shape[-1] == count:
                    found = found.index_fill(-1, torch.tensor(gone, device=found.device), -torch.inf)
        return found


def experts_of(network: nn.Module, inputs: Inputs) -> list[Expert]:
    """Return the experts that can go, proved: gone equals never chosen, with weights in general position.

    Args:
        network: It is left as it was.
        inputs: What it is called with.
    """
    found: list[Expert] = []
    candidates = list(_candidates(network))
    if not candidates:
        return []
    drawn = redrawn(network)
    sizes = kept_tensors(network)
    done: set[str] = set()
    for mixture in candidates:
        proved = None if mixture.name in done else _proved(drawn, mixture, inputs)
        if proved is not None:
            done.add(mixture.name)
            own = sum(sizes[name].numel() for name in proved.tensors if isinstance(sizes[name], nn.Parameter))
            listed = [sum(p.numel() for p in part.parameters()) for part in _parts(network, proved)]
            found += [
                Expert(
                    f"{proved.name}.{number}",
                    proved,
                    number,
                    own // proved.count + (listed or [0] * proved.count)[number],
                )
                for number in range(proved.count)
            ]
    return found


def _candidates(network: nn.Module) -> Iterator[Mixture]:
    """Yield what may be a mixture: modules in a list, or parameters of one module, as many as a router has rows."""
    named = dict(network.named_modules())
    for path, module in named.items():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.ModuleList):
            count, tensors = len(module), {}
            if len({type(part) for part in module}) != 1 or not any(True for _ in module.parameters()):
                continue
        else:
            counts = {len(parameter) for parameter in own.values() if parameter.ndim > 2}
            if len(counts) != 1:
                continue
            count = counts.pop()
            tensors = {name: own for name, own in own.items() if len(own) == count}
        around = path
        for _ in range(2 if count > 1 else 0):
            around = around.rpartition(".")[0]
            for where, router in named[around].named_modules(prefix=around):
                weight = router._parameters.get("weight")
                inside = f"{where}.".startswith(f"{path}.")
                if weight is not None and weight.ndim == 2 and len(weight) == count and not inside:
                    beside = [
                        name
                        for name, tensor in (*router._parameters.items(), *router._buffers.items())
                        if tensor is not None and tensor.ndim and len(tensor) == count
                    ]
                    names = (*(f"{where}.{name}" for name in beside), *(f"{path}.{name}" for name in tensors))
                    yield Mixture(
                        path,
                        count,
                        1,
                        f"{where}.weight".lstrip("."),
                        tuple(name.lstrip(".") for name in names),
                        isinstance(module, nn.ModuleList),
                        around,
                    )


def _proved(network: nn.Module, mixture: Mixture, inputs: Inputs) -> Mixture | None:
    """Return the mixture as its experts can go, the first or the last one; None if they cannot."""
    router = network.get_parameter(mixture.router)
    for counts in (True, False):
        tried, good = replace(mixture, counts=counts), True
        for number in (0, mixture.count - 1):
            mode = Routed([(router, mixture.count, [number])])
            try:
                expected = _outputs(network, inputs, mode)
                found = _outputs(with_fewer(network, [Fewer(tried, (number,))]), inputs, Still())
            except Exception:  # whatever a user's code says of fewer experts
                good = False
                break
            tried = replace(tried, least=mode.chosen.get(mixture.count, 1))
            same = len(found) == len(expected) and all(
                close(one, other, mode.rounding) for one, other in zip(found, expected, strict=True)
            )
            differs = not all(map(close, expected, _outputs(network, inputs, Still())))
            good = good and same and (differs or number > 0)
        if good:
            return tried
    return None


def _outputs(network: nn.Module, inputs: Inputs, mode: Still) -> list[Tensor]:
    with running(network, inputs, mode) as (_, found):
        return [tensor.clone() for tensor in found]


def _parts(network: nn.Module, mixture: Mixture) -> list[nn.Module]:
    return list(network.get_submodule(mixture.name).children()) if mixture.listed else []


def run_apart(module: nn.Module) -> None:
    """Let experts of `transformers` run one after the other where a product of all at once does not take their rows.

    That product needs rows of whole 16 bytes, or it stops.
    """
    config: Any = getattr(module, "config", None)
    if getattr(config, "_experts_implementation", None) == "grouped_mm":
        own = [parameter for parameter in module.parameters(recurse=False) if parameter.ndim > 2]
        if any(parameter.shape[-1] * parameter.element_size() % 16 for parameter in own):
            config._experts_implementation = "eager"
