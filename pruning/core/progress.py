"""How long work shows where it is: the library announces its steps, whoever calls it decides how they look."""

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Track(Protocol):
    """Wraps a loop: passes its items on and shows how many of them are done."""

    def __call__(self, items: Sequence[Item], what: str) -> Iterable[Item]:
        """Yield the items, reporting each as done once the next one is asked for; `what` ends with what they are."""


def silently(items: Sequence[Item], what: str) -> Iterable[Item]:  # noqa: ARG001 - the signature is Track's
    """Yield the items and show nothing."""
    return items
