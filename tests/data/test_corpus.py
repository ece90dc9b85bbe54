"""Vocabulary, splits and numbering, on toy text and on the published Penn Treebank."""

import os
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.data import corpus as corpus_module
from pruning.data.corpus import (
    END_OF_LINE,
    HELD_OUT,
    PLACES,
    SPLITS,
    UNKNOWN,
    Fractions,
    assign_documents,
    divide_lines,
    left_out,
    number,
    published_lines,
    raw_lines,
)

ROOT = Path(__file__).parents[2]
PENN_TREEBANK = Path(os.environ.get("PENN_TREEBANK", ROOT.parent / "shared/data/penn-treebank"))
LINES = [["b", "a", "c"], ["a", "b", "d"], ["b", "e"]]


def corpus_of(train, size, valid=(("a",),), test=(("b",),)):
    return number({"train": train, "valid": valid, "test": test}, size)


def words_of(corpus, split):
    return corpus.vocabulary["text"].to_numpy()[corpus.tokens[split]].tolist()


def test_tokens_are_numbered_from_the_most_frequent_and_equals_by_spelling():
    vocabulary = corpus_of(LINES, 99).vocabulary
    assert vocabulary["text"].tolist() == ["<eos>", "b", "a", "c", "d", "e", "<unk>"]
    assert vocabulary["count"].tolist() == [3, 3, 2, 1, 1, 1, 0]
    assert vocabulary["token"].tolist() == list(range(7))


def test_the_numbering_does_not_depend_on_the_order_of_reading():
    assert corpus_of(LINES, 5).vocabulary.equals(corpus_of(LINES[::-1], 5).vocabulary)


@pytest.mark.parametrize(("size", "kept"), [(3, {"b"}), (4, {"a", "b"}), (5, {"a", "b", "c"})])
def test_a_cap_keeps_the_most_frequent_words_beside_unk_and_eos(size, kept):
    corpus = corpus_of(LINES, size)
    assert set(corpus.vocabulary["text"]) == {END_OF_LINE, UNKNOWN} | kept
    known = kept | {END_OF_LINE}
    expected = [word if word in known else UNKNOWN for line in LINES for word in (*line, END_OF_LINE)]
    assert words_of(corpus, "train") == expected


@given(
    lines=st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=6), min_size=1, max_size=8), size=st.integers(3, 9)
)
def test_the_vocabulary_is_ordered_by_its_counts_in_the_training_split(lines, size):
    corpus = corpus_of(lines, size)
    counts = Counter(words_of(corpus, "train"))
    rows = list(zip(corpus.vocabulary["text"], corpus.vocabulary["count"], strict=True))
    assert all(count == counts[word] for word, count in rows)
    assert rows == sorted(rows, key=lambda row: (-row[1], row[0]))
    assert {END_OF_LINE, UNKNOWN} <= set(corpus.vocabulary["text"])
    assert len(rows) <= size


def test_words_that_only_other_splits_have_become_unk():
    corpus = corpus_of(LINES, 99, valid=[["z", "a"]])
    assert words_of(corpus, "valid") == [UNKNOWN, "a", END_OF_LINE]


def test_text_that_holds_unk_and_eos_already_numbers_them_once():
    vocabulary = corpus_of([["a", UNKNOWN, UNKNOWN]], 99).vocabulary
    assert vocabulary["text"].tolist() == [UNKNOWN, END_OF_LINE, "a"]
    assert vocabulary["count"].tolist() == [2, 1, 1]


def test_tokens_are_small_integers():
    assert {tokens.dtype for tokens in corpus_of(LINES, 9).tokens.values()} == {np.dtype(np.int32)}


def test_a_vocabulary_with_no_room_for_a_word_is_refused():
    with pytest.raises(
        ValueError, match=r"Expected a vocabulary of at least 3 types \(<eos>, <unk> and a word\), got 2."
    ):
        corpus_of(LINES, 2)


@pytest.mark.parametrize("empty", SPLITS)
def test_a_split_without_text_is_refused_by_name(empty):
    with pytest.raises(
        ValueError, match=f"Expected text in the {empty} split, got none; give more of it, in more lines."
    ):
        number({split: [] if split == empty else LINES for split in SPLITS}, 9)


def test_published_lines_are_split_at_white_space_only():
    assert published_lines(" the <unk> n't \n\n N  's\n") == [["the", "<unk>", "n't"], ["N", "'s"]]


@pytest.mark.parametrize(("lowercase", "first"), [(True, "don"), (False, "Don")])
def test_raw_lines_are_words_and_runs_of_punctuation(lowercase, first):
    assert raw_lines("Don't -- stop!?\n \n1789", lowercase=lowercase) == [
        [first, "'", "t", "--", "stop", "!?"],
        ["1789"],
    ]


documents = st.dictionaries(st.text("abcdef", min_size=1), st.integers(1, 50), min_size=3, max_size=20)


@given(lengths=documents, seed=st.integers(0, 5))
def test_documents_are_assigned_whole_and_the_same_for_the_same_seed(lengths, seed):
    splits = assign_documents(lengths, Fractions(0.1, 0.1), seed)
    assert splits.keys() == lengths.keys()
    assert set(splits.values()) == set(SPLITS)
    assert splits == assign_documents(dict(reversed(lengths.items())), Fractions(0.1, 0.1), seed)


def test_another_seed_assigns_other_documents():
    lengths = {f"speech {index}": 10 for index in range(40)}
    one, other = (assign_documents(lengths, Fractions(0.2, 0.2), seed) for seed in (1, 2))
    assert one != other


@given(seed=st.integers(0, 50), valid=st.sampled_from([0.05, 0.1, 0.3]), test=st.sampled_from([0.05, 0.2]))
def test_each_split_has_about_its_share_of_the_text(seed, valid, test):
    lengths = {f"speech {index}": 50 + 7 * (index % 13) for index in range(200)}
    splits = assign_documents(lengths, Fractions(valid, test), seed)
    total = sum(lengths.values())
    shares = {split: sum(n for name, n in lengths.items() if splits[name] == split) / total for split in SPLITS}
    assert shares["valid"] == pytest.approx(valid, abs=0.01)
    assert shares["test"] == pytest.approx(test, abs=0.01)


def test_fewer_documents_than_splits_are_refused():
    with pytest.raises(ValueError, match=r"Expected at least 3 documents, got 2."):
        assign_documents({"a": 1, "b": 1}, Fractions(0.1, 0.1), 1)


@given(length=st.integers(2, 999), share=st.sampled_from([0.001, 0.03, 0.1, 0.5, 0.99]))
def test_what_training_leaves_out_is_apart_from_the_rest_and_about_its_share(length, share):
    parts = {split: [*lines()] for split, lines in left_out(lambda: range(length), Fractions(0, 0, share)).items()}
    assert sorted(parts["train"] + parts[HELD_OUT]) == [*range(length)]
    assert parts["train"]
    wanted = min(max(1, round(share * length)), length - 1)
    assert max(1, wanted - PLACES) <= len(parts[HELD_OUT]) <= wanted


def test_of_many_documents_training_leaves_out_the_end_of_some_stretch_of_each():
    lines = [(document, line) for document in range(40) for line in range(20)]
    parts = {split: [*opened()] for split, opened in left_out(lambda: lines, Fractions(0, 0, 0.125)).items()}
    assert {document for document, _ in parts[HELD_OUT]} == {*range(40)}
    assert len(parts[HELD_OUT]) == 100
    places = [lines.index(line) for line in parts[HELD_OUT]]
    assert places == [place for end in range(16, 801, 16) for place in (end - 2, end - 1)]


@pytest.mark.parametrize(("length", "share"), [(1, 0.5), (7, 0.0)])
def test_of_a_single_line_or_where_none_is_asked_for_training_leaves_nothing_out(length, share):
    ((split, lines),) = left_out(lambda: range(length), Fractions(0, 0, share)).items()
    assert (split, [*lines()]) == ("train", [*range(length)])


@given(length=st.integers(10, 99))
def test_one_text_is_cut_into_beginning_middle_and_end(length):
    lines = [[str(index)] for index in range(length)]
    parts = divide_lines(lines, Fractions(0.2, 0.1))
    assert [line for split in SPLITS for line in parts[split]] == lines
    assert abs(len(parts["valid"]) - 0.2 * length) <= 1
    assert abs(len(parts["test"]) - 0.1 * length) <= 1


@pytest.mark.skipif(not PENN_TREEBANK.is_dir(), reason="no Penn Treebank; set PENN_TREEBANK to its folder")
def test_the_penn_treebank_has_its_published_numbers():
    lines = {split: published_lines((PENN_TREEBANK / f"ptb.{split}.txt").read_text("utf-8")) for split in SPLITS}
    corpus = number(lines, 10_000)
    assert {split: len(tokens) for split, tokens in corpus.tokens.items()} == {
        "train": 929_589,
        "valid": 73_760,
        "test": 82_430,
    }
    assert len(corpus.vocabulary) == 10_000
    assert corpus.vocabulary["text"][:3].tolist() == ["the", UNKNOWN, END_OF_LINE]


def test_numbering_holds_a_number_for_each_token_and_each_type_once(monkeypatch):
    monkeypatch.setattr(corpus_module, "CHUNK", 2**14)
    words = [f"w{index}" for index in range(100)]
    lines = ([words[(7 * row + place) % 100] for place in range(20)] for row in range(20_000))
    tracemalloc.start()
    corpus = number({"train": lines, "valid": [["w1"]], "test": [["w2"]]}, 50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(corpus.tokens["train"]) == 420_000
    assert peak < 2.5 * 4 * 420_000  # what grows is copied once in a while


@given(
    lines=st.lists(st.lists(st.sampled_from(["a", "B", "é", UNKNOWN, END_OF_LINE, "ﬀ", "😀"])), min_size=1, max_size=9),
    other=st.lists(st.lists(st.sampled_from(["a", "z", UNKNOWN])), min_size=1, max_size=3),
    size=st.integers(3, 9),
)
def test_tokens_and_vocabulary_are_those_of_counting_and_sorting_words(lines, other, size):
    counts = Counter(word for line in lines for word in (*line, END_OF_LINE))
    ranked = sorted((word for word in counts if word not in (END_OF_LINE, UNKNOWN)), key=lambda w: (-counts[w], w))
    kept = {word: counts[word] for word in ranked[: size - 2]} | {END_OF_LINE: counts[END_OF_LINE]}
    kept[UNKNOWN] = counts.total() - sum(kept.values())
    expected = sorted(kept, key=lambda word: (-kept[word], word))
    corpus = corpus_of(iter(lines), size, valid=iter(other), test=other)
    assert corpus.vocabulary["text"].tolist() == expected
    assert corpus.vocabulary["count"].tolist() == [kept[word] for word in expected]
    for split, own in {"train": lines, "valid": other, "test": other}.items():
        words = [word if word in kept else UNKNOWN for line in own for word in (*line, END_OF_LINE)]
        assert words_of(corpus, split) == words
