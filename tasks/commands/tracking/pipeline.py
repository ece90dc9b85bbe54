"""The records of the pipeline: the whole, the training, and each variant."""

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from pruning.evaluation.comparison import COSTS, PHASES, measure_of
from tasks.commands.plain_text import read_reading, vocabulary_lines
from tasks.commands.tracking.journal import samples_of
from tasks.commands.tracking.records import Exported, Record
from tasks.commands.tracking.state import State
from tasks.commands.tracking.store import DESCRIPTION, LISTED, TRAINING, VARIANT
from tasks.commands.tracking.store import PIPELINE as WHOLE
from tasks.common.job import Job
from tasks.common.latency import BATCHES, busy, in_milliseconds
from tasks.common.parameters import Unexpected, settings_of
from tasks.common.pipeline import LOCK, PARAMETERS, PIPELINE, Stage, flat
from tasks.common.reading import read_yaml
from tasks.shown.console import track

SIZES = ("neurons", *COSTS)


def records(state: State) -> list[Record]:
    """Return the whole, the training, and each variant."""
    return [_pipeline(state), _training(state), *(_variant(state, name) for name in state.parameters.variants)]


def _pipeline(state: State) -> Record:
    """Return the record of the whole: every setting, the comparison, the pictures, what identifies the state."""
    compare, stages = state.stage("compare"), read_yaml(PIPELINE)["stages"]
    comparison = state.table(compare, "comparison")
    ran = [stage for name in stages if name in state.lock and "timing" in (stage := state.stage(name)).outputs]
    metrics = _dense(state) | state.seconds(*ran)
    for row in comparison.to_dict("records"):
        measure = measure_of(comparison, "finetuned_{}")
        for phase in PHASES:
            metrics[f"{measure}_{phase}_test/{row['variant']}"] = row[f"{phase}_{measure}"]
    pictures = [picture for picture in _pictures(compare) if "-" not in picture.stem]
    files = {"": [compare.outputs["comparison"], PARAMETERS, LOCK], "plots": pictures}
    return Record(
        WHOLE,
        flat(state.values),
        metrics,
        tags={"kind": WHOLE, DESCRIPTION: "All settings, the comparison and its pictures.", **state.device(*ran)},
        tables={"comparison": comparison},
        files=files,
        system=samples_of(state, *ran),
    )


def _training(state: State) -> Record:
    stage = state.stage("train")
    return Record(
        name=stage.name,
        params=flat({stage.name: state.values[stage.name]}),
        metrics=_dense(state) | state.seconds(stage),
        tags={
            "kind": TRAINING,
            DESCRIPTION: "The dense model, from which every variant starts.",
            "dvc.model": state.hashes[stage.outputs["model"]],
            **state.device(stage),
        },
        curves=state.table(stage, "history"),
        likelihood=any(name.startswith("perplexity") for name in _dense(state)),
        files={
            "": [stage.outputs["history"], stage.outputs["model"] / "config.json"],
            "plots": [picture for picture in _pictures(state.stage("compare")) if picture.stem == "training"],
        },
        system=samples_of(state, stage),
    )


def _variant(state: State, variant: str) -> Record:
    stages = [state.stage(name, variant) for name in ("prune", "reconstruct", "finetune", "evaluate")]
    prune, reconstruct, finetune, evaluate = stages
    parameters, own = state.parameters, state.parameters.variants[variant].model_dump()
    sections = {each.name: getattr(parameters, each.name).model_dump() for each in (prune, reconstruct, finetune)}
    settings = flat({name: settings_of(section, own) for name, section in sections.items()})
    tables = {"evaluation": state.table(evaluate, "evaluation"), "retention": state.table(prune, "retention")}
    compare = state.stage("compare")
    compared = state.table(compare, "comparison").set_index("variant")
    changes = {name: float(compared[name][variant]) for name in ("retention", *(f"{phase}_change" for phase in PHASES))}
    latency, perplexity = _latency(state, variant), evaluated(tables["evaluation"])
    models = {phase: made.outputs["model"] for phase, made in zip(PHASES, (prune, reconstruct, finetune), strict=True)}
    pictures = [picture for picture in _pictures(compare) if picture.stem.endswith(f"-{variant}")]
    listed = _listed(state, compared, latency, variant)
    return Record(
        name=variant,
        params={"by": own["by"], **{name: value for name, value in settings.items() if value is not None}},
        metrics=changes | perplexity | latency | state.seconds(*stages),
        tags={
            "kind": VARIANT,
            **LISTED,
            "variant": variant,
            **{f"dvc.model.{phase}": state.hashes[path] for phase, path in models.items()},
            **state.device(*stages),
            "machine": " ".join(busy(state.table(state.stage("timing"), "latency")))
            or "quiet while latency was measured",
            **listed,
            DESCRIPTION: _described(listed, state.parameters.compare.control),
        },
        curves=state.table(finetune, "history"),
        likelihood=measure_of(tables["evaluation"]) == "perplexity",
        tables=tables,
        files={"": [finetune.outputs["model"] / "config.json"], "plots": pictures},
        system=samples_of(state, *stages),
        model=_exported(state, evaluate, models[PHASES[-1]]),
    )


def _listed(state: State, compared: pd.DataFrame, latency: Mapping[str, float], variant: str) -> dict[str, str]:
    """Return what matters of a variant as the list of runs shows it: rounded, with its error."""
    row, control = compared.loc[[variant]].to_dict("records")[0], state.parameters.compare.control
    measure = measure_of(compared, "finetuned_{}")
    shown = ".1f" if measure == "perplexity" else ".4g"
    name = f"speed_up_batch_{min(BATCHES)}"
    error = f" ± {latency[f'{name}_error']:.2f}" if variant != control and f"{name}_error" in latency else ""
    return {
        "chosen by": "–" if variant == control else str(row["importance"]),
        "retention": f"{row['retention']:.0%}",
        "perplexity by phase": " → ".join(f"{row[f'{phase}_{measure}']:{shown}}" for phase in PHASES),
        "speed-up": f"{latency[name]:.2f}{error} ×",
        "parameters": f"{row['parameters']:,} ({row['parameters'] / float(compared['parameters'][control]):.0%})",
    }


def _described(listed: Mapping[str, str], control: str) -> str:
    """Return a variant in a sentence, by what the list of runs shows of it."""
    speed, size, phases = listed["speed-up"], listed["parameters"], listed["perplexity by phase"]
    return (
        f"{listed['retention']} of the neurons stay (chosen by: {listed['chosen by']}). On the test text {phases} once "
        f"pruned, repaired, fine-tuned; {speed} as fast as {control}; {size} parameters."
    )


def _exported(state: State, evaluate: Stage, folder: Path) -> Exported:
    """Return a model that is logged, and how it reads text where it is one of text."""
    known = Exported(folder, state.hashes[folder])
    if state.parameters.model.source is not None:
        return known
    try:
        reading = read_reading(Job(evaluate, state.parameters, track))
    except Unexpected:  # the text itself is not there any more
        return known
    return Exported(folder, known.hash, vocabulary_lines(reading.words), reading.described())


def _pictures(compare: Stage) -> list[Path]:
    return sorted(compare.outputs["plots"].glob("*.png"))


def _dense(state: State) -> dict[str, float]:
    """Return perplexities and sizes of the dense model as it was trained."""
    evaluation = state.table(state.stage("evaluate", state.parameters.compare.control), "evaluation")
    return evaluated(evaluation[evaluation["phase"] == "dense"], before="dense")


def evaluated(evaluation: pd.DataFrame, before: str = "pruned") -> dict[str, float]:
    """Return perplexities (or losses), metrics and sizes; what precedes fine-tuning has one name, as if removed."""
    metrics: dict[str, float] = {}
    measure = measure_of(evaluation)
    for row in evaluation.to_dict("records"):
        phase = before if row["phase"] == "dense" else row["phase"]
        further = {name: value for name, (value, _) in json.loads(row["metrics"]).items()}
        known = {measure: row[measure], **further}
        metrics |= {f"{name}_{phase}_{row['split']}": value for name, value in known.items()}
        metrics |= {size: row[size] for size in SIZES}
    return metrics


def _latency(state: State, variant: str) -> dict[str, float]:
    """Return how many times as fast as dense the variant is, milliseconds relative to dense, and whether it waited."""
    control = state.parameters.compare.control
    measured = state.table(state.stage("timing"), "latency")
    rows, metrics = in_milliseconds(measured, measured, control), dict[str, float]()
    for row in rows[rows["model"] == variant].to_dict("records"):
        batch = f"batch_{row['batch']}"
        metrics |= {f"latency_ms_{batch}": row["milliseconds"], f"latency_ms_{batch}_error": row["milliseconds_error"]}
        metrics |= {f"speed_up_{batch}": row["speed_up"], f"speed_up_{batch}_error": row["error"]}
        metrics |= {f"waited_{batch}": row["waited"]}
    return {name: value for name, value in metrics.items() if value == value}  # NaN: not known
