"""moto's S3 server with objects that outlive it: a change is answered when it is in a file; files are read at start.

moto keeps objects in memory alone, so that killing it would lose every result that was pushed. One process serves one
folder, to whoever knows the key: `python -m deploy.objects FOLDER --port 9000 --bucket dvc`, the key's name standing in
AWS_ACCESS_KEY_ID. moto checks no signature, so the name is the secret.
"""

import argparse
import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

READS = {"GET", "HEAD", "OPTIONS"}
UNFINISHED = ".partial"
REGION = "us-east-1"


class Objects:
    """A WSGI application: moto's S3, whose objects are files of a folder.

    A file's first line is JSON with what is known of the object, the rest are its bytes.

    Args:
        folder: Where the files are; it is made, and whatever it holds is served.
        buckets: Buckets that are there from the start; others come back with their objects.
        key: What requests must be signed with.
    """

    def __init__(self, folder: Path, buckets: Sequence[str], key: str) -> None:
        self._folder, self._key, self._lock = folder, key, threading.Lock()
        self._backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        self._moto = DomainDispatcherApplication(create_backend_app)
        folder.mkdir(parents=True, exist_ok=True)
        for bucket in buckets:
            self._make(bucket)
        for path in folder.iterdir():
            if path.suffix == UNFINISHED:  # of a change that was never answered
                path.unlink()
            else:
                self._restore(path)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Let moto answer; if that changed objects, write them before the answer leaves."""
        signed = environ.get("HTTP_AUTHORIZATION", "") + environ.get("QUERY_STRING", "")
        if f"Credential={self._key}" not in signed:
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code><Message>Unknown access key.</Message></Error>"]
        if environ["REQUEST_METHOD"] in READS:
            answer: Iterable[bytes] = self._moto(environ, start_response)
            return answer
        begun: list[Any] = []
        body = list(self._moto(environ, lambda *words: begun.extend(words)))
        path = environ["PATH_INFO"].encode("latin-1").decode("utf-8")
        bucket, _, name = path.lstrip("/").partition("/")
        with self._lock:
            for changed in [name] if name else self._gone(bucket):
                self._keep(bucket, changed)
        start_response(*begun)
        return body

    def _make(self, bucket: str) -> None:
        if bucket not in self._backend.buckets:
            self._backend.create_bucket(bucket, REGION)

    def _restore(self, path: Path) -> None:
        """Give moto the object that is in a file."""
        with path.open("rb") as file:
            about, value = json.loads(file.readline()), file.read()
        self._make(about["bucket"])
        key = self._backend.put_object(about["bucket"], about["name"], value, etag=about["etag"])
        key.set_metadata(about["metadata"], replace=True)
        key.last_modified = datetime.fromisoformat(about["modified"])

    def _keep(self, bucket: str, name: str) -> None:
        """Let the file of an object be as the object is."""
        path = self._folder / hashlib.sha256(f"{bucket}/{name}".encode()).hexdigest()
        key = self._backend.buckets[bucket].keys.get(name) if bucket in self._backend.buckets else None
        if key is None:
            path.unlink(missing_ok=True)
            return
        about = {"bucket": bucket, "name": name, "etag": key._etag, "metadata": dict(key.metadata)}
        about["modified"] = key.last_modified.isoformat()
        aside = path.with_suffix(UNFINISHED)
        with aside.open("wb") as file:
            file.write(f"{json.dumps(about)}\n".encode() + key.value)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        folder = os.open(self._folder, os.O_RDONLY)
        os.fsync(folder)  # the name too
        os.close(folder)

    def _gone(self, bucket: str) -> list[str]:
        """Return the objects of a bucket that have files and are no more, after several were deleted at once."""
        names = []
        for path in self._folder.iterdir():
            with path.open("rb") as file:
                about = json.loads(file.readline())
            if about["bucket"] == bucket and about["name"] not in self._backend.buckets[bucket].keys:
                names.append(about["name"])
        return names


def main() -> None:
    """Serve until ended; each change is on disk before its answer, so any end is a clean one."""
    parser = argparse.ArgumentParser(prog="python -m deploy.objects", description="Serve a folder's objects by S3.")
    parser.add_argument("folder", type=Path, help="where the objects are kept")
    parser.add_argument("--port", type=int, required=True, help="of 127.0.0.1")
    parser.add_argument("--bucket", action="append", default=[], help="a bucket to make; again for more")
    given = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # not a line for each request
    objects = Objects(given.folder, given.bucket, os.environ["AWS_ACCESS_KEY_ID"])
    run_simple("127.0.0.1", given.port, objects, threaded=True, request_handler=MotoRequestHandler)


if __name__ == "__main__":
    main()
