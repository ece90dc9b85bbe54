"""A copy of a network run on its example inputs, every operation seen by a mode as it was called."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pruning.core.devices import full_precision, seeded, states_of
from pruning.core.memory import filled, modules_in
from pruning.core.modes import reassigned
from pruning.core.operands import storage_of
from pruning.core.rebinding import duplicated, rebind
from pruning.core.uncompiled import Mode
from pruning.discovery.beginning import differentiates
from pruning.discovery.moves import DROPOUTS
from pruning.discovery.operations import JUMPS, RULES
from pruning.discovery.states import STEPS, Arguments, Feeding
from pruning.discovery.values import flat

Inputs = tuple[Arguments, ...]
"""The calls by which a network is known: of most it is one; of some, each takes a path that others do not."""
Instead = Mapping[tuple[str, int], Callable[..., Any]]
"""Operation, by when it came → what is done in its place."""
_HOLDERS = (tuple, list, dict)
"""Types of what a module may keep tensors in."""
_DRAWS = (
    "rand randn rand_like randn_like bernoulli normal uniform exponential geometric cauchy log_normal random randint "
    "randint_like poisson multinomial randperm"
)
DRAWS = {*_DRAWS.split()}
"""What draws numbers, also into a tensor that is there."""
CUTTING = {"relu", "relu6", "hardtanh", "hardsigmoid", "hardshrink", "softshrink", "threshold"}
CUTTING |= {"clamp", "clamp_min", "clamp_max"}
"""What gives one number for all that is beyond a bound, so that nothing in front of it may show."""
DRAWN = (0.5, 0.01, 0.99)
"""What stands for numbers that are drawn between 0 and 1: what is compared with them shows with one of these."""


@contextmanager
def running(
    network: nn.Module,
    inputs: Inputs,
    mode: "Seeing",
    prefix: str = "",
    *,
    turns: int = 1,
    training: bool = False,
    feeding: Feeding | None = None,
    own: bool = False,
    seed: int = 0,
) -> Iterator[tuple[nn.Module, list[Tensor]]]:
    """Run a copy of the network on copies of the inputs within a mode; yield that copy and the tensors that it gives.

    In inference mode PyTorch hands operations to a mode as they were called, so that a linear map or an LSTM is one. A
    network that `differentiates` runs with gradients.

    Args:
        network: It is left as it was.
        inputs: What it is called with, call after call; what they give is yielded as if it were of one.
        mode: What sees its operations, counting from 1 in each turn.
        prefix: What its parameters' names are preceded by.
        turns: How often these calls are made, one time after the other; what each turn gives is yielded.
        training: Whether it runs as it does while it is trained.
        feeding: If the network's state goes from call to call: how. All these calls are one turn.
        own: Whether the network itself is run, which nobody needs afterwards.
        seed: Of what it draws, also by Python and NumPy.
    """
    traced = (network if own else copied(network, sharing=True)).train(training)
    inputs = fresh(inputs)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation for a whole layer of a Transformer
    try:
        followed = torch.enable_grad() if differentiates(network) else torch.inference_mode()
        with reassigned(traced), mode.guarding(traced), seeded(network, seed), full_precision(), followed:
            mode.begin(traced, inputs, prefix)
            given = []
            for _ in range(turns):
                mode.restart()
                for before, start in ((None, one) for one in inputs) if feeding is None else feeding.rows(inputs):
                    args, kwargs = start
                    for _ in range(1 if before is None else STEPS):
                        with mode:
                            outputs = traced(*args, **kwargs)
                        given += tensors_in(outputs)
                        args, kwargs = feeding.after(before, outputs) if feeding and before else start
            yield traced, given
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def fresh(given: Any) -> Any:
    """Return what a network is called with, its tensors copied, for the network's code may write into them."""
    return pytree.tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, given)


def tensors_in(given: object) -> list[Tensor]:
    """Return the tensors that an answer consists of, in order, also where it is an object that has them.

    So have distributions, which may consist of others.
    """
    found: list[Tensor] = []
    seen: set[int] = set()
    waiting = pytree.tree_leaves(given)
    while waiting:
        leaf = waiting.pop(0)
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):  # of a class of its own, whose parts may be attributes too
            waiting = [*pytree.tree_leaves(list(leaf.values())), *waiting]
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, nn.Module | type) and id(leaf) not in seen:
            seen.add(id(leaf))
            waiting = [*pytree.tree_leaves(list(vars(leaf).values())), *waiting]
    return found


def copied(module: nn.Module, *, sharing: bool = False, replacing: Mapping[int, Tensor] | None = None) -> Any:
    """Return a copy of a module, also where it keeps a state that belongs to a graph of gradients.

    Args:
        module: It is left as it was.
        sharing: Whether the copy has the same parameters; what it does to its buffers and attributes is its own.
        replacing: By identity of a tensor, what the copy has in its place.
    """
    memo: dict[int, Any] = {}
    for value in (value for part in modules_in(module) for value in filled(part)):
        for leaf in (value,) if isinstance(value, Tensor) else flat(value) if isinstance(value, _HOLDERS) else ():
            if isinstance(leaf, Tensor) and not leaf.is_leaf:
                memo[id(leaf)] = leaf.detach().clone()
    if sharing:
        memo.update({id(parameter): parameter for parameter in module.parameters()})
    memo.update(replacing or {})
    found = duplicated(module, module, memo)
    rebind(found, memo)
    return found


def canonical(network: nn.Module) -> dict[str, str]:
    """Return each parameter's and buffer's every name → the one name that stands for what is stored once."""
    named = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


class Seeing(Mode):  # type: ignore[no-untyped-call]
    """A mode that counts the operations of a network, each known by when it came, or by which of its name it is.

    Attributes:
        counts: That it does, so that no layer computes by other operations where nobody watches it.
    """

    counts = True

    def begin(self, network: nn.Module, inputs: Inputs, prefix: str) -> None:
        """Be told what will run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.restart()
        self._parameters: dict[int, dict[str, nn.Parameter]] = {}
        self._before: dict[str, Tensor] = {}

    @contextmanager
    def guarding(self, network: nn.Module) -> Iterator[None]:
        """Within the context a network's code may write into its parameters; then they hold what they held."""
        self._parameters, self._before = {}, {}
        parameters = dict(network.named_parameters())
        for name, parameter in parameters.items():
            if not parameter.is_meta:
                self._parameters.setdefault(storage_of(parameter), {})[name] = parameter
        try:
            yield
        finally:
            for name, values in self._before.items():
                parameters[name].data.copy_(values)

    @property
    def written(self) -> tuple[str, ...]:
        """The parameters that the network's code wrote into."""
        return tuple(self._before)

    def restart(self) -> None:
        """Count from the beginning."""
        self.index, self._counted = 0, Counter[str]()
        self.when = "", 0

    def __torch_dispatch__(
        self, operation: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Take what is a composition of other operations apart; see all others.

        What is done here is none of the network's calls, which modes see that are still there in what TorchScript runs.
        """
        with torch._C.DisableTorchFunction():
            return self._dispatched(operation, args, kwargs or {})

    def _dispatched(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = name_of(operation)
        if _is_composed(name):
            with self:
                found = operation.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        for tensor in written(operation, args, kwargs):
            for own, parameter in self._parameters.get(storage_of(tensor), {}).items():
                self._before.setdefault(own, parameter.data.clone())
        if name != "detach":  # PyTorch adds one where what an operation gave is held by a mode
            self.index += 1
            self._counted[name] += 1
        self.when = name, self._counted[name]
        return self.see(operation, args, kwargs)

    def see(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what the operation gives."""
        return operation(*args, **kwargs)


_WHOLE = {"item", "is_nonzero", "_local_scalar_dense", "is_floating_point", "is_complex", "data", "size", "numel"}


@functools.cache
def name_of(operation: Any) -> str:
    """Return an operation's name without its overload."""
    return str(operation.overloadpacket).removeprefix("aten.")


@functools.cache
def _is_composed(name: str) -> bool:
    """Return whether an operation is to be taken apart, as far as PyTorch can."""
    return name not in RULES and name.removesuffix("_") not in RULES and name not in _WHOLE


def written(operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the arguments that an operation writes into."""
    if not operation._schema.is_mutable:
        return []
    found: list[Tensor] = []
    for place, argument in enumerate(operation._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            found += [tensor for tensor in flat([value]) if isinstance(tensor, Tensor)]
    return found


def kept_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return parameters, buffers and the tensors that modules keep in other attributes, each by one name."""
    found: dict[str, Tensor] = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    known = {id(tensor) for tensor in found.values()}
    for path, module in network.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, (tuple, list, dict)) and not name.startswith("_"):
                for place, tensor in enumerate(flat(value)):
                    if isinstance(tensor, Tensor) and id(tensor) not in known:
                        found[f"{path}.{name}.{place}".lstrip(".")] = tensor
                        known.add(id(tensor))
    return found


def is_given(module: nn.Module) -> bool:
    """Return whether a module is of a class of PyTorch's own."""
    return type(module).__module__.startswith("torch.nn")


def keeps_own(network: nn.Module) -> bool:
    """Return whether a module that is none of PyTorch's keeps several numbers that are no parameters."""
    own = (module for module in network.modules() if not is_given(module))
    held = (value for module in own for value in flat(vars(module)) if isinstance(value, Tensor))
    return any(
        tensor.is_floating_point() and tensor.numel() > 1 and not isinstance(tensor, nn.Parameter) for tensor in held
    )


class Still(Seeing):  # type: ignore[no-untyped-call]
    """A mode in which nothing is random, and in which chosen operations are done otherwise.

    Attributes:
        rounding: The coarsest that is computed with.
        paths: Module, by its identity → its path in the network that runs.
        drew: Whether something was drawn: it is all the same number.
        drawn: This number; of whole ones, so far from the lowest to the highest.
        spread: Whether what is drawn differs along the first dimension.
        apart: Whether it differs everywhere, as it does: a narrower tensor then has other numbers.
        double: Whether code that asks for numbers of single precision gets double ones.
        watching: Whether what spikes are computed of is kept, which takes a copy of each.
        jumping: The real numbers that were given to what gives the same for many values, as a spike is.
        leaking: Whether what is beyond the bound of a ReLU or of a clamp is not cut off, but halved.
        lone: How often a single number was normalised by itself, which PyTorch refuses of one example.
    """

    def __init__(self, instead: Instead | None = None, drawn: float = DRAWN[0]) -> None:
        super().__init__()
        self.instead, self.drawn = instead or {}, drawn
        self.rounding = 0.0
        self.paths = dict[int, str]()
        self.lone = 0
        self.drew = self.spread = self.apart = self.double = self.watching = self.leaking = False
        self.jumping: list[Tensor] = []

    def begin(self, network: nn.Module, inputs: Inputs, prefix: str) -> None:  # noqa: ARG002 - as every mode is told
        """Know the modules that run, and what would be drawn."""
        self.before = states_of(network)
        self.paths = {id(module): path for path, module in network.named_modules()}
        self.jumping, self.lone = [], 0

    def see(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what the operation gives, or what is to stand for it."""
        name = name_of(operation)
        if self.watching and name.removesuffix("_") in JUMPS:
            self.jumping += [
                part.clone() for part in flat(args) if isinstance(part, Tensor) and part.is_floating_point()
            ]
        if name == "group_norm":
            self.lone += args[0][0].numel() == args[1]
        if self.double:  # `x.float()` is told by place, `x.to(dtype=…)` by name
            args = tuple(torch.float64 if part is torch.float32 else part for part in args)
            kwargs = {key: torch.float64 if part is torch.float32 else part for key, part in kwargs.items()}
        if self.when in self.instead:
            return self.instead[self.when](operation, args, kwargs)
        found = self._leaky(name, operation, args, kwargs) if self.leaking else operation(*args, **kwargs)
        if name.removesuffix("_") in DROPOUTS and not name.endswith("_"):
            return found if isinstance(found, tuple) else args[0].clone()
        if name.removesuffix("_") in DRAWS:
            self.drew = True
            instead = self._drawn(found, operation, args)
            return found.copy_(instead) if name.endswith("_") else instead
        for tensor in flat(found):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.rounding = max(self.rounding, torch.finfo(tensor.dtype).eps)
        return found

    def _leaky(self, name: str, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what an operation gives, of one that cuts off the mean of that and of what it is given."""
        cuts = name.removesuffix("_") in CUTTING
        given = args[0].clone() if cuts and name.endswith("_") else args[0] if cuts else None
        found = operation(*args, **kwargs)
        if given is None or not found.is_floating_point():
            return found
        mean = found.lerp(given.to(found), 0.5)
        return found.copy_(mean) if name.endswith("_") else mean

    def _drawn(self, found: Tensor, operation: Any, args: tuple[Any, ...]) -> Tensor:
        """Return what stands for numbers that were drawn: the same however many there are, unless `apart`."""
        if not found.is_floating_point():  # none that could not have been drawn: these may be places in something
            if name_of(operation) == "randperm":
                return torch.arange(len(found))
            told = dict(zip((argument.name for argument in operation._schema.arguments), args, strict=False))
            low: int = told.get("low", 0)
            many: int = told["high"] - low if "high" in told else 1
            if not self.apart:
                return torch.full_like(found, low + int(self.drawn * many))
            numbers = torch.arange(found.numel(), dtype=found.dtype, device=found.device)
            return (numbers % many + low).view(found.shape)
        if self.apart:  # as far as to be seen where neurons spike, which small numbers do not change
            return torch.linspace(0.25, 64, found.numel(), dtype=found.dtype, device=found.device).view(found.shape)
        return _spread(found) if self.spread else torch.full_like(found, self.drawn)


def _spread(drawn: Tensor) -> Tensor:
    """Return numbers that differ along the first dimension alone: code may divide by how far its draws are apart."""
    if not drawn.ndim:
        return torch.full_like(drawn, 0.5)
    steps = torch.linspace(0.25, 0.75, len(drawn), dtype=drawn.dtype, device=drawn.device)
    return steps.reshape(-1, *[1] * (drawn.ndim - 1)).expand_as(drawn).clone()


def close(one: Tensor, other: Tensor, rounding: float = 0.0, *, power: float = 0.75) -> bool:
    """Return whether two tensors are equal up to the rounding of a sum in another order, to a power of its size."""
    if one.shape != other.shape or not (one.is_floating_point() or one.is_complex()):
        return one.shape == other.shape and torch.equal(one, other)
    rounding = max(rounding, torch.finfo(one.dtype).eps)
    return torch.allclose(one, other, rtol=0, atol=greatest(other) * rounding**power, equal_nan=True)


def greatest(tensor: Tensor) -> float:
    """Return the largest number in a tensor, of those that are finite; next to nothing where there is none."""
    sizes = tensor.detach().abs()
    return max(sizes[sizes.isfinite()].amax().item(), 1e-30) if bool(sizes.isfinite().any()) else 1e-30


@contextmanager
def uncached(network: nn.Module) -> Iterator[list[str]]:
    """Within the context a language model of `transformers` returns no cache of keys and values, which is a state.

    Yields the modules whose configuration asks for one.
    """
    configs: dict[str, Any] = {name: getattr(module, "config", None) for name, module in network.named_modules()}
    cached = {name: config for name, config in configs.items() if getattr(config, "use_cache", None) is True}
    for config in cached.values():
        config.use_cache = False
    try:
        yield list(cached)
    finally:
        for config in cached.values():
            config.use_cache = True
