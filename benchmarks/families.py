"""Training throughput of each family against the same model with a plain Python loop over time, in turns in one run.

`python -m benchmarks.families`; random tokens, since what they are changes no time, and `--libraries` adds the spiking
layers of snntorch and spikingjelly, if they are installed, each stepped as its documentation shows.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import asked
from pruning.core.modes import carried
from pruning.evaluation.measures import next_token_loss
from pruning.models import build
from pruning.models.base import LanguageModel, State
from pruning.models.spiking import LIF, stepwise

SPIKING = {"recurrent": True, "leak": 0.5, "threshold": 1.0, "slope": 2.0}
WOKEN = {**SPIKING, "least_rate": 0.02}
"""As `params.yaml` has spiking neurons trained; what wakes them costs training a little time."""
FAMILIES = {
    "lstm": {"family": "lstm"},
    "gru": {"family": "gru"},
    "rnn": {"family": "rnn", "nonlinearity": "tanh"},
    "snn": {"family": "snn", **SPIKING},
    "snn, feed-forward": {"family": "snn", **SPIKING, "recurrent": False},
    "mixed": {"family": "mixed", "cell": "lstm", **SPIKING},
}


class PlainLayer(nn.Module):
    """One of PyTorch's recurrent layers, called for one step after the other."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        kind = {nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell, nn.RNN: nn.RNNCell}[type(layer)]
        self.cell = kind(layer.input_size, layer.hidden_size)

    def forward(self, inputs: Tensor, state: tuple[Tensor, ...] | Tensor | None) -> tuple[Tensor, object]:
        """Return the outputs of all steps and the state."""
        pair = isinstance(self.cell, nn.LSTMCell)
        before = state if state is None else tuple(t[0] for t in state) if pair else state[0]
        outputs = []
        for step in inputs:
            before = self.cell(step, before)
            outputs.append(before[0] if pair else before)
        return torch.stack(outputs), tuple(t[None] for t in before) if pair else before[None]


class PlainLIF(nn.Module):
    """A spiking layer that projects its input, leaks and fires for one step after the other."""

    def __init__(self, layer: LIF) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, inputs: Tensor, state: tuple[Tensor, ...] | None, _offset: None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the spikes of all steps and the state."""
        own, outputs = self.layer, []
        zeros = inputs.new_zeros(inputs.shape[1], len(own.bias))
        spikes, potential = state or (zeros, zeros)
        for step in inputs:
            current = F.linear(step, own.weight_ih, own.bias)[None]
            found, potential = stepwise(
                current, own.weight_hh, own.leak.sigmoid(), own.threshold, spikes, potential, slope=own.slope
            )
            spikes = found[0]
            outputs.append(spikes)
        return torch.stack(outputs), (spikes, potential)


def plain(model: LanguageModel) -> LanguageModel:
    """Return the model with every recurrent layer looping over time in Python."""
    for layers in model.children():
        if isinstance(layers, nn.ModuleList):
            for index, layer in enumerate(layers):
                layers[index] = PlainLIF(layer) if isinstance(layer, LIF) else PlainLayer(layer)
    return model


def stepper(model: LanguageModel, tokens: Tensor) -> Callable[[int], None]:
    """Return what takes a number of optimisation steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    state: State | None = None

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            loss, state = next_token_loss(model, tokens, tokens, carried(state))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def layers_runner(model: LanguageModel, tokens: Tensor) -> Callable[[int], None]:
    """Return what runs all but the decoder, forwards and backwards, a number of times."""

    def run(times: int) -> None:
        for _ in range(times):
            model.zero_grad()
            model.features(tokens)[0].square().sum().backward()

    return run


def layer_runner(name: str, batch: int, bptt: int, width: int) -> Callable[[int], None]:
    """Return what runs one recurrent spiking layer forwards and backwards a number of times."""
    layer = LIF(width, width, **SPIKING)
    inputs = torch.randn(bptt, batch, width)
    loops = {"plain loop": PlainLIF, "snntorch": _snntorch, "spikingjelly": _jelly}
    forward = layer if name == "ours" else loops[name](layer)

    def run(times: int) -> None:
        for _ in range(times):
            layer.zero_grad()
            forward(inputs, None, None)[0].square().sum().backward()

    return run


def _snntorch(layer: LIF) -> Callable[..., tuple[Tensor, ...]]:
    import snntorch

    neuron = snntorch.Leaky(0.9, spike_grad=snntorch.surrogate.atan(2.0), learn_beta=True, learn_threshold=True)

    def forward(inputs: Tensor, *_: None) -> tuple[Tensor, ...]:
        currents, potential, spikes, outputs = F.linear(inputs, layer.weight_ih, layer.bias), None, None, []
        for current in currents:
            fed_back = 0 if spikes is None else F.linear(spikes, layer.weight_hh)
            spikes, potential = neuron(current + fed_back, neuron.reset_mem() if potential is None else potential)
            outputs.append(spikes)
        return (torch.stack(outputs),)

    return forward


def _jelly(layer: LIF) -> Callable[..., tuple[Tensor, ...]]:
    from spikingjelly.activation_based import functional, neuron
    from spikingjelly.activation_based import surrogate as theirs

    node = neuron.ParametricLIFNode(init_tau=10.0, v_reset=None, surrogate_function=theirs.ATan(2.0))

    def forward(inputs: Tensor, *_: None) -> tuple[Tensor, ...]:
        functional.reset_net(node)
        currents, spikes, outputs = F.linear(inputs, layer.weight_ih, layer.bias), None, []
        for current in currents:
            spikes = node(current if spikes is None else current + F.linear(spikes, layer.weight_hh))
            outputs.append(spikes)
        return (torch.stack(outputs),)

    return forward


def ratios(runs: Mapping[str, Callable[[int], None]], times: int, rounds: int) -> dict[str, float]:
    """Return the median seconds of each, taking turns; one round before warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(-1, rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run(times)
            if round_ >= 0:
                seconds[name].append((time.perf_counter() - start) / times)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Print tokens/s of each family, fused and in the plain loop, their ratio, and one spiking layer's time."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.families", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--rounds", type=asked.count, default=5, help="turns that each model takes")
    parser.add_argument("--steps", type=asked.count, default=4, help="optimisation steps of a round")
    parser.add_argument("--batch", type=asked.count, default=32, help="texts side by side")
    parser.add_argument("--bptt", type=asked.count, default=35, help="steps of a text")
    parser.add_argument(
        "--width", type=asked.count, default=128, help="units of each of the two layers, and of the embedding"
    )
    parser.add_argument("--vocabulary", type=asked.count, default=6000, help="word types")
    parser.add_argument("--threads", type=asked.count, default=torch.get_num_threads(), help="threads of PyTorch")
    parser.add_argument("--libraries", action="store_true", help="compare one spiking layer with other libraries'")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.set_flush_denormal(True)
    tokens = torch.randint(given.vocabulary, (given.bptt, given.batch))
    for name, own in FAMILIES.items():
        halves = {"snn_widths": [given.width] * 2} if own["family"] == "mixed" else {}
        shape = {"vocabulary": given.vocabulary, "embedding": given.width, "widths": [given.width] * 2, **halves}
        models = {how: build(decoder="untied", dropout=0.0, **own, **shape) for how in ("fused", "plain")}
        models["plain"] = plain(models["plain"])
        for what, make in (("layers alone", layers_runner), ("training step", stepper)):
            runs = {how: make(model, tokens) for how, model in models.items()}
            seconds = ratios(runs, given.steps, given.rounds)
            speeds = {how: tokens.numel() / value for how, value in seconds.items()}
            print(
                f"{name:18} {what:14} {speeds['fused']:8.0f} tokens/s, plain loop {speeds['plain']:8.0f}, "
                f"ratio {speeds['fused'] / speeds['plain']:.2f}"
            )
    names = ["ours", "plain loop", *(["snntorch", "spikingjelly"] if given.libraries else [])]
    layers = {name: layer_runner(name, given.batch, given.bptt, given.width) for name in names}
    for name, seconds in ratios(layers, 3 * given.steps, given.rounds).items():
        print(f"one recurrent spiking layer, {name:12} {1000 * seconds:7.2f} ms forwards and backwards")


if __name__ == "__main__":
    main()
