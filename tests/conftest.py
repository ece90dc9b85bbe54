"""How every test runs: one thread that sleeps when idle, few examples and always the same ones."""

import gc
import os
import sys
from collections.abc import Generator, Iterator

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # read when torch is imported
os.environ["PYTHONDONTWRITEBYTECODE"] = ""  # compiling takes as long as all else that a stage does

import pytest
import torch
from hypothesis import settings

from flows.warm import FOLDER
from pruning.data.windows import Windows
from pruning.models.base import LanguageModel
from pruning.training.loop import train
from tests.projects import SHARED, warmed
from tests.tiny import recipe, text, tiny

torch.set_num_threads(1)
sys.dont_write_bytecode = False
settings.register_profile("tiny", max_examples=8, deadline=None, derandomize=True, database=None)
settings.load_profile("tiny")

LONGEST = ("tests/tasks/test_stages.py", "tests/experiment/test_stages.py", "tests/flows/test_pipeline.py")
"""Files that take minutes, which begin: a process that came to one last would work alone when the others have ended."""


def pytest_configure(config: pytest.Config) -> None:
    """Make the imports of stages and DVC once for all processes of a run of everything, while they collect tests."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if whole and config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        os.environ[SHARED] = warmed()[FOLDER]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest files begin, all others following in their order."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


def pytest_xdist_auto_num_workers() -> int:
    """Return one process more than there are cores: a third of the time of those that start servers is waiting."""
    return (os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count() or 1) + 1


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage among the modules and tests that are read here and last: a million objects each time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(20_000, 10, 10)  # of tests that end in a second: a thirtieth of their time less
        gc.enable()


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    """Undo the setting of the process that a stage makes where a test runs one in this process."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def without_own_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process be one that has read no model of the user's own, whatever tests before have read."""
    for name in [name for name in sys.modules if name.startswith("own.")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture(scope="session")
def windows() -> Windows:
    """Calibration text: 20 windows, the last of them shorter and partly padded."""
    return Windows(text(470), first=0, batch=4, bptt=6)


@pytest.fixture(scope="session")
def trained(windows: Windows) -> LanguageModel:
    """A model that has learnt a little of the text, so that its neurons differ as learnt ones do; not to be changed."""
    model = tiny(spread=0.3)
    for _ in train(model, windows, windows, recipe=recipe(epochs=3), seed=1):
        pass
    return model
