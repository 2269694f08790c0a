"""The published prompt sets that go by a name: where their files are, and how it is known that they are the right ones.

A set is read from a local copy, from the cache of an earlier download, or from its public home, at a fixed revision.
"""

import hashlib
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from renege_ray.config.yaml_files import read_yaml
from renege_ray.errors import UserError
from renege_ray.models.loading.user_errors import user_errors
from renege_ray.output.whole_files import whole_file
from renege_ray.prompts.files import PromptTable, read_prompt_file

GITHUB = "https://raw.githubusercontent.com"
_SECONDS_TO_CONNECT = 20


@dataclass(frozen=True)
class RemoteFile:
    """A file of a published set."""

    host: Literal["GitHub", "Hub"]
    """"GitHub", or "Hub" for a data set of the Hugging Face Hub."""
    repository: str
    """OWNER/NAME there."""
    revision: str
    """The commit."""
    path: str
    """Within the repository."""
    sha256: str
    """Of the file."""
    prompts: int
    """How many it holds."""
    column: str | None = None
    """Where they are; None where the file has no columns."""
    category: str = ""
    """Of all of them, where the file stands for one."""

    @property
    def name(self) -> str:
        """The file's name, which a local copy has too."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class PublishedSet:
    """A set of one file or several."""

    files: tuple[RemoteFile, ...]
    exact: bool = True
    """A file with another SHA-256 is refused; otherwise that is only said."""


SETS = {
    name: PublishedSet(tuple(RemoteFile(**file) for file in facts["files"]), facts.get("exact", True))
    for name, facts in read_yaml(Path(__file__).with_suffix(".yaml")).items()
}


def read_builtin(name: str, field: str, local: Path | None = None) -> tuple[PromptTable, tuple[str, ...]]:
    """Read a published set, and check that it is the one.

    Args:
        name: one of `SETS`.
        field: whose value it is, for messages.
        local: the file, or a folder with the file or files; None to take them from the cache or download them.

    Returns:
        The prompts, with the files in the order of `SETS`, and what there is to say of the copy.

    Raises:
        UserError: a file cannot be had (the message says which one, of which repository, and how to give a local copy),
            or it is another file than the published one.
    """
    published = SETS[name]
    parts: list[PromptTable] = []
    remarks: list[str] = []
    for file, path in zip(published.files, _locate(name, field, local), strict=True):
        table = read_prompt_file(path, field, file.column)
        found = len(table.prompts) + table.blank
        if found != file.prompts:
            raise UserError(f"{field}: {path} has {found} prompts, but {file.name} of {name} has {file.prompts}")
        if _sha256(path) != file.sha256:
            if published.exact:
                raise UserError(
                    f"{field}: {path} is not the {file.name} of {name} (its SHA-256 is {_sha256(path)}, not "
                    f"{file.sha256}); download it again, or name it as a file of your own: {path}"
                )
            remarks.append(f"{path.name} has another SHA-256 than is known of it")
        parts.append(table)
    categories = [
        category
        for file, table in zip(published.files, parts, strict=True)
        for category in ([file.category] * len(table.prompts) if file.category else table.categories)
    ]
    prompts = tuple(prompt for table in parts for prompt in table.prompts)
    blank = sum(table.blank for table in parts)
    return PromptTable(prompts, tuple(categories), blank, parts[0].column, parts[0].unit), tuple(remarks)


def _locate(name: str, field: str, local: Path | None) -> list[Path]:
    files = SETS[name].files
    if local is not None:
        return _local_copies(name, field, local)
    on_hub = files[0].host == "Hub"
    where = "data set of the Hugging Face Hub" if on_hub else "repository on GitHub"
    needed = f"{', '.join(file.path for file in files)} of {files[0].repository} ({where})"
    remedy = f"give a local copy: {name}={'FILE' if len(files) == 1 else 'FOLDER'}"
    with user_errors(f"{field}: {name} needs {needed}, which", remedy, hub=on_hub):
        return _from_hub(files) if on_hub else [_from_github(file) for file in files]


def _local_copies(name: str, field: str, local: Path) -> list[Path]:
    files = SETS[name].files
    if local.is_dir():
        return [local / file.name for file in files]
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{field}: {name}={local} is no folder; give the folder that holds {names}")
    return [local]


def _from_hub(files: tuple[RemoteFile, ...]) -> list[Path]:
    """Files of one data set of the Hub. What is in its cache needs no connection."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def folder(*, local_files_only: bool) -> Path:
        return Path(
            snapshot_download(
                files[0].repository,
                repo_type="dataset",
                revision=files[0].revision,
                allow_patterns=[file.path for file in files],
                local_files_only=local_files_only,
            )
        )

    def paths(root: Path) -> list[Path]:
        return [root / file.path for file in files]

    try:
        cached = paths(folder(local_files_only=True))
        if all(path.is_file() for path in cached):
            return cached
    except LocalEntryNotFoundError:
        pass
    # Fails at once without a connection, where a download would try again for half a minute.
    HfApi().dataset_info(files[0].repository, revision=files[0].revision, timeout=_SECONDS_TO_CONNECT)
    return paths(folder(local_files_only=False))


def _from_github(file: RemoteFile) -> Path:
    """A file of a GitHub repository, kept where the Hub's library has other libraries keep theirs."""
    from huggingface_hub import cached_assets_path, constants

    path = cached_assets_path("renege_ray", "prompts", file.sha256[:16]) / file.name
    if path.is_file() and _sha256(path) == file.sha256:
        return path
    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set")
    url = f"{GITHUB}/{file.repository}/{file.revision}/{file.path}"
    with urllib.request.urlopen(url, timeout=_SECONDS_TO_CONNECT) as response:
        data = response.read()
    if hashlib.sha256(data).hexdigest() != file.sha256:  # a proxy's page, say: it would stay in the cache
        raise ConnectionError(f"{url} gave something else")
    with whole_file(path) as temporary:
        temporary.write_bytes(data)
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
