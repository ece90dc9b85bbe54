"""A short trial of a model of the user's own: built and run forwards and backwards once, before any stage has it."""

import copy
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from pruning.core.modes import evaluating
from pruning.core.nested import tensors_in
from pruning.core.words import described
from pruning.data.batches import TARGETS, Pair, Split, Unlabelled
from pruning.data.corpus import HELD_OUT, SPLITS
from pruning.data.windows import IGNORED
from pruning.models.adapted import Adapted
from pruning.models.batches import first_inputs, form_of
from pruning.models.calling import forward_names, usual_call
from pruning.models.classes import Classes, Shares
from pruning.models.examples import TRIPLE, OwnClasses
from pruning.models.objectives import Objective, is_one_of
from tasks.common.blame import blaming
from tasks.common.parameters import Unexpected
from tasks.own import UserModel, adapted, read_own

LOOKED_AT = 64
"""Batches of each split whose numbers are looked at; the model is run on the first."""
FEWEST = {"train": 2, "valid": 2, "test": 1, HELD_OUT: 2}
"""Batches that a split is to have: what signals and removals say of themselves comes from two or more."""


def try_own(source: str, *, tokens: int) -> tuple[Adapted, dict[str, str]]:
    """Return the user's model as stages take it, once it has been tried, and why layers cannot be tapped, by layer.

    Args:
        source: `own.module:function`.
        tokens: How many validation targets removals are to be measured on; they are to fill more than a batch.

    Raises:
        Unexpected: With one sentence on what is wrong, and the user's line where a line is to blame.
    """
    user_model = read_own(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _check_parts(user_model, source)
        for name, tensor in user_model.model.state_dict().items():
            _check_finite(tensor, f"finite weights in {name!r} from {source}")
        with blaming(f"batches of (inputs, targets) in `valid` from {source}", about=source):
            first = first_inputs(user_model.model, user_model.valid, user_model.split)
        form = form_of(user_model.model, first, user_model.judge, user_model.example_dim or 0)
        batches = {
            split: _looked_at(user_model, split, user_model.split or form.pair, source) for split in _splits(user_model)
        }
        inputs, advice = batches["valid"][0].inputs, _types(user_model.model, batches["valid"][0])
        with blaming(f"the model of {source} to run on the first batch of valid", advice, about=source):
            with evaluating(user_model.model), torch.no_grad():  # plainly, before `discover` looks into it
                (user_model.call or usual_call(user_model.model, inputs))(user_model.model, inputs, None)
            model = adapted(source)
        classes = _check_passes(model, batches, source)
        for split, some in batches.items():
            for number, (_, targets) in enumerate(some):
                _check_targets(model, targets, classes, f"batch {number} of {split} ({source})")
        count = model.count(batches["valid"][0].targets)
        if count >= tokens:
            raise Unexpected(
                f"Expected oracle.tokens above the {count} targets in the first batch of valid ({source}), "
                f"got {tokens}; raise it, or make the batches smaller."
            )
        with evaluating(model):
            reasons = model.untappable(batches["train"][0][0])
    return model, reasons


def _splits(user_model: UserModel) -> list[str]:
    """Return the names of what batches there are."""
    return [*SPLITS, *([HELD_OUT] if user_model.calibration is not None else [])]


def _check_parts(user_model: UserModel, source: str) -> None:
    """Refuse parts of a `UserModel` that are not what they are to be."""
    if not isinstance(user_model.model, nn.Module):
        raise Unexpected(f"Expected an nn.Module as `model` from {source}, got {type(user_model.model).__name__}.")
    loss = user_model.judge
    if loss is not None and not callable(loss) and not isinstance(loss, Objective):
        raise Unexpected(f"Expected a function as `loss` from {source}, got {type(loss).__name__}.")
    if loss is None and not set(forward_names(user_model.model)[0]) & set(TARGETS):
        raise Unexpected(f"Expected a function as `loss` from {source}, got none; name one, such as nn.MSELoss().")
    for split in _splits(user_model):
        fewest = FEWEST[split]
        batches: Any = getattr(user_model, split)
        if not hasattr(batches, "__iter__") or isinstance(batches, Iterator) or not hasattr(batches, "__len__"):
            raise Unexpected(
                f"Expected batches with a length as `{split}` from {source}, such as a DataLoader or a list, "
                f"got {type(batches).__name__}."
            )
        with blaming(f"batches with a length as `{split}` from {source}"):
            length = len(batches)
        if length < fewest:
            several = f"{fewest} batches" if fewest > 1 else "one batch"
            raise Unexpected(f"Expected at least {several} in `{split}` from {source}, got {length}.")


def _looked_at(user_model: UserModel, split: str, taken_apart: Split, source: str) -> list[Pair]:
    """Return the first batches of a split, each a pair with inputs that are numbers and targets."""
    with blaming(f"batches of (inputs, targets) in `{split}` from {source}"):
        batches = list(islice(getattr(user_model, split), LOOKED_AT))
    if len(batches) < min(FEWEST[split], LOOKED_AT):
        raise Unexpected(
            f"Expected {len(getattr(user_model, split))} batches in `{split}` from {source}, got {len(batches)}."
        )
    pairs = []
    for number, batch in enumerate(batches):
        place = f"batch {number} of {split} ({source})"
        with blaming(f"inputs and targets in {place}", about=place):
            pairs.append(Pair(*taken_apart(batch)))
        inputs, targets = pairs[-1]
        if targets is None or (isinstance(targets, Unlabelled) and not is_one_of(user_model.judge, TRIPLE)):
            raise Unexpected(f"Expected inputs and targets in {place}, got {described(batch)}.")
        tensors = list(tensors_in(inputs))
        if not tensors:
            raise Unexpected(f"Expected inputs that are tensors in {place}, got {described(inputs)}.")
        for tensor in (*tensors, *tensors_in(targets)):
            if not tensor.numel():
                raise Unexpected(f"Expected examples in {place}, got a tensor of shape {tuple(tensor.shape)}.")
            _check_finite(tensor, f"finite numbers in {place}")
    return pairs


def _check_passes(model: Adapted, batches: Mapping[str, list[Pair]], source: str) -> int:
    """Run the first batch of each split forwards, and that of `train` backwards, as in training; return the classes."""
    classes = 0
    for split, [(inputs, targets), *_] in batches.items():
        first, advice = f"the first batch of {split}", _types(model, (inputs, targets))
        runs = blaming(f"the model of {source} to run on {first}", advice, about=source)
        with runs, evaluating(model), torch.no_grad():
            outputs, _ = model.predicted(inputs)
            objective = model.objective(targets)
            rows = objective.rows(outputs, targets)
        classes = rows.shape[-1]
        what = "logits" if isinstance(objective, Classes) else "outputs"
        _check_finite(rows, f"finite {what} from {source} on {first}")
        _check_targets(model, targets, classes, f"batch 0 of {split} ({source})")
        with blaming(f"the criterion of {source} to give one number on {first}", about=source):
            loss = model.judged(outputs, targets)
        _check_finite(loss, f"a finite loss from {source} on {first}")
    inputs, targets = batches["train"][0]
    with blaming(f"the model of {source} to be trained on the first batch of train", about=source):
        trained = copy.deepcopy(model).train()
        loss = trained.loss(inputs, targets)[0]
        learning = [parameter for parameter in trained.parameters() if parameter.requires_grad]
        derivatives = torch.autograd.grad(loss, learning, allow_unused=True) if learning else ()
    for gradient in derivatives:
        if gradient is not None:
            _check_finite(gradient, f"finite gradients from {source} on the first batch of train")
    return classes


def _check_targets(model: Adapted, targets: Any, classes: int, place: str) -> None:
    """Refuse targets of which none counts, and class numbers that are none below the number of logits."""
    objective = model.objective(targets)
    if not isinstance(objective, Classes) or isinstance(objective, Shares | OwnClasses):
        if not model.count(targets):
            raise Unexpected(f"Expected a target that counts in {place}, got none.")
        return
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise Unexpected(f"Expected class numbers as targets in {place}, got {targets.dtype}; use `targets.long()`.")
    counted = model.labels(targets)
    counted = counted[counted != IGNORED]
    wrong = counted[(counted < 0) | (counted >= classes)]
    if len(wrong):
        raise Unexpected(
            f"Expected class numbers from 0 to {classes - 1} in {place}, one for each of the {classes} logits, "
            f"got {int(wrong[0])}."
        )
    if not len(counted):
        raise Unexpected(f"Expected a target that counts in {place}, got {len(targets.flatten())} that are ignored.")


def _check_finite(tensor: Tensor, wanted: str) -> None:
    if tensor.is_floating_point() and not tensor.isfinite().all():
        wrong = tensor[~tensor.isfinite()]
        raise Unexpected(f"Expected {wanted}, got {wrong[0].item()} ({len(wrong)} of {tensor.numel()}).")


def _types(model: nn.Module, batch: tuple[Any, Any]) -> str:
    """Return what to do where inputs and weights are numbers of different types; nothing if they are of one."""
    weights = {tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()}
    inputs = {tensor.dtype for tensor in tensors_in(batch[0]) if tensor.is_floating_point()}
    if not inputs or not weights or inputs <= weights:
        return ""
    return f"the inputs are {_listed(inputs)} and the weights {_listed(weights)}, so convert one of them"


def _listed(types: set[torch.dtype]) -> str:
    return " and ".join(sorted(str(each) for each in types))
