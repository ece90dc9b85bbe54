"""`python -m tasks perplexity <variant> FILE`: what a model makes of a text of yours, as the evaluation would."""

import math
from collections.abc import Sequence
from pathlib import Path

from pruning.data.corpus import UNKNOWN
from pruning.data.windows import Windows
from pruning.evaluation.measures import loss_of
from tasks.commands.using import add_model, used
from tasks.common.parameters import Unexpected
from tasks.shown.asking import Answer, Words
from tasks.stages.prepare import read_lines


def run(words: Sequence[str]) -> Answer:
    """Return a text file's perplexity, in the columns and windows of the section `evaluate`.

    Raises:
        Unexpected: As `used`, and if there is no such file, or no text in it.
    """
    parser = Words("perplexity")
    add_model(parser)
    parser.add_argument("file", type=Path, help="a text file, UTF-8")
    given = parser.read(words)
    it = used(given)
    if not given.file.is_file():
        raise Unexpected(f"Expected a text file at {given.file}, got {'a folder' if given.file.is_dir() else 'none'}.")
    tokens = it.reading.tokens(words for line in read_lines(given.file) for words in it.reading.split(line))
    if not len(tokens):
        raise Unexpected(f"Expected text in {given.file}, got none.")
    settings = it.job.settings("evaluate")
    batch = min(settings["batch"], len(tokens))
    windows = Windows(tokens, first=it.first, batch=batch, bptt=settings["bptt"])
    loss = loss_of(it.model, windows, track=it.job.track, what=str(given.file))
    unknown = int((tokens == it.reading.numbers[UNKNOWN]).sum())
    words_read = it.reading.words_in(tokens)
    values = {
        "model": it.name,
        "file": str(given.file),
        "perplexity": loss.perplexity,
        "loss": loss.mean,
        "accuracy": loss.accuracy,
        "tokens": loss.tokens,
        "unknown": unknown,
        "words": words_read,
        "word_perplexity": math.exp(min(loss.mean * loss.tokens / words_read, 700.0)),
    }
    said = f"{given.file}: perplexity {loss.perplexity:.2f} ({loss.mean:.4f} nat a token) by {it.name}"
    counted = f"{loss.tokens:,} tokens, of which {unknown / loss.tokens:.1%} are <unk>"
    if it.reading.subwords is not None:
        counted += f"; {words_read:,} words and line ends: perplexity {values['word_perplexity']:.2f} for each of them"
    return Answer(values, [said, counted])
