"""Networks that a user might have written, small, each saying by itself where its neurons are."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from pruning.core.neurons import NeuronLayer, PrunableModule, Slice

CLASSES, FEATURES, WORDS = 3, 5, 20


class Classifier(PrunableModule):
    """Linear → tanh → Linear → ReLU → Linear, on examples (…, features)."""

    def __init__(self, widths: Sequence[int] = (7, 6)) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, widths[0]), nn.Linear(*widths)
        self.last = nn.Linear(widths[1], CLASSES)
        self.tanh, self.relu = nn.Tanh(), nn.ReLU()
        self.shape = tuple(widths)

    def forward(self, examples: Tensor) -> Tensor:
        return self.last(self.relu(self.second(self.tanh(self.first(examples)))))

    def layers(self) -> list[NeuronLayer]:
        return [
            _dense("first", self.shape[0], "second", "tanh"),
            _dense("second", self.shape[1], "last", "relu"),
        ]

    def resized(self, widths: Sequence[int]) -> Self:
        return like(self, type(self)(widths))


class RecurrentWords(PrunableModule):
    """The RNNModel of PyTorch's word-language-model example, its layers apart: `model(data, hidden)`."""

    def __init__(self, widths: Sequence[int] = (7, 6)) -> None:
        super().__init__()
        self.encoder = nn.Embedding(WORDS, 4)
        self.rnn = nn.ModuleList([nn.GRU(4, widths[0]), nn.GRU(*widths)])
        self.decoder = nn.Linear(widths[1], WORDS)
        self.shape = tuple(widths)

    def forward(self, data: Tensor, hidden: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        read, after = self.encoder(data), []
        for layer, before in zip(self.rnn, hidden, strict=True):
            read, state = layer(read, hx=before)
            after.append(state)
        return self.decoder(read).view(-1, WORDS).log_softmax(1), tuple(after)

    def init_hidden(self, batch: int) -> tuple[Tensor, ...]:
        return tuple(self.decoder.weight.new_zeros(1, batch, width) for width in self.shape)

    def layers(self) -> list[NeuronLayer]:
        readers = (
            Slice("rnn.1.weight_ih_l0", dim=1, bias="rnn.1.bias_ih_l0"),
            Slice("decoder.weight", 1, 1, "decoder.bias"),
        )
        return [
            NeuronLayer(
                name=f"layer {index}",
                kind="rnn",
                width=width,
                owned=tuple(
                    Slice(f"rnn.{index}.{name}_l0", dim=0, blocks=3)
                    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                ),
                read=(Slice(f"rnn.{index}.weight_hh_l0", dim=1, bias=f"rnn.{index}.bias_hh_l0"), readers[index]),
                output=f"rnn.{index}",
            )
            for index, width in enumerate(self.shape)
        ]

    def resized(self, widths: Sequence[int]) -> Self:
        return like(self, type(self)(widths))


def _dense(name: str, width: int, reader: str, output: str) -> NeuronLayer:
    owned = (Slice(f"{name}.weight", dim=0), Slice(f"{name}.bias", dim=0))
    return NeuronLayer(name, "dense", width, owned, (Slice(f"{reader}.weight", 1, 1, f"{reader}.bias"),), output)


def like(old: nn.Module, new: Any) -> Any:
    """Return the new module with the old one's type of numbers and mode."""
    return new.to(next(old.parameters())).train(old.training)


def made(kind: Callable[[], nn.Module], *, seed: int = 0, spread: float = 0.7) -> Any:
    """Return a network in float64 and evaluation mode with normal weights."""
    network = kind().double().eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=spread, generator=generator)
    return network


def examples(count: int, *, batch: int, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Return batches (inputs, class numbers) of which the class follows from the inputs."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, FEATURES, generator=generator, dtype=torch.float64)
    classes = (inputs[:, :CLASSES] + 0.3 * inputs[:, 2:]).argmax(1)
    return list(zip(inputs.split(batch), classes.split(batch), strict=True))


class Tagger(nn.Module):
    """A class for each step of sequences (B, T), read in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(WORDS, 4)
        self.rnn = nn.GRU(4, 5, 2, bidirectional=True, batch_first=True)
        self.decoder = nn.Linear(10, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(self.rnn(self.encoder(tokens))[0])


class Transformer(nn.Module):
    """A class for sequences (B, T) of tokens, from the mean over a Transformer's steps."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(WORDS, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 6, dropout=0.0, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.decoder = nn.Linear(8, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(self.transformer(self.encoder(tokens)).mean(1))


class WordModel(nn.Module):
    """The RNNModel of PyTorch's word-language-model example."""

    def __init__(self, kind: str = "LSTM") -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Embedding(WORDS, 4), nn.Linear(5, WORDS)
        self.rnn = getattr(nn, kind)(4, 5, 2)

    def forward(self, data: Tensor, hidden: Any) -> tuple[Tensor, Any]:
        output, hidden = self.rnn(self.encoder(data), hidden)
        return self.decoder(output).view(-1, WORDS).log_softmax(1), hidden

    def init_hidden(self, batch: int) -> Any:
        zeros = self.decoder.weight.new_zeros(2, batch, 5)
        return (zeros, zeros) if self.rnn.mode == "LSTM" else zeros


def images() -> nn.Module:
    """Return a classifier of images (B, 1, 6, 6) with normalisation, pooling and flattening."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, CLASSES),
    )  # fmt: skip


class Branches(nn.Module):
    """Two readers of the same neurons, and a residual stream of which each reader reads another sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.two = nn.Linear(FEATURES, 6), nn.Linear(6, 4), nn.Linear(6, 4)
        self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, examples: Tensor) -> Tensor:
        hidden = self.first(examples).tanh()
        stream = self.one(hidden) * self.two(hidden)
        return self.last(stream + self.inner(stream).tanh())


class Skipping(nn.Module):
    """A class for sequences (B, T) from a recurrent layer and a linear map beside it, which add up."""

    def __init__(self, kind: str = "GRU") -> None:
        super().__init__()
        self.encoder, self.beside = nn.Embedding(WORDS, 4), nn.Linear(4, 6)
        self.rnn = getattr(nn, kind)(4, 6, batch_first=True)
        self.last = nn.Linear(6, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        read = self.encoder(tokens)
        return self.last((self.rnn(read)[0] + self.beside(read))[:, -1])


class Stacked(nn.Module):
    """A class for sequences (B, T) from recurrent layers that each add to what they read, as in WaveRNN."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.inner = nn.Embedding(WORDS, 4), nn.Linear(4, 6)
        self.one, self.two = (nn.GRU(6, 6, batch_first=True) for _ in range(2))
        self.hidden, self.last = nn.Linear(6, 5), nn.Linear(5, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        read = self.inner(self.encoder(tokens))
        read = read + self.one(read)[0]
        read = read + self.two(read)[0]
        return self.last(self.hidden(read[:, -1]).relu())


class Started(nn.Module):
    """A class for sequences (B, T) from an LSTM whose first state a linear map computes, as in captioning."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.start = nn.Embedding(WORDS, 4), nn.Linear(4, 6)
        self.rnn, self.last = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        read = self.encoder(tokens)
        start = self.start(read.mean(1))[None]
        return self.last(self.rnn(read, (start, start.tanh()))[0][:, -1])


class Gated(nn.Module):
    """A gated linear unit (two rows for each neuron) and a linear map (one row) that add up."""

    def __init__(self) -> None:
        super().__init__()
        self.gated, self.plain = nn.Linear(FEATURES, 12), nn.Linear(FEATURES, 6)
        self.last = nn.Linear(6, CLASSES)

    def forward(self, examples: Tensor) -> Tensor:
        return self.last(nn.functional.glu(self.gated(examples)) + self.plain(examples))


class Again(nn.Module):
    """A stream of neurons that a linear map reads beside the examples, and adds to."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Linear(FEATURES, 6), nn.Linear(FEATURES + 6, 6)
        self.last = nn.Linear(6, CLASSES)

    def forward(self, examples: Tensor) -> Tensor:
        stream = self.stem(examples)
        return self.last(stream + self.inner(torch.cat([examples, stream], dim=1)).tanh())


class Kernels(nn.Module):
    """A stream of channels of images (B, 1, 6, 6) that a convolution reads and adds to."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(4, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        stream = self.stem(images)
        return self.last((stream + self.inner(stream).relu()).mean((2, 3)))


class Compared(nn.Module):
    """A class for sequences (B, T) from what one recurrent layer makes of them, read forwards and backwards."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.encoder, self.rnn = nn.Embedding(WORDS, 4), getattr(nn, kind)(4, 6, batch_first=True)
        self.last = nn.Linear(6, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        one, other = (self.rnn(self.encoder(read))[0][:, -1] for read in (tokens, tokens.flip(1)))
        return self.last(one * other)


class Net(nn.Module):
    """What a function of the network and its inputs computes with these parts."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Any) -> Any:
        return self.run(self, *inputs)
