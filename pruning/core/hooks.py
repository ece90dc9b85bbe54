"""Seeing what layers do while a model runs, and leaving the model as it was."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from pruning.core.neurons import NeuronLayer

Observer = Callable[[str, Tensor], None]
"""Called with a layer's name and its activations, (samples, width), each time the layer has run."""


@contextmanager
def record(model: nn.Module, layers: Sequence[NeuronLayer], observe: Observer) -> Iterator[None]:
    """Within the context, pass the activations of each layer to `observe` whenever the model runs.

    No hook is left behind, also after an error.

    Args:
        model: The model whose modules the layers name.
        layers: Which layers to observe.
        observe: Receives detached activations with time and batch flattened into samples; so are the places of an
            image of which each channel is a neuron, and what a neuron has of `size` (the dimensions of a head), the
            samples of its first place first.
    """

    def hook_of(layer: NeuronLayer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor | tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor | tuple[Tensor, ...]) -> None:
            if layer.seen is not None:
                observe(layer.name, layer.seen.split(inputs[0].detach()).flatten(1).T)
                return
            activations = outputs if isinstance(outputs, Tensor) else outputs[0]
            activations = activations.data if isinstance(activations, PackedSequence) else activations
            observe(layer.name, activations.detach().reshape(-1, layer.width))

        return hook

    with ExitStack() as handles:
        for layer in layers:
            handles.enter_context(model.get_submodule(layer.output).register_forward_hook(hook_of(layer)))
        yield
