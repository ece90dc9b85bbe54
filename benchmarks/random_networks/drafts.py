"""A network's source as it grows block by block: what flows through it, and of which shape."""

import hashlib
import linecache
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Block = Callable[["Draft"], None]
BLOCKS: dict[str, tuple[frozenset[str], Block]] = {}
"""Name → which kinds of tensors a block takes (see `Draft.kind`), and what writes it."""
AXES = {"flat": 1, "steps": 2, "wave": 1, "image": 1}
"""Kind → the dimension that runs over neurons."""
TOKENS = 13
ANSWERS = 3


def block(*kinds: str) -> Callable[[Block], Block]:
    """Register what writes a block after tensors of these kinds."""

    def register(write: Block) -> Block:
        BLOCKS[write.__name__] = frozenset(kinds or AXES), write
        return write

    return register


@dataclass(frozen=True)
class Spec:
    """All that a network is drawn from: leave blocks out, and what remains is a network again.

    Attributes:
        kind: What it is given: `tokens` (B, T), or one of `AXES`.
        sizes: Which widths are drawn from.
        steps: How long sequences are.
        side: How high and wide images are.
        batch: How many examples are given.
        blocks: The name of each block, and the seed of what it draws.
        seed: Of what the ends draw.
    """

    kind: str
    sizes: tuple[int, ...]
    steps: int
    side: int
    batch: int
    blocks: tuple[tuple[str, int], ...]
    seed: int


@dataclass
class Draft:
    """A network's source so far; `x` holds what flows.

    Attributes:
        kind: `flat` (B, C), `steps` (B, T, C), `wave` (B, C, T) or `image` (B, C, H, W).
        width: C.
    """

    rng: random.Random
    sizes: tuple[int, ...]
    kind: str
    width: int
    steps: int
    side: int
    parts: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    kept: dict[str, tuple[str, int, int, int]] = field(default_factory=dict)
    answers: list[str] = field(default_factory=list)

    @property
    def axis(self) -> int:
        """The dimension of `x` that runs over neurons."""
        return AXES[self.kind]

    def pick(self, *choices: Any) -> Any:
        """Return one of the choices."""
        return self.rng.choice(choices)

    def chance(self, share: float = 0.5) -> bool:
        """Return true in this share of cases."""
        return self.rng.random() < share

    def size(self) -> int:
        """Return a width for new neurons."""
        return self.rng.choice(self.sizes)

    def part(self, expression: str, stem: str = "part") -> str:
        """Return the name of a new part of the network."""
        name = f"{stem}{len(self.parts)}"
        self.parts.append(f"self.{name} = {expression}")
        return f"self.{name}"

    def buffer(self, expression: str) -> str:
        """Return the name of a new buffer of the network."""
        name = f"buffer{len(self.parts)}"
        self.parts.append(f"self.register_buffer({name!r}, {expression})")
        return f"self.{name}"

    def weight(self, *shape: int) -> str:
        """Return the name of a new parameter."""
        return self.part(f"nn.Parameter(torch.randn({', '.join(map(str, shape))}) * 0.5)", "weight")

    def say(self, *lines: str) -> None:
        """Add lines to `forward`."""
        self.lines += lines

    def name(self, stem: str) -> str:
        """Return a name for something that `forward` computes."""
        return f"{stem}{len(self.lines)}"

    def linear(self, size: int, width: int | None = None) -> str:
        """Return the name of a new linear map of the last dimension."""
        bias = self.pick("", "", ", bias=False")
        return self.part(f"nn.Linear({width or self.width}, {size}{bias})", "linear")

    def map(self, size: int) -> str:
        """Return the name of a new map of `x` that leaves all but its width."""
        if self.kind in ("flat", "steps"):
            return self.linear(size)
        dims, kernel = "1d" if self.kind == "wave" else "2d", self.pick(1, 3)
        return self.part(f"nn.Conv{dims}({self.width}, {size}, {kernel}, padding={kernel // 2})", "conv")

    def nonlinear(self, what: str) -> str:
        """Return an expression that is some nonlinearity of another."""
        return self.pick(
            f"torch.relu({what})", f"torch.tanh({what})", f"F.gelu({what})", f"torch.sigmoid({what})",
            f"F.silu({what})", f"F.leaky_relu({what}, 0.2)", f"F.elu({what})", f"F.softplus({what})",
            f"({what}).clamp(-1, 1)", f"({what}).relu()", f"({what}).sin()", f"F.relu6({what})",
        )  # fmt: skip


HEAD = '''"""A network that was drawn."""
import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Net(nn.Module):
    def __init__(self):
        super().__init__()
'''


def source_of(spec: Spec) -> str:
    """Return the source of a network; blocks that do not fit where others were left out are passed over."""
    draft = _written(spec)
    draft.rng = random.Random(spec.seed)
    answered(draft)
    forward = "".join(f"        {line}\n" for line in draft.lines)
    used = set(re.findall(r"self\.(\w+)", forward))
    parts = [line for line in draft.parts if used & set(re.findall(r"^self\.(\w+) =|buffer\('(\w+)'", line)[0])]
    body = "".join(f"        {line}\n" for line in parts or ["pass"])
    return f"{HEAD}{body}\n    def forward(self, x):\n{forward}"


def _written(spec: Spec) -> Draft:
    """Return a network's draft after its blocks, those that fit."""
    rng = random.Random(spec.seed)
    draft = Draft(rng, spec.sizes, spec.kind, rng.choice(spec.sizes), spec.steps, spec.side)
    if spec.kind == "tokens":
        draft.kind = "steps"
        table = draft.part(f"nn.Embedding({TOKENS}, {draft.width})", "table")
        draft.say(f"x = {table}(x)")
    for name, seed in spec.blocks:
        kinds, write = BLOCKS[name]
        if draft.kind in kinds:
            draft.rng = random.Random(seed)
            write(draft)
    return draft


def answered(draft: Draft) -> None:
    """Write what a network gives."""
    if draft.kind in ("image", "wave"):
        dims = "(2, 3)" if draft.kind == "image" else "2"
        draft.say(draft.pick(f"x = x.mean({dims})", "x = x.flatten(2).mean(-1)"))
        draft.kind = "flat"
    last = draft.part(f"nn.Linear({draft.width}, {ANSWERS})", "last")
    draft.say(f"y = {last}(x)")
    if draft.kind == "steps" and draft.chance():
        draft.say("y = y.mean(1)")
    if not draft.answers and not draft.chance(0.2):
        draft.say("return y")
    elif draft.chance():
        draft.say(f"return {', '.join(['y', *draft.answers])},")
    else:
        named = "".join(f", 'aux{number}': {name}" for number, name in enumerate(draft.answers))
        draft.say(f"return {{'logits': y{named}}}")


def built(spec: Spec, source: str) -> nn.Module:
    """Return a network made of its source, in float64, its numbers drawn and off their special values."""
    file = f"<drawn {hashlib.sha256(source.encode()).hexdigest()[:16]}>"
    linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file
    names: dict[str, Any] = {"__name__": "drawn"}
    exec(compile(source, file, "exec"), names)  # noqa: S102 - it was written above
    state = torch.get_rng_state()
    torch.manual_seed(spec.seed)
    network: nn.Module = names["Net"]().double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.2 * torch.randn_like(buffer))
            elif name.endswith("running_var"):
                buffer.mul_(torch.exp(0.2 * torch.randn_like(buffer)))
    torch.set_rng_state(state)
    return network


def example(spec: Spec, batch: int, seed: int) -> Tensor:
    """Return a batch of what a network is given."""
    generator = torch.Generator().manual_seed(seed)
    if spec.kind == "tokens":
        return torch.randint(0, TOKENS, (batch, spec.steps), generator=generator)
    width = random.Random(spec.seed).choice(spec.sizes)
    shape = {
        "flat": (width,),
        "steps": (spec.steps, width),
        "wave": (width, spec.steps),
        "image": (width, spec.side, spec.side),
    }[spec.kind]
    return torch.randn(batch, *shape, generator=generator, dtype=torch.float64)


PALETTES = (
    (4,),
    (6,),
    (8,),
    (4, 6, 8),
    (3, 5, 7),
    (6, 8, 12),
    (8, 12, 16),
    (2, 4),
    (1, 2, 4),
    (1, 3, 6),
    (2, 3),
    (12,),
)


def drawn(seed: int) -> Spec:
    """Return what a network of this seed is drawn from."""
    rng = random.Random(seed)
    sizes = rng.choice(PALETTES)
    kind = rng.choice(["tokens", "tokens", "flat", "flat", "steps", "steps", "wave", "image", "image"])
    steps = rng.choice([3, 4, 5, 7, rng.choice(sizes), 1 if rng.random() < 0.1 else 6])
    side, batch = rng.choice([4, 6]), rng.choice([1, 2, 3, 4, rng.choice(sizes)])
    seeds: Sequence[int] = [rng.randrange(2**31) for _ in range(rng.randint(2, 7))]
    first = (("mapped", rng.randrange(2**31)),) if kind != "tokens" and rng.random() < 0.7 else ()
    spec = Spec(kind, sizes, steps, side, batch, first, rng.randrange(2**31))
    for number in seeds:  # the next block is one that fits
        fitting = [name for name, (kinds, _) in sorted(BLOCKS.items()) if kind_after(spec) in kinds]
        spec = Spec(kind, sizes, steps, side, batch, (*spec.blocks, (rng.choice(fitting), number)), spec.seed)
    return spec


def kind_after(spec: Spec) -> str:
    """Return what flows after the blocks of a spec."""
    return _written(spec).kind
