"""PostgreSQL of its own for one deployment: where its programs are, whom it runs as, its cluster and databases."""

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

from deploy.settings import ANSWER_SECONDS, HOST, Settings, Unexpected, write_private

DATABASES = ("mlflow", "prefect")
DEBIAN = Path("/usr/lib/postgresql")
"""Where Debian has every version in a folder of its own, none of them on PATH."""
USER = "postgres"


def program(name: str) -> Path:
    """Return where a program of PostgreSQL's is, of the newest version where there are several.

    Raises:
        Unexpected: If it is not installed.
    """
    if on_path := shutil.which(name):
        return Path(on_path).resolve()
    versions = sorted(DEBIAN.glob(f"*/bin/{name}"), key=lambda path: float(path.parent.parent.name))
    if not versions:
        raise Unexpected(
            f"Expected PostgreSQL's {name} on PATH or in {DEBIAN}/*/bin, got none; install PostgreSQL, on Debian "
            "with `apt install postgresql`."
        )
    return versions[-1]


def runs_as() -> str | None:
    """Return whom PostgreSQL runs as: Debian's user `postgres` where root starts it, which it refuses to run as.

    Raises:
        Unexpected: If root starts it and there is no such user.
    """
    if os.geteuid():
        return None
    try:
        pwd.getpwnam(USER)
    except KeyError:
        raise Unexpected(
            f"Expected a user '{USER}' to run PostgreSQL as, since it refuses to run as root, got none; install "
            "Debian's package, `useradd --system postgres`, or start this as another user."
        ) from None
    return USER


def make_cluster(settings: Settings) -> None:
    """Make the folder that PostgreSQL keeps all databases in, unless there is one.

    Raises:
        Unexpected: If its user cannot reach the folder, or PostgreSQL cannot make it.
    """
    folder, user = settings.state / "postgres", runs_as()
    if (folder / "data").is_dir():
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    if user:
        shutil.chown(folder, user, user)
        if _run(["test", "-w", str(folder)], user).returncode:
            raise Unexpected(
                f"Expected a folder that the user '{user}' can reach, got {folder}; name another one with --state, "
                "such as /var/lib/neuron-pruning."
            )
    aside = folder / "unfinished"
    if aside.is_dir():
        shutil.rmtree(aside)
    with tempfile.TemporaryDirectory(dir=settings.state) as beside:
        secret = Path(beside, "password")
        write_private(secret, settings.password)
        if user:
            Path(beside).chmod(0o711)
            shutil.chown(secret, user, user)
        # C.UTF-8 is there on every machine, and sorts alike on all of them.
        how = ["--auth=scram-sha-256", f"--pwfile={secret}", "--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions"]
        done = _run([str(program("initdb")), f"--pgdata={aside}", "--username=pruning", *how], user)
    if done.returncode:
        raise Unexpected(f"Expected PostgreSQL to make its folder, got: {done.stderr.strip()}")
    aside.rename(folder / "data")


def command(settings: Settings) -> list[str]:
    """Return the command that serves the databases, by TCP alone: a socket's path may be too long for a socket."""
    options = {"listen_addresses": HOST, "unix_socket_directories": "", "logging_collector": "off"}
    given = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    data, port = settings.state / "postgres/data", settings.ports["postgres"]
    return [str(program("postgres")), "-D", str(data), "-p", str(port), *given]


def answers(settings: Settings) -> bool:
    """Return whether PostgreSQL takes queries."""
    import psycopg2

    try:
        psycopg2.connect(settings.database("postgres"), connect_timeout=ANSWER_SECONDS).close()
    except psycopg2.OperationalError:
        return False
    return True


def make_databases(settings: Settings) -> None:
    """Make each server's database that is not there."""
    import psycopg2

    connection = psycopg2.connect(settings.database("postgres"))
    try:
        connection.autocommit = True  # no database is made within a transaction
        with connection.cursor() as cursor:
            cursor.execute("SELECT datname FROM pg_database")
            there = {name for (name,) in cursor.fetchall()}
            for name in DATABASES:
                if name not in there:
                    cursor.execute(f'CREATE DATABASE "{name}"')  # one of this file's names
    finally:
        connection.close()


def _run(words: list[str], user: str | None) -> "subprocess.CompletedProcess[str]":
    groups: list[str] | None = [] if user else None
    return subprocess.run(
        words, cwd="/", user=user, group=user, extra_groups=groups, capture_output=True, text=True, check=False
    )
