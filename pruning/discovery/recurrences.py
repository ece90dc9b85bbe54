"""Recurrent operations, each one whatever the number of its steps: whose their outputs and states are."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pruning.discovery.propagation import Call
from pruning.discovery.values import Address, Value, column

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
"""Operation → how many stacked copies of its rows a neuron has in a weight."""


def recurrent(call: Call) -> Any:
    """`lstm(x, (h, c), weights, bias, layers, dropout, training, bidirectional, batch_first)` and its kin.

    Of packed sequences: `lstm(data, sizes, (h, c), weights, bias, layers, dropout, training, bidirectional)`.
    """
    packed = isinstance(call.args[1], Value) and isinstance(call.args[3], (list, tuple))
    value, state, weights, biased, layers, _, _, bidirectional = (
        (call.args[0], *call.args[2:]) if packed else call.args[:8]
    )
    states = [state] if isinstance(state, (Value, Address)) else list(state)
    gates, directions = GATES[call.name], 2 if bidirectional else 1
    each = len(weights) // (layers * directions)
    read = call.as_value(value)
    rows: list[Tensor] = []
    cells: list[Tensor] = []
    functions = call.function
    for layer in range(layers):
        given = []
        for direction in range(directions):
            row = layer * directions + direction
            own = weights[row * each : (row + 1) * each]
            neurons, cell = _part(call, read, [_row(part, row) for part in states], own, gates, bias=biased)
            rows.append(neurons)
            cells.append(cell)
            given.append(neurons)
        wide = torch.cat(given)
        shape = (*read.places.shape[:-1], len(wide))
        read = Value(wide.expand(shape), functions.expand(shape))
    outputs = call.outputs
    kinds = [rows, cells][: len(outputs) - 1]
    after = zip("hc", kinds, outputs[1:], strict=False)
    return (read, *(_stacked(call, name, kind, part) for name, kind, part in after))


def _row(state: Value | Address, row: int) -> Value | Address:
    """Return the part of a state (layers · directions, B, n) that belongs to one layer and direction."""
    if isinstance(state, Address):
        return Address(state.name, state.shape, tuple(part[row] for part in state.coordinates))
    return Value(state.places[row], state.functions[row], state.padded)


def _stacked(call: Call, name: str, rows: Sequence[Tensor], output: Tensor) -> Value:
    """Return a state after the last step, its rows as wide as each other, so that they go together."""
    for row in rows[1:]:
        call.positions.link(row, rows[0])
    shape = output.shape
    places = torch.stack(list(rows)).view(len(rows), *[1] * (len(shape) - 2), -1).expand(shape)
    return Value(places, call.another(name).expand(shape))


def _part(
    call: Call,
    read: Value,
    states: Sequence[Value | Address],
    weights: Sequence[Address],
    gates: int,
    *,
    bias: bool,
) -> tuple[Tensor, Tensor]:
    """Return one layer's neurons in one direction and its cells, after noting what it reads and owns.

    These are the same but where weights project what the cells give (`proj_size`): nobody sees such cells.
    """
    own, back, *rest = weights
    projection = rest.pop() if len(rest) % 2 else None
    names = [address.name for address in rest] if bias and rest else ["", ""]
    width = back.shape[0] // gates
    if projection is None:
        neurons = cells = call.into.axis(back, 1)
    else:
        neurons, cells = call.into.axis(projection, 0), call.into.axis(projection, 1)
        call.into.owning[projection.name, 0] = None
        call.positions.link(call.into.axis(back, 1), neurons)
        call.positions.freeze(cells, f"{call.module} projects its cells, which it does not show (proj_size)")
        call.positions.mark(neurons, "rnn")
    for address in (own, back, *rest):
        call.positions.link(call.into.axis(address, 0), cells.repeat(gates))
        call.into.owning[address.name, 0] = None
    if len(cells) != width:
        raise ValueError("Expected as many rows for each gate as there are cells.")
    for whose, state in zip((neurons, cells), states, strict=False):
        _begin(call, state, whose)
    seen, functions = (column(part, read.places.ndim - 1) for part in (read.places, read.functions))
    call.uses([read])
    if not read.free:
        call.read(seen, functions, own, 1, names[0], padded=read.padded)
    call.positions.mark(cells, "rnn")
    call.read(neurons, call.function.expand(neurons.shape), back, 1, names[1])
    return neurons, cells


def _begin(call: Call, state: Value | Address, neurons: Tensor) -> None:
    """Let what a state begins with go with the neurons; a layer cuts what is as wide as it was made."""
    if isinstance(state, Address):
        state = call.as_value(state)
    call.begins([state])
    call.positions.link(state.places, neurons)


def recurrent_step(call: Call) -> Any:
    """`lstm_cell(x, (h, c), W, W, b, b)` and its kin: one step, whose state is as wide as its neurons."""
    value, state, *parameters = call.args
    states = [state] if isinstance(state, (Value, Address)) else list(state)
    read, held = call.as_value(value), [call.as_value(part) for part in states]
    call.even([read, *held])
    addresses = [address for address in parameters if isinstance(address, Address)]
    if len(addresses) not in (2, 4) or len(addresses) != len([p for p in parameters if p is not None]):
        return call.unknown([read, *held, *(p for p in parameters if isinstance(p, (Value, Address)))])
    for part in held:
        if not part.free and not bool(part.places.any()):
            call.positions.freeze(
                call.into.axis(addresses[1], 1), f"{call.module} begins with a state of a fixed width"
            )
    gates = GATES[call.name.removesuffix("_cell")]
    neurons, _ = _part(call, read, held, addresses, gates, bias=len(addresses) == 4)
    outputs = call.outputs
    if isinstance(outputs, Tensor):
        return call.value(neurons.expand(outputs.shape))
    cell = outputs[1].shape
    return call.value(neurons.expand(outputs[0].shape)), Value(neurons.expand(cell), call.another("c").expand(cell))
