"""The Compose file starts what `python -m deploy` starts: tests compare them, so that neither drifts."""

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from deploy import postgres
from deploy.processes import Service
from deploy.services import POOL_COMMANDS, QUIET, services_of
from deploy.settings import SERVERS, Settings, dvc_config
from tests.projects import ROOT

COMPOSE = ROOT / "deploy/compose.yaml"
PORTS = {"postgres": 5432, "s3": 9000, "mlflow": 5000, "prefect": 4200}
SETTINGS = Settings(
    state=Path("/state"),
    repository="/repository",
    ports=PORTS,
    password="${POSTGRES_PASSWORD}",  # noqa: S106 - where the Compose file reads it
    key="${S3_KEY}",
    secret="${S3_SECRET}",  # noqa: S106
)
"""A deployment at the ports of the images, with the names of its secrets in place of them."""
HERE_ALONE = {"PREFECT_HOME", *QUIET}
"""What a server on this machine is told and an image knows."""
IN_A_NETWORK = {"mlflow": {"MLFLOW_SERVER_ALLOWED_HOSTS"}}
"""What a server has to be told that is reached by other names."""
FROM_OUTSIDE = {"PREFECT_UI_API_URL"}
"""What a browser on this machine reads."""


@pytest.fixture(scope="module")
def compose() -> Any:
    return YAML(typ="safe").load(COMPOSE.read_text(encoding="utf-8"))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Service]:
    monkeypatch.setattr(postgres, "program", Path)  # which need not be installed
    monkeypatch.setattr(postgres, "runs_as", lambda: None)
    for name in [name for name in os.environ if name.startswith(("PREFECT_", "MLFLOW_", "AWS_", "PYTHONPATH"))]:
        monkeypatch.delenv(name)
    return {service.name: service for service in services_of(SETTINGS, 1)}


def inside(text: str) -> str:
    """Return addresses as they are between the containers: a server's name in place of this machine's."""
    for name, port in PORTS.items():
        text = text.replace(f"127.0.0.1:{port}", name if name == "postgres" else f"{name}:{port}")
    return text.replace("/state/clones/worker-1", "/srv/clone")


def told(service: Service) -> dict[str, str]:
    """Return what a server is told on this machine beside what its caller's environment has."""
    names = set(service.environment) - set(os.environ) - HERE_ALONE
    values = {name: service.environment[name] for name in names}
    return {name: value if name in FROM_OUTSIDE else inside(value) for name, value in values.items()}


def words_of(service: Service) -> list[str]:
    """Return the command as an image runs it: its programs are on PATH, and it listens to all of its network."""
    words = [word.replace("127.0.0.1", "0.0.0.0") for word in service.command[1:]]  # noqa: S104 - of a container's
    return words[1:] if words[0] == "-m" else words


def listed(compose: Any, name: str) -> dict[str, str]:
    """Return the environment that the Compose file lists of a service."""
    return dict(compose["services"][name]["environment"])


def test_servers_run_the_same_commands(compose: Any, started: dict[str, Service]) -> None:
    for name in ("mlflow", "prefect"):
        assert shlex.split(compose["services"][name]["command"]) == words_of(started[name]), name
    words = words_of(started["worker-1"])
    del words[words.index("--name") : words.index("--name") + 2]  # of several replicas each has another
    last = compose["services"]["worker"]["command"][-1].split("&&")[-1]
    assert shlex.split(last.removeprefix(" exec")) == words


def test_servers_and_workers_are_told_the_same(compose: Any, started: dict[str, Service]) -> None:
    for name, service in {"mlflow": "mlflow", "prefect": "prefect", "worker": "worker-1"}.items():
        environment = {key: re.sub(r":\?[^}]*}", "}", text) for key, text in listed(compose, name).items()}
        further = IN_A_NETWORK.get(name, set())
        assert {key: text for key, text in environment.items() if key not in further} == told(started[service]), name
        assert further <= set(environment)
    assert listed(compose, "pool").items() <= listed(compose, "worker").items()


def test_a_worker_is_told_by_the_image_what_all_servers_are() -> None:
    text = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")
    (line,) = re.findall(r"^ENV (.*)$", text, re.MULTILINE)
    assert dict(word.split("=") for word in line.split()) == QUIET


def test_the_pool_is_made_by_the_same_commands(compose: Any) -> None:
    parts = compose["services"]["pool"]["command"][-1].split("&&")
    assert tuple(tuple(shlex.split(part.strip().removeprefix("python -m "))) for part in parts) == POOL_COMMANDS


def test_clones_are_made_alike_and_read_the_same_remote(compose: Any) -> None:
    assert " python -m deploy.clones /repository " in compose["services"]["worker"]["command"][-1]
    assert compose["configs"]["dvc"]["content"].split() == inside(dvc_config(SETTINGS)).split()


def test_databases_buckets_and_what_is_kept_are_the_same(compose: Any, started: dict[str, Service]) -> None:
    known = compose["services"]
    made = re.findall(r"CREATE DATABASE (\w+);", compose["configs"]["databases"]["content"])
    assert tuple(made) == postgres.DATABASES
    assert known["postgres"]["environment"]["POSTGRES_USER"] in SETTINGS.database("any")
    words = list(started["s3"].command)
    buckets = [words[place + 1] for place, word in enumerate(words) if word == "--bucket"]
    assert re.findall(r"here/(\w+)", known["buckets"]["command"][-1]) == buckets
    assert {volume.split(":")[0] for name in ("postgres", "s3") for volume in known[name]["volumes"]} == set(
        compose["volumes"]
    )
    (major,) = re.findall(r"postgres:(\d+)", known["postgres"]["image"])
    assert f"PostgreSQL {major}" in (ROOT / "docs/guides/servers.md").read_text(encoding="utf-8")


def test_whatever_a_user_reaches_is_at_the_port_that_the_guide_names(compose: Any) -> None:
    ports = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert ports == {name: [f"127.0.0.1:{port}:{port}"] for name, port in PORTS.items() if name != "postgres"}
    guide = (ROOT / "docs/guides/servers.md").read_text(encoding="utf-8")
    assert {f"http://127.0.0.1:{PORTS[name]}" for name in ("mlflow", "prefect")} <= set(
        re.findall(r"http://127\.0\.0\.1:\d+", guide)
    )


def test_the_compose_file_names_only_what_there_is(compose: Any) -> None:
    text = COMPOSE.read_text(encoding="utf-8")
    known = compose["services"]
    assert {*SERVERS, "worker"} <= set(known)
    for name, service in known.items():
        for other, how in service.get("depends_on", {}).items():
            condition = how["condition"]
            assert condition != "service_healthy" or "healthcheck" in known[other], (name, other)
            assert condition in ("service_healthy", "service_completed_successfully")
        for volume in service.get("volumes", []):
            place = volume.split(":")[0]
            assert place in compose["volumes"] or (COMPOSE.parent / place).is_dir(), (name, place)
        for config in service.get("configs", []):
            assert config["source"] in compose["configs"], name
        if build := service.get("build"):
            assert (COMPOSE.parent / build["context"] / build["dockerfile"]).is_file()
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        assert "image" in service
    secrets = set(re.findall(r"(?<!\$)\$\{(\w+)", text))
    assert secrets == {"POSTGRES_PASSWORD", "S3_KEY", "S3_SECRET"}
    hosts = set(re.findall(r"(?:http://|@)(\w+)[:/]", text)) - {"127"}
    assert hosts <= set(known)


def test_the_image_holds_what_its_servers_run_and_takes_only_what_there_is() -> None:
    lines = (ROOT / "deploy/Dockerfile").read_text().replace("\\\n", " ").splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert {"deploy", "flows", "tasks", "pruning"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    (installed,) = re.findall(r"\.\[(.*?)\]", "\n".join(lines))
    assert installed.split(",") == ["pipeline", "deploy"]
