"""Networks with residual blocks as people write them: in lists, by number, by attribute, in step, wrapped."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """A pre-norm block with attention by hand, its sublayers called one by one, as many write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down, self.drop = nn.Linear(width, 3 * width), nn.Linear(3 * width, width), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (module(y).unflatten(-1, (2, -1)).transpose(1, 2) for module in (self.q, self.k, self.v))
        x = x + self.drop(self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))
        return x + self.drop(self.down(F.relu(self.up(self.norm2(x)))))


class Transformer(nn.Module):
    """Blocks in a loop over a list, or over its numbers."""

    def __init__(self, *, indexed: bool = False) -> None:
        super().__init__()
        self.embed, self.head, self.n_layers, self.indexed = nn.Embedding(11, 8), nn.Linear(8, 11), 3, indexed
        self.blocks = nn.ModuleList(Block(8) for _ in range(3))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for place in range(self.n_layers) if self.indexed else range(len(self.blocks)):
            x = self.blocks[place](x)
        return self.head(x)


class Named(nn.Module):
    """Two sublayers by attribute, the second with a scale of its own, and one that is called again."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.ff, self.mix, self.out = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.gamma, self.again = nn.Parameter(torch.full((6,), 0.5)), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ff(self.norm(x)).relu()
        x = x + self.gamma * self.mix(x)
        for _ in range(2):
            x = x + self.again(x)
        return self.out(x)


class Stack(nn.Module):
    """Residual recurrent layers, whose states are given back too."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, *, states: bool = False) -> None:
        super().__init__()
        self.inputs, self.out, self.states = nn.Linear(3, 6), nn.Linear(6, 2), states
        self.layers = nn.ModuleList(kind(6, 6, batch_first=True) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        h, states = self.inputs(x), []
        for layer in self.layers:
            y, state = layer(h)
            h, states = h + y, [*states, state]
        return (self.out(h), states) if self.states else self.out(h)


class Together(nn.Module):
    """Blocks of which one must stay, for what they give is stacked; lists that go in step; a sum of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.out = nn.Linear(3, 4), nn.Linear(4, 2)
        self.norms, self.parts = (
            nn.ModuleList(make(4) for _ in range(2)) for make in (nn.LayerNorm, lambda n: nn.Linear(n, n))
        )

    def forward(self, x: Tensor) -> Tensor:
        h, seen = self.inputs(x), []
        for norm, part in zip(self.norms, self.parts, strict=True):
            h = h + part(norm(h)).tanh()
            seen.append(h)
        return self.out(torch.stack(seen).sum(0))


class Biased(nn.Module):
    """Blocks of which the first tells the others something beside the stream, as T5's do, so that it must stay."""

    class Part(nn.Module):
        def __init__(self, *, first: bool) -> None:
            super().__init__()
            self.linear, self.bias = nn.Linear(4, 4), nn.Linear(4, 4) if first else None

        def forward(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
            bias = bias if self.bias is None else self.bias(x)
            return x + (self.linear(x) if bias is None else self.linear(x) + bias).tanh(), bias

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.out = nn.Linear(3, 4), nn.Linear(4, 2)
        self.parts = nn.ModuleList(self.Part(first=not place) for place in range(5))

    def forward(self, x: Tensor) -> Tensor:
        h, bias = self.inputs(x), None
        for part in self.parts:
            h, bias = part(h, bias)
        return self.out(h)


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x


class Basic(nn.Module):
    """A residual block of images, normalised in place, with a shortcut where the shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        y += self.shortcut(x)
        return self.relu(y)
