"""How plain text becomes a model's tokens, and tokens become text again: as `prepare` read it, or as an export says."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruning.data.corpus import END_OF_LINE, NEEDED, UNKNOWN, WORD, numbered
from pruning.data.subwords import SUFFIX, Merges, Subwords, ends_word
from tasks.common.job import Job
from tasks.common.parameters import Unexpected
from tasks.common.tables import read_table
from tasks.common.writing import read_json
from tasks.stages.prepare import check_source, published_files

VOCABULARY, REPORT, TOKENIZER = "vocabulary.txt", "export.json", "tokenizer.json"
SPACES = r"\S+"
"""Text that its publishers have prepared: what stands between white space is a token."""
BREAKS = re.compile("[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")
"""What Python ends a line at."""
RULE = (
    "Put the text into lower case if `lowercase` says so. In each line that is not empty, every match of the regular "
    "expression `pattern` (as Python's re.findall has them) is a word. Its token is the number of its line in "
    f"{VOCABULARY}, from 0, or `unknown` where it has none. The token `first` is read before the text and after each "
    "line."
)
"""How another program reads text, with what `Reading.described` says."""
SUBWORD_RULE = (
    "Put the text into lower case if `lowercase` says so. In each line that is not empty, every match of the regular "
    "expression `pattern` (as Python's re.findall has them) is a word. Its letters are parts, the last one with "
    f"{SUFFIX} behind it, and the pairs of `merges`, first to last, are joined wherever they stand side by side (byte "
    f"pair encoding). A part's token is the number of its line in {VOCABULARY}, from 0; a word with a letter that has "
    "none is the one token `unknown`. The token `first` is read before the text and after each line."
)
"""Likewise, where tokens are sub-words."""
JOINED = ((r"(\w) (['’-]) (?=\w)", r"\1\2"), (r" ([.,;:!?%)\]…]+)", r"\1"), (r"([(\[]) ", r"\1"), (r" ?\n ?", "\n"))
"""How marks stand beside words, as substitutions."""


@dataclass(frozen=True)
class Reading:
    """Every match of a pattern in a line is a word, and `<eos>` follows each line; empty lines are skipped.

    Attributes:
        pattern: A regular expression.
        lowercase: Whether the text is put into lower case before.
        words: The text of each token, in the order of their numbers.
        merges: Where tokens are sub-words, what is joined to them; None where each word is one token.
    """

    pattern: str
    lowercase: bool
    words: Sequence[str]
    merges: Merges | None = None

    def __post_init__(self) -> None:
        """Refuse words without `<eos>` and `<unk>`, or with one twice."""
        if not {END_OF_LINE, UNKNOWN} <= set(self.words) or len(set(self.words)) < len(self.words):
            raise ValueError(f"Expected different words, {END_OF_LINE} and {UNKNOWN} among them")

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each token, by its text."""
        return {word: number for number, word in enumerate(self.words)}

    def split(self, text: str) -> list[list[str]]:
        """Return the words of each line.

        >>> Reading(WORD.pattern, True, ["<eos>", "<unk>"]).split("It's late.")
        [['it', "'", 's', 'late', '.']]
        """
        cased = text.lower() if self.lowercase else text
        return [words for line in cased.splitlines() if (words := re.findall(self.pattern, line))]

    @cached_property
    def subwords(self) -> Subwords | None:
        """How a word is split, where tokens are sub-words."""
        return None if self.merges is None else Subwords(self.numbers, self.merges)

    def tokens(self, lines: Iterable[Sequence[str]]) -> Tensor:
        """Return the numbers of the words, or of their sub-words, (n,), `<eos>` after each line."""
        if self.subwords is None:
            return torch.from_numpy(numbered(lines, self.numbers))
        pieces = cache(self.subwords.pieces)
        spelled = ([piece for word in line for piece in pieces(word)] for line in lines)
        return torch.from_numpy(numbered(spelled, self.numbers))

    def words_in(self, tokens: Tensor) -> int:
        """Return how many words, and ends of lines, tokens spell."""
        if self.subwords is None:
            return len(tokens)
        ends = torch.tensor([ends_word(text) for text in self.words])
        return int(ends[tokens].sum())

    def unknown(self, lines: Iterable[Sequence[str]]) -> Counter[str]:
        """Return the words that are read as `<unk>`, and how often each stands there."""
        if self.subwords is not None:
            pieces = self.subwords.pieces
            return Counter(word for line in lines for word in line if pieces(word) == [UNKNOWN])
        known = set(self.words)
        return Counter(word for line in lines for word in line if word not in known)

    def written(self, tokens: Iterable[int]) -> str:
        r"""Return tokens as text: marks beside their words, and a new line after `<eos>`.

        >>> Reading(WORD.pattern, True, ["<eos>", "<unk>", "it", "'", "s", "."]).written([2, 3, 4, 5, 0, 2])
        "it's.\nit"
        """
        words = [self.words[token] for token in tokens]
        if self.subwords is not None:
            words = "".join(f"{word} " if word in NEEDED else word for word in words).replace(SUFFIX, " ").split(" ")
        text = " ".join("\n" if word == END_OF_LINE else word for word in words)
        for pattern, replacement in JOINED:
            text = re.sub(pattern, replacement, text)
        return text

    def described(self) -> dict[str, Any]:
        """Return what another program needs to read text alike, `vocabulary.txt` beside it."""
        numbers = self.numbers
        return {
            "lowercase": self.lowercase,
            "pattern": self.pattern,
            "first": numbers[END_OF_LINE],
            "unknown": numbers[UNKNOWN],
            "rule": RULE if self.merges is None else SUBWORD_RULE,
            **({} if self.merges is None else {"merges": [" ".join(pair) for pair in self.merges]}),
        }


def read_reading(job: Job) -> Reading:
    """Return how the stage `prepare` read the job's corpus, whose words have the vocabulary's numbers.

    Raises:
        Unexpected: If the corpus is not there any more.
    """
    source = Path(job.parameters.corpus.source)
    check_source(source)
    published = source.is_dir() and bool(published_files(source))
    pattern, lowercase = (SPACES, False) if published else (WORD.pattern, job.parameters.corpus.lowercase)
    vocabulary, merges = job.input("prepare/vocabulary"), None
    if job.parameters.corpus.tokens == "subwords":
        merges = _merges(vocabulary.with_name(TOKENIZER))
    return _reading(pattern, lowercase, list(read_table(vocabulary)["text"]), merges, "the vocabulary")


def _merges(path: Path) -> Merges:
    """Return the merges of a file of `tokenizers`."""
    try:
        return [(left, right) for left, right in read_json(path)["model"]["merges"]]
    except (LookupError, TypeError, ValueError):
        raise Unexpected(f"Expected merges of sub-words in {path}, got none; run `dvc repro`.") from None


def read_exported(folder: Path) -> Reading:
    """Return how an exported model reads text, which its folder says.

    Raises:
        Unexpected: If it does not.
    """
    report = read_json(folder / REPORT)
    try:
        how, lines = report["text"], (folder / VOCABULARY).read_text(encoding="utf-8").split("\n")
        pattern, lowercase = str(how["pattern"]), bool(how["lowercase"])
        pairs = [str(pair).split(" ") for pair in how["merges"]] if "merges" in how else None
        merges = None if pairs is None else [(left, right) for left, right in pairs]
    except (LookupError, TypeError, OSError, ValueError):
        raise Unexpected(f"Expected how text is read in {folder}, got a folder without it; export it anew.") from None
    return _reading(pattern, lowercase, [line.replace("\\n", "\n") for line in lines], merges, str(folder))


def _reading(pattern: str, lowercase: bool, words: Sequence[str], merges: Merges | None, place: str) -> Reading:
    try:
        return Reading(pattern, lowercase, words, merges)
    except ValueError as error:
        raise Unexpected(f"{error} in {place}, got others.") from None


def vocabulary_lines(words: Sequence[str]) -> str:
    r"""Return one line for each word, no line break behind the last; a break within a word stands as `\n`.

    Raises:
        Unexpected: If two words would stand alike.
    """
    lines = [BREAKS.sub(r"\\n", word) for word in words]
    if len(set(lines)) < len(lines):
        twice = next(line for line, count in Counter(lines).items() if count > 1)
        raise Unexpected(f"Expected tokens that differ in more than their line breaks, got two for {twice!r}.")
    return "\n".join(lines)
