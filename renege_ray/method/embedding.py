"""The negative embedding as a thing that is stored and loaded: n of shape (1, L, D), and where it came from.

Files are safetensors with one tensor and the metadata as strings in the header, so that plain code can use
them:

    pipe(prompt, negative_prompt_embeds=safetensors.torch.load_file(path)["negative_prompt_embeds"])

Other people's `.bin` and `.pt` files are read too, by torch's unpickler that knows nothing but tensors: no
code in a file is ever run.
"""

import os
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from renege_ray.errors import UserError

TENSOR_NAME = "negative_prompt_embeds"
STORAGE_DTYPE = torch.float16
PICKLE_SUFFIXES = (".bin", ".pt", ".pth")


def as_stored(embedding: Tensor) -> Tensor:
    """The embedding rounded to its storage type, in float32: what is measured is what will be stored."""
    return embedding.to(STORAGE_DTYPE).float()


@dataclass(frozen=True)
class EmbeddingMetadata:
    """Where an embedding came from. An empty string (or None) stands for "not known".

    Attributes:
        text_encoder_hash: of the encoder in whose output space n lives (`TextToImage.text_encoder_hash`).
        text_encoder: that encoder, for people.
        base_model: the model that n was learned on.
        guidance_scale: w during learning.
        reward: the reward, or weighted rewards, that n was learned by.
        prompts: the prompt set that n was learned on.
        steps: updates made.
        config_fingerprint: hash of the run's configuration.
        package_version: version of this package.
    """

    text_encoder_hash: str
    text_encoder: str = ""
    base_model: str = ""
    guidance_scale: float | None = None
    reward: str = ""
    prompts: str = ""
    steps: int = 0
    config_fingerprint: str = ""
    package_version: str = ""

    def to_header(self) -> dict[str, str]:
        """The metadata as a safetensors header: strings only, exact for numbers."""
        return {name: "" if value is None else str(value) for name, value in asdict(self).items()}

    @classmethod
    def from_header(cls, header: dict[str, str]) -> "EmbeddingMetadata":
        """The inverse of `to_header`. Missing fields are not known; other programs' fields are ignored.

        Raises:
            ValueError: a number does not read as one.
        """
        texts = {name: header[name] for name in cls.__dataclass_fields__ if header.get(name)}
        steps, guidance_scale = int(texts.pop("steps", "0")), texts.pop("guidance_scale", None)
        texts.setdefault("text_encoder_hash", "")
        return cls(steps=steps, guidance_scale=None if guidance_scale is None else float(guidance_scale), **texts)


@dataclass(frozen=True)
class NegativeEmbedding:
    """A negative embedding n and its metadata.

    Attributes:
        prompt_embeds: n, (1, L, D), in the floating type that it is stored in, finite.
        metadata: where it came from.

    Raises:
        UserError: n has another shape, is not of a floating type, or is not finite.
    """

    prompt_embeds: Tensor
    metadata: EmbeddingMetadata

    def __post_init__(self) -> None:
        n = self.prompt_embeds
        if n.ndim != 3 or n.shape[0] != 1 or n.numel() == 0:
            raise UserError(f"negative embedding has shape {tuple(n.shape)}: want (1, tokens, width)")
        if n.layout != torch.strided or not n.is_floating_point():
            raise UserError(f"negative embedding is a {n.layout} tensor of {n.dtype}: want dense floats")
        if not torch.isfinite(n).all():
            raise UserError("negative embedding holds NaN or infinite values: learn it again")

    def as_batch(self, size: int) -> Tensor:
        """n in float32 as one row for each of `size` samples, (size, L, D), without a copy of the rows.

        diffusers wants one row for each prompt.
        """
        return self.prompt_embeds.float().expand(size, -1, -1)

    def check_fits(self, length: int, width: int, text_encoder_hash: str, text_encoder: str) -> None:
        """Check that n belongs to a text encoder of L = `length`, D = `width`.

        An embedding whose own encoder is not known (a foreign file) is judged by its shape alone.

        Raises:
            UserError: another shape or another encoder; both are named.
        """
        have, mine = tuple(self.prompt_embeds.shape[1:]), self.metadata
        if have != (length, width):
            raise UserError(
                f"negative embedding of shape {have} (text encoder {mine.text_encoder or 'not known'}) does "
                f"not fit the model's text encoder {text_encoder} of shape {(length, width)}: "
                "use one that was learned for it"
            )
        if mine.text_encoder_hash and mine.text_encoder_hash != text_encoder_hash:
            raise UserError(
                f"negative embedding was learned for the text encoder {mine.text_encoder or 'not named'} "
                f"({mine.text_encoder_hash}), but the model's is {text_encoder} ({text_encoder_hash}): "
                "use one that was learned for it"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all (a temporary file beside it, then a rename).

        Raises:
            UserError: the name does not end in `.safetensors`, or the folder cannot be written.
        """
        target = Path(path)
        if target.suffix != ".safetensors":
            raise UserError(f"cannot save an embedding as {target}: the name must end in .safetensors")
        tensors = {TENSOR_NAME: self.prompt_embeds.detach().cpu().contiguous()}
        data = safetensors.torch.save(tensors, self.metadata.to_header())
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            reason = error.strerror or error
            raise UserError(f"cannot write the negative embedding {target}: {reason}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "NegativeEmbedding":
        """Read a safetensors file with one tensor, or another program's `.bin` / `.pt` / `.pth`.

        A tensor of shape (L, D) is taken as (1, L, D). The tensor stays on the CPU, in the type that it is
        stored in.

        Raises:
            UserError: the file is missing, damaged, of an unknown kind, more than one tensor, or not an
                embedding.
        """
        source = Path(path)
        if not source.is_file():
            raise UserError(f"negative embedding {source}: no such file")
        try:
            if source.suffix == ".safetensors":
                tensor, metadata = _read_safetensors(source)
            elif source.suffix in PICKLE_SUFFIXES:
                tensor, metadata = _read_pickled_tensor(source), EmbeddingMetadata(text_encoder_hash="")
            else:
                raise UserError(f"unknown kind {source.suffix!r}: use .safetensors, .bin, .pt or .pth")
            return cls(tensor.unsqueeze(0) if tensor.ndim == 2 else tensor, metadata)
        except (UserError, OSError) as error:
            raise UserError(f"negative embedding {source}: {error}") from error


def _read_safetensors(source: Path) -> tuple[Tensor, EmbeddingMetadata]:
    """The one tensor of a safetensors file and its header."""
    try:
        with safe_open(source, framework="pt") as file:
            names = list(file.keys())
            if len(names) != 1:
                raise UserError(f"holds {len(names)} tensors {sorted(names)[:4]}: want exactly one")
            return file.get_tensor(names[0]), EmbeddingMetadata.from_header(file.metadata() or {})
    except UserError:
        raise
    except (SafetensorError, ValueError) as error:
        raise UserError(f"damaged safetensors file ({error}): copy it again or learn it again") from error


def _read_pickled_tensor(source: Path) -> Tensor:
    """The tensor of a `torch.save`d file: alone, or as the only entry of a dict."""
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            "was refused: a pickle that is more than a tensor, or damaged; save the tensor alone"
        ) from error
    except Exception as error:  # whatever a damaged file makes the restricted unpickler stumble over
        raise UserError("is damaged, or not a file that torch.save wrote: copy it again") from error
    if isinstance(content, dict) and len(content) == 1:
        content = next(iter(content.values()))
    if not isinstance(content, Tensor):
        raise UserError("is a pickle that is more than a tensor: want a tensor, or a dict with exactly one")
    return content.detach()
