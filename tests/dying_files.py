"""A local filesystem on which a process can be killed at any step: from then on it does nothing, not even tidy up."""

from typing import Any

import pyarrow.fs


class Killed(OSError):
    pass


class DyingFiles(pyarrow.fs.FileSystemHandler):
    """Local files; after so many steps that change something, every call raises. `PyFileSystem(DyingFiles(3))`."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._local = pyarrow.fs.LocalFileSystem()

    @property
    def dead(self) -> bool:
        return self.steps < 0

    def _alive(self) -> None:
        if self.dead:
            raise Killed("killed")

    def _change(self) -> None:
        self._alive()
        self.steps -= 1
        self._alive()

    def get_type_name(self) -> str:
        return "dying"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> Any:
        self._alive()
        return self._local.get_file_info(paths)

    def get_file_info_selector(self, selector: pyarrow.fs.FileSelector) -> Any:
        self._alive()
        return self._local.get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        self._alive()
        self._local.create_dir(path, recursive=recursive)

    def delete_file(self, path: str) -> None:
        self._change()
        self._local.delete_file(path)

    def move(self, source: str, target: str) -> None:
        self._change()
        self._local.move(source, target)

    def open_input_stream(self, path: str) -> Any:
        self._alive()
        return self._local.open_input_stream(path)

    def open_input_file(self, path: str) -> Any:
        self._alive()
        return self._local.open_input_file(path)

    def open_output_stream(self, path: str, metadata: object) -> Any:
        self._change()
        return self._local.open_output_stream(path)

    def open_append_stream(self, path: str, metadata: object) -> Any:
        raise NotImplementedError

    def copy_file(self, source: str, target: str) -> None:
        raise NotImplementedError

    def delete_dir(self, path: str) -> None:
        raise NotImplementedError

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        raise NotImplementedError

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError
