"""What a variant says of itself before what a section says of all, and what a mistake in either is."""

from collections.abc import Mapping
from typing import Any


class Unexpected(ValueError):
    """A mistake in what the user gave; its message is the one sentence to show."""


def settings_of(section: Mapping[str, Any], variant: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section's settings for a variant: its own before the section's.

    How many neurons stay is one decision: whichever of `retain`, `rate`, `budget` and `snn_ratio` a variant names takes
    the place of all that the section says of them, so a dense control with `retain: 1.0` stays dense under any budget.
    Likewise `snn_ratio` and `quota`, which say what kinds of neurons stay.
    """
    named = {name: value for name, value in variant.items() if value is not None and name in section}
    many, kinds = {"rate": "fixed", "budget": None, "snn_ratio": None}, {"snn_ratio": None, "quota": None}
    displaced = {**(many if {"retain", *many} & set(named) else {}), **(kinds if set(kinds) & set(named) else {})}
    return {**section, **{name: value for name, value in displaced.items() if name in section}, **named}
