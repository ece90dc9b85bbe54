"""Sub-words spell every word, the same whoever learns them, and are counted as they are read."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.data import corpus as corpus_module
from pruning.data.corpus import SPLITS
from pruning.data.subwords import SUFFIX, Subwords, ends_word, number_subwords

LINES = [["low", "lower", "<unk>"], ["newest", "low", "lowest"], ["wide", "newest", "low"]]


def corpus_of(lines, size=24):
    return number_subwords(dict.fromkeys(SPLITS, lines), size)


def spelled(corpus, split="train"):
    texts = corpus.vocabulary["text"].to_numpy()[corpus.tokens[split]]
    text = "".join(f"{word} " if word in ("<eos>", "<unk>") else word for word in texts).replace(SUFFIX, " ")
    return [line.split() for line in text.split("<eos>")[:-1]]


def slow_merges(word, merges):
    """The twin: join the earliest merge that is there, everywhere, until none is."""
    parts = [*word[:-1], word[-1] + SUFFIX]
    while pairs := [(merges.index(pair), pair) for pair in itertools.pairwise(parts) if pair in merges]:
        _, (left, right) = min(pairs)
        joined, place = [], 0
        while place < len(parts):
            two = parts[place : place + 2] == [left, right]
            joined.append(left + right if two else parts[place])
            place += 2 if two else 1
        parts = joined
    return parts


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.text("abc", min_size=1, max_size=6), max_size=5), min_size=1, max_size=8).filter(any))
def test_sub_words_spell_the_words_that_were_read_and_are_those_of_the_merges_one_after_the_other(lines):
    corpus, subwords = corpus_of(lines, 14)
    assert spelled(corpus) == lines
    for word in {word for line in lines for word in line}:
        assert subwords.pieces(word) == slow_merges(word, list(subwords.merges))


def test_the_vocabulary_is_counted_in_training_and_ordered_and_no_larger_than_asked(monkeypatch):
    monkeypatch.setattr(corpus_module, "CHUNK", 5)
    corpus, _ = corpus_of(LINES)
    vocabulary = corpus.vocabulary
    assert len(vocabulary) <= 24
    assert vocabulary["token"].tolist() == list(range(len(vocabulary)))
    rows = list(zip(-vocabulary["count"], vocabulary["text"], strict=True))
    assert rows == sorted(rows)
    counted = Counter(vocabulary["text"].to_numpy()[corpus.tokens["train"]].tolist())
    assert dict(zip(vocabulary["text"], vocabulary["count"], strict=True)) == {
        text: counted.get(text, 0) for text in vocabulary["text"]
    }
    assert vocabulary["ends"].tolist() == [ends_word(text) for text in vocabulary["text"]]
    ends = vocabulary["ends"].to_numpy()[corpus.tokens["train"]]
    assert ends.sum() == sum(len(line) + 1 for line in LINES)


def test_the_same_words_in_another_order_become_the_same_sub_words():
    chance = random.Random(1)  # noqa: S311 - text, not secrets
    words = ["".join(chance.choices("abcdefgh", k=chance.randint(1, 7))) for _ in range(300)]
    lines = [words[start : start + 10] for start in range(0, 300, 10)]
    one, other = (corpus_of(some, 90) for some in (lines, lines[::-1]))
    assert one[0].vocabulary.equals(other[0].vocabulary)
    assert list(one[1].merges) == list(other[1].merges)


def test_a_word_with_an_unknown_letter_is_unknown_and_a_marker_stays_one_token():
    _, subwords = corpus_of(LINES)
    assert subwords.pieces("zoo") == subwords.pieces("<unk>") == ["<unk>"]
    assert subwords.pieces("<eos>") == ["<eos>"]
    again = Subwords(subwords.numbers, subwords.merges)
    assert again.pieces("lowest") == subwords.pieces("lowest")
    assert "".join(again.pieces("slow")) == f"slow{SUFFIX}"


def test_a_vocabulary_without_room_for_the_letters_is_refused():
    with pytest.raises(ValueError, match=r"Expected a vocabulary of at least \d+ types, for the letters .* got 5\."):
        corpus_of(LINES, 5)


def test_a_text_of_sub_words_is_kept_wherever_it_is_asked_for():
    kept = []

    def keep(stretches):
        kept.append(np.concatenate(list(stretches)))
        return kept[-1]

    corpus, _ = number_subwords(dict.fromkeys(SPLITS, LINES), 24, keep=keep)
    assert corpus.tokens["test"] is kept[-1]
