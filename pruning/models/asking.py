"""What a loss that is not known tells when it is asked: whether it judges classes, which it ignores, and by what."""

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pruning.core.devices import accelerators_among, moved, seeded_on
from pruning.core.holding import holding
from pruning.core.modes import evaluating, untouched
from pruning.core.nested import mapped, tensors_in
from pruning.data.batches import TARGETS, Pair, Unlabelled
from pruning.models.answers import has_main, main_of
from pruning.models.arranging import takes
from pruning.models.calling import names_given
from pruning.models.classes import Classes, class_numbers
from pruning.models.examples import Examples, OwnClasses, has_own_loss, names_loss, own_loss
from pruning.models.losses import kind_of_loss
from pruning.models.objectives import Criterion, Objective
from pruning.models.residuals import takes_gradients
from pruning.models.use import Use

logger = logging.getLogger(__name__)

Put = Callable[[Tensor], Any]
"""A main output → all that a network gives, with this one in its place."""
MOST = 16
"""Numbers of classes that are asked about one by one."""


def once_run(model: Any, use: Use) -> Use:
    """Return a network's use with what a run tells: the shape of its main output, or whether it gives a loss itself."""
    own = use.criterion is own_loss
    with evaluating(model), untouched(model), torch.no_grad():
        outputs, _ = model.predicted(use.inputs)
    if own or use.criterion is None:
        asked = not own or set(names_given(model.network, use.inputs)) & set(TARGETS)
        gives = not asked or (has_own_loss(outputs) if own else names_loss(outputs))
        shape = None if has_main(outputs) else torch.Size()
        return replace(use, criterion=own_loss, shape=shape) if gives else replace(use, criterion=None)
    main = main_of(outputs) if has_main(outputs) else None
    if main is None or isinstance(use.criterion, Objective) or not takes(use.criterion, 2):
        return replace(use, shape=torch.Size())
    with holding(model):
        softmax = judges_softmax(use.criterion, main, _putting(outputs))
    return replace(use, shape=main.shape if softmax else torch.Size())


def asked(model: Any, pair: Pair) -> Use:
    """Return a network's use with what its first batch with targets, or without, tells of a loss that is not known.

    That is whether it takes gradients itself, whether numbers that it is given are those of classes, and which of them
    it ignores.
    """
    use: Use = model.use
    labelled = not isinstance(pair.targets, Unlabelled)
    if kind_of_loss(use.criterion) is not None or labelled in use.asked:
        return use
    if use.criterion is own_loss:
        return _own_asked(model, pair, replace(use, asked=use.asked | {labelled}))

    def judged(gradients: bool) -> Tensor:
        model.use = replace(use, differentiates=gradients)
        with evaluating(model), untouched(model):
            loss: Tensor = model.judged(model.predicted(pair.inputs)[0], pair.targets)
            return loss

    with _unheard():
        found = replace(use, differentiates=use.differentiates or takes_gradients(judged), asked=use.asked | {labelled})
    model.use = found
    if isinstance(pair.targets, Unlabelled) and pair.targets.left:
        _expect_no_targets(model, pair.inputs, pair.targets)
    objective = model.objective(pair.targets)
    if not labelled or type(objective) is not Classes or found.differentiates:
        return found
    with evaluating(model), untouched(model), torch.no_grad():
        outputs, _ = model.predicted(pair.inputs)
        if not has_main(outputs):
            return found
        ignored = ignored_by(objective, main_of(outputs), pair.targets, _putting(outputs))
        if ignored is None or _only_whole(objective, outputs, pair.targets):
            return replace(found, shape=torch.Size())
    return replace(found, ignored=ignored)


def _expect_no_targets(model: Any, inputs: Any, targets: Unlabelled) -> None:
    """Say that a loss that could be given targets judges without, where a batch may have some by another name.

    Raises:
        TypeError: If it cannot.
    """
    with evaluating(model), untouched(model), _unheard():
        outputs, _ = model.predicted(inputs)
        try:
            model.judged(outputs, targets)
        except Exception as error:  # whatever a user's code raises that is given no targets
            raise TypeError(targets.unknown()) from error
    if not takes(model.use.criterion, 2):
        return
    logger.warning(
        "The loss is given no targets: of a batch %s stands beside the inputs, under none of the names %s; let `split` "
        "say what of a batch is what.",
        ", ".join(targets.left),
        ", ".join(TARGETS),
    )


def _own_asked(model: Any, pair: Pair, use: Use) -> Use:
    """Return a use that says what a network's own loss is: none without targets, or one of classes with a row each.

    Labels of CTC, say, have no row of logits each.
    """
    model.use = use
    unlabelled = isinstance(pair.targets, Unlabelled)
    if not unlabelled and type(model.objective(pair.targets)) is not OwnClasses:
        return use
    with evaluating(model), untouched(model), torch.no_grad():
        outputs, _ = model.predicted(pair.inputs)
    if unlabelled:
        return replace(use, gives=has_own_loss(outputs))
    rows = len(OwnClasses(own_loss).rows(outputs, pair.targets))
    return use if rows == len(class_numbers(pair.targets)) else replace(use, shape=torch.Size())


def _putting(outputs: Any) -> Put:
    """Return what puts other numbers in the place of the main output, for a loss that reads `outputs.logits`."""
    main = main_of(outputs)

    def put(logits: Tensor) -> Any:
        if isinstance(outputs, Tensor | PackedSequence):
            return logits
        if isinstance(outputs, list | tuple) or (is_dataclass(outputs) and not isinstance(outputs, Mapping)):
            return mapped(lambda part: logits if part is main else part, outputs)
        made = copy.copy(outputs)  # of its own class, such as that of `transformers`
        for name, part in (outputs if isinstance(outputs, Mapping) else vars(outputs)).items():
            if part is main and isinstance(made, MutableMapping):
                made[name] = logits
            elif part is main:
                setattr(made, name, logits)
        return made

    return put


def _alone(logits: Tensor) -> Tensor:
    return logits


def judges_softmax(criterion: Criterion, outputs: Tensor, put: Put = _alone) -> bool:
    """Return whether a criterion of class numbers that is not known may judge rows of outputs by their softmax.

    Such a loss is the same whatever is added to all logits of a row, or its outputs are log-probabilities. Thresholds
    of an ordinal scale, or a logit of yes or no for each class, are other numbers then. Numbers of the
    first two classes are drawn here; whatever cannot take these is not known to judge otherwise.

    >>> from torch.nn import functional as F
    >>> logits = torch.tensor([[2.0, 1.0, 0.0]])
    >>> judges_softmax(lambda logits, numbers: F.multi_margin_loss(logits, numbers), logits)
    True
    >>> judges_softmax(lambda logits, numbers: F.softplus(-logits)[numbers > 0].sum() + logits.sum(), logits)
    False

    Args:
        criterion: (outputs, targets) → their mean loss.
        outputs: The main output, (…, classes) or (examples, classes, …).
        put: Makes of a main output all that the criterion is given.
    """
    if outputs.ndim < 2 or not outputs.is_floating_point():
        return True
    generator = torch.Generator().manual_seed(0)
    for dim in (-1, 1):
        rows = outputs.movedim(dim, -1).detach()
        numbers = torch.randint(2, rows.shape[:-1], generator=generator)  # a row may be longer than there are classes
        by = torch.rand(rows.shape[:-1], generator=generator, dtype=torch.float64).to(rows) + 0.5
        judged = [_loss(criterion, put(outputs.detach() + more), numbers) for more in (0, by.unsqueeze(dim))]
        if all(loss is not None for loss in judged):
            one, other = (float(loss.detach()) for loss in judged if loss is not None)
            same = abs(one - other) <= 1e-3 * max(abs(one), abs(other)) or math.isnan(one) or math.isnan(other)
            return same or bool(rows.logsumexp(-1).abs().max() < 0.01)
    return True


def ignored_by(objective: Classes, outputs: Tensor, targets: Any, put: Put = _alone) -> frozenset[int] | None:
    """Return the class numbers that a loss ignores; None if the numbers of its targets are those of no classes.

    It is asked at outputs that favour no class. A loss of classes raises the logit that a target's number is of, where
    it feels the row at all. Labels of -1 and 1, or classes that are counted from 1, pull at another logit, or at some
    where there is none of their number. A number is ignored where no row is felt, also if all targets are that number.

    >>> from torch.nn import functional as F
    >>> padded = Classes(lambda logits, numbers: F.cross_entropy(logits, numbers, ignore_index=0))
    >>> ignored_by(padded, torch.ones(4, 3), torch.tensor([0, 1, 2, 0]))
    frozenset({0})
    >>> shifted = Classes(lambda logits, numbers: F.cross_entropy(logits, numbers - 1))
    >>> ignored_by(shifted, torch.ones(4, 3), torch.tensor([1, 2, 3, 1])) is None
    True

    Args:
        objective: With the loss, which may be asked whatever the numbers are.
        outputs: The main output for the targets.
        targets: Class numbers of a batch.
        put: Makes of a main output all that the loss is given.
    """
    if not outputs.is_floating_point() or outputs.ndim < 2:
        return frozenset()
    drawn = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    even = (0.1 * drawn).log_softmax(objective.dim_of(outputs, targets)).to(outputs)
    pulls = _pulls(objective, even, targets, put)
    if pulls is None or not bool(pulls.isfinite().all()):
        return frozenset()
    numbers = moved(class_numbers(targets), pulls.device)
    if len(numbers) != len(pulls):
        return frozenset()
    felt, known = (pulls != 0).any(1), (numbers >= 0) & (numbers < pulls.shape[1])
    own = pulls.gather(1, numbers.clamp(0, pulls.shape[1] - 1)[:, None])[:, 0]
    if bool((felt & ~(known & (own < 0))).any()):
        return None
    unfelt = sorted(set(numbers[known & ~felt].tolist()) - set(numbers[felt].tolist()))
    if len(unfelt) > MOST or not isinstance(targets, Tensor):
        return frozenset()
    alone = {number: _pulls(objective, even, torch.full_like(targets, number), put) for number in unfelt}
    return frozenset(number for number, found in alone.items() if found is None or not bool(found.nan_to_num().any()))


def _pulls(objective: Classes, outputs: Tensor, targets: Any, put: Put) -> Tensor | None:
    """Return the loss's gradient by the outputs, a row for each target; None if it cannot be told."""
    logits = outputs.detach().requires_grad_()
    with seeded_on(accelerators_among([outputs]), 0), torch.enable_grad(), _unheard():
        try:
            (found,) = torch.autograd.grad(objective.mean(put(logits), targets), logits)
        except Exception:  # whatever a user's code raises
            return None
    return objective.rows(found, targets)


def _only_whole(objective: Classes, outputs: Any, targets: Any) -> bool:
    """Return whether the loss can be told of whole examples alone, called with other arguments than of classes."""
    with _unheard():
        try:
            objective.mean(outputs, targets)
        except Exception:  # whatever a user's code raises
            try:
                Examples(objective.criterion).mean(outputs, targets)
            except Exception:  # likewise
                return False
            return True
    return False


def _loss(criterion: Criterion, outputs: Any, numbers: Tensor) -> Tensor | None:
    """Return the loss of class numbers, whatever it draws being the same each time; None if it cannot be told."""
    with seeded_on(accelerators_among(list(tensors_in(outputs))), 0), torch.no_grad(), _unheard():
        try:
            return Classes(criterion).mean(outputs, numbers)
        except Exception:  # whatever a user's code raises
            return None


@contextmanager
def _unheard() -> Iterator[None]:
    """Leave out what a user's loss warns of when it is only tried."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
