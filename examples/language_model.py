"""Half of the MLPs of a small Llama on the Penn Treebank, beside Torch-Pruning at equal parameters.

    pip install -e '.[dev]'
    python -m examples.language_model --data data/penn-treebank

A `LlamaForCausalLM` of `transformers` (4 layers, 128 wide, MLPs of 512) is trained on the text first, its 2,000 most
frequent words apart, the others one. Each row is the network with half of the neurons of each MLP; the perplexity is
that of validation text. Then all of them, and the dense network, train for the same twentieth of an epoch.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.fitting import fitted
from examples.halving import halved
from examples.llama import llama
from examples.peers import torch_pruned
from examples.shown import Shown, options

WORDS, STEPS, BATCH = 2000, 64, 16


def windows(file: Path, vocabulary: dict[str, int]) -> Tensor:
    """Return a text as rows of `STEPS` words and the next one, (n, 65), each word a number."""
    words = file.read_text(encoding="utf-8").replace("\n", " <eos> ").split()
    numbers = torch.tensor([vocabulary.get(word, 0) for word in words])
    return numbers.unfold(0, STEPS + 1, STEPS)


def loss_of(network: nn.Module, tokens: Tensor, following: Tensor) -> Tensor:
    """Return the mean cross-entropy of the word after each one, nat."""
    return F.cross_entropy(network(tokens).logits.flatten(0, 1), following.flatten())


def main(words: Sequence[str]) -> Shown:
    """Train, prune and compare."""
    parser = options(__doc__)
    parser.add_argument("--data", type=Path, default="data/penn-treebank", help="folder of ptb.*.txt (%(default)s)")
    asked = parser.parse_args(words)
    if missing := [name for name in ("ptb.train.txt", "ptb.valid.txt") if not (asked.data / name).is_file()]:
        raise SystemExit(f"Expected {missing[0]} in {asked.data}, got none; --data names the Penn Treebank's folder.")
    frequent = Counter((asked.data / "ptb.train.txt").read_text(encoding="utf-8").split()).most_common(WORDS - 2)
    vocabulary = {word: number for number, (word, _) in enumerate(frequent, start=2)} | {"<eos>": 1}
    read, judged = (windows(asked.data / f"ptb.{split}.txt", vocabulary) for split in ("train", "valid"))
    read, judged = (read[:32], judged[:8]) if asked.quick else (read, judged[:512])
    batches = [(rows[:, :-1], rows[:, 1:]) for rows in read.split(4 if asked.quick else BATCH)]

    def perplexity(other: nn.Module) -> float:
        with torch.no_grad():
            losses = [loss_of(other, rows[:, :-1], rows[:, 1:]) for rows in judged.split(BATCH)]
        return torch.stack(losses).mean().exp().item()

    torch.manual_seed(1)
    network = fitted(llama(words=len(vocabulary) + 1, steps=STEPS), batches, loss_of, epochs=1, rate=3e-3)
    shown = Shown(f"Llama, {len(read) * STEPS:,} words to fit on", {"perplexity": perplexity})
    shown.row("dense", network)
    rivals, some = {"dense": network}, batches[:4] if asked.quick else batches[:32]
    chosen = [path for path, _ in network.named_modules() if path.endswith(("gate_proj", "up_proj"))]
    for name, smaller in halved(network, some, nn.CrossEntropyLoss(), keep=asked.keep, within=".mlp."):
        rivals[name] = smaller
        shown.row(name, smaller)
    for name, smaller in torch_pruned(network, some, loss_of, keep=asked.keep, roots=chosen):
        rivals[name] = smaller
        shown.row(name, smaller)
    for name, smaller in rivals.items():
        shown.row(f"{name}, trained", fitted(smaller, batches, loss_of, epochs=0.05, rate=1e-3))
    return shown


if __name__ == "__main__":
    main(sys.argv[1:])
