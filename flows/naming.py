"""What runs are called on Prefect's pages: a task run after what its stage does, a flow run after what it did."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run

from flows.changes import Changed
from flows.execution import Outcome
from tasks.common.parameters import settings_of
from tasks.common.pipeline import PARAMETERS
from tasks.common.reading import read_yaml


def read_values(root: Path) -> dict[str, Any]:
    """Return params.yaml, which a project may lack."""
    return read_yaml(root / PARAMETERS) if (root / PARAMETERS).is_file() else {}


def title(address: str, values: Mapping[str, Any]) -> str:
    """Return a stage's address in words, for a variant with how much of it stays.

    >>> values = {"prune": {"retain": 0.5}, "variants": {"enhanced": {}, "dense": {"retain": 1.0}}}
    >>> title("finetune@enhanced", values), title("prune@dense", values), title("train", values)
    ('finetune enhanced 50%', 'prune dense 100%', 'train')
    >>> title("experiment/dvc.yaml:prune@0.9", values)
    'experiment prune 0.9'
    """
    file, _, name = address.rpartition(":")
    stage, _, variant = name.partition("@")
    known = values.get("variants", {})
    amount = _amount(settings_of(values["prune"], known[variant])) if not file and variant in known else ""
    return " ".join(filter(None, [file.partition("/")[0], stage, variant, amount]))


def _amount(settings: Mapping[str, Any]) -> str:
    """Return how many neurons `prune` is to keep, in a word or two."""
    if budget := settings.get("budget"):
        return f"{budget['value']:g} {budget['kind'].replace('_', '-')}"
    if settings.get("rate") == "adaptive":
        return "adaptive"
    if settings.get("snn_ratio") is not None:
        return f"ratio {settings['snn_ratio']:g}"
    return f"{settings['retain']:.0%}"


def counted(outcomes: Mapping[str, Outcome]) -> str:
    """Return how many stages ended how.

    >>> counted({name: Outcome(name, "Ran", 1.0, "") for name in ("prepare", "train")})
    '2 ran'
    """
    counts = Counter(outcome.state for outcome in outcomes.values())
    return ", ".join(f"{number} {state.lower()}" for state, number in counts.items())


def subject(targets: Sequence[str] | None, different: Changed) -> str:
    """Return what a run is about; nothing where it is about all of dvc.yaml as params.yaml has it.

    >>> subject(["evaluate"], {"prune.retain": (0.5, 0.3)})
    'evaluate, prune.retain 0.3'
    """
    return ", ".join([*(targets or []), *(f"{name} {value}" for name, (_, value) in different.items())])


def call_run(about: str, did: str) -> None:
    """Call the flow run that this is in after what it is about and what it does; a problem with that costs nothing."""
    name = ": ".join(filter(None, [about, did]))
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(flow_run.id, name=name)
    except (httpx.HTTPError, PrefectException) as error:
        get_run_logger().warning("This run is not called '%s': %s", name, error)
