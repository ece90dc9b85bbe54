"""Blocks that keep the shape of what flows but for its width: maps, activations, norms, sums, gates, ties."""

from benchmarks.random_networks.drafts import Draft, block


@block()
def activation(d: Draft) -> None:
    """Write an elementwise function."""
    d.say(f"x = {d.nonlinear('x')}")


@block()
def activation_written_otherwise(d: Draft) -> None:
    """Write an elementwise function by a module, in place, or by hand."""
    learned = d.part(f"nn.PReLU({d.width if d.kind != 'steps' and d.chance() else 1})", "prelu")
    module = d.part(d.pick("nn.ReLU(inplace=True)", "nn.Tanh()", "nn.Mish()", "nn.Hardtanh()", "nn.CELU()"), "act")
    d.say(
        d.pick(
            f"x = {learned}(x)", f"x = {module}(x)", "x = x * torch.sigmoid(x)", "x = torch.where(x > 0, x, 0.1 * x)",
            "x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))", "x = x.clone().relu_()", "x = torch.relu(x) ** 2",
            "x = x.exp() / (1 + x.exp())", "x = torch.maximum(x, 0.2 * x)", "x = x.masked_fill(x < 0, 0.0)",
        )
    )  # fmt: skip


@block()
def mapped(d: Draft) -> None:
    """Write a layer and an activation."""
    size = d.size()
    d.say(f"x = {d.nonlinear(f'{d.map(size)}(x)')}")
    d.width = size


@block("flat", "steps")
def linear_by_hand(d: Draft) -> None:
    """Write a layer by a matrix of its own."""
    size = d.size()
    rows, columns = d.weight(size, d.width), d.weight(d.width, size)
    bias = d.weight(size)
    d.say(
        d.pick(
            f"x = F.linear(x, {rows}, {bias})", f"x = F.linear(x, {rows})", f"x = x @ {columns} + {bias}",
            f"x = x @ {rows}.t()", f"x = torch.matmul(x, {columns})", f"x = x.matmul({rows}.T) + {bias}",
            f"x = torch.einsum('...i,io->...o', x, {columns})", f"x = torch.einsum('...i,oi->...o', x, {rows})",
            f"x = torch.tensordot(x, {columns}, dims=1) + {bias}",
            f"x = (x.unsqueeze(-2) * {rows}).sum(-1) + {bias}",
        )
    )  # fmt: skip
    d.width = size
    d.say(f"x = {d.nonlinear('x')}")


@block()
def norm(d: Draft) -> None:
    """Write a normalisation by PyTorch's module."""
    groups = next((g for g in (d.pick(1, 2), 2, 3) if d.width % g == 0 and g < d.width), 1)
    kinds = {
        "flat": (f"nn.LayerNorm({d.width})", f"nn.BatchNorm1d({d.width})"),
        "steps": (f"nn.LayerNorm({d.width})", f"nn.RMSNorm({d.width})", f"nn.LayerNorm({d.width}, bias=False)"),
        "wave": (f"nn.BatchNorm1d({d.width})", f"nn.GroupNorm({groups}, {d.width})"),
        "image": (f"nn.BatchNorm2d({d.width})", f"nn.GroupNorm({groups}, {d.width})", f"nn.BatchNorm2d({d.width})"),
    }
    d.say(f"x = {d.part(d.pick(*kinds[d.kind]), 'norm')}(x)")


@block()
def norm_by_hand(d: Draft) -> None:
    """Write a normalisation over the neurons by hand."""
    shape = [d.width] if d.kind in ("flat", "steps") else [d.width, 1] if d.kind == "wave" else [d.width, 1, 1]
    gain, dim = d.part(f"nn.Parameter(torch.rand({', '.join(map(str, shape))}) + 0.5)", "gain"), d.axis
    mean = f"x.mean({dim}, keepdim=True)"
    d.say(
        d.pick(
            f"x = x * torch.rsqrt(x.pow(2).mean({dim}, keepdim=True) + 1e-6) * {gain}",
            f"x = {gain} * (x - {mean}) / torch.sqrt(x.var({dim}, unbiased=False, keepdim=True) + 1e-5)",
            f"x = F.normalize(x, dim={dim}) * {gain}",
            f"x = x / (x.norm(dim={dim}, keepdim=True) + 1e-6)",
            f"x = x - {mean}",
        )
    )


@block()
def scaled(d: Draft) -> None:
    """Write numbers for each neuron: a gain, a buffer, a shift."""
    shape = {"flat": [d.width], "steps": [d.width], "wave": [d.width, 1], "image": [1, d.width, 1, 1]}[d.kind]
    values = f"torch.rand({', '.join(map(str, shape))}) + 0.5"
    gain, fixed = d.part(f"nn.Parameter({values})", "gain"), d.buffer(values)
    d.say(
        d.pick(
            f"x = x * {gain}",
            f"x = x * {fixed}",
            f"x = x + {gain}",
            f"x = (x - {fixed}) / {gain}",
            f"x = x.clone().mul_({gain})",
        )
    )


@block()
def residual(d: Draft) -> None:
    """Write a residual branch of one or two layers."""
    inner = d.size()
    one, two = d.map(inner), None
    width, d.width = d.width, inner
    two = d.map(width)
    d.width = width
    alone = d.map(width)
    scale = d.weight(1)
    d.say(
        d.pick(
            f"x = x + {two}({d.nonlinear(f'{one}(x)')})", f"x = x + {alone}({d.nonlinear('x')})",
            f"x = {d.nonlinear(f'x + {alone}(x)')}", f"x = x + {scale} * {two}({d.nonlinear(f'{one}(x)')})",
            f"x = (x + {two}({d.nonlinear(f'{one}(x)')})) / 2 ** 0.5",
            f"x = x - 0.5 * {two}({d.nonlinear(f'{one}(x)')})",
        )
    )  # fmt: skip


@block()
def side_by_side(d: Draft) -> None:
    """Write two branches that are laid beside each other."""
    one, two = d.size(), d.size()
    left, right = d.nonlinear(f"{d.map(one)}(x)"), d.nonlinear(f"{d.map(two)}(x)")
    if d.chance():
        d.say(f"x = torch.cat([{left}, {right}], {d.axis})")
        d.width = one + two
    else:
        d.say(f"x = torch.cat((x, {left}), dim={d.axis})")
        d.width += one


@block()
def added(d: Draft) -> None:
    """Write branches that add up, or of which one gates the other."""
    size = d.size()
    left, right = f"{d.map(size)}(x)", f"{d.map(size)}(x)"
    gate = d.part("nn.Parameter(torch.zeros(1))", "weight")
    d.say(
        d.pick(
            f"x = {left} + {right}", f"x = {d.nonlinear(left)} + {d.nonlinear(right)}",
            f"x = {left} * torch.sigmoid({right})",
            f"x = {d.nonlinear(left)} * {right}", f"x = torch.max({left}, {right})", f"x = {left}.mul({right}).tanh()",
            f"x = torch.lerp({left}, {right}, torch.sigmoid({gate}))", f"x = torch.stack([{left}, {right}]).mean(0)",
            f"x = torch.stack([{left}, {right}], 1).max(1)[0]", f"x = sum([{left}, {right}])",
        )
    )  # fmt: skip
    d.width = size


@block()
def highway(d: Draft) -> None:
    """Write a gate between what flows and what a layer makes of it."""
    one, two, gate = d.map(d.width), d.map(d.width), d.name("gate")
    d.say(f"{gate} = torch.sigmoid({one}(x))", f"x = {gate} * {d.nonlinear(f'{two}(x)')} + (1 - {gate}) * x")


@block()
def halves(d: Draft) -> None:
    """Write a layer whose neurons are taken apart."""
    size, axis = d.size(), d.axis
    whole, a, b = f"{d.map(2 * size)}(x)", d.name("a"), d.name("b")
    cut = f"[:, :{size}]" if axis == 1 else f"[..., :{size}]"
    rest = f"[:, {size}:]" if axis == 1 else f"[..., {size}:]"
    d.say(
        *d.pick(
            (f"x = F.glu({whole}, {axis})",),
            (f"{a}, {b} = {whole}.chunk(2, {axis})", f"x = {a} * {d.nonlinear(b)}"),
            (f"{a}, {b} = torch.split({whole}, {size}, dim={axis})", f"x = {d.nonlinear(a)} + {b}"),
            (f"{a}, {b} = {whole}.split([{size}, {size}], {axis})", f"x = torch.tanh({a}) * torch.sigmoid({b})"),
            (f"{a} = {whole}", f"x = {a}{cut} * torch.sigmoid({a}{rest})"),
            (f"{a} = {whole}", f"x = {d.nonlinear(f'{a}{cut}')} - {a}{rest}"),
        )
    )
    d.width = size


@block()
def unequal_parts(d: Draft) -> None:
    """Write a layer whose neurons are taken apart in parts of unlike size, and read each otherwise."""
    one, two, axis = d.size(), d.size(), d.axis
    whole, a, b = f"{d.map(one + two)}(x)", d.name("a"), d.name("b")
    d.say(f"{a}, {b} = {whole}.split([{one}, {two}], dim={axis})")
    d.say(f"x = torch.cat([{d.nonlinear(b)}, {d.nonlinear(a)}], {axis})" if d.chance() else f"x = {d.nonlinear(a)}")
    if d.lines[-1].startswith("x = torch.cat"):
        d.width = one + two
    else:
        d.width = one
        d.say(f"x = x + {d.map(one)}(x) * {b}.mean({axis}, keepdim=True)" if d.chance() else f"x = x * {b}.sum()")


@block()
def twice(d: Draft) -> None:
    """Write one layer that is called again."""
    layer = d.map(d.width)
    again = d.nonlinear(f"{layer}(x)")
    if d.chance():
        d.say("for _ in range(2):", f"    x = {again}")
    else:
        d.say(f"x = {again}", f"x = {d.pick('x + ', '')}{d.nonlinear(f'{layer}(x)')}")


@block("flat", "steps")
def tied(d: Draft) -> None:
    """Write a layer whose matrix reads what it computes, too."""
    size = d.size()
    layer, hidden = d.linear(size), d.name("hidden")
    d.say(f"{hidden} = {d.nonlinear(f'{layer}(x)')}")
    d.say(d.pick(f"x = F.linear({hidden}, {layer}.weight.t())", f"x = x + {hidden} @ {layer}.weight"))


@block()
def remembered(d: Draft) -> None:
    """Write that what flows is kept for later, or what was kept is used."""
    if d.kind in d.kept and d.chance(0.8):
        name, width, steps, side = d.kept.pop(d.kind)
        same = steps == d.steps if d.kind != "image" else side == d.side
        if d.kind != "flat" and not same:
            return
        if width == d.width and d.chance():
            d.say(d.pick(f"x = x + {name}", f"x = x * torch.sigmoid({name})", f"x = {name} + x.relu()"))
        else:
            d.say(f"x = torch.cat([x, {name}], {d.axis})")
            d.width += width
    else:
        name = d.name("skip")
        d.say(f"{name} = x")
        d.kept[d.kind] = name, d.width, d.steps, d.side


@block()
def dead(d: Draft) -> None:
    """Write what nobody reads, or reads as nothing."""
    d.say(
        d.pick(
            f"_ = {d.map(d.size())}(x)",
            f"x = x + 0 * {d.map(d.width)}(x)",
            f"x = x + {d.map(d.width)}(x).detach() * 0.5",
        )
    )


@block()
def dropped(d: Draft) -> None:
    """Write dropout or an identity."""
    kinds = ["nn.Dropout(0.2)", "nn.Identity()", *(["nn.Dropout2d(0.1)"] if d.kind == "image" else [])]
    d.say(
        d.pick(f"x = {d.part(d.pick(*kinds), 'drop')}(x)", "x = F.dropout(x, 0.1, self.training)", "x = x.contiguous()")
    )


@block()
def constant(d: Draft) -> None:
    """Write a number that is made in the call."""
    shape = {"flat": f"len(x), {d.width}", "steps": f"x.shape[0], {d.steps}, {d.width}"}.get(d.kind, "")
    by_shape = f"x = x + torch.full(({shape}), 0.3, dtype=x.dtype)" if shape else "x = x + torch.ones_like(x) * 0.3"
    d.say(
        d.pick(
            by_shape, "x = x + torch.zeros_like(x)", f"x = x / math.sqrt({d.width})",
            f"x = x * x.shape[{d.axis}] ** -0.5",
            "x = x - 0.1", f"x = x / x.size({d.axis})",
        )
    )  # fmt: skip


@block("flat", "steps")
def auxiliary(d: Draft) -> None:
    """Write a head of its own."""
    name = d.name("aux")
    head, more = d.linear(2), d.linear(d.width)
    d.say(f"{name} = {head}({d.pick('x', 'x.tanh()', f'{more}(x).relu()')})")
    d.answers.append(name)


@block("flat")
def experts(d: Draft) -> None:
    """Write layers that are mixed by shares."""
    size, count = d.size(), d.pick(2, 3)
    gate, layers, shares = (
        d.linear(count),
        d.part(f"nn.ModuleList([nn.Linear({d.width}, {size}) for _ in range({count})])"),
        d.name("shares"),
    )
    d.say(f"{shares} = torch.softmax({gate}(x), -1)")
    mixed = d.pick(
        f"x = sum({shares}[:, [n]] * e(x).relu() for n, e in enumerate({layers}))",
        f"x = torch.stack([e(x).tanh() for e in {layers}], 1).mul({shares}.unsqueeze(-1)).sum(1)",
        f"x = torch.einsum('bn,bnc->bc', {shares}, torch.stack([e(x).relu() for e in {layers}], 1))",
    )
    d.say(mixed)
    d.width = size


@block("flat")
def low_rank_cross(d: Draft) -> None:
    """Write products of features with each other."""
    first = d.linear(d.width)
    one, two = d.linear(d.size()), d.name("inner")
    if d.pick(True, False):
        d.say(f"x = x * {first}(x) + x")
    else:
        d.say(f"{two} = {one}(x)", f"x = torch.cat([x, ({two} * {two}).sum(1, keepdim=True)], 1)")
        d.width += 1
