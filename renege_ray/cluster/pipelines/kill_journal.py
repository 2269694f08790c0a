"""Which prompts were being computed when a worker died, so that the one that kills workers is found and given up.

A chunk of prompts that Ray hands to a worker is handed to another one if the worker dies. Each of the prompts that
were in its slots then is a suspect, and a suspect is tuned alone, where another death has one culprit only.
"""

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow.fs

MAX_KILLS = 3  # the first attempt and two more
MAX_DEATHS_AT_START = 5


class KillJournal:
    """The notes on one chunk: a file that its worker rewrites whenever other prompts enter its slots.

    Attributes:
        kills: how many workers have died with a prompt (by id) in their slots.
        restarted: whether an earlier worker has begun with this chunk.
    """

    def __init__(self, filesystem: pyarrow.fs.FileSystem, path: str) -> None:
        """Read what earlier workers have left; what they had in their slots counts as killing them."""
        self._filesystem, self._path = filesystem, path
        earlier = self._read()
        self.restarted = bool(earlier)
        self.kills: dict[str, int] = dict(earlier.get("kills", {}))
        for prompt_id in earlier.get("present", []):
            self.kills[prompt_id] = self.kills.get(prompt_id, 0) + 1

    def note(self, present: Sequence[str]) -> None:
        """These prompts (by id) are about to be computed, and no others."""
        temporary = f"{self._path}.part"
        with self._filesystem.open_output_stream(temporary) as file:
            file.write(json.dumps({"present": list(present), "kills": self.kills}).encode())
        self._filesystem.move(temporary, self._path)

    def close(self) -> None:
        """The chunk is done."""
        if self._filesystem.get_file_info(self._path).type == pyarrow.fs.FileType.File:
            self._filesystem.delete_file(self._path)

    def _read(self) -> dict[str, Any]:
        try:
            with self._filesystem.open_input_stream(self._path) as file:
                found = json.loads(file.read())
        except FileNotFoundError:
            return {}
        return found if isinstance(found, dict) else {}


def journal_path(folder: str, session: str, chunk: str) -> str:
    """The file of the notes on a chunk, below the table's folder."""
    return f"{folder}/.kills-{session}-{chunk}.json"


def work_has_begun(filesystem: pyarrow.fs.FileSystem, folder: str, session: str) -> bool:
    """Whether a worker has loaded its models and computes: there are notes on a chunk."""
    prefix = f".kills-{session}-"
    infos = filesystem.get_file_info(pyarrow.fs.FileSelector(folder, allow_not_found=True))
    return any(info.base_name.startswith(prefix) for info in infos)


@contextmanager
def counted_start(filesystem: pyarrow.fs.FileSystem, folder: str, session: str, workers: int) -> Iterator[None]:
    """A worker's start, which leaves a mark for as long as it takes: Ray replaces a worker that dies without end.

    Raises:
        RuntimeError: there are too many marks of starts that nobody has survived.
    """
    prefix = f".start-{session}-"
    infos = filesystem.get_file_info(pyarrow.fs.FileSelector(folder, allow_not_found=True))
    if sum(info.base_name.startswith(prefix) for info in infos) >= MAX_DEATHS_AT_START + workers:
        raise RuntimeError(f"{MAX_DEATHS_AT_START} workers died while they loaded the models; is memory short?")
    mark = f"{folder}/{prefix}{uuid.uuid4().hex}"
    with filesystem.open_output_stream(mark):
        pass
    yield
    filesystem.delete_file(mark)
