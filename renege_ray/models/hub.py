"""Finding a diffusers model in a folder or on the Hugging Face Hub, and saying plainly why there is none."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from renege_ray.errors import UserError

# The base of all errors of the HTTP client, whichever one the Hub's library uses: it has changed before.
HTTPError: type[BaseException] = HfHubHTTPError.__bases__[0]
INDEX = "model_index.json"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# No images but the model's own: the checker would paint some black, and rewards would judge the paint.
WITHOUT_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
LOCAL_HINT = "or give a local folder in diffusers' format (one with model_index.json)"


def find_folder(model: str, *, revision: str | None, variant: str | None) -> Path:
    """The folder of a model: `model` itself, or where the Hub's files lie once they are downloaded.

    Raises:
        UserError: it cannot be found; the message names the file or the id and says what to do.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return _check_index(path)
    if path.exists():
        raise UserError(f"model {model!r} is a file: give the folder in diffusers' format (one with {INDEX})")
    if not HUB_ID.fullmatch(model):
        raise UserError(f"model {model!r}: no such folder; give one in diffusers' format (with {INDEX}), or a Hub id")
    try:
        folder = StableDiffusionPipeline.download(
            model, revision=revision, variant=variant, use_safetensors=True, **WITHOUT_CHECKER
        )
    except Exception as error:  # of the Hub, of its HTTP client, of diffusers: all say that there is no model
        raise UserError(f"model {model!r} {_why(error, revision)}, {LOCAL_HINT}") from error
    return _check_index(Path(folder))


def read_pipeline(folder: Path, model: str, *, variant: str | None) -> StableDiffusionPipeline:
    """The pipeline of a folder, in float32, from safetensors files only.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        with _no_progress_bars():
            return StableDiffusionPipeline.from_pretrained(
                folder,
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                dtype=torch.float32,
                **WITHOUT_CHECKER,
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"model {model!r} cannot be loaded from {folder}: {reason} (only safetensors files are read)"
        ) from error


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Reading from a disk takes a moment, and every worker does it; bars of downloads are left alone."""
    libraries = [lib for lib in (diffusers_logging, transformers_logging) if lib.is_progress_bar_enabled()]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()


def is_local(model: str) -> bool:
    """Whether a model is named by its folder."""
    return Path(model).expanduser().is_dir()


def _check_index(folder: Path) -> Path:
    index = folder / INDEX
    if not index.is_file():
        raise UserError(f"model folder {folder} has no file {INDEX}: give a folder in diffusers' format")
    try:
        kind = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise UserError(f"model file {index} is damaged ({error}): export or download the model again") from error
    if kind != "StableDiffusionPipeline":
        raise UserError(f"model folder {folder} holds a {kind}: only StableDiffusionPipeline is supported")
    return folder


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _why(error: BaseException, revision: str | None) -> str:
    """What went wrong, from the chain of causes: diffusers hides the Hub's own error behind an OSError."""
    causes = list(_causes(error))

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    absent = f"is neither a folder nor whole in the Hub's cache ({INDEX} and what it names)"
    if is_any(OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return f"{absent}, and HF_HUB_OFFLINE is set: unset it"
    if is_any(GatedRepoError):
        return "is gated: accept its conditions on the Hub and log in with `hf auth login`"
    if is_any(RevisionNotFoundError):
        return f"has no revision {revision!r} on the Hub: check model.revision"
    if is_any(RepositoryNotFoundError, HFValidationError):
        return "is neither a folder nor a model of the Hub (or it is private): check the spelling"
    if is_any(EntryNotFoundError) and not is_any(LocalEntryNotFoundError):
        return f"has no {INDEX} on the Hub: give a model in diffusers' format"
    if is_any(ConnectionError, LocalEntryNotFoundError, HTTPError) or "cached locally" in str(error):
        return f"{absent}, and the Hub cannot be reached: connect"
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"cannot be downloaded ({first}): check model.id, model.variant"
