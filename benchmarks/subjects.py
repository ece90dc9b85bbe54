"""Dense models whose neurons are removed one by one for `benchmarks.precision`, measured piece by piece.

`python -m benchmarks.subjects --into FOLDER --checkpoint FILE --corpus FOLDER` for a published checkpoint, `--data
FOLDER` for a default run, `--train KIND-WIDTH-SEED --corpus FOLDER` for a small model of a family that
`benchmarks.dense_models` trains. The test text judges, the validation text has the labels. With `--only judged-0
labelled` some pieces alone are measured; several such processes may run side by side.
"""

import argparse
from pathlib import Path

import torch

from benchmarks import asked
from benchmarks.removals import Subject, kept, measure
from pruning.data.corpus import END_OF_LINE

WHOLE, BETWEEN = "whole", "between"
"""Where documents are dealt: labels of few whole documents, and labels of text between what was trained on."""
TRAINING = 420_000
"""Tokens of the training text that signals may read: two calibrations of 200,000."""


def published(checkpoint: Path, corpus: Path) -> Subject:
    """Return a published checkpoint with the splits that it was trained, chosen and judged on."""
    from tasks.experiment.published import read_checkpoint, read_splits, read_vocabulary  # a machine may lack YAML

    vocabulary = read_vocabulary(checkpoint)
    splits = read_splits(corpus, vocabulary)
    texts = {"train": splits["train"][:TRAINING], "labelled": splits["valid"], "judged": splits["test"]}
    return Subject(read_checkpoint(checkpoint), texts, vocabulary[END_OF_LINE])


def default_run(data: Path) -> Subject:
    """Return the dense model of a run of the pipeline, with its splits."""
    from tasks.common.models import read_language_model
    from tasks.common.tables import read_table
    from tasks.common.windows import first_token

    corpus = read_table(data / "prepare" / "corpus.parquet")
    splits = {
        str(name): torch.tensor(rows["token"].to_numpy(), dtype=torch.long)
        for name, rows in corpus.groupby("split", observed=True)
    }
    texts = {"train": splits["train"][:TRAINING], "labelled": splits["valid"], "judged": splits["test"]}
    return Subject(
        read_language_model(data / "train" / "model"), texts, first_token(data / "prepare" / "vocabulary.parquet")
    )


def small(name: str, corpus: Path, dealt: bool = False) -> Subject:
    """Return a small model of a family after one reading of a part of a corpus; `name` is its kind, width and seed.

    With documents dealt by the seed, labels and truth are of many places of many documents each. Beside those labels
    stand as many of few of these documents, whole, and of text between what was trained on.
    """
    from benchmarks.dense_models import JUDGES, LABELS, read_corpus, spread, trained

    kind, width, seed = name.split("-")
    texts = read_corpus(corpus, int(seed) if dealt else None)
    splits = {"train": texts.training, "labelled": texts.valid, "judged": texts.test}
    if dealt:
        splits |= {"labelled": spread(texts.valid, LABELS), "judged": spread(texts.test, JUDGES)}
        splits |= {WHOLE: texts.valid[:LABELS], BETWEEN: texts.held_out}
    return Subject(trained(kind, int(width), texts, int(seed)), splits, texts.first)


def main() -> None:
    """Measure what a folder lacks."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.subjects", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--into", type=asked.folder, required=True, help="the folder of this dense model")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", type=asked.checkpoint, help="a dense model, its vocabulary beside it")
    source.add_argument("--data", type=asked.results, help="the data of a run of the pipeline")
    source.add_argument("--train", metavar="KIND-WIDTH-SEED", help="a small model to train, such as gru-96-1")
    parser.add_argument("--corpus", type=asked.there, help="published splits, or any text for --train")
    parser.add_argument("--only", nargs="*", default=[], help="texts, pieces, `signals` or `criteria`")
    parser.add_argument("--device", type=asked.device, default="cpu", help="where signals are measured")
    given = parser.parse_args()
    torch.set_flush_denormal(True)

    def made() -> Subject:
        if given.checkpoint:
            return published(given.checkpoint, given.corpus)
        if given.data:
            return default_run(given.data)
        if given.train:
            return small(given.train, given.corpus)
        raise SystemExit(f"Expected a dense model in {given.into}, or what it comes from; got neither.")

    measure(given.into, kept(given.into, given.device, made), given.only)


if __name__ == "__main__":
    main()
