"""The stage `prepare`: which files are the corpus, and what they become."""

import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pruning.data.corpus import (
    SPLITS,
    Corpus,
    Fractions,
    assign_documents,
    divide_lines,
    number,
    published_lines,
    published_names,
    raw_lines,
)
from tasks.common.job import Job
from tasks.common.parameters import Unexpected
from tasks.common.reading import decoded
from tasks.common.tables import write_table

Lines = Sequence[Sequence[str]]


def run(job: Job) -> None:
    """Write the corpus and its vocabulary."""
    settings = job.parameters.corpus
    texts = read_texts(
        Path(settings.source), settings.lowercase, Fractions(settings.valid, settings.test), settings.seed
    )
    corpus = number(texts, settings.vocabulary)
    write_table(job.output("corpus"), _corpus_table(corpus))
    write_table(job.output("vocabulary"), corpus.vocabulary)


def check_source(source: Path) -> None:
    """Refuse a source that is neither a text file nor a folder of them.

    Raises:
        Unexpected: With what was expected and what is there.
    """
    if not source.is_dir():
        if not source.is_file():
            raise Unexpected(
                f"Expected a folder or a text file at corpus.source, got {str(source)!r}, which {_instead(source)}."
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
    """Return the lines of each split of whatever is at `source`."""
    check_source(source)
    if source.is_file():
        return dict(divide_lines(raw_lines(read_text(source), lowercase=lowercase), fractions))
    if files := published_files(source):
        return {split: published_lines(read_text(path)) for split, path in files.items()}
    texts = {path.name: read_text(path) for path in sorted(source.glob("*.txt"))}
    splits = assign_documents({name: len(text) for name, text in texts.items()}, fractions, seed)
    return {
        split: [line for name in texts if splits[name] == split for line in raw_lines(texts[name], lowercase=lowercase)]
        for split in SPLITS
    }


def published_files(folder: Path) -> dict[str, Path]:
    """Return the files of the three splits, if the folder holds all three under names that publishers use."""
    found = published_names(path.name for path in folder.glob("*") if path.is_file())
    missing = [split for split in SPLITS if split not in found]
    if found and missing:
        raise Unexpected(f"Expected three splits in {folder}, got {sorted(found.values())} without {missing}.")
    return {split: folder / name for split, name in found.items()}


def read_text(path: Path) -> str:
    """Return a file's text, its lines ended as Python ends them.

    Raises:
        Unexpected: If it is not UTF-8.
    """
    return io.StringIO(decoded(path.read_bytes(), path), newline=None).read()


def _corpus_table(corpus: Corpus) -> pd.DataFrame:
    """Return all splits as one table, a row a token."""
    parts = [
        pd.DataFrame({"split": split, "position": range(len(tokens)), "token": tokens})
        for split, tokens in corpus.tokens.items()
    ]
    return pd.concat(parts, ignore_index=True)
