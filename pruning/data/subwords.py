"""Sub-words (byte pair encoding, Sennrich et al. 2016): words as a few types that together spell every word.

Lines are split into words as they are otherwise, and each word by `tokenizers`, which learns the merges.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from pruning.data.corpus import NEEDED, UNKNOWN, Corpus, Keep, Numbers, counted, held, stretches
from pruning.extras import needed

SUFFIX = "</w>"
"""What the last sub-word of a word ends with."""
REPEATED = 2**16
"""Words that the trainer is given as one text; a word counts as often as it stands there."""

Merges = Sequence[tuple[str, str]]
"""What is joined, the first merge first."""


@dataclass(frozen=True)
class Subwords:
    """How a word is split.

    Attributes:
        numbers: The number of each type.
        merges: What is joined.
    """

    numbers: Mapping[str, int]
    merges: Merges

    @cached_property
    def model(self) -> Any:
        """The model of `tokenizers`."""
        bpe = needed("tokenizers.models", "pipeline").BPE
        return bpe(dict(self.numbers), list(self.merges), unk_token=UNKNOWN, end_of_word_suffix=SUFFIX)

    def pieces(self, word: str) -> list[str]:
        """Return the sub-words of a word, the last one marked; `<unk>` of a word with a letter that is not known."""
        if word in NEEDED:
            return [word]
        pieces = [token.value for token in self.model.tokenize(word)]
        return [UNKNOWN] if UNKNOWN in pieces else pieces


def number_subwords(
    texts: Mapping[str, Iterable[Sequence[str]]], vocabulary_size: int, *, keep: Keep = held
) -> tuple[Corpus, Subwords]:
    """Return a corpus of sub-words and how words are split: merges of the pairs most frequent in training words.

    `<eos>` and `<unk>` count towards the size, and so do the letters of the training text, each also as a word's last.
    The same text gives the same numbers: most frequent first, ties by spelling. Lines are read once, as by `number`.

    >>> corpus, subwords = number_subwords(dict.fromkeys(("train", "valid", "test"), [["low", "low", "lower"]]), 12)
    >>> subwords.pieces("low"), subwords.pieces("slow")
    (['low</w>'], ['<unk>'])

    Args:
        texts: Split → lines, each a sequence of words.
        vocabulary_size: The largest number of types.
        keep: Where the tokens are kept.

    Raises:
        ValueError: If a split has no token or the size leaves no room for the letters.
        ModuleNotFoundError: Without the package `tokenizers`.
    """
    words, types, counts = counted(texts, keep)
    vocabulary, merges = _learned({w: n for w, n in zip(types, counts.tolist(), strict=True) if n}, vocabulary_size)
    places = {text: number for number, text in enumerate(vocabulary)}
    subwords = Subwords(places, merges)
    pieces = [[places[piece] for piece in subwords.pieces(word)] for word in types]
    lengths = np.array([len(each) for each in pieces])
    flat = np.array([number for each in pieces for number in each], dtype=np.int32)
    totals = np.bincount(flat, weights=np.repeat(counts, lengths), minlength=len(vocabulary)).astype(np.int64)
    frame = pd.DataFrame({"text": vocabulary, "count": totals, "before": np.arange(len(vocabulary))})
    frame = frame.sort_values(["count", "text"], ascending=[False, True], ignore_index=True)
    final = np.empty(len(frame), dtype=np.int32)
    final[frame["before"].to_numpy()] = np.arange(len(frame), dtype=np.int32)
    tokens = {split: keep(_spelled(stream, final[flat], lengths)) for split, stream in words.items()}
    ends = [ends_word(text) for text in frame["text"]]
    numbered = frame.assign(token=np.arange(len(frame), dtype=np.int32), ends=ends)
    numbers = dict(zip(numbered["text"], numbered["token"].tolist(), strict=True))
    return Corpus(tokens, numbered[["token", "text", "count", "ends"]]), Subwords(numbers, merges)


def ends_word(text: str) -> bool:
    """Return whether a type is the last of a word, or stands for one: as many of these as there are words and lines."""
    return text.endswith(SUFFIX) or text in NEEDED


def _learned(counts: Mapping[str, int], size: int) -> tuple[list[str], Merges]:
    """Return the types in a fixed order, and the merges from the first to the last."""
    words = {word: count for word, count in sorted(counts.items()) if word not in NEEDED}
    # The trainer numbers a word's last letters as it meets them, in an order that differs from run to run, and breaks
    # ties by number: as special types they have theirs before.
    fixed = [*NEEDED, *sorted({word[-1] + SUFFIX for word in words})]
    letters = {letter for word in words for letter in word}
    if len(fixed) + len(letters) > size:
        raise ValueError(
            f"Expected a vocabulary of at least {len(fixed) + len(letters)} types, for the letters of the text, "
            f"got {size}."
        )
    tokenizers = needed("tokenizers", "pipeline")
    trainer = needed("tokenizers.trainers", "pipeline").BpeTrainer(
        vocab_size=size, special_tokens=fixed, end_of_word_suffix=SUFFIX, show_progress=False
    )
    learner = tokenizers.Tokenizer(needed("tokenizers.models", "pipeline").BPE(end_of_word_suffix=SUFFIX))
    learner.pre_tokenizer = needed("tokenizers.pre_tokenizers", "pipeline").WhitespaceSplit()
    learner.train_from_iterator(_repeated(words), trainer)
    numbers = learner.get_vocab(with_added_tokens=False)
    merges = json.loads(learner.to_str())["model"]["merges"]
    return sorted(numbers, key=numbers.__getitem__), [(left, right) for left, right in merges]


def _repeated(words: Mapping[str, int]) -> Iterator[str]:
    """Yield texts in which each word stands as often as it is counted."""
    text: list[str] = []
    for word, count in words.items():
        for start in range(0, count, REPEATED):
            text += [word] * min(REPEATED, count - start)
            if len(text) >= REPEATED:
                yield " ".join(text)
                text = []
    yield " ".join(text)


def _spelled(words: Numbers, flat: np.ndarray, lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Yield a stream of words as one of their sub-words, in stretches.

    Args:
        words: Numbers of words.
        flat: The sub-words of all words, one word after the other.
        lengths: How many each word has.
    """
    starts = np.cumsum(lengths) - lengths
    for stretch in stretches(len(words)):
        some = words[stretch]
        many = lengths[some]
        before = np.cumsum(many) - many
        yield flat[np.repeat(starts[some] - before, many) + np.arange(many.sum())]
