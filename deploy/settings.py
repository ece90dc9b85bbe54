"""What one deployment remembers between starts: its ports and secrets, in a folder that nobody else may read."""

import json
import secrets
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The repository that this file is in; by default workers clone it."""
STATE = ROOT / "deploy/state"
SERVERS = ("postgres", "s3", "mlflow", "prefect")
"""What has a port, in the order in which they need each other."""
HOST = "127.0.0.1"
"""None of the servers asks who is there but by a key, so none is reached from elsewhere."""
OWNER = 0o600
ANSWER_SECONDS = 15
"""How long one question to a server may take: what is down refuses at once, what is busy may be slow."""


class Unexpected(Exception):
    """What is not there or not as it has to be; the message is for the user."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Ports and secrets of a deployment.

    Attributes:
        state: The folder with all that the deployment keeps.
        repository: What workers clone: a folder, or whatever else git can.
        ports: Of each server.
        password: PostgreSQL's, of the user `pruning`.
        key: The name of S3's key.
        secret: What S3's key signs with.
    """

    state: Path
    repository: str
    ports: dict[str, int]
    password: str
    key: str
    secret: str

    def address(self, server: str) -> str:
        """Return where a server is reached, as a web address; PostgreSQL's is a host and a port."""
        place = f"{HOST}:{self.ports[server]}"
        return place if server == "postgres" else f"http://{place}"

    def database(self, name: str, driver: str = "") -> str:
        """Return where a database is, for SQLAlchemy with a driver and for PostgreSQL's own programs without one."""
        dialect = f"postgresql+{driver}" if driver else "postgresql"
        return f"{dialect}://pruning:{self.password}@{self.address('postgres')}/{name}"


def read_settings(state: Path) -> Settings | None:
    """Return what the deployment in a folder remembers, None if there is none.

    Raises:
        Unexpected: If its file is not as it was written.
    """
    path = state / "settings.json"
    if not path.is_file():
        return None
    try:
        return Settings(state=state, **json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:  # a part of the file, or other names in it
        raise Unexpected(
            f"Expected {path} as it was written, got a damaged one or another version's; put a copy of it back, or "
            "remove the folder to begin anew, without what it keeps."
        ) from error


def made_settings(state: Path, ports: Mapping[str, int], repository: str | None = None) -> Settings:
    """Return the settings of a deployment, as given, or else as they were; at first ports are free ones.

    Args:
        state: Its folder, made if there is none.
        ports: Of servers.
        repository: What workers clone, at first this one.
    """
    state.mkdir(parents=True, exist_ok=True)
    old = read_settings(state)
    known = old.ports if old else {}
    chosen = {server: ports.get(server) or known.get(server) or _free_port() for server in SERVERS}
    settings = Settings(
        state=state,
        repository=repository or (old.repository if old else str(ROOT)),
        ports=chosen,
        password=old.password if old else secrets.token_hex(16),
        key=old.key if old else secrets.token_hex(10),
        secret=old.secret if old else secrets.token_hex(20),
    )
    remembered = asdict(settings)
    remembered.pop("state")
    write_private(state / "settings.json", json.dumps(remembered, indent=2))
    write_private(state / "environment", _environment(settings))
    write_private(state / "config.local", dvc_config(settings))
    return settings


def _environment(settings: Settings) -> str:
    """Return what a shell reads to use the servers."""
    places = {
        "PREFECT_API_URL": f"{settings.address('prefect')}/api",
        "MLFLOW_TRACKING_URI": settings.address("mlflow"),
    }
    return "".join(f"export {name}={value}\n" for name, value in places.items())


def dvc_config(settings: Settings) -> str:
    """Return the `.dvc/config.local` of a clone whose remote is the bucket `dvc`."""
    return (
        "[core]\n    remote = store\n"
        "['remote \"store\"']\n"
        "    url = s3://dvc/neuron-pruning\n"
        f"    endpointurl = {settings.address('s3')}\n"
        f"    access_key_id = {settings.key}\n"
        f"    secret_access_key = {settings.secret}\n"
        "    region = us-east-1\n"
    )


def write_private(path: Path, text: str) -> None:
    """Write a file that nobody else may read, whole or not at all."""
    aside = path.with_suffix(".partial")
    aside.touch(OWNER)
    aside.chmod(OWNER)
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])
