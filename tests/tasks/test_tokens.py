"""The table of the corpus: written and read in stretches, one split at a time, and the text before it line by line."""

import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pruning.data import corpus as corpus_module
from pruning.data.corpus import SPLITS, Fractions, number
from pruning.data.schemas import CORPUS
from tasks.common import tables
from tasks.common import tokens as stretches
from tasks.common.parameters import Unexpected
from tasks.common.tables import read_table, write_table
from tasks.common.tokens import read_tokens, write_tokens
from tasks.stages.prepare import read_texts

TOKENS = {
    split: np.random.default_rng(index).integers(0, 50, 25 + 10 * index).astype(np.int32)
    for index, split in enumerate(SPLITS)
}


def frame():
    parts = [pd.DataFrame({"split": s, "position": range(len(t)), "token": t}) for s, t in TOKENS.items()]
    return pd.concat(parts, ignore_index=True)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "corpus.parquet"


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_what_is_written_in_stretches_is_the_whole_table(monkeypatch, place, rows):
    monkeypatch.setattr(stretches, "ROWS", rows)
    write_tokens(place, TOKENS)
    expected = frame().sort_values(["split", "position"], ignore_index=True)
    pd.testing.assert_frame_equal(read_table(place), expected, check_dtype=False)
    for split, tokens in TOKENS.items():
        found = read_tokens(place, split)
        assert found.dtype == np.int32
        assert found.tolist() == tokens.tolist()


def test_tokens_of_a_table_written_whole_are_read_too(place):
    write_table(place, frame(), CORPUS)
    assert all(read_tokens(place, split).tolist() == tokens.tolist() for split, tokens in TOKENS.items())
    assert len(read_tokens(place, "other")) == 0


def test_of_other_splits_nothing_is_read(monkeypatch, place):
    monkeypatch.setattr(stretches, "ROWS", 10)
    write_tokens(place, TOKENS)
    groups, read = [], pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, index, **how: groups.append(index) or read(self, index, **how)
    )
    read_tokens(place, "train")
    assert groups == [5, 6, 7]  # after five of the 45 test tokens


def test_equal_tokens_become_equal_bytes_and_splits_and_positions_cost_next_to_nothing(tmp_path):
    tokens = {"train": np.random.default_rng(0).integers(0, 256, 100_000).astype(np.int32)}
    for folder in ("one", "other"):
        write_tokens(tmp_path / folder / "corpus.parquet", tokens)
    one, other = ((tmp_path / folder / "corpus.parquet").read_bytes() for folder in ("one", "other"))
    assert one == other
    assert len(one) < 100_000 * 1.06


@pytest.mark.parametrize("positions", [[0, 2, 3], [0, 0, 1], [1, 0, 2]])
def test_a_split_with_a_position_missing_or_twice_is_refused(monkeypatch, place, positions):
    rows = pd.DataFrame({"split": "train", "position": positions, "token": [1, 2, 3]})
    monkeypatch.setattr(tables, "table", lambda _, frame: frame)
    write_table(place, rows, CORPUS)
    with pytest.raises(Unexpected, match="Expected each position of the train split once in"):
        read_tokens(place, "train")


def test_tokens_that_are_not_there_or_damaged_are_refused_by_name(place):
    with pytest.raises(Unexpected, match=r"Expected the table .*corpus\.parquet, got no such file"):
        read_tokens(place, "train")
    write_tokens(place, TOKENS)
    vocabulary = place.with_name("vocabulary.parquet")
    place.rename(vocabulary)
    with pytest.raises(Unexpected, match=r"Expected the table 'vocabulary' in .*, got 'corpus'\."):
        read_tokens(vocabulary, "train")
    content = vocabulary.read_bytes()
    place.write_bytes(content[: len(content) // 2])
    with pytest.raises(Unexpected, match=r"Expected a Parquet file at .*corpus\.parquet, got a damaged one"):
        read_tokens(place, "train")


@pytest.mark.parametrize("form", ["book", "documents", "splits"])
def test_text_is_never_held_whole(monkeypatch, tmp_path, form):
    line = "It is late, she said once more.\n"
    if form == "book":
        source, sizes = tmp_path / "book.txt", {"book": 40_000}
    else:
        source, sizes = tmp_path, dict.fromkeys(SPLITS if form == "splits" else "abcd", 10_000)
    for name, size in sizes.items():
        (tmp_path / f"{name}.txt").write_text(line * size, encoding="utf-8")
    text = len(line) * sum(sizes.values())
    monkeypatch.setattr(corpus_module, "CHUNK", 2**14)
    tracemalloc.start()
    corpus = number(read_texts(source, True, Fractions(0.25, 0.25), 1), 50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    words = 10 if form != "splits" else 8
    assert sum(map(len, corpus.tokens.values())) == words * text // len(line)
    assert peak < 2.5 * 4 * words * text // len(line)
