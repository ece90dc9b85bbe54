"""Recurrences step by step, in products and sums alone, for runtimes of fixed shapes that know no recurrence."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.export.packed import last, turned, within
from pruning.export.recurrences import Standing, State, is_plain
from pruning.models.spiking import LIF


def unrolled(network: nn.Module) -> nn.Module:
    """Return the network itself, its recurrent layers of PyTorch's and its spiking ones done step by step.

    Args:
        network: It is changed, and computes what it did.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, LIF):
            if not name:
                return _Stepped(module)
            network.set_submodule(name, _Stepped(module))
        elif isinstance(module, nn.RNNBase) and is_plain(module):
            module.__class__ = type(type(module).__name__, (_Unrolled, type(module)), {})
    return network


class _Unrolled(Standing):
    """A layer whose steps are as many as the example has."""

    def _run(self, steps: Tensor, state: State, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        directions = 2 if self.bidirectional else 1
        carried = []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(directions):
                row = layer * directions + direction
                before = tuple(part[row] for part in state)
                suffix = f"l{layer}" + ("_reverse" if direction else "")
                read = _backwards(steps, lengths) if direction else steps
                given, after = self._direction(read, before, suffix)
                if lengths is not None:
                    after = (last(given, lengths)[0], *after[1:])
                    given = within(given, lengths)
                outputs.append(_backwards(given, lengths) if direction else given)
                carried.append(after)
            steps = outputs[0] if directions == 1 else torch.cat(outputs, dim=2)
        return steps, tuple(torch.stack(parts) for parts in zip(*carried, strict=True))

    def _direction(self, steps: Tensor, before: State, suffix: str) -> tuple[Tensor, State]:
        """Return the outputs (T, B, n) of one layer in one direction, and its state (B, n) after the last step."""
        outputs = []
        for step in steps.unbind(0):
            before = self._step(step, before, suffix)
            outputs.append(before[0])
        return torch.stack(outputs), before

    def _step(self, entering: Tensor, before: State, suffix: str) -> State:
        """Return the state after one step."""
        own: Any = {name: getattr(self, f"{name}_{suffix}", None) for name in ("bias_ih", "bias_hh", "weight_hr")}
        fed = F.linear(entering, getattr(self, f"weight_ih_{suffix}"), own["bias_ih"])
        kept = F.linear(before[0], getattr(self, f"weight_hh_{suffix}"), own["bias_hh"])
        if self.mode == "LSTM":
            enter, forget, cell, leave = (fed + kept).chunk(4, dim=1)
            memory = forget.sigmoid() * before[1] + enter.sigmoid() * cell.tanh()
            hidden = leave.sigmoid() * memory.tanh()
            return (hidden if own["weight_hr"] is None else F.linear(hidden, own["weight_hr"])), memory
        if self.mode == "GRU":
            (reset, update, new), (reset_kept, update_kept, new_kept) = fed.chunk(3, dim=1), kept.chunk(3, dim=1)
            update = (update + update_kept).sigmoid()
            new = (new + (reset + reset_kept).sigmoid() * new_kept).tanh()
            return (new + update * (before[0] - new),)
        return ((fed + kept).tanh() if self.mode == "RNN_TANH" else (fed + kept).relu(),)


def _backwards(steps: Tensor, lengths: Tensor | None) -> Tensor:
    """Return sequences (T, B, n) read backwards, each within its length if there are lengths."""
    return steps.flip(0) if lengths is None else turned(steps, lengths)


class _Stepped(nn.Module):
    """A spiking layer whose steps are as many as the example has; see `LIF` for the dynamics."""

    def __init__(self, layer: LIF) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, inputs: Tensor, state: tuple[Tensor, ...], _offset: None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the spikes (T, B, n) and the state."""
        layer, decay = self.layer, self.layer.leak.sigmoid()
        (spikes, potential), outputs = state, []
        for entering in F.linear(inputs, layer.weight_ih, layer.bias).unbind(0):
            fed = entering if layer.weight_hh is None else entering + F.linear(spikes, layer.weight_hh)
            charged = fed + decay * potential
            spikes = (charged - layer.threshold >= 0).to(charged.dtype)
            potential = charged - layer.threshold * spikes
            outputs.append(spikes)
        return torch.stack(outputs), (spikes, potential)
