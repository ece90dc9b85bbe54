"""What stands in a terminal: numbers that are whole at every width, what there is to run, and answers for programs."""

import json
from pathlib import Path

import pytest
from rich.text import Text

from tasks.__main__ import main
from tasks.common.pipeline import read_stages
from tasks.common.reading import read_yaml
from tasks.shown.asking import COMMANDS, EXAMPLES, Answer, Words
from tasks.shown.tables import NARROWEST, plain, print_all, shown_table
from tests.projects import ROOT

Said = pytest.CaptureFixture[str]
ROWS = [
    {"variant": "dense", "batch 1\nms": "0.47 ± 0.29", "parameters": "1,806,192,000"},
    {"variant": "a_variant_with_a_long_name", "batch 1\nms": "12,345.67 ± 0.29", "parameters": "1"},
]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("width", [20, 45, 80, 120])
def test_no_number_of_a_table_is_cut_and_no_letter_of_a_word_is_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: Said, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_all([shown_table("Cost", ROWS)])
    said = capsys.readouterr().out
    assert all(cell in said for row in ROWS for head, cell in row.items() if head != "variant")
    first = "".join(line[: NARROWEST if width < 80 else None].split("  ")[0].strip() for line in said.splitlines())
    assert "a_variant_with_a_long_name" in first
    assert "…" not in said
    assert max(map(len, said.splitlines())) <= max(width, 54)


@pytest.mark.parametrize("width", [30, 80])
def test_a_sentence_folds_where_a_terminal_ends_and_what_is_to_be_copied_never(
    monkeypatch: pytest.MonkeyPatch, capsys: Said, width: int
) -> None:
    sentence = "The machine was busy while it was measured; on idle cores `dvc repro --force timing` measures again."
    hint, drawn = "try it: dvc exp run " + "-S prune.retain=0.5 " * 5, "words " * 30
    monkeypatch.setenv("COLUMNS", str(width))
    print_all([sentence, Text(drawn)], [hint])
    assert capsys.readouterr().out.splitlines() == [sentence, drawn, "", hint]  # for programs and files: as it is
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    print_all([sentence, Text(drawn)], [hint])
    *folded, drawn_again, empty, hint_again = capsys.readouterr().out.splitlines()
    assert " ".join(folded) == sentence
    assert len(folded) > 1
    assert all(len(line) <= width or line.startswith("`") for line in folded)
    assert [line for line in folded if "`dvc repro --force timing`" in line]
    assert [drawn_again, empty, hint_again] == [drawn, "", hint]


def test_hints_stand_below_one_empty_line(capsys: Said) -> None:
    table = shown_table("Cost", ROWS)
    for parts in ([table], [table, "Busy."]):
        print_all(parts, ["Where to look"])
        *_, last, empty, hint = capsys.readouterr().out.splitlines()
        assert (bool(last.strip()), empty, hint) == (True, "", "Where to look")


def test_brackets_and_colons_of_words_stand_as_they_are(capsys: Said) -> None:
    print_all([shown_table("of [x]", [{"word": "[/b]", "nat": "1.0"}]), "[bold]a :smile: [/i]"], ["[/u]"])
    said = capsys.readouterr().out
    assert all(text in said for text in ("of [x]", "[/b]", "[bold]a :smile: [/i]", "[/u]"))


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.usefixtures("here")
def test_help_names_every_command_and_every_stage_with_what_it_does(
    monkeypatch: pytest.MonkeyPatch, capsys: Said, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for words in ([], ["-h"], ["--help"]):
        assert main(words) == 0
    said = capsys.readouterr().out
    stages = read_stages(read_yaml(Path("params.yaml"))) + read_stages(
        read_yaml(Path("experiment/params.yaml")), "experiment"
    )
    together = " ".join(said.split())
    assert all(" ".join(stage.description.split()) in together.replace("fine- tuned", "fine-tuned") for stage in stages)
    assert all(f"{stage.folder}.{stage.name}".lstrip(".") in said for stage in stages)
    assert all(f"  {name} " in said for name in COMMANDS)
    assert max(map(len, said.splitlines())) <= width


@pytest.mark.usefixtures("here")
def test_help_of_a_stage_says_what_it_reads_and_writes(capsys: Said) -> None:
    assert main(["train", "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("train: train the dense language model\n")
    assert "data/prepare/corpus.parquet" in said
    assert "data/train/model" in said


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_its_words(capsys: Said, command: str) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    said = " ".join(capsys.readouterr().out.replace("-\n", "- ").split())
    assert COMMANDS[command] in said
    shown = EXAMPLES.get(command, "")
    assert f"example: python -m tasks {command} {shown}" in said or not shown
    assert not [word for word in shown.split() if word.startswith("--") and f"{word} " not in said]


@pytest.mark.usefixtures("here")
def test_a_misspelt_command_gets_the_nearest(capsys: Said) -> None:
    assert main(["chose", "--within", "2"]) == 1
    assert main(["reprot"]) == 1
    assert main(["trian"]) == 1
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.endswith(f"known: {list(COMMANDS)}. Did you mean 'choose'?")
    assert second.endswith("Did you mean 'report'?")
    assert third.startswith("Unknown stage 'trian'")


def test_a_wrong_word_gets_one_sentence_with_the_nearest(capsys: Said) -> None:
    assert main(["choose", "--within", "x"]) == 1
    assert main(["choose", "--within", "2", "--bach", "1"]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "Expected a number for --within, got 'x'."
    assert second == "Expected no more words after 'choose', got '--bach 1'. Did you mean '--batch'?"


def test_an_answer_for_programs_is_one_document_whatever_is_said_meanwhile(
    monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    def run(words: list[str]) -> Answer:
        Words("report").read(words)
        print("on the way")
        return Answer({"perplexity": 1 / 3, "loss": float("nan")}, ["a third"])

    monkeypatch.setattr("tasks.commands.report.run", run)
    assert main(["report", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"perplexity": 1 / 3, "loss": None}
    assert said.err == "on the way\n"
    assert main(["report"]) == 0
    assert capsys.readouterr().out == "on the way\na third\n"


def test_an_answer_as_markdown_has_every_cell_and_nothing_that_is_of_use_in_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    def run(words: list[str]) -> Answer:
        Words("report").read(words)
        return Answer({}, [shown_table("Cost", ROWS), "Busy."], ["Where to look"])

    monkeypatch.setattr("tasks.commands.report.run", run)
    assert main(["report", "--markdown"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "**Cost**",
        "",
        "| variant | batch 1 ms | parameters |",
        "|---|---:|---:|",
        "| dense | 0.47 ± 0.29 | 1,806,192,000 |",
        "| a_variant_with_a_long_name | 12,345.67 ± 0.29 | 1 |",
        "",
        "Busy.",
    ]
    assert main(["report"]) == 0
    assert capsys.readouterr().out.endswith("Where to look\n")
    assert main(["report", "--markdown", "--json"]) == 1


def test_values_for_programs_are_what_json_has() -> None:
    given = {"a": (1, float("inf")), "b": [{"c": float("-inf")}], 1: "x"}
    assert plain(given) == {"a": [1, None], "b": [{"c": None}], "1": "x"}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("folder", ["", "experiment"])
def test_stages_stand_in_the_order_in_which_dvc_runs_them_so_that_their_numbers_count_up(folder: str) -> None:
    made: list[Path] = []
    stages = read_stages(read_yaml(folder / Path("params.yaml")), folder)
    outputs = [path for stage in stages for path in stage.outputs.values()]
    for stage in stages:
        for path in stage.inputs.values():
            needed = [output for output in outputs if output.is_relative_to(path) or path.is_relative_to(output)]
            assert set(needed) <= set(made), f"{stage.address} stands before what makes {path}"
        made.extend(stage.outputs.values())


def test_where_words_fold_a_rows_cells_begin_on_its_first_line_and_heads_end_on_their_last(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "34")
    row = {"experiment": "lousy-chis", "what differs": "compare.control random", "dense\nms": "117.7"}
    print_all([shown_table("Experiments", [row], words=2)])
    _, above, below, _, first, second, *_ = capsys.readouterr().out.splitlines()
    assert (above.split(), below.split()) == (["dense"], ["experiment", "what", "differs", "ms"])
    assert first.split() == ["lousy-chis", "compare.control", "117.7"]
    assert second.split() == ["random"]
