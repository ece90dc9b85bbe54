"""Weights in general position, with which what depends on a neuron shows, where the network's own may hide it."""

from collections.abc import Iterator

from pruning.core.memory import Place
from pruning.discovery.discovered import Discovered
from pruning.discovery.remembering import Remembering
from pruning.discovery.running import Inputs, kept_tensors, redrawn, running

Fixed = tuple[Discovered, tuple[Place, ...]]
"""A model with other weights, and where its modules remember a call, so that the next one must be tried, too."""


def generic(model: Discovered, inputs: Inputs, *, centred: bool = False) -> Fixed:
    """Return the model with weights in general position, so that none hides what depends on a neuron by being zero.

    What its modules remember is forgotten. Its own weights stay where others give no finite answer.

    Args:
        model: It is left as it was.
        inputs: What it is called with.
        centred: Whether vectors are drawn around nought, too, as thresholds may ask for; else around one.
    """
    return _fixed(Discovered(redrawn(model.network, centred=centred), model.layers(), {}), model, inputs)


def positions(model: Discovered, inputs: Inputs) -> Iterator[Fixed]:
    """Yield the model with several weights, for one of which neurons that spike do so neither always nor never."""
    yield generic(model, inputs)
    yield generic(model, inputs, centred=True)
    yield own(model, inputs)


def own(model: Discovered, inputs: Inputs) -> Fixed:
    """Return a copy of the model with the weights that it has, of which what its modules remember is forgotten."""
    found = Discovered(model.network, model.layers(), {})
    return _fixed(found.resized([layer.width for layer in found.layers()]), model, inputs)


def _fixed(found: Discovered, model: Discovered, inputs: Inputs) -> Fixed:
    registered = {*dict(found.named_parameters()), *dict(found.named_buffers())}
    for name, held in kept_tensors(found).items():
        if name not in registered:
            held.zero_()
    mode = Remembering()
    with running(found, inputs, mode) as (network, outputs):
        finite = all(bool(tensor.isfinite().all()) for tensor in outputs)
        model.written = tuple(dict.fromkeys((*model.written, *mode.written)))
        return found if finite else model, mode.places(network)
