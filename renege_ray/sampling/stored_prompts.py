"""Encoded prompts in files of this machine: encoded once, by whichever of its processes come first, mapped by all.

A set of prompts has a folder of its own below the temporary folder, named after all that decides what is in it, with a
file for every few prompts. A process takes a file that nobody has begun (a lock says so, which the system takes away
together with the process), encodes its prompts, and maps what the others have made: the pages are in memory once a
machine, and the system may drop them. Whoever uses a folder holds its lock, shared; the last one to leave removes it.
What a killed process leaves behind is found and used by the same run, and removed by the next one.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from renege_ray.output.progress import Counter

PROMPTS_PER_FILE = 32
_LOCK, _TENSOR = "lock", "embeddings"
_MOMENT_SECONDS = 0.05


class StoredPrompts:
    """The embeddings (L, D) of a set of prompts, by the prompt."""

    def __init__(self, folder: Path, lock: int, prompts: Sequence[str]) -> None:
        """See `store`, which makes it."""
        self._folder, self._lock = folder, lock
        self._place = {prompt: divmod(i, PROMPTS_PER_FILE) for i, prompt in enumerate(prompts)}
        self._parts: dict[int, Tensor] = {}

    def __contains__(self, prompt: str) -> bool:
        """Whether it is one of them."""
        return prompt in self._place

    def __getitem__(self, prompt: str) -> Tensor:
        """(L, D) in the files' type: a view of the mapped file."""
        part, row = self._place[prompt]
        return self._parts[part][row]

    def close(self) -> None:
        """Leave the folder; the last process that does so removes it. What is mapped stays readable."""
        if self._lock >= 0:
            _leave(self._folder, self._lock)
            self._lock = -1

    def fill(self, encode: Callable[[str], Tensor], made: Callable[[int], None]) -> None:
        """Encode what nobody has, wait for what others are at, and map it all; `made` is told of so many prompts."""
        prompts = list(self._place)
        waiting = list(range(-(-len(prompts) // PROMPTS_PER_FILE)))
        while waiting:
            left = []
            for part in waiting:
                mine = prompts[part * PROMPTS_PER_FILE : (part + 1) * PROMPTS_PER_FILE]
                if self._find_or_make(part, mine, encode):
                    made(len(mine))
                else:
                    left.append(part)
            if len(left) == len(waiting):
                time.sleep(_MOMENT_SECONDS)
            waiting = left

    def _find_or_make(self, part: int, prompts: Sequence[str], encode: Callable[[str], Tensor]) -> bool:
        """Map a file, after making it where it is missing; False if another process is at it."""
        file = self._folder / f"{part:06d}.safetensors"
        if not file.exists():
            with _try_lock(file.with_suffix(".lock")) as is_mine:
                if not is_mine:
                    return False
                if not file.exists():
                    unfinished = file.with_suffix(".part")
                    save_file({_TENSOR: torch.stack([encode(prompt) for prompt in prompts])}, unfinished)
                    os.replace(unfinished, file)
        with safe_open(file, "pt") as opened:
            self._parts[part] = opened.get_tensor(_TENSOR)
        return True


def store(
    encode: Callable[[str], Tensor],
    key: Iterable[object],
    prompts: Iterable[str],
    shape: Sequence[int],
    dtype: torch.dtype,
    say: Callable[[str], None],
) -> StoredPrompts:
    """The embeddings of prompts, from files that this process and others of the machine make together.

    Args:
        encode: a prompt's embedding, on the CPU, of `shape` and `dtype`.
        key: what else decides what an embedding is.
        prompts: in any order.
        say: told now and then how many there are, and when all will be.

    Raises:
        OSError, safetensors.SafetensorError: the temporary folder has no room, or cannot be written.
    """
    prompts = sorted(set(prompts))
    name = _digest([*map(str, key), str(tuple(shape)), str(dtype), *prompts])
    if name in _latest:
        return _latest[name]
    _latest.clear()
    root = Path(tempfile.gettempdir(), f"renege_ray-encoded-{os.getuid()}")
    root.mkdir(mode=0o700, exist_ok=True)
    if root.stat().st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "belongs to another user", str(root))
    _remove_left_behind(root, name)
    stored = StoredPrompts(root / name, _enter(root / name), prompts)
    try:
        _check_room(root / name, len(prompts) * prod(shape) * dtype.itemsize)
        stored.fill(encode, Counter(len(prompts), "encoding prompts:", say).add)
    except BaseException:
        stored.close()
        raise
    _latest[name] = stored
    return stored


# The next trial of a sweep wants the same prompts, whatever has become of the files.
_latest: dict[str, StoredPrompts] = {}


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256(json.dumps(list(parts)).encode("ascii")).hexdigest()[:24]


def _check_room(folder: Path, size: int) -> None:
    there = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    free = shutil.disk_usage(folder).free
    if size - there > free:
        needs = f"{(size - there) / 1e9:.3g} GB are needed, {free / 1e9:.3g} GB are free"
        raise OSError(errno.ENOSPC, needs, str(folder))


def _enter(folder: Path) -> int:
    """The lock of a folder, open and shared with the others that use it."""
    while True:
        folder.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # whoever was the last has just removed it
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_SH)
            if _is_in(folder, lock):
                return lock
            os.close(lock)


def _leave(folder: Path, lock: int) -> None:
    """Give a lock back, and remove the folder if nobody else has it."""
    with suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_in(folder, lock):
            shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def _is_in(folder: Path, lock: int) -> bool:
    """Whether an open lock file still is the one in the folder."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(folder / _LOCK), os.fstat(lock))
    return False


def _remove_left_behind(root: Path, name: str) -> None:
    """Remove the folders that nobody uses, but for the one of this name."""
    for folder in root.iterdir():
        if folder.name != name:
            with suppress(OSError):
                _leave(folder, os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


@contextmanager
def _try_lock(file: Path) -> Iterator[bool]:
    """Whether this process has the lock, for the length of the block."""
    lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(lock)
