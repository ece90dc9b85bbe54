"""Sequences of labels without places, by connectionist temporal classification (CTC, Graves et al. 2006)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.core.devices import differentiated_twice, moved
from pruning.core.nested import parts_of, tensors_in
from pruning.core.words import described
from pruning.data.batches import Unlabelled
from pruning.models.answers import main_of
from pruning.models.objectives import Objective, counting_all, setting, single

CTC = (nn.CTCLoss, F.ctc_loss)


@dataclass(frozen=True)
class Alignments(Objective):
    """A shorter sequence of labels for each example: log-probabilities (steps, examples, classes).

    Targets are (labels, input lengths, label lengths) as PyTorch has them, by place or by these names; (labels, label
    lengths), all steps counting unless the network gives their numbers beside the log-probabilities; or labels
    (examples, labels) alone, filled up with blanks or negative numbers.
    """

    drawn = "categorical"
    whole = True

    @property
    def blank(self) -> int:
        """The class that says nothing."""
        return int(setting(self.criterion, "blank", 0))

    def counted(self, targets: Any) -> Tensor:
        """Return that every example counts, (n,)."""
        if isinstance(targets, Unlabelled):
            return counting_all(targets)
        parts = list(tensors_in(targets))
        if not parts:
            raise ValueError(f"Expected labels and their lengths as targets for CTC, got {described(targets)}.")
        return torch.ones(len(parts[-1] if len(parts) > 1 else parts[0]), dtype=torch.bool)

    def rows(self, outputs: Any, targets: Any) -> Tensor:
        """Return all log-probabilities of an example as one row."""
        steps = self._steps(outputs, len(self.counted(targets)))
        return steps.transpose(0, 1).flatten(1)

    def _steps(self, outputs: Any, examples: int) -> Tensor:
        """Return the log-probabilities (steps, examples, classes).

        Raises:
            ValueError: If the outputs are none.
        """
        steps = main_of(_first(outputs))
        if steps.ndim != 3 or steps.shape[1] != examples:
            raise ValueError(
                f"Expected log-probabilities (steps, {examples} examples, classes) from the network for CTC, got "
                f"{tuple(steps.shape)}; let `call` return them so, `transpose(0, 1)` for example."
            )
        largest = steps.detach().logsumexp(-1).abs().max()
        if not largest < 0.01:
            raise ValueError(
                f"Expected log-probabilities for CTC, got numbers whose exponents sum to {largest.exp():.3g}; end the "
                "network with log_softmax(-1)."
            )
        return steps

    def parts(self, outputs: Any, targets: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return log-probabilities, labels, input lengths and label lengths, as PyTorch's CTC takes them."""
        self.expect_labelled(targets)
        given = list(tensors_in(targets))
        steps = self._steps(outputs, len(self.counted(targets)))
        if isinstance(named := parts_of(targets), dict) and {"labels", "input_lengths", "label_lengths"} <= set(named):
            given = [named["labels"], named["input_lengths"], named["label_lengths"]]
        labels = given[0]
        if len(given) == 1:
            real = (labels != self.blank) & (labels >= 0)
            given.append(real.sum(1))
            labels = labels.clamp(min=0)
        lengths = given[1] if len(given) == 3 else self._input_lengths(outputs, steps)
        return steps, moved(labels, steps.device), lengths.long().cpu(), given[-1].long().cpu()

    def _input_lengths(self, outputs: Any, steps: Tensor) -> Tensor:
        """Return how many steps of each example count: what the network says, or all."""
        for part in list(tensors_in(outputs))[1:]:
            if not part.is_floating_point() and part.shape == steps.shape[1:2]:
                return part
        return torch.full((steps.shape[1],), len(steps))

    def steps_that_count(self, outputs: Any, targets: Any) -> Tensor:
        """Return which steps of each example lie within its input length, (steps, examples)."""
        steps = self._steps(outputs, len(self.counted(targets)))
        lengths = self._input_lengths(outputs, steps)
        if not isinstance(targets, Unlabelled):
            lengths = self.parts(outputs, targets)[2]
        return torch.arange(len(steps))[:, None] < lengths.cpu()

    def mean(self, outputs: Any, targets: Any) -> Tensor:
        """See `Objective.mean`."""
        steps, labels, lengths, label_lengths = self.parts(outputs, targets)
        if not differentiated_twice():
            return single(self.criterion(steps, labels, lengths, label_lengths))
        losses = losses_of(steps, _padded(labels, label_lengths), lengths, label_lengths, self.blank)
        if setting(self.criterion, "zero_infinity", usual=False):
            losses = losses.masked_fill(losses.isinf(), 0)
        return (losses / label_lengths.clamp(min=1).to(losses)).mean()

    def fisher_loss(self, outputs: Any, targets: Any, generator: torch.Generator) -> Tensor:
        """Return Σ −log p(drawn labels) / √(true ones' number), drawn as a class for each step, repeats and blanks out.

        That is how the model itself would draw them, so the gradient's second moment is the Fisher information.
        """
        examples = len(self.counted(targets))
        steps = self._steps(outputs, examples)
        if isinstance(targets, Unlabelled):
            lengths, scale = self._input_lengths(outputs, steps), torch.ones(examples)
        else:
            _, _, lengths, true = self.parts(outputs, targets)
            scale = true.cpu().clamp(min=1).double().rsqrt()
        reached = steps.detach().exp().cumsum(-1)
        chance = torch.rand(*steps.shape[:2], 1, generator=generator, dtype=torch.float64).to(reached)
        paths = torch.searchsorted(reached, chance * reached[..., -1:], right=True)[..., 0]
        paths = paths.clamp(max=steps.shape[-1] - 1).cpu()
        drawn = [self._collapsed(paths[:length, place]) for place, length in enumerate(lengths.tolist())]
        counts = torch.tensor([len(labels) for labels in drawn])
        labels = nn.utils.rnn.pad_sequence(drawn, batch_first=True) if counts.max() else torch.zeros(examples, 1)
        if differentiated_twice():
            losses = losses_of(steps, labels.long().to(steps.device), lengths, counts, self.blank)
        else:
            losses = F.ctc_loss(
                steps, labels.long().to(steps.device), lengths.cpu(), counts, blank=self.blank, reduction="none"
            )
        return (losses * scale.to(losses)).sum()

    def _collapsed(self, path: Tensor) -> Tensor:
        """Return the labels that a path of one class a step stands for."""
        once: Tensor = torch.unique_consecutive(path)
        return once[once != self.blank]

    def divergence(self, outputs: Any, taught: Any, targets: Any, **_: Any) -> Tensor:
        """Return the cross-entropy with the teacher's classes of each step, the mean over the steps that count."""
        examples = len(self.counted(targets))
        ours, theirs = self._steps(outputs, examples), self._steps(taught, examples)
        counts = self.steps_that_count(outputs, targets)
        agreement: Tensor = torch.linalg.vecdot(theirs.exp(), ours)[counts.to(ours.device)]
        return -agreement.mean()


def losses_of(steps: Tensor, labels: Tensor, lengths: Tensor, label_lengths: Tensor, blank: int) -> Tensor:
    """Return −log p(labels) of each example, (examples,), by operations that can be differentiated twice.

    α_t(s) = p_t(l'_s) (α_{t−1}(s) + α_{t−1}(s − 1) + α_{t−1}(s − 2) where l'_s is a label other than l'_{s−2}), with l'
    the labels and blanks around each; all in logarithms. `F.ctc_loss` is the fast twin, which PyTorch differentiates
    once.

    Args:
        steps: Log-probabilities (steps, examples, classes).
        labels: (examples, labels).
        lengths: Steps of each example that count.
        label_lengths: Labels of each example that count.
        blank: The class that says nothing.
    """
    examples, most = labels.shape
    lengths, label_lengths = lengths.to(steps.device), label_lengths.to(steps.device)
    around = labels.new_full((examples, 2 * most + 1), blank)
    around[:, 1::2] = labels
    skipping = torch.zeros_like(around, dtype=torch.bool)
    skipping[:, 2:] = (around[:, 2:] != blank) & (around[:, 2:] != around[:, :-2])
    never = -1e4 if steps.dtype == torch.float16 else -1e30  # finite, for the gradient of a sum of infinities is none
    read = steps.gather(2, around.expand(len(steps), -1, -1))
    alpha = torch.full_like(read[0], never)
    alpha = torch.cat([read[0, :, :2], alpha[:, 2:]], dim=1)
    for step in range(1, len(steps)):
        one = F.pad(alpha, (1, 0), value=never)[:, :-1]
        two = F.pad(alpha, (2, 0), value=never)[:, :-2].masked_fill(~skipping, never)
        after = torch.stack([alpha, one, two]).logsumexp(0) + read[step]
        alpha = torch.where((step < lengths)[:, None], after, alpha)
    last = 2 * label_lengths[:, None]
    ends = torch.cat([alpha.gather(1, last), alpha.gather(1, (last - 1).clamp(min=0))], dim=1)
    ends = torch.stack([ends[:, 0], ends[:, 1].masked_fill(label_lengths == 0, never)])
    return -ends.logsumexp(0)


def _padded(labels: Tensor, label_lengths: Tensor) -> Tensor:
    """Return labels (examples, labels), also where they came one after the other."""
    if labels.ndim == 2:
        return labels
    return nn.utils.rnn.pad_sequence(list(torch.split(labels, label_lengths.tolist())), batch_first=True)


def _first(outputs: Any) -> Any:
    """Return the outputs without the lengths beside them."""
    return outputs[0] if isinstance(outputs, list | tuple) else outputs
