"""Which objective a loss is: those of PyTorch by what they are, any other by what it judges."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from pruning.core.devices import accelerators_among, seeded_on
from pruning.models.alignments import CTC, Alignments
from pruning.models.amounts import SHARES, Amounts, Gaussian, Labels, Squared
from pruning.models.classes import WEIGHTED, Classes, Shares
from pruning.models.examples import PAIRED, TRIPLE, Embeddings, Examples, OwnClasses, OwnExamples, Unjudged, own_loss
from pruning.models.objectives import Criterion, Objective, is_one_of

KNOWN: tuple[tuple[tuple[Any, ...], type[Objective]], ...] = (
    (WEIGHTED, Classes),
    ((nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits, nn.MultiLabelSoftMarginLoss, *SHARES), Labels),
    ((nn.MSELoss, F.mse_loss), Squared),
    ((nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, F.l1_loss, F.smooth_l1_loss, F.huber_loss), Amounts),
    ((nn.GaussianNLLLoss, F.gaussian_nll_loss), Gaussian),
    (CTC, Alignments),
    ((*PAIRED, *TRIPLE), Embeddings),
)
"""Criteria by class or function, and what a network is for that is judged by them."""


def kind_of_loss(criterion: Criterion | Objective | None) -> type[Objective] | None:
    """Return what a network is for that is judged by this loss, as far as the loss alone tells; None if not."""
    if criterion is None:
        return Unjudged
    if isinstance(criterion, Objective):
        return type(criterion)
    return next((kind for known, kind in KNOWN if is_one_of(criterion, known)), None)


def objective_of(
    criterion: Criterion | Objective | None,
    targets: Any,
    *,
    example_dim: int = 0,
    steps_first: bool = False,
    shape: torch.Size | None = None,
) -> Objective:
    """Return what a network is for that is judged by this criterion on such targets.

    A criterion that is not known judges classes where targets are whole numbers that the outputs have a row of logits
    for and it judges the rows by their softmax, see `judges_softmax`; else examples.

    >>> objective_of(nn.MSELoss(), torch.zeros(3)).metrics
    {'mean_squared_error': 'lower', 'mean_absolute_error': 'lower'}

    Args:
        criterion: The loss; an objective is returned as it is; None where there is none.
        targets: Of a batch.
        example_dim: The dimension of outputs and targets that runs over examples.
        steps_first: Whether the network carries a state, so that the first dimension runs over steps.
        shape: Of the network's outputs for other examples, if it is known; of no dimension where they are no logits.
    """
    if isinstance(criterion, Objective):
        return criterion
    if criterion is None:
        return Unjudged(own_loss, example_dim)
    whole = targets.data if isinstance(targets, PackedSequence) else targets
    numbers = isinstance(whole, Tensor) and not whole.is_floating_point()
    if criterion is own_loss:
        return OwnClasses(criterion) if numbers and shape != torch.Size() else OwnExamples(criterion, example_dim)
    kind = kind_of_loss(criterion)
    if kind is Classes and isinstance(whole, Tensor) and not numbers and is_one_of(criterion, WEIGHTED[::2]):
        return Shares(criterion)
    if kind is not None and issubclass(kind, Amounts):
        return kind(criterion, steps_first)
    if kind is not None and issubclass(kind, Examples):
        return kind(criterion, example_dim)
    if kind is not None:
        return kind(criterion)
    classes = numbers and (shape is None or _have_rows(shape, whole))
    return Classes(criterion, shape) if classes else Examples(criterion, example_dim)


def judges_softmax(criterion: Criterion, outputs: Tensor) -> bool:
    """Return whether a criterion of class numbers that is not known may judge rows of outputs by their softmax.

    Such a loss is the same whatever is added to all logits of a row, or its outputs are log-probabilities. Thresholds
    of an ordinal scale, or a logit of yes or no for each class, are other numbers then. Numbers of the
    first two classes are drawn here; whatever cannot take these is not known to judge otherwise.

    >>> logits = torch.tensor([[2.0, 1.0, 0.0]])
    >>> judges_softmax(lambda logits, numbers: F.multi_margin_loss(logits, numbers), logits)
    True
    >>> judges_softmax(lambda logits, numbers: F.softplus(-logits)[numbers > 0].sum() + logits.sum(), logits)
    False

    Args:
        criterion: (outputs, targets) → their mean loss.
        outputs: The main output, (…, classes) or (examples, classes, …).
    """
    if outputs.ndim < 2 or not outputs.is_floating_point():
        return True
    generator = torch.Generator().manual_seed(0)
    for dim in (-1, 1):
        rows = outputs.movedim(dim, -1).detach()
        numbers = torch.randint(2, rows.shape[:-1], generator=generator)  # a row may be longer than there are classes
        by = torch.rand(rows.shape[:-1], generator=generator, dtype=torch.float64).to(rows) + 0.5
        judged = [_loss(criterion, outputs.detach() + more, numbers) for more in (0, by.unsqueeze(dim))]
        if all(loss is not None for loss in judged):
            one, other = (float(loss) for loss in judged if loss is not None)
            same = abs(one - other) <= 1e-3 * max(abs(one), abs(other)) or math.isnan(one) or math.isnan(other)
            return same or bool(rows.logsumexp(-1).abs().max() < 0.01)
    return True


def _loss(criterion: Criterion, outputs: Tensor, numbers: Tensor) -> Tensor | None:
    """Return the loss of class numbers, whatever it draws being the same each time; None if it cannot be told."""
    with seeded_on(accelerators_among([outputs]), 0), torch.no_grad():
        try:
            return Classes(criterion).mean(outputs, numbers)
        except Exception:  # whatever a user's code raises
            return None


def _have_rows(shape: torch.Size, targets: Tensor) -> bool:
    """Return whether outputs of this shape have a row of logits for each of such targets."""
    if len(shape) < 2:
        return False
    if targets.ndim == len(shape) - 1:
        return shape[-1] > 1 or shape[1] > 1
    flat = targets.ndim == 1 and len(shape) > 2 and shape[-1] > 1
    return flat and len(targets) > max(shape[:-1])  # else one for each example, which a spiking network's steps share
