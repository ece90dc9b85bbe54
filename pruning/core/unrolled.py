"""Recurrent layers whose gradient is differentiated again in two more passes over their steps, each of a few products.

PyTorch's own way there is to differentiate every operation of every step, and oneDNN's fused LSTM fills zeros of all
steps for each step besides. Here q_t = x_t + W h_{t−1}, where x are the products of all steps' inputs at once, is bent
by each neuron alone: s_t = f(q_t, s_{t−1}), the first of its states s being h. With J the slopes of f, which are one
number for each neuron, step, state and argument, and G what arrives from outside:

- the gradient runs backwards: λ_t = G_t + what step t + 1 hands back, δ_t = J_q λ_t, and hands W δ_t and J_s λ_t back;
- its derivative along u is one pass forwards (the tangents q̇ and ṡ, by the same slopes) and the same one backwards, to
  which J̇_q λ and J̇_s λ arrive, how the slopes change along the tangents, and what of δ the change of W takes.

All but the one product with W a step is done for many steps at once (Pearlmutter 1994).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

STRETCH = 2**17
"""Arguments of the steps that are looked at together, so that what is made between stays in the cache."""


@dataclass(frozen=True)
class Kind:
    """What a neuron makes of its arguments q (…, B, arguments, width) and the states (…, states, B, width) before.

    Attributes:
        states: How many numbers it carries on; the first is its output, the second an LSTM's cell.
        memory: Which of them the next step reads besides what W makes of the outputs; None if none.
        pull: (q, before, λ (…, states, B, width)) → what is handed back to the arguments, and to the memory if any.
    """

    states: int
    memory: int | None
    pull: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]

    def slopes(self, q: Tensor, before: Tensor) -> list[Tensor]:
        """Return J_q (…, states, B, arguments, width), and J_s (…, states, B, width) by the memory if any."""
        each = torch.eye(self.states, dtype=q.dtype, device=q.device)[:, None, :, None, None]
        return [slope.transpose(0, 1) for slope in self.pull(q, before, each)]

    def change(self, q: Tensor, before: Tensor, moved: Tensor, moved_before: Tensor, by_state: Tensor) -> list[Tensor]:
        """Return J̇_q λ and J̇_s λ, what the slopes change by along tangents u of arguments and states.

        What is handed back is the gradient of λ · f, whose derivative along u is the gradient of its product with u.
        """
        with torch.enable_grad():
            q, before = q.detach().requires_grad_(), before.detach().requires_grad_()
            pulled = self.pull(q, before, by_state)
            along = (moved, *([] if self.memory is None else [moved_before.select(-3, self.memory)]))
            product = torch.stack([(one * other).sum() for one, other in zip(pulled, along, strict=True)]).sum()
            if not product.requires_grad:  # slopes that never change
                return [torch.zeros_like(one) for one in pulled]
            by_q, by_before = torch.autograd.grad(product, (q, before), materialize_grads=True)
        return [by_q, *([] if self.memory is None else [by_before.select(-3, self.memory)])]


def _lstm_pull(q: Tensor, before: Tensor, by_state: Tensor) -> tuple[Tensor, ...]:
    enter, keep, leave = (q[..., gate, :].sigmoid() for gate in (0, 1, 3))
    content, old = q[..., 2, :].tanh(), before[..., 1, :, :]
    bent = (keep * old + enter * content).tanh()
    shown, cell = by_state[..., 0, :, :], by_state[..., 1, :, :]
    cell = cell + shown * (leave * (1 - bent * bent))
    ways = (content * enter * (1 - enter), old * keep * (1 - keep), enter * (1 - content * content))
    return torch.stack([*(cell * way for way in ways), shown * (bent * leave * (1 - leave))], -2), cell * keep


def _gru_pull(q: Tensor, before: Tensor, by_state: Tensor) -> tuple[Tensor, ...]:
    reset, kept, recalled = q[..., 0, :].sigmoid(), q[..., 1, :].sigmoid(), q[..., 3, :]
    new, shown = (q[..., 2, :] + reset * recalled).tanh(), by_state[..., 0, :, :]
    content = shown * ((1 - kept) * (1 - new * new))
    update = shown * ((before[..., 0, :, :] - new) * kept * (1 - kept))
    recall = content * reset
    return torch.stack([recall * (recalled * (1 - reset)), update, content, recall], -2), shown * kept


def _tanh_pull(q: Tensor, _: Tensor, by_state: Tensor) -> tuple[Tensor, ...]:
    return (by_state[..., 0, :, None, :] * (1 - q.tanh().square()),)


def _relu_pull(q: Tensor, _: Tensor, by_state: Tensor) -> tuple[Tensor, ...]:
    return (by_state[..., 0, :, None, :] * (q > 0),)


KINDS = {
    "lstm": Kind(2, 1, _lstm_pull),
    "gru": Kind(1, 0, _gru_pull),
    "rnn_tanh": Kind(1, None, _tanh_pull),
    "rnn_relu": Kind(1, None, _relu_pull),
}
"""PyTorch's recurrent layers by what it calls them."""


def unrolled(
    name: str, inputs: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor], given: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return what a recurrent layer gave, as it follows from inputs, state and weights.

    >>> layer = torch.nn.GRU(2, 3)
    >>> inputs, start = torch.randn(4, 1, 2), torch.zeros(1, 1, 3)
    >>> with torch.no_grad():
    ...     given = layer(inputs, start)
    >>> outputs, _ = unrolled("gru", inputs, [start], list(layer.parameters()), given)
    >>> outputs.requires_grad, torch.equal(outputs, given[0])
    (True, True)

    Args:
        name: One of `KINDS`.
        inputs: (T, B, n).
        state: Each of the states before the first step, (1, B, width).
        weights: By inputs and by outputs, (gates · width, n) and (gates · width, width), then the biases, if any.
        given: The outputs (T, B, width), and each of the states after the last step, (1, B, width), as the layer's own
            kernel gives them, without a graph.
    """
    of_inputs, of_outputs, *biases = weights
    width = of_outputs.shape[1]
    arguments = torch.unflatten(F.linear(inputs, of_inputs, *biases[:1]), -1, (-1, width))
    weight, bias = torch.unflatten(of_outputs, 0, (-1, width)), biases[1].view(-1, width) if biases else None
    if name == "gru":  # the reset gate multiplies what the outputs give the content, so that is an argument by itself
        nothing = torch.zeros_like(weight[:1])
        arguments = F.pad(arguments, (0, 0, 0, 1))
        weight = torch.cat([weight[:2], nothing, weight[2:]])
        bias = None if bias is None else torch.cat([bias[:2], nothing[:, 0], bias[2:]])
    arguments = arguments if bias is None else arguments + bias
    function: Any = Relu if name == "rnn_relu" else _Recurrence
    states, _ = function.apply(KINDS[name], given, arguments, weight.flatten(0, 1), torch.cat(list(state)))
    return states.unbind(1)[0], *(part[None] for part in states[-1].unbind(0))


class _Recurrence(torch.autograd.Function):
    """(kind, given, x (T, B, arguments, width), W (arguments · width, width), first states) → states, arguments.

    Arguments are given out for `_Gradient` alone, so that what comes back to them joins the one pass backwards.
    """

    @staticmethod
    def forward(
        ctx: Any, kind: Kind, given: Sequence[Tensor], inputs: Tensor, weight: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        states = inputs.new_empty(len(inputs), *state.shape)
        states[:, 0] = given[0]
        before = torch.cat([state[None, 0], given[0][:-1]])
        arguments = (inputs.flatten(2) + before @ weight.T).view_as(inputs)
        if kind.states > 1:
            cell, entering, keep = (
                state[1],
                arguments[:, :, 0].sigmoid() * arguments[:, :, 2].tanh(),
                arguments[:, :, 1].sigmoid(),
            )
            for step, added, share in zip(states, entering, keep, strict=True):
                cell = torch.addcmul(added, share, cell, out=step[1])
            states[-1, 1] = given[2][0]  # as the next batch is read with it
        ctx.kind, ctx.slopes = kind, []
        ctx.save_for_backward(weight, state, arguments, states)
        ctx.set_materialize_grads(False)
        return states, arguments

    @staticmethod
    def backward(ctx: Any, outer: Tensor | None, inner: Tensor | None) -> tuple[Tensor | None, ...]:
        weight, state, arguments, states = ctx.saved_tensors
        if not ctx.slopes:
            with torch.no_grad():
                ctx.slopes = _in_stretches(ctx.kind.slopes, arguments, torch.cat([state[None], states[:-1]]))
        outer = torch.zeros_like(states) if outer is None else outer
        function: Any = _Gradient
        return None, None, *function.apply(ctx.kind, ctx.slopes, outer, inner, weight, state, arguments, states)


class Relu(_Recurrence):
    """The same, named in graphs after what has a kink."""


class _Gradient(torch.autograd.Function):
    """What `_Recurrence` hands back, by what arrives, W and all that it made."""

    @staticmethod
    def forward(
        ctx: Any,
        kind: Kind,
        slopes: Sequence[Tensor],
        outer: Tensor,
        inner: Tensor | None,
        weight: Tensor,
        state: Tensor,
        arguments: Tensor,
        states: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        before = torch.cat([state[None], states[:-1]])
        by_argument, by_state, first = _backwards(kind, slopes, weight, outer, inner)
        ctx.kind, ctx.slopes = kind, slopes
        ctx.save_for_backward(weight, arguments, before, by_argument, by_state)
        return by_argument, _products(by_argument, before), first

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, along: Tensor, along_weight: Tensor, along_state: Tensor) -> tuple[Tensor | None, ...]:
        weight, arguments, before, by_argument, by_state = ctx.saved_tensors
        given = along + (before[:, 0] @ along_weight.T).view_as(along)
        moved, states = _forwards(ctx.kind, ctx.slopes, weight, given, along_state)
        moved_before = torch.cat([along_state[None], states[:-1]])
        inner, *of_memory = _in_stretches(ctx.kind.change, arguments, before, moved, moved_before, by_state)
        earlier = torch.zeros_like(states)
        earlier[:, 0] = by_argument.flatten(2) @ along_weight
        for change in of_memory:
            earlier[:, ctx.kind.memory] += change
        outer = torch.cat([earlier[1:], torch.zeros_like(earlier[:1])])
        of_inner = moved if ctx.needs_input_grad[3] else None
        return None, None, states, of_inner, _products(by_argument, moved_before), earlier[0], inner, outer


def _in_stretches(function: Callable[..., Sequence[Tensor]], *tensors: Tensor) -> list[Tensor]:
    """Return what a function gives for all steps, some at a time."""
    steps = max(1, STRETCH // tensors[0][0].numel())
    found: list[Tensor] = []
    for number, parts in enumerate(zip(*(torch.split(tensor, steps) for tensor in tensors), strict=True)):
        given = function(*parts)
        found = found or [each.new_empty(len(tensors[0]), *each.shape[1:]) for each in given]
        for whole, part in zip(found, given, strict=True):
            whole[number * steps : number * steps + len(part)] = part
    return found


def _products(by_argument: Tensor, before: Tensor) -> Tensor:
    """Return Σ δ_t h_{t−1}ᵀ over steps and examples, (arguments · width, width)."""
    return by_argument.flatten(2).flatten(0, 1).T @ before[:, 0].flatten(0, 1)


def _forwards(
    kind: Kind, slopes: Sequence[Tensor], weight: Tensor, given: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Return how arguments and states move where what is given to each step does."""
    moved, states = torch.empty_like(given), state.new_empty(len(given), *state.shape)
    turned = weight.T
    for step, (x, q, after) in enumerate(zip(given.flatten(2), moved.flatten(2), states, strict=True)):
        torch.addmm(x, state[0], turned, out=q)
        torch.sum(slopes[0][step] * q.unflatten(1, given.shape[2:]), 2, out=after)
        for by_memory in slopes[1:]:
            after.addcmul_(by_memory[step], state[kind.memory])
        state = after
    return moved, states


def _backwards(
    kind: Kind, slopes: Sequence[Tensor], weight: Tensor, outer: Tensor, inner: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return δ and λ of all steps, and what is handed back to the states before the first.

    Args:
        kind: Of the neurons.
        slopes: Those of all steps.
        weight: W.
        outer: What arrives at each step's states.
        inner: What arrives at each step's arguments.
    """
    by_state, by_argument = torch.empty_like(outer), outer.new_empty(*slopes[0].shape[:1], *slopes[0].shape[2:])
    back = torch.zeros_like(outer[0])
    for step in reversed(range(len(outer))):
        reached, own = by_state[step], by_argument[step]
        torch.add(outer[step], back, out=reached)
        torch.sum(slopes[0][step] * reached[:, :, None], 0, out=own)
        if inner is not None:
            own += inner[step]
        torch.mm(own.flatten(1), weight, out=back[0])
        for by_memory in slopes[1:]:
            memory = (by_memory[step] * reached).sum(0)
            back[kind.memory] = memory if kind.memory else back[0] + memory
    return by_argument, by_state, back
