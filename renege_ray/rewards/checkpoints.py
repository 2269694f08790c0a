"""Finding the files of a reward, on this machine or on the Hugging Face Hub, and reading weights from them."""

import hashlib
import re
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import Tensor, nn

from renege_ray.errors import UserError
from renege_ray.models.loading.user_errors import user_errors
from renege_ray.rewards.catalogue import (
    CLIP_VOCABULARY,
    REWARDS,
    SHORT_NAMES,
    SOURCES,
    RewardFacts,
    Source,
    check_names,
    full_name,
)

FIELD = "rewards.checkpoints"
HEAD_WIDTH = 64  # of an attention head, in nearly all transformers
M = TypeVar("M", bound=nn.Module)


def locate(facts: RewardFacts, checkpoints: Mapping[str, str | Path]) -> dict[str, Path]:
    """The files of a reward by the names of their sources; nothing is read.

    Each is looked for in `checkpoints`, then beside the weights, then in the Hub's cache, then on the Hub, from where
    it is downloaded.

    Args:
        facts: the reward.
        checkpoints: {name of a reward or source: file or folder}; those of other rewards may be among them.

    Raises:
        UserError: a file is missing; the message says which one of which repository, and where it can be put.
    """
    given = _check_given(checkpoints)
    found: dict[str, Path] = {}
    for source in facts.sources:
        if source.name in given:
            found[source.name] = _in_given(source, given[source.name])
            continue
        weights = next(iter(found.values()), None)
        beside = weights and _in_folder(source, weights.parent)
        found[source.name] = beside or _installed(source) or _from_hub(source, facts.name)
    return found


def _check_given(checkpoints: Mapping[str, str | Path]) -> dict[str, Path]:
    check_names(checkpoints, (*SHORT_NAMES, *SOURCES), f"{FIELD}:")
    return {full_name(name): Path(path).expanduser() for name, path in checkpoints.items()}


def _in_given(source: Source, path: Path) -> Path:
    """The file that a user's path means."""
    if not path.exists():
        raise UserError(f"{FIELD}: {source.name}: there is no {str(path)!r}; give a file or folder with {source}")
    found = _in_folder(source, path) if path.is_dir() else path if not _missing(source, path) else None
    if found is None:
        raise UserError(f"{FIELD}: {source.name}: {str(path)!r} has not got {source}; check the path")
    for other in REWARDS.values():
        if other.sources and found.name in set(other.sources[0].files) - set(source.files) - {"model.safetensors"}:
            raise UserError(f"{FIELD}: {source.name}: {str(path)!r} is the file of {other.name}; call it by that name")
    return found


def _in_folder(source: Source, folder: Path) -> Path | None:
    """The source's file in a folder (or, as in a diffusers model, in its folder `tokenizer`)."""
    candidates = [part / file for file in source.files for part in (folder, folder / "tokenizer")]
    return next((path for path in candidates if path.is_file() and not _missing(source, path)), None)


def _missing(source: Source, path: Path) -> list[str]:
    return [name for name in source.companions if not (path.parent / name).is_file()]


def _installed(source: Source) -> Path | None:
    """open_clip ships CLIP's vocabulary (1.4 MB), which spares the download where it happens to be installed.

    It is OpenAI's, so this package does not carry a copy. The package is not imported for it.
    """
    package = find_spec("open_clip") if source is CLIP_VOCABULARY else None
    path = package and package.origin and Path(package.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    return path if path and path.is_file() else None


def _from_hub(source: Source, reward: str) -> Path:
    """From the Hub's cache, or else downloaded. What was downloaded once needs no connection again."""
    # Of one file too: without a connection, `hf_hub_download` tries again for half a minute.
    download = partial(snapshot_download, source.repository, allow_patterns=[source.files[0], *source.companions])
    place = " beside the weights," if source is not SOURCES.get(reward) else ""
    local = f"give a local copy{place} by --{FIELD} '{{{source.name}: PATH}}' (jobs) or --checkpoint {source.name}=PATH"
    with user_errors(f"reward {reward} needs {source} on the Hugging Face Hub, which", local, hub=True):
        with suppress(LocalEntryNotFoundError):
            found = _in_folder(source, Path(download(local_files_only=True)))
            if found is not None:
                return found
        found = _in_folder(source, Path(download()))
        if found is None:  # what was downloaded in part is handed out without a connection
            raise LocalEntryNotFoundError(source.files[0])
        return found


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hex. Some gigabytes take some seconds, so it is kept until the file changes."""
    blob = path.resolve()
    # The Hub's cache names large files by this very sum.
    if blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name):
        return blob.name
    stat = blob.stat()
    return _sha256(blob, stat.st_size, stat.st_mtime_ns)


@lru_cache
def _sha256(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a PyTorch checkpoint without its pickled code.

    They are mapped, not read: what is not used costs no memory, and nothing is held twice.

    Raises:
        UserError: the file is damaged, or holds something else.
    """
    with user_errors(f"checkpoint {path}", "download it again"):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # The format of before PyTorch 1.6 is no zip file, and cannot be mapped.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    weights = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else {}
    tensors = {name: tensor for name, tensor in weights.items() if isinstance(tensor, Tensor)}
    if not tensors:
        raise UserError(f"checkpoint {path} holds no weights: check the path")
    return tensors


def num_heads(width: int, head_width: int = HEAD_WIDTH) -> int:
    """How many attention heads a tower has, which its weights do not show. Raises ValueError if they do not fill it."""
    if width % head_width:
        raise ValueError(f"a tower is {width} wide, which heads {head_width} wide do not fill")
    return width // head_width


def assemble(make: Callable[[], M], weights: Mapping[str, Tensor], path: Path, dtype: torch.dtype = torch.float32) -> M:
    """A frozen module that has the given weights for its own; what else there is among them is left out.

    It is made without storage of its own, so no weights are drawn at random or copied. (`from_pretrained` does this
    too, but it wants a folder, and prints what it has left out.)

    Args:
        make: makes the module.
        weights: by the module's own names; those in `dtype` are not copied.
        path: the checkpoint, for the error.
        dtype: of the module.

    Raises:
        UserError: a weight is missing or has another shape.
    """
    with torch.device("meta"):
        module = make()
    state = module.state_dict()
    for name, empty in state.items():
        if name not in weights or weights[name].shape != empty.shape:
            there = f"{tuple(weights[name].shape)}" if name in weights else "nothing"
            raise UserError(
                f"checkpoint {path} does not fit: {name} has to be {tuple(empty.shape)}, and there is {there}; "
                "is it the file of another model?"
            )
    module.load_state_dict({name: weights[name].to(dtype) for name in state}, assign=True)
    for name, buffer in [*module.named_buffers()]:
        if buffer.is_meta:  # in CLIP and BLIP these are the positions 0 ... L - 1, which are not stored
            owner, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(owner), attribute, torch.arange(buffer.shape[-1]).expand(buffer.shape))
    return module.eval().requires_grad_(False)
