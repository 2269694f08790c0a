"""An object store on the loopback address that speaks S3, as people run MinIO: the fixture `store`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.request import Request, urlopen

import boto3
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "bucket"


@dataclass(frozen=True)
class Store:
    """A running store with one bucket."""

    host: str
    port: int

    @property
    def query(self) -> str:
        return f"?endpoint_override={self.host}:{self.port}&scheme=http"

    def uri(self, path: str) -> str:
        """Of a path that begins with a bucket."""
        return f"s3://{path}{self.query}"

    def objects(self) -> list[str]:
        """The keys of all objects in the bucket."""
        client = boto3.client("s3", endpoint_url=f"http://{self.host}:{self.port}")
        return sorted(found["Key"] for found in client.list_objects_v2(Bucket=BUCKET).get("Contents", []))

    @contextmanager
    def asking_for_keys(self) -> Iterator[None]:
        """It looks at keys meanwhile, and knows none."""
        self._ask_after(b"0")
        try:
            yield
        finally:
            self._ask_after(b"inf")

    def _ask_after(self, requests: bytes) -> None:
        address = f"http://{self.host}:{self.port}/moto-api/reset-auth"
        urlopen(Request(address, requests, {"Content-Type": "text/plain"}), timeout=5).close()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Keys come from the environment, as they should; nobody is asked for others."""
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket=BUCKET)
    yield Store(host, port)
    server.stop()
