"""Blocks that move neurons to other places: convolutions, pooling, shapes that change, attention over positions."""

from benchmarks.random_networks.drafts import Draft, block


@block("image", "wave")
def grouped(d: Draft) -> None:
    """Write convolutions in groups, depthwise or with strides."""
    dims, size = ("2d", d.size()) if d.kind == "image" else ("1d", d.size())
    groups = next((g for g in (3, 2) if d.width % g == 0 and size % g == 0), 1)
    depth = d.part(f"nn.Conv{dims}({d.width}, {d.width}, 3, padding=1, groups={d.width})", "conv")
    point = d.part(f"nn.Conv{dims}({d.width}, {size}, 1)", "conv")
    parted = d.part(f"nn.Conv{dims}({d.width}, {size}, 3, padding=1, groups={groups})", "conv")
    multiple = d.part(
        f"nn.Conv{dims}({d.width}, {2 * d.width}, 3, padding='same', groups={d.width}, bias=False)", "conv"
    )
    how = d.pick("separable", "depth", "parted", "multiple", "dilated")
    if how == "separable":
        inner = d.nonlinear(f"{depth}(x)")
        d.say(f"x = {d.nonlinear(f'{point}({inner})')}")
        d.width = size
    elif how == "depth":
        d.say(f"x = {d.pick('x + ', '')}{depth}(x)")
    elif how == "parted":
        d.say(f"x = {d.nonlinear(f'{parted}(x)')}")
        d.width = size
    elif how == "multiple":
        d.say(f"x = {d.nonlinear(f'{multiple}(x)')}")
        d.width *= 2
    else:
        wide = d.part(f"nn.Conv{dims}({d.width}, {size}, 3, padding=2, dilation=2)", "conv")
        d.say(f"x = {d.nonlinear(f'{wide}(x)')}")
        d.width = size


@block("image", "wave")
def resized(d: Draft) -> None:
    """Write what makes images and waves larger or smaller."""
    dims, size = ("2d", d.size()) if d.kind == "image" else ("1d", d.size())
    length = d.side if d.kind == "image" else d.steps
    up = d.part(f"nn.ConvTranspose{dims}({d.width}, {size}, 2, stride=2)", "up")
    same = d.part(f"nn.ConvTranspose{dims}({d.width}, {size}, 3, padding=1)", "up")
    down = d.part(f"nn.Conv{dims}({d.width}, {size}, 3, stride=2, padding=1)", "down")
    how = d.pick("up", "same", "down", "pool", "bigger", "shuffle")
    if how in ("up", "bigger") and length > 8:
        how = "same"
    if how in ("down", "pool") and length < 2:
        how = "same"
    if how == "up":
        d.say(f"x = {d.nonlinear(f'{up}(x)')}")
        d.width, length = size, 2 * length
    elif how == "same":
        d.say(f"x = {d.nonlinear(f'{same}(x)')}")
        d.width = size
    elif how == "down":
        d.say(f"x = {d.nonlinear(f'{down}(x)')}")
        d.width, length = size, (length + 1) // 2
    elif how == "pool":
        pool = d.part(d.pick(f"nn.MaxPool{dims}(2)", f"nn.AvgPool{dims}(2)"), "pool")
        d.say(d.pick(f"x = {pool}(x)", f"x = F.max_pool{dims}(x, 2)", f"x = F.avg_pool{dims}(x, 2)"))
        length //= 2
    elif how == "bigger":
        d.say("x = F.interpolate(x, scale_factor=2)")
        length *= 2
    elif d.kind == "image" and length <= 6:
        shuffle, wide = d.part("nn.PixelShuffle(2)"), d.part(f"nn.Conv2d({d.width}, {4 * size}, 1)", "conv")
        d.say(f"x = {shuffle}({wide}(x))")
        d.width, length = size, 2 * length
    if d.kind == "image":
        d.side = length
    else:
        d.steps = length


@block("image", "wave", "steps")
def squeezed(d: Draft) -> None:
    """Write gates by channel from the mean over places."""
    inner = d.size()
    dims = {"image": "(2, 3)", "wave": "2", "steps": "1"}[d.kind]
    one, two = d.linear(inner), d.linear(d.width, inner)
    gate = d.name("gate")
    d.say(f"{gate} = torch.sigmoid({two}({d.nonlinear(f'{one}(x.mean({dims}))')}))")
    if d.kind == "steps":
        d.say(f"x = x * {gate}.unsqueeze(1)")
    else:
        ones = ", 1, 1" if d.kind == "image" else ", 1"
        d.say(d.pick(f"x = x * {gate}.view(-1, {d.width}{ones})", f"x = x * {gate}.view(x.size(0), x.size(1){ones})"))


@block("image")
def from_image(d: Draft) -> None:
    """Write what makes sequences or vectors of images."""
    area, w = d.side * d.side, d.width
    pool, flat = d.part("nn.AdaptiveAvgPool2d(1)"), d.part("nn.Flatten()")
    how = d.pick("mean", "flat", "steps", "wave", "rows")
    if how == "mean":
        d.say(d.pick("x = x.mean((2, 3))", "x = x.amax(dim=(2, 3))", f"x = {pool}(x).flatten(1)",
                     "x = x.flatten(2).mean(2)",
                     f"x = F.adaptive_avg_pool2d(x, 1).view(-1, {w})", "x = x.mean([-1, -2])"))  # fmt: skip
        d.kind = "flat"
    elif how == "flat" and w * area <= 300:
        d.say(d.pick("x = x.flatten(1)", f"x = x.view(-1, {w * area})", "x = x.reshape(x.shape[0], -1)",
                     f"x = {flat}(x)",
                     "x = x.permute(0, 2, 3, 1).flatten(1)",
                     "x = x.view(x.shape[0], x.shape[1] * x.shape[2] * x.shape[3])"))  # fmt: skip
        size = d.size()
        d.say(f"x = {d.nonlinear(f'{d.linear(size, w * area)}(x)')}")
        d.kind, d.width = "flat", size
    elif how == "rows" and w * d.side <= 100:
        d.say(d.pick("x = x.permute(0, 3, 1, 2).flatten(2)", f"x = x.permute(0, 3, 1, 2).reshape(len(x), {d.side}, -1)",
                     f"x = x.transpose(1, 3).reshape(x.size(0), {d.side}, {d.side} * x.size(1))"))  # fmt: skip
        d.kind, d.steps, size = "steps", d.side, d.size()
        d.say(f"x = {d.linear(size, w * d.side)}(x)")
        d.width = size
    elif how == "wave":
        d.say(d.pick("x = x.flatten(2)", "x = x.mean(3)", f"x = x.view(x.shape[0], {w}, -1)"))
        d.kind, d.steps = "wave", d.side if "mean" in d.lines[-1] else area
    else:
        d.say(d.pick("x = x.flatten(2).transpose(1, 2)", f"x = x.permute(0, 2, 3, 1).reshape(-1, {area}, {w})",
                     f"x = x.view(x.shape[0], x.shape[1], {area}).permute(0, 2, 1)"))  # fmt: skip
        d.kind, d.steps = "steps", area


@block("wave")
def from_wave(d: Draft) -> None:
    """Write what makes sequences or vectors of waves."""
    how = d.pick("steps", "flat", "mean")
    if how == "steps":
        d.say(d.pick("x = x.transpose(1, 2)", "x = x.permute(0, 2, 1)", "x = x.mT.contiguous()"))
        d.kind = "steps"
    elif how == "mean":
        d.say(d.pick("x = x.mean(2)", "x = x.max(2)[0]", "x = x.max(dim=2).values",
                     "x = F.max_pool1d(x, x.shape[2]).squeeze(2)",
                     "x = torch.cat([x.mean(2), x.amax(2)], 1)", "x = x[:, :, -1]",
                     "x = F.adaptive_max_pool1d(x, 1).squeeze(-1)"))  # fmt: skip
        d.kind, d.width = "flat", d.width * (2 if "cat" in d.lines[-1] else 1)
    else:
        flat, size = d.width * d.steps, d.size()
        d.say(d.pick("x = x.flatten(1)", f"x = x.reshape(-1, {flat})", "x = x.view(x.size(0), -1)"))
        d.say(f"x = {d.nonlinear(f'{d.linear(size, flat)}(x)')}")
        d.kind, d.width = "flat", size


@block("steps")
def from_steps(d: Draft) -> None:
    """Write what makes vectors, waves or images of sequences."""
    how = d.pick("last", "flat", "attended", "wave", "wave")
    if how == "last":
        d.say(d.pick("x = x[:, -1]", "x = x.mean(1)", "x = x.max(1).values", "x = x.sum(dim=1)", "x = x[:, 0, :]",
                     f"x = x.mean(dim=1, keepdim=True).view(-1, {d.width})",
                     "x = torch.cat([x[:, 0], x[:, -1]], -1)"))  # fmt: skip
        d.kind, d.width = "flat", d.width * (2 if "cat" in d.lines[-1] else 1)
    elif how == "attended":
        score, shares = d.linear(1), d.name("shares")
        query = d.weight(d.width)
        d.say(d.pick(f"{shares} = torch.softmax({score}(x), 1)", f"{shares} = (x @ {query}).softmax(1).unsqueeze(-1)",
                     f"{shares} = F.softmax({score}(torch.tanh({d.linear(d.width)}(x))), dim=1)"))  # fmt: skip
        d.say(d.pick(f"x = ({shares} * x).sum(1)", f"x = torch.bmm({shares}.transpose(1, 2), x).squeeze(1)",
                     f"x = torch.einsum('btk,btc->bc', {shares}, x)"))  # fmt: skip
        d.kind = "flat"
    elif how == "flat":
        flat, size = d.width * d.steps, d.size()
        d.say(d.pick("x = x.flatten(1)", f"x = x.reshape(-1, {flat})", "x = x.reshape(x.size(0), -1)"))
        d.say(f"x = {d.nonlinear(f'{d.linear(size, flat)}(x)')}")
        d.kind, d.width = "flat", size
    else:
        d.say(d.pick("x = x.transpose(1, 2)", "x = x.permute(0, 2, 1)"))
        d.kind = "wave"


@block("flat")
def from_flat(d: Draft) -> None:
    """Write what makes sequences or images of vectors."""
    size = d.size()
    if d.chance():
        wide = d.linear(size * 4)
        d.say(
            f"x = {d.nonlinear(f'{wide}(x)')}",
            d.pick(f"x = x.view(-1, {size}, 2, 2)", "x = x.reshape(len(x), -1, 2, 2)"),
        )
        d.kind, d.side, d.width = "image", 2, size
    elif d.chance():
        spread = ("x = x.unsqueeze(1).expand(-1, 3, -1)", "x = x.unsqueeze(1).repeat(1, 3, 1)")
        d.say(d.pick(*spread, "x = torch.stack([x, x.tanh(), -x], 1)"))
        d.kind, d.steps = "steps", 3
    else:
        wide = d.linear(size * 3)
        d.say(
            f"x = {wide}(x)",
            d.pick(
                f"x = x.view(-1, 3, {size})", "x = x.reshape(x.shape[0], 3, -1)", "x = torch.stack(x.chunk(3, 1), 1)"
            ),
        )
        d.kind, d.steps, d.width = "steps", 3, size


@block("steps")
def over_time(d: Draft) -> None:
    """Write what mixes steps by constants: differences, shifts, sums, masks, reversals."""
    mask = d.buffer(f"(torch.arange({d.steps}) % 2 == 0).double().view(1, -1, 1)")
    d.say(
        d.pick(
            "x = x.flip(1)", "x = torch.cumsum(x, 1)", "x = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)",
            "x = x + F.pad(x, (0, 0, 1, 0))[:, :-1]", f"x = x * {mask}", "x = x - x.mean(1, keepdim=True)",
            "x = torch.cat([x, x.mean(1, keepdim=True).expand_as(x)], -1)", "x = x + x.roll(1, dims=1)",
        )
    )  # fmt: skip
    d.width *= 2 if "expand_as" in d.lines[-1] else 1


@block("steps")
def mixed(d: Draft) -> None:
    """Write neurons that run across tokens."""
    inner = d.size()
    one, two = d.linear(inner, d.steps), d.linear(d.steps, inner)
    d.say(f"x = {d.pick('x + ', '')}{two}({d.nonlinear(f'{one}(x.transpose(1, 2))')}).transpose(1, 2)")


@block("steps")
def attention_module(d: Draft) -> None:
    """Write attention by PyTorch's module."""
    heads = next((h for h in (d.pick(2, 4), 2, 3, 1) if d.width % h == 0), 1)
    module = d.part(
        f"nn.MultiheadAttention({d.width}, {heads}, batch_first=True{d.pick('', ', bias=False')})", "attention"
    )
    mask = f", attn_mask=torch.triu(torch.ones({d.steps}, {d.steps}, dtype=torch.bool), 1)" if d.chance(0.3) else ""
    norm = d.part(f"nn.LayerNorm({d.width})", "norm")
    d.say(d.pick(f"x = x + {module}(x, x, x{mask}, need_weights=False)[0]", f"x = {module}(x, x, x{mask})[0]",
                 f"x = {norm}(x + {module}(x, x, x)[0])", f"x = {module}(x[:, -1:], x, x)[0] + x"))  # fmt: skip


@block("steps")
def transformer(d: Draft) -> None:
    """Write PyTorch's own layer of a Transformer."""
    heads, first = next((h for h in (2, 3, 1) if d.width % h == 0), 1), d.pick("True", "False")
    layer = (
        f"nn.TransformerEncoderLayer({d.width}, {heads}, {d.size()}, dropout=0.0, batch_first=True, norm_first={first})"
    )
    d.say(f"x = {d.part(layer, 'layer')}(x)")


@block("steps")
def attention_by_hand(d: Draft) -> None:
    """Write attention with views, `einsum` or `scaled_dot_product_attention`."""
    heads, dim = d.pick(1, 2, 3), d.pick(2, 3, 4)
    inner = heads * dim
    q, k, v, out = d.linear(inner), d.linear(inner), d.linear(inner), d.linear(d.width, inner)
    fused = d.linear(3 * inner)
    b, t = d.pick("x.shape[0]", "len(x)", "x.size(0)"), d.pick("x.shape[1]", str(d.steps))
    views = d.pick(
        f".view({b}, {t}, {heads}, {dim}).transpose(1, 2)", f".reshape({b}, {t}, {heads}, -1).permute(0, 2, 1, 3)",
        f".view({b}, -1, {heads}, {dim}).transpose(1, 2)", f".unflatten(-1, ({heads}, {dim})).transpose(1, 2)",
    )  # fmt: skip
    if d.chance(0.3):
        d.say(f"q, k, v = {fused}(x).{d.pick('chunk(3, dim=-1)', f'split({inner}, dim=-1)')}")
        d.say(f"q, k, v = (part{views} for part in (q, k, v))")
    elif d.chance(0.3):
        d.say(f"q, k, v = {fused}(x).view({b}, {t}, 3, {heads}, {dim}).permute(2, 0, 3, 1, 4)")
    else:
        d.say(f"q, k, v = {q}(x){views}, {k}(x){views}, {v}(x){views}")
    how = d.pick("math", "sdpa", "einsum", "linear")
    if how == "sdpa":
        d.say(f"y = F.scaled_dot_product_attention(q, k, v{d.pick('', ', is_causal=True')})")
    elif how == "einsum":
        d.say(
            f"a = torch.einsum('bhid,bhjd->bhij', q, k).mul({dim} ** -0.5).softmax(-1)",
            "y = torch.einsum('bhij,bhjd->bhid', a, v)",
        )
    elif how == "linear":
        d.say("q, k = q.relu(), k.relu()", "y = q @ (k.transpose(-2, -1) @ v)")
    else:
        d.say(f"a = q @ k.transpose(-2, -1) / {d.pick(f'math.sqrt({dim})', 'math.sqrt(q.size(-1))', '2')}")
        if d.chance(0.3):
            d.say(f"a = a.masked_fill(torch.ones({d.steps}, {d.steps}).triu(1).bool(), float('-inf'))")
        d.say("y = torch.softmax(a, -1) @ v")
    together = d.pick(f"reshape({b}, {t}, {inner})", f"contiguous().view({b}, {t}, -1)", "flatten(2)")
    d.say(f"y = y.transpose(1, 2).{together}")
    d.say(f"x = {d.pick('x + ', '')}{out}(y)")
