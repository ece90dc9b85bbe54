"""What a table refuses, and that every signal's table passes."""

import pandas as pd
import pytest

from pruning.core.tables import metadata, rows_of, table
from pruning.data.schemas import CORPUS, VOCABULARY
from pruning.selection.schemas import RETENTION
from pruning.signals import schemas
from tests.schemas import TABLES
from tests.tiny import SIGNALS, WIDTHS, tiny


@pytest.fixture
def vocabulary():
    return pd.DataFrame({"token": [1, 0, 2], "text": ["a", "<eos>", "b"], "count": [4, 9, 1]})


def test_a_table_is_sorted_by_its_key(vocabulary):
    result = table(VOCABULARY, vocabulary)
    assert result["text"].tolist() == ["<eos>", "a", "b"]
    assert result.index.tolist() == [0, 1, 2]


def test_columns_in_another_order_are_put_in_order(vocabulary):
    assert list(table(VOCABULARY, vocabulary[["count", "text", "token"]]).columns) == ["token", "text", "count"]


def test_the_frame_is_left_as_it_was(vocabulary):
    before = vocabulary.copy()
    table(VOCABULARY, vocabulary)
    assert vocabulary.equals(before)


def test_a_table_of_another_name_is_refused_with_the_columns_that_differ(vocabulary):
    with pytest.raises(ValueError, match=r"Expected the columns of table corpus, got missing .*'split'.*'count'"):
        table(CORPUS, vocabulary)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"text": None}, r"Expected the columns of table vocabulary, got missing \['text'\], unexpected \[\]."),
        ({"more": 1}, r"Expected the columns of table vocabulary, got missing \[\], unexpected \['more'\]."),
        ({"count": [1.0, 2.0, 3.0]}, "Expected integers in column 'count' of vocabulary, got float64."),
        ({"count": [True, False, True]}, "Expected integers in column 'count' of vocabulary, got bool."),
        ({"text": [1, 2, 3]}, "Expected texts in column 'text' of vocabulary, got int64."),
        ({"token": [0, 1, 1]}, "Expected one row for each token in vocabulary, got repeated ones."),
    ],
)
def test_a_wrong_table_is_refused_with_a_sentence(vocabulary, change, sentence):
    frame = vocabulary.assign(**{name: values for name, values in change.items() if values is not None})
    frame = frame.drop(columns=[name for name, values in change.items() if values is None])
    with pytest.raises(ValueError, match=sentence):
        table(VOCABULARY, frame)


def retained(**change):
    columns = {"variant": "v", "layer": "lstm.0", "neuron": [0, 1], "importance": [0.1, 0.2], "rank": [2, 1]}
    return pd.DataFrame({**columns, "kept": [False, True], **change})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kept": [0, 1]}, "Expected flags in column 'kept' of retention, got int64."),
        ({"importance": [1, 2]}, "Expected numbers in column 'importance' of retention, got int64."),
        ({"neuron": [1, 1]}, "Expected one row for each variant × layer × neuron in retention, got repeated ones."),
    ],
)
def test_flags_numbers_and_keys_of_several_columns_are_checked(change, sentence):
    assert len(table(RETENTION, retained())) == 2
    with pytest.raises(ValueError, match=sentence):
        table(RETENTION, retained(**change))


@pytest.mark.parametrize("signal", SIGNALS)
def test_every_signals_table_passes_its_own_check_and_no_other_signals(signal, windows):
    frame = SIGNALS[signal](tiny(), windows)
    assert table(TABLES[signal], frame).equals(frame)
    assert frame[["layer", "neuron"]].equals(rows_of(["lstm.0", "lstm.1"], WIDTHS[2]).astype(frame.dtypes[:2]))
    assert (frame["samples"] > 0).all()
    assert (frame["standard_error"] >= 0).all()
    other = next(name for name in SIGNALS if name != signal)
    with pytest.raises(ValueError, match=f"Expected the columns of table {other}"):
        table(TABLES[other], frame)


def test_the_signals_are_those_that_can_be_measured():
    assert set(schemas.SIGNALS) == set(SIGNALS)


@pytest.mark.parametrize("name", ["weights", "activations", "gradients", "cooperative"])
def test_the_shares_of_components_sum_to_one_and_each_is_a_column(name):
    shares = TABLES[name].shares
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) > 0
    assert set(shares) <= set(TABLES[name].columns)


@pytest.mark.parametrize("name", TABLES)
def test_every_table_says_its_key_and_units_in_its_metadata(name):
    told, schema = metadata(TABLES[name]), TABLES[name]
    assert told["table"] == name == schema.name
    assert told["key"].split(", ") == list(schema.key)
    assert set(schema.key) <= set(schema.columns)
    for column, about in schema.columns.items():
        assert about.meaning
        assert (f"{column}: {about.unit}" in told["units"].split(", ")) == bool(about.unit)
