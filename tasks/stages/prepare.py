"""The stage `prepare`: which files are the corpus, and what they become."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from pruning.core.tables import empty
from pruning.data.corpus import (
    SPLITS,
    UNKNOWN,
    Fractions,
    assign_documents,
    divide_lines,
    left_out,
    number,
    published_lines,
    published_names,
    raw_lines,
)
from pruning.data.schemas import SUBWORDS, VOCABULARY
from pruning.data.subwords import SUFFIX, Merges, number_subwords
from tasks.common.job import Job
from tasks.common.parameters import Unexpected
from tasks.common.reading import decoded
from tasks.common.tables import write_table
from tasks.common.tokens import Stored, write_tokens
from tasks.common.writing import replacing
from tasks.shown.wording import nearest

Lines = Iterable[list[str]]
MARK = "\ufeff"
"""A byte order mark, once it is read."""


def run(job: Job) -> None:
    """Write the corpus and its vocabulary; empty ones where a model of the user's own brings its data."""
    if job.settings("model")["source"]:
        write_tokens(job.output("corpus"), {})
        write_table(job.output("vocabulary"), empty(VOCABULARY), VOCABULARY)
        job.output("tokenizer").write_text("{}\n", encoding="utf-8")
        return
    settings = job.setting("corpus")
    fractions = Fractions(settings.valid, settings.test, settings.calibration)
    texts = read_texts(Path(settings.source), settings.lowercase, fractions, settings.seed)
    folder = job.output("corpus").parent
    folder.mkdir(parents=True, exist_ok=True)
    keep, merges = partial(Stored, beside=folder), None
    if settings.tokens == "words":
        corpus = number(texts, settings.vocabulary, keep=keep)
    else:
        corpus, subwords = number_subwords(texts, settings.vocabulary, keep=keep)
        merges = subwords.merges
    write_tokens(job.output("corpus"), corpus.tokens)
    write_table(job.output("vocabulary"), corpus.vocabulary, VOCABULARY if merges is None else SUBWORDS)
    tokenizer = _tokenizer(list(corpus.vocabulary["text"]), merges, Path(settings.source), settings.lowercase)
    with replacing(job.output("tokenizer")) as aside:
        aside.write_text(tokenizer + "\n", encoding="utf-8")


def _tokenizer(words: Sequence[str], merges: Merges | None, source: Path, lowercase: bool) -> str:
    """Return what the package `tokenizers`, in any of its languages, reads the text by: JSON.

    Its words are Python's but for letters on which the two do not agree, such as digits that are raised.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers  # for this stage alone

    numbers = {word: number for number, word in enumerate(words)}
    if merges is None:
        tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=UNKNOWN))
    else:
        tokenizer = Tokenizer(models.BPE(numbers, list(merges), unk_token=UNKNOWN, end_of_word_suffix=SUFFIX))
        tokenizer.decoder = decoders.BPEDecoder(suffix=SUFFIX)
    published = source.is_dir() and bool(published_files(source))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit() if published else pre_tokenizers.Whitespace()
    if lowercase and not published:
        tokenizer.normalizer = normalizers.Lowercase()
    return str(tokenizer.to_str(pretty=True))


def check_source(source: Path) -> None:
    """Refuse a source that is neither a text file nor a folder of them.

    Raises:
        Unexpected: With what was expected and what is there.
    """
    if not source.is_dir():
        if not source.is_file():
            beside = [] if os.path.lexists(source) else source.parent.glob("[!.]*")
            hint = nearest(str(source), map(str, beside))
            raise Unexpected(
                f"Expected a folder or a text file at corpus.source, got {str(source)!r}, which {_instead(source)}; "
                f"name one, as seen from the repository's root.{hint}"
            )
        return
    if published_files(source):
        return
    texts = list(source.glob("*.txt"))
    if not texts:
        raise Unexpected(
            f"Expected ptb.{{train,valid,test}}.txt, wiki.{{train,valid,test}}.tokens, {{train,valid,test}}.txt "
            f"or a folder of .txt documents at corpus.source, got {source} with none of them."
        )
    for path in texts:
        if not path.is_file():
            raise Unexpected(f"Expected a text file at {path}, in corpus.source, got one that {_instead(path)}.")


def _instead(path: Path) -> str:
    """Return what is to be said of a path where there is no file."""
    if path.is_dir():
        return "is a folder"
    if path.exists():
        return "is no file but a pipe or a device"
    return "is a link to nothing" if path.is_symlink() else "does not exist"


def read_texts(source: Path, lowercase: bool, fractions: Fractions, seed: int) -> dict[str, Lines]:
    """Return the lines of each split of whatever is at `source`, to be read once, in the order of the splits."""
    check_source(source)
    if files := published_files(source) if source.is_dir() else {}:
        published: dict[str, Lines] = {split: read_published(path) for split, path in files.items()}
        parted = left_out(partial(read_published, files["train"]), fractions)
        return published | {split: lines() for split, lines in parted.items()}
    texts: dict[str, Callable[[], Iterator[str]]]
    if source.is_file():
        divided = divide_lines(range(sum(1 for _ in written([source]))), fractions)
        texts = {split: partial(written, [source], of) for split, of in divided.items()}
    else:
        paths = {path.name: path for path in sorted(source.glob("*.txt"))}
        splits = assign_documents(
            {name: sum(map(len, read_lines(path))) for name, path in paths.items()}, fractions, seed
        )
        texts = {
            split: partial(written, [path for name, path in paths.items() if splits[name] == split]) for split in SPLITS
        }
    return {split: _raw(lines(), lowercase) for split, lines in (texts | left_out(texts["train"], fractions)).items()}


def written(paths: Iterable[Path], of: range | None = None) -> Iterator[str]:
    """Return the lines of files that are not empty, or those in a range of them."""
    lines = (line for path in paths for line in read_lines(path) if line.strip())
    return lines if of is None else islice(lines, of.start, of.stop)


def _raw(lines: Iterable[str], lowercase: bool) -> Iterator[list[str]]:
    return (tokens for line in lines for tokens in raw_lines(line, lowercase=lowercase))


def read_published(path: Path) -> Iterator[list[str]]:
    """Yield the tokens of each line of a file that its publishers have already prepared; empty lines are skipped."""
    for line in read_lines(path):
        yield from published_lines(line)


def published_files(folder: Path) -> dict[str, Path]:
    """Return the files of the three splits, if the folder holds all three under names that publishers use."""
    published = published_names(path.name for path in folder.glob("*") if path.is_file())
    missing = [split for split in SPLITS if split not in published]
    if published and missing:
        raise Unexpected(f"Expected three splits in {folder}, got {sorted(published.values())} without {missing}.")
    return {split: folder / name for split, name in published.items()}


def read_lines(path: Path) -> Iterator[str]:
    """Yield a file's lines, their ends included and as Python ends them.

    Raises:
        Unexpected: If it is not UTF-8, or holds zeros, as UTF-16 does.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file):
                if number == 0 and line.startswith(MARK):
                    decoded(path.read_bytes(), path)
                if "\0" in line:
                    place = path.read_bytes().find(0)
                    raise Unexpected(f"Expected UTF-8 text in {path}, got byte 0x00 at {place}; save it as UTF-8.")
                yield from line.splitlines(keepends=True)
    except UnicodeDecodeError:
        decoded(path.read_bytes(), path)  # which says where
