"""A network that can begin anew: what its modules keep from call to call, as it was before the first of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from pruning.core.memory import Kept, Place, copies, keeping, kept, modules_in
from pruning.core.nested import mapped
from pruning.core.neurons import PrunableModule
from pruning.core.rebinding import duplicated, rebind

DIFFERENTIATING = "_differentiating"
"""The attribute that marks a network which takes gradients in its forward."""

EXTRA = "_extra_state"
"""How PyTorch ends the name of what a module saves that is no tensor, and loads itself."""


class Beginning(PrunableModule):
    """A model around a network whose modules may keep something of a call, and what they kept before the first one.

    Copies of it, and what is saved of it, begin there.

    Attributes:
        network: The model itself.
        remembered: Where its modules keep something of a call: attributes and buffers, by the modules' paths.
        written: The parameters that its code writes into in a call, by the names that they have in this model.
    """

    network: nn.Module
    written: tuple[str, ...] = ()

    def __init__(self, remembered: Sequence[Place]) -> None:
        super().__init__()
        self.remembered = tuple(remembered)
        self._first: dict[Place, Any] | None = None

    def first(self) -> Kept:
        """Return what its modules kept before it was first run."""
        if self._first is None:
            self._first = copies(kept(self.network, self.remembered))
        return self._first

    @contextmanager
    def begun(self, values: Kept | None = None) -> Iterator[None]:
        """Within the context its modules keep what they kept at first, or `values`; then what they kept before.

        So each of some batches that are no stream starts where the network once began, and it is left as it was.
        """
        with keeping(self.network, self.remembered, self.first() if values is None else values):
            yield

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the network does."""
        return self.giving(lambda network: network(*args, **kwargs))

    def giving(self, ask: Callable[[nn.Module], Any]) -> Any:
        """Return what the network gives when it is asked in some way, which may need gradients to do it."""
        self.first()
        if torch.is_grad_enabled() or not differentiates(self.network):
            return ask(self.network)
        with torch.enable_grad():
            return mapped(Tensor.detach, ask(self.network))

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return what is saved: of what modules keep from call to call, what they kept at first.

        What a `state_dict` of the network's own adds, as the arguments that it was made with, is left out: it is no
        tensor, and no module loads it.
        """
        with self.begun():
            state = super().state_dict(*args, **kwargs)
        added = [name for name, value in state.items() if not isinstance(value, Tensor) and not name.endswith(EXTRA)]
        for name in added:
            del state[name]
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state, in which the network then begins."""
        self._first = None
        return super().load_state_dict(state_dict, strict, assign)

    def _apply(self, change: Callable[[Tensor], Tensor], *others: Any) -> Self:
        """Let what was kept at first live where, and in the numbers in which, the network does."""
        if self._first is not None:
            self._first = {place: mapped(change, value) for place, value in self._first.items()}
        super()._apply(change, *others)  # type: ignore[no-untyped-call]
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a copy, also where modules keep something that belongs to a graph of gradients."""
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        with self.begun():
            vars(twin).update(duplicated(vars(self), self, memo))
        rebind(twin, memo)
        return twin


def differentiates(network: nn.Module) -> bool:
    """Return whether a network is marked as one that takes gradients in its forward, as of an energy by positions."""
    return any(DIFFERENTIATING in vars(module) for module in modules_in(network))
