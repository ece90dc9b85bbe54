"""Every home of a fact agrees with the others: dvc.yaml, params.yaml, code."""

import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any, get_args

import grimp
import pytest
from ruamel.yaml import YAML

import pruning
from pruning.core import options
from pruning.fusion.schemas import CHOICES
from pruning.models import FAMILIES
from pruning.repair.reconstruction import REPAIRS
from pruning.signals.schemas import SIGNALS
from tasks.experiment.settings import Experiment
from tasks.settings.choosing import Variant
from tasks.settings.parameters import Parameters
from tests.projects import ROOT
from tests.schemas import TABLES

PIPELINE = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
TRACKING = PIPELINE.pop("track")
EXPERIMENT = YAML(typ="safe").load(ROOT / "experiment/dvc.yaml")["stages"]
VALUES = YAML(typ="safe").load(ROOT / "params.yaml")
OWN = YAML(typ="safe").load(ROOT / "experiment/params.yaml")
BY_MODULE = ("pruning/experiment", "tasks/experiment", "tasks/stages")
"""Rooms of which a stage depends on single modules."""
NO_RESULT = {"tasks/settings", "tasks/shown", "tasks/__main__.py"}
"""What reads words, refuses settings and shows progress, and changes no result: a stage does not depend on it."""
GRAPH = grimp.build_graph("pruning", "tasks", cache_dir=None)
for refusing in GRAPH.find_descendants("tasks.settings"):
    GRAPH.remove_module(refusing)


def entry(name: str) -> dict[str, list[str]]:
    return dict(PIPELINE[name].get("do", PIPELINE[name]))


def own_entry(name: str) -> dict[str, list[Any]]:
    return dict(EXPERIMENT[name].get("do", EXPERIMENT[name]))


def rooms_of(*modules: str) -> set[str]:
    """Return the rooms, and the stages' own modules, of all that a stage's modules import, however indirectly."""
    start = {*modules, "tasks.__main__"}
    imported = start.union(*(GRAPH.find_upstream_modules(module) for module in start))
    return {room for module in imported if (room := room_of(module))} - NO_RESULT


def room_of(module: str) -> str | None:
    """Return the folder below `pruning` or `tasks` that a module is in, or its file if it is in none, or a stage.

    The rooms `experiment` hold what measures, what prunes and what compares; who needs one does not need the others.
    """
    path = Path(module.replace(".", "/"))
    room = path if str(Path(*path.parts[:2])) in BY_MODULE else Path(*path.parts[:2])
    if room.with_suffix(".py").is_file():
        return f"{room}.py"
    return str(room) if len(room.parts) > 1 and str(room) not in BY_MODULE else None


@pytest.mark.parametrize("name", PIPELINE)
def test_a_stage_depends_on_exactly_the_rooms_it_imports_from(name: str) -> None:
    listed = {path for path in entry(name)["deps"] if path.startswith(("pruning/", "tasks/"))}
    assert listed == rooms_of(f"tasks.stages.{name}")


@pytest.mark.parametrize("name", EXPERIMENT)
def test_a_stage_of_the_experiment_depends_on_exactly_the_rooms_it_imports_from(name: str) -> None:
    listed = {path for path in own_entry(name)["deps"] if path.startswith(("pruning/", "tasks/"))}
    assert listed == rooms_of(f"tasks.experiment.{name.partition('_')[0]}", "tasks.experiment.settings")


@pytest.mark.parametrize("name", EXPERIMENT)
def test_a_stage_of_the_experiment_has_one_name_everywhere_and_reads_what_another_writes(name: str) -> None:
    own, verb = own_entry(name), name.partition("_")[0]
    variant = " ${item}" if "foreach" in EXPERIMENT[name] else ""
    assert own["cmd"] == f"exec python -m tasks experiment.{name}{variant}"
    assert own["wdir"] == ".."
    assert all(path.startswith(f"data/experiment/{verb}/") for path in own["outs"])
    written = {path.partition("$")[0] for other in EXPERIMENT for path in own_entry(other)["outs"]}
    read = {path.partition("$")[0] for path in own["deps"] if path.startswith("data/")}
    assert all(any(path.startswith(out) or out.startswith(path) for out in written) for path in read)


@pytest.mark.parametrize("name", PIPELINE)
def test_a_stage_has_one_name_everywhere(name: str) -> None:
    own = entry(name)
    assert own["cmd"] == f"exec python -m tasks {name}" + (" ${key}" if "foreach" in PIPELINE[name] else "")
    assert (ROOT / f"tasks/stages/{name}.py").is_file()
    outputs = [
        item if isinstance(item, str) else next(iter(item))
        for kind in ("outs", "metrics", "plots")
        for item in own.get(kind, [])
    ]
    assert all(path.startswith(f"data/{name}/") for path in outputs)


def test_every_section_of_the_parameters_is_read_by_a_stage() -> None:
    read = {section.split(".")[0] for name in PIPELINE for section in entry(name).get("params", [])}
    assert {*read, "promotion"} == set(VALUES) == set(Parameters.model_fields)


def test_the_last_stage_tracks_all_that_others_write_and_no_result_depends_on_it() -> None:
    assert TRACKING["cmd"] == "exec python -m tasks track"
    assert not {"outs", "metrics", "plots", "params"} & set(TRACKING)
    assert set(TRACKING["deps"]) <= {f"data/{name}" for name in PIPELINE}


def test_every_section_of_the_experiments_parameters_is_read_by_a_stage_and_no_two_files_name_one_alike() -> None:
    lists = [item for name in EXPERIMENT for item in own_entry(name).get("params", [])]
    read = {name for item in lists if not isinstance(item, str) for name in item["experiment/params.yaml"]}
    assert read == set(OWN) == set(Experiment.model_fields)
    assert {item.partition(".")[0] for item in lists if isinstance(item, str)} <= set(VALUES)
    assert not set(OWN) & set(VALUES)


def test_the_words_that_settings_may_hold_are_said_in_the_library_alone() -> None:
    source = "".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "tasks/settings").glob("*.py")))
    precision = '"highest", "high", "medium"'  # of the process, which the library leaves alone
    known = {'"all"', precision, "CHOICES", "*SIGNALS, *LEARNABLE"}
    assert set(re.findall(r"Literal\[([^]]*)]", source)) == known
    assert tuple(FAMILIES) == get_args(options.Family)
    assert get_args(options.Repair) == (*REPAIRS, "imitate")


def test_every_signal_has_its_module_stage_section_and_table() -> None:
    for signal in SIGNALS:
        assert (ROOT / f"pruning/signals/{signal}.py").is_file()
        assert signal in PIPELINE
        assert signal in VALUES
        assert signal in TABLES
        assert f"data/{signal}/{signal}.parquet" in entry("fuse")["deps"]


@pytest.mark.parametrize("choice", CHOICES)
def test_a_variant_can_choose_by_every_importance_of_the_table(choice: str) -> None:
    assert Variant(by=choice).by == choice
    assert choice in TABLES["importance"].columns


def test_cleaning_removes_what_stages_and_commands_make_and_nothing_else(tmp_path: Path) -> None:
    for name in ("Makefile", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in (*PIPELINE, "choice", "experiment", "export", "mine", ".partial"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data/README.md").touch()
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"mine", "README.md"}


@pytest.mark.parametrize(("target", "port"), [("mlflow", "MLFLOW_PORT"), ("prefect", "PREFECT_PORT")])
def test_a_server_whose_port_is_taken_says_so_in_one_sentence(target: str, port: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/.run").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        run = ["make", "-o", ".venv/.run", target, f"{port}={number}"]
        done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    sentence, _ = done.stderr.splitlines()
    assert sentence == (
        f"Expected a free port, got {number}, on which a program listens; make {target} {port}=NUMBER takes another."
    )


def test_the_front_door_lists_every_public_name_and_opens_to_each() -> None:
    assert set(pruning.__all__) <= set(dir(pruning))
    homes = {name: getattr(pruning, name).__module__ for name in pruning.__all__}
    assert all(home.startswith("pruning.") for home in homes.values())


def test_no_room_bears_a_public_functions_name() -> None:
    rooms = {path.stem for path in (ROOT / "pruning").iterdir()}
    assert not rooms & set(pruning.__all__)
