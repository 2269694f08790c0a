"""`export`: a folder that can be published on the Hugging Face Hub as it stands."""

import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from renege_ray.config.run import RunConfig, read_config
from renege_ray.embeddings.model_card import CardFacts, model_card
from renege_ray.errors import UserError, first_line
from renege_ray.method.embedding import ATTENTION_MASK, NegativeEmbedding
from renege_ray.output.folder import CONFIG_FILE, EMBEDDING_FILE, write_text
from renege_ray.output.names import LONGEST, alike, with_hash

SUMMARY_FILE = "summary.json"
CARD_FILE = "README.md"
_PICTURES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class HubFolder:
    """What a folder will hold: the embedding, the card, and the pictures by their places in it."""

    embedding: NegativeEmbedding
    card: str
    pictures: dict[PurePosixPath, Path]
    note: str = ""
    """What the user should know, in a line; "" where there is nothing."""

    @property
    def files(self) -> list[str]:
        """All paths in the folder."""
        return [EMBEDDING_FILE, CARD_FILE, *map(str, self.pictures)]

    def write(self, folder: Path, *, force: bool = False) -> None:
        """Write the files; others that are in the folder stay.

        Raises:
            UserError: the folder is not empty and `force` is not given, or it cannot be written.
        """
        if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not force)):
            raise UserError(f"--hub: {folder} exists and is not an empty folder; name a new one, or give --force")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.embedding.save(folder / EMBEDDING_FILE)
            for place, source in self.pictures.items():
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, folder / place)
            write_text(folder / CARD_FILE, self.card)
        except OSError as error:
            raise UserError(f"--hub: {folder} cannot be written ({error.strerror}); name another folder") from None


@dataclass(frozen=True)
class _Run:
    """What a run's output folder tells."""

    config: RunConfig
    summary: dict[str, Any]
    folder: Path

    def pictures(self) -> dict[PurePosixPath, Path]:
        """The pictures among the artifacts."""
        artifacts = dict.fromkeys(self.folder / relative for relative in self.summary.get("artifacts", {}).values())
        paths = [path for path in artifacts if path.suffix.lower() in _PICTURES and path.is_file()]
        count = Counter(alike(path.name) for path in paths)
        found = {}
        for path in paths:
            name = path.name
            if count[alike(name)] > 1:  # of several folders
                name = f"{with_hash(path.stem, str(path.relative_to(self.folder)), LONGEST)}{path.suffix}"
            found[PurePosixPath("images") / name] = path
        return found


def prepare(source: Path, *, base_model: str | None = None, licence: str = "other", repository: str = "") -> HubFolder:
    """Gather what a folder will hold.

    Args:
        source: a run's output folder, or an embedding file (then there are no figures and no pictures).
        base_model: the Hub's id of the model; None for the one that the embedding names.
        licence: an identifier of the Hub's list; "other" stands for the base model's terms.
        repository: where it will be published; "" if nowhere yet.

    Raises:
        UserError: there is no embedding, or nobody says which model it is for.
    """
    run = _read_run(source) if source.is_dir() else None
    embedding = NegativeEmbedding.load(source / EMBEDDING_FILE if run else source)
    base_model = base_model or embedding.metadata.base_model
    if not base_model:
        raise UserError(f"{source}: the embedding does not say which model it is for; give --base-model OWNER/NAME")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+_-]*", licence):
        raise UserError(f"--license: {licence!r} is no identifier of the Hub's list; for example openrail++, or other")
    pictures = run.pictures() if run else {}
    facts = CardFacts(
        embedding.metadata,
        base_model,
        licence,
        repository,
        run.config if run else None,
        run.summary.get("metrics", {}) if run else {},
        tuple(pictures),
        masked=ATTENTION_MASK in embedding.tensors,
    )
    note = (
        ""
        if facts.is_on_hub
        else f"{base_model!r} is no model of the Hub; --base-model OWNER/NAME links the card to it"
    )
    return HubFolder(embedding, str(model_card(facts)), pictures, note)


def _read_run(folder: Path) -> _Run:
    if not (folder / EMBEDDING_FILE).is_file():
        raise UserError(
            f"{folder} has no {EMBEDDING_FILE}; name the output folder of a run that has finished, or a file"
        )
    for name in (CONFIG_FILE, SUMMARY_FILE):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}; name the embedding file itself to publish it without figures")
    try:
        summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / SUMMARY_FILE} is damaged ({error}); name the embedding file itself") from None
    return _Run(read_config(folder), summary, folder)


def push(folder: Path, repository: str, files: list[str], *, private: bool = False) -> str:
    """Upload the files of a folder to a model repository, which is made if it is not there. Returns its address.

    Raises:
        UserError: the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=files, commit_message="Publish a negative embedding"
        )
    except Exception as error:  # of the Hub, of its HTTP client: nothing of this is a fault here
        raise UserError(
            f"--push: {repository} cannot be written on the Hub ({first_line(error)}); log in with `hf auth login`; "
            f"the folder {folder} is complete"
        ) from error
    return str(address)
