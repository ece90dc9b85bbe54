"""PostgreSQL and S3 that `python -m deploy` starts: killed, started again, and all is there that was answered for."""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.settings import read_settings
from tests.deploy.conftest import Deployment, deployment
from tests.flow_project import DVC_CONFIG
from tests.projects import run


@pytest.fixture(scope="module")
def stores() -> Iterator[Deployment]:
    with deployment() as made:
        made("start", "postgres", "s3")
        yield made


def query(stores: Deployment, words: str) -> list[Any]:
    import psycopg2

    settings = read_settings(stores.state)
    assert settings
    with psycopg2.connect(settings.database("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute(words)
        rows = list(cursor.fetchall()) if cursor.description else []
    connection.close()
    return rows


def client(stores: Deployment, **other: str) -> Any:
    import boto3

    settings = read_settings(stores.state)
    assert settings
    known = {"aws_access_key_id": settings.key, "aws_secret_access_key": settings.secret, **other}
    return boto3.client("s3", endpoint_url=settings.address("s3"), region_name="us-east-1", **known)


def test_what_was_answered_for_is_there_after_a_kill(stores: Deployment) -> None:
    s3 = client(stores)
    query(stores, "CREATE TABLE known AS SELECT 7 AS number")
    s3.put_object(Bucket="dvc", Key="a/ü + %", Body=b"bytes", ContentType="text/plain", Metadata={"by": "me"})
    upload = s3.create_multipart_upload(Bucket="mlflow", Key="large")
    at = {"Bucket": "mlflow", "Key": "large", "UploadId": upload["UploadId"]}
    parts = [
        {"PartNumber": number, "ETag": s3.upload_part(**at, PartNumber=number, Body=body)["ETag"]}
        for number, body in ((1, b"x" * 2**23), (2, b"y"))
    ]
    tag = s3.complete_multipart_upload(**at, MultipartUpload={"Parts": parts})["ETag"]
    for name in ("one", "two", "three"):
        s3.put_object(Bucket="dvc", Key=name, Body=name.encode())
    s3.delete_object(Bucket="dvc", Key="one")
    s3.delete_objects(Bucket="dvc", Delete={"Objects": [{"Key": "two"}]})
    for name in ("postgres", "s3"):
        stores.kill(name)
    said = stores("status", "postgres", "s3", fails=True)
    assert [line.split()[:2] for line in said.splitlines()] == [["postgres", "down"], ["s3", "down"]]
    stores("start", "s3", "postgres")
    assert query(stores, "SELECT number FROM known") == [(7,)]
    listed = s3.list_objects_v2(Bucket="dvc")["Contents"]
    assert [one["Key"] for one in listed] == ["a/ü + %", "three"]
    one = s3.get_object(Bucket="dvc", Key="a/ü + %")
    assert (one["Body"].read(), one["ContentType"], one["Metadata"]) == (b"bytes", "text/plain", {"by": "me"})
    large = s3.get_object(Bucket="mlflow", Key="large")
    assert (large["Body"].read(), large["ETag"]) == (b"x" * 2**23 + b"y", tag)


def test_another_start_leaves_alone_what_runs(stores: Deployment) -> None:
    before = stores.pid("postgres"), stores.pid("s3")
    assert "starts" not in stores("start", "postgres", "s3")
    assert (stores.pid("postgres"), stores.pid("s3")) == before


def test_nobody_else_reads_the_secrets_or_takes_objects_without_the_key(stores: Deployment) -> None:
    for name in ("settings.json", "config.local", "environment"):
        assert stat.S_IMODE((stores.state / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((stores.state / "objects").stat().st_mode) == 0o700
    with pytest.raises(Exception, match=r"Forbidden|AccessDenied"):
        client(stores, aws_access_key_id="another").list_objects_v2(Bucket="dvc")
    settings = read_settings(stores.state)
    assert settings
    commands = [Path(f"/proc/{stores.pid(name)}/cmdline").read_bytes() for name in ("postgres", "s3")]
    assert not any(secret.encode() in command for command in commands for secret in (settings.key, settings.password))


def test_a_push_that_s3_does_not_take_costs_nothing_and_is_repeated(stores: Deployment, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    for number in range(3):
        (tmp_path / f"results/{number}").write_text(f"result {number}")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text(DVC_CONFIG)
    (tmp_path / ".dvc/config.local").write_text((stores.state / "config.local").read_text())
    run(["dvc", "add", "--quiet", "results"], tmp_path)
    stores.kill("s3")
    failed = run(["dvc", "push"], tmp_path, fails=True)
    assert "ERROR: " in failed.stderr
    assert "Traceback" not in failed.stderr
    stores("start", "s3")
    run(["dvc", "push"], tmp_path)
    for path in (tmp_path / "results", tmp_path / ".dvc/cache"):
        run(["rm", "-r", str(path)], tmp_path)
    run(["dvc", "pull"], tmp_path)
    assert (tmp_path / "results/2").read_text() == "result 2"
