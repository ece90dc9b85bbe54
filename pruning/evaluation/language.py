"""What a language model says of text: how it goes on, and how much each token surprises it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pruning.core.modes import evaluating
from pruning.data.windows import Windows
from pruning.models.base import LanguageModel

STEPS = 100
"""Tokens that are read together, so that memory does not grow with the text."""


def surprisals(model: LanguageModel, tokens: Tensor, *, first: int) -> tuple[Tensor, Tensor]:
    """Return −ln p of each token after all before it, nat, (n,), and how many tokens were likelier there, (n,).

    The mean is the text's loss, and exp of that its perplexity.

    >>> import torch, pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> for parameter in model.parameters():
    ...     _ = parameter.data.zero_()
    >>> surprisals(model, torch.tensor([3, 1]), first=0)[0].exp().round().tolist()  # all nine tokens are as likely
    [9.0, 9.0]

    Args:
        model: Any language model.
        tokens: Their numbers, (n,).
        first: What is read before the first of them: `<eos>`, after which a line begins.

    Raises:
        ValueError: If there is no token.
    """
    parts, likelier, state = [], [], None
    with evaluating(model), torch.no_grad():
        for inputs, targets in Windows(tokens, first=first, batch=1, bptt=STEPS):
            logits, state = model.logits(inputs, state)
            chances = logits.cpu().double().log_softmax(dim=-1)
            taken = chances.gather(1, targets.to(chances.device))
            parts.append(-taken[:, 0].cpu())
            likelier.append((chances > taken).sum(dim=1).cpu())
    return torch.cat(parts), torch.cat(likelier)


def continuation(
    model: LanguageModel,
    tokens: Tensor,
    *,
    first: int,
    length: int,
    temperature: float,
    seed: int,
    without: Sequence[int] = (),
) -> list[int]:
    """Return `length` tokens that the model draws, one after the other, to go on from those given.

    A token's chance is p^(1/temperature), all scaled to sum to one; a temperature of 0 takes the likeliest. It is drawn
    on the CPU, so that a seed draws the same wherever the model computes, but for rounding.

    >>> import torch, pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> for parameter in model.parameters():
    ...     _ = parameter.data.zero_()
    >>> _ = model.decoder.bias.data[7].add_(1)
    >>> continuation(model, torch.tensor([3, 1]), first=0, length=2, temperature=0, seed=1)
    [7, 7]

    Args:
        model: Any language model.
        tokens: What it goes on from, (n,); none where it is to begin.
        first: What is read before the first of them: `<eos>`, after which a line begins.
        length: How many tokens to draw.
        temperature: Below 1 nearer to the likeliest, above 1 nearer to all alike.
        seed: Decides the draw.
        without: Tokens that are never drawn, such as `<unk>`.

    Raises:
        ValueError: If the temperature is below 0, or every token is left out.
    """
    if not temperature >= 0:
        raise ValueError(f"Expected a temperature of at least 0, got {temperature:g}.")
    if len(set(without)) >= len(model.decoder.bias):
        raise ValueError(f"Expected a token to draw, got all {len(model.decoder.bias)} left out.")
    generator, drawn = torch.Generator().manual_seed(seed), list[int]()
    read, state = torch.cat([tokens.new_tensor([first]), tokens])[:, None], None
    with evaluating(model), torch.no_grad():
        for _ in range(length):
            logits, state = model.logits(read, state)
            last = logits[-1].cpu().double()
            last[list(without)] = -torch.inf
            chances = (last / (temperature or 1)).softmax(dim=0)
            token = torch.multinomial(chances, 1, generator=generator) if temperature else chances.argmax()[None]
            drawn.append(int(token))
            read = token[:, None]
    return drawn
