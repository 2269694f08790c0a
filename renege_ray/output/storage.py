"""Folders that may lie in an object store: how their URIs are put together, opened, and tried before any work."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.fs

from renege_ray.errors import UserError, first_line
from renege_ray.output.folder import check_writable
from renege_ray.output.paths import URI, check_no_secret

_AT_ONCE = 16  # downloads
_SECONDS = 12.0  # an unreachable endpoint is tried again and again by the libraries below
# In a process of its own, which can be ended: these libraries wait for minutes, and some end the process.
_PROBE = """
import sys, uuid
import pyarrow.fs
try:
    filesystem, path = pyarrow.fs.FileSystem.from_uri(sys.argv[1])
    if sys.argv[2] == "read":
        filesystem.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True))
        bucket = path.split("/")[0]
        if bucket and filesystem.get_file_info(bucket).type == pyarrow.fs.FileType.NotFound:
            raise FileNotFoundError(f"there is no bucket {bucket}")
    else:
        probe = f"{path}/.probe-{uuid.uuid4().hex}"
        with filesystem.open_output_stream(probe) as stream:
            stream.write(b"x")
        filesystem.delete_file(probe)
except Exception as error:
    print(" ".join(str(error).split()))
    sys.exit(3)
"""


def is_uri(text: str) -> bool:
    """Whether a text is a URI, not a path."""
    return URI.match(text) is not None


def join(root: str, *names: str) -> str:
    """A folder below a root, which is a path or a URI; the query of a URI stays at its end."""
    if not is_uri(root):
        return "/".join([root.rstrip("/"), *names])
    place, mark, query = root.partition("?")
    scheme, _, rest = place.partition("://")
    return "/".join([f"{scheme}://{re.sub('/+', '/', rest).rstrip('/')}", *names]) + mark + query


def open_folder(root: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The filesystem of a folder or URI, and the path in it.

    Raises:
        UserError: it is no URI of a storage that can be used here.
    """
    _check_form(root)
    try:
        return pyarrow.fs.FileSystem.from_uri(join(root))
    except (pa.ArrowException, OSError, ValueError, ImportError) as error:
        why = _reason(str(error))
        raise UserError(f"{root} cannot be used as storage ({why}); name a folder or another URI") from None


def check_storage(root: str, field: str, *, write: bool = True) -> None:
    """Try whether a folder or URI can be written, or read, within 15 seconds. No folder is made.

    Raises:
        UserError: it cannot; the message begins with the field.
    """
    try:
        _check_form(root)
        if not is_uri(root) or root.lower().startswith("file:"):
            path = Path(open_folder(root)[1])
            if write:
                check_writable(path, field)
            return
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(field) else f"{field}: {text}") from None
    how = "write" if write else "read"
    if why := _probe(join(root), how):
        raise UserError(
            f"{field}: {root}: {why}; check its name, the endpoint (AWS_ENDPOINT_URL, or endpoint_override in the "
            "URI), and the keys in the environment"
        )


def put_file(file: Path, root: str) -> None:
    """Copy a file into a folder or URI, which is made where it is missing."""
    filesystem, path = open_folder(root)
    filesystem.create_dir(path, recursive=True)
    with filesystem.open_output_stream(f"{path}/{file.name}", compression=None) as stream:
        stream.write(file.read_bytes())


@contextmanager
def local_files(root: str, names: Sequence[str | None]) -> Iterator[list[Path | None]]:
    """Files below a folder or URI as local ones; None where no name is given. What cannot be fetched is not there."""
    if not is_uri(root):
        yield [Path(root) / name if name else None for name in names]
        return
    filesystem, path = open_folder(root)
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(_AT_ONCE) as pool:

        def fetch(name: str | None) -> Path | None:
            if not name:
                return None
            target = Path(scratch) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError), filesystem.open_input_stream(f"{path}/{name}", compression=None) as stream:
                target.write_bytes(stream.read())
            return target

        yield list(pool.map(fetch, names))


def _check_form(root: str) -> None:
    if is_uri(root):
        check_no_secret(root)
        if "#" in root:
            raise UserError(f"{root}: what follows a # is no part of a folder's name in a URI; write %23")


def _probe(root: str, how: str) -> str:
    """Why a storage cannot be used; empty if it can."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, root, how],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"does not answer within {_SECONDS:g} seconds"
    if done.returncode == 0:
        return ""
    lines = (done.stdout if done.returncode == 3 else done.stderr).strip().splitlines()
    return f"cannot be {'written' if how == 'write' else 'read'} ({_reason(lines[-1] if lines else 'no reason given')})"


def _reason(text: str) -> str:
    """What a library says, in a few words."""
    text = " ".join(text.split()).split("dlopen(")[0]
    return first_line(ValueError(re.sub(r" \(Request ID: [^)]*\)", "", text).strip()))
