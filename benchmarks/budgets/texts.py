"""The default run's text as published splits, which the other benchmarks of this folder read.

`python -m benchmarks.budgets.texts --data data --into FOLDER`, after `make run`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from benchmarks import asked
from pruning.data.corpus import END_OF_LINE, SPLITS


def lines_of(data: Path, split: str) -> str:
    """Return a split of the corpus that the stage `prepare` left, each line on its own, unknown words as `<unk>`."""
    corpus = pd.read_parquet(data / "prepare/corpus.parquet", filters=[("split", "==", split)])
    words = pd.read_parquet(data / "prepare/vocabulary.parquet").set_index("token")["text"]
    text = " ".join(corpus.sort_values("position")["token"].map(words))
    lines = text.split(END_OF_LINE)
    return "\n".join(line.strip() for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write one file for each split."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.budgets.texts", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--data", type=asked.results, required=True, help="folder of results of `make run`")
    parser.add_argument("--into", type=asked.folder, required=True, help="folder for the three files")
    given = parser.parse_args(arguments)
    given.into.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        (given.into / f"{split}.txt").write_text(lines_of(given.data, split), encoding="utf-8")


if __name__ == "__main__":
    main()
