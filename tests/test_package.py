"""The library as a wheel: light, alone, typed, and in an empty environment what it is here."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from importlib.metadata import distribution, packages_distributions
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement
from torch import nn

import pruning
from pruning import command
from pruning.extras import DISTRIBUTION, needed
from tests.projects import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
PINS = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
WITHOUT = """
from importlib.machinery import PathFinder
find_spec = PathFinder.find_spec
def found(name, path=None, target=None):
    return None if name.partition(".")[0] in {absent} else find_spec(name, path, target)
PathFinder.find_spec = staticmethod(found)
import sys
"""
"""What lets a process not find some packages."""
USED = """
import torch
import pruning

network = torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.Tanh(), torch.nn.Linear(9, 2))
inputs = torch.randn(1, 4)
train = [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(4)]
valid = train[:2]
"""
"""What the README's lines are given."""
TYPED = """
import pruning

def halved(model: pruning.PrunableModule, batches: list[object]) -> pruning.PrunableModule:
    importance: pruning.Importance = pruning.importance(model, batches, signals=["weights"])
    reveal_type(importance.by)
    reveal_type(pruning.save)
    smaller = pruning.prune(model, importance)
    reveal_type(smaller)
    reveal_type(pruning.finetune(smaller, batches))
    reveal_type(pruning.evaluate(smaller, batches).mean)
    pruning.save(smaller, 3)
    return pruning.select(model, importance.keep(0.5))
"""


def names_of(requirements: Sequence[str]) -> list[str]:
    return [Requirement(text).name for text in requirements]


def test_the_lock_and_the_pins_are_those_of_the_project() -> None:
    ours = next(package for package in LOCK["package"] if package["name"] == DISTRIBUTION)
    locked: dict[str, set[str]] = {}
    for wanted in ours["metadata"]["requires-dist"]:
        extra = (re.findall(r"extra == '([^']+)'", wanted.get("marker", "")) or [""])[0]
        locked.setdefault(extra, set()).add(wanted["name"] + wanted.get("specifier", ""))
    listed = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    for extra, requirements in listed.items():
        wanted = [Requirement(text) for text in requirements]
        others = {each.name + str(each.specifier) for each in wanted if each.name != DISTRIBUTION}
        assert {normal(text) for text in others} <= {normal(text) for text in locked.get(extra, set())}, extra
    versions = {(package["name"], package["version"]) for package in LOCK["package"]}
    assert all(tuple(pin.split("==")) in versions for pin in PINS)
    assert len({pin.partition("==")[0] for pin in PINS}) == len(PINS)


def normal(text: str) -> tuple[str, frozenset[str]]:
    requirement = Requirement(text)
    return requirement.name.lower().replace("_", "-").replace(".", "-"), frozenset(map(str, requirement.specifier))


def test_the_lock_names_no_index_but_the_public_one() -> None:
    text = (ROOT / "uv.lock").read_text(encoding="utf-8")
    assert set(re.findall(r"https?://([^/\"]+)", text)) == {"pypi.org", "files.pythonhosted.org"}
    assert not re.search(r'"(file:|/)', text)


def modules_of_extras() -> list[str]:
    """Return the modules of the packages that the extras for users list, and the core does not."""
    listed = [name for extra in command.EXTRAS for name in names_of(PROJECT["optional-dependencies"][extra])]
    core = {DISTRIBUTION, *names_of(PROJECT["dependencies"])}
    brought = {name.lower().replace("_", "-") for name in listed if name not in core}
    installed = packages_distributions().items()
    modules = {module for module, names in installed if brought & {name.lower().replace("_", "-") for name in names}}
    return sorted(modules | {name for name in brought if name.isidentifier()})


def without(modules: Sequence[str], code: str) -> str:
    """Run code in a process that does not find some modules, and return what it printed."""
    whole = WITHOUT.format(absent=set(modules)) + code
    done = subprocess.run([sys.executable, "-c", whole], cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return done.stdout


def test_importing_the_library_imports_no_other_package_of_size() -> None:
    code = "import pruning\nprint(*{name.partition('.')[0] for name in sys.modules})"
    assert not {"torch", "pandas", *modules_of_extras()} & set(without([], code).split())


LACKING = {
    "matplotlib": ("plots", "importance.plot()"),
    "onnx": ("export", "pruning.onnx_of(found)"),
    "pyarrow": ("pipeline", "files.write_table('t', None, None, {})"),
}
"""Package → its extra, and a call that needs it."""


def test_without_the_packages_of_the_extras_every_public_name_is_had_and_a_call_that_lacks_one_says_which() -> None:
    modules = modules_of_extras()
    assert {"matplotlib", "onnx", "pyarrow", "dvc", "prefect", "mlflow", "pydantic", "rich", "ruamel"} <= set(modules)
    tries = "".join(f"try: {call}\nexcept ModuleNotFoundError as error: print(error)\n" for _, call in LACKING.values())
    code = f"""{USED}
for name in pruning.__all__: getattr(pruning, name)
from pruning.compat import files
found = pruning.discover(network, inputs)
importance = pruning.importance(found, train, signals=["weights"])
{tries}"""
    sentences = [
        f"Expected the package {package}, got none; pip install '{DISTRIBUTION}[{extra}]'."
        for package, (extra, _) in LACKING.items()
    ]
    assert without(modules, code).splitlines() == sentences
    assert all(package in names_of(PROJECT["optional-dependencies"][extra]) for package, (extra, _) in LACKING.items())


def test_a_package_that_is_there_and_lacks_one_of_its_own_says_that_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lacking_package.py").write_text("import a_package_that_nobody_has\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'a_package_that_nobody_has'$"):
        needed("lacking_package", "plots")


# In an empty environment.


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built of a copy of what a release is built of."""
    pytest.importorskip("setuptools", "77", reason="setuptools, which builds the wheel, is not installed or is old")
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("pruning", "tasks", "flows"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('made'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=folder, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    (path,) = (folder / "made").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of its own with the wheel and the core's packages, in which nothing else is seen."""
    if find_spec("ensurepip") is None:
        pytest.skip("this Python makes no environments with pip: its ensurepip is missing")
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in core_packages():
        for place in {
            file.parts[0] for file in distribution(name).files or [] if file.parts[0] not in ("..", "__pycache__")
        }:
            if not (packages / place).exists():
                (packages / place).symlink_to(Path(str(distribution(name).locate_file(place))))
    run(folder, ["python", "-m", "pip", "install", "--no-index", "--no-deps", "--quiet", str(wheel)], folder)
    return folder


def core_packages() -> list[str]:
    """Return the packages that the library asks for, and those that these ask for, here."""
    names: list[str] = []
    asked = [Requirement(text) for text in PROJECT["dependencies"]]
    while asked:
        each = asked.pop()
        if each.name in names or (each.marker and not each.marker.evaluate({"extra": ""})):
            continue
        names.append(each.name)
        asked += map(Requirement, distribution(each.name).requires or [])
    return names


def run(environment: Path, words: Sequence[str], folder: Path, *, fails: bool = False) -> str:
    """Run a command of an environment in a folder, and return what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_", "VIRTUAL"))}
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [environment / "bin" / words[0], *words[1:]],
        cwd=folder,
        env={**kept, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert bool(done.returncode) == fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


def test_the_wheel_holds_the_library_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        names = files.namelist()
        (about,) = (files.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    assert {name.partition("/")[0] for name in names} == {"pruning", f"neuron_pruning-{PROJECT['version']}.dist-info"}
    assert {"pruning/py.typed", "pruning/__init__.pyi"} <= set(names)
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pruning").rglob("*.py")}
    assert {name for name in names if name.startswith("pruning/") and name.endswith(".py")} == modules
    core = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", about, flags=re.MULTILINE)
    light = ["torch", "numpy", "pandas", "scipy", "scikit-learn", "safetensors", "lazy-loader", "packaging"]
    assert core == light


def test_the_readmes_lines_run_in_an_empty_environment(environment: Path, tmp_path: Path) -> None:
    (lines,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    after = "print(pruning.__file__)\nassert pruning.restore(network, 'smaller')(inputs).shape == (1, 2)"
    code = f"{USED}\n{lines}\n{after}\n"
    (tmp_path / "program.py").write_text(code, encoding="utf-8")
    *_, home = run(environment, ["python", "program.py"], tmp_path).splitlines()
    assert Path(home).is_relative_to(environment)
    assert "Expected" not in run(environment, ["python", "-m", "pip", "check"], tmp_path)
    shown = run(environment, ["neuron-pruning", "describe", "smaller"], tmp_path)
    assert re.search(r"^0 +dense +9 +\d+ +\d+%$", shown, flags=re.MULTILINE)
    others = (
        "import importlib.util as u; print([u.find_spec(name) for name in ('tasks', 'flows', 'matplotlib', 'dvc')])"
    )
    assert run(environment, ["python", "-c", others], tmp_path) == "[None, None, None, None]\n"


def test_the_entry_point_tells_what_is_there_and_what_an_extra_lacks(environment: Path, tmp_path: Path) -> None:
    assert run(environment, ["neuron-pruning", "--version"], tmp_path) == f"neuron-pruning {PROJECT['version']}\n"
    answer = json.loads(run(environment, ["neuron-pruning", "about", "--json"], tmp_path))
    assert answer["torch"] == distribution("torch").version
    assert answer["devices"][0] == "cpu"
    assert answer["extras"]["plots"] == ["matplotlib"]
    assert answer["extras"]["export"] == ["onnx", "onnxscript", "onnxruntime"]
    assert {"matplotlib", "pyarrow", "dvc", "prefect", "mlflow"} <= set(answer["extras"]["pipeline"])


def test_public_names_have_types_for_who_installed_the_wheel(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(TYPED, encoding="utf-8")
    skipped = "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in ("torch", "numpy", "pandas", "scipy"))
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nstrict = true\n{skipped}", encoding="utf-8")
    checker = [sys.executable, "-m", "mypy", "--python-executable", str(environment / "bin/python"), "user.py"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MYPY"))}
    said = subprocess.run(checker, cwd=tmp_path, env=kept, capture_output=True, text=True).stdout
    assert re.findall(r'Revealed type is "([^"]*)', said) == [
        "str",
        "def (model: pruning.core.neurons.PrunableModule, folder: str | pathlib.Path)",
        "pruning.models.base.Measurable",
        "pruning.models.base.Measurable",
        "float",
    ]
    errors = [line for line in said.splitlines() if " error: " in line]
    assert len(errors) == 1, said
    assert 'Argument 2 to "save" has incompatible type "int"' in errors[0]


# What the entry point says, in this process.


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    found = pruning.discover(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.ones(1, 3))
    pruning.save(pruning.select(found, {"0": torch.tensor([6, 1, 2])}), tmp_path / "smaller")
    return tmp_path / "smaller"


def test_a_saved_plan_is_described_by_its_layers_and_its_size(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["describe", str(saved), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "network": "torch.nn.modules.container.Sequential",
        "numbers": 20,
        "bytes": 80,
        "types": ["float32"],
        "dense_parameters": 50,
        "layers": [{"name": "0", "kind": "dense", "width": 8, "left": 3}],
    }


def test_a_folder_that_is_none_of_ours_is_refused_in_a_sentence(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["describe", str(saved.parent)]) == 1
    assert "got no plan.json; name a folder that was written whole." in capsys.readouterr().err
    next(saved.glob("tensors-*")).write_bytes(b"half")
    assert command.main(["describe", str(saved)]) == 1
    assert "got a damaged file; copy the whole folder, or save it again." in capsys.readouterr().err


def test_a_package_built_for_another_torch_is_named_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unfit_package.py").write_text(
        "raise RuntimeError('operator unfit::nms does not exist')\n", encoding="utf-8"
    )
    (tmp_path / "unfit_package-1.0.dist-info").mkdir()
    about = "Metadata-Version: 2.1\nName: unfit_package\nVersion: 1.0\n"
    (tmp_path / "unfit_package-1.0.dist-info/METADATA").write_text(about, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(command, "BESIDE", ("unfit_package", "a_package_that_nobody_has"))
    assert command.main(["about"]) == 0
    assert (
        f"Expected a unfit_package built for torch {distribution('torch').version}, got unfit_package 1.0 "
        "(operator unfit::nms does not exist); install both from one index." in capsys.readouterr().out
    )


def test_without_a_question_the_entry_point_says_what_can_be_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    assert re.search(r"about .*describe ", capsys.readouterr().out, flags=re.DOTALL)


def test_what_an_extra_lacks_is_said_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "BESIDE", ())
    requires = [
        f"{text}; extra == '{extra}'" for extra, texts in PROJECT["optional-dependencies"].items() for text in texts
    ]
    monkeypatch.setattr(
        command, "distribution", lambda _: SimpleNamespace(requires=[*PROJECT["dependencies"], *requires])
    )
    monkeypatch.setattr(command, "_installed", lambda package: package in ("matplotlib", "dvc"))
    assert command.main(["about"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^plots +installed$", shown, flags=re.MULTILINE)
    assert "pip install 'neuron-pruning[export]' (no onnx, onnxscript, onnxruntime)" in shown
    assert re.search(r"pip install 'neuron-pruning\[pipeline\]' \(no torch, pandas and \d+ more\)", shown)
