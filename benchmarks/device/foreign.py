"""Models that are not built in, on the device: removed must equal masked, and every signal must come."""

import traceback

import torch
from torch import Tensor, nn

from benchmarks.device.report import Report


class Tagger(nn.Module):
    """A bidirectional stacked LSTM over words, as users write it."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 12)
        self.rnn = nn.LSTM(12, 10, 2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(20, 5)

    def forward(self, words: Tensor) -> Tensor:
        """Return the logits of each word's tag."""
        return self.head(self.rnn(self.words(words))[0])


class Pictures(nn.Module):
    """Two convolutions with normalisation, then a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(6 * 64, 16), nn.GELU(), nn.Linear(16, 5),
        )  # fmt: skip

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the logits of each picture."""
        found: Tensor = self.body(pictures)
        return found


class Attentive(nn.Module):
    """A layer of attention over words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.body = nn.TransformerEncoderLayer(16, 4, dim_feedforward=24, batch_first=True, dropout=0.0)
        self.head = nn.Linear(16, 5)

    def forward(self, words: Tensor) -> Tensor:
        """Return the logits of each word's tag."""
        found: Tensor = self.head(self.body(self.words(words)))
        return found


def foreign(report: Report) -> None:
    """Find the neurons of models that are not built in, on the device; removed must equal masked; then the signals."""
    from pruning.ablation.oracle import Ablation, oracle
    from pruning.core.neurons import mask, select
    from pruning.experiment.measuring import USUAL, measure
    from pruning.models.adapting import adapt

    random = torch.Generator().manual_seed(1)
    words = torch.randint(50, (6, 4, 7), generator=random)
    pictures = torch.randn(6, 4, 3, 8, 8, generator=random)
    cases: dict[str, tuple[nn.Module, Tensor, Tensor]] = {
        "recurrent": (Tagger(), words, torch.randint(5, (6, 4, 7), generator=random)),
        "convolutions": (Pictures(), pictures, torch.randint(5, (6, 4), generator=random)),
        "attention": (Attentive(), words, torch.randint(5, (6, 4, 7), generator=random)),
    }
    rows, failures = [], []
    for name, (network, inputs, targets) in cases.items():
        network = network.to(report.device).eval()
        try:
            model = adapt(network, inputs[0].to(report.device), loss=nn.CrossEntropyLoss())
            exact = [layer for layer in model.layers() if layer.exact]  # elsewhere a normalisation sees who is gone
            keep = {layer.name: torch.arange(1, layer.width, device=report.device) for layer in exact}
            read = inputs[0].to(report.device)
            with torch.no_grad():
                cut, masked = (change(model, keep)(read) for change in (select, mask))
                apart = float((cut - masked).abs().max())
                dense = float((model(read) - network(read)).abs().max())
        except Exception:
            failures.append(f"{name}:\n{traceback.format_exc()}")
            rows.append((name, "–", "–", "–", "FAILED"))
            continue
        batches = list(zip(inputs, targets, strict=True))
        told = []
        for signal in ("activations", "weights", "gradients", "hessian", "surgeon", "criteria", "oracle"):
            try:
                if signal == "oracle":
                    oracle(model, batches, Ablation(neurons=8, tokens=40, seed=1))
                    continue
                effort = {**USUAL, "hessian": {"probes": 16, "stability": 0.1}}
                states = measure("activations", model, batches, {}, effort=effort, seed=1)[1]
                measure(signal, model, batches, states, effort=effort, seed=1)
            except Exception:
                told.append(signal)
                failures.append(f"{name}, {signal}:\n{traceback.format_exc()}")
        if not apart < 1e-4 or not dense < 1e-4:
            failures.append(f"{name}: removed and masked are {apart:.1e} apart, found and given {dense:.1e}")
        layers = ", ".join(f"{each.name} {each.width}{'' if each.exact else ' (inexact)'}" for each in model.layers())
        rows.append((name, layers, f"{apart:.1e}", f"{dense:.1e}", f"FAILED: {told}" if told else ""))
    report.table(("model", "layers found", "removed − masked", "found − given", "signals"), rows)
    if failures:
        report.say("```", *failures, "```")
        raise AssertionError(f"{len(failures)} failures")
