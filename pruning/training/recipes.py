"""How a model is trained: the numbers and words of it, and what they may be."""

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, get_args

from pruning.core.options import Softmax, TrainingType, expect_known

BOUNDS: dict[str, tuple[Any, float, float]] = {
    "epochs": (Integral, 0, math.inf),
    "portion": (Real, 0, 1),
    "learning_rate": (Real, 0, math.inf),
    "warmup": (Real, 0, 1),
    "weight_decay": (Real, 0, math.inf),
    "clip": (Real, 0, math.inf),
    "patience": (Integral, 0, math.inf),
}
"""What numbers of a recipe may be: their kind, the least and the most."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained.

    >>> Recipe(epochs=3, portion=0.5, learning_rate=0.01, warmup=0.1, weight_decay=0.0, clip=1.0, patience=2).portion
    0.5

    Attributes:
        epochs: Passes over the training windows.
        portion: Share of the training windows, from the start, that one pass uses; 1 is all.
        learning_rate: Highest learning rate of AdamW (Loshchilov & Hutter 2019), reached after the warm-up and
            lowered to zero along a half cosine.
        warmup: Share of all steps over which the learning rate rises linearly.
        weight_decay: Decoupled weight decay of weight matrices.
        clip: Largest norm of the whole gradient (Pascanu, Mikolov & Bengio 2013).
        patience: Epochs without a better validation loss after which training stops early.
        type: `float32`: products in the type of the weights; `bfloat16`: in that type, by autocast, which processors
            that have it multiply twice as fast or more.
        softmax: Of a language model, and of such a teacher. `full`: all logits at once; `chunked`: the same loss and
            gradients but for rounding, a chunk of rows after the other (`pruning.models.softmax`), in less memory and
            time; `sampled`: an estimate from about `sampled` types a step, which is the loss where that is all types.
            Evaluation always reads all.
        sampled: See `softmax`.
    """

    epochs: int
    portion: float
    learning_rate: float
    warmup: float
    weight_decay: float
    clip: float
    patience: int
    type: TrainingType = "float32"
    softmax: Softmax = "full"
    sampled: int = 8192

    def __post_init__(self) -> None:
        """Refuse an unknown type or softmax, a sample of none, and numbers that nothing can be learnt by."""
        for name, (kind, least, most) in BOUNDS.items():
            number = getattr(self, name)
            if not isinstance(number, kind):
                whole = "whole " if kind is Integral else ""
                raise TypeError(f"Expected {name} as a {whole}number to train by, got {number!r}.")
            if not least <= number <= most:
                bounds = f"from {least:g}" if most == math.inf else f"in [{least:g}, {most:g}]"
                raise ValueError(f"Expected {name} {bounds} to train by, got {number}.")
        for name, known in (("type", get_args(TrainingType)), ("softmax", get_args(Softmax))):
            expect_known(name, known, getattr(self, name), where=" to train by")
        if self.sampled < 1:
            raise ValueError(f"Expected at least 1 type for `sampled`, got {self.sampled}.")
