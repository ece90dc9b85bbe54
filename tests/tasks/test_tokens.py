"""The table of the corpus: written and read in stretches, one split at a time, and the text before it line by line."""

import pickle
import tracemalloc
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from pruning.data import corpus as corpus_module
from pruning.data.corpus import HELD_OUT, SPLITS, Fractions, number
from pruning.data.schemas import CORPUS, VOCABULARY
from pruning.data.windows import Windows
from tasks.commands.foreseen import read_text
from tasks.common import tables
from tasks.common import tokens as stretches
from tasks.common.parameters import Unexpected
from tasks.common.reading import read_yaml
from tasks.common.tables import read_table, write_table
from tasks.common.tokens import Stored, read_tokens, write_tokens
from tasks.common.windows import calibration_batches, labelled_batches
from tasks.settings.parameters import checked
from tasks.stages.prepare import check_source, read_texts
from tests.projects import ROOT

VALUES = read_yaml(ROOT / "params.yaml")

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
        found = np.asarray(read_tokens(place, split))
        assert found.dtype == np.int32
        assert found.tolist() == tokens.tolist()


def test_tokens_of_a_table_written_whole_are_read_too(place):
    write_table(place, frame(), CORPUS)
    assert all(read_tokens(place, split)[:].tolist() == tokens.tolist() for split, tokens in TOKENS.items())
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


def test_tokens_in_a_file_are_read_where_asked_replaced_and_copied_to_another_process_whole(tmp_path):
    tokens = Stored([np.arange(5), np.arange(5, 8)], beside=tmp_path)
    assert list(tmp_path.iterdir()) == []  # it has no name
    assert tokens[np.array([[7, 0], [3, 4]])].tolist() == [[7, 0], [3, 4]]
    tokens[2:4] = np.array([20, 30])
    assert pickle.loads(pickle.dumps(tokens)).tolist() == [0, 1, 20, 30, 4, 5, 6, 7]  # noqa: S301
    assert len(Stored([], beside=tmp_path)[:]) == 0


def test_windows_of_tokens_in_a_file_are_those_of_a_tensor(tmp_path):
    tokens = torch.randint(50, (83,), generator=torch.Generator().manual_seed(0))
    stored = Stored([tokens.numpy()], beside=tmp_path)
    shape = {"first": 3, "batch": 4, "bptt": 5}
    for one, other in zip(Windows(tokens, **shape), Windows(stored, **shape), strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.targets, other.targets)
        assert other.tokens.dtype == torch.long


def test_what_is_held_of_a_text_does_not_grow_with_it_from_the_table_to_windows(monkeypatch, place):
    monkeypatch.setattr(stretches, "ROWS", 2**12)
    peaks = []
    for length in (2**15, 2**18):
        write_tokens(place, {"train": np.arange(length, dtype=np.int32) % 50})
        tracemalloc.start()
        windows = Windows(read_tokens(place, "train"), first=0, batch=8, bptt=16)
        sums = sum(int(window.tokens.sum()) for window in islice(windows, 50))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert sums
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize("form", ["book", "documents", "splits"])
def test_text_held_out_from_training_is_taken_from_it_alone_and_read_where_labels_count(tmp_path, form):
    names = {"book": ["book"], "documents": "abcdefgh", "splits": SPLITS}[form]
    for number_of, name in enumerate(names):
        (tmp_path / f"{name}.txt").write_text("".join(f"w{number_of} {line % 7}\n" for line in range(100)))
    source = tmp_path / "book.txt" if form == "book" else tmp_path
    before, after = (
        number(read_texts(source, True, Fractions(0.1, 0.1, share), 1), 50).tokens for share in (0.0, 0.25)
    )
    assert HELD_OUT not in before
    assert len(after["train"]) + len(after[HELD_OUT]) == len(before["train"])
    assert 0.15 <= len(after[HELD_OUT]) / len(before["train"]) <= 0.25
    assert len(after["valid"]) == len(before["valid"])
    values = {"corpus": {"source": str(source), "calibration": 0.25, "valid": 0.1, "test": 0.1}}
    text = read_text(checked({**VALUES, "corpus": VALUES["corpus"] | values["corpus"]}).corpus, [])
    assert text.tokens(HELD_OUT, 10**6) == len(after[HELD_OUT])
    assert text.tokens("train", 10**6) == len(after["train"])
    for tokens, expected in ((before, before["train"]), (after, after[HELD_OUT])):
        write_tokens(tmp_path / "corpus.parquet", tokens)
        vocabulary = pd.DataFrame({"token": [0], "text": ["<eos>"], "count": [1]})
        write_table(tmp_path / "vocabulary.parquet", vocabulary, VOCABULARY)
        job: Any = SimpleNamespace(
            input=lambda name: tmp_path / f"{name.partition('/')[2]}.parquet",
            settings=lambda section: {"model": {"source": None}, "calibration": {"batch": 1, "bptt": 7}}[section],
        )
        for read, wanted in ((labelled_batches(job), expected), (calibration_batches(job), tokens["train"])):
            assert torch.cat([window.targets for window in read])[:, 0].tolist() == wanted.tolist()


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
    corpus = number(read_texts(source, True, Fractions(0.25, 0.25), 1), 50, keep=partial(Stored, beside=tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    words = 10 if form != "splits" else 8
    assert sum(map(len, corpus.tokens.values())) == words * text // len(line)
    assert peak < 800_000  # of 1.6 MB of tokens and 1.3 MB of text


def test_a_corpus_that_is_not_there_gets_what_to_do_and_the_nearest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "text").mkdir()
    monkeypatch.chdir(tmp_path)
    sentence = r"got 'texd', which does not exist; name one, .* root\. Did you mean 'text'\?$"
    with pytest.raises(Unexpected, match=sentence):
        check_source(Path("texd"))
    with pytest.raises(Unexpected, match=r"root\.$"):
        check_source(Path("nowhere/speeches"))
