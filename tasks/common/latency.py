"""How fast models are beside the dense one: measured in turns, and told in milliseconds of one dense figure."""

from collections.abc import Mapping

import pandas as pd

from pruning.evaluation.latency import compared_latencies
from pruning.models.base import Measurable
from tasks.common.devices import device_used, on_one_thread
from tasks.common.job import Job
from tasks.common.waiting import BUSY, waiting

BATCHES = (1, 32)
"""How many sequences run side by side when latency is measured."""


def measured(job: Job, models: Mapping[str, Measurable], *, to: str, repeats: int) -> pd.DataFrame:
    """Return the table `latency` of models that take turns on one thread, each compared with the one named `to`."""
    rows = []
    for batch in BATCHES:
        with waiting() as waited, on_one_thread():
            found = compared_latencies(models, to=to, batch=batch, repeats=repeats, track=job.track)
        for name, own in found.items():
            rows.append({"model": name, "batch": batch, **vars(own), "waited": waited.share, "device": device_used()})
    return pd.DataFrame(rows)


def in_milliseconds(latency: pd.DataFrame, dense: pd.DataFrame, control: str) -> pd.DataFrame:
    """Return rows of `latency` with `milliseconds` and their `milliseconds_error`, relative to one dense figure.

    Absolute times of another moment say what else the machine did then. So what is given is the dense model's median
    over the speed-up, and the error that the speed-up's has.

    Args:
        latency: What was measured, at any time.
        dense: Where the dense model's figure stands, for each batch.
        control: Its name there.
    """
    figures = dense[dense["model"] == control].set_index("batch")["seconds"]
    milliseconds = 1000 * latency["batch"].map(figures) / latency["speed_up"]
    error = milliseconds * latency["error"] / latency["speed_up"]
    return latency.assign(milliseconds=milliseconds, milliseconds_error=error)


def busy(latency: pd.DataFrame) -> list[str]:
    """Return the sentence that says the machine was busy when a table `latency` was measured, none if it was not."""
    waited = float(latency["waited"].max())
    if not waited > BUSY:
        return []
    return [
        f"The machine was busy while latency was measured: of its time the measurement waited {waited:.0%} for a core. "
        "Speed-ups hold within their errors; milliseconds are longer than on idle cores."
    ]
