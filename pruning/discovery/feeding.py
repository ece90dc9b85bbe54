"""Which arguments of a network's forward are a state: what it gives back is what the next call is given."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pruning.core.arguments import parameters_of
from pruning.core.devices import full_precision, seeded
from pruning.core.faults import said
from pruning.discovery.findings import Propagation
from pruning.discovery.running import Inputs, copied, tensors_in
from pruning.discovery.states import Arguments, Feeding, State, argument_of, exchanged, parts, with_argument
from pruning.discovery.values import GIVEN

StateNames = Sequence[str] | Mapping[str, int | str]
"""The names of the arguments that are a state; or each with where among the outputs its new value is."""
_WHEN = "prev|previous|last|old|initial|init|first"
_WHOSE = "rnn|lstm|gru|snn|lif|recurrent|recurrence|decoder|dec|actor|critic|core|cell|model|hidden"
_WHAT = (
    "h|hc|hx|hxs|cx|hs|cs|ht|ct|hn|cn|c_?0|hidden|hiddens|state|states|mem|mems|membrane|membranes|potential|potentials|"
    "syn|syns|carry|buffer|buffers|cache|caches"
)
NAMES = re.compile(rf"(?:(?:{_WHEN}|{_WHOSE})_?)*(?:{_WHAT})(?:_?(?:t|in|{_WHEN}|\d+))*")
"""What an argument is called that is a state and not data; the first one of forward is data whatever it is called."""
WORLD = re.compile(r"(?:current_?|cur_?)?states?(?:_?t)?")
"""What an argument is called that may be the state of neurons or that of a world."""
STARTING = re.compile(
    r"(?:get_?)?(?:init|initial|initialize|zero|begin|start|empty|make|new)_?(?:\w+_)?(?:hidden|states?)"
)
"""What a method is called that makes the first state."""
BESIDE = re.compile(r"(?:c|spks?|spikes?)_?(?:t|in|\d+)*")
"""What an LSTM's memory and a potential's spikes are called beside another state; alone they may be data."""


def feeding_of(
    network: nn.Module, inputs: Inputs, found: Propagation, carried: StateNames | None = None
) -> Feeding | None:
    """Return how a network's state goes from call to call; None if it has none that it takes and gives back.

    An argument is a state if a recurrent cell begins with it, if it is called as states are (`NAMES`) and is not the
    first, or if its author says so; and if the network gives tensors of its shapes besides its answer: the last of
    them, those that are built as it is, or those that its author says. Of a first argument that holds inputs too
    (`forward((x, state))`) it is the last parts. One tensor called `state` that has numbers in it may be a world's.

    Args:
        network: It is left as it was.
        inputs: What it is called with, with or without a state.
        found: What one call tells.
        carried: What its author says; nothing is one if it is empty.

    Raises:
        ValueError: If its author says it of what is no argument, or nothing of its shape is given back.
    """
    if carried is not None and not carried:
        return None
    carried = carried or ()
    names = _likely(network, inputs, found, carried)
    if not names:
        return None
    try:
        feeding = _tried(network, inputs, names, carried)
    except Exception as error:  # whatever a user's code raises, given what it gave
        if carried:
            raise ValueError(
                f"Expected a network that takes what it gives as {list(names)} again, got {said(error)}; say of each "
                "where it is among the outputs: carried={'name': place}."
            ) from error
        return None
    missing = set(carried) - {state.argument.partition("[")[0] for state in (feeding.states if feeding else ())}
    if missing:
        raise ValueError(
            f"Expected of {sorted(missing)[0]!r} in `carried` that the network gives a tensor of its shape besides its "
            "answer, got none; say where it is among the outputs: carried={'name': place}."
        )
    padded = feeding is None or {state.output for state in feeding.states} <= found.states  # recurrent layers' own
    return None if padded else feeding


def _likely(network: nn.Module, inputs: Inputs, found: Propagation, carried: StateNames) -> dict[str, int]:
    """Return the arguments that may be a state, each with its place."""
    args, kwargs = inputs[0]
    given = parts(inputs)
    read = {id(given[GIVEN - number]) for number in found.begun & found.used if GIVEN - number < len(given)}
    begun = {id(given[GIVEN - number]) for number in found.begun - found.used if GIVEN - number < len(given)}
    names: dict[str, int] = {}
    taken = parameters_of(network)
    beside = any(_is_called(each.name, place) for place, each in enumerate(taken))
    for place, each in enumerate(taken):
        if each.kind is Parameter.VAR_POSITIONAL:
            several = range(place, len(args)) if NAMES.fullmatch(each.name) or each.name in carried else ()
            names |= {f"{each.name}[{own - place}]": own for own in several}
        if each.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            continue
        value = argument_of(args, kwargs, each.name, place)
        own = parts(value)
        known = _is_called(each.name, place) or (place and (beside or names) and BESIDE.fullmatch(each.name.lower()))
        data = not own or (id(value) not in read and _of_a_world(network, given, each.name, value))
        named = bool(known) and (each.default is None or not data)
        if each.name in carried or named or any(id(tensor) in begun for tensor in own):
            names[each.name] = place
    if unknown := [name for name in carried if name not in {own.partition("[")[0] for own in names}]:
        raise ValueError(
            f"Expected names of arguments of forward in `carried`, got {unknown[0]!r}; "
            f"known: {[each.name for each in taken]}."
        )
    return names


def _is_called(name: str, place: int) -> bool:
    """Return whether an argument is called as states are, and is not the first."""
    return bool(place and NAMES.fullmatch(name.lower()))


def _of_a_world(network: nn.Module, given: Sequence[Tensor], name: str, value: Any) -> bool:
    """Return whether what is called a state may be that of a world, which is data, and its successor an answer.

    What neurons keep begins with zeros, or its author makes it (`init_hidden`), or there are several tensors of it.
    """
    if not WORLD.fullmatch(name.lower()) or not isinstance(value, Tensor):
        return False
    others = any(bool(tensor.any()) for tensor in given if tensor is not value)
    return (bool(value.any()) or not others) and not any(map(STARTING.fullmatch, dir(type(network))))


def _tried(network: nn.Module, inputs: Inputs, names: Mapping[str, int], carried: StateNames) -> Feeding | None:
    """Return how the state goes from call to call, once it did; it is told from the first of the inputs."""
    empty = [name for name, place in names.items() if not parts(argument_of(*inputs[0], name, place))]
    outputs = [_outputs(network, given) for given in inputs]
    failure: Exception | None = None
    for chosen in _elements(outputs[0], empty, carried):
        whole = []
        for given, gave in zip(inputs, outputs, strict=True):
            for name, key in chosen.items():
                given = with_argument(*given, name, names[name], gave[key])
            whole.append(given)
        places = {**(carried if isinstance(carried, Mapping) else {}), **chosen}
        own = {name: place for name, place in names.items() if name in chosen or name not in empty}
        feeding = _paired(whole, outputs[0], own, places)
        if feeding is None:
            continue
        try:
            _check(network, feeding, outputs)
        except Exception as error:  # whatever a user's code raises, given what it gave
            failure = error
            continue
        optional = {each.name for each in parameters_of(network) if each.default is None}
        both = replace(feeding, begins=(True, False))
        without = {state.argument for state in feeding.states} <= optional and _runs(network, both, outputs)
        return both if without else feeding
    if failure is not None:
        raise failure
    return None


def _elements(outputs: Any, empty: Sequence[str], carried: StateNames) -> Iterator[dict[str, int | str]]:
    """Yield which of the outputs may be the new values of states that are not given, the likeliest first."""
    if not empty:
        yield {}
        return
    keys: list[Any] = list(outputs) if isinstance(outputs, Mapping) else []
    keys = keys or (list(range(len(outputs))) if isinstance(outputs, list | tuple) else [])
    by_name = dict(carried) if isinstance(carried, Mapping) else {}
    by_name = {name: by_name.get(name, name) for name in empty}
    if all(key in keys for key in by_name.values()):
        yield by_name
    for count in range(min(len(empty), len(keys) - 1), 0, -1):
        yield dict(zip(empty[:count], keys[-count:], strict=True))


def _paired(
    inputs: Sequence[Arguments], outputs: Any, names: Mapping[str, int], places: Mapping[str, Any]
) -> Feeding | None:
    """Return how these arguments go from call to call; None where nothing of their shapes is given beside an answer."""
    given = parts(outputs)
    if len(given) != len(tensors_in(outputs)):
        return None
    states: list[State] = []
    rivals: dict[State, tuple[int, ...]] = {}
    for name, place in reversed([*names.items()]):
        value, taken = argument_of(*inputs[0], name, place), {state.output for state in states}
        own = parts(value)
        fitting = _starts(value, own, outputs, taken)
        first = 0
        while not place and not fitting and first + 1 < len(own):  # of `forward((x, state))` the last parts may be one
            first += 1
            fitting = _starts(None, own[first:], outputs, taken)
        if name in places:
            said = parts(outputs[places[name]])
            fitting = [start for start in fitting if said and given[start] is said[0]]
        if not fitting or not own:
            continue
        new = [State(name, place, part, fitting[-1] + part - first) for part in range(first, len(own))]
        states += new
        if name not in places:
            rivals |= {state: tuple(start + state.part - first for start in fitting[:-1]) for state in new}
    answers = set(range(len(given))) - {state.output for state in states}
    others = len(parts(inputs[0])) - len(states)
    if not states or not answers or not others:
        return None
    rivals = {state: tuple(set(own) & answers) for state, own in rivals.items()}
    return Feeding(tuple(states), tuple(inputs), (True,), rivals)


def _starts(value: Any, own: Sequence[Tensor], outputs: Any, taken: Collection[int]) -> list[int]:
    """Return from which of the outputs on these tensors may be given back, where one is built as they are from there.

    Args:
        value: What the tensors are in.
        own: These.
        outputs: What the network gave.
        taken: The outputs that are the new values of others.
    """
    given = parts(outputs)
    found = [
        start
        for start in range(len(given) - len(own) + 1)
        if all(map(_alike, own, given[start:])) and set(taken).isdisjoint(range(start, start + len(own)))
    ]
    built = {start for start, part in _nested(outputs) if not isinstance(value, Tensor) and _is_built_as(part, value)}
    return [start for start in found if start in built] or found


def _nested(outputs: Any, start: int = 0) -> Iterator[tuple[int, Any]]:
    """Yield what outputs consist of, however deep, each with how many tensors come before it."""
    yield start, outputs
    for part in pytree.tree_leaves(outputs, is_leaf=lambda one: one is not outputs):
        if part is not outputs:
            yield from _nested(part, start)
            start += len(parts(part))


def _is_built_as(one: Any, other: Any) -> bool:
    return type(one) is type(other) and pytree.tree_structure(one) == pytree.tree_structure(other)


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _runs(network: nn.Module, feeding: Feeding, outputs: Sequence[Any]) -> bool:
    try:
        _check(network, feeding, outputs)
    except Exception:  # whatever a user's code raises without a state
        return False
    return True


def _check(network: nn.Module, feeding: Feeding, outputs: Sequence[Any]) -> None:
    """Raise whatever the network does where its state goes from call to call, or if that changes its shapes.

    Args:
        network: It is left as it was.
        feeding: How the state goes.
        outputs: What the network gave of each of the inputs.
    """
    for given, expected in zip(feeding.inputs, map(parts, outputs), strict=True):
        for _, arguments in replace(feeding, inputs=(given,)).rows((given,)):
            for _ in range(2):
                gave = _outputs(network, arguments)
                same = len(parts(gave)) == len(expected) == len(parts(outputs[0]))
                if not same or not all(map(_alike, parts(gave), expected)):
                    raise ValueError("what it gives has another shape then")
                arguments = feeding.after(given, gave)


def _outputs(network: nn.Module, given: Arguments) -> Any:
    """Return what the network gives; it, and what it is given, are left as they were."""
    tensors = parts(given)
    args, kwargs = exchanged(given, {place: tensor.clone() for place, tensor in enumerate(tensors)})
    with seeded(network, 0), full_precision(), torch.inference_mode():
        return copied(network, sharing=True).eval()(*args, **kwargs)


def settled(found: Propagation, feeding: Feeding, follow: Callable[[Feeding], Propagation]) -> None:
    """Let a state stay where another output might be its new value as well, by its shape and by what is computed.

    Where the other is taken for it and its neurons are then those of an answer, it is none.

    Args:
        found: What calls that follow each other tell; it gets to know why a state stays.
        feeding: How they do.
        follow: What such calls tell.
    """
    for state, rivals in feeding.rivals.items():
        for rival in rivals:
            swapped = replace(state, output=rival)
            states = tuple(swapped if own == state else own for own in feeding.states)
            if not _one(found, state.output, rival) and not _one(
                follow(replace(feeding, states=states, rivals={})), state.output, rival
            ):
                found.positions.freeze(
                    found.given[state.output],
                    f"outputs {rival} and {state.output} of the model are shaped alike, and either may be the next "
                    f"call's `{state.argument}`; say where it is: `carried={{{state.argument!r}: …}}`",
                )


def _one(found: Propagation, one: int, other: int) -> bool:
    """Return whether two outputs hold the same neurons."""
    members, places = found.positions.members(), (found.given.get(output, torch.zeros(0)) for output in (one, other))
    return torch.equal(*(torch.where(own > 0, members[own], 0) for own in places))
