"""The training loop: truncated back-propagation with carried state, resumable after each epoch, the best one kept."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import length_hint
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from pruning.core.devices import seeded
from pruning.core.modes import carried, evaluating
from pruning.core.neurons import named_buffers, named_tensors
from pruning.core.optimizers import AdamW, clip
from pruning.core.progress import Track, silently
from pruning.data.windows import Batches
from pruning.evaluation.measures import loss_of
from pruning.models.base import Measurable, expect_ready
from pruning.training.distillation import Teacher
from pruning.training.learning import expect_softmax, labels_loss, multiplying, taught_loss
from pruning.training.recipes import Recipe
from pruning.training.schedule import paces_of, rate_at
from pruning.training.together import Together, by_itself

_States = tuple[Any, Any]

UNREAD = 32
"""Losses that may stay on an accelerator unread: reading one waits for its step, so a loss that is no number is noticed
up to as many steps later."""
AT_ONCE = ("cpu",)
"""Kinds of devices on which nothing waits, so that each loss is read at once."""
CHECKPOINTED = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW remembers of each parameter."""


@dataclass(frozen=True)
class Trained:
    """Where training stands after an epoch; enough to go on from.

    Attributes:
        tensors: `model.*` as it is, `best.*` as it was at the lowest validation loss, `optimizer.*`.
        history: One row a step: `step`, `tokens` read so far, `train_loss`, `valid_loss` (nat/token; at the ends of
            epochs only), `learning_rate`. The loss is the labels', also where a teacher is imitated too; NaN of a batch
            in which no target counts, by which nothing is learnt.
        finished: Whether no epoch is left to do.
    """

    tensors: dict[str, Tensor]
    history: pd.DataFrame
    finished: bool

    def best(self) -> dict[str, Tensor]:
        """Return the parameters of the best epoch."""
        return under("best", self.tensors)


def train(
    model: Measurable,
    windows: Batches,
    valid: Batches,
    *,
    recipe: Recipe,
    seed: int,
    teacher: Teacher | None = None,
    resume: Trained | None = None,
    track: Track = silently,
    together: Together = by_itself,
) -> Iterator[Trained]:
    """Train `model` in place and yield where training stands after each epoch.

    Each epoch draws its dropout from `seed` and its own number, so a run resumed after epoch n ends with the bytes of
    a run that was never interrupted. The global random state is left as it was. Frozen parameters stay as they are.

    >>> import torch, pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> text = pruning.Windows(torch.arange(160) % 9, first=0, batch=2, bptt=8)
    >>> recipe = pruning.Recipe(
    ...     epochs=1, portion=1.0, learning_rate=0.01, warmup=0.1, weight_decay=0.0, clip=1.0, patience=1
    ... )
    >>> before = pruning.loss_of(model, text).mean
    >>> *_, last = train(model, text, text, recipe=recipe, seed=1)
    >>> last.finished, len(last.history), pruning.loss_of(model, text).mean < before
    (True, 10, True)

    Args:
        model: Any model that knows its loss; it ends as the last epoch left it.
        windows: Training windows (or other batches); their batch size and length are the training's. A `DataLoader`
            that shuffles draws from `seed`, as dropout does.
        valid: Validation windows.
        recipe: How to train.
        seed: Seed of dropout.
        teacher: The model to imitate, and how much; by default the labels alone teach.
        resume: The last state that an interrupted run yielded.
        track: Shows the progress of each epoch.
        together: The processes that train it, each of which is called with the same arguments; each yields the same.
            Without dropout the losses are one process's within rounding.

    Raises:
        FloatingPointError: If the loss stops being a number.
        ValueError: If there is no batch, every parameter is frozen, another process ended, or batches cannot be shared
            among them.
    """
    expect_ready(model)
    expect_learning(model)
    if teacher is not None and not hasattr(teacher.model, "predicted"):  # which is all that is asked of it
        expect_ready(teacher.model)
    expect_softmax(model, recipe.softmax, teacher)
    together.expect(windows, "training text")
    together.expect(valid, "validation text")
    together.begin(model)
    for what, given in (("train on", windows), ("validate on", valid)):
        if not length_hint(given, 1):  # what does not know its length is not read for it
            raise ValueError(f"Expected at least one batch to {what}, got none.")
    loop = Loop(
        model, optimizer_of(model, recipe), model.pairs(windows), recipe, teacher, seed, track, together=together
    )
    state = resume or Trained({}, pd.DataFrame(), finished=False)
    if resume:
        restore(model, loop.optimizer, resume.tensors)
    done = 0 if state.history.empty else int(state.history["valid_loss"].notna().sum())
    for epoch in range(done, recipe.epochs):
        if state.finished:
            return
        rows = loop.epoch(epoch)
        rows.loc[rows.index[-1], "valid_loss"] = validated(model, valid, rows["step"].iloc[-1], together)
        state = after_epoch(model, loop.optimizer, state, rows, recipe)
        yield state


class Companion(Protocol):
    """Goes along with training: sees the gradients of each step, and may replace what is trained after it."""

    def see(self, model: Any) -> None:
        """Look at the model with the gradients of one step, before they are clipped and change it."""

    def after(
        self, model: Any, optimizer: torch.optim.AdamW, state: Any, rate: float
    ) -> tuple[Any, torch.optim.AdamW, Any]:
        """Return the model, the optimizer and the carried state to go on with after a step at learning rate `rate`."""


@dataclass
class Loop:
    """What the steps of one training share; a companion may replace the model and its optimizer between them."""

    model: Measurable
    optimizer: torch.optim.AdamW
    windows: Batches
    recipe: Recipe
    teacher: Teacher | None
    seed: int
    track: Track
    companion: Companion | None = None
    together: Together = by_itself

    def epoch(self, epoch: int) -> pd.DataFrame:
        """Make one pass over the training windows and return its rows of the history."""
        used = steps_an_epoch(self.recipe, self.windows)
        steps = range(epoch * used, (epoch + 1) * used)
        rates = [rate_at(self.recipe, step, self.recipe.epochs * used) for step in steps]
        with seeded(self.model, self.seed * 1_000_003 + epoch + self.together.seed):
            losses, per_step = self._steps(rates, steps.start, f"epoch {epoch + 1} of {self.recipe.epochs}")
        read = epoch * sum(per_step) + np.cumsum(per_step)
        numbers = {"step": np.array(steps) + 1, "tokens": read, "train_loss": losses, "valid_loss": math.nan}
        return pd.DataFrame({**numbers, "learning_rate": rates})

    def _steps(self, rates: Sequence[float], first: int, what: str) -> tuple[list[float], list[int]]:
        """Take one step at each of the learning rates, the state carried; return their losses and targets."""
        losses: list[Tensor | None] = []
        known: list[float] = []
        counts: list[int] = []
        states: _States = (None, None)
        every = 1 if self.model.device.type in AT_ONCE else UNREAD
        self.model.train()
        for rate, (inputs, targets) in zip(self.track(rates, f"{what}, steps"), self.windows, strict=False):
            counts.append(self.model.count(targets))
            if self.model.weight(targets):
                loss, own, taught = self._learn(inputs, targets, states, rate)
                losses.append(loss.detach())
            else:
                own, taught = self._passed(self.together.own(inputs), states)
                losses.append(None)
            if len(losses) == every:
                known += self._read(losses, first + len(known), rates[len(known) :])
                losses = []
            if self.companion:
                self.model, self.optimizer, own = self.companion.after(self.model, self.optimizer, own, rate)
            states = (own, taught)
        return known + self._read(losses, first + len(known), rates[len(known) :]), counts

    def _read(self, losses: Sequence[Tensor | None], first: int, rates: Sequence[float]) -> list[float]:
        """Return losses as numbers, all brought from the device at once; NaN of a batch in which no target counts.

        Args:
            losses: Of steps one after the other.
            first: The number of the first of these steps, from 0.
            rates: Their learning rates.
        """
        learnt = [loss for loss in losses if loss is not None]
        numbers = iter(torch.stack(learnt).tolist() if learnt else [])
        numbers_of_losses = [math.nan if loss is None else next(numbers) for loss in losses]
        for step, (loss, number, rate) in enumerate(
            zip(losses, numbers_of_losses, rates, strict=False), start=first + 1
        ):
            if loss is not None and not math.isfinite(number):
                raise FloatingPointError(_broken(number, step, rate))
        return numbers_of_losses

    def _passed(self, inputs: Any, states: "_States") -> "_States":
        """Return the states after a batch in which no target counts, from which nothing can be learnt."""
        own = self.model.passed(inputs, states[0])
        if self.teacher is None:
            return own, None
        with evaluating(self.teacher.model):
            return own, self.teacher.model.passed(inputs, states[1])

    def _losses(self, inputs: Any, targets: Tensor, states: "_States") -> tuple[Tensor, Tensor, Any, Any]:
        """Return the batch's loss (nat/token), what is minimised, and the model's and the teacher's states after."""
        state, how = carried(states[0]), self.recipe
        with multiplying(self.model.device, how.type):
            if self.teacher is None:
                loss, own = labels_loss(self.model, inputs, targets, state, softmax=how.softmax, sampled=how.sampled)
                return loss, loss, own, None
            batch, both = (inputs, targets), (state, states[1])
            loss, learnt, after = taught_loss(
                self.model, self.teacher, batch, both, softmax=how.softmax, sampled=how.sampled
            )
        return loss, learnt, *after

    def _learn(self, inputs: Any, targets: Tensor, states: "_States", rate: float) -> tuple[Tensor, Any, Any]:
        """Take one optimisation step and return the batch's loss (nat/token) and both models' states."""
        for parameter in self.model.parameters():  # as `zero_grad` does, which imports PyTorch's compiler for it
            parameter.grad = None
        if self.together.alone:
            loss, learnt, own, taught = self._losses(inputs, targets, states)
            if learnt.requires_grad:
                torch.autograd.backward(learnt)
            if all(parameter.grad is None for parameter in self.model.parameters()):
                raise ValueError(
                    "Expected a loss that depends on the weights, got one whose gradient does not reach them; detach "
                    "nothing on the way."
                )
        else:
            loss, own, taught = self._learn_own(inputs, targets, states)
        self._step(rate)
        return loss, own, taught

    def _learn_own(self, inputs: Tensor, targets: Tensor, states: "_States") -> tuple[Tensor, Any, Any]:
        """Add up the gradients of all processes, each by its own columns, and return the whole batch's loss."""
        whole = self.model.weight(targets)
        inputs, targets = self.together.own(inputs), self.together.own(targets)
        if not (weight := self.model.weight(targets)):
            own, taught = self._passed(inputs, states)
            return self.together.add_gradients(self.model, next(self.model.parameters()).new_zeros(())), own, taught
        loss, learnt, own, taught = self._losses(inputs, targets, states)
        torch.autograd.backward(learnt * (weight / whole))
        return self.together.add_gradients(self.model, loss * (weight / whole)), own, taught

    def _step(self, rate: float) -> None:
        """Follow the gradients that are there."""
        if self.companion:
            self.companion.see(self.model)
        clip(self.model.parameters(), self.recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["pace"]
        self.optimizer.step()


def expect_learning(model: nn.Module) -> None:
    """Refuse to train a model in which nothing can learn.

    Raises:
        ValueError: If every parameter is frozen.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "Expected parameters to train, got a model in which all are frozen; "
            "call `requires_grad_(True)` on those that are to learn."
        )


def validated(model: Measurable, valid: Batches, step: int, together: Together = by_itself) -> float:
    """Return the loss on the validation text, nat/token, after a step.

    Raises:
        FloatingPointError: If it is not finite.
    """
    with seeded(model, 0):  # epochs are compared on what is drawn once
        loss = loss_of(model, valid, finite=False).mean if together.alone else together.loss(model, valid)
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"Expected a finite validation loss, got {loss} after step {step}; lower learning_rate or clip."
        )
    return loss


def _broken(loss: float, step: int, rate: float) -> str:
    """Return what to say of a step whose loss is not finite."""
    learnt = "lower learning_rate or clip"
    advice = learnt if step > 1 else "nothing was learnt yet, so look for numbers in the inputs that are not finite"
    return f"Expected a finite training loss, got {loss} at step {step} (learning rate {rate:.3g}); {advice}."


def steps_an_epoch(recipe: Recipe, windows: Batches) -> int:
    """Return how many windows one pass reads, and so how many steps it takes."""
    return max(1, round(recipe.portion * len(windows)))


def optimizer_of(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW that decays weight matrices, leaves biases alone, and goes at the pace of each module's `pace`."""
    paces = paces_of(model)
    groups = [
        {"params": group, "weight_decay": recipe.weight_decay if matrices else 0.0, "pace": pace}
        for pace in sorted(set(paces.values()))
        for matrices in (True, False)
        if (group := [p for p, its in paces.items() if its == pace and (p.ndim > 1) == matrices])
    ]
    return AdamW(groups, lr=recipe.learning_rate)


def after_epoch(
    model: nn.Module,
    optimizer: torch.optim.AdamW,
    before: Trained,
    rows: pd.DataFrame,
    recipe: Recipe,
    *,
    since: int = 0,
) -> Trained:
    """Return the state after an epoch, with the parameters of the best epoch from `since` on and whether to stop."""
    history = rows if before.history.empty else pd.concat([before.history, rows], ignore_index=True)
    losses = history["valid_loss"].dropna().to_numpy()
    valid = losses[since:]
    now = {name: tensor.clone() for name, tensor in {**named_tensors(model), **named_buffers(model)}.items()}
    best = now if valid.argmin() == len(valid) - 1 else before.best()
    remembered = {
        f"{name}.{what}": optimizer.state[parameter][what].clone()
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state  # not one that is frozen
        for what in CHECKPOINTED
    }
    tensors = {
        f"{prefix}.{name}": tensor
        for prefix, part in (("model", now), ("best", best), ("optimizer", remembered))
        for name, tensor in part.items()
    }
    stale = len(valid) - 1 - int(valid.argmin())
    return Trained(tensors, history, finished=len(losses) == recipe.epochs or stale >= recipe.patience)


def restore(model: nn.Module, optimizer: torch.optim.AdamW, tensors: dict[str, Tensor]) -> None:
    """Put the model and its optimizer where an interrupted run left them."""
    model.load_state_dict(under("model", tensors))
    remembered = under("optimizer", tensors)
    for name, parameter in model.named_parameters():
        if f"{name}.step" not in remembered:
            continue
        own = {what: remembered[f"{name}.{what}"] for what in CHECKPOINTED}  # a file's are on the CPU
        optimizer.state[parameter] = {what: tensor.to(parameter.device, copy=True) for what, tensor in own.items()}


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names start with `prefix.`, without it."""
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}
