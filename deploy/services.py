"""Which servers and workers there are: what each runs, what it is told, and how it is known to be well."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import httpx

from deploy import postgres
from deploy.clones import make_clone
from deploy.processes import LAST_LINES, Service, process_of, say
from deploy.settings import ANSWER_SECONDS, HOST, ROOT, SERVERS, Settings, Unexpected

POOL = "default-process"
CLONE = "NEURON_PRUNING_CLONE"
"""What tells a run its worker's clone: deploy/prefect.yaml reads it when a run begins."""
PACKAGES = ("asyncpg", "boto3", "dvc_s3", "mlflow", "moto", "prefect", "psycopg2")
POOL_COMMANDS = (
    ("prefect", "work-pool", "create", POOL, "--type", "process", "--overwrite"),
    ("prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "deploy/prefect.yaml"),
    ("flows.alert",),
)
"""Modules and their words that make the pool and what is deployed for it, and let the server notice killed runs."""
QUIET = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PYTHONUNBUFFERED": "1",
}


def check_packages() -> None:
    """Refuse to go on without the packages that servers and clients need.

    Raises:
        Unexpected: If some are missing.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise Unexpected(
            f"Expected the packages of the extras `pipeline` and `deploy`, got none of the name "
            f"{', '.join(missing)}; install them with `make install EXTRA=deploy`."
        )


def services_of(settings: Settings, workers: int) -> list[Service]:
    """Return every service, each after what it needs."""
    make_pool = cache(partial(_make_pool, settings))  # once for all workers
    return [
        _postgres(settings),
        _s3(settings),
        _mlflow(settings),
        _prefect(settings),
        *(_worker(settings, number + 1, make_pool) for number in range(workers)),
    ]


def worker_name(number: int) -> str:
    """Return what a worker is called, on Prefect's page too."""
    return f"worker-{number}"


def _postgres(settings: Settings) -> Service:
    user = postgres.runs_as()
    return Service(
        name="postgres",
        address=settings.address("postgres"),
        port=settings.ports["postgres"],
        command=postgres.command(settings),
        environment={name: os.environ[name] for name in ("PATH", "TZ") if name in os.environ} | {"LC_ALL": "C.UTF-8"},
        folder=Path("/"),
        healthy=lambda: postgres.answers(settings),
        prepare=lambda: postgres.make_cluster(settings),
        user=user,
        ending=signal.SIGINT,  # roll back what is open and end; SIGTERM waits for clients, which servers keep
        alone=True,
    )


def _s3(settings: Settings) -> Service:
    folder = settings.state / "objects"
    return Service(
        name="s3",
        address=settings.address("s3"),
        port=settings.ports["s3"],
        command=[
            *_python("deploy.objects", port=settings.ports["s3"]),
            "--bucket",
            "dvc",
            "--bucket",
            "mlflow",
            str(folder),
        ],
        environment=_environment(settings, AWS_ACCESS_KEY_ID=settings.key),
        folder=ROOT,
        healthy=lambda: _status(settings.address("s3")) == httpx.codes.FORBIDDEN,  # whom it does not know
        prepare=lambda: folder.mkdir(mode=0o700, exist_ok=True),
    )


def _mlflow(settings: Settings) -> Service:
    """Return MLflow's server, which hands files on to S3 itself, so that clients need its address and no key."""
    query = f"{settings.address('mlflow')}/api/2.0/mlflow/experiments/get?experiment_id=0"  # asks the database
    return Service(
        name="mlflow",
        address=settings.address("mlflow"),
        port=settings.ports["mlflow"],
        command=_python("mlflow server", workers=1, host=HOST, port=settings.ports["mlflow"]),
        environment=_environment(
            settings,
            # Secrets do not stand in the command, which every user of the machine can read.
            MLFLOW_BACKEND_STORE_URI=settings.database("mlflow", "psycopg2"),
            MLFLOW_ARTIFACTS_DESTINATION="s3://mlflow",
            MLFLOW_S3_ENDPOINT_URL=settings.address("s3"),
            MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
            AWS_ACCESS_KEY_ID=settings.key,
            AWS_SECRET_ACCESS_KEY=settings.secret,
            AWS_DEFAULT_REGION="us-east-1",
        ),
        folder=settings.state,
        healthy=lambda: _status(query) == httpx.codes.OK,
        prepare=lambda: postgres.make_databases(settings),
        needs=("postgres", "s3"),
    )


def _prefect(settings: Settings) -> Service:
    return Service(
        name="prefect",
        address=settings.address("prefect"),
        port=settings.ports["prefect"],
        command=_python("prefect server start", host=HOST, port=settings.ports["prefect"]),
        environment=_environment(
            settings,
            PREFECT_SERVER_DATABASE_CONNECTION_URL=settings.database("prefect", "asyncpg"),
            PREFECT_UI_API_URL=f"{settings.address('prefect')}/api",
        ),
        folder=settings.state,
        healthy=lambda: _status(f"{settings.address('prefect')}/api/ready") == httpx.codes.OK,  # asks the database
        prepare=lambda: postgres.make_databases(settings),
        needs=("postgres",),
    )


def _worker(settings: Settings, number: int, make_pool: Callable[[], None]) -> Service:
    """Return a worker that runs one flow at a time, in its clone."""
    name = worker_name(number)
    clone = settings.state / "clones" / name

    def prepare() -> None:
        clone.parent.mkdir(exist_ok=True)
        make_clone(settings.repository, clone, settings.state / "config.local")
        make_pool()

    return Service(
        name=name,
        address=f"in {clone}",
        command=_python("prefect worker start", pool=POOL, type="process", name=name, limit=1),
        environment=_client(settings, clone),
        folder=settings.state,
        healthy=lambda: process_of(settings.state, name) is not None and name in _online(settings),
        prepare=prepare,
        needs=SERVERS,
    )


def _python(words: str, **options: object) -> list[str]:
    """Return the command that runs a module of this Python's."""
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", *words.split(), *given]


def _client(settings: Settings, clone: Path) -> dict[str, str]:
    """Return the environment of what uses the servers in a clone."""
    return _environment(
        settings,
        PREFECT_API_URL=f"{settings.address('prefect')}/api",
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY="30",  # a run that was killed is noticed after three
        MLFLOW_TRACKING_URI=settings.address("mlflow"),
        PYTHONPATH=os.pathsep.join(filter(None, [str(clone), os.environ.get("PYTHONPATH")])),
        **{CLONE: str(clone)},
    )


def _environment(settings: Settings, **more: str) -> dict[str, str]:
    """Return the environment of a server: the caller's, without what it says of other servers."""
    others = ("PREFECT_", "MLFLOW_", "AWS_", "DVC_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**kept, **QUIET, "PATH": path, "PREFECT_HOME": str(settings.state / "prefect"), **more}


def _make_pool(settings: Settings) -> None:
    """Make the work pool and what is deployed for it, and let the server notice runs that were killed."""
    environment = _client(settings, ROOT)
    del environment[CLONE]  # deploying would put it in place of each worker's
    for words in POOL_COMMANDS:
        say(f"           python -m {' '.join(words)}")
        command = [sys.executable, "-m", *words]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            last = "\n".join([*done.stdout.splitlines(), *done.stderr.splitlines()][-LAST_LINES:])
            raise Unexpected(f"Expected `python -m {' '.join(words)}` to succeed, got:\n{last}")


def _online(settings: Settings) -> list[str]:
    """Return the names of the workers that Prefect hears of."""
    try:
        answer = httpx.post(
            f"{settings.address('prefect')}/api/work_pools/{POOL}/workers/filter",
            json={"workers": {"status": {"any_": ["ONLINE"]}}},
            timeout=ANSWER_SECONDS,
        )
        return [worker["name"] for worker in answer.raise_for_status().json()]
    except httpx.HTTPError:
        return []


def _status(address: str) -> int | None:
    """Return the status of an answer, None if there is none."""
    try:
        return httpx.get(address, timeout=ANSWER_SECONDS).status_code
    except httpx.HTTPError:
        return None
