"""The commands that use a model, against what the library says of the same text, and their sentences."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

from pruning.data.windows import Windows
from pruning.evaluation.measures import loss_of
from tasks.__main__ import main
from tasks.commands.plain_text import SPACES, Reading, vocabulary_lines
from tasks.common.models import read_model, write_model
from tasks.common.parameters import Unexpected
from tasks.common.reading import read_yaml
from tasks.common.tables import read_table
from tasks.settings.parameters import checked
from tests.projects import language_project, set_parameters
from tests.tiny import tiny

Said = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = {name: tiny(dtype=torch.float32, seed=seed) for seed, name in enumerate(("dense", "enhanced"))}
    return language_project(tmp_path_factory.mktemp("used") / "project", models)


@pytest.fixture
def here(results: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said) -> Path:
    monkeypatch.chdir(results)
    capsys.readouterr()
    return results


def answered(words: list[str], said: Said) -> dict[str, object]:
    assert main([*words, "--json"]) == 0
    return dict(json.loads(said.readouterr().out))


@pytest.mark.parametrize("variant", ["dense", "enhanced"])
def test_the_perplexity_of_the_test_split_s_file_is_that_of_the_evaluation(
    here: Path, capsys: Said, variant: str
) -> None:
    settings = checked(read_yaml(here / "params.yaml")).evaluate
    corpus, vocabulary = (read_table(here / f"data/prepare/{name}.parquet") for name in ("corpus", "vocabulary"))
    first = int(vocabulary.loc[vocabulary["text"] == "<eos>", "token"].iloc[0])
    tokens = torch.tensor(corpus.loc[corpus["split"] == "test", "token"].to_numpy(), dtype=torch.long)
    model = read_model(here / f"data/finetune/{variant}/model")
    expected = loss_of(model, Windows(tokens, first=first, batch=settings.batch, bptt=settings.bptt))
    found = answered(["perplexity", variant, "text/test.txt"], capsys)
    assert found["perplexity"] == pytest.approx(expected.perplexity, rel=1e-12)
    assert found["tokens"] == len(tokens)
    assert found["model"] == f"{variant}, finetuned"


def test_a_text_s_score_is_the_sum_over_its_tokens_and_names_what_is_not_known(here: Path, capsys: Said) -> None:
    found = answered(["score", "enhanced", "w1 w2 zork\n\nw3"], capsys)
    rows = found["tokens"]
    assert isinstance(rows, list)
    assert [row["token"] for row in rows] == ["w1", "w2", "<unk>", "<eos>", "w3", "<eos>"]
    assert found["nat"] == pytest.approx(sum(-math.log(row["chance"]) for row in rows))
    assert found["perplexity"] == pytest.approx(math.exp(sum(row["nat"] for row in rows) / 6))
    assert main(["score", "enhanced", "w1 zork"]) == 0
    said = capsys.readouterr().out
    assert "read as <unk>: zork" in said
    assert re.search(r"w1 +\d+\.\d\d%", said)
    (here / "line.txt").write_text("w1 w2 zork\n\nw3\n", encoding="utf-8")
    assert answered(["perplexity", "enhanced", "line.txt"], capsys)["unknown"] == 1


def test_a_model_goes_on_from_a_text_alike_for_one_seed_and_in_no_unknown_words(here: Path, capsys: Said) -> None:
    words = ["generate", "dense", "w1 w2", "--tokens", "30"]
    first, again, other = (answered([*words, "--seed", seed], capsys) for seed in ("1", "1", "2"))
    assert first == again
    assert first["tokens"] != other["tokens"]
    assert len(first["tokens"]) == 30  # type: ignore[arg-type]
    assert "<unk>" not in str(first["text"])
    assert str(first["text"]).startswith("w1 w2")
    assert main(["generate", "dense"]) == 0
    del here


def test_a_folder_with_a_model_is_used_as_a_variant_is_and_reads_as_it_says(
    here: Path, capsys: Said, tmp_path: Path
) -> None:
    folder = tmp_path / "chosen"
    write_model(folder, read_model(here / "data/finetune/enhanced/model"))
    of_variant, of_folder = (answered(["score", name, "w1 w2"], capsys) for name in ("enhanced", str(folder)))
    assert of_variant["tokens"] == of_folder["tokens"]
    text = {"pattern": r"\w", "lowercase": True}
    words = ["<eos>", "<unk>", *(f"x{number}" for number in range(17)), "w"]
    (folder / "export.json").write_text(json.dumps({"text": text}), encoding="utf-8")
    (folder / "vocabulary.txt").write_text(vocabulary_lines(words), encoding="utf-8")
    rows = answered(["score", str(folder), "W1"], capsys)["tokens"]
    assert [row["token"] for row in rows] == ["w", "<unk>", "<eos>"]  # type: ignore[attr-defined]
    (folder / "vocabulary.txt").write_text("<eos>\n<unk>", encoding="utf-8")
    assert main(["score", str(folder), "w"]) == 1
    assert "Expected a model of the 2 tokens there are, got one of 20 in " in capsys.readouterr().err
    (folder / "export.json").write_text("{}", encoding="utf-8")
    assert main(["score", str(folder), "w"]) == 1
    assert "got a folder without it; export it anew." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["generate", "enhancd", "w"], "Expected a variant, one of ['dense', 'enhanced'], got 'enhancd'. Did you mean"),
        (["generate", "dense", "w", "--phase", "prund"], "Unknown phase 'prund'"),
        (["generate", "dense", "w", "--temperature", "-1"], "Expected a temperature of at least 0, got -1."),
        (["score", "dense", " \n"], "Expected words to score, got ' \\n'."),
        (["score", "dense"], "The following arguments are required: text; "),
        (["perplexity", "dense", "nowhere"], "Expected a text file at nowhere, got none."),
        (["perplexity", "dense", "text"], "Expected a text file at text, got a folder."),
        (["perplexity", "dense", "empty"], "Expected text in empty, got none."),
        (["generate", "enhanced", "--phase", "pruned"], "Expected the pruned model of enhanced in data/prune/"),
    ],
)
def test_a_mistake_gets_one_sentence(here: Path, capsys: Said, words: list[str], sentence: str) -> None:
    (here / "empty").write_text("\n", encoding="utf-8")
    assert main(words) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_raw_text_is_put_into_lower_case_and_parted_at_marks_where_the_corpus_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    folder = language_project(tmp_path / "project", {})
    (folder / "book.txt").write_text("It's late, she said.\n" * 40, encoding="utf-8")
    set_parameters(folder, {"corpus": {"source": "book.txt", "valid": 0.2, "test": 0.2}})
    monkeypatch.chdir(folder)
    assert main(["prepare"]) == 0
    write_model(folder / "data/finetune/dense/model", tiny(dtype=torch.float32))
    types = len(read_table(folder / "data/prepare/vocabulary.parquet"))
    capsys.readouterr()
    assert main(["score", "dense", "IT'S LATE"]) == 1
    assert f"Expected a model of the {types} tokens there are, got one of 20" in capsys.readouterr().err
    (folder / "book.txt").unlink()
    assert main(["score", "dense", "it"]) == 1
    assert "Expected a folder or a text file at corpus.source" in capsys.readouterr().err


def test_a_line_break_in_a_token_stands_as_two_letters_so_that_there_are_as_many_lines_as_tokens() -> None:
    words = ["<eos>", "a\nb", "\u2028", "é"]
    text = vocabulary_lines(words)
    assert text.splitlines() == text.split("\n") == ["<eos>", r"a\nb", r"\n", "é"]
    with pytest.raises(Unexpected, match="got two for"):
        vocabulary_lines(["a\nb", "a\rb"])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["we", "'", "re", "late", ",", "well", "-", "known", "."], "we're late, well-known."),
        (["(", "so", ")", "<eos>", "it", "is", "5", "%"], "(so)\nit is 5%"),
        (["don", "'", "t", "-", "i", "'", "m"], "don't-i'm"),
    ],
)
def test_marks_stand_beside_their_words(words: list[str], text: str) -> None:
    every = ["<eos>", "<unk>", *dict.fromkeys(word for word in words if word != "<eos>")]
    reading = Reading(SPACES, False, every)
    assert reading.written([reading.numbers[word] for word in words]) == text
