"""Which objective a loss is: those of PyTorch by what they are, any other by what it judges."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

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
    ignored: frozenset[int] = frozenset(),
) -> Objective:
    """Return what a network is for that is judged by this criterion on such targets.

    A criterion that is not known judges classes where targets are whole numbers that the outputs have a row of logits
    for and it judges the rows by their softmax, see `pruning.models.asking`; else examples.

    >>> objective_of(nn.MSELoss(), torch.zeros(3)).metrics
    {'mean_squared_error': 'lower', 'mean_absolute_error': 'lower'}

    Args:
        criterion: The loss; an objective is returned as it is; None where there is none.
        targets: Of a batch.
        example_dim: The dimension of outputs and targets that runs over examples.
        steps_first: Whether the network carries a state, so that the first dimension runs over steps.
        shape: Of the network's outputs for other examples, if it is known; of no dimension where they are no logits.
        ignored: Class numbers that a criterion that is not known ignores.
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
    return Classes(criterion, shape, ignored) if classes else Examples(criterion, example_dim)


def _have_rows(shape: torch.Size, targets: Tensor) -> bool:
    """Return whether outputs of this shape have a row of logits for each of such targets."""
    if len(shape) < 2:
        return False
    if targets.ndim == len(shape) - 1:
        return shape[-1] > 1 or shape[1] > 1
    flat = targets.ndim == 1 and len(shape) > 2 and shape[-1] > 1
    return flat and len(targets) > max(shape[:-1])  # else one for each example, which a spiking network's steps share
