"""Many models that each lack one neuron, run side by side as columns of one batch, computing once what they share.

A neuron is removed by zeroing its output wherever it is read (see `mask`). Its layer, and the layers that read it
directly or through others, differ between the models; everything else is computed for one of them and repeated. Which
layers those are follows from the slices that a family declares, so a family has nothing to add.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.core.neurons import NeuronLayer, mask, named_tensors, others
from pruning.models.base import LanguageModel, State
from pruning.models.spiking import LIF

Forward = Callable[..., Any]
Module = TypeVar("Module", bound=nn.Module)


class Removals(ABC):
    """Models that lack one neuron each. They read the same windows one after the other and carry their states.

    Attributes:
        neurons: The neuron that each lacks, (models,).
    """

    neurons: Tensor

    @property
    @abstractmethod
    def carried(self) -> Any:
        """What others start with that are to go on from here, wherever they are."""

    @abstractmethod
    def features(self, tokens: Tensor) -> Tensor:
        """Return what each model's decoder reads after each of `tokens` (T, B), as (T, models, B, features).

        What a removed neuron says is zero in it, so the unpruned model's decoder serves all.
        """

    @abstractmethod
    def keep(self, places: Tensor) -> None:
        """Go on with only these of the models."""


def removals(model: LanguageModel, layer: NeuronLayer, neurons: Tensor, carried: Any = None) -> Removals:
    """Return the models that lack one of `neurons` of `layer` each, starting without a state.

    Side by side where `SCANS` knows the layer's module, else one after the other, which is right for every family.

    Args:
        model: In evaluation mode, with readers of its own for each layer (see `LanguageModel.decoupled`).
        layer: One of the model's layers.
        neurons: Distinct neurons of it, (models,).
        carried: What such models have carried, to go on from; None to start without a state.
    """
    known = type(model.get_submodule(layer.output)) in SCANS
    return (SideBySide if known else OneByOne)(model, layer, neurons, carried)


class OneByOne(Removals):
    """A masked model for each neuron: slow, and the twin that `SideBySide` is tested against."""

    def __init__(
        self, model: LanguageModel, layer: NeuronLayer, neurons: Tensor, carried: list[State | None] | None = None
    ) -> None:
        self.model, self.layer, self.neurons = model, layer, neurons.cpu()
        self.states: list[State | None] = carried or [None] * len(neurons)

    @property
    def carried(self) -> list[State | None]:
        """See `Removals.carried`."""
        return self.states

    def features(self, tokens: Tensor) -> Tensor:
        """See `Removals.features`."""
        read_out = []
        for place, neuron in enumerate(self.neurons.tolist()):
            masked = mask(self.model, {self.layer.name: others(self.layer.width, [neuron])})
            read, self.states[place] = masked.features(tokens, self.states[place])
            read_out.append(read.index_fill(2, self._read_by_decoder(neuron).to(read.device), 0))
        return torch.stack(read_out, dim=1)

    def _read_by_decoder(self, neuron: int) -> Tensor:
        """Return where the decoder itself reads the neuron: the masked model has zeros in its columns instead."""
        decoder, removed = self.model.decoder_weight, torch.tensor([neuron])
        pieces = [piece for piece in self.layer.read if self.model.get_parameter(piece.parameter) is decoder]
        places = [piece.indices(removed, self.layer.width) for piece in pieces]
        return torch.cat(places) if places else removed[:0]

    def keep(self, places: Tensor) -> None:
        """See `Removals.keep`."""
        self.neurons = self.neurons[places.cpu()]
        self.states = [self.states[place] for place in places.tolist()]


class SideBySide(Removals):
    """One batch whose columns are the models' columns: all of the first model's, then all of the second's, and so on.

    It runs `model.features` itself, on a copy in which the layers' modules have another forward and no parameter is
    copied. What lies below the removed neurons' layer has the columns of one model, which that layer turns into those
    of all; the layers above run on what they are given. Modules take inputs (T, columns, n) and, if any, a state of
    tensors (…, columns, width).
    """

    def __init__(self, model: LanguageModel, layer: NeuronLayer, neurons: Tensor, carried: State | None = None) -> None:
        self.model, self.layer = model, layer
        self.neurons = neurons.to(model.device)  # once, and not at each step
        self.meeting = {other.output for other in _meeting(layer, model.layers())}
        self.state: State | None = carried

    @property
    def carried(self) -> State | None:
        """See `Removals.carried`."""
        return self.state

    def features(self, tokens: Tensor) -> Tensor:
        """See `Removals.features`."""
        models, batch = len(self.neurons), tokens.shape[1]
        twin = _with_forwards(self.model, self._forwards(batch))
        outputs, self.state = twin.features(tokens, self.state)
        return outputs.view(len(tokens), models, batch, -1)

    def keep(self, places: Tensor) -> None:
        """See `Removals.keep`."""
        models, batch, self.neurons = len(self.neurons), self._batch(), self.neurons[places.to(self.neurons.device)]
        if self.state is not None:
            self.state = [
                tuple(t if t.shape[-2] == batch else _columns_of(t, models, places) for t in layer)
                for layer in self.state
            ]

    def _batch(self) -> int:
        """Return the columns of one model, as its state tells."""
        names = [layer.output for layer in self.model.layers()]
        columns = 0 if self.state is None else self.state[names.index(self.layer.output)][0].shape[-2]
        return columns // len(self.neurons)

    def _forwards(self, batch: int) -> dict[str, Forward]:
        """Return how each layer's module is to run."""
        changed = self.model.get_submodule(self.layer.output)
        forwards: dict[str, Forward] = {}
        for layer in self.model.layers():
            module = self.model.get_submodule(layer.output)
            repeats = len(self.neurons) if layer.output in self.meeting else 1
            forwards[layer.output] = partial(_run, module, batch, repeats)
        forwards[self.layer.output] = partial(SCANS[type(changed)], changed, removed=self.neurons, batch=batch)
        return forwards


def _columns_of(tensor: Tensor, models: int, places: Tensor) -> Tensor:
    """Return the columns that belong to some of the models, of a tensor (…, columns, width)."""
    columns = torch.arange(tensor.shape[-2], device=tensor.device).view(models, -1)
    return tensor.index_select(-2, columns[places.to(tensor.device)].flatten())


def _meeting(layer: NeuronLayer, layers: Sequence[NeuronLayer]) -> list[NeuronLayer]:
    """Return the layers that are the same in all models and whose readers may also read what is not."""
    above, waiting = [layer], [layer]
    while waiting:
        read = {piece.parameter for piece in waiting.pop().read}
        readers = [other for other in layers if other not in above and read & {p.parameter for p in other.owned}]
        above += readers
        waiting += readers
    same = [other for other in layers if other not in above]
    below = {piece.parameter for other in (layer, *same) for piece in other.owned}
    return [other for other in same if not {piece.parameter for piece in other.read} <= below]


def _with_forwards(module: Module, forwards: Mapping[str, Forward], name: str = "") -> Module:
    """Return the module with other forwards for some of its submodules; it is left as it was, parameters are shared."""
    twin = copy.copy(module)
    twin._modules = {  # `copy` shares the dictionary of submodules with the original
        child: below and _with_forwards(below, forwards, f"{name}.{child}".lstrip("."))
        for child, below in module._modules.items()
    }
    if name in forwards:
        cast(Any, twin).forward = forwards[name]
    return twin


def _run(module: nn.Module, batch: int, repeats: int, inputs: Tensor, *state: Any) -> tuple[Tensor, Any]:
    """Run a layer on the columns of one model, and repeat what it says for others; or on those of all models."""
    if inputs.shape[1] != batch and type(module) in SCANS:
        outputs, after = SCANS[type(module)](module, inputs, *state)
    else:
        outputs, after = module(inputs, *state)
    return (outputs.repeat(1, repeats, 1) if inputs.shape[1] == batch else outputs), after


def _lstm(
    lstm: nn.LSTM,
    inputs: Tensor,
    state: tuple[Tensor, Tensor] | None = None,
    *,
    removed: Tensor | None = None,
    batch: int | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return an LSTM's outputs, (T, columns, width), and its state, with one neuron at zero in each model.

    All models share each step's product with W_hh, which makes it large. tanh x = 2 σ(2x) − 1, so one sigmoid serves
    the four gates; doubling is exact.

    Args:
        lstm: One layer, in one direction.
        inputs: What it reads, (T, columns, n).
        state: What the window before left, or None.
        removed: The neuron that each model lacks, (models,); or None where the models differ in what they read.
        batch: The columns of one model, where `removed` is given; the others are equal to them or left out.
    """
    inputs = inputs[:, :batch]
    models, batch, width = 1 if removed is None else len(removed), inputs.shape[1], lstm.hidden_size
    entering, recurrent, bias = _doubled(lstm)
    projected = None if removed is None else inputs @ entering + bias  # one model's columns are few: all steps at once
    zeros = inputs.new_zeros(models * batch, width)
    hidden, cell = (zeros, zeros.clone()) if state is None else (state[0][0], state[1][0].clone())
    gates, outputs = inputs.new_empty(models * batch, 4 * width), inputs.new_empty(len(inputs), models * batch, width)
    each = torch.arange(models, device=inputs.device)
    for step, (read, output) in enumerate(zip(inputs, outputs, strict=True)):
        if projected is None:
            torch.addmm(bias, read, entering, out=gates)
        else:
            gates.view(models, batch, 4 * width).copy_(projected[step])
        gates.addmm_(hidden, recurrent)
        enter, forget, content, leave = gates.sigmoid_().chunk(4, dim=1)
        cell.mul_(forget).addcmul_(enter, content.mul_(2).sub_(1))
        hidden = torch.mul(cell, 2, out=output).sigmoid_().mul_(2).sub_(1).mul_(leave)
        if removed is not None:
            hidden.view(models, batch, width)[each, :, removed] = 0
    return outputs, (hidden[None].clone(), cell[None])


def _doubled(lstm: nn.LSTM) -> tuple[Tensor, Tensor, Tensor]:
    """Return W_ihᵀ, W_hhᵀ and the sum of the biases, with the third gate's doubled."""
    tensors = named_tensors(lstm)
    double = tensors["bias_hh_l0"].new_ones(4, lstm.hidden_size)
    double[2] = 2
    weights = [(tensors[name] * double.flatten()[:, None]).T.contiguous() for name in ("weight_ih_l0", "weight_hh_l0")]
    return weights[0], weights[1], (tensors["bias_ih_l0"] + tensors["bias_hh_l0"]) * double.flatten()


def _gru(
    gru: nn.GRU,
    inputs: Tensor,
    state: Tensor | None = None,
    *,
    removed: Tensor | None = None,
    batch: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return a GRU's outputs and state, likewise."""
    tensors = named_tensors(gru)

    def step(entering: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        reset, update, content = entering.chunk(3, dim=1)
        own_reset, own_update, own_content = torch.addmm(
            tensors["bias_hh_l0"], hidden, tensors["weight_hh_l0"].T
        ).chunk(3, 1)
        new = (content + (reset + own_reset).sigmoid() * own_content).tanh()
        return (new.lerp(hidden, (update + own_update).sigmoid()),)

    return _stepped(gru, inputs, state, removed, batch, step, tensors["bias_ih_l0"])


def _rnn(
    rnn: nn.RNN,
    inputs: Tensor,
    state: Tensor | None = None,
    *,
    removed: Tensor | None = None,
    batch: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return an Elman layer's outputs and state, likewise."""
    tensors = named_tensors(rnn)
    bent = torch.tanh if rnn.nonlinearity == "tanh" else torch.relu

    def step(entering: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        return (bent(torch.addmm(entering, hidden, tensors["weight_hh_l0"].T)),)

    return _stepped(rnn, inputs, state, removed, batch, step, tensors["bias_ih_l0"] + tensors["bias_hh_l0"])


def _stepped(
    cell: nn.GRU | nn.RNN,
    inputs: Tensor,
    state: Tensor | None,
    removed: Tensor | None,
    batch: int | None,
    step: Callable[..., tuple[Tensor, ...]],
    bias: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return outputs and state of a cell with one state: by PyTorch, or step by step where neurons are removed."""
    if removed is None:
        whole: tuple[Tensor, Tensor] = cell(inputs, state)
        return whole
    entering = F.linear(inputs[:, :batch], named_tensors(cell)["weight_ih_l0"], bias)
    outputs, after = _scan(step, entering, (None,) if state is None else (state[0],), removed, cell.hidden_size)
    return outputs, after[0][None]


def _lif(
    lif: LIF,
    inputs: Tensor,
    state: tuple[Tensor, ...] | None = None,
    _offset: None = None,
    *,
    removed: Tensor | None = None,
    batch: int | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return a spiking layer's outputs and state, likewise."""
    if removed is None:
        whole: tuple[Tensor, tuple[Tensor, ...]] = lif(inputs, state)
        return whole
    decay = lif.leak.sigmoid()

    def step(entering: Tensor, spikes: Tensor, potential: Tensor) -> tuple[Tensor, ...]:
        fed = entering if lif.weight_hh is None else torch.addmm(entering, spikes, lif.weight_hh.T)
        charged = torch.addcmul(fed, decay, potential)
        fires = (charged - lif.threshold >= 0).to(charged)
        return fires, torch.addcmul(charged, lif.threshold, fires, value=-1)

    entering = F.linear(inputs[:, :batch], lif.weight_ih, lif.bias)
    return _scan(step, entering, state or (None, None), removed, len(lif.bias))


def _scan(
    step: Callable[..., tuple[Tensor, ...]],
    entering: Tensor,
    memory: tuple[Tensor | None, ...],
    removed: Tensor,
    width: int,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return outputs (T, columns, width) and memory of a layer whose models each lack one neuron.

    Args:
        step: (what enters, memory) → memory, whose first tensor is the output: its neuron set to zero, the next step
            reads it. What a removed neuron remembers is wrong from there on, and nobody reads it.
        entering: What each step adds in one model, (T, batch, n); the same in all.
        memory: Tensors (columns, width), or None for zeros.
        removed: The neuron that each model lacks, (models,).
        width: The layer's.
    """
    models, batch = len(removed), entering.shape[1]
    held = tuple(entering.new_zeros(models * batch, width) if tensor is None else tensor for tensor in memory)
    each, outputs = torch.arange(models, device=entering.device), []
    for row in entering:
        held = step(row.repeat(models, 1), *held)
        held[0].view(models, batch, width)[each, :, removed] = 0
        outputs.append(held[0])
    return torch.stack(outputs), held


SCANS: dict[type[nn.Module], Forward] = {nn.LSTM: _lstm, nn.GRU: _gru, nn.RNN: _rnn, LIF: _lif}
"""Kind of module → its forward for many models at once; a kind that is not here runs one model after the other."""
