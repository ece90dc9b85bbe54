"""The pages of the site that are made from the code: the tables' columns, the parameters, the notebooks as text."""

import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pruning.core.tables import Table
from tasks.experiment.settings import Experiment
from tasks.settings.parameters import Parameters
from tasks.shown.wording import described

ROOT = Path(__file__).resolve().parents[1]
CODE = ("pruning", "tasks")


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to those of the site; MkDocs calls this once in a build."""
    from mkdocs.structure.files import File

    pages = {"reference/tables.md": tables(), "reference/parameters.md": parameters()}
    for path in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        pages[f"notebooks/{path.stem}.md"] = notebook(path)
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def schemas() -> dict[str, Table]:
    """Return every `Table` that a module of the code holds, by itself or in a mapping, by name."""
    found = {}
    for module in _modules_with_tables():
        for value in vars(module).values():
            parts = value.values() if isinstance(value, Mapping) else (value,)
            found.update({part.name: part for part in parts if isinstance(part, Table)})
    return dict(sorted(found.items()))


def _modules_with_tables() -> Iterator[Any]:
    """Import the modules that speak of tables, and no other: the whole of the code takes seconds."""
    for path in sorted(path for folder in CODE for path in (ROOT / folder).rglob("*.py")):
        if "Table" in path.read_text(encoding="utf-8"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield importlib.import_module(name.removesuffix(".__init__"))


def tables() -> str:
    """Return the page of the tables: for each its key and, by column, type, unit and meaning."""
    lines = [
        "# Tables",
        "",
        "Typed Parquet in `data/<stage>/[<variant>/]<table>.parquet`; name, key and units travel in the file, and each",
        "page has a checksum that is verified when it is read. This page is made from the schemas in the code.",
    ]
    for table in schemas().values():
        lines += ["", f"## {table.name}", "", f"Key: {', '.join(f'`{name}`' for name in table.key)}.", ""]
        lines += ["| column | type | unit | meaning |", "|---|---|---|---|"]
        for name, column in table.columns.items():
            lines.append(f"| `{name}` | {column.type} | {column.unit or '–'} | {_cell(column.meaning)} |")
    return "\n".join(lines) + "\n"


def parameters() -> str:
    """Return the page of both settings files: for each field its value, what it may hold, the comment beside it."""
    lines = [
        "# Parameters",
        "",
        "All values that change a number stand in `params.yaml`, a section for each stage. A wrong one gets one",
        "sentence before any work. What the experiment compares, and how, stands in `experiment/params.yaml`, the last",
        "section here. This page is made from the two files and from the bounds in the code.",
        *_sections(YAML().load(ROOT / "params.yaml"), Parameters.model_json_schema(), "##"),
        "",
        "## The experiment",
        *_sections(YAML().load(ROOT / "experiment/params.yaml"), Experiment.model_json_schema(), "###"),
    ]
    return "\n".join(lines) + "\n"


def _sections(values: Any, schema: Mapping[str, Any], heading: str) -> list[str]:
    """Return the lines of one settings file: what stands in no section first."""
    lines: list[str] = []
    if alone := {name: schema["properties"][name] for name, value in values.items() if not isinstance(value, Mapping)}:
        lines += ["", *_fields(values, alone, schema)]
    for section, fields in values.items():
        if section in alone:
            continue
        holder = schema["properties"][section]
        known = schema["$defs"].get(holder.get("$ref", "").rpartition("/")[2])
        lines += ["", f"{heading} {section}", ""]
        if known is None:
            lines += ["| name | value |", "|---|---|"]
            lines += [f"| `{name}` | {_value(value)} |" for name, value in fields.items()]
            inner = schema["$defs"]["Variant"]
            lines += ["", "Each may set:", "", "| field | may be |", "|---|---|"]
            lines += [f"| `{name}` | {_allowed(field, schema)} |" for name, field in inner["properties"].items()]
            continue
        if comment := comment_beside(values, section):
            lines += [f"{comment[0].upper()}{comment[1:]}.", ""]
        lines += _fields(fields, known["properties"], schema)
    return lines


def _fields(values: Any, known: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    """Return a table of fields: value, what it may hold, and the comment beside it."""
    lines = ["| field | value | may be | meaning |", "|---|---|---|---|"]
    for name, field in known.items():
        allowed, meaning = _allowed(field, schema), _cell(comment_beside(values, name))
        lines.append(f"| `{name}` | {_value(values[name])} | {allowed} | {meaning} |")
    return lines


def comment_beside(holder: Any, name: str) -> str:
    r"""Return the comment that stands beside a field, lines below it that go on with it included.

    >>> comment_beside(YAML().load("a: 1  # one\n      # and more\nb: 2"), "a")
    'one and more'
    """
    found = [token for token in holder.ca.items.get(name, ()) if token]
    tokens = [token for each in found for token in (each if isinstance(each, list) else [each])]
    text = "".join(token.value for token in tokens).partition("\n\n")[0]
    return " ".join(line.strip().removeprefix("#").strip() for line in text.splitlines()).strip()


def notebook(path: Path) -> str:
    """Return a notebook as a page: its text, its code, and what the code printed and drew when it was last run."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"]).strip("\n")
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        printed = "".join(part for output in cell.get("outputs", []) for part in output.get("text", []))
        if printed:
            parts.append(f"```text\n{printed.rstrip()}\n```")
        drawn = [output["data"]["image/png"] for output in cell.get("outputs", []) if "data" in output]
        parts += [f'<img alt="what the code drew" src="data:image/png;base64,{each}">' for each in drawn]
    parts.append(f"[The notebook itself]({path.name}); the tests run it.")
    return "\n\n".join(parts) + "\n"


def _allowed(field: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Return in words what a field may hold; a reference among its schemas is followed."""
    reference = field.get("$ref")
    found = schema["$defs"][reference.rpartition("/")[2]] if reference else field
    words = described({**found, "$defs": schema["$defs"]})
    unbounded = words.replace("from 1 to 2147483647", "of at least 1").replace(" to 2147483647", " up")
    return _cell(unbounded.replace("'", "`"))


def _value(value: Any) -> str:
    """Return a value for a cell of a table; a list in pieces, between which a line may end.

    >>> _value([0.5, "random"]), _value(None)
    ('`0.5`, `random`', '`null`')
    """
    return ", ".join(f"`{_flow(part)}`" for part in value) if isinstance(value, list) and value else f"`{_flow(value)}`"


def _flow(value: Any) -> str:
    """Return a value as it is written in one line of YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_flow(part)}" for name, part in value.items()) + "}"
    return f"[{', '.join(map(_flow, value))}]" if isinstance(value, list) else str(value)


def _cell(text: str) -> str:
    """Return text that a cell of a Markdown table can hold; what stands in `<>` is no HTML."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
