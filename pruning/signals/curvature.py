"""One probe of every neuron's curvature: exact, by the difference of two gradients, or of the Gauss–Newton part."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, get_args

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pruning.core import options
from pruning.core.devices import finest, twice_differentiable
from pruning.core.modes import derivatives, differentiating, evaluating, expect_twice, operations_behind
from pruning.core.neurons import NeuronLayer, gather, real_pairs
from pruning.models.base import Measurable

logger = logging.getLogger(__name__)

TOLERANCE = 0.01
"""Distance of the first probe's traces by differences from the exact ones, over the latter's length, in any layer.
Smooth networks are at 2e-4 in float32; behind ReLUs, whose kinks the differences step over, it is 2 to 11."""
KINKED = (
    *("Abs", "AdaptiveMax", "Amax", "Amin", "Clamp", "Fmod", "Fractional", "Hard", "L1Loss", "LeakyRelu", "Max"),
    *("Median", "Min", "Multi", "Prelu", "Relu", "Rrelu", "Softshrink", "Sort", "Threshold", "Topk"),
)
"""How names of what PyTorch differentiates operations by begin whose derivative jumps. Few inputs may step over none of
their kinks in the first probe and over one in the next."""
STEP = 0.5
"""Of the step of differences, in units of ∛(machine epsilon) × the weights' root mean square: where rounding (∝ 1/step)
and truncation (∝ step²) weigh about as much."""


class Curvature:
    """Gives one unbiased estimate of every neuron's trace after another, each from a batch of its own.

    >>> import pruning
    >>> network = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
    >>> network[1].weight.data = torch.tensor([[3.0, 0.0]])
    >>> model = pruning.adapt(network, torch.ones(1, 1), loss=torch.nn.MSELoss())  # (3 w x − y)²: 2 · 3² x² by w
    >>> curvature = Curvature(model, model.layers(), method="exact", generator=torch.Generator())
    >>> curvature.estimate(torch.ones(1, 1), torch.ones(1, 1), None)[0]["0"].tolist()
    [18.0, 0.0]

    Attributes:
        method: What the next estimate is made by; `differences` becomes `exact` where the first ones disagree.
    """

    def __init__(
        self,
        model: Measurable,
        layers: Sequence[NeuronLayer],
        *,
        method: options.Curvature,
        generator: torch.Generator,
    ) -> None:
        options.expect_known("method", get_args(options.Curvature), method, where=" of hessian")
        self.model, self.layers, self.method, self.generator = model, layers, method, generator
        self.parameters = owned_parameters(model, layers)
        self._trusted = False

    def running(self) -> AbstractContextManager[object]:
        """Return the context in which the model is to be, while estimates are made."""
        return evaluating(self.model) if self.method == "exact" else differentiating(self.model)

    def estimate(self, inputs: Any, targets: Any, state: Any) -> tuple[dict[str, Tensor], Any]:
        """Return each layer's traces, (width,), and the state to carry on from."""
        if self.method == "gauss_newton":
            return self._of_drawn_targets(inputs, targets, state)
        signs = self._signs()
        if self.method == "exact":
            return self._exact(signs, inputs, targets, state)
        if self._trusted:
            return self._by_differences(signs, inputs, targets, state)
        with evaluating(self.model):
            exact, after = self._exact(signs, inputs, targets, state)
        reason = self._mistrusted(exact, signs, inputs, targets, state)
        if reason:
            self.method = "exact"
            logger.warning("Differences of gradients are no Hessian here, for %s; every probe is exact.", reason)
        self._trusted = True
        return exact, after

    def passed(self, inputs: Any, targets: Any, state: Any) -> Any:
        """Return the state after a batch, to the bit as the next estimate would, and draw as it would.

        The first estimate by differences is no next one: only afterwards is it known what is made of the others.
        """
        if self.method == "gauss_newton":
            return self.model.passed_drawing(inputs, targets, state, self.generator, taps=False)
        signs = self._signs()
        if self.method == "exact":
            with twice_differentiable():
                return self.model.read(inputs, state)
        states, size = [], step_of(self.parameters.values())
        for step in (size, -size):
            with _moved_by(self.parameters, signs, step):
                states.append(self.model.read(inputs, state))
        return pytree.tree_map(_between, *states)

    def _signs(self) -> dict[str, Tensor]:
        """Return ±1 for each number of each parameter."""
        return {
            name: torch.randint(0, 2, p.shape, generator=self.generator).to(p) * 2 - 1
            for name, p in ((name, real_pairs(p)) for name, p in self.parameters.items())
        }

    def _mistrusted(
        self, exact: Mapping[str, Tensor], signs: Mapping[str, Tensor], inputs: Any, targets: Any, state: Any
    ) -> str:
        """Return why differences of gradients cannot stand for the Hessian; empty if they can."""
        with evaluating(self.model), twice_differentiable():  # whose kernels show what they are made of
            names = sorted(operations_behind([self.model.loss(inputs, targets, state)[0]]))
        kinked = next((name for name in names if name.startswith(KINKED)), None)
        if kinked:
            return f"the derivative of {kinked.partition('Backward')[0]} jumps"
        traces, _ = self._by_differences(signs, inputs, targets, state)
        apart, where = max((_distance(traces[name], exact[name]), name) for name in traces)
        return f"the first ones are {apart:.2g} from the exact traces in layer {where}" if apart > TOLERANCE else ""

    def _exact(
        self, signs: Mapping[str, Tensor], inputs: Any, targets: Any, state: Any
    ) -> tuple[dict[str, Tensor], Any]:
        """Return v ⊙ Hv summed over each neuron's weights, the gradient differentiated again."""
        parameters = list(self.parameters.values())
        with twice_differentiable():
            loss, after = self.model.loss(inputs, targets, state)
            gradients = derivatives(loss, parameters, create_graph=True)
        expect_twice(self.model, gradients)
        products = derivatives(gradients, parameters, along=list(signs.values()))
        probed = {name: v * hv for (name, v), hv in zip(signs.items(), products, strict=True)}
        return {layer.name: gather(layer.owned, probed).sum(1) for layer in self.layers}, after

    def _by_differences(
        self, signs: Mapping[str, Tensor], inputs: Any, targets: Any, state: Any
    ) -> tuple[dict[str, Tensor], Any]:
        """Return v ⊙ (g(w + s v) − g(w − s v)) / 2s summed over each neuron's weights, through whatever kernels."""
        size = step_of(self.parameters.values())
        sums, states = [], []
        for step in (size, -size):
            with _moved_by(self.parameters, signs, step):
                loss, after = self.model.loss(inputs, targets, state)
                gradients = derivatives(loss, self.parameters.values())
            probed = {name: v * g for (name, v), g in zip(signs.items(), gradients, strict=True)}
            sums.append({layer.name: _summed(gather(layer.owned, probed)) for layer in self.layers})
            states.append(after)
        forward, backward = sums
        traces = {name: (forward[name] - backward[name]) / (2 * size) for name in forward}
        return traces, pytree.tree_map(_between, *states)

    def _of_drawn_targets(self, inputs: Any, targets: Any, state: Any) -> tuple[dict[str, Tensor], Any]:
        """Return ‖g‖² / n over each neuron's weights, g the gradient by targets drawn from the model, summed over n.

        Gradients of targets that are drawn apart are independent and 0 in the mean, so that the square of their sum
        is in the mean the sum of their squares, which is the trace of the Gauss–Newton part.
        """
        objective = self.model.objective(targets)
        if not objective.drawn:
            raise ValueError(
                f"Expected a loss whose targets can be drawn for hessian's method gauss_newton, got {objective.name}; "
                "use method exact or differences."
            )
        outputs, after = self.model.predicted(inputs, state)
        loss = objective.fisher_loss(outputs, targets, self.generator)
        gradients = derivatives(loss, self.parameters.values())
        squares = {name: g.square() for name, g in zip(self.parameters, gradients, strict=True)}
        count = self.model.count(targets)
        return {layer.name: _summed(gather(layer.owned, squares)) / count for layer in self.layers}, after


def owned_parameters(model: Measurable, layers: Sequence[NeuronLayer]) -> dict[str, Tensor]:
    """Return the parameters that hold neurons' own weights, by name."""
    owned = {piece.parameter for layer in layers for piece in layer.owned}
    return {name: parameter for name, parameter in model.named_parameters() if name in owned}


def step_of(parameters: Iterable[Tensor]) -> float:
    """Return how far weights are moved to take differences of gradients: `STEP` × ∛ε × their root mean square."""
    whole = [real_pairs(parameter.detach()) for parameter in parameters]
    norm = torch.stack([tensor.float().norm().cpu() for tensor in whole]).norm().item()
    size = math.sqrt(norm**2 / sum(tensor.numel() for tensor in whole)) or 1.0
    return STEP * math.cbrt(max(torch.finfo(tensor.dtype).eps for tensor in whole)) * size


@contextmanager
def _moved_by(parameters: Mapping[str, Tensor], signs: Mapping[str, Tensor], step: float) -> Iterator[None]:
    """Within the context the parameters are moved by step × signs; then they are, to the bit, as they were."""
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with torch.no_grad():
        try:
            for name, parameter in parameters.items():
                real_pairs(parameter).add_(signs[name], alpha=step)
            with torch.enable_grad():
                yield
        finally:
            for name, parameter in parameters.items():
                parameter.copy_(before[name])


def _summed(rows: Tensor) -> Tensor:
    """Return the sum of each row, in the finest type there is: two of them are subtracted from one another."""
    return rows.to(finest(rows.device)).sum(1)


def _distance(estimate: Tensor, exact: Tensor) -> float:
    """Return ‖estimate − exact‖ / ‖exact‖; 0 of two that are 0."""
    apart, length = (values.double().norm().item() for values in (estimate.cpu() - exact.cpu(), exact.cpu()))
    return apart / length if length else float(apart > 0)


def _between(one: Any, other: Any) -> Any:
    """Return the middle of two states' numbers, which differ from the unmoved model's in second order alone."""
    numbers = isinstance(one, Tensor) and (one.is_floating_point() or one.is_complex())
    return torch.lerp(one.detach(), other.detach(), 0.5) if numbers else one
