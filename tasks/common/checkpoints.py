"""Training that survives interruption: its state after each epoch, kept until the result is written."""

import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pyarrow as pa
from safetensors.torch import save_file

from pruning.data.windows import Batches
from pruning.models.base import Measurable
from pruning.training.distillation import Teacher
from pruning.training.loop import Trained, train
from pruning.training.recipes import Recipe
from pruning.training.together import by_itself
from tasks.common.job import Job, seconds
from tasks.common.tables import read_parquet, write_parquet
from tasks.common.weights import read_weights
from tasks.common.writing import remove, replacing
from tasks.shown.console import say

TENSORS, HISTORY = "tensors.safetensors", "steps.parquet"


def train_to_the_end(
    job: Job,
    model: Measurable,
    windows: Batches,
    valid: Batches,
    recipe: Recipe,
    seed: int,
    teacher: Teacher | None = None,
) -> tuple[Trained, pd.DataFrame | None]:
    """Train the model, going on from where an interrupted run of the same job stopped.

    Returns:
        The last state, and the seconds that a training token took, validation included (None if all was done before).
    """
    together, start = job.together or by_itself, time.perf_counter()
    before = together.told(lambda: _read(job.partial))
    if before:
        say(f"{job.stage.address}: going on after {before.history['valid_loss'].count()} finished epochs")
    last = before
    if before is None or not before.finished:
        epochs = train(
            model,
            windows,
            valid,
            recipe=recipe,
            seed=seed,
            teacher=teacher,
            resume=before,
            track=job.track,
            together=together,
        )
        for last in epochs:
            losses = last.history["valid_loss"].dropna()
            say(f"{job.stage.address}: epoch {len(losses)}, validation loss {losses.iloc[-1]:.4f} nat/token")
            if job.writes:
                _write(job.partial, last)
    assert last is not None  # noqa: S101 - a recipe has at least one epoch
    model.load_state_dict(last.best())
    read = _tokens(last) - _tokens(before)
    return last, seconds(job, "token", (time.perf_counter() - start) / read) if read else None


def forget(job: Job) -> None:
    """Drop what was kept for resuming; call it once the results are written."""
    remove(job.partial)
    with suppress(OSError):  # another interrupted stage may have left its own there
        job.partial.parent.rmdir()


def _tokens(state: Trained | None) -> int:
    return 0 if state is None else int(state.history["tokens"].iloc[-1])


def _write(folder: Path, state: Trained) -> None:
    with replacing(folder) as aside:
        aside.mkdir()
        save_file({name: tensor.cpu().clone() for name, tensor in state.tensors.items()}, aside / TENSORS)
        content = pa.Table.from_pandas(state.history.assign(finished=state.finished), preserve_index=False)
        write_parquet(aside / HISTORY, content)


def _read(folder: Path) -> Trained | None:
    """Return what was kept, None if nothing was: a damaged state is dropped, which costs time and no result."""
    if not folder.is_dir():
        return None
    try:
        history: pd.DataFrame = read_parquet(folder / HISTORY).to_pandas()
        finished = bool(history.pop("finished").iloc[0])
        return Trained(read_weights(folder / TENSORS), history, finished)
    except (ValueError, LookupError) as error:
        say(f"{error} Training starts anew.")
        remove(folder)
        return None
