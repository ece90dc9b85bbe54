"""The corpus as windows of tokens, read from its tables."""

from pathlib import Path

from pruning.data.corpus import END_OF_LINE, HELD_OUT, stretches
from pruning.data.windows import Batches, Windows
from tasks.common.job import Job
from tasks.common.parameters import Unexpected
from tasks.common.tables import read_table
from tasks.common.tokens import read_tokens
from tasks.own import read_own


def read_batches(job: Job, split: str, *, batch: int, bptt: int) -> Batches:
    """Return one split: of the user's own model if there is one, batches as they come; else windows of the corpus."""
    source = job.settings("model")["source"]
    return getattr(read_own(source), split) if source else read_windows(job, split, batch=batch, bptt=bptt)


def read_windows(job: Job, split: str, *, batch: int, bptt: int) -> Windows:
    """Return one split of the job's corpus as windows of `bptt` steps of `batch` columns."""
    tokens = read_tokens(job.input("prepare/corpus"), split)
    return Windows(tokens, first=first_token(job.input("prepare/vocabulary")), batch=batch, bptt=bptt)


def words_of(job: Job, split: str) -> int | None:
    """Return how many words and ends of lines a split has, where its tokens are sub-words; else None."""
    if job.settings("model")["source"]:  # whose tokens, if it has any, are its own
        return None
    vocabulary = read_table(job.input("prepare/vocabulary"))
    if "ends" not in vocabulary:
        return None
    ends, tokens = vocabulary["ends"].to_numpy(), read_tokens(job.input("prepare/corpus"), split)
    return sum(int(ends[tokens[stretch]].sum()) for stretch in stretches(len(tokens)))


def calibration_batches(job: Job) -> Batches:
    """Return the training split as the windows (or a user's batches) that signals are measured on."""
    return read_batches(job, "train", **job.settings("calibration"))


def held_out_batches(job: Job) -> Batches | None:
    """Return the text held out from training, None where there is none.

    It is the split `calibration` of the corpus, or of a model of the user's own.
    """
    source = job.settings("model")["source"]
    if source:
        return read_own(source).calibration
    if not len(read_tokens(job.input("prepare/corpus"), HELD_OUT)):
        return None
    return read_windows(job, HELD_OUT, **job.settings("calibration"))


def labelled_batches(job: Job) -> Batches:
    """Return what signals read that look at labels: text held out from training, else that of `calibration`."""
    held_out = held_out_batches(job)
    return calibration_batches(job) if held_out is None else held_out


def first_token(vocabulary: Path) -> int:
    """Return the number of `<eos>`, which every column starts from.

    Raises:
        Unexpected: If the vocabulary has no `<eos>`.
    """
    frame = read_table(vocabulary)
    numbers = frame.loc[frame["text"] == END_OF_LINE, "token"]
    if len(numbers) != 1:
        raise Unexpected(f"Expected one {END_OF_LINE} in {vocabulary}, got {len(numbers)}.")
    return int(numbers.iloc[0])


def vocabulary_size(job: Job) -> int:
    """Return the number of token types."""
    return len(read_table(job.input("prepare/vocabulary")))
