"""What code does only while a network is trained, such as drawing by a learned spread: cut with the same neurons."""

import contextlib
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from pruning.discovery.findings import Propagation, Ways
from pruning.discovery.positions import Axis, Indices
from pruning.discovery.running import Inputs, Seeing, kept_tensors, running
from pruning.discovery.states import Feeding
from pruning.discovery.tracing import propagated


def trained_too(
    network: nn.Module, inputs: Inputs, prefix: str, found: Propagation, feeding: Feeding | None = None
) -> None:
    """Let parameters that only training reads, or writes into, go with the neurons that they belong to then.

    The network runs once more, as it does while it is trained, if some of its parameters, or of what it keeps (a mean
    of what its neurons gave), took no part in the first run, or if its code writes into parameters then: a teacher's
    follow the student's by momentum, as many of which may be left, and others. Of what that run tells, only what these
    hold of neurons that were found is taken over.

    Args:
        network: It is left as it was.
        inputs: What it is called with.
        prefix: What its parameters' names are preceded by.
        found: What the network tells otherwise; it gets to know more.
        feeding: If its state goes from call to call: how.
    """
    tensors = {prefix + name: tensor for name, tensor in kept_tensors(network).items()}
    changed = {prefix + name for name in _written(network, inputs, feeding)}
    kept = [name for name, buffer in network.named_buffers() if buffer.numel() > 1 and buffer.is_floating_point()]
    if not changed and all(prefix + name in found.met for name in (*dict(network.named_parameters()), *kept)):
        return
    ways: list[Propagation] = []
    with contextlib.suppress(Exception):  # code that cannot be trained on these inputs says so when it is
        ways = [propagated(network, inputs, prefix, training=True, feeding=feeding)]
        if ways[0].paired:  # whose the rows are of what it keeps of pairs, and whose the columns
            both = (Ways(pairs=pair) for pair in range(2))
            ways = [propagated(network, inputs, prefix, training=True, feeding=feeding, ways=way) for way in both]
    followed: set[Axis] = set()
    for each in ways:
        followed |= _taken_over(found, each, changed, tensors, followed)


def _taken_over(
    found: Propagation, more: Propagation, changed: set[str], tensors: Mapping[str, Tensor], before: set[Axis]
) -> set[Axis]:
    """Let what only training reads or writes go with the neurons that a run tells; return the axes but those before."""
    new = more.met - found.met
    followed: set[Axis] = set()
    for groups in more.positions.groups():
        own = [axis for axis in groups.places if axis[0] in new | changed and axis not in before]
        known = [axis for axis in groups.places if axis in found.positions.first and axis[0] in found.met - changed]
        if not own or not known:
            continue
        followed |= {axis for axis in own if axis[0] in new}
        places = torch.cat(
            [_numbers(found, axis, tensors[axis[0]], groups.places[axis]) for axis in (*known[:1], *own, *known[1:])], 1
        )
        found.positions.link(places, places[:, :1])
        if groups.reason:
            found.positions.freeze(places, groups.reason)
    found.owning |= {axis: None for axis in more.owning if axis in followed}
    found.readings += [replace(reading, training=True) for reading in more.readings if reading.axis in followed]
    return followed


def _written(network: nn.Module, inputs: Inputs, feeding: Feeding | None) -> set[str]:
    """Return the parameters that code writes into while it is trained; it is tried where some of them are frozen."""
    seen, parameters = Seeing(), dict(network.named_parameters())
    if all(parameter.requires_grad for parameter in parameters.values()):
        return set()
    inputs = inputs if feeding is None else feeding.inputs
    before = {name: parameter.data_ptr() for name, parameter in parameters.items()}
    with contextlib.suppress(Exception), running(network, inputs, seen, training=True, feeding=feeding) as (traced, _):
        after = dict(traced.named_parameters())
        return {*seen.written, *(name for name, place in before.items() if after[name].data_ptr() != place)}
    return set()


def _numbers(found: Propagation, axis: Axis, tensor: Tensor, places: Indices) -> Tensor:
    """Return the numbers of places along an axis."""
    return found.positions.number(axis, tensor.shape[axis[1]]) + torch.from_numpy(places)
