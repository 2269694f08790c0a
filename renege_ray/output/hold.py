"""One process at a time works in an output folder: a lock that the system takes away together with the process."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from renege_ray.errors import UserError

LOCK_FILE = ".lock"
_WAIT_SECONDS = 1.0  # somebody who only looks whether it is held has it for a moment
_held: set[tuple[int, int]] = set()  # device and inode of the lock files that this process holds


def check_not_held(folder: Path, flag: str = "--output-dir") -> None:
    """Raise UserError, which says who it is, if another process works in the folder."""
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        file = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _identity(file) not in _held and not _locked(file, fcntl.LOCK_SH):
                raise UserError(_refusal(folder, file, flag))
        finally:
            os.close(file)


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold an output folder, which is made where it is missing, for the length of the block.

    Works through links and for moved folders, since the file that is locked lies in the folder. A folder that nothing
    has been written to is removed again. On a file system without locks nothing is held.

    Raises:
        UserError: another process holds it, or it cannot be made.
    """
    made = not folder.exists()
    file = _take(folder)
    identity = _identity(file)
    if identity in _held:  # by this process itself, further up
        os.close(file)
        yield
        return
    try:
        _held.add(identity)
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(_this_process()).encode(), 0)
        yield
    finally:
        _held.discard(identity)
        if made and os.listdir(folder) == [LOCK_FILE]:
            with suppress(OSError):
                (folder / LOCK_FILE).unlink()
                folder.rmdir()
        os.close(file)


def _take(folder: Path) -> int:
    """The lock file, open and locked (or held by this process already)."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UserError(f"--output-dir: {folder} cannot be made ({error.strerror}); name another folder") from None
        if _identity(file) in _held or (_locked(file, fcntl.LOCK_EX) and _is_in(folder, file)):
            return file
        refusal = _refusal(folder, file, "--output-dir")
        os.close(file)
        if time.monotonic() > deadline:
            raise UserError(refusal)
        time.sleep(0.05)


def _is_in(folder: Path, file: int) -> bool:
    """Whether an open lock file still is the one in the folder: whoever held it may have removed it."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(folder / LOCK_FILE), os.fstat(file))
    return False


def _identity(file: int) -> tuple[int, int]:
    found = os.fstat(file)
    return found.st_dev, found.st_ino


def _locked(file: int, kind: int) -> bool:
    """Whether the lock could be taken, or there are no locks here."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def _this_process() -> dict[str, object]:
    return {"process": os.getpid(), "machine": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}


def _refusal(folder: Path, file: int, flag: str) -> str:
    try:
        holder = json.loads(os.pread(file, 1000, 0))
        who = f"process {holder['process']} on {holder['machine']}, since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return f"{flag}: a run is still going on in {folder} ({who}); wait for its end, stop it, or name another folder"
