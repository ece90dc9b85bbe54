"""A tiny repository whose one stage says at once what a variant of some retention, criterion and repair reaches."""

from pathlib import Path

from tests.projects import ROOT, copy, run

TASKS = """
import sys
from pathlib import Path
from ruamel.yaml import YAML
import pandas as pd
from pruning.evaluation.schemas import EVALUATION
from tasks.common.parameters import settings_of
from tasks.common.tables import write_table
name, values = sys.argv[2], YAML(typ="safe").load(Path("params.yaml"))
own = values["variants"][name]
settings = settings_of({**values["prune"], "repair": values["reconstruct"]["repair"]}, own)
lost = {"random": 40, "hessian": 30, "fused": 20, "surgeon": 12}[own["by"]]
lost *= {"none": 2, "ridge": 1, "imitate": 0.5}[settings["repair"]]
perplexity, cost = 100 + lost * (1 - settings["retain"]), int(1000 * settings["retain"])
row = dict(variant=name, phase="finetuned", split="test", loss=4.5, perplexity=perplexity, accuracy=0.2, metrics="{}")
row |= dict(tokens=10, neurons=cost, parameters=2 * cost, multiply_adds=cost, synaptic_operations=0.0, energy=1.0)
rows = [row, {**row, "phase": "pruned", "perplexity": 999.0}, {**row, "split": "valid", "perplexity": perplexity + 1}]
write_table(Path(f"data/evaluate/{name}/evaluation.parquet"), pd.DataFrame(rows), EVALUATION)
"""
PIPELINE = """
stages:
  evaluate:
    foreach: ${variants}
    do:
      cmd: python -m tasks evaluate ${key}
      deps: [tasks/__main__.py]
      params: [prune, reconstruct, "variants.${key}"]
      outs: ["data/evaluate/${key}/evaluation.parquet"]
"""
PARAMETERS = """
compute: {device: auto}
prune: {retain: 0.5, rate: fixed, budget: null, snn_ratio: null, quota: null}
reconstruct: {repair: ridge}
variants:
  dense: {by: fused, retain: 1.0}
  enhanced: {by: fused}
"""


def make_tried(root: Path) -> Path:
    """Write the project into a folder, run it, commit it, and return it."""
    copy(ROOT / "tasks", root / "tasks")  # as whose own the stage is run, and soon
    for name, text in {"tasks/__main__.py": TASKS, "dvc.yaml": PIPELINE, "params.yaml": PARAMETERS}.items():
        (root / name).write_text(text)
    run(["git", "init", "--quiet", "--initial-branch=main"], root)
    for name, value in {"user.name": "a", "user.email": "a@b", "commit.gpgsign": "false"}.items():
        run(["git", "config", name, value], root)
    run(["dvc", "init", "--quiet"], root)
    copy(ROOT / ".dvc/config", root / ".dvc/config")
    (root / ".gitignore").write_text("/data\n__pycache__\n")
    run(["dvc", "repro"], root)
    run(["git", "add", "."], root)
    run(["git", "commit", "--quiet", "-m", "one"], root)
    return root
