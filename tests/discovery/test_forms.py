"""The forms in which people write networks: in each the neurons are found, and removing them equals masking them."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune as masks
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence
from torch.utils import _pytree as pytree

import pruning
from pruning.core.hooks import record
from pruning.core.neurons import mask, select
from pruning.discovery import Discovered
from pruning.discovery.running import copied
from pruning.models.adapting import adapt
from tests.discovery.readers import assert_each_is_seen
from tests.foreign import floats, tokens

Made = tuple[nn.Module, tuple[Any, ...]]
FORMS: dict[str, tuple[Callable[[], Made], dict[str, int]]] = {}
"""Form → how a network of it is made with its inputs, and the widths of its layers, by name."""
INEXACT: dict[str, set[str]] = {}
"""Form → its layers whose neurons something takes together."""


class Network(nn.Module):
    """A module whose forward is a function of it and the inputs."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Any) -> Any:
        return self.run(self, *inputs)


def form(layers: dict[str, int], inexact: set[str] = frozenset()) -> Callable[..., Any]:
    def known(make: Callable[[], Made]) -> Callable[[], Made]:
        FORMS[make.__name__] = make, layers
        INEXACT[make.__name__] = set(inexact)
        return make

    return known


LENGTHS = torch.tensor([3, 5, 1])


@form({"rnn.0": 5, "rnn.0_reverse": 5, "rnn.1": 5, "rnn.1_reverse": 5})
def packed_sequences_padded_again() -> Made:
    def run(self: Any, inputs: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
        outputs, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=inputs.shape[1])
        return self.out(outputs).masked_fill((torch.arange(5) >= lengths[:, None])[..., None], 0)

    rnn = nn.GRU(3, 5, 2, batch_first=True, bidirectional=True)
    return Network(run, rnn=rnn, out=nn.Linear(10, 2)), (floats(3, 5, 3), LENGTHS)


STARTS, ENDS = torch.tensor([[0, 3, 1, 2], [1, 0, 2, 2]])


@form({"gates": 5})
def a_state_of_zeros_beside_inputs_that_a_graph_mixes() -> Made:
    def run(self: Any, series: Tensor, graph: Tensor) -> Tensor:
        state = series.new_zeros(series.shape[1], self.width)
        for step in series:
            both = torch.cat([step, state], 1)
            passed = torch.zeros_like(both).index_add(0, ENDS, both[STARTS] * graph.sum(1, keepdim=True))
            gate, new = (both @ self.gates[0] + (graph @ both) @ self.gates[1] + passed @ self.gates[2]).chunk(2, 1)
            state = torch.lerp(state, new.tanh(), gate.sigmoid())
        return self.out(state)

    gates = nn.Parameter(0.3 * torch.randn(3, 8, 10))
    return Network(run, width=5, gates=gates, out=nn.Linear(5, 2)), (floats(2, 4, 3), floats(4, 4))


@form({"embedding": 4, "rnn.0": 5, "rnn.1": 5})
def packed_sequences_read_in_their_last_states() -> Made:
    def run(self: Any, text: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(text), lengths, batch_first=True, enforce_sorted=False)
        _, (hidden, cell) = self.rnn(packed)
        return self.out(torch.cat([hidden[-1], cell[-1]], dim=1))

    parts = {"embedding": nn.Embedding(11, 4), "rnn": nn.LSTM(4, 5, 2, batch_first=True), "out": nn.Linear(10, 2)}
    return Network(run, **parts), (tokens(3, 5), LENGTHS)


@form({"rnn.0": 5})
def packed_data_mapped_without_padding() -> Made:
    def run(self: Any, *sequences: Tensor) -> Tensor:
        packed = self.rnn(pack_sequence(list(sequences), enforce_sorted=False))[0]
        mapped = PackedSequence(self.out(packed.data.relu()), *packed[1:])
        return pad_packed_sequence(mapped)[0]

    return Network(run, rnn=nn.RNN(3, 5), out=nn.Linear(5, 2)), (
        floats(4, 3),
        floats(2, 3, seed=1),
        floats(6, 3, seed=2),
    )


@form({"rnn.0": 6})
def attention_by_the_last_states_of_both_directions() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        outputs, hidden = self.rnn(inputs)
        query = torch.cat([hidden[-2], hidden[-1]], dim=-1)
        weights = torch.einsum("bth,bh->bt", outputs, query).softmax(-1)
        return self.out(torch.einsum("bt,bth->bh", weights, outputs))

    rnn = nn.GRU(3, 6, batch_first=True, bidirectional=True)
    return Network(run, rnn=rnn, out=nn.Linear(12, 2)), (floats(3, 5, 3),)


@form({"rnn.0": 6})
def attention_with_a_learned_score_over_stacked_layers() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        outputs, (hidden, _) = self.rnn(inputs)
        scores = (outputs * hidden[-1]).sum(-1)
        return self.out((outputs * scores.softmax(0).unsqueeze(-1)).sum(0) + hidden[0])

    return Network(run, rnn=nn.LSTM(3, 6, 2), out=nn.Linear(6, 2)), (floats(5, 3, 3),)


@form({"encoder.0": 6, "decoder.0": 6, "start": 6})
def decoder_that_starts_from_a_map_of_the_last_state() -> Made:
    def run(self: Any, source: Tensor, target: Tensor) -> Tensor:
        start = torch.tanh(self.start(self.encoder(source)[1][-1]))
        return self.out(self.decoder(target, start[None])[0])

    parts = {"encoder": nn.GRU(3, 6), "start": nn.Linear(6, 6), "decoder": nn.GRU(2, 6), "out": nn.Linear(6, 2)}
    return Network(run, **parts), (floats(5, 3, 3), floats(4, 3, 2))


FORMS["decoder_that_starts_from_a_map_of_the_last_state"][1].pop("decoder.0")


@form({"encoder.0": 6})
def cells_that_start_where_an_lstm_ended() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        state = tuple(part[0] for part in self.encoder(inputs)[1])
        given, found = inputs.new_zeros(inputs.shape[1], 2), []
        for _ in range(3):
            state = self.cell(given, state)
            given = self.out(state[0])
            found.append(given)
        return torch.stack(found)

    parts = {"encoder": nn.LSTM(3, 6), "cell": nn.LSTMCell(2, 6), "out": nn.Linear(6, 2)}
    return Network(run, **parts), (floats(5, 3, 3),)


@form({"gates": 6})
def a_gated_cell_written_by_hand() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = torch.zeros(inputs.shape[0], self.size, dtype=inputs.dtype)
        memory, found = torch.zeros_like(hidden), []
        for step in inputs.unbind(1):
            enter, forget, leave, new = self.gates(torch.cat([step, hidden], dim=1)).chunk(4, dim=1)
            memory = forget.sigmoid() * memory + enter.sigmoid() * new.tanh()
            hidden = leave.sigmoid() * memory.tanh()
            found.append(hidden)
        return self.out(torch.stack(found, dim=1))

    return Network(run, gates=nn.Linear(9, 24), out=nn.Linear(6, 2), size=6), (floats(3, 5, 3),)


@form({"enter": 6})
def a_recurrence_written_by_hand_into_a_tensor_made_before() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        first = self.enter(inputs[:, 0])
        states = first.new_empty(len(inputs), inputs.shape[1], first.shape[1])
        states[:, 0] = first
        for step in range(1, inputs.shape[1]):
            states[:, step] = torch.sigmoid(self.enter(inputs[:, step]) + self.back(states[:, step - 1].clone()))
        return self.out(states)

    parts = {"enter": nn.Linear(3, 6), "back": nn.Linear(6, 6), "out": nn.Linear(6, 2)}
    return Network(run, **parts), (floats(3, 5, 3),)


@form({"rnn.0": 6})
def a_module_called_twice_and_stepped() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        first, state = self.rnn(inputs)
        second, _ = self.rnn(inputs.flip(0), state)
        third, state = self.rnn(inputs[:1])
        return self.out(torch.cat([first, second, third, self.rnn(inputs[:1], state)[0]]))

    return Network(run, rnn=nn.RNN(3, 6, nonlinearity="relu"), out=nn.Linear(6, 2)), (floats(5, 3, 3),)


@form({"rnn.0": 6})
def learned_initial_states_of_two_layers() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        start = [part.repeat(1, len(inputs), 1) for part in (self.hidden, self.cell)]
        return self.out(self.rnn(inputs, tuple(start))[0])

    states = {name: nn.Parameter(torch.ones(2, 1, 6)) for name in ("hidden", "cell")}
    return Network(run, rnn=nn.LSTM(3, 6, 2, batch_first=True), out=nn.Linear(6, 2), **states), (floats(3, 5, 3),)


@form({"enter": 6})
def a_state_kept_in_an_attribute() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        self.state = torch.tanh(self.enter(inputs) + self.back(self.state)).detach()
        return self.out(self.state)

    network = Network(run, enter=nn.Linear(3, 6), back=nn.Linear(6, 6), out=nn.Linear(6, 2))
    network.state = torch.zeros(3, 6, dtype=torch.float64)
    return network, (floats(3, 3),)


@form({"enter": 6})
def states_kept_in_a_dictionary_and_a_pair() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden, memory = self.kept["hidden"], self.pair[1]
        memory = 0.5 * memory + self.enter(inputs) + self.back(hidden)
        self.kept, self.pair = {"hidden": memory.tanh().detach()}, (None, memory.detach())
        return self.out(memory.tanh())

    network = Network(run, enter=nn.Linear(3, 6), back=nn.Linear(6, 6), out=nn.Linear(6, 2))
    network.kept = {"hidden": torch.zeros(3, 6, dtype=torch.float64)}
    network.pair = (None, torch.zeros(3, 6, dtype=torch.float64))
    return network, (floats(3, 3),)


@form({"rnn.0": 2, "rnn.0_reverse": 2})
def projected_states_of_both_directions() -> Made:
    rnn = nn.LSTM(3, 6, proj_size=2, bidirectional=True)
    return Network(lambda self, x: self.out(self.rnn(x)[0]), rnn=rnn, out=nn.Linear(4, 2)), (floats(5, 3, 3),)


@form({"first": 6, "second": 6})
def chosen_by_index_and_gathered_at_the_last_step() -> Made:
    def run(self: Any, inputs: Tensor, lengths: Tensor) -> Tensor:
        hidden = self.first(inputs).relu()
        last = hidden.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, hidden.shape[2]))[:, 0]
        other = hidden[torch.arange(len(inputs)), lengths - 1] + hidden.index_select(1, lengths[:1])[:, 0]
        return self.out(self.second(last * other).logcumsumexp(0))

    parts = {"first": nn.Linear(3, 6), "second": nn.Linear(6, 6), "out": nn.Linear(6, 2)}
    return Network(run, **parts), (floats(3, 6, 3), LENGTHS)


@form({"a": 4, "b": 6})
def patches_and_shuffled_pixels() -> Made:
    def run(self: Any, image: Tensor) -> Tensor:
        pixels = F.pixel_shuffle(self.a(image), 2)
        patches = F.unfold(self.b(pixels).relu(), 2, stride=2)
        return self.out(patches.transpose(1, 2))

    parts = {"a": nn.Conv2d(3, 16, 1), "b": nn.Conv2d(4, 6, 3, padding=1), "out": nn.Linear(24, 2)}
    return Network(run, **parts), (floats(2, 3, 4, 4),)


@form({"a": 6})
def fourier_transforms_over_time() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(self.a(inputs).relu(), dim=1)
        return self.out(torch.fft.irfft(spectrum * torch.exp(1j * spectrum.real), n=inputs.shape[1], dim=1))

    return Network(run, a=nn.Linear(3, 6), out=nn.Linear(6, 2)), (floats(2, 8, 3),)


@form({"a": 6, "b": 5})
def regions_of_other_modes() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            hidden = self.a(inputs).relu()
        with torch.enable_grad():
            return self.out(self.b(hidden).relu())

    return Network(run, a=nn.Linear(3, 6), b=nn.Linear(6, 5), out=nn.Linear(5, 2)), (floats(4, 3),)


@form({"a": 6, "b": 6, "rnn.0": 4})
def weights_computed_at_each_call() -> Made:
    a = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 6))
    b = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
    rnn = nn.GRU(6, 4)
    masks.random_unstructured(rnn, "weight_ih_l0", 0.3)
    return Network(
        lambda self, x: self.out(self.rnn(self.b(self.a(x).relu()).relu())[0]), a=a, b=b, rnn=rnn, out=nn.Linear(4, 2)
    ), (floats(5, 3, 3),)


@form({"conv": 6})
def a_frozen_normalisation_of_products_of_buffers() -> Made:
    def run(self: Any, image: Tensor) -> Tensor:
        scale = self.weight * (self.variance + 1e-5).rsqrt()
        shift = self.bias - self.mean * scale
        return self.out((self.conv(image) * scale[:, None, None] + shift.view(1, -1, 1, 1)).relu()).mean((2, 3))

    buffers = {name: floats(6, seed=place).abs() for place, name in enumerate(("weight", "bias", "mean", "variance"))}
    return Network(run, conv=nn.Conv2d(3, 6, 3), out=nn.Conv2d(6, 2, 1), **buffers), (floats(2, 3, 5, 5),)


@form({"qkv": 4})
def attention_whose_numbers_stand_in_the_module() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        batch, steps, _ = inputs.shape
        parts = self.qkv(inputs).view(batch, steps, 3 * self.heads, self.width).transpose(1, 2).chunk(3, dim=1)
        scores = parts[0] @ parts[1].mT * self.width**-0.5
        return self.out((scores.softmax(-1) @ parts[2]).transpose(1, 2).reshape(batch, steps, self.inner))

    network = Network(run, qkv=nn.Linear(8, 36), out=nn.Linear(12, 8), heads=4, width=3, inner=12)
    return network, (floats(2, 5, 8),)


@form({"query": 2, "value": 2})
def attention_with_grouped_heads() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        queries, keys, values = (
            part(inputs).unflatten(-1, (-1, 3)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        found = F.scaled_dot_product_attention(queries, keys, values, enable_gqa=True)
        return self.out(found.transpose(1, 2).flatten(2))

    parts = {"query": nn.Linear(8, 12), "key": nn.Linear(8, 6), "value": nn.Linear(8, 6), "out": nn.Linear(12, 8)}
    return Network(run, **parts), (floats(2, 5, 8),)


FORMS["attention_with_grouped_heads"][1].pop("value")


@form({"emb": 8, "blocks.0.up": 6, "blocks.1.up": 6}, {"emb"})
def a_residual_stream_with_its_norms_and_positions() -> Made:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.RMSNorm(8), nn.Linear(8, 6), nn.Linear(6, 8)

        def forward(self, stream: Tensor) -> Tensor:
            return stream + self.down(F.gelu(self.up(self.norm(stream))))

    def run(self: Any, text: Tensor) -> Tensor:
        stream = self.emb(text) + self.positions[: text.shape[1]]
        for block in self.blocks:
            stream = block(stream)
        return self.out(self.last(stream).mean(1))

    parts = {"emb": nn.Embedding(11, 8), "positions": nn.Parameter(floats(9, 8)), "last": nn.LayerNorm(8)}
    blocks = nn.ModuleList([Block(), Block()])
    return Network(run, **parts, blocks=blocks, out=nn.Linear(8, 2)), (tokens(3, 5),)


@form({"a": 2, "b.2": 3, "c": 8}, {"c"})
def normalised_groups_and_channels() -> Made:
    layers = [nn.Conv2d(3, 12, 3), nn.GroupNorm(6, 12), nn.SiLU(), nn.Conv2d(12, 9, 1, groups=3)]
    parts = {"a": layers[0], "b": nn.Sequential(*layers[1:]), "c": nn.Conv2d(9, 8, 1), "norm": nn.GroupNorm(1, 8)}
    run = lambda self, x: self.out(self.norm(self.c(self.b(self.a(x)))).relu())  # noqa: E731
    return Network(run, **parts, out=nn.Conv2d(8, 2, 1)), (floats(2, 3, 5, 5),)


@form({"a": 6}, {"a"})
def dropout_that_is_always_on() -> Made:
    run = lambda self, x: self.out(F.dropout(self.a(x).relu(), 0.4, training=True))  # noqa: E731
    return Network(run, a=nn.Linear(3, 6), out=nn.Linear(6, 2)), (floats(5, 3),)


@form({"project": 2, "back": 6})
def a_vector_viewed_as_an_image_and_back() -> Made:
    def run(self: Any, noise: Tensor) -> Tensor:
        image = self.project(noise).view(-1, self.up.in_channels, 3, 3)
        return self.out(self.back(self.up(image).relu().flatten(1)).relu())

    parts = {"project": nn.Linear(5, 36), "up": nn.ConvTranspose2d(4, 2, 3, groups=2), "back": nn.Linear(50, 6)}
    return Network(run, **parts, out=nn.Linear(6, 2)), (floats(2, 5),)


@form({"score": 6})
def pooling_by_a_learned_vector() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = self.score(inputs).tanh()
        weights = (hidden @ self.vector).softmax(1)
        return self.out((hidden * weights.unsqueeze(-1)).sum(1))

    parts = {"score": nn.Linear(3, 6), "vector": nn.Parameter(floats(6)), "out": nn.Linear(6, 2)}
    return Network(run, **parts), (floats(2, 5, 3),)


@form({"W": 6})
def a_recurrence_of_parameters_of_its_own() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = inputs.new_zeros(inputs.shape[1], len(self.U))
        for step in inputs:
            new, gate = (step @ self.W + self.b).chunk(2, dim=1)
            gate = torch.sigmoid(gate + hidden @ self.U)
            hidden = gate * hidden + (1 - gate) * new.tanh()
        return self.out(hidden)

    parts = {"W": nn.Parameter(floats(3, 12)), "U": nn.Parameter(floats(6, 6)), "b": nn.Parameter(floats(12))}
    return Network(run, **parts, out=nn.Linear(6, 2)), (floats(5, 2, 3),)


@form({"attention": 4, "attention.out_proj": 8})
def attention_to_memories_of_another_width() -> Made:
    attention = nn.MultiheadAttention(8, 4, kdim=5, vdim=6, batch_first=True)
    run = lambda self, x, k, v: self.out(self.attention(x, k, v, need_weights=False)[0].relu())  # noqa: E731
    return Network(run, attention=attention, out=nn.Linear(8, 2)), (floats(2, 3, 8), floats(2, 4, 5), floats(2, 4, 6))


@form({"table": 4})
def heads_with_a_table_of_biases() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        parts = (part(inputs).unflatten(-1, (-1, 2)).transpose(1, 2) for part in (self.query, self.key, self.value))
        biases = self.table(torch.arange(5)[:, None] + torch.arange(5)).permute(2, 0, 1)
        found = F.scaled_dot_product_attention(*parts, attn_mask=biases[None])
        return self.out(found.transpose(1, 2).flatten(2))

    parts = {name: nn.Linear(6, 8) for name in ("query", "key", "value")}
    return Network(run, **parts, table=nn.Embedding(9, 4), out=nn.Linear(8, 2)), (floats(2, 5, 6),)


@form({"conv": 6, "last": 4}, {"conv", "last"})
def attention_over_places_and_slopes_of_channels() -> Made:
    def run(self: Any, image: Tensor) -> Tensor:
        hidden = self.slopes(self.conv(image))
        seen = torch.cat([hidden.mean(1, keepdim=True), hidden.amax(1, keepdim=True)], dim=1)
        return self.out(self.last(hidden * self.where(seen).sigmoid()).softmax(1))

    parts = {"conv": nn.Conv2d(3, 6, 3), "slopes": nn.PReLU(6), "where": nn.Conv2d(2, 1, 3, padding=1)}
    return Network(run, **parts, last=nn.Conv2d(6, 4, 1), out=nn.Conv2d(4, 2, 1)), (floats(2, 3, 6, 6),)


@form({"network.0": 6})
def wrapped_and_scripted_parts() -> Made:
    with pytest.warns(DeprecationWarning, match="script"):
        bent = torch.jit.script(nn.Sequential(nn.ReLU(), nn.Tanh()))
    inner = nn.Sequential(nn.Linear(3, 6), bent, nn.Linear(6, 2))
    return Network(lambda self, x: self.network(x), network=nn.DataParallel(inner)), (floats(4, 3),)


@form({"enter": 8, "score.0": 4, "leave": 6}, {"enter"})
def attention_to_channels_and_to_places() -> Made:
    def run(self: Any, image: Tensor) -> Tensor:
        hidden = self.enter(image).relu()
        scores = self.score(F.adaptive_avg_pool2d(hidden, 1)) + self.score(F.adaptive_max_pool2d(hidden, 1))
        hidden = hidden * scores.sigmoid()
        greatest, _ = torch.max(hidden, dim=1, keepdim=True)
        where = self.where(torch.cat([hidden.mean(1, keepdim=True), greatest], 1)).sigmoid()
        return self.out(self.leave(hidden * where).relu())

    score = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1))
    parts = {"enter": nn.Conv2d(3, 8, 3), "score": score, "where": nn.Conv2d(2, 1, 3, padding=1)}
    return Network(run, **parts, leave=nn.Conv2d(8, 6, 1), out=nn.Conv2d(6, 2, 1)), (floats(2, 3, 7, 7),)


@form({"enter": 6})
def a_recurrence_by_a_matrix_whose_diagonal_is_cleared() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        state, back = inputs.new_zeros(len(inputs), 6), self.back.weight.clone().fill_diagonal_(0)
        for step in inputs.unbind(1):
            state = torch.tanh(self.enter(step).relu() + state @ back)
        return self.out(state)

    return Network(run, enter=nn.Linear(3, 6), back=nn.Linear(6, 6, False), out=nn.Linear(6, 2)), (floats(4, 1, 3),)


@form({"enter": 6})
def windows_of_steps_by_strides() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = self.enter(inputs).relu()
        batch, steps, width = hidden.shape
        sizes, strides = (batch, steps - 2, 3, width), (steps * width, width, width, 1)
        return self.out(hidden.as_strided(sizes, strides).sum(2))

    return Network(run, enter=nn.Linear(3, 6), out=nn.Linear(6, 2)), (floats(4, 5, 3),)


@form({"enter": 6})
def a_module_that_checks_what_it_is_given_by_a_shape_of_its_own() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = self.enter(inputs).relu()
        if hidden.shape[-1] != self._shape[0]:
            raise ValueError("Input has wrong neuron dimension.")
        return self.out(hidden)

    network = Network(run, enter=nn.Linear(3, 6), out=nn.Linear(6, 2))
    network._shape = (6, 2)
    return network, (floats(4, 3),)


def answers(model: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        return [leaf for leaf in pytree.tree_leaves(copied(model)(*inputs)) if isinstance(leaf, Tensor)]


def drawn(make: Callable[[], Made]) -> Made:
    """Return what a function makes, its weights always drawn alike and of float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, inputs = make()
    return network.double().eval(), inputs


def made(name: str) -> Made:
    return drawn(FORMS[name][0])


@cache
def discovered(name: str) -> tuple[Discovered, nn.Module, Any, list[Tensor]]:
    """Return a network in which neurons were looked for, as its user has it, its inputs and what it gave before."""
    network, inputs = made(name)
    given = answers(network, inputs)
    return pruning.discover(network, inputs), network, inputs, given


@pytest.mark.parametrize("name", FORMS)
def test_in_each_form_removing_the_neurons_that_are_found_equals_masking_them(name):
    found, network, inputs, given = discovered(name)
    for one, other in zip(answers(found, inputs), given, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    for one, other in zip(answers(network, inputs), given, strict=True):
        assert torch.equal(one, other)
    assert {layer.name: layer.width for layer in found.layers()} == FORMS[name][1]
    assert {layer.name for layer in found.layers() if not layer.exact} == INEXACT[name]
    keep = {layer.name: torch.arange(layer.width - 1, layer.width // 3, -1) for layer in found.layers()}
    assert all(part.isfinite().all() for part in answers(select(found, keep), inputs))
    keep = {layer.name: keep[layer.name] for layer in found.layers() if layer.exact}
    for one, other in zip(answers(select(found, keep), inputs), answers(mask(found, keep), inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", FORMS)
def test_each_reader_of_each_form_is_seen_with_as_many_numbers_as_it_has_columns(name):
    found, _, inputs, _ = discovered(name)
    assert_each_is_seen(copied(found), inputs)


@pytest.mark.parametrize("name", ["packed_sequences_read_in_their_last_states", "packed_sequences_padded_again"])
def test_what_is_recorded_of_packed_sequences_are_the_steps_that_they_have(name):
    network, inputs = made(name)
    found, seen = pruning.discover(network, inputs), {}
    with record(found, found.layers(), lambda layer, values: seen.setdefault(layer, values)):
        answers(found, inputs)
    for layer in found.layers():
        assert seen[layer.name].shape == (LENGTHS.sum(), layer.width)
    assert adapt(found, inputs, loss=nn.CrossEntropyLoss()).untappable(inputs) == {}


@pytest.mark.parametrize("name", ["a_state_kept_in_an_attribute", "states_kept_in_a_dictionary_and_a_pair"])
def test_a_state_that_a_module_keeps_is_as_wide_as_its_neurons_in_every_call(name):
    network, inputs = made(name)
    found = pruning.discover(network, inputs)
    keep = {"enter": torch.tensor([5, 2])}
    smaller, masked = select(found, keep), mask(found, keep)
    for _ in range(3):
        with torch.no_grad():
            torch.testing.assert_close(smaller(*inputs), masked(*inputs), rtol=0, atol=1e-12)


def test_a_state_that_only_a_later_call_reads_at_a_width_of_its_own_is_no_secret():
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = self.enter(inputs)
        if self.before is not None:
            hidden = hidden + self.before * torch.ones(6, dtype=hidden.dtype)
        self.before = hidden.detach()
        return self.out(hidden)

    network = Network(run, enter=nn.Linear(3, 6), out=nn.Linear(6, 2), before=None).double()
    found = pruning.discover(network, floats(4, 3))
    assert found.layers() == []
    assert "own code counts on its width" in found.unprunable["enter"]
