"""Weights in general position, with which what depends on a neuron shows, where the network's own may hide it."""

from collections.abc import Iterator
from typing import Any

from pruning.core.memory import Place
from pruning.discovery.discovered import Discovered
from pruning.discovery.redrawing import redrawn
from pruning.discovery.remembering import Remembering
from pruning.discovery.running import CUTTING, Inputs, kept_tensors, name_of, running

DRAWS = 8
"""How often weights are drawn until nothing is cut off everywhere: half of the draws may leave a ReLU silent."""
Fixed = tuple[Discovered, tuple[Place, ...]]
"""A model with other weights, and where its modules remember a call, so that the next one must be tried, too."""


def generic(model: Discovered, inputs: Inputs, *, centred: bool = False) -> Fixed:
    """Return the model with weights in general position, so that none hides what depends on a neuron by being zero.

    What its modules remember is forgotten. Its own weights stay where others give no finite answer. Of several draws
    it is the first with which the fewest operations cut off all that they are given: behind a ReLU that is silent for
    all inputs a factor or a neuron in front of it changes nothing.

    Args:
        model: It is left as it was.
        inputs: What it is called with.
        centred: Whether vectors are drawn around nought, too, as thresholds may ask for; else around one.
    """
    found: list[tuple[int, Fixed]] = []
    for seed in range(DRAWS):
        mode = Cutting()
        network = redrawn(model.network, centred=centred, seed=seed)
        drawn = _fixed(Discovered(network, model.layers(), {}), model, inputs, mode)
        if drawn[0] is not model or not found:
            found.append((mode.silent, drawn))
        if not mode.silent or drawn[0] is model:
            break
    return min(found, key=lambda each: each[0])[1]


class Cutting(Remembering):  # type: ignore[no-untyped-call]
    """How many operations cut off all that they are given, beside where modules keep something.

    Attributes:
        silent: How many.
    """

    silent = 0

    def see(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do the operation, and see whether it gives one number everywhere."""
        found = super().see(operation, args, kwargs)
        if name_of(operation).removesuffix("_") in CUTTING and found.numel() > 1 and found.is_floating_point():
            self.silent += bool((found == found.flatten()[0]).all())
        return found


def positions(model: Discovered, inputs: Inputs) -> Iterator[Fixed]:
    """Yield the model with several weights, for one of which neurons that spike do so neither always nor never."""
    yield generic(model, inputs)
    yield generic(model, inputs, centred=True)
    yield own(model, inputs)


def own(model: Discovered, inputs: Inputs) -> Fixed:
    """Return a copy of the model with the weights that it has, of which what its modules remember is forgotten."""
    found = Discovered(model.network, model.layers(), {})
    return _fixed(found.resized([layer.width for layer in found.layers()]), model, inputs)


def _fixed(found: Discovered, model: Discovered, inputs: Inputs, mode: Remembering | None = None) -> Fixed:
    registered = {*dict(found.named_parameters()), *dict(found.named_buffers())}
    for name, held in kept_tensors(found).items():
        if name not in registered:
            held.zero_()
    mode = mode or Remembering()
    with running(found, inputs, mode) as (network, outputs):
        finite = all(bool(tensor.isfinite().all()) for tensor in outputs)
        model.written = tuple(dict.fromkeys((*model.written, *mode.written)))
        return found if finite else model, mode.places(network)
