"""Blocks that carry a state over steps: PyTorch's recurrent layers, cells in loops, spiking neurons, scans by hand."""

from benchmarks.random_networks.drafts import Draft, block


@block("steps")
def recurrent(d: Draft) -> None:
    """Write an LSTM, GRU or RNN in one of its forms."""
    kind, size, layers = d.pick("LSTM", "GRU", "RNN"), d.size(), d.pick(1, 1, 2)
    both, first = d.chance(0.3), d.chance(0.7)
    project = d.pick(1, 2, 3) if kind == "LSTM" and size > 3 and d.chance(0.2) else 0
    options = f", num_layers={layers}" * (layers > 1) + ", bidirectional=True" * both + ", batch_first=True" * first
    options += f", proj_size={project}" * (project > 0) + ", nonlinearity='relu'" * (kind == "RNN" and d.chance(0.3))
    options += ", dropout=0.1" * (layers > 1 and d.chance(0.3)) + ", bias=False" * d.chance(0.1)
    rnn = d.part(f"nn.{kind}({d.width}, {size}{options})", "rnn")
    count, out = layers * (2 if both else 1), project or size
    starts = {
        "zeros": f"torch.zeros({count}, x.shape[0], {out}, dtype=x.dtype)",
        "made": f"x.new_zeros({count}, len(x), {out})",
        "learned": f"{d.weight(count, 1, out)}.expand(-1, x.size(0), -1).contiguous()",
        "mapped": f"torch.tanh({d.linear(out)}(x.mean(1))).unsqueeze(0).repeat({count}, 1, 1)",
    }
    given = ""
    if d.chance(0.4):
        start = starts[d.pick(*starts)]
        memory = f"torch.zeros({count}, len(x), {size}, dtype=x.dtype)" if project else start
        given = f", ({start}, {memory})" if kind == "LSTM" else f", {start}"
    read = "x" if first else "x.transpose(0, 1)"
    back = "" if first else ".transpose(0, 1)"
    state = "h, _" if kind == "LSTM" else "h"
    state = f"({state})" if kind == "LSTM" else state
    how = d.pick("outputs", "outputs", "last", "state", "states", "packed", "both")
    if how == "packed" and first and not given:
        d.say(
            f"lengths = torch.tensor([{d.steps} - n % {min(d.steps, 3)} for n in range(len(x))])",
            "packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)",
            f"y, h = {rnn}(packed)",
            f"x, _ = pad_packed_sequence(y, batch_first=True, total_length={d.steps})",
        )
        d.width = out * (2 if both else 1)
    elif how in ("outputs", "packed"):
        d.say(
            f"y, _ = {rnn}({read}{given})",
            f"x = {d.pick('x + ', '') if out * (2 if both else 1) == d.width else ''}y{back}",
        )
        d.width = out * (2 if both else 1)
    elif how == "last":
        d.say(f"x = {rnn}({read}{given})[0]{back}[:, -1]")
        d.kind, d.width = "flat", out * (2 if both else 1)
    elif how == "state":
        d.say(f"_, {state} = {rnn}({read}{given})", "x = h[-1]")
        d.kind, d.width = "flat", out
    elif how == "states":
        d.say(f"_, {state} = {rnn}({read}{given})")
        d.say(
            d.pick(
                "x = h.transpose(0, 1).flatten(1)",
                "x = torch.cat([*h], 1)",
                f"x = h.permute(1, 0, 2).reshape(-1, {count * out})",
            )
        )
        d.kind, d.width = "flat", out * count
    else:
        d.say(f"y, {state} = {rnn}({read}{given})", f"y = y{back}")
        if both:
            d.say(f"x = y[..., :{out}] + y[..., {out}:]")
        elif layers == 1:
            a = "torch.softmax(torch.bmm(y, h[-1].unsqueeze(2)), 1)"
            d.say(
                d.pick(
                    "x = y * h[-1].unsqueeze(1)",
                    f"x = y * {a}",
                    "x = torch.cat([y, h[-1].unsqueeze(1).expand_as(y)], -1)",
                )
            )
        else:
            d.say("x = y + h[0].unsqueeze(1)")
        d.width = out * (2 if "torch.cat" in d.lines[-1] else 1)


@block("steps")
def cell(d: Draft) -> None:
    """Write a cell in a loop."""
    kind, size = d.pick("LSTMCell", "GRUCell", "RNNCell"), d.size()
    name, mapped = d.part(f"nn.{kind}({d.width}, {size})", "cell"), d.linear(size)
    start = d.pick(
        f"x.new_zeros(len(x), {size})",
        f"torch.zeros(x.shape[0], {name}.hidden_size, dtype=x.dtype)",
        f"torch.tanh({mapped}(x[:, 0]))",
    )
    steps = d.pick(
        "for t in range(x.size(1)):\n    now = x[:, t]",
        "for now in x.unbind(1):",
        f"for t in range({d.steps}):\n    now = x[:, t, :]",
    )
    both = kind == "LSTMCell"
    d.say(f"h = {start}", *(["c = torch.zeros_like(h)"] if both else []), "outputs = []", *steps.split("\n"))
    d.say(f"    h, c = {name}(now, (h, c))" if both else f"    h = {name}(now, h)", "    outputs.append(h)")
    d.say(
        d.pick(
            "x = torch.stack(outputs, 1)",
            "x = torch.stack(outputs).transpose(0, 1)",
            "x = torch.cat([o.unsqueeze(1) for o in outputs], dim=1)",
        )
    )
    d.width = size


@block("steps")
def recurrence_by_hand(d: Draft) -> None:
    """Write a recurrence of linear maps."""
    size = d.size()
    i, h, gate, more = d.linear(size), d.linear(size, size), d.linear(size), d.linear(size, size)
    leak = d.part(f"nn.Parameter(torch.rand({size}))", "leak")
    joined = d.linear(size, d.width + size)
    four = d.linear(4 * size, d.width + size)
    how = d.pick(
        [f"    h = torch.tanh({i}(x[:, t]) + {h}(h))"],
        [f"    h = {leak} * h + {i}(x[:, t])"],
        [f"    h = torch.tanh({joined}(torch.cat([x[:, t], h], 1)))"],
        [
            f"    z = torch.sigmoid({gate}(x[:, t]) + {more}(h))",
            f"    h = (1 - z) * h + z * torch.tanh({i}(x[:, t]) + {h}(h))",
        ],
        [f"    z = torch.sigmoid({gate}(x[:, t]))", f"    h = z * h + (1 - z) * {i}(x[:, t])"],
        [
            f"    gates = {four}(torch.cat([x[:, t], h], -1))",
            f"    i, f, o, g = gates.{d.pick('chunk(4, 1)', f'split({size}, dim=1)')}",
            "    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)",
            "    h = torch.sigmoid(o) * torch.tanh(c)",
        ],
    )
    d.say(
        f"h = {d.pick(f'torch.zeros(x.shape[0], {size}, dtype=x.dtype)', f'x.new_zeros(len(x), {size})')}",
        "c = h",
        "outputs = []",
    )
    d.say("for t in range(x.shape[1]):", *how, "    outputs.append(h)")
    d.say(d.pick("x = torch.stack(outputs, dim=1)", "x = torch.stack(outputs, 1) + 0.1"))
    d.width = size


@block("steps")
def spiking(d: Draft) -> None:
    """Write leaky neurons that fire, by hand."""
    size = d.size()
    layer, again = d.linear(size), d.linear(size, size)
    threshold = d.pick("0.5", d.part(f"nn.Parameter(torch.full(({size},), 0.4))", "threshold"))
    leak = d.pick("0.9", d.part(f"nn.Parameter(torch.rand({size}))", "leak"), f"torch.sigmoid({d.weight(size)})")
    after = d.pick("v = v * (1 - s)", f"v = v - s * {threshold}", "v = torch.where(s > 0, torch.zeros_like(v), v)")
    current = d.pick(f"{layer}(x[:, t])", f"{layer}(x[:, t]) + {again}(s)")
    soft = d.pick(
        "s = (v > {0}).to(x.dtype)",
        "s = ((v > {0}).to(x.dtype) - torch.sigmoid(4 * (v - {0}))).detach() + torch.sigmoid(4 * (v - {0}))",
    )
    d.say(
        f"v = torch.zeros(len(x), {size}, dtype=x.dtype)",
        "s, outputs = torch.zeros_like(v), []",
        "for t in range(x.size(1)):",
    )
    d.say(
        f"    v = {leak} * v + {current}",
        f"    {soft.format(threshold)}",
        f"    {after}",
        f"    outputs.append({d.pick('s', 's', 'v')})",
    )
    d.say(d.pick("x = torch.stack(outputs, 1)", "x = torch.stack(outputs, 1) * 1.0"))
    d.width = size


@block("flat")
def repeated(d: Draft) -> None:
    """Write a decoder that goes on from a vector."""
    size = d.size()
    start, cell, token = d.linear(size), d.part(f"nn.GRUCell({d.width}, {size})", "cell"), d.linear(d.width, size)
    d.say(f"h, now, outputs = torch.tanh({start}(x)), x, []", "for _ in range(3):", f"    h = {cell}(now, h)")
    d.say(*d.pick([f"    now = {token}(h)"], [f"    now = x + {token}(h)"], []), "    outputs.append(h)")
    d.say("x = torch.stack(outputs, 1)")
    d.kind, d.steps, d.width = "steps", 3, size
