"""What a proof asks again of the same neurons, remembered: with one number after another they are removed anew."""

import hashlib
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

from torch import Tensor

from pruning.core.neurons import Keep

LATEST = 8
"""Of so many sets of neurons, the last ones that were asked for, it is known what a network gives without them."""
Reference = tuple[list[Tensor] | None, float, str]
"""What a network may give, how coarsely that is computed, and what is wrong if it does; or None, and why not."""
Known = TypeVar("Known")


class Recalled(Generic[Known]):
    """What is found one after the other, and not found again where it is asked for once more.

    >>> recalled = Recalled()
    >>> def squares():
    ...     for number in (2, 3):
    ...         print("computed")
    ...         yield number**2
    >>> next(recalled.of("squares", squares()))
    computed
    4
    >>> list(recalled.of("squares", squares()))
    computed
    [4, 9]
    """

    def __init__(self) -> None:
        self._found: dict[Hashable, tuple[list[Known], Iterator[Known]]] = {}

    def of(self, asked: Hashable, finding: Iterator[Known]) -> Iterator[Known]:
        """Yield what is known, then what is found.

        Args:
            asked: What is looked for.
            finding: Finds all of it; it is not begun if another one was for the same.
        """
        found, rest = self._found.pop(asked, ([], finding))
        self._found[asked] = found, rest
        for oldest in list(self._found)[:-LATEST]:
            del self._found[oldest]
        yield from found
        for one in rest:
            found.append(one)
            yield one


def named(keep: Keep) -> bytes:
    """Return a short name of sets of neurons: those of a large network, as they are, would fill the memory.

    >>> import torch
    >>> one, other = torch.tensor([0, 1]), torch.tensor([1, 0])
    >>> named({"a": one, "b": other}) == named({"b": other, "a": one}), named({"a": one}) == named({"a": other})
    (True, False)
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, kept in sorted(keep.items()):
        digest.update(f"{len(name)} {name} {len(kept)} ".encode())
        digest.update(kept.cpu().numpy().tobytes())
    return digest.digest()
