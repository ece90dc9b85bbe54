"""How the older interface runs a model on batches, and leaves it as it was."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from pruning.core.devices import seeded, without_cudnn
from pruning.core.modes import carried, evaluating

Criterion = Callable[[Any, Any], Tensor]
Batch = tuple[Any, Any]
"""(data, targets)."""


class Caller:
    """Runs a model on one batch after the other: `model(data, hidden)` if it has `init_hidden`, else `model(data)`.

    `hidden` is `model.init_hidden(examples)` at first, and again where the number of examples changes; then what the
    model returned beside its output, cut off from the graph. Examples run along dimension 1 of data with steps
    (T, B, …), along dimension 0 of data without or where a recurrent layer has `batch_first`.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model, self.device = model, device
        self.examples, self.hidden = -1, None

    def __call__(self, data: Any) -> Any:
        """Return the model's output on one batch."""
        inputs = moved(data, self.device)
        init_hidden = getattr(self.model, "init_hidden", None)
        if init_hidden is None:
            return output_of(self.model(inputs))
        examples = inputs.shape[example_dim(self.model, inputs)]
        if self.hidden is None or examples != self.examples:
            self.examples, self.hidden = examples, init_hidden(examples)
        found = self.model(inputs, self.hidden)
        self.hidden = carried(found[1]) if isinstance(found, tuple | list) and len(found) > 1 else None
        return output_of(found)

    def loss(self, data: Any, targets: Any, criterion: Criterion) -> Tensor:
        """Return the criterion's loss on one batch.

        Raises:
            ValueError: If it is not one finite number.
        """
        found = judged(self(data), moved(targets, self.device), criterion)
        if not isinstance(found, Tensor) or found.numel() != 1 or not found.isfinite():
            got = found.detach().tolist() if isinstance(found, Tensor) and found.numel() == 1 else type(found).__name__
            raise ValueError(f"Expected one finite number as the criterion's loss, got {got}.")
        return found.reshape(())


def example_dim(model: nn.Module, data: Any) -> int:
    """Return the dimension of a model's data that runs over examples; see `Caller`."""
    if not hasattr(model, "init_hidden") or data.ndim < 2:
        return 0
    return 0 if any(getattr(module, "batch_first", False) for module in model.modules()) else 1


def batch_losses(model: nn.Module, batches: Sequence[Batch], criterion: Criterion, device: torch.device) -> Tensor:
    """Return each batch's loss, (batches,) float64, the batches read in order."""
    caller = Caller(model, device)
    return torch.stack([caller.loss(data, targets, criterion).cpu().double() for data, targets in batches])


def judged(output: Any, targets: Any, criterion: Criterion) -> Tensor:
    """Return the loss of outputs (…, classes) with one class number for each row flattened; of others, as they are."""
    if isinstance(output, Tensor) and isinstance(targets, Tensor) and not targets.is_floating_point():
        rows = output.shape[:-1]
        if targets.shape == rows or (targets.ndim == 1 and targets.numel() == rows.numel()):
            return criterion(output.reshape(-1, output.shape[-1]), targets.flatten())
    return criterion(output, targets)


def first_batches(dataloader: Iterable[Any], count: int) -> list[tuple[Any, Any]]:
    """Return the first `count` batches; the random state is left as it was, and is the same for each call.

    Raises:
        ValueError: If there is none, or one that is no pair.
    """
    if count < 1:
        raise ValueError(f"Expected activation_samples of at least 1, got {count}.")
    with torch.random.fork_rng():
        torch.manual_seed(0)  # a loader that shuffles draws its order from here
        found = list(islice(dataloader, count))
    if not found:
        raise ValueError("Expected at least one batch (data, targets) from the loader, got none.")
    for batch in found:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(f"Expected batches (data, targets) from the loader, got {type(batch).__name__}.")
    return [(data, targets) for data, targets in found]


def device_of(model: nn.Module, device: torch.device | str | None) -> torch.device:
    """Return where the model computes.

    Raises:
        ValueError: If that is not where it is said to.
    """
    own = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    wanted = own if device is None else torch.device(device)
    if wanted.type != own.type or wanted.index not in (None, own.index):
        raise ValueError(f"Expected a model on {wanted}, got one on {own}; call model.to({str(wanted)!r}) first.")
    return own


@contextmanager
def untouched(model: nn.Module, parameters: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Within the context the model evaluates and `parameters` can be differentiated; then all is as it was before.

    Modes, buffers, `requires_grad` and the random state are put back; hooks and `.grad` are not touched.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    needed = [(parameter, parameter.requires_grad) for parameter in parameters]
    try:
        with evaluating(model), seeded(model, 0), without_cudnn():
            for parameter, _ in needed:
                parameter.requires_grad_(True)
            yield
    finally:
        for parameter, before in needed:
            parameter.requires_grad_(before)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers and buffer.shape == buffers[name].shape:
                    buffer.copy_(buffers[name])


def output_of(found: Any) -> Any:
    """Return the output of (output, hidden, …), of something that holds `logits`, or as it is."""
    if isinstance(found, tuple | list):
        return found[0]
    if isinstance(found, Mapping):
        return found.get("logits", found)
    return getattr(found, "logits", found)


def moved(value: Any, device: torch.device) -> Any:
    """Return the value with every tensor in it on the device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: moved(part, device) for name, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(moved(part, device) for part in value))
    if isinstance(value, list | tuple):
        return type(value)(moved(part, device) for part in value)
    return value
