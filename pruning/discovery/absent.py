"""What stands where a residual block was: a module without parameters that hands the stream on, or adds zeros to it."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Form:
    """How what a module gives looks.

    Attributes:
        parts: How many parts it has, of which the first is a tensor; 0 if it is that tensor.
        shape: Of the tensor, None where a dimension is as long as that of the first tensor that the module is given.
    """

    parts: int
    shape: tuple[int | None, ...]


def form_of(outputs: Any, like: Tensor | None) -> Form | None:
    """Return how outputs look, given the first tensor that the module had; None if the first part is no tensor."""
    several = type(outputs) in (tuple, list)
    value = (outputs[0] if outputs else None) if several else outputs
    if not isinstance(value, Tensor) or like is None:
        return None
    sizes = enumerate(value.shape)
    shape = tuple(None if dim < like.ndim and like.shape[dim] == size else size for dim, size in sizes)
    return Form(len(outputs) if several else 0, shape)


class Absent(nn.Module):
    """What stands for a module that is gone, and answers what code asks of its settings.

    Attributes:
        parts: See `Form`; likewise `shape`.
        passes: Which argument is handed on, by its place or name; None if zeros are given.
    """

    def __init__(self, like: nn.Module, form: Form, passes: int | str | None) -> None:
        super().__init__()
        settings = {name: value for name, value in vars(like).items() if type(value) in (bool, int, float, str)}
        vars(self).update(settings | dict.fromkeys(like._parameters))
        self.parts, self.shape, self.passes = form.parts, form.shape, passes
        self._recurrent = isinstance(like, nn.RNNBase)

    def forward(self, *args: Any, **named: Any) -> Any:
        """Return the argument that is handed on, or zeros; of a recurrent layer also the state that it was given."""
        given = _by_place(args, named)
        value = self._zeros(given) if self.passes is None else given[self.passes]
        if self._recurrent:
            return value, self._state(value, given)
        return value if not self.parts else (value, *[None] * (self.parts - 1))

    def _zeros(self, given: Mapping[int | str, Any]) -> Tensor:
        like = next(value for value in given.values() if isinstance(value, Tensor))
        shape = [like.shape[dim] if size is None else size for dim, size in enumerate(self.shape)]
        kind = like.dtype if like.is_floating_point() else torch.get_default_dtype()
        return torch.zeros(shape, dtype=kind, device=like.device)

    def _state(self, value: Tensor, given: Mapping[int | str, Any]) -> Any:
        """Return the state that was given, or the one of zeros that it begins with."""
        before = given.get(1, given.get("hx"))
        if before is not None:
            return before
        settings = vars(self)
        batch = [value.shape[0 if settings["batch_first"] else 1]] if value.ndim == 3 else []
        parts = settings["num_layers"] * (1 + settings["bidirectional"])
        widths = (settings["proj_size"] or settings["hidden_size"], settings["hidden_size"])
        state = tuple(value.new_zeros(parts, *batch, width) for width in widths)
        return state if settings["mode"] == "LSTM" else state[0]

    def extra_repr(self) -> str:
        """Return what it gives."""
        return "zeros" if self.passes is None else "what it is given"


def _by_place(args: tuple[Any, ...], named: Mapping[str, Any]) -> dict[int | str, Any]:
    """Return arguments by their places or names."""
    found: dict[int | str, Any] = dict(enumerate(args))
    found.update(named.items())
    return found


@contextmanager
def skipping(network: nn.Module, skipped: Iterable[tuple[str, int | str | None]]) -> Iterator[None]:
    """Within the context modules give what `Absent` would, whatever else they compute: the reference for a cut.

    Args:
        network: It gets hooks, which are gone afterwards.
        skipped: Modules, and which argument each hands on; None if it gives zeros.
    """

    def hook_of(passes: int | str | None) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any], outputs: Any) -> Any:
            first = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
            value = torch.zeros_like(first) if passes is None else _by_place(args, named)[passes]
            return value if first is outputs else type(outputs)((value, *outputs[1:]))

        return hook

    with ExitStack() as handles:
        for path, passes in skipped:
            module = network.get_submodule(path)
            handles.enter_context(module.register_forward_hook(hook_of(passes), with_kwargs=True))
        yield
