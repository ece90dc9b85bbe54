"""Which operations what a network gives depends on, read backwards through the storages that they write and read."""

from typing import Any

from torch import Tensor

from pruning.core.operands import storage_of
from pruning.discovery.running import Seeing, name_of, written
from pruning.discovery.values import flat


class Needs(Seeing):  # type: ignore[no-untyped-call]
    """Which operations what a network gives depends on."""

    def __init__(self) -> None:
        super().__init__()
        self._held: list[Tensor] = []  # so that no storage's number is given to another one
        self._calls: list[tuple[int, set[int], list[int]]] = []
        self.beside: set[int] = set()
        """Those that also give something which nothing needs, such as where the greatest lies."""

    def see(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note what is read and written."""
        found = operation(*args, **kwargs)
        read = {storage_of(tensor) for tensor in flat((args, kwargs)) if isinstance(tensor, Tensor)}
        changed = written(operation, args, kwargs)
        gives = [tensor for tensor in flat(found) if isinstance(tensor, Tensor)]
        self._held += gives
        if name_of(operation) != "detach":
            self._calls.append((self.index, read, [storage_of(tensor) for tensor in (*gives, *changed)]))
        return found

    def needed(self, outputs: list[Tensor]) -> set[int]:
        """Return the operations on whose results these tensors depend."""
        live, found = {storage_of(tensor) for tensor in outputs}, set()
        for index, read, gives in reversed(self._calls):
            if live & set(gives):
                if gives[-1] not in live:
                    self.beside.add(index)
                live |= read
                found.add(index)
        return found
