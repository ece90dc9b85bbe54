"""A call that another process makes: what its bytes depend on beside itself goes with it, and is compared there.

Nothing in it is a path, and nothing of it is read before code and packages are known to be the same ones, for what was
written by others cannot be.
"""

import hashlib
import pickle
import socket
import sys
import threading
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tasks.common.devices import computing
from tasks.common.parameters import Unexpected

CODE, OWN = "code in pruning/ or tasks/", "code in own/"
KEPT = 4
"""Results for each worker that may wait for an earlier one, since they are given in the order of their items."""
LOOK_SECONDS = 20.0
"""After how long without a result it is looked whether there are workers at all."""
LOST_SECONDS = 300.0
"""How long all workers may be gone, for whoever started them to start them again."""
PACKAGES = ("torch", "numpy", "scipy", "pandas", "scikit-learn")
"""What results are computed with."""


def sent(value: Any) -> bytes:
    """Return anything as bytes.

    Raises:
        Unexpected: If it cannot be sent.
    """
    try:
        return bytes(import_module("cloudpickle").dumps(value))
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise Unexpected(
            f"Expected what can be sent to workers, got what cannot ({error}); leave --workers out."
        ) from error


def received(result: bytes) -> Any:
    """Return what a worker has sent."""
    return pickle.loads(result)  # noqa: S301 - from workers that the user trusts with the code


def how() -> tuple[dict[str, str], bytes]:
    """Return what a call depends on beside itself: code and packages by name, and this process's settings as bytes."""
    origins = {CODE: code(), **_packages()}
    if any(name.startswith("own.") for name in sys.modules):  # a model of the user's own is read
        origins[OWN] = own_code()
    return origins, sent(computing())


_ONE_AT_A_TIME = threading.Lock()


def made(origins: Mapping[str, str], settings: bytes, function: bytes, item: bytes) -> bytes:
    """Call a function here, as the process would that asks; in one process one call at a time is made.

    Raises:
        Unexpected: If code or packages are others here, or something is missing: a package, the device.
    """
    host = socket.gethostname()
    here = {CODE: code, OWN: own_code}
    for name, expected in origins.items():
        present = here[name]() if name in here else _packages().get(name, "none")
        if present != expected:
            what = f"other {name}" if name in here else f"{name} {present} instead of {expected}"
            raise Unexpected(
                f"Expected workers with this code and its packages, got one on {host} with {what}; bring its clone up "
                "to date and start it again."
            )
    with _ONE_AT_A_TIME:
        try:
            _computing_by(settings, host)
            call, given = pickle.loads(function), pickle.loads(item)  # noqa: S301 - from whoever runs the workers
        except ImportError as error:
            raise Unexpected(
                f"Expected workers that have what a call needs, got one on {host} without ({error}); install it there."
            ) from error
        return sent(call(given))


def _computing_by(settings: bytes, host: str) -> None:
    try:
        pickle.loads(settings).apply()  # noqa: S301 - from whoever runs the workers
    except Unexpected as error:
        raise Unexpected(
            f"Expected workers that compute as this process, got one on {host} that cannot: {error}"
        ) from error


@cache
def _packages() -> dict[str, str]:
    """Return the versions of what results are computed with."""
    return {"Python": ".".join(map(str, sys.version_info[:2])), **{name: version(name) for name in PACKAGES}}


@cache
def code() -> str:
    """Return what tells the code that results depend on from other code."""
    root = Path(__file__).parents[2]
    return _digest(root / "pruning", root / "tasks")


@cache
def own_code() -> str:
    """Return what tells the code of the user's own models from other code; empty where there is none.

    As it was when it was first asked for, which is when this process imports it.
    """
    spec = find_spec("own")
    return _digest(*map(Path, spec.submodule_search_locations or ())) if spec else ""


def _digest(*folders: Path) -> str:
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{folder.name}/{file.relative_to(folder).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()
