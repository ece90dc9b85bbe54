"""Whether results that a command reads belong together: nothing half-replaced by a reproduction that is at work."""

from collections.abc import Iterator
from contextlib import contextmanager

from tasks.commands.lock import expect_recorded
from tasks.commands.tracking.state import State
from tasks.common.pipeline import LOCK, Stage


@contextmanager
def settled(*stages: Stage) -> Iterator[None]:
    """Refuse, before and after the context, results of stages that dvc.lock does not record as they are.

    Each has run with its present parameters and inputs, and what it read and wrote is what was recorded then. Stages
    that were only ever run by hand leave no dvc.lock, and are taken as they are.

    Raises:
        Unexpected: With the first that is another, or is being made.
    """
    _expect(stages)
    yield
    _expect(stages)


def _expect(stages: tuple[Stage, ...]) -> None:
    if not LOCK.is_file():
        return
    state = State()
    for stage in stages:
        known = state.stage(stage.name, stage.variant)
        for path in (*known.inputs.values(), *known.outputs.values()):
            if path in state.hashes:
                expect_recorded(path, state.hashes)
