"""What `scope="measured"` chooses on trained networks that are no language models, and whether it is the better one.

    python -m benchmarks.scopes [speaker]

Networks for handwritten digits (scikit-learn's), a perceptron of two hidden layers and a convolutional one, are
trained, cut by one share a layer and by one ranking, and repaired; the loss is that of digits that nothing was fitted
on. `speaker` does it with the encoder of `examples/speaker_encoder.py` and what that needs, by the cosine to the dense
network's embeddings.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import pruning

Judge = Callable[[nn.Module], float]


def main(words: Sequence[str]) -> None:
    """Print a row for each network, share and order."""
    torch.manual_seed(0)
    print("network  keep  by  scope → test loss or cosine, distance on the calibration data")
    for name, network in (("perceptron", perceptron()), ("convolutions", convolutions())):
        train, test = digits()
        taught(network, train)
        importance = pruning.importance(network, train, nn.CrossEntropyLoss(), signals=["weights", "surgeon"])
        judge = partial(loss_on, test)
        print(name, "dense", f"{judge(network):.4f}")
        compared(name, network, importance, judge, by=("surgeon", "fused"), keep=(0.5, 0.3))
    if "speaker" in words:
        network, spoken, judge = speaker()
        importance = pruning.importance(network, spoken, signals=["weights", "surgeon"])
        compared("speaker", network, importance, judge, by=("surgeon",), keep=(0.5,))


def loss_on(batches: Sequence[tuple[Tensor, Tensor]], network: nn.Module) -> float:
    """Return a network's loss."""
    found: float = pruning.evaluate(network, batches, nn.CrossEntropyLoss()).mean
    return found


def compared(
    name: str, network: nn.Module, importance: Any, judge: Judge, *, by: Iterable[str], keep: Iterable[float]
) -> None:
    """Print what both scopes give, and which of them is taken."""
    for share in keep:
        for order in by:
            chosen = dataclasses.replace(importance, by=order)
            one = "absolute" if order == "surgeon" else "global"
            found = {scope: pruning.prune(network, chosen, keep=share, scope=scope) for scope in ("layer", one)}
            taken = pruning.prune(network, chosen, keep=share).report.scope
            cells = [f"{s} {judge(m):.4f}, {m.report.apart[s]:.4g} apart {m.widths()}" for s, m in found.items()]
            print(f"{name}  {share:g}  {order}  {'; '.join(cells)}; taken: {taken}", flush=True)


def digits() -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Return batches to train on and to judge by."""
    pixels, classes = (torch.tensor(part) for part in load_digits(return_X_y=True))
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(1))
    pixels, classes = (pixels[order] / 16).float(), classes[order]
    batches = list(zip(pixels.split(64), classes.split(64), strict=True))
    return batches[:20], batches[20:]


def perceptron() -> nn.Module:
    """Return two hidden layers."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))


def convolutions() -> nn.Module:
    """Return two convolutions and a hidden layer."""
    first, second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
    last = (nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24 * 16, 48), nn.ReLU(), nn.Linear(48, 10))
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), first, nn.ReLU(), second, nn.ReLU(), *last)


def taught(network: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Train a network for thirty epochs."""
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(30):
        for pixels, classes in batches:
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(network(pixels), classes))
            optimizer.step()
    network.eval()


def speaker() -> tuple[nn.Module, list[Tensor], Judge]:
    """Return the trained encoder, speech to fit on, and the cosine over other speech."""
    from examples.shown import packaged
    from examples.speaker_encoder import SpeakerEncoder, windows
    from examples.speech import utterances

    network = SpeakerEncoder().eval()
    weights = torch.load(packaged("resemblyzer", "pretrained.pt"), map_location="cpu", weights_only=True)
    network.load_state_dict(weights["model_state"], strict=False)
    spoken = [windows(samples) for _, samples in utterances(90, seed=1)]
    fitted, judged = torch.cat(spoken[:66]), torch.cat(spoken[66:])
    with torch.no_grad():
        wanted = network(judged)

    def cosine(other: nn.Module) -> float:
        with torch.no_grad():
            return F.cosine_similarity(other(judged), wanted).mean().item()

    return network, list(fitted.split(32)), cosine


if __name__ == "__main__":
    main(sys.argv[1:])
