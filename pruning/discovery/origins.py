"""What a network was before neurons and blocks were removed from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pruning.core.neurons import NeuronLayer
from pruning.discovery.configured import Entry
from pruning.discovery.feeding import StateNames
from pruning.discovery.running import Inputs
from pruning.discovery.shortening import Cut


@dataclass(frozen=True)
class Origin:
    """What a network was before any of its neurons was removed.

    Attributes:
        shapes: Parameter, by its every name in the user's network, computed ones folded → shape.
        names: Parameter → the one name that stands for what is stored once.
        layers: Its layers.
        inputs: What it was called with.
        states: Which of its outputs, as they lie flat, are recurrent states.
        computed: Module that computed its weight in each call → how one is made that has it.
        carried: What its author says of its states, see `pruning.discover`.
    """

    shapes: Mapping[str, tuple[int, ...]]
    names: Mapping[str, str]
    layers: tuple[NeuronLayer, ...]
    inputs: Inputs
    states: frozenset[int] = frozenset()
    computed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    carried: StateNames | None = None


@dataclass(frozen=True)
class Earlier:
    """How a network came to be that had more blocks.

    Attributes:
        plan: How the one that had them came to be, from a network built anew.
        cut: What was done to it so that they went.
        entries: Numbers in configurations that were changed then.
    """

    plan: Mapping[str, Any]
    cut: Cut
    entries: tuple[Entry, ...]
