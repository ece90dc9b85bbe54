"""Convolutions, whose kernels read channels and compute others; so do transposed and grouped ones."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pruning.discovery.kernels import as_channels, by_kernels, is_kernel, is_view
from pruning.discovery.positions import varies
from pruning.discovery.products import applied, bias_added
from pruning.discovery.propagation import Call
from pruning.discovery.values import Address, Value, column, flat


@bias_added
def convolution(call: Call) -> Any:
    """`conv(x (N, C, …), W (out, in / groups, …), b, stride, padding, dilation, groups)`."""
    value, weight, bias, _, padding, _, groups = call.args[:7]
    if call.name == "convolution":
        transposed, groups = call.args[6], call.args[8]
        if transposed:
            call.args = (*call.args[:5], 0, groups, 1)
            return transposed_convolution(call)
    call.means = " by kernels that are computed in each call" if _mixes_channels(call, value, weight) else ""
    if not is_kernel(weight):
        return call.unknown([v for v in call.args if isinstance(v, (Value, Address))])
    shape = call.shape()
    channel = len(shape) - (len(weight.extent) - 2) - 1
    value = call.as_value(value, [channel])
    if is_view(weight):
        return by_kernels(call, value, weight, channel)
    if _is_across(value, weight, channel, padding, shape) and not call.into.ways.turned:
        return applied(call, value, weight, bias, shape)
    as_channels(call, value, channel, weight.shape[2:])
    rows = column(call.into.place(weight, 0), 0)
    call.into.owning[weight.name, 0] = None
    if len(rows) == 1:
        call.positions.freeze(rows, "it computes a single number")
    _biased(call, bias, rows)
    seen = column(value.places, channel)
    bordered = any(size not in (0, "valid") for size in flat([padding]))
    if groups == 1:
        name = bias.name if isinstance(bias, Address) else ""
        if not value.free:
            functions = column(value.functions, channel)
            call.read(seen, functions, weight, 1, name, padding=bordered, padded=value.padded, product=True)
        else:
            call.serve(value, channel, call.into.axis(weight, 1))
    elif _goes_whole(call, value, seen, groups, (weight.shape[1], len(rows) // groups)):
        _grouped(call, value, seen, rows, groups)
    else:
        _alike(call, value, weight, channel, rows, padding=bordered, groups=groups)
    call.positions.mark(rows, "conv")
    view = [len(rows) if dim == channel else 1 for dim in range(len(shape))]
    return call.value(rows.view(view).expand(shape))


def _mixes_channels(call: Call, value: Any, weight: Any) -> bool:
    """Return whether kernels are computed that read neurons as channels; along others they would filter, too."""
    if not isinstance(value, Value) or not isinstance(weight, Value):
        return False
    channel = len(call.shape()) - (weight.places.ndim - 2) - 1
    return not any(varies(value.places, dim) for dim in range(value.places.ndim) if dim != channel)


def _biased(call: Call, bias: Any, rows: Tensor) -> None:
    """Let the numbers of a bias go with the channels that they are added to."""
    if isinstance(bias, Address):
        call.positions.link(column(call.into.place(bias, 0), 0), rows)
        call.into.owning[bias.name, 0] = None


def _is_across(value: Value, weight: Address, channel: int, padding: Any, shape: Sequence[int]) -> bool:
    """Return whether neurons run along other dimensions than that of channels, in which the kernel is one place long.

    A mixer of tokens that is written as a convolution takes each token for a channel; a filter over the time of each
    neuron (a synapse's response) takes each neuron for an example.
    """
    across = [dim for dim in range(len(shape)) if dim != channel and varies(value.places, dim)]
    behind = [dim for dim in across if dim > channel]
    alone = all(weight.shape[dim - channel + 1] == 1 and shape[dim] == value.places.shape[dim] for dim in behind)
    bordered = bool(behind) and any(size not in (0, "valid") for size in flat([padding]))
    return bool(across) and alone and not bordered and not varies(value.places, channel)


def _goes_whole(call: Call, value: Value, seen: Tensor, groups: int, channels: tuple[int, int]) -> bool:
    """Return whether a group goes as a whole; else channels do, one of each group together.

    Whichever are more do, and channels of as many. But a group that reads the network's inputs, or what stays (a bank
    of filters), cannot go.

    Args:
        call: The convolution.
        value: What it reads.
        seen: The places of the channels that it reads.
        groups: How many groups it has.
        channels: How many channels a group reads, and computes.
    """
    known = value.free or (bool(value.places.any()) and (channels[1] < 2 or not call.positions.stay(seen)))
    if call.into.ways.groups or (min(channels) < groups if known else channels[1] < 2):
        call.into.grouped |= min(channels) > 1
        return True
    return False


def _alike(
    call: Call, value: Value, weight: Address, channel: int, rows: Tensor, *, padding: bool, groups: int
) -> None:
    """Let channels that lie alike in the groups go together, those read with the column of the kernels that does."""
    call.even([value])
    call.positions.link(rows.view(groups, -1), rows.view(groups, -1)[:1])
    seen, functions = (column(part, channel).view(groups, -1) for part in (value.places, value.functions))
    call.positions.link(seen, seen.amax(0, keepdim=True))
    call.into.parted[weight.name] = groups
    if not value.free:
        call.read(seen.amax(0), functions[0], weight, 1, "", padding=padding, padded=value.padded)


def _grouped(call: Call, value: Value, seen: Tensor, rows: Tensor, groups: int) -> None:
    """Let the channels that a group reads and those that it computes go as one."""
    call.even([value])
    own, read = rows.view(groups, -1), seen.view(groups, -1)
    call.positions.link(own, own[:, :1])
    call.positions.link(read, own[:, :1])
    if not bool(seen.any()):
        call.positions.freeze(rows, "each of its groups reads some of the model's inputs")


@bias_added
def transposed_convolution(call: Call) -> Any:
    """`conv_transpose(x (N, C, …), W (in, out / groups, …), b, stride, padding, output padding, groups, dilation)`."""
    value, weight, bias, *_, groups, _ = call.args[:8]
    if not isinstance(weight, Address) or len(weight.extent) != len(weight.shape):
        return call.unknown([v for v in call.args if isinstance(v, (Value, Address))])
    shape = call.shape()
    channel = len(shape) - (len(weight.shape) - 2) - 1
    value = call.as_value(value, [channel])
    as_channels(call, value, channel)
    seen, functions = (column(part, channel) for part in (value.places, value.functions))
    call.into.owning[weight.name, 1] = None
    name = bias.name if isinstance(bias, Address) else ""
    if groups == 1:
        rows = column(call.into.place(weight, 1), 1)
        if not value.free:
            call.read(seen, functions, weight, 0, name, padding=True, padded=value.padded, product=True)
    else:
        call.even([value])
        entering = column(call.into.place(weight, 0), 0)
        del call.into.owning[weight.name, 1]
        call.into.owning[weight.name, 0] = None
        rows = entering.view(groups, -1)[:, :1].expand(groups, weight.shape[1]).reshape(-1)
        call.positions.link(entering.view(groups, -1), entering.view(groups, -1)[:, :1])
        call.positions.link(entering, seen)
        if not bool(seen.any()):
            call.positions.freeze(rows, "each of its groups reads some of the model's inputs")
        call.positions.freeze(call.into.place(weight, 1), f"all groups of {call.module} share it")
    _biased(call, bias, rows)
    call.positions.mark(rows, "conv")
    view = [len(rows) if dim == channel else 1 for dim in range(len(shape))]
    return call.value(rows.view(view).expand(shape))
