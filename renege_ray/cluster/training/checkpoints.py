"""Where a run keeps its checkpoints, and which of them to go on from.

    ROOT/attempt-001/step-000020/       one folder for each checkpoint that Ray Train has been given
    ROOT/attempt-002/...                what followed a --resume

ROOT is OUTPUT_DIR/checkpoints, or a folder below `cluster.storage_path` (any filesystem that pyarrow knows,
for clusters of several machines). Ray Train goes on by itself from the last checkpoint of an attempt; a new
attempt of a killed driver looks for the newest checkpoint of all attempts that is whole.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs

from renege_ray.cluster.tracking import journal
from renege_ray.errors import UserError
from renege_ray.output.folder import CONFIG_FILE, identify
from renege_ray.output.storage import join, open_folder
from renege_ray.training.state import STATE_FILE, TornCheckpointError, TrainingState

_STEP = re.compile(r"step-(\d+)(-final)?$")
_ATTEMPT = re.compile(r"attempt-(\d+)$")


def checkpoint_name(state: TrainingState) -> str:
    """The folder of a checkpoint; the final one also holds the evaluation on held-out pairs."""
    return f"step-{state.step:06d}" + ("-final" if state.test else "")


def checkpoint_root(output_dir: Path, storage_path: str | None) -> str:
    """ROOT of a run: the same for the same run, wherever its output folder lies now."""
    shared = shared_folder(output_dir, storage_path)
    return join(shared, "checkpoints") if storage_path is None else shared


def shared_folder(output_dir: Path, storage_path: str | None) -> str:
    """Where all machines of a cluster keep what a run needs: the output folder, or one of its own in the storage."""
    if storage_path is None:
        return str(output_dir.absolute())
    return join(storage_path, identify(output_dir))


def check_goes_on(output_dir: Path, storage_path: str | None) -> None:
    """Check that what a run had kept is there, so that `--resume` never starts anew in silence.

    Raises:
        UserError: the run had made steps, but no checkpoint of it is to be found; or another version has written it.
    """
    root = checkpoint_root(output_dir, storage_path)
    step = journal.last_step(output_dir)
    if step > 0 and CheckpointStore(root).newest_intact() is None:
        raise UserError(
            f"--resume: the run in {output_dir} had come to step {step}, but {root} holds no checkpoint of it that is "
            f"whole; put that folder back, or start a new run with --preset {output_dir / CONFIG_FILE}"
        )


def check_rows_go_on(output_dir: Path, storage_path: str | None) -> None:
    """The same for a job whose rows are what it goes on from. Without storage they lie in the output folder itself.

    Raises:
        UserError: the run had rows, and the folder where it keeps them is gone.
    """
    rows = journal.last_step(output_dir)
    if storage_path is None or rows <= 0:
        return
    filesystem, path = open_folder(shared_folder(output_dir, storage_path))
    if filesystem.get_file_info(path).type == pyarrow.fs.FileType.NotFound:
        raise UserError(
            f"--resume: the run in {output_dir} had {rows} rows, but there is no folder {path} in the storage; put it "
            "back, or name another --output-dir to begin anew"
        )


class CheckpointStore:
    """The checkpoints below a ROOT."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._fs, self._path = open_folder(root)

    def next_attempt(self) -> str:
        """The name of an attempt that no earlier one has had."""
        numbers = [int(match[1]) for name in self._folders(self._path) if (match := _ATTEMPT.match(name))]
        return f"attempt-{max(numbers, default=0) + 1:03d}"

    def newest_intact(self) -> tuple[str, TrainingState] | None:
        """The checkpoint to go on from, as `ATTEMPT/STEP` and content; torn ones are passed over. None: there
        is none.
        """
        while True:
            names = self._newest_first()
            for name in names:
                try:
                    return name, self.load(name)
                except TornCheckpointError:
                    continue
            # What a killed driver has left may write for some seconds yet: a newer one, and the one read here is gone.
            if names == self._newest_first():
                return None

    def _newest_first(self) -> list[str]:
        found = []
        for attempt in self._folders(self._path):
            if _ATTEMPT.match(attempt):
                for step in self._folders(f"{self._path}/{attempt}"):
                    if match := _STEP.match(step):
                        found.append((int(match[1]), match[2] is not None, attempt, step))
        return [f"{attempt}/{step}" for _, _, attempt, step in sorted(found, reverse=True)]

    def load(self, name: str) -> TrainingState:
        """The checkpoint `ATTEMPT/STEP`. Raises TornCheckpointError."""
        try:
            with self.folder(name) as directory:
                return TrainingState.load(directory)
        except FileNotFoundError as error:  # a storage's, which has been copied from
            raise TornCheckpointError(f"{name}: {error}") from error

    def replace(self, attempt: str, name: str, write_files: Callable[[Path], None]) -> None:
        """Keep a checkpoint as the only one of an attempt. Killed on the way, there is the old one, or both.

        One of the same name that is whole says the same, and is left alone: there may be no other one.
        """
        target = f"{self._path}/{attempt}"
        older = [found for found in self._folders(target) if found != name]
        if not self._is_intact(f"{attempt}/{name}"):
            with tempfile.TemporaryDirectory() as scratch:
                write_files(Path(scratch))
                with tempfile.TemporaryDirectory() as last:
                    # Files are copied in no order, and the state is what makes a checkpoint of the others.
                    shutil.move(Path(scratch) / STATE_FILE, Path(last) / STATE_FILE)
                    self._fs.create_dir(f"{target}/{name}")
                    for folder in (scratch, last):
                        pyarrow.fs.copy_files(folder, f"{target}/{name}", destination_filesystem=self._fs)
        for found in older:
            self._fs.delete_dir(f"{target}/{found}")

    def _is_intact(self, name: str) -> bool:
        try:
            self.load(name)
        except TornCheckpointError:
            return False
        return True

    @contextmanager
    def folder(self, name: str) -> Iterator[Path]:
        """The files of a checkpoint as a local folder."""
        source = f"{self._path}/{name}"
        if isinstance(self._fs, pyarrow.fs.LocalFileSystem):
            yield Path(source)
            return
        with tempfile.TemporaryDirectory() as scratch:
            pyarrow.fs.copy_files(source, scratch, source_filesystem=self._fs)
            yield Path(scratch)

    def _folders(self, path: str) -> list[str]:
        selector = pyarrow.fs.FileSelector(path, allow_not_found=True)
        infos = self._fs.get_file_info(selector)
        return sorted(info.base_name for info in infos if info.type == pyarrow.fs.FileType.Directory)
