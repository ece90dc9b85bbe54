"""The tables of text: the corpus as numbers, and its vocabulary."""

from pruning.core.tables import Column, Table

CORPUS = Table(
    "corpus",
    ("split", "position"),
    {
        "split": Column("text", "", "train, valid or test; or calibration, held out from training"),
        "position": Column("integer", "token", "place in the split, from 0"),
        "token": Column("integer", "", "number in the vocabulary"),
    },
)


VOCABULARY = Table(
    "vocabulary",
    ("token",),
    {
        "token": Column("integer", "", "number, from 0, most frequent first"),
        "text": Column("text", "", "the token as it is written"),
        "count": Column("integer", "token", "occurrences in the training split"),
    },
)


ENDS = {"ends": Column("flag", "", "of sub-words alone: whether a word ends with it, as `</w>` says")}
SUBWORDS = Table(VOCABULARY.name, VOCABULARY.key, {**VOCABULARY.columns, **ENDS})
"""The vocabulary where the tokens are sub-words."""
