"""What a language model's state is to whoever exports it, and how far another one is from it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pruning.core.modes import evaluating
from pruning.models.base import LanguageModel, State


def initial_state(model: LanguageModel, batch: int) -> State:
    """Return the state that `batch` columns start from: zeros, of the shapes that the model carries."""
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad():
        _, state = model(torch.zeros(1, batch, dtype=torch.long, device=device))
    return [tuple(torch.zeros_like(tensor) for tensor in layer) for layer in state]


def largest_difference(
    model: LanguageModel,
    other: LanguageModel,
    *,
    vocabulary: int,
    shapes: Sequence[tuple[int, int]],
    seed: int,
    share: float = 1.0,
) -> float:
    """Return the largest difference of two models' logits and states, relative to the largest such number.

    For each (T, B) both read two windows of random tokens, each carrying its own state from the first to the second;
    the first starts without a state.

    Args:
        model: What the other is measured against.
        other: Anything that is called like it.
        vocabulary: Number of token types.
        shapes: (T, B) of the windows.
        seed: Seed of the tokens.
        share: Share of the sequences that counts, those that differ least. Where a potential comes within rounding of
            its threshold, one model spikes and the other does not, and from there on the sequence is another one.
    """
    generator = torch.Generator().manual_seed(seed)
    sequences = []
    for time, batch in shapes:
        states: list[State | None] = [None, None]
        for _ in range(2):
            tokens = torch.randint(vocabulary, (time, batch), generator=generator)
            found = [_read(reader, tokens, state) for reader, state in zip((model, other), states, strict=True)]
            sequences.append(_distances(*(_numbers(logits, state) for logits, state in found)))
            states = [state for _, state in found]
    return torch.cat(sequences).quantile(share, interpolation="lower").item()


def _read(model: LanguageModel, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
    with evaluating(model), torch.no_grad():
        logits, after = model(tokens.to(next(model.parameters()).device), state)
    return logits, after


def _numbers(logits: Tensor, state: State) -> list[Tensor]:
    return [tensor.cpu().double() for tensor in (logits, *(tensor for layer in state for tensor in layer))]


def _distances(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Return the largest ∣a − b∣ / max ∣a∣ of each column of tensors (…, B, n) side by side, (B,)."""
    tiny = torch.finfo(torch.double).tiny
    apart = [(a - b).abs() / a.abs().max().clamp(min=tiny) for a, b in zip(ours, theirs, strict=True)]
    return torch.stack([distance.movedim(-2, 0).flatten(1).amax(1) for distance in apart]).amax(0)


def dimensions(state: State, time: Any, batch: Any) -> tuple[Any, ...]:
    """Return which dimensions of (tokens, state) are free."""
    return {0: time, 1: batch}, [tuple({tensor.ndim - 2: batch} for tensor in layer) for layer in state]
