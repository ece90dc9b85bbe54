"""Half of the channels of a residual CNN on handwritten digits, beside Torch-Pruning at equal parameters.

    pip install -e '.[dev]'
    python -m examples.images

The convolutions are padded and their sums normalised, as in every ResNet. Each row is a network with half of its
channels: what the library's choice and repair leave without training, and what Torch-Pruning's importances do; then
all of them, and the dense network, after the same two epochs. Digits are scikit-learn's, a quarter of them to judge by.
"""

import sys
from collections.abc import Sequence

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from examples.fitting import fitted
from examples.halving import halved
from examples.peers import torch_pruned
from examples.shown import Shown, options


class Block(nn.Module):
    """Two padded convolutions around which the image goes, too."""

    def __init__(self, given: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(given, channels, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.around = nn.Conv2d(given, channels, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Return images (examples, channels, rows / stride, columns / stride)."""
        hidden = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(image)))))
        return F.relu(hidden + self.around(image))


def residual() -> nn.Sequential:
    """Return the network, not yet trained."""
    stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    blocks = (Block(16, 16, 1), Block(16, 32, 2), Block(32, 32, 1))
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def loss_of(network: nn.Module, images: Tensor, digits: Tensor) -> Tensor:
    """Return the mean cross-entropy, nat."""
    return F.cross_entropy(network(images), digits)


def main(words: Sequence[str]) -> Shown:
    """Train, prune and compare."""
    asked = options(__doc__).parse_args(words)
    pixels, digits = (torch.tensor(part) for part in load_digits(return_X_y=True))
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(1))
    images, digits = (pixels[order] / 16).float().view(-1, 1, 8, 8), digits[order]
    split = 200 if asked.quick else 1350
    batches = list(zip(images[:split].split(32), digits[:split].split(32), strict=True))
    judged = (images[1350:], digits[1350:])

    def loss(other: nn.Module) -> float:
        with torch.no_grad():
            return loss_of(other, *judged).item()

    def accuracy(other: nn.Module) -> float:
        with torch.no_grad():
            return (other(judged[0]).argmax(1) == judged[1]).float().mean().item()

    torch.manual_seed(1)
    network = fitted(residual(), batches, loss_of, epochs=3 if asked.quick else 8, rate=5e-3)
    shown = Shown(f"Digits, {split} to fit on, {len(judged[1])} to judge", {"loss": loss, "accuracy": accuracy})
    shown.row("dense", network)
    rivals = {"dense": network}
    for name, smaller in halved(network, batches, nn.CrossEntropyLoss(), keep=asked.keep):
        rivals[name] = smaller
        shown.row(name, smaller)
    roots = {path for path, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    for name, smaller in torch_pruned(network, batches, loss_of, keep=asked.keep, roots=roots):
        rivals[name] = smaller
        shown.row(name, smaller.eval())
    for name, smaller in rivals.items():
        shown.row(f"{name}, trained", fitted(smaller, batches, loss_of, epochs=2, rate=2e-3))
    return shown


if __name__ == "__main__":
    main(sys.argv[1:])
