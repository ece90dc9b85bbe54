"""A project with results that no stage made, what MLflow is told of them, and how to ask it."""

import hashlib
import io
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from functools import reduce
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML

from pruning.evaluation.comparison import compare
from tasks.__main__ import main
from tasks.commands.tracking import models, store
from tasks.common.models import write_model
from tasks.common.pipeline import read_stage
from tasks.common.reading import read_yaml
from tasks.common.tables import write_table
from tests.projects import ROOT
from tests.schemas import TABLES as SCHEMAS
from tests.tiny import VOCABULARY, tiny

QUIET = [
    pytest.mark.filterwarnings("ignore:For backward compatibility, 'str' dtypes are included"),  # log_table, pandas 3
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType"),  # of classes of MLflow's own
]
"""What MLflow warns of and nobody here can mend."""
VARIANTS = {"dense": 1.0, "random": 0.5, "traditional": 0.5, "enhanced": 0.5, "surgeon": 0.5}
STEPS = 2500


def write_results(folder: Path) -> None:
    folder.mkdir()
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, folder / name)
    command = ["git", "-c", "user.name=n", "-c", "user.email=e", "commit", "--quiet", "-m", "m"]
    for words in (["git", "init", "--quiet"], ["git", "add", "."], command):
        subprocess.run(words, cwd=folder, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        values = read_yaml(Path("params.yaml"))
        stages = list(stages_of(values))
        for stage in stages:
            for path in stage.outputs.values():
                write_output(path, stage.name, stage.variant)
        write_lock(stages, values)


def stages_of(values: Mapping[str, Any]) -> Iterator[Any]:
    for name, entry in read_yaml(Path("dvc.yaml"))["stages"].items():
        if name == "track":
            continue
        for variant in VARIANTS if "foreach" in entry else [None]:
            yield read_stage(name, variant, values)


def write_output(path: Path, stage: str, variant: str | None) -> None:
    if path.suffix == ".parquet" and path.stem in TABLES:
        write_table(path, TABLES[path.stem](stage, variant), SCHEMAS[path.stem])
    elif path.suffix:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{path}, which tracking never reads")
    else:
        path.mkdir(parents=True)
        (path / "text.txt").write_text("w2 w3\n")
        if (stage, path.stem) == ("finetune", "model"):
            write_model(path, tiny(dtype=torch.float32))
            return
        (path / "config.json").write_text(json.dumps({"widths": [3]}))
        (path / "plot.png").write_bytes(b"a picture")
        (path / "importance-random.png").write_bytes(b"a picture of one")


def write_lock(stages: list[Any], values: Mapping[str, Any]) -> None:
    lock: dict[str, Any] = {}
    for stage in stages:
        used = {name: setting(values, name) for name in stage.sections}
        inputs = [path for path in stage.inputs.values() if path.suffix or path.name == "model"]
        lock[stage.address] = {
            "deps": [{"path": str(path), "md5": md5(path)} for path in inputs],
            "params": {"params.yaml": used},
            "outs": [{"path": str(path), "md5": md5(path)} for path in stage.outputs.values()],
        }
    YAML().dump({"schema": "2.0", "stages": lock}, Path("dvc.lock"))


def setting(values: Any, name: str) -> Any:
    """Return what stands at a dotted name, as DVC's lock holds it."""
    return reduce(lambda inner, key: inner[key], name.split("."), values)


def md5(path: Path) -> str:
    content = path.read_bytes() if path.is_file() else str(path).encode()
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def timing(stage: str, variant: str | None) -> pd.DataFrame:
    frame = pd.DataFrame([("", "stage", 0, 7.0, 0.0)], columns=["phase", "measure", "batch", "seconds", "spread"])
    frame.insert(0, "variant", variant or "")
    frame.insert(0, "stage", stage)
    return frame.assign(device="a GPU (cuda:0)" if stage == "train" else "cpu")


def latency(_stage: str, _variant: str | None) -> pd.DataFrame:
    rows = [
        {"model": variant, "batch": batch, "seconds": seconds * kept, "speed_up": 1 / kept, "error": 0.1 * (kept < 1)}
        for variant, kept in VARIANTS.items()
        for batch, seconds in ((1, 0.001), (32, 0.004))
    ]
    waited = pd.Series([0.2, float("nan")] * len(VARIANTS))
    return pd.DataFrame(rows).assign(spread=0.1, repeats=10, device="cpu", waited=waited)


def history(stage: str, _variant: str | None) -> pd.DataFrame:
    steps = range(1, (STEPS if stage == "train" else 4) + 1)
    frame = pd.DataFrame({"phase": stage, "step": steps, "tokens": [10 * step for step in steps]})
    valid = [2.0 if step % 2 == 0 and step > steps[-1] - 4 else None for step in steps]
    frame["train_loss"], frame["valid_loss"] = [1 / step for step in steps], pd.Series(valid, dtype=float)
    return frame.assign(learning_rate=0.5)


def evaluation(_stage: str, variant: str | None) -> pd.DataFrame:
    kept = VARIANTS[str(variant)]
    before = "dense" if kept == 1 else "pruned"
    repaired = {} if kept == 1 else {"reconstructed": 19 / kept}
    perplexity = {before: 20 / kept, **repaired, "finetuned": 18 / kept}
    sizes = {
        "accuracy": 0.2,
        "metrics": "{}",
        "tokens": 9,
        "neurons": int(8 * kept),
        "parameters": int(80 * kept),
        "multiply_adds": int(40 * kept),
    }
    sizes |= {"synaptic_operations": 2.0 * kept, "energy": 184.0 * kept}
    rows = [
        {"variant": variant, "phase": phase, "split": split, "loss": 3.0, "perplexity": value + (split == "valid")}
        for phase, value in perplexity.items()
        for split in ("valid", "test")
    ]
    return pd.DataFrame(rows).assign(**sizes)


def retention(_stage: str, variant: str | None) -> pd.DataFrame:
    row = {"variant": variant, "layer": "lstm.0", "neuron": 0, "importance": 0.5, "rank": 1, "kept": True}
    return pd.DataFrame([row])


def comparison(_stage: str, _variant: str | None) -> pd.DataFrame:
    evaluations = pd.concat([evaluation("evaluate", variant) for variant in VARIANTS])
    return compare(evaluations, dict.fromkeys(VARIANTS, "fused"), control="dense")


def vocabulary(_stage: str, _variant: str | None) -> pd.DataFrame:
    words = ["<eos>", "<unk>", *(f"w{number}" for number in range(2, VOCABULARY))]
    return pd.DataFrame({"token": range(VOCABULARY), "text": words, "count": 1})


def corpus(_stage: str, _variant: str | None) -> pd.DataFrame:
    return pd.DataFrame({"split": ["train", "test"], "position": [0, 0], "token": [1, 0]})


TABLES = {
    "timing": timing,
    "latency": latency,
    "history": history,
    "evaluation": evaluation,
    "retention": retention,
    "comparison": comparison,
    "corpus": corpus,
    "vocabulary": vocabulary,
}


def tracked(folder: Path, **environment: str) -> tuple[int, str]:
    """Run `python -m tasks track` there, models left out, and return its exit code and what it said."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "log_model", lambda *_: "")  # which takes as long as all the rest
        return asked(folder, "track", **environment)


def asked(folder: Path, *words: str, **environment: str) -> tuple[int, str]:
    """Run `python -m tasks …` in this process, in the folder, and return its exit code and what it said."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
        patch.chdir(folder)
        for name in ("MLFLOW_TRACKING_URI", "DVC_EXP_NAME"):
            patch.delenv(name, raising=False)
        for name, value in {**store.DEFAULTS, **environment}.items():
            patch.setenv(name, value)
        return main(list(words)), said.getvalue()


def client(folder: Path) -> Any:
    """Return MLflow's client; what it reads lies relative to the project's folder, so call it there."""
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def runs(folder: Path) -> dict[str, Any]:
    """Return the only run of each part, by the part's name."""
    found = every_run(folder)
    parts = {part_of(run): run for run in found}
    assert len(parts) == len(found)
    return parts


def part_of(run: Any) -> str:
    """Return what a run is of: a variant, or `pipeline`, `train`, a stage that failed."""
    return str(run.info.run_name.partition(" · ")[0])


def experiment(folder: Path) -> Any:
    return client(folder).get_experiment_by_name("neuron-pruning")


def every_run(folder: Path) -> list[Any]:
    return list(client(folder).search_runs([experiment(folder).experiment_id]))


def parents(folder: Path) -> list[Any]:
    return [run for run in every_run(folder) if "mlflow.parentRunId" not in run.data.tags]


def artifacts(folder: Path, name: str, within: str | None = None) -> set[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return {file.path for file in client(folder).list_artifacts(runs(folder)[name].info.run_id, within)}


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
