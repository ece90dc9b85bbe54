"""Text becomes splits of numbered tokens: which files are read, how they are split, and what the vocabulary is.

Text that already stands in training, validation and test files (Penn Treebank, WikiText) was prepared by its
publishers: it is split at white space and otherwise kept as it is. Raw text is split into words and punctuation.
"""

import re
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import pandas as pd

SPLITS = ("train", "valid", "test")
HELD_OUT = "calibration"
"""A further split, if one is asked for: held out from training, for signals that look at labels."""
END_OF_LINE = "<eos>"
UNKNOWN = "<unk>"
NEEDED = (END_OF_LINE, UNKNOWN)
PUBLISHED = ("ptb.{}.txt", "wiki.{}.tokens", "wiki.{}.raw", "{}.txt", "{}.tokens")
"""How publishers name the files of a split; `valid` may also be `validation` or `dev`."""
ALIASES = {"train": ("train",), "valid": ("valid", "validation", "dev"), "test": ("test",)}
WORD = re.compile(r"\w+|[^\w\s]+")
"""Words and runs of punctuation, the pre-tokenisation that `tokenizers` calls Whitespace."""
PLACES = 50
"""Training leaves out text at so many places of it all: labels of one end of a text are not those of the rest."""
Line = TypeVar("Line")
CHUNK = 2**20
"""So many tokens are counted and renumbered together."""


class Numbers(Protocol):
    """Token numbers, int32, that are read and replaced in stretches: an array, or what keeps them in a file."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, stretch: slice, /) -> Any:
        """Return a stretch as an array."""

    def __setitem__(self, stretch: slice, numbers: Any, /) -> None:
        """Replace a stretch."""


class Cut(Protocol):
    """What is cut into stretches of its own kind, such as a list or a range."""

    def __len__(self) -> int:
        """How long it is."""

    def __getitem__(self, stretch: slice, /) -> Self:
        """Return a stretch."""


Text = TypeVar("Text", bound=Cut)
Keep = Callable[[Iterable[np.ndarray]], Numbers]
"""Stretches of numbers, one after the other → all of them, wherever they are kept."""


@dataclass(frozen=True)
class Corpus:
    """Numbered tokens of each split and the vocabulary that numbers them.

    Attributes:
        tokens: Split → token numbers, (length,) int32: an array, or whatever `keep` made.
        vocabulary: Columns `token` (0 … V − 1), `text`, and `count` in the training split, most frequent first.
    """

    tokens: Mapping[str, Numbers]
    vocabulary: pd.DataFrame


class Fractions(NamedTuple):
    """The shares of validation and test text where the text is not yet split, and what training leaves out.

    Attributes:
        valid: Of all text.
        test: Of all text.
        calibration: Of the training text, also where the text is split already: held out for signals with labels.
    """

    valid: float
    test: float
    calibration: float = 0.0

    def held_out(self, lines: int) -> int:
        """Return how many of so many training lines training leaves out: some, if any are asked for, never all."""
        return min(max(1, round(self.calibration * lines)), max(0, lines - 1)) if self.calibration else 0


def held(stretches: Iterable[np.ndarray]) -> np.ndarray:
    """Return stretches of numbers as one array in memory, (length,) int32."""
    stream = array("i")
    for stretch in stretches:
        stream.frombytes(stretch.astype(np.int32, copy=False).tobytes())
    return np.frombuffer(stream, dtype=np.int32)


def number(texts: Mapping[str, Iterable[Sequence[str]]], vocabulary_size: int, *, keep: Keep = held) -> Corpus:
    """Return a corpus with the `vocabulary_size` most frequent training tokens; the others become `<unk>`.

    `<eos>` and `<unk>` count towards the size. Ties in frequency are broken by spelling, so that the numbering does
    not depend on the order of reading. Lines are read once, split after split: what is held is four bytes a token and
    every type once, so the lines may come from a generator; where `keep` puts the tokens into a file, the types alone.

    Args:
        texts: Split → lines, each a sequence of tokens.
        vocabulary_size: The largest number of token types, V ≥ 3.
        keep: Where the tokens are kept.

    Raises:
        ValueError: If a split has no token or the size leaves room for no word.
    """
    if vocabulary_size < 3:
        raise ValueError(f"Expected a vocabulary of at least 3 types (<eos>, <unk> and a word), got {vocabulary_size}.")
    tokens, types, counts = counted(texts, keep)
    read = np.flatnonzero(counts)
    words = np.array(types, dtype=object)
    vocabulary = _vocabulary(pd.Series(counts[read], index=words[read]), vocabulary_size)
    final = dict(zip(vocabulary["text"], vocabulary["token"].tolist(), strict=True))
    numbers = np.array([final.get(word, final[UNKNOWN]) for word in types], dtype=np.int32)
    for stream in tokens.values():
        for stretch in stretches(len(stream)):
            stream[stretch] = numbers[stream[stretch]]
    return Corpus(tokens, vocabulary)


def counted(
    texts: Mapping[str, Iterable[Sequence[str]]], keep: Keep
) -> tuple[dict[str, Numbers], list[str], np.ndarray]:
    """Return each split's words by order of appearance, the words in that order, and how often each is trained on.

    Raises:
        ValueError: If a split has no token.
    """
    types: defaultdict[str, int] = defaultdict()
    types.default_factory = types.__len__  # a new type gets the next number
    tokens = {}
    for split, lines in texts.items():
        tokens[split] = keep(_streamed(lines, types))
        if len(tokens[split]) == 0:
            raise ValueError(f"Expected text in the {split} split, got none; give more of it, in more lines.")
    counts = np.zeros(len(types), dtype=np.int64)
    for stretch in stretches(len(tokens["train"])):
        counts += np.bincount(tokens["train"][stretch], minlength=len(types))
    return tokens, list(types), counts


def published_names(names: Iterable[str]) -> dict[str, str]:
    """Return split → the name among `names` that holds it, of the first of `PUBLISHED` that any of them follows.

    >>> published_names(["README", "ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"])
    {'train': 'ptb.train.txt', 'valid': 'ptb.valid.txt', 'test': 'ptb.test.txt'}
    """
    known = set(names)
    for pattern in PUBLISHED:
        found = {
            split: pattern.format(alias)
            for split in SPLITS
            for alias in reversed(ALIASES[split])
            if pattern.format(alias) in known
        }
        if found:
            return found
    return {}


def numbered(lines: Iterable[Sequence[str]], vocabulary: Mapping[str, int]) -> np.ndarray:
    """Return the token numbers of lines, each ended by `<eos>`; words without a number become `<unk>`.

    >>> numbered([["a", "b"]], {"<eos>": 0, "<unk>": 1, "a": 2}).tolist()
    [2, 1, 0]
    """
    words = (word for line in lines for word in (*line, END_OF_LINE))
    return np.fromiter((vocabulary[word if word in vocabulary else UNKNOWN] for word in words), dtype=np.int64)


def published_lines(text: str) -> list[list[str]]:
    """Return the tokens of each line of text that its publishers have already prepared; empty lines are skipped."""
    return [tokens for line in text.splitlines() if (tokens := line.split())]


def raw_lines(text: str, *, lowercase: bool) -> list[list[str]]:
    """Return the words and punctuation of each line of raw text; empty lines are skipped.

    >>> raw_lines("It's late.", lowercase=True)
    [['it', "'", 's', 'late', '.']]
    """
    cased = text.lower() if lowercase else text
    return [tokens for line in cased.splitlines() if (tokens := WORD.findall(line))]


def assign_documents(lengths: Mapping[str, int], fractions: Fractions, seed: int) -> dict[str, str]:
    """Return the split of each document: whole documents, in random order, until each split has its share of text.

    Args:
        lengths: Document name → its size, in any unit.
        fractions: Shares of validation and test text.
        seed: Decides the order.

    Raises:
        ValueError: If there are fewer than three documents.
    """
    if len(lengths) < len(SPLITS):
        raise ValueError(f"Expected at least {len(SPLITS)} documents, got {len(lengths)}.")
    names = sorted(lengths)
    order = [names[index] for index in np.random.default_rng(seed).permutation(len(names))]
    total = sum(lengths.values())
    splits = dict(zip(order, ("valid", "test", "train"), strict=False))  # no split stays empty, however few there are
    filled = {split: lengths[name] for name, split in splits.items()}
    for name in order[len(SPLITS) :]:
        short = [s for s in ("valid", "test") if filled[s] + lengths[name] <= getattr(fractions, s) * total]
        splits[name] = short[0] if short else "train"
        if short:
            filled[short[0]] += lengths[name]
    return splits


def divide_lines(lines: Text, fractions: Fractions) -> dict[str, Text]:
    """Return one text cut into its beginning for training, then validation, then test.

    >>> divide_lines(range(10), Fractions(0.2, 0.2))
    {'train': range(0, 6), 'valid': range(6, 8), 'test': range(8, 10)}
    """
    first = round(len(lines) * (1 - fractions.valid - fractions.test))
    second = round(len(lines) * (1 - fractions.test))
    return {"train": lines[:first], "valid": lines[first:second], "test": lines[second:]}


def left_out(training: Callable[[], Iterable[Line]], fractions: Fractions) -> dict[str, Callable[[], Iterator[Line]]]:
    """Return what opens the lines of a training text, and apart from them those that training leaves out, if any.

    These are the end of each of `PLACES` runs of lines, or of as many as lines are left out, so that they are of all
    documents, times and topics that the text goes through.

    >>> {split: [*lines()] for split, lines in left_out(lambda: "abcdefgh", Fractions(0.1, 0.1, 0.25)).items()}
    {'train': ['a', 'b', 'c', 'e', 'f', 'g'], 'calibration': ['d', 'h']}

    Args:
        training: Opens the text anew.
        fractions: `calibration` is left out, but for as many lines as there are places at most.
    """
    count = sum(1 for _ in training()) if fractions.calibration else 0
    if not (held_out := fractions.held_out(count)):
        return {"train": lambda: iter(training())}
    places = min(PLACES, held_out)

    def of(apart: bool) -> Callable[[], Iterator[Line]]:
        return lambda: (
            line for place, line in enumerate(training()) if (places * place % count >= count - held_out) is apart
        )

    return {"train": of(False), HELD_OUT: of(True)}


def stretches(length: int) -> Iterator[slice]:
    """Yield consecutive stretches of so many tokens, so that what is computed of one needs little memory."""
    return (slice(start, min(start + CHUNK, length)) for start in range(0, length, CHUNK))


def _streamed(lines: Iterable[Sequence[str]], types: defaultdict[str, int]) -> Iterator[np.ndarray]:
    """Yield the lines as one run of numbers by order of appearance, each line ended by `<eos>`, in stretches."""
    stream = array("i")
    for line in lines:
        stream.extend([types[token] for token in line])
        stream.append(types[END_OF_LINE])
        if len(stream) >= CHUNK:
            yield np.frombuffer(stream, dtype=np.int32)
            stream = array("i")
    if stream:
        yield np.frombuffer(stream, dtype=np.int32)


def _vocabulary(counts: pd.Series, size: int) -> pd.DataFrame:
    """Return the most frequent of the counted tokens, `<eos>` and `<unk>` always among them."""
    total = counts.sum()
    for needed in NEEDED:
        counts[needed] = counts.get(needed, 0)
    frame = counts.rename_axis("text").rename("count").reset_index().sort_values("text")
    by_count = frame.sort_values("count", ascending=False, kind="stable")
    special = by_count["text"].isin(NEEDED)
    kept = pd.concat([by_count[special], by_count[~special].head(size - len(NEEDED))])
    kept.loc[kept["text"] == UNKNOWN, "count"] += total - kept["count"].sum()  # it stands for all that are left
    ordered = kept.sort_values(["count", "text"], ascending=[False, True], ignore_index=True)
    return ordered.assign(token=np.arange(len(ordered), dtype=np.int32))[["token", "text", "count"]]
