"""Where a run of tune-prompts keeps its table, in its output folder or in a storage; and what the run was."""

from pathlib import Path

import pyarrow.fs

from renege_ray.config.run import RunConfig, parse_config
from renege_ray.config.yaml_files import parse_yaml
from renege_ray.errors import UserError
from renege_ray.output.folder import CONFIG_FILE
from renege_ray.output.parquet_folder import SUFFIX
from renege_ray.output.paths import absolute
from renege_ray.output.storage import check_storage, is_uri, join, open_folder

TABLE = "prompts-"  # begins the name of a table's folder
POINTER = "prompts.uri"  # a file of the output folder, which says where the table is


def find_table(folder: str) -> str:
    """The folder or URI of the table of a run, given the run's output folder, its folder in a storage, or the table.

    Raises:
        UserError: there is no such folder, the storage cannot be read, or it holds several tables.
    """
    root = absolute(folder)
    if is_uri(root):
        check_storage(root, "storage", write=False)
    elif not Path(root).is_dir():
        raise UserError(f"{folder}: there is no such folder; name the output folder of tune-prompts")
    filesystem, path = open_folder(root)
    found = filesystem.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True))
    tables = sorted(
        info.base_name
        for info in found
        if info.base_name.startswith(TABLE) and info.type == pyarrow.fs.FileType.Directory
    )
    if len(tables) > 1:
        names = ", ".join(tables)
        raise UserError(f"{folder} holds the tables of {len(tables)} settings ({names}); name one of these folders")
    if tables:
        return join(root, tables[0])
    pointer = Path(root) / POINTER
    if is_uri(root) or any(info.base_name.endswith(SUFFIX) for info in found) or not pointer.is_file():
        return root
    there = pointer.read_text(encoding="utf-8").strip()
    if is_uri(there):
        check_storage(there, str(pointer), write=False)
    return there


def run_of_table(folder: str) -> RunConfig | None:
    """The configuration of the run whose output folder, folder in a storage, or table is named; None where it is not
    known.
    """
    root = absolute(folder)
    filesystem, path = open_folder(root)
    for place in (path, path.rpartition("/")[0]):
        file = f"{place}/{CONFIG_FILE}"
        if filesystem.get_file_info(file).type == pyarrow.fs.FileType.File:
            with filesystem.open_input_stream(file) as stream:
                data = parse_yaml(stream.read().decode("utf-8"), file)
            return parse_config(data if is_uri(root) else data | {"output_dir": place})
    return None
