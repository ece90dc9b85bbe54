"""Other spellings of kinds of networks: weights computed in a call, neurons across others, padding, complex numbers."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import pruning
from pruning.core.hooks import record
from pruning.core.neurons import mask, select
from tests.discovery.test_forms import Made, Network, answers
from tests.discovery.test_kinds import grid
from tests.foreign import floats, tokens

SPELLINGS: dict[str, tuple[Callable[[], Made], dict[str, int], set[str]]] = {}
"""Spelling → how a network of it is made with its inputs, its layers' widths by name, and which are not exact."""


def spelling(layers: dict[str, int], inexact: set[str] = frozenset()) -> Callable[..., Any]:
    def known(make: Callable[[], Made]) -> Callable[[], Made]:
        SPELLINGS[make.__name__] = make, layers, set(inexact)
        return make

    return known


LENGTHS = torch.tensor([3, 7, 5])


@spelling({"rnn.0": 6})
def sequences_sorted_by_hand_and_the_greatest_of_each_neuron() -> Made:
    def run(self: Any, inputs: Tensor, lengths: Tensor) -> Tensor:
        lengths, order = lengths.sort(descending=True)
        packed, (hidden, _) = self.rnn(pack_padded_sequence(inputs[order], lengths, batch_first=True))
        outputs, _ = pad_packed_sequence(packed, batch_first=True)
        return self.out(torch.cat([outputs.max(1)[0], hidden[-2], hidden[-1]], 1))[order.argsort()]

    rnn = nn.LSTM(4, 6, 2, batch_first=True, bidirectional=True)
    return Network(run, rnn=rnn, out=nn.Linear(24, 2)), (floats(3, 7, 4), LENGTHS)


@spelling({"text": 5, "rnn.0": 6, "inner": 8})
def means_over_the_steps_that_sequences_have() -> Made:
    def run(self: Any, text: Tensor, lengths: Tensor) -> Tensor:
        packed, hidden = self.rnn(pack_padded_sequence(self.text(text), lengths, True, enforce_sorted=False))
        outputs, _ = pad_packed_sequence(packed, batch_first=True, total_length=text.shape[1])
        there = (torch.arange(text.shape[1]) < lengths[:, None]).to(outputs).unsqueeze(-1)
        mean = (outputs * there).sum(1) / there.sum(1)
        return self.out(self.inner(torch.cat([mean, hidden.transpose(0, 1).flatten(1)], 1)).relu())

    rnn = nn.GRU(5, 6, batch_first=True, bidirectional=True)
    parts = {"text": nn.Embedding(20, 5, padding_idx=0), "rnn": rnn, "inner": nn.Linear(24, 8), "out": nn.Linear(8, 2)}
    return Network(run, **parts), (tokens(3, 7), LENGTHS)


@spelling({"keep": 6})
def a_scan_in_logarithms_from_a_learned_state() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        keep = self.keep(inputs)
        begin = self.begin.abs().log().expand(len(inputs), 1, -1)
        new = (self.new(inputs).relu() + 0.5).log() - F.softplus(-keep)
        decay = F.pad((-F.softplus(keep)).cumsum(1), (0, 0, 1, 0))
        return self.out((decay + (torch.cat([begin, new], 1) - decay).logcumsumexp(1)).exp()[:, 1:])

    parts = {"keep": nn.Linear(3, 6), "new": nn.Linear(3, 6), "begin": grid(1, 1, 6), "out": nn.Linear(6, 2)}
    return Network(run, **parts), (floats(2, 5, 3),)


@spelling({"enter": 8})
def several_learned_poolings_over_time() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = self.enter(inputs).tanh()
        return self.out((self.scores(hidden).softmax(1).mT @ hidden).flatten(1))

    parts = {"enter": nn.Linear(5, 8), "scores": nn.Linear(8, 3), "out": nn.Linear(24, 2)}
    return Network(run, **parts), (floats(2, 6, 5),)


@spelling({"enter": 8, "inner": 6})
def a_classifier_by_cosines() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        return 16 * F.linear(F.normalize(self.inner(self.enter(inputs).relu())), F.normalize(self.classes))

    return Network(run, enter=nn.Linear(3, 8), inner=nn.Linear(8, 6), classes=grid(4, 6)), (floats(5, 3),)


@spelling({"enter": 4})
def heads_over_edges_whose_scores_are_shifted_by_the_greatest_of_all() -> Made:
    def run(self: Any, nodes: Tensor, edges: Tensor) -> Tensor:
        hidden = self.enter(nodes).view(len(nodes), self.heads, -1)
        scores = F.leaky_relu((hidden * self.one).sum(-1)[edges[0]] + (hidden * self.other).sum(-1)[edges[1]])
        scores = (scores - scores.max()).exp()
        whole = hidden.new_zeros(len(nodes), self.heads).index_add(0, edges[1], scores)
        messages = hidden[edges[0]] * (scores / (whole[edges[1]] + 1e-9))[..., None]
        return self.out(torch.zeros_like(hidden).index_add(0, edges[1], messages).flatten(1))

    parts = {"enter": nn.Linear(3, 12), "one": grid(1, 4, 3), "other": grid(1, 4, 3), "out": nn.Linear(12, 2)}
    return Network(run, **parts, heads=4), (floats(5, 3), torch.tensor([[0, 1, 2, 3], [1, 2, 1, 0]]))


@spelling({"enter": 8, "weights": 5})
def weights_that_another_network_computes() -> Made:
    def run(self: Any, inputs: Tensor, about: Tensor) -> Tensor:
        weights = self.weights(self.enter(about).relu()).view(len(about), -1, inputs.shape[1])
        return self.out((weights @ inputs.unsqueeze(2)).squeeze(2).relu())

    parts = {"enter": nn.Linear(3, 8), "weights": nn.Linear(8, 20), "out": nn.Linear(5, 2)}
    return Network(run, **parts), (floats(2, 4), floats(2, 3, seed=1))


@spelling({"enter": 4})
def capsules_as_long_as_their_vectors_say() -> Made:
    def run(self: Any, image: Tensor) -> Tensor:
        capsules = self.enter(image).unflatten(1, (-1, 3)).flatten(3).transpose(2, 3)
        length = capsules.norm(dim=-1, keepdim=True)
        return self.out((length / (1 + length**2) * capsules).flatten(1))

    return Network(run, enter=nn.Conv2d(1, 12, 3, 2), out=nn.Linear(12 * 4, 2)), (floats(2, 1, 5, 5),)


@spelling({"enter": 3}, {"enter"})
def heads_of_a_state_space_with_a_number_each() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        gate, hidden, steps = self.enter(inputs).split([self.heads * 4, self.heads * 4, self.heads], -1)
        steps, hidden = F.softplus(steps + self.shift), hidden.unflatten(-1, (self.heads, 4))
        state, outputs = torch.zeros_like(hidden[:, 0]), []
        for time in range(inputs.shape[1]):
            state = (-steps[:, time] * self.decay.exp()).exp()[..., None] * state + steps[:, time, :, None] * hidden[
                :, time
            ]
            outputs.append(state)
        return self.out(self.norm(torch.stack(outputs, 1).flatten(2) * F.silu(gate)))

    parts = {"enter": nn.Linear(5, 27), "shift": grid(3), "decay": grid(3), "norm": nn.RMSNorm(12)}
    return Network(run, **parts, out=nn.Linear(12, 2), heads=3), (floats(2, 4, 5),)


@spelling({"enter": 8, "mix": 6, "inner": 10}, {"enter"})
def tokens_mixed_by_neurons_of_their_own() -> Made:
    def run(self: Any, image: Tensor) -> Tensor:
        stream = self.enter(image).flatten(2).transpose(1, 2)
        stream = stream + self.unmix(F.gelu(self.mix(self.first(stream).transpose(1, 2)))).transpose(1, 2)
        return self.out((stream + self.outer(F.gelu(self.inner(self.second(stream))))).mean(1))

    parts = {"enter": nn.Conv2d(3, 8, 4, 4), "first": nn.LayerNorm(8), "mix": nn.Linear(4, 6), "unmix": nn.Linear(6, 4)}
    parts |= {"second": nn.LayerNorm(8), "inner": nn.Linear(8, 10), "outer": nn.Linear(10, 8), "out": nn.Linear(8, 2)}
    return Network(run, **parts), (floats(2, 3, 8, 8),)


@spelling({"enter": 8, "inner": 6, "mix": 5}, {"enter", "inner"})
def tokens_mixed_and_gated_by_convolutions_of_one_place() -> Made:
    def run(self: Any, image: Tensor) -> Tensor:
        stream = self.enter(image).flatten(2).transpose(1, 2)
        stream = stream + self.unmix(F.gelu(self.mix(self.first(stream))))
        kept, gate = F.gelu(self.inner(stream)).chunk(2, -1)
        return self.out((stream + self.outer(kept * self.among(self.second(gate)))).mean(1))

    parts = {"enter": nn.Conv2d(3, 8, 4, 4), "first": nn.LayerNorm(8), "mix": nn.Conv1d(4, 5, 1)}
    parts |= {"unmix": nn.Conv1d(5, 4, 1), "inner": nn.Linear(8, 12), "second": nn.LayerNorm(6)}
    parts |= {"among": nn.Conv1d(4, 4, 1), "outer": nn.Linear(6, 8), "out": nn.Linear(8, 2)}
    return Network(run, **parts), (floats(2, 3, 8, 8),)


@spelling({"image": 8, "enter": 6})
def a_learned_image_that_is_enlarged_and_scaled_by_channels() -> Made:
    def run(self: Any, style: Tensor) -> Tensor:
        image = F.interpolate(self.image.repeat(len(style), 1, 1, 1), scale_factor=2, mode="bilinear")
        return self.out(torch.relu(self.enter(image * self.style(style)[:, :, None, None])))

    parts = {"image": grid(1, 8, 3, 3), "style": nn.Linear(4, 8), "enter": nn.Conv2d(8, 6, 3)}
    return Network(run, **parts, out=nn.Conv2d(6, 1, 3)), (floats(3, 4),)


@spelling({"enter": 8, "inner": 6})
def places_resized_in_every_way() -> Made:
    def run(self: Any, image: Tensor) -> Tensor:
        stream = self.enter(image)
        for way in ("bicubic", "bilinear"):
            for smooth in (False, True):
                stream = stream + F.interpolate(self.places, size=4, mode=way, antialias=smooth)
        stream = stream + F.interpolate(self.places, size=4, mode="nearest-exact")
        volumes = self.places[:, :, None]
        for way in ("trilinear", "nearest", "nearest-exact"):
            stream = stream + F.interpolate(volumes, size=(2, 4, 4), mode=way).mean(2)
        stream = stream + F.interpolate(self.places.flatten(2), size=4, mode="nearest-exact")[..., None]
        volumes = F.pad(
            F.pad(stream[:, :, None], [1] * 4 + [0] * 2, mode="replicate"), [1] * 4 + [0] * 2, mode="reflect"
        )
        return self.out(torch.relu(self.inner(volumes.mean(2))))

    parts = {"enter": nn.Conv2d(3, 8, 2, 2), "places": grid(1, 8, 3, 3), "inner": nn.Conv2d(8, 6, 3)}
    return Network(run, **parts, out=nn.Conv2d(6, 2, 1)), (floats(2, 3, 8, 8),)


@spelling({"image": 8, "enter": 6})
def a_learned_image_that_is_convolved() -> Made:
    def run(self: Any, style: Tensor) -> Tensor:
        image = torch.relu(self.enter(self.image.expand(len(style), -1, -1, -1)))
        return self.out(image * self.style(style)[:, :, None, None])

    parts = {"image": grid(1, 8, 3, 3), "style": nn.Linear(4, 6), "enter": nn.ConvTranspose2d(8, 6, 2)}
    return Network(run, **parts, out=nn.Conv2d(6, 1, 3)), (floats(3, 4),)


@spelling({"enter": 5, "cross": 6}, {"enter"})
def neurons_across_others_that_one_matrix_reads_beside_them() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        fields = self.enter(inputs)
        crossed = torch.relu(self.cross(fields.transpose(1, 2))).sum(1)
        return self.out(torch.cat([crossed, fields.mean(1)], 1))

    return Network(run, enter=nn.Linear(3, 5), cross=nn.Linear(4, 6), out=nn.Linear(11, 2)), (floats(3, 4, 3),)


class Adapted(nn.Module):
    """A linear map to which the product of two small matrices is added at each call."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias, self.scale = grid(outputs, inputs), grid(outputs), 0.5
        self.down, self.up = grid(2, inputs), grid(outputs, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.weight + self.up @ self.down * self.scale, self.bias)


class Standardised(nn.Conv2d):
    """A convolution whose weight is standardised at each call."""

    def forward(self, image: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(image, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


@spelling({"0": 8, "2": 6})
def low_ranks_added_in_each_call() -> Made:
    return nn.Sequential(Adapted(4, 8), nn.ReLU(), Adapted(8, 6), nn.ReLU(), Adapted(6, 2)), (floats(3, 4),)


@spelling({"0": 8, "2": 6})
def weights_standardised_in_each_call() -> Made:
    first, second = Standardised(3, 8, 3, padding=1), Standardised(8, 6, 3, stride=2, groups=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(54, 2)), (floats(2, 3, 8, 8),)


@spelling({"enter": 6, "inner": 7})
def a_state_space_as_a_long_convolution() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden, length = self.enter(inputs).transpose(1, 2), inputs.shape[1]
        times = self.decay.exp() * torch.complex(-torch.ones_like(self.turn), self.turn)
        weights = torch.view_as_complex(self.weights) * (times.exp() - 1) / times
        kernel = 2 * torch.einsum("hn,hnl->hl", weights, (times.unsqueeze(-1) * torch.arange(length)).exp()).real
        spectrum = torch.fft.rfft(hidden, n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
        hidden = torch.fft.irfft(spectrum, n=2 * length)[..., :length] + hidden * self.skip.unsqueeze(-1)
        return self.out(self.inner(F.gelu(hidden).transpose(1, 2)).relu())

    parts = {"decay": grid(6, 2), "turn": grid(6, 2), "weights": grid(6, 2, 2), "skip": grid(6)}
    parts |= {"enter": nn.Linear(3, 6), "inner": nn.Linear(6, 7), "out": nn.Linear(7, 2)}
    return Network(run, **parts), (floats(2, 10, 3),)


@spelling({"decay": 6})
def a_recurrence_in_complex_numbers() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        decay = torch.polar(torch.exp(-torch.exp(self.decay)), self.turn)
        enter, leave = torch.complex(self.real, self.imaginary), torch.complex(self.one, self.other)
        state, outputs = torch.zeros(len(inputs), len(decay), dtype=decay.dtype), []
        for step in inputs.unbind(1):
            state = decay * state + step.to(decay.dtype) @ enter.T
            outputs.append((state @ leave.T).real)
        return torch.stack(outputs, 1)

    parts = {"real": grid(6, 3), "imaginary": grid(6, 3), "decay": grid(6), "turn": grid(6)}
    return Network(run, **parts, one=grid(2, 6), other=grid(2, 6)), (floats(2, 5, 3),)


@spelling({"enter": 8})
def spikes_where_a_threshold_that_stands_in_the_code_is_passed() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        potential = spikes = torch.zeros(inputs.shape[1], 8).to(inputs)
        for step in inputs:
            spikes = (potential - torch.tensor(1.0) > torch.as_tensor(0.0)).to(inputs)
            potential = 0.9 * potential * (1 - spikes) + self.enter(step) + F.linear(spikes, self.back)
        return self.out(spikes + potential)

    return Network(run, enter=nn.Linear(4, 8), back=grid(8, 8), out=nn.Linear(8, 2)), (3 * floats(5, 2, 4),)


@spelling({"inner": 6})
def channels_mixed_in_a_stream_in_which_steps_are_mixed() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        stream = inputs + torch.relu(self.steps(inputs.mT)).mT
        stream = stream + self.back(torch.relu(self.inner(stream)))
        return self.out(stream.mT)

    parts = {"steps": nn.Linear(5, 5), "inner": nn.Linear(3, 6), "back": nn.Linear(6, 3)}
    return Network(run, **parts, out=nn.Linear(5, 2)), (floats(4, 5, 3),)


@spelling({"enter": 5, "keys": 6, "values": 6})
def fast_weights_that_begin_as_zeros_and_are_corrected_by_what_they_give() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        stream = torch.tanh(self.enter(inputs))
        keys, values, asked = self.keys(stream), self.values(stream), self.asked(stream)
        state, outputs = torch.zeros(len(inputs), 6, 6).to(inputs), []
        for step in range(inputs.shape[1]):
            known = torch.einsum("bkv,bk->bv", state, keys[:, step])
            state = state + torch.einsum("bk,bv->bkv", keys[:, step], values[:, step] - known)
            outputs.append(torch.einsum("bkv,bk->bv", state, asked[:, step]))
        return self.out(torch.stack(outputs, 1))

    parts = {name: nn.Linear(5, 6) for name in ("keys", "values", "asked")}
    return Network(run, enter=nn.Linear(3, 5), **parts, out=nn.Linear(6, 2)), (floats(4, 3, 3),)


@spelling({"queries": 2})
def states_of_heads_that_begin_as_zeros_and_are_read_before_anything_is_written() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        parts = (self.queries(inputs), self.keys(inputs), self.values(inputs))
        asked, keys, values = (part.unflatten(-1, (-1, 4)) for part in parts)
        state, outputs = torch.zeros(len(inputs), 2, 4, 4).to(inputs), []
        for step in range(inputs.shape[1]):
            state = 0.9 * state - (state @ keys[:, step, :, :, None]) @ keys[:, step, :, None]
            state = state + values[:, step, :, :, None] @ keys[:, step, :, None]
            outputs.append((state @ asked[:, step, :, :, None]).flatten(1))
        return self.out(torch.stack(outputs, 1))

    parts = {name: nn.Linear(3, 8) for name in ("queries", "keys", "values")}
    return Network(run, **parts, out=nn.Linear(8, 2)), (floats(4, 3, 3),)


@spelling({"enter": 6, "queries": 2})
def attention_less_a_learned_mixture_of_distances_for_each_head() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        stream = self.enter(inputs)
        asked, keys, values, paces = (
            part(stream).unflatten(-1, (2, -1)).transpose(1, 2)
            for part in (self.queries, self.keys, self.values, self.paces)
        )
        steps = torch.arange(inputs.shape[1]).to(inputs)
        kernels = -torch.arange(1, 4).to(inputs).view(-1, 1, 1) * (steps[:, None] - steps).abs()
        scores = asked @ keys.mT + torch.einsum("fts,bhsf->bhst", kernels, torch.sigmoid(paces))
        return self.out((scores.softmax(-1) @ values).transpose(1, 2).flatten(2))

    parts = {name: nn.Linear(6, 8) for name in ("queries", "keys", "values")}
    return Network(run, enter=nn.Linear(3, 6), **parts, paces=nn.Linear(6, 6), out=nn.Linear(8, 2)), (floats(4, 5, 3),)


@spelling({"bias": 6})
def a_recurrence_by_a_matrix_less_its_transpose() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        matrix = self.back - self.back.T - 0.1 * torch.eye(len(self.back)).to(inputs)
        state = torch.zeros(len(inputs), len(self.back)).to(inputs)
        for step in inputs.unbind(1):
            state = state + 0.2 * torch.tanh(F.linear(state, matrix, self.bias) + self.enter(step))
        return self.out(state)

    parts = {"back": grid(6, 6), "bias": grid(6), "enter": nn.Linear(3, 6)}
    return Network(run, **parts, out=nn.Linear(6, 2)), (floats(4, 3, 3),)


@spelling({"one": 6})
def spikes_that_a_filter_over_time_takes_for_examples() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        spikes = (self.one(inputs) > 0.2).to(inputs)
        examples, neurons, steps = spikes.shape
        traces = F.conv1d(F.pad(spikes.reshape(-1, 1, steps), (3, 0)), self.response)
        return self.two(traces.reshape(examples, neurons, steps))

    return Network(run, one=nn.Conv1d(4, 6, 1), two=nn.Conv1d(6, 2, 1), response=grid(1, 1, 4)), (floats(3, 4, 7),)


@spelling({"kernels.down": 5, "kernels.deep": 7, "kernels.up": 4})
def kernels_in_a_dictionary_that_a_decoder_enlarges_and_concatenates_by() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        kernels = self.kernels
        skipped = torch.tanh(F.conv2d(inputs, kernels["down"], padding=1))
        deep = torch.tanh(F.conv2d(F.max_pool2d(skipped, 2), kernels["deep"]))
        large = torch.tanh(F.conv_transpose2d(deep, kernels["up"], stride=2))
        return F.conv2d(torch.cat([skipped, large], 1), kernels["out"])

    shapes = {"down": (5, 3, 3, 3), "deep": (7, 5, 1, 1), "up": (7, 4, 2, 2), "out": (2, 9, 1, 1)}
    kernels = nn.ParameterDict({name: nn.Parameter(grid(*shape)) for name, shape in shapes.items()})
    return Network(run, kernels=kernels), (floats(2, 3, 6, 6),)


@spelling({"see": 6, "inner": 5})
def features_taken_where_the_features_say() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        seen = torch.tanh(self.see(inputs))
        places = torch.tanh(self.where(seen)).permute(0, 2, 3, 1)
        return self.out(torch.relu(self.inner(F.grid_sample(seen, places, align_corners=False))))

    parts = {"see": nn.Conv2d(3, 6, 3), "where": nn.Conv2d(6, 2, 3, padding=1), "inner": nn.Conv2d(6, 5, 1)}
    return Network(run, **parts, out=nn.Conv2d(5, 2, 1)), (floats(2, 3, 8, 8),)


@spelling({"enter": 2})
def heads_of_a_recurrence_each_with_a_matrix_of_its_own() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        state = inputs.new_zeros(len(inputs), 6)
        for step in inputs.unbind(1):
            heads = state.view(len(inputs), self.heads, -1)
            state = torch.tanh(self.enter(step) + torch.einsum("bhi,hoi->bho", heads, self.back).flatten(1))
        return self.out(state)

    parts = {"enter": nn.Linear(4, 6), "out": nn.Linear(6, 2), "back": nn.Parameter(grid(2, 3, 3)), "heads": 2}
    return Network(run, **parts), (floats(3, 5, 4),)


@spelling({"first": 4, "second": 6, "gain": 7, "up": 5})
def biases_that_are_computed_in_each_call() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = F.linear(inputs, self.enter.weight, torch.cat([self.first, self.second])).relu()
        seen = F.conv1d(hidden.unsqueeze(2), self.see.weight, self.shift * self.gain, padding=1).relu()
        wide = F.conv_transpose1d(seen, self.up.weight, self.raised.exp()).tanh()
        return self.out(wide.mean(2))

    parts = {"enter": nn.Linear(3, 10, bias=False), "see": nn.Conv1d(10, 7, 3, bias=False)}
    parts |= {name: nn.Parameter(grid(size)) for name, size in (("first", 4), ("second", 6), ("shift", 7), ("gain", 7))}
    parts |= {"up": nn.ConvTranspose1d(7, 5, 3, bias=False), "raised": nn.Parameter(grid(5)), "out": nn.Linear(5, 2)}
    return Network(run, **parts), (floats(4, 3),)


@spelling({"enter": 6, "keys": 2, "queries": 3})
def heads_of_learned_queries_and_of_learned_keys_and_values() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        seen, batch = self.enter(inputs).relu(), len(inputs)
        queries = self.ask.expand(batch, -1, -1).unflatten(-1, (2, -1)).mT.permute(0, 3, 1, 2) * 0.5
        keys, values = (part(seen).unflatten(-1, (2, -1)).transpose(1, 2) for part in (self.keys, self.values))
        pooled = ((queries @ keys.mT).softmax(-1) @ values).transpose(1, 2).flatten(2)
        queries = self.queries(pooled).unflatten(-1, (3, -1)).transpose(1, 2)
        memory = (part.view(5, 3, 2).transpose(0, 1).expand(batch, -1, -1, -1) for part in (self.known, self.told))
        return self.out(F.scaled_dot_product_attention(queries, *memory).transpose(1, 2).flatten(2))

    parts = {"enter": nn.Linear(4, 6), "keys": nn.Linear(6, 8), "values": nn.Linear(6, 8), "ask": grid(1, 2, 8)}
    parts |= {"queries": nn.Linear(8, 6), "known": grid(5, 6), "told": grid(5, 6), "out": nn.Linear(6, 2)}
    parts = {name: nn.Parameter(part) if isinstance(part, Tensor) else part for name, part in parts.items()}
    return Network(run, **parts), (floats(3, 5, 4),)


@spelling({})
def learned_tokens_of_which_there_are_none_keep_the_width_of_what_they_stand_before() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = self.enter(inputs).relu()
        return self.out(torch.cat([self.tokens.expand(len(inputs), -1, -1), hidden], 1)).mean(1)

    parts = {"enter": nn.Linear(3, 6), "tokens": nn.Parameter(torch.zeros(1, 0, 6)), "out": nn.Linear(6, 2)}
    return Network(run, **parts), (floats(4, 5, 3),)


def made(name: str) -> Made:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, inputs = SPELLINGS[name][0]()
    return network.double().eval(), inputs


@pytest.mark.parametrize("name", SPELLINGS)
def test_in_each_spelling_removing_the_neurons_that_are_found_equals_masking_them(name):
    network, inputs = made(name)
    model = pruning.discover(network, inputs)
    for one, other in zip(answers(model, inputs), answers(network, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    assert {layer.name: layer.width for layer in model.layers()} == SPELLINGS[name][1]
    assert {layer.name for layer in model.layers() if not layer.exact} == SPELLINGS[name][2]
    keep = {layer.name: torch.arange(layer.width - 1, layer.width // 3, -1) for layer in model.layers()}
    assert all(part.isfinite().all() for part in answers(select(model, keep), inputs))
    keep = {layer.name: keep[layer.name] for layer in model.layers() if layer.exact}
    for one, other in zip(answers(select(model, keep), inputs), answers(mask(model, keep), inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["low_ranks_added_in_each_call", "weights_standardised_in_each_call"])
def test_weights_computed_in_each_call_are_folded_and_said_so_and_saved(name, tmp_path):
    network, inputs = made(name)
    model = pruning.discover(network, inputs)
    kind = type(network[0]).__name__
    assert model.folded["0.weight"] == f"{kind}, in each call"
    assert type(model.network[0]) in (nn.Linear, nn.Conv2d)
    assert type(network[0]).__name__ == kind
    smaller = select(model, {"0": torch.tensor([6, 1, 4])})
    pruning.save(smaller, tmp_path)
    for one, other in zip(
        answers(pruning.restore(made(name)[0], tmp_path), inputs), answers(smaller, inputs), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_state_that_a_number_for_each_example_resets_keeps_its_shape():
    def run(self: Any, inputs: Tensor, state: Tensor, ended: Tensor) -> tuple[Tensor, Tensor]:
        outputs = []
        for step, over in zip(inputs, ended, strict=True):
            output, state = self.rnn(step[None], state * (1 - over).view(1, -1, 1))
            outputs.append(output)
        return self.out(torch.cat(outputs)), state

    network = Network(run, rnn=nn.GRU(4, 6), out=nn.Linear(6, 2)).double().eval()
    ended = torch.tensor([[0, 1], [1, 0], [0, 0]]).double()
    inputs = floats(3, 2, 4), torch.zeros(1, 2, 6).double(), ended
    model = pruning.discover(network, inputs)
    keep = {"rnn.0": torch.tensor([4, 1, 3])}
    one, other = answers(select(model, keep), inputs), answers(mask(model, keep), inputs)
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=1e-12)
    assert one[1].shape == (1, 2, 6)
    assert math.prod(one[1].shape) > int(one[1].count_nonzero())


def test_neurons_that_products_by_a_dictionarys_parameters_read_are_recorded_where_they_lie():
    network, inputs = made("kernels_in_a_dictionary_that_a_decoder_enlarges_and_concatenates_by")
    model, recorded = pruning.discover(network, inputs), {}
    with record(model, model.layers(), recorded.__setitem__):
        model(*inputs)
    kernels = network.kernels
    skipped = torch.tanh(F.conv2d(*inputs, kernels["down"], padding=1))
    deep = torch.tanh(F.conv2d(F.max_pool2d(skipped, 2), kernels["deep"]))
    for name, values in {"deep": deep, "up": torch.tanh(F.conv_transpose2d(deep, kernels["up"], stride=2))}.items():
        expected = values.movedim(1, -1).flatten(0, -2)
        torch.testing.assert_close(recorded[f"kernels.{name}"].reshape(expected.shape), expected)
