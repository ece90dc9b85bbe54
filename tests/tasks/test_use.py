"""The commands that use a model, against what the library says of the same text, and their sentences."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from pruning.core.progress import silently
from pruning.data.windows import Windows
from pruning.evaluation.measures import loss_of
from tasks.__main__ import main
from tasks.commands.plain_text import SPACES, Reading, read_exported, read_reading, vocabulary_lines
from tasks.common.job import Job
from tasks.common.models import read_model, write_model
from tasks.common.parameters import Unexpected
from tasks.common.pipeline import read_stage
from tasks.common.reading import read_yaml
from tasks.common.tables import read_table
from tasks.common.windows import read_windows, words_of
from tasks.settings.parameters import checked
from tasks.stages.evaluate import further_metrics
from tests.projects import language_project, set_parameters, spelled_project
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
        (["generate", "dense", "w", "--tokens", "0"], "Expected --tokens of at least 1, got 0."),
        (["generate", "dense", "w", "--seed", f"{2**70}"], "Expected --seed from 0 to 2147483647, got 118059162071741"),
        (["generate", "text", "w"], "one of ['dense', 'enhanced'], got text, in which there is no config.json."),
        (["export"], "Expected a variant, one of ['dense', 'enhanced'], got none."),
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


@pytest.fixture(scope="module")
def spelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose tokens are sub-words of raw text, and a model of them."""
    return spelled_project(tmp_path_factory.mktemp("spelled") / "project")


def test_a_model_of_sub_words_is_used_like_any_and_says_its_perplexity_for_each_word(
    spelled: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.chdir(spelled)
    capsys.readouterr()
    scored = answered(["score", "dense", "Lower lows"], capsys)
    rows = scored["tokens"]
    assert isinstance(rows, list)
    texts = [row["token"] for row in rows]
    assert "".join(texts[:-1]) == "lower</w>lows</w>"
    assert len(texts) > 3
    assert scored["word_perplexity"] == pytest.approx(math.exp(sum(row["nat"] for row in rows) / 3))
    assert main(["score", "dense", "lower zoo"]) == 0
    assert "read as <unk>: zoo" in capsys.readouterr().out
    Path("line.txt").write_text("lower lows\n", encoding="utf-8")
    found = answered(["perplexity", "dense", "line.txt"], capsys)
    assert found["words"] == 3
    assert found["tokens"] == len(texts)
    assert found["word_perplexity"] == pytest.approx(math.exp(float(str(found["loss"])) * len(texts) / 3))
    drawn = answered(["generate", "dense", "It's low", "--tokens", "9"], capsys)
    assert str(drawn["text"]).startswith("it's low")
    assert "</w>" not in str(drawn["text"])


def test_the_evaluation_of_sub_words_has_the_perplexity_for_each_word_beside_its_own(
    spelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(spelled)
    values = read_yaml(Path("params.yaml"))
    job = Job(read_stage("evaluate", "dense", values), checked(values), silently)
    words = words_of(job, "test")
    assert words == 8 * 14  # words, marks and ends of lines
    model = read_model(Path("data/finetune/dense/model"))
    loss = loss_of(model, read_windows(job, "test", batch=4, bptt=9))
    beside = json.loads(further_metrics(loss, words))
    assert beside == {"word_perplexity": [pytest.approx(math.exp(loss.total / words)), "lower"]}
    assert loss.perplexity < beside["word_perplexity"][0]


def test_what_tokenizers_reads_text_by_gives_the_corpus_s_numbers(
    spelled: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, text in ((spelled, "It's lower, she said; the lowest is low."), (here, "w1 w2 zork")):
        monkeypatch.chdir(folder)
        values = read_yaml(Path("params.yaml"))
        reading = read_reading(Job(read_stage("evaluate", "dense", values), checked(values), silently))
        theirs = Tokenizer.from_file(str(folder / "data/prepare/tokenizer.json"))
        assert theirs.encode(text).ids == reading.tokens(reading.split(text))[:-1].tolist()


def test_an_exported_folder_of_sub_words_is_read_as_the_variant_was(
    spelled: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(spelled)
    values = read_yaml(Path("params.yaml"))
    reading = read_reading(Job(read_stage("evaluate", "dense", values), checked(values), silently))
    (tmp_path / "export.json").write_text(json.dumps({"text": reading.described()}), encoding="utf-8")
    (tmp_path / "vocabulary.txt").write_text(vocabulary_lines(reading.words), encoding="utf-8")
    again = read_exported(tmp_path)
    lines = reading.split("It's lower than lows, she said.\nzoo")
    assert torch.equal(again.tokens(lines), reading.tokens(lines))
    assert again.written(reading.tokens(lines).tolist()) == "it's lower <unk> lows, she said.\n<unk>\n"
