"""Folders in object stores: URIs with queries, and what is wrong with them told before any work."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from renege_ray.errors import UserError
from renege_ray.output.storage import check_storage, join, open_folder, put_file
from tests.object_store import Store, store

__all__ = ["store"]


@pytest.mark.parametrize(
    ("root", "joined"),
    [
        ("/mnt/x", "/mnt/x/run/a"),
        ("/mnt/x/", "/mnt/x/run/a"),
        ("/mnt/why?/#1", "/mnt/why?/#1/run/a"),
        ("s3://bucket", "s3://bucket/run/a"),
        ("s3://bucket/", "s3://bucket/run/a"),
        ("s3://bucket//x//y//", "s3://bucket/x/y/run/a"),
        ("s3://bucket/x?region=a&scheme=http", "s3://bucket/x/run/a?region=a&scheme=http"),
        ("s3://bucket/x/?endpoint_override=http://127.0.0.1:9/", "s3://bucket/x/run/a?endpoint_override=http://127.0.0.1:9/"),
        ("s3://bucket?region=a", "s3://bucket/run/a?region=a"),
        ("file:///mnt/x/", "file:///mnt/x/run/a"),
        ("file:///", "file:///run/a"),
        ("gs://bucket/x", "gs://bucket/x/run/a"),
    ],
)  # fmt: skip
def test_a_folder_below_a_root(root: str, joined: str) -> None:
    assert join(root, "run", "a") == joined


def test_a_file_is_put_where_the_uri_says(store: Store, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    put_file(tmp_path / "config.yaml", join(store.uri("bucket//shared/"), "run"))
    assert "shared/run/config.yaml" in store.objects()
    filesystem, path = open_folder(join(store.uri("bucket/shared"), "run"))
    assert filesystem.open_input_stream(f"{path}/config.yaml").read() == b"seed: 1\n"


def test_a_storage_that_can_be_used(store: Store, tmp_path: Path) -> None:
    check_storage(store.uri("bucket/new/folder"), "cluster.storage_path")
    check_storage(store.uri("bucket"), "cluster.storage_path")
    check_storage(store.uri("bucket/new"), "cluster.storage_path", write=False)
    assert not [key for key in store.objects() if "probe" in key]
    check_storage(str(tmp_path / "new/folder"), "cluster.storage_path")
    check_storage((tmp_path / "new/folder").as_uri(), "cluster.storage_path")
    assert not (tmp_path / "new").exists()


def complaint(root: str, *, write: bool = True) -> str:
    started = time.monotonic()
    with pytest.raises(UserError) as raised:
        check_storage(root, "cluster.storage_path", write=write)
    assert time.monotonic() - started < 15
    text = str(raised.value)
    assert text.startswith("cluster.storage_path: ") and text.count("cluster.storage_path") == 1 and "\n" not in text
    assert "hunter2" not in text
    return text


@pytest.mark.parametrize("write", [True, False])
def test_a_bucket_that_does_not_exist(store: Store, write: bool) -> None:
    text = complaint(store.uri("no-bucket/x"), write=write)
    assert "s3://no-bucket/x" in text and "bucket" in text and "check its name, the endpoint" in text


def test_a_wrong_key(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    with store.asking_for_keys():
        text = complaint(store.uri("bucket/x"))
    assert "AWS Error" in text and "the keys in the environment" in text


def test_nobody_listens_at_the_endpoint(store: Store) -> None:
    assert "check its name, the endpoint" in complaint("s3://bucket/x?endpoint_override=127.0.0.1:9&scheme=http")


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_an_endpoint_that_says_nothing(store: Store, silent: int) -> None:
    assert "does not answer within" in complaint(f"s3://bucket/x?endpoint_override=127.0.0.1:{silent}&scheme=http")


@pytest.mark.parametrize(
    ("root", "part"),
    [
        ("s3:///x", "Missing bucket"),
        ("s3://bucket/a#b", "write %23"),
        ("file:///tmp/a#b", "write %23"),
        ("s3://bucket/x?no_such_option=1", "no_such_option"),
        ("s3://key:hunter2@bucket/x", "in the environment"),
        ("hdfs://127.0.0.1:9/x", "libjvm"),
        ("ftp://127.0.0.1/x", "ftp"),
        ("file:///proc/renege_ray/x", "/proc"),
        ("/proc/renege_ray/x", "/proc"),
        ("/dev/null/x", "/dev/null is a file"),
    ],
)
def test_a_uri_that_cannot_be_used(root: str, part: str) -> None:
    assert part in complaint(root)
