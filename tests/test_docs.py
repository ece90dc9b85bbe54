"""The documentation holds: its code runs, what it names exists, what it repeats of the code is the code's."""

import ast
import importlib.util
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from ruamel.yaml import YAML
from torch import nn

import pruning
from tests.projects import ROOT
from tests.schemas import FORMS

PAGES = {
    path.relative_to(ROOT).as_posix(): path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
VALUES = YAML(typ="safe").load(ROOT / "params.yaml")
OWN = YAML(typ="safe").load(ROOT / "experiment/params.yaml")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text_of(name: str) -> str:
    return PAGES[name].read_text(encoding="utf-8")


def blocks_of(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text_of(name), flags=re.MULTILINE | re.DOTALL)


def test_the_readme_is_short_and_has_one_table_of_results() -> None:
    assert len(text_of("README.md").splitlines()) <= 150
    assert len(re.findall(r"^\|---.*---:", text_of("README.md"), flags=re.MULTILINE)) == 1


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_only_commands_that_exist(name: str) -> None:
    code = "\n".join(re.findall(r"^```.*?^```|(?<!`)`[^`\n]+`(?!`)", text_of(name), flags=re.MULTILINE | re.DOTALL))
    assert set(re.findall(r"\bmake ([a-z][a-z-]+)", code)) <= TARGETS
    for module in re.findall(r"python -m ((?:tasks|flows|benchmarks)[\w.]*)", code):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    for command in re.findall(r"python -m tasks ([a-z]+)", code):
        homes = (ROOT / f"tasks/{room}/{command}.py" for room in ("stages", "commands"))
        assert any(home.is_file() for home in homes), command


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_only_options_that_exist(name: str) -> None:
    code = "\n".join(re.findall(r"^```.*?^```|(?<!`)`[^`\n]+`(?!`)", text_of(name), flags=re.MULTILINE | re.DOTALL))
    called = r"python -m ((?:tasks|flows|benchmarks|deploy|examples)(?:\.\w+)*)([^\n`#|;&]*)"
    for module, words in re.findall(called, code.replace("\\\n", " ")):
        command = next(iter(re.findall(r"^ ([a-z_]+)", words)), "")
        homes = [f"{module.replace('.', '/')}.py", f"{module.replace('.', '/')}/__main__.py", "tasks/common/workers.py"]
        homes += ["tasks/shown/asking.py", f"tasks/commands/{command}.py"] if module == "tasks" else []
        source = "\n".join((ROOT / home).read_text(encoding="utf-8") for home in homes if (ROOT / home).is_file())
        options = set(re.findall(r"(?<= )--[a-z-]+", words)) - {"--help"}
        assert [option for option in options if f'"{option}"' not in source] == [], module + words


def test_the_columns_that_a_page_drops_from_dvcs_table_are_those_of_files_and_times() -> None:
    (pattern,) = re.findall(r"dvc exp show .*--drop '(.+)'", text_of("docs/guides/change-something.md"))
    dropped = [
        name
        for name in ("Created", "own", "pruning/core", "data/train/model", "prune.retain")
        if re.match(pattern, name)
    ]
    assert dropped == ["Created", "own", "pruning/core", "data/train/model"]  # DVC looks from a name's start


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_only_parameters_that_exist(name: str) -> None:
    for section, field in re.findall(r"-S '?([a-z_]+)\.([a-z_]+)=", text_of(name)):
        assert field in VALUES[section], f"{section}.{field}"
    for section, field in re.findall(r"-S '?experiment/params.yaml:([a-z_]+)\.([a-z_]+)=", text_of(name)):
        assert field in OWN[section], f"{section}.{field}"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_only_files_that_exist(name: str) -> None:
    named = re.findall(r"`((?:pruning|tasks|flows|tests|docs|experiment)/[\w./]+\.(?:py|pyi|yaml|md))`", text_of(name))
    assert all((ROOT / path).is_file() for path in named), [path for path in named if not (ROOT / path).is_file()]


@pytest.mark.parametrize("name", PAGES)
def test_a_pages_python_is_valid_and_calls_public_names_alone(name: str) -> None:
    for block in blocks_of(name):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pruning":
                assert node.attr in pruning.__all__


@pytest.mark.parametrize("name", ["docs/start/first-model.md", "docs/guides/own-loss.md"])
def test_a_pages_program_runs_as_it_stands(name: str) -> None:
    for block in blocks_of(name):
        exec(block, {})  # noqa: S102 - the page's own words


@pytest.mark.parametrize("name", ["README.md", "docs/guides/choosing.md"])
def test_a_page_makes_a_users_network_smaller(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))
    inputs = torch.randn(16, 6)
    batches = [(part, part[:, :3].argmax(dim=1)) for part in torch.randn(64, 6).split(16)]
    names = {"pruning": pruning, "torch": torch, "network": network, "inputs": inputs, "train": batches}
    names["valid"] = batches
    monkeypatch.chdir(tmp_path)
    for block in blocks_of(name):
        exec(block, names)  # noqa: S102 - the page's own words
    assert names["smaller"].module(inputs).shape == (16, 3)
    assert name != "README.md" or names["smaller"].widths() == (10,)
    assert (tmp_path / ("smaller/plan.json" if name == "README.md" else "error.png")).is_file()


def words_of(text: str) -> list[str]:
    """Return what a text says apart from its figures, which another processor may round otherwise."""
    return re.findall(r"[a-zA-Z/]+", text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_prints_what_it_shows(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    names: dict[str, object] = {}
    threads = torch.get_num_threads()
    try:
        for cell in cells:
            exec("".join(cell["source"]), names)  # noqa: S102 - the notebook's own words
            shown = "".join(line for output in cell["outputs"] for line in output.get("text", []))
            printed = capsys.readouterr().out
            assert words_of(printed) == words_of(shown)
    finally:
        torch.set_num_threads(threads)


def test_every_table_of_the_code_is_explained_column_by_column(generate: ModuleType) -> None:
    page = generate.tables()
    for table in FORMS:  # of a table that has two, the longer one is explained
        section = page.partition(f"\n## {table.name}\n")[2].partition("\n## ")[0]
        explained = re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)
        longest = max((form for form in FORMS if form.name == table.name), key=lambda form: len(form.columns))
        assert explained == list(longest.columns)
        assert table.columns.keys() <= longest.columns.keys()


def test_every_parameter_is_explained_with_its_value_and_bounds(generate: ModuleType) -> None:
    page = generate.parameters()
    for name, fields in VALUES.items():
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert set(fields) <= set(re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE))
    experiment = page.partition("\n## The experiment\n")[2]
    for name, fields in OWN.items():
        section = experiment.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
        known = re.findall(r"^\| `(\w+)` \|", section or experiment, flags=re.MULTILINE)
        assert set(fields if section else [name]) <= set(known)
    assert "| `retain` | `0.5` | a number above 0 and at most 1 |" in page
    assert "fewest neurons of a layer" in page
    assert "&lt;eos>" in page  # which a browser would take for HTML


def test_the_reference_lists_every_public_name_once() -> None:
    listed = re.findall(r"^::: pruning\.(\w+)$", text_of("docs/reference/library.md"), flags=re.MULTILINE)
    assert sorted(listed) == sorted(pruning.__all__)


def test_troubleshooting_is_keyed_by_sentences_of_the_code() -> None:
    templates = set(_templates())
    keys = re.findall(r"^### ``(.*)``$", text_of("docs/guides/troubleshooting.md"), flags=re.MULTILINE)
    assert len(keys) >= 30
    assert not [key for key in keys if not any(key in template for template in templates)]


def _templates() -> Iterator[str]:
    """Return the texts in the code, `…` in place of what is filled in."""
    for folder in ("pruning", "tasks", "flows", "deploy"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_every_page_of_the_site_is_in_its_navigation() -> None:
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    generated = {"reference/tables.md", "reference/parameters.md", *(f"notebooks/{path.stem}.md" for path in NOTEBOOKS)}
    assert listed == {name.removeprefix("docs/") for name in PAGES if name.startswith("docs/")} | generated


@pytest.mark.parametrize("name", pruning.__all__)
def test_every_public_name_has_an_example(name: str) -> None:
    assert ">>>" in (inspect.getdoc(getattr(pruning, name)) or "")


def test_the_picture_of_the_pipeline_has_every_stage_and_arrow_that_dvc_yaml_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from docs.picture import PICTURE, picture

    monkeypatch.chdir(ROOT)
    drawn, now = (re.findall("<title>.*?</title>", text) for text in (PICTURE.read_text("utf-8"), picture()))
    assert sorted(drawn) == sorted(now), "run `python -m docs.picture`"
    assert "<title>finetune → evaluate</title>" in drawn
