"""Leaky integrate-and-fire layers: their dynamics, the surrogate of the spike's derivative, and a fast scan over time.

The surrogate is `atan` of both `snntorch` 1.0 and `spikingjelly` 2.0; their layers do not serve here. snntorch's give
float32 spikes whatever the type and cut the reset off from the graph; spikingjelly's have one fixed threshold for all
neurons, hold their state inside, and need torchvision, torchaudio, h5py, tensorboard and more. On a CPU both leave a
Python loop over time (`benchmarks/families.py --libraries` times them). Of PyTorch's own means, `torch.compile` cannot
be differentiated twice and compiles for a minute, and `torch.jit` is deprecated.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SPIKE_SIZE = 0.5
"""Root mean square of spikes at the rate, a quarter, that layers start near."""
FED_BACK = 0.3
"""How large recurrent weights are at first, relative to ±1/√width: larger ones make neurons fire all together."""


class LIF(nn.Module):
    """A layer of leaky integrate-and-fire neurons with soft reset, recurrent or not.

    At each step, with s the spikes (0 or 1) and v the membrane potential after the reset,

        u_t = β ⊙ v_{t−1} + W_ih x_t + b + W_hh s_{t−1},   s_t = [u_t ≥ ϑ],   v_t = u_t − ϑ ⊙ s_t,   β = sigmoid(leak).

    The step function's derivative is replaced by an arctangent's (Fang et al. 2021), through the reset as well:
    σ'(z) = (slope / 2) / (1 + (π / 2 · slope · z)²) at z = u − ϑ.

    Attributes:
        weight_ih: (width, inputs).
        weight_hh: (width, width); only of a recurrent layer.
        bias: (width,).
        leak: (width,), the logit of β, the share of the potential that a step keeps.
        threshold: (width,), ϑ.
        slope: How steep the surrogate is.
        least_rate: Spikes a step below which training wakes a neuron, see `woken`; 0 for none.
        pace: Share of the learning rate that suits its parameters. Spikes are all of one sign, so that a step on every
            weight moves the current by width × the step; at the full rate neurons soon fire always or never.
    """

    weight_hh: nn.Parameter | None
    pace = 0.25

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        recurrent: bool,
        leak: float,
        threshold: float,
        slope: float,
        least_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.slope, self.least_rate = slope, least_rate
        self.weight_ih = nn.Parameter(torch.empty(width, inputs))
        self.register_parameter("weight_hh", nn.Parameter(torch.empty(width, width)) if recurrent else None)
        self.bias = nn.Parameter(torch.zeros(width))
        self.leak = nn.Parameter(torch.full((width,), math.log(leak / (1 - leak))))
        self.threshold = nn.Parameter(torch.full((width,), float(threshold)))
        for matrix in (self.weight_ih, self.weight_hh):
            if matrix is not None:
                nn.init.uniform_(matrix, -1 / math.sqrt(matrix.shape[1]), 1 / math.sqrt(matrix.shape[1]))

    def awake(self, size: float) -> None:
        """Scale the initial weights so that inputs of root mean square `size` move the potential by a threshold a step.

        A layer whose inputs are small against its threshold says nothing of them and, with a surrogate derivative that
        vanishes far from the threshold, never learns to.
        """
        with torch.no_grad():
            self.weight_ih.mul_(math.sqrt(3) * self.threshold.mean() / size)
            if self.weight_hh is not None:
                self.weight_hh.mul_(FED_BACK)

    def forward(
        self, inputs: Tensor, state: tuple[Tensor, ...] | None = None, offset: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the spikes (T, B, width), plus `offset` where it is given, and the state (spikes, potential).

        The recurrent matrix reads the step before's offset too, which is one more input current.
        """
        current = F.linear(inputs, self.weight_ih, self.bias).to(self.threshold.dtype)  # potentials are never coarser
        if offset is not None and self.weight_hh is not None:
            current = torch.cat([current[:1], current[1:] + F.linear(offset[:-1], self.weight_hh)])
        spikes, potential = state or (torch.zeros_like(current[0]), torch.zeros_like(current[0]))
        found = integrate_and_fire(
            current, self.weight_hh, self.leak.sigmoid(), self.threshold, spikes, potential, slope=self.slope
        )
        heard = woken(found[0], self.least_rate) if self.training and self.least_rate else found[0]
        return (heard if offset is None else heard + offset), (found[0][-1], found[1])


def woken(spikes: Tensor, least_rate: float) -> Tensor:
    """Return the spikes (T, B, width) as they are; the gradient that goes back through them also lifts low rates.

    With r_j the mean of neuron j's spikes, it is the gradient of ½ Σ_j max(0, least_rate − r_j)² beside the loss, nat.
    Readers learn faster than spikes come to say something, so that at first every spike is noise to them, and the loss
    silences the neurons; once a potential stays far below its threshold, the surrogate hardly brings it back.

    Args:
        spikes: Of a window.
        least_rate: Spikes a step.
    """
    return _wake(spikes, least_rate)


def integrate_and_fire(
    current: Tensor,
    weight: Tensor | None,
    decay: Tensor,
    threshold: Tensor,
    spikes: Tensor,
    potential: Tensor,
    *,
    slope: float,
) -> tuple[Tensor, Tensor]:
    """Return the spikes of each step and the last potential; see `LIF` for the dynamics.

    First derivatives come from a backward pass written out by hand, whose steps build no graph; where they shall be
    differentiated again, from `stepwise`.

    Args:
        current: Input currents, (T, B, width).
        weight: Recurrent matrix (width, width) or None.
        decay: β, (width,).
        threshold: ϑ, (width,).
        spikes: Spikes of the step before, (B, width).
        potential: Potential after the step before, (B, width).
        slope: How steep the surrogate is.
    """
    spikes_of_steps, last = _scan(current, weight, decay, threshold, spikes, potential, slope)
    return spikes_of_steps, last


def stepwise(
    current: Tensor,
    weight: Tensor | None,
    decay: Tensor,
    threshold: Tensor,
    spikes: Tensor,
    potential: Tensor,
    *,
    slope: float,
) -> tuple[Tensor, Tensor]:
    """Return what `integrate_and_fire` returns, from operations that can be differentiated any number of times."""
    found = []
    for step in current:
        charged = torch.addcmul(step if weight is None else torch.addmm(step, spikes, weight.T), decay, potential)
        spikes = _spike(charged - threshold, slope)
        potential = torch.addcmul(charged, threshold, spikes, value=-1)
        found.append(spikes)
    return torch.stack(found), potential


def surrogate(distance: Tensor, slope: float) -> Tensor:
    """Return the arctangent's derivative that stands for the step function's, at potential − threshold.

    >>> surrogate(torch.tensor([0.0, 1.0]), 2.0)
    tensor([1.0000, 0.0920])
    """
    return slope / 2 / (1 + (math.pi / 2 * slope * distance).square())


class _Spike(torch.autograd.Function):
    """The step function, with the surrogate as its derivative, itself differentiable."""

    @staticmethod
    def forward(ctx: Any, distance: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(distance)
        ctx.slope = slope
        return (distance >= 0).to(distance)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (distance,) = ctx.saved_tensors
        return gradients[0] * surrogate(distance, ctx.slope), None


class _Wake(torch.autograd.Function):
    """The identity, whose gradient gains what lifts low rates."""

    @staticmethod
    def forward(ctx: Any, spikes: Tensor, least_rate: float) -> Tensor:
        steps = spikes.shape[0] * spikes.shape[1]
        ctx.lift = (spikes.mean((0, 1)) - least_rate).clamp(max=0) / steps
        return spikes.view_as(spikes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0] + ctx.lift, None


class _Scan(torch.autograd.Function):
    """`stepwise` with a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        current, weight, decay, threshold, spikes, potential, slope = inputs
        steps, *shape = current.shape
        all_spikes, potentials = current.new_empty(steps + 1, *shape), current.new_empty(steps + 1, *shape)
        distances = torch.empty_like(current)
        all_spikes[0], potentials[0] = spikes, potential
        before, after = (all_spikes[:-1], potentials[:-1]), (all_spikes[1:], potentials[1:])
        for step, spike, held, fires, left, distance in _steps(current, *before, *after, distances):
            if weight is None:
                torch.addcmul(step, decay, held, out=left)
            else:
                torch.addmm(step, spike, weight.T, out=left).addcmul_(decay, held)
            torch.sub(left, threshold, out=distance)
            torch.ge(distance, 0, out=fires)
            left.addcmul_(threshold, fires, value=-1)
        ctx.save_for_backward(current, weight, decay, threshold, spikes, potential, all_spikes, potentials, distances)
        ctx.slope = slope
        return all_spikes[1:].clone(), potentials[-1].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return (*_again(ctx.saved_tensors[:6], ctx.needs_input_grad, gradients, ctx.slope), None)
        _, weight, decay, threshold, _, _, all_spikes, potentials, distances = ctx.saved_tensors
        by_spikes, by_potential = gradients
        slopes = surrogate(distances, ctx.slope)
        by_current, by_left = torch.empty_like(distances), torch.empty_like(distances)
        by_fed_back = torch.zeros_like(by_potential)
        for by_spike, slope, charged, left in _steps(*(t.flip(0) for t in (by_spikes, slopes)), by_current, by_left):
            left.copy_(by_potential)
            fired = (by_spike + by_fed_back).addcmul_(threshold, by_potential, value=-1)
            torch.addcmul(by_potential, fired, slope, out=charged)
            by_potential = charged * decay
            if weight is not None:
                torch.mm(charged, weight, out=by_fed_back)
        by_current, by_left = by_current.flip(0), by_left.flip(0)
        by_distance = by_current - by_left  # through the spike alone
        return (
            by_current,
            None if weight is None else by_current.flatten(0, 1).T @ all_spikes[:-1].flatten(0, 1),
            (by_current * potentials[:-1]).sum((0, 1)),
            -(by_distance + by_left * all_spikes[1:]).sum((0, 1)),
            by_fed_back,
            by_potential,
            None,
        )


def _steps(*sequences: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Return the sequences' steps side by side, as views."""
    return zip(*(sequence.unbind(0) for sequence in sequences), strict=True)


def _again(
    inputs: Sequence[Tensor | None], needed: Sequence[bool], gradients: Sequence[Tensor], slope: float
) -> list[Tensor | None]:
    """Return the gradients by `inputs`, where `needed`, as functions that can be differentiated.

    Each input is seen through a view of its own, so that no path from one input to another is counted.
    """
    seen = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
    outputs = stepwise(*seen, slope=slope)  # type: ignore[arg-type]
    wanted = [tensor for tensor, need in zip(seen, needed, strict=False) if need and tensor is not None]
    derivatives = iter(torch.autograd.grad(outputs, wanted, gradients, create_graph=True, materialize_grads=True))
    return [next(derivatives) if need else None for _, need in zip(seen, needed, strict=False)]


_scan: Callable[..., tuple[Tensor, Tensor]] = _Scan.apply
_spike: Callable[[Tensor, float], Tensor] = _Spike.apply
_wake: Callable[[Tensor, float], Tensor] = _Wake.apply
