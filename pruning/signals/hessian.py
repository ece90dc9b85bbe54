"""The traditional importance, Hessian trace × ‖w‖² / n, with the trace of every neuron from the same probes."""

import logging
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pruning.core import options
from pruning.core.modes import carried, thawed
from pruning.core.neurons import PrunableModule, gather, named_tensors
from pruning.core.progress import Track, silently
from pruning.core.statistics import Moments, merged
from pruning.core.tables import table
from pruning.core.workers import Map, in_turn, one_by_one
from pruning.data.windows import Batches, endless
from pruning.models.base import Measurable, expect_ready
from pruning.signals.curvature import Curvature
from pruning.signals.drawing import Drawn
from pruning.signals.scaling import signal_rows
from pruning.signals.schemas import HESSIAN

logger = logging.getLogger(__name__)

GROUPS = 8
"""Groups that probes are dealt to in turn; their halves are compared, in all 35 ways, to see if rankings agree."""
FEWEST_PROBES = 2 * GROUPS
"""Probes before the ranking's stability is asked for: with fewer, halves agree by luck."""
CERTAINTY = 1.645
"""Standard errors between the estimated reliability and the promised one. In simulations with 12 to 256 neurons, 92 to
100% of runs then had enough probes for the stability asked for; with none, repeated looks leave 35 to 73%."""
FEWEST_NEURONS = 4
"""Neurons of a layer whose ranking is asked for: with fewer, a correlation of ranks tells nothing."""


def hessian(
    model: Measurable,
    windows: Batches,
    *,
    probes: int,
    stability: float,
    seed: int,
    method: options.Curvature = "exact",
    track: Track = silently,
    map: Map = in_turn,
) -> pd.DataFrame:
    """Return the `hessian` table.

    For each neuron with own weights w (n of them):

    - trace: E[Σ v ⊙ Hv] over its weights, v = ±1 at random (Hutchinson 1990), H the Hessian of the loss (nat/token);
      one Hessian-vector product serves all neurons, since v's other entries cancel in expectation;
    - mean_square: ‖w‖² / n;
    - importance: trace × mean_square, the HAP criterion (Yu et al. 2021).

    Each probe reads its own window with carried state, so the standard error covers both the probes and the text.

    Probing stops once the ranking is as stable as asked for: once another run with as many other probes can be expected
    to rank the neurons of every layer alike, with a Spearman correlation of at least `stability` (`rank_reliability`).
    If the budget is spent before, a warning says how stable the ranking became. The other run is one with other probes
    and, as long as no window is read twice, with other text; after that, the text is given.

    The promise is about what two runs of this many probes agree on in expectation: a single pair scatters around it, by
    about 1/√width.

    What reduces the variance, at equal cost (LSTM of 2 × 256 units on the Penn Treebank, one run, neurons' mean): one
    probe a window rather than four of the same graph, by 7%; windows of 8 columns rather than 32, by 19%; windows of
    2 columns more than double it. Antithetic probes are the same probe, since −v gives what v gives; probes with
    orthogonal signs between neurons would leave the variance within a neuron as it is and repeat it in each probe.

    >>> import torch, pruning
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    >>> network[0].weight.data = torch.tensor([[1.0], [2.0]])
    >>> model = pruning.adapt(network, torch.ones(1, 1), loss=nn.CrossEntropyLoss())
    >>> batches = [(torch.tensor([[1.0]]), torch.tensor([0])), (torch.tensor([[3.0]]), torch.tensor([1]))]
    >>> hessian(model, batches, probes=4, stability=0.0, seed=1)["mean_square"].tolist()
    [1.0, 4.0]

    Args:
        model: Any model that knows its loss, differentiable twice.
        windows: Calibration text (or other batches).
        probes: The budget: at most this many Hessian-vector products.
        stability: Spearman correlation with an independent run that is enough, in every layer; of 0 nothing is asked.
        seed: Seed of the probes.
        method: `exact`: the gradient is differentiated again. `differences`: Hv is the difference of the gradients at
            w ± s v over 2s, through kernels that can be differentiated only once; the first probe is also taken
            exactly, and where they disagree, as behind ReLUs, all are exact, and a warning says so. `gauss_newton`:
            the trace of the Hessian's Gauss–Newton part alone, from the gradient by targets drawn from the model: it
            leaves out the curvature of the network itself, which for a model that predicts the right probabilities is
            0 in the mean and is what makes the Hessian's probes differ.
        track: Shows progress.
        map: Who computes: each worker makes some of the probes.

    Raises:
        ValueError: For fewer than two probes, an unknown method, or `gauss_newton` where the loss draws no targets.
    """
    expect_ready(model)
    if probes < 2:
        raise ValueError(f"Expected at least two probes for hessian, whose spread is its error, got {probes}.")
    layers = model.layers()
    squares = mean_squares(model)
    groups = {layer.name: [Moments.empty(layer.width) for _ in range(GROUPS)] for layer in layers}
    reached: float | None = None
    reading = _Reading(model, Curvature(model, layers, method=method, generator=torch.Generator()), seed)
    with reading.running(), closing(_probed(reading, model.pairs(windows), probes, map)) as probed:
        for index, traces in zip(track(range(probes), "hessian, probes"), probed, strict=False):
            for name, trace in traces.items():
                groups[name][index % GROUPS].update(trace[None])
            if index + 1 >= FEWEST_PROBES and (index + 1) % GROUPS == 0:
                reached = _weakest(groups, squares)
                if reached >= stability:
                    break
    if stability > 0 and (reached is None or reached < stability):
        known = "too few to tell" if reached is None else f"they show {reached:.2f}"
        logger.warning(
            "The Hessian's ranking by %d probes is not shown to agree with that by other probes to %.2f (%s); "
            "where you choose by it, give more probes, or the method 'gauss_newton', which needs the fewest.",
            probes, stability, known,
        )  # fmt: skip
    return _hessian_table(groups, squares)


def mean_squares(model: PrunableModule) -> dict[str, Tensor]:
    """Return ‖w‖² / n over the own weights of each layer's neurons, (width,) float64: what a trace is multiplied by."""
    tensors = named_tensors(model)
    return {layer.name: gather(layer.owned, tensors).cpu().double().square().mean(1) for layer in model.layers()}


Traces = Mapping[str, Tensor]
"""Layer → one estimate of each neuron's trace, (width,)."""


def _probed(reading: "_Reading", windows: Batches, probes: int, map: Map) -> Generator[Traces]:
    """Yield one probe after the other, at most so many."""
    stretches, carry = islice(_stretches(reading.model, windows), probes), None
    if reading.curvature.method == "differences":  # the first one says whether they will do
        first, carry = reading.read(next(stretches), None)
        yield first
    yield from one_by_one(map, reading, stretches, carry)


def _stretches(model: Measurable, windows: Batches) -> Iterator[list[tuple[Any, bool]]]:
    """Yield batches again and again, each alone with those before it in which no target counts.

    Beside each stands whether it is the text's first, before which there is no state.

    Raises:
        ValueError: If no target counts in any batch.
    """
    length = len(windows)
    numbered = ((batch, index % length == 0) for index, batch in enumerate(endless(windows)))
    while True:
        stretch = []
        for batch, first in islice(numbered, length):
            stretch.append((batch, first))
            if model.weight(batch[1]):
                break
        else:
            raise ValueError(f"Expected targets that count in some of {length} batches, got none; all are ignored.")
        yield stretch


@dataclass(frozen=True)
class _Reading:
    """One probe of the last batch of those that are read; the carry is a `Drawn`.

    Attributes:
        model: The model.
        curvature: What probes it.
        seed: Of the probes.
    """

    model: Measurable
    curvature: Curvature
    seed: int

    @contextmanager
    def running(self) -> Iterator[None]:
        with self.curvature.running(), thawed(self.model):
            yield

    def read(self, batches: Iterable[tuple[Any, bool]], carry: Drawn | None) -> tuple[Traces, Drawn]:
        (inputs, targets), state = self._come_to(batches, carry)
        traces, after = self.curvature.estimate(inputs, targets, state)
        return traces, Drawn(after, self.curvature.generator.get_state())

    def passed(self, batches: Iterable[tuple[Any, bool]], carry: Drawn | None) -> Drawn:
        (inputs, targets), state = self._come_to(batches, carry)
        after = carried(self.curvature.passed(inputs, targets, state))
        return Drawn(after, self.curvature.generator.get_state())

    def _come_to(self, batches: Iterable[tuple[Any, bool]], carry: Drawn | None) -> tuple[Any, Any]:
        """Return the batch to probe on and the state to read it with; the curvature's generator stands where it is."""
        carry = carry or Drawn.of(self.seed)
        self.curvature.generator.set_state(carry.random)
        *before, (last, is_first) = batches
        state = carry.state
        for (inputs, _), first in before:
            state = self.model.passed(inputs, None if first else carried(state))
        return last, None if is_first else carried(state)


def _weakest(groups: Mapping[str, Sequence[Moments]], squares: Mapping[str, Tensor]) -> float:
    """Return the reliability of the ranking in the layer where it is lowest."""
    asked = [name for name, scale in squares.items() if len(scale) >= FEWEST_NEURONS]
    return min((rank_reliability(groups[name], squares[name]) for name in asked), default=1.0)


def rank_reliability(groups: Sequence[Moments], scale: Tensor) -> float:
    """Return how well the ranking of neurons can be trusted to come out again, at least.

    r is the Spearman correlation between two halves of the groups, averaged over all splits into equal halves. The
    whole is longer than its halves: two independent wholes agree with 2r / (1 + r) (Spearman 1910; Brown 1910). From
    Fisher's z = artanh of that, `CERTAINTY` standard errors 1/√(width − 3) are taken off, so that probing does not
    stop by luck.

    Args:
        groups: An even number of states of disjoint, equally many probes of one layer.
        scale: What a trace is multiplied by to give the importance that is ranked, (width,).
    """
    means = torch.stack([group.mean * scale for group in groups])
    members = range(1, len(groups))
    ones = [[0, *others] for others in combinations(members, len(groups) // 2 - 1)]
    rest = [[index for index in members if index not in chosen] for chosen in ones]
    halves = _ranks(means[torch.tensor(ones)].mean(1)), _ranks(means[torch.tensor(rest)].mean(1))
    r = (halves[0] * halves[1]).sum(1).mean().clamp(min=0)
    whole = (2 * r / (1 + r)).clamp(max=1 - 1e-9)
    return float(torch.tanh(torch.atanh(whole) - CERTAINTY / (len(scale) - 3) ** 0.5))


def _ranks(values: Tensor) -> Tensor:
    """Return the ranks in each row, centred and of length 1, so that products are Spearman correlations.

    Equals have the mean of their ranks. A row in which all are equal tells none from another and correlates with none.
    """
    ordered = values.sort(1).values
    below, upto = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    ranks = (below + upto - 1).double() / 2
    centred = ranks - ranks.mean(1, keepdim=True)
    unit: Tensor = centred / centred.norm(dim=1, keepdim=True).clamp(min=0.5)  # the least length of one that varies
    return unit


def _hessian_table(groups: Mapping[str, Sequence[Moments]], squares: Mapping[str, Tensor]) -> pd.DataFrame:
    parts = []
    for name, mean_square in squares.items():
        estimate = merged(groups[name])
        components = {
            "trace": estimate.mean,
            "trace_standard_error": estimate.standard_error,
            "mean_square": mean_square,
        }
        importance, error = estimate.mean * mean_square, estimate.standard_error * mean_square
        parts.append(signal_rows(name, components, importance, error, estimate.count))
    return table(HESSIAN, pd.concat(parts, ignore_index=True))
