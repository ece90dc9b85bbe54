"""Networks of the catalogue that run over time by recurrence, convolution, state spaces or differential equations."""

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.catalogue import Inputs, Network, Part, of

Made = tuple[nn.Module, Inputs]


def steps(batch: int = 4, length: int = 9, width: int = 6) -> tuple[Tensor]:
    """Return sequences, (batch, length, width), as the one input."""
    return (torch.randn(batch, length, width),)


class Headed(nn.Module):
    """What some layer gives first, read by a linear one."""

    def __init__(self, body: nn.Module, width: int, place: int | None = 0) -> None:
        super().__init__()
        self.body, self.place, self.head = body, place, nn.Linear(width, 3)

    def forward(self, inputs: Tensor) -> Any:
        """Return the head's answer."""
        answer = self.body(inputs)
        return self.head(answer if self.place is None else answer[self.place])


def between(body: nn.Module, width: int = 16, *, entered: bool = True) -> nn.Module:
    """Return a layer with a linear one before and one behind it."""
    return nn.Sequential(*([nn.Linear(6, width)] if entered else []), body, nn.Linear(width, 3))


def _wired(name: str) -> Made:
    wiring = of("ncps.wirings:AutoNCP")(16, 4)
    return Part(of(f"ncps.torch:{name}")(6, wiring, batch_first=True), 0), steps(2, 4)


def _closed_form(**how: Any) -> nn.Module:
    return of("ncps.torch:CfC")(6, 16, batch_first=True, **how)  # type: ignore[no-any-return]


def _word_model() -> Made:
    return of("minGRU_pytorch.minLM:minLM")(num_tokens=30, dim=16, depth=2), (torch.randint(0, 30, (4, 9)),)


def _minimal_lstm() -> Made:
    body = of("minGRU_pytorch.minLSTM:minLSTM")(12, expansion_factor=1.5)
    return between(body, 12), steps()


def _selective() -> Made:
    return between(of("mambapy.mamba:Mamba")(of("mambapy.mamba:MambaConfig")(16, 2, d_state=4))), steps()


def _linear_recurrence() -> Made:
    return nn.Sequential(of("LRU_pytorch:LRU")(6, 12, 10), nn.GELU(), nn.Linear(12, 3)), steps(2, 5)


def _temporal(**how: Any) -> Network:
    def make() -> Made:
        return of("pytorch_tcn:TCN")(6, [12, 16], output_projection=3, **how), (torch.randn(4, 6, 20),)

    return Network("pytorch-tcn", make)


class Images(nn.Module):
    """Convolutional LSTMs, whose last picture a convolution reads."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = of("conv_lstm:ConvLSTM")(2, [6, 8], (3, 3), 2), nn.Conv2d(8, 1, 1)

    def forward(self, pictures: Tensor) -> Any:
        """Return the next picture."""
        one, other = self.rnn(pictures)
        found = one if isinstance(one, Tensor) else other
        while not isinstance(found, Tensor):
            found = found[-1] if found is other else found[0]
        return self.out(found[:, -1] if found.ndim == 5 else found)


def _light(*, block: bool) -> Made:
    if block:
        module = "light_recurrent_unit_pytorch.light_recurrent_unit:LightRecurrentUnitBlock"
        return between(of(module)(16, depth=2, has_ff_block=True)), steps()
    return between(Part(of("light_recurrent_unit_pytorch:LightRecurrentUnit")(16, depth=2), 0)), steps()


def _extended(kind: str) -> Made:
    settings = {name: of(f"xlstm:{name}") for name in ("xLSTMBlockStackConfig", f"{kind}BlockConfig")}
    layer = of(f"xlstm:{kind}LayerConfig")
    more: dict[str, Any] = {}
    if kind == "mLSTM":
        own = layer(conv1d_kernel_size=4, qkv_proj_blocksize=4, num_heads=2)
        more = {"mlstm_block": settings["mLSTMBlockConfig"](mlstm=own)}
    else:
        own = layer(backend="vanilla", num_heads=2, conv1d_kernel_size=4)
        forward = of("xlstm:FeedForwardConfig")(proj_factor=1.3, act_fn="gelu")
        more = {"slstm_block": settings["sLSTMBlockConfig"](slstm=own, feedforward=forward), "slstm_at": [0, 1]}
    whole = settings["xLSTMBlockStackConfig"](context_length=9, num_blocks=2, embedding_dim=16, **more)
    return between(of("xlstm:xLSTMBlockStack")(whole)), steps()


class Field(nn.Module):
    """Where a state goes at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 12))

    def forward(self, _: Tensor, state: Tensor) -> Any:
        """Return its change."""
        return self.net(state)


class Ordinary(nn.Module):
    """A state that a differential equation moves."""

    def __init__(self, solver: str, **how: Any) -> None:
        super().__init__()
        self.up, self.field, self.out = nn.Linear(6, 12), Field(), nn.Linear(12, 3)
        self.solver, self.how = solver, how

    def forward(self, inputs: Tensor) -> Any:
        """Return what is read of the last state."""
        times = torch.linspace(0, 1, 4, dtype=inputs.dtype)
        return self.out(of(f"torchdiffeq:{self.solver}")(self.field, self.up(inputs), times, **self.how)[-1])


class Response(nn.Module):
    """Where a state goes for each of the data's channels."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(8, 16), nn.Linear(16, 8 * 3)

    def forward(self, _: Tensor, state: Tensor) -> Tensor:
        """Return its change for each."""
        return self.other(self.one(state).relu()).tanh().view(state.size(0), 8, 3)


class Controlled(nn.Module):
    """A state that the data's own path moves."""

    def __init__(self) -> None:
        super().__init__()
        self.response, self.initial, self.out = Response(), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, coefficients: Tensor) -> Any:
        """Return what is read of the last state."""
        path = of("torchcde:LinearInterpolation")(coefficients)
        begin = self.initial(path.evaluate(path.interval[0]))
        how = {"method": "rk4", "adjoint": False, "options": {"step_size": 1.0}}
        return self.out(of("torchcde:cdeint")(X=path, z0=begin, func=self.response, t=path.interval, **how)[:, 1])


def _controlled() -> Made:
    return Controlled(), (of("torchcde:linear_interpolation_coeffs")(torch.randn(5, 7, 3)),)


SEQUENTIAL = {
    "CfC": Network("ncps", lambda: (Headed(_closed_form(), 16), steps())),
    "CfC with memory": Network(
        "ncps", lambda: (Part(_closed_form(proj_size=3, mixed_memory=True, mode="pure"), 0), steps())
    ),
    "wired CfC": Network("ncps", lambda: _wired("CfC")),
    "LTC": Network("ncps", lambda: (Headed(of("ncps.torch:LTC")(6, 16, batch_first=True), 16), steps(2, 4))),
    "wired LTC": Network("ncps", lambda: _wired("LTC")),
    "minGRU language model": Network("minGRU-pytorch", _word_model),
    "minLSTM": Network("minGRU-pytorch", _minimal_lstm),
    "mambapy Mamba": Network("mambapy", _selective),
    "LRU": Network("LRU-pytorch", _linear_recurrence),
    "S5": Network("s5-pytorch", lambda: (between(of("s5:S5Block")(16, 8, bidir=False)), steps())),
    "TCN with skips": _temporal(use_skip_connections=True),
    "gated TCN": _temporal(use_gate=True, use_norm="batch_norm"),
    "ConvLSTM": Network("conv-lstm", lambda: (Images(), (torch.randn(2, 4, 2, 8, 8),))),
    "light recurrent unit": Network("light-recurrent-unit-pytorch", lambda: _light(block=False)),
    "light recurrent block": Network("light-recurrent-unit-pytorch", lambda: _light(block=True)),
    "neural field": Network("neuralfields", lambda: (Headed(of("neuralfields:NeuralField")(6, 12, 12), 12), steps())),
    "GSMC": Network("gsmc-torch", lambda: (Headed(of("gsmc_torch:GSMCv2")(6, 16), 16, None), steps())),
    "xLSTM, mLSTM": Network("xlstm", lambda: _extended("mLSTM")),
    "xLSTM, sLSTM": Network("xlstm", lambda: _extended("sLSTM")),
    "neural ODE": Network("torchdiffeq", lambda: (Ordinary("odeint", method="rk4"), (torch.randn(5, 6),))),
    "neural ODE by adjoints": Network("torchdiffeq", lambda: (Ordinary("odeint_adjoint"), (torch.randn(5, 6),))),
    "neural CDE": Network("torchcde", _controlled),
}
"""All of them."""
