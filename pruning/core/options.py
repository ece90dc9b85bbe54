"""The words that settings may hold and the rules between settings, each said once.

The library refuses by them what it is given, and whoever reads settings from a file checks them before any work, so
this module imports nothing. `place` in a rule is what stands before the settings' names there, such as `train.`.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from math import isclose
from typing import Any, Literal

Tokens = Literal["words", "subwords"]
"""What the tokens of a text are."""
Family = Literal["lstm", "gru", "rnn", "snn", "mixed"]
Decoder = Literal["untied", "tied", "projected"]
Decoupling = Literal["project", "untie"]
"""What a tied decoder becomes, so that neurons have a reader of their own."""
TrainingType = Literal["float32", "bfloat16"]
"""The type of what training multiplies; weights, sums and what the optimizer remembers stay as they are."""
Softmax = Literal["full", "chunked", "sampled"]
"""How training's cross-entropy comes by the logits of all types."""
Nonlinearity = Literal["tanh", "relu"]
RecurrentCell = Literal["lstm", "gru", "rnn_tanh", "rnn_relu"]
Half = Literal["rnn", "snn"]
"""The kinds of neurons of a mixed model."""
Strategy = Literal["simple", "adaptive", "learned"]
Calibrated = Literal["none", "hessian", "oracle", "removal"]
"""What turns a fused importance into a loss."""
Curvature = Literal["exact", "differences", "gauss_newton"]
"""What a probe of the Hessian is made by."""
Scope = Literal["layer", "global", "absolute"]
HowMany = Literal["fixed", "adaptive"]
BudgetKind = Literal["neurons", "parameters", "multiply_adds", "latency", "memory", "synaptic_operations", "energy"]
FIRING = ("synaptic_operations", "energy")
"""The kinds of budgets that firing rates decide."""
Numbers = Literal["float32", "int8"]
"""What a file holds its weights in."""
ClosedForm = Literal["none", "mean", "ridge"]
Repair = Literal["none", "mean", "ridge", "imitate"]


def expect_known(what: str, known: Collection[Any], *names: Any, where: str = "") -> None:
    """Refuse names that are none of those known.

    >>> expect_known("repair", ["none", "ridge"], "rigde")
    Traceback (most recent call last):
    ValueError: Unknown repair 'rigde'; known: ['none', 'ridge'].

    Args:
        what: What they are names of.
        known: The names that there are.
        names: Those that were given.
        where: What stands behind a name in the sentence.

    Raises:
        ValueError: For the first that is not known.
    """
    for name in names:
        if name not in known:
            raise ValueError(f"Unknown {what} {name!r}{where}; known: {list(known)}.")


def check_halves(widths: Sequence[int], snn_widths: Sequence[int], place: str = "") -> None:
    """Refuse a mixed model whose halves have different numbers of layers."""
    if len(snn_widths) != len(widths):
        raise ValueError(
            f"Expected as many {place}snn_widths as {place}widths ({len(widths)}) for family mixed, "
            f"got {len(snn_widths)}."
        )


def check_tied(decoder: str, embedding: int, last: Sequence[int], place: str = "") -> None:
    """Refuse a tied decoder that the last layer, of these halves, does not fit."""
    if decoder == "tied" and sum(last) != embedding:
        both = f"{place}widths and {place}snn_widths to end with, together,"
        raise ValueError(
            f"Expected {both if len(last) > 1 else f'{place}widths to end with'} {place}embedding ({embedding}) for a "
            f"tied decoder, got {sum(last)}; use {place}decoder: projected."
        )


def check_most(tokens: int, most: int, place: str = "") -> None:
    """Refuse a budget of tokens that the first reading exceeds."""
    if most < tokens:
        raise ValueError(f"Expected {place}most to be at least {place}tokens ({tokens}), got {most}.")


def too_few(measured: Mapping[str, int], folds: int) -> Iterator[tuple[str, int, int]]:
    """Yield (layer, how many are measured, how many it takes) of layers without two measured neurons for each fold.

    >>> list(too_few({"lstm.0": 9, "lstm.1": 10}, folds=5))
    [('lstm.0', 9, 10)]
    """
    return ((layer, count, 2 * folds) for layer, count in measured.items() if count < 2 * folds)


def check_measures(
    *, rate: str, budget: object, snn_ratio: float | None, quota: Mapping[str, float] | None, place: str = ""
) -> None:
    """Refuse two measures of how many neurons stay, or of which kinds, and a quota that is none."""
    if rate == "adaptive" and budget is not None:
        raise ValueError(f"Expected {place}rate: adaptive or {place}budget, got both.")
    given = {"rate: adaptive": rate == "adaptive", "budget": budget is not None, "quota": quota is not None}
    for other in given if snn_ratio is not None else ():
        if given[other]:
            raise ValueError(f"Expected {place}snn_ratio or {place}{other}, got both.")
    if quota is not None and not (min(quota.values(), default=-1) >= 0 and isclose(sum(quota.values()), 1)):
        raise ValueError(f"Expected the shares of {place}quota to sum to 1, none below 0, got {dict(quota)}.")
