"""What one reading of the text leaves for all criteria: a mergeable state for each layer, from one pass a window."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from pruning.core.devices import twice_differentiable
from pruning.core.hooks import at_targets
from pruning.core.modes import carried, derivatives, expect_twice, once_alone
from pruning.core.neurons import NeuronLayer, gather, real_pairs
from pruning.core.sketches import covariance_of
from pruning.core.statistics import Covariance
from pruning.models.answers import detached
from pruning.models.base import Measurable
from pruning.models.classes import Classes
from pruning.signals.jackknife import never_run

ROWS = 64
"""Predictions that are summed by group together."""
TOTALS = ("gate", "gate_size", "gate_window", "gate_true", "gate_sampled", "weight_sampled", "snip", "grasp")


@dataclass
class Evidence:
    """Mergeable statistics of one layer over the tokens read; everything but `states` is a sum, in float64 on the CPU.

    ℓ_t is the loss of token t (nat). A window is differentiated by itself, its state coming from the window before
    as a constant. s = Σ_t γ_t h_t is the gradient by a gate m = 1 on the neuron's output within one column of one
    window, where γ_t = ∂Σℓ/∂h_t counts every reader.

    Attributes:
        tokens: Tokens predicted, n.
        totals: By the names in `TOTALS`, each (width,): Σ s; Σ |s|; Σ_windows (Σ_columns s)² / tokens; Σ s²; the same
            with labels sampled from the model; and over own weights w with window gradient g = ∂Σℓ/∂w:
            Σ_windows Σ_w w² g² with sampled labels; Σ_windows Σ_w |w g|; Σ_windows Σ_w w (H g)_w / tokens, H being
            the Hessian of Σℓ, which is left out where PyTorch cannot differentiate the loss twice.
        states: Of the outputs h_t.
        readers: Σ_t γ_t² with sampled labels, (width,); like `states` and `joint`, over tokens that count.
        joint: Tokens by bin of h_t and by group of the prediction, (width, bins, classes).
    """

    tokens: int
    totals: dict[str, Tensor]
    states: Covariance
    readers: Tensor
    joint: Tensor

    @property
    def samples(self) -> int:
        """Tokens so far."""
        return self.tokens

    def merge(self, other: Self) -> Self:
        """Return the state of both samples together."""
        return type(self)(
            self.tokens + other.tokens,
            {name: total + other.totals[name] for name, total in self.totals.items() if name in other.totals},
            self.states.merge(other.states),
            self.readers + other.readers,
            self.joint + other.joint,
        )


@dataclass(frozen=True)
class Partition:
    """How outputs and predictions are binned, so that their joint distribution can be counted.

    Attributes:
        edges: Layer name → each neuron's ascending inner edges, (width, bins − 1).
        shares: (outputs (n, values)) → the share of each group in each target's prediction, (n, groups).
    """

    edges: Mapping[str, Tensor]
    shares: Callable[[Tensor], Tensor]


def partition(
    model: Measurable,
    batch: Sequence[Any],
    *,
    bins: int,
    classes: int,
    layers: Sequence[NeuronLayer] = (),
    later: Iterable[Sequence[Any]] = (),
) -> Partition:
    """Return bins of equal frequency for each neuron, and groups of token types of equal predicted probability.

    Both are taken from one window, where its targets count, and then fixed; the bins of a layer that it does not run,
    being one of another path, from the first that does. Token types are grouped in the order of their mean predicted
    probability on it, likely ones first. Where the model's outputs are no classes, a prediction is in one of as many
    groups of equal frequency along the direction in which the window's outputs differ most.

    Args:
        model: In evaluation mode.
        batch: The (inputs, targets) that edges and groups come from.
        bins: Bins of each neuron's outputs.
        classes: Groups of token types.
        layers: Those that need bins.
        later: What follows the batch; none is read that is not needed.

    Raises:
        ValueError: If no batch runs one of the layers.
    """
    objective, wanted = model.objective(batch[1]), model.counted(batch[1])
    with torch.no_grad():
        edges = _edges(model, batch, bins)
        rows = objective.rows(model.predicted(batch[0])[0], batch[1])
        rows = rows if wanted.all() else rows[wanted]
        batches = iter(later)
        while unread := [layer.name for layer in layers if layer.name not in edges]:
            if (following := next(batches, None)) is None:
                raise ValueError(never_run(unread[0]))
            if model.count(following[1]):
                edges = _edges(model, following, bins) | edges
    grouped = _of_types if isinstance(objective, Classes) else _of_places
    return Partition(edges, grouped(rows, classes))


def _edges(model: Measurable, batch: Sequence[Any], bins: int) -> dict[str, Tensor]:
    """Return the inner edges of bins of equal frequency of each layer that a window runs."""
    wanted, shares = model.counted(batch[1]), torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
    outputs = {name: at_targets(values, wanted, model.example_dim) for name, values in model.outputs(batch[0]).items()}
    return {name: torch.quantile(h.cpu().double(), shares, dim=0).T.contiguous() for name, h in outputs.items()}


def _of_types(rows: Tensor, classes: int) -> Callable[[Tensor], Tensor]:
    """Return what gives the probability of each group of token types, by logits of one window."""
    return partial(_shares_of_types, _groups(rows, classes), classes)


def _groups(rows: Tensor, classes: int) -> Tensor:
    """Return which group each token type is in, by logits of one window."""
    ordered, types = rows.softmax(-1).cpu().double().mean(0).sort(descending=True, stable=True)
    middles = (ordered.cumsum(0) - ordered / 2) / ordered.sum()
    groups = torch.empty_like(types)
    groups[types] = (middles * classes).long().clamp(max=classes - 1)
    return groups


def _shares_of_types(groups: Tensor, classes: int, logits: Tensor) -> Tensor:
    if logits.shape[-1] != len(groups):  # another path answers by types of its own
        groups = _groups(logits, classes)
    return _by_class(logits.softmax(-1).cpu(), groups, classes)


def _of_places(rows: Tensor, classes: int) -> Callable[[Tensor], Tensor]:
    """Return what gives which group along the main direction of one window's outputs a prediction is in."""
    values = rows.cpu().double()
    mean = values.mean(0)
    direction = torch.linalg.svd(values - mean, full_matrices=False).Vh[0]
    inner = torch.linspace(0, 1, classes + 1, dtype=torch.float64)[1:-1]
    edges = torch.quantile(_places(mean, direction, rows), inner)
    return partial(_shares_of_places, mean, direction, edges)


def _places(mean: Tensor, direction: Tensor, outputs: Tensor) -> Tensor:
    common = min(outputs.shape[1], len(mean))  # of a longer or shorter target: a sequence's steps, say
    along: Tensor = (outputs[:, :common].cpu().double() - mean[:common]) @ direction[:common]
    return along


def _shares_of_places(mean: Tensor, direction: Tensor, edges: Tensor, outputs: Tensor) -> Tensor:
    return F.one_hot(torch.searchsorted(edges, _places(mean, direction, outputs)), len(edges) + 1).double()


def gather_evidence(
    model: Measurable,
    layers: Sequence[NeuronLayer],
    batch: Sequence[Any],
    state: Any,
    *,
    partition: Partition,
    generator: torch.Generator,
    rank: int | None = None,
) -> tuple[dict[str, Evidence], Any]:
    """Return one window's evidence for each layer that it runs, and the state to carry on from.

    One forward pass serves three backward ones: by true labels, by labels sampled from the model, and the product of
    the Hessian with the gradient. The outputs themselves come from a pass without the decoder, which is the part
    that costs.
    """
    inputs, targets = batch
    outputs = model.outputs(inputs, state)
    layers = [layer for layer in layers if layer.name in outputs]
    found, rows, after = _derivatives(model, layers, inputs, targets, state, generator)
    wanted = model.counted(targets).cpu()
    predicted, count = partition.shares(rows), model.count(targets)
    evidence = {}
    for layer in layers:
        hidden = outputs[layer.name].cpu().double()
        true, sampled = (found.by_output[labels][layer.name].cpu().double() for labels in ("true", "sampled"))
        counted = _at_outputs(wanted, hidden.shape, model.example_dim)
        reading = sampled * counted.view(*hidden.shape[:2], 1)
        kept = hidden.flatten(0, 1)[counted]
        states = covariance_of(layer.width, rank)
        states.update(kept)
        evidence[layer.name] = Evidence(
            count,
            {**_gate_totals(hidden, true, sampled, count), **found.by_weight[layer.name]},
            states,
            reading.square().sum((0, 1)),
            _joint(kept, partition.edges[layer.name], _at_outputs(predicted, hidden.shape, model.example_dim)[counted]),
        )
    return evidence, carried(after)


def _at_outputs(values: Tensor, shape: torch.Size, example_dim: int) -> Tensor:
    """Return what belongs to each target, (n, …), at each of a layer's outputs, (steps · examples, …).

    Args:
        values: As many for each example; each belongs to as many of its steps, in their order.
        shape: The outputs' shape, (steps, examples, width).
        example_dim: Whether the targets run over examples first (0) or last (1).

    Raises:
        ValueError: If an example has not as many targets as another.
    """
    (steps, examples), rest = shape[:2], values.shape[1:]
    if len(values) < examples and examples % len(values) == 0:  # several inputs, read one after the other
        values = values.repeat(examples // len(values), *[1] * len(rest))
    each = len(values) // examples
    if each * examples != len(values) or not each:
        raise ValueError(f"Expected as many targets for each of {examples} × {steps} outputs, got {len(values)}.")
    ordered = values.view(each, examples, *rest) if example_dim else values.view(examples, each, *rest).transpose(0, 1)
    if steps % each:  # a forecast of some steps, say: all of them belong to every output
        ordered, each = ordered.any(0)[None] if ordered.dtype == torch.bool else ordered.mean(0)[None], 1
    return ordered.repeat_interleave(steps // each, dim=0).flatten(0, 1)


@dataclass(frozen=True)
class _Derivatives:
    """γ by labels (`true`, `sampled`) and layer, (steps, examples, width); sums over own weights by layer and name."""

    by_output: Mapping[str, Mapping[str, Tensor]]
    by_weight: Mapping[str, Mapping[str, Tensor]]


def _derivatives(
    model: Measurable,
    layers: Sequence[NeuronLayer],
    inputs: Any,
    targets: Tensor,
    state: Any,
    generator: torch.Generator,
) -> tuple[_Derivatives, Tensor, Any]:
    """Return the derivatives of a window's summed loss, the outputs, (n, values), and the state."""
    names = {piece.parameter for layer in layers for piece in layer.owned}
    weights = {name: parameter for name, parameter in model.named_parameters() if name in names}
    count, objective = model.count(targets), model.objective(targets)
    with twice_differentiable():
        outputs, offsets, after = model.tapped(inputs, state)
        true, gradients, curved = _true(model, objective.likelihood_loss(outputs, targets), weights, offsets)
        sums = {
            "snip": _over_own(layers, weights, gradients, lambda w, g: (w * g).abs()),
        }
        if curved is not None:
            sums["grasp"] = _over_own(layers, weights, curved, lambda w, c: w * c / count)
        del gradients, curved  # each as large as the model
        loss = objective.fisher_loss(outputs, targets, generator)
        found = derivatives(loss, [*weights.values(), *offsets.values()])
    slopes = dict(zip(weights, found, strict=False))
    sums["weight_sampled"] = _over_own(layers, weights, slopes, lambda w, g: (w * g).square())
    by_weight = {layer.name: {total: values[layer.name] for total, values in sums.items()} for layer in layers}
    by_output = {"true": true, "sampled": dict(zip(offsets, found[len(weights) :], strict=True))}
    return _Derivatives(by_output, by_weight), objective.rows(detached(outputs), targets), after


def _over_own(
    layers: Sequence[NeuronLayer],
    weights: Mapping[str, Tensor],
    slopes: Mapping[str, Tensor],
    term: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    """Return the sums over each neuron's own weights by layer, (width,); terms are made of one layer at a time."""
    sums = {}
    for layer in layers:
        names = {piece.parameter for piece in layer.owned}
        terms = {name: term(real_pairs(weights[name].detach()), slopes[name]) for name in names}
        sums[layer.name] = gather(layer.owned, terms).cpu().double().sum(1)
    return sums


def _true(
    model: Measurable, loss: Tensor, weights: Mapping[str, Tensor], offsets: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor] | None]:
    """Return γ by layer, g and H g by parameter, from the loss by true targets; the graph stays for sampled ones.

    There is no H g where PyTorch cannot differentiate the loss twice.
    """
    found = derivatives(loss, [*weights.values(), *offsets.values()], create_graph=True)
    gradients, by_output = found[: len(weights)], found[len(weights) :]
    still = [gradient.detach() for gradient in gradients]
    true, slopes = (
        dict(zip(offsets, (g.detach() for g in by_output), strict=True)),
        dict(zip(weights, still, strict=True)),
    )
    try:
        expect_twice(model, gradients)
        curved = derivatives(gradients, weights.values(), along=still, retain_graph=True)
    except (RuntimeError, NotImplementedError) as error:
        if not once_alone(error):
            raise
        return true, slopes, None
    return true, slopes, dict(zip(weights, curved, strict=True))


def _gate_totals(hidden: Tensor, true: Tensor, sampled: Tensor, tokens: int) -> dict[str, Tensor]:
    """Return the totals that come from gate gradients; all arguments (T, B, width)."""
    columns, drawn = (hidden * true).sum(0), (hidden * sampled).sum(0)
    return {
        "gate": columns.sum(0),
        "gate_size": columns.abs().sum(0),
        "gate_window": columns.sum(0).square() / tokens,
        "gate_true": columns.square().sum(0),
        "gate_sampled": drawn.square().sum(0),
    }


def _by_class(probabilities: Tensor, groups: Tensor, classes: int) -> Tensor:
    """Return the probability of each group of token types, (samples, classes)."""
    members = F.one_hot(groups, classes).double()
    # some rows at a time: all of them in float64 would be as large as the logits twice over
    return torch.cat([rows.double() @ members for rows in torch.split(probabilities, ROWS)])


def _joint(hidden: Tensor, edges: Tensor, predicted: Tensor) -> Tensor:
    """Return how many tokens, split by predicted probability, fall in each bin and group, (width, bins, classes)."""
    places = torch.searchsorted(edges, hidden.T.contiguous())
    # one bin after the other: all of them at once would hold a number for each neuron, token and bin
    return torch.stack([(places == place).double() @ predicted for place in range(edges.shape[1] + 1)], dim=1)
