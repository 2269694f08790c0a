"""The negative embedding as a thing that is stored and loaded: its tensors, and where they came from.

What a negative is made of depends on the model: n of shape (1, L, D) for all, and for some a pooled embedding
or an attention mask. The tensors go by the names of diffusers' own keyword arguments, in memory as in files
(safetensors, with the metadata as strings in the header), so that plain code can use them:

    pipe(prompt, **safetensors.torch.load_file(path))

Other people's `.bin` and `.pt` files are read too, by torch's unpickler that knows nothing but tensors: no
code in a file is ever run.
"""

import os
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from renege_ray.errors import UserError

PROMPT_EMBEDS = "negative_prompt_embeds"
POOLED_EMBEDS = "negative_pooled_prompt_embeds"
ATTENTION_MASK = "negative_prompt_attention_mask"
# The shape of each tensor in words; the first is in every embedding.
SHAPES = {PROMPT_EMBEDS: ("1", "tokens", "width"), POOLED_EMBEDS: ("1", "width"), ATTENTION_MASK: ("1", "tokens")}
STORAGE_DTYPE = torch.float16
PICKLE_SUFFIXES = (".bin", ".pt", ".pth")


def as_stored(embedding: Tensor) -> Tensor:
    """The embedding rounded to its storage type, in float32: what is measured is what will be stored."""
    return embedding.to(STORAGE_DTYPE).float()


@dataclass(frozen=True)
class EmbeddingMetadata:
    """Where an embedding came from. An empty string (or None) stands for "not known"."""

    text_encoder_hash: str
    """Of the encoder in whose output space n lives (`TextToImage.text_encoder_hash`)."""
    text_encoder: str = ""
    """That encoder, for people."""
    base_model: str = ""
    """The model that n was learned on."""
    guidance_scale: float | None = None
    """w during learning."""
    reward: str = ""
    """The reward, or weighted rewards, that n was learned by."""
    prompts: str = ""
    """The prompt set that n was learned on."""
    steps: int = 0
    """Updates made."""
    config_fingerprint: str = ""
    """Hash of the run's configuration."""
    package_version: str = ""
    """Version of this package."""

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
    """A negative embedding and its metadata.

    Raises:
        UserError: a tensor is missing, is not known, has another shape or type, or is not finite.
    """

    tensors: Mapping[str, Tensor]
    """By diffusers' names. `negative_prompt_embeds` is n, (1, L, D), in the floating type that it is stored in; beside
    it there may be `negative_pooled_prompt_embeds`, (1, P), floating too, and `negative_prompt_attention_mask`, (1,
    L), of any type of numbers. All are finite.
    """
    metadata: EmbeddingMetadata
    """Where it came from."""

    def __post_init__(self) -> None:
        if PROMPT_EMBEDS not in self.tensors or not self.tensors.keys() <= SHAPES.keys():
            raise UserError(
                f"negative embedding of the tensors {sorted(self.tensors)[:4]}: want {PROMPT_EMBEDS}, and beside "
                f"it nothing but {POOLED_EMBEDS} and {ATTENTION_MASK}"
            )
        for name, tensor in self.tensors.items():
            _check(name, tensor)
        mask, length = self.tensors.get(ATTENTION_MASK), self.prompt_embeds.shape[1]
        if mask is not None and mask.shape[1] != length:
            raise UserError(f"negative embedding of {length} tokens has an attention mask of {mask.shape[1]}")

    @property
    def prompt_embeds(self) -> Tensor:
        """n, (1, L, D), as it is stored."""
        return self.tensors[PROMPT_EMBEDS]

    def check_fits(self, shapes: Mapping[str, tuple[int, ...]], text_encoder_hash: str, text_encoder: str) -> None:
        """Check that the embedding belongs to a model whose negative has these `shapes`, {name: shape}.

        An embedding whose own encoder is not known (a foreign file) is judged by its shapes alone, and needs no
        attention mask.

        Raises:
            UserError: another shape or another encoder; both are named.
        """
        mine = self.metadata
        have = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        wanted = {name: shape for name, shape in shapes.items() if name in have or name != ATTENTION_MASK}
        if have != wanted:
            raise UserError(
                f"negative embedding of shape {_in_words(have)} (text encoder {mine.text_encoder or 'not known'}) "
                f"does not fit the model's text encoder {text_encoder} of shape {_in_words(wanted)}: "
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
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
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
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a safetensors file, or another program's `.bin` / `.pt` / `.pth` of tensors.

        A file's only tensor is n, whatever its name. One of shape (L, D) is taken as (1, L, D). The tensors stay
        on the CPU, in the types that they are stored in.

        Raises:
            UserError: the file is missing, damaged, of an unknown kind, or not an embedding.
        """
        source = Path(path)
        if not source.is_file():
            raise UserError(f"negative embedding {source}: no such file")
        try:
            if source.suffix == ".safetensors":
                tensors, metadata = _read_safetensors(source)
            elif source.suffix in PICKLE_SUFFIXES:
                tensors = _read_pickle(source)
                metadata = EmbeddingMetadata(text_encoder_hash="")
            else:
                raise UserError(f"unknown kind {source.suffix!r}: use .safetensors, .bin, .pt or .pth")
            n = tensors.get(PROMPT_EMBEDS)
            if n is not None and n.ndim == 2:
                tensors[PROMPT_EMBEDS] = n.unsqueeze(0)
            return cls(tensors, metadata)
        except (UserError, OSError) as error:
            raise UserError(f"negative embedding {source}: {error}") from error


def _check(name: str, tensor: Tensor) -> None:
    """Shape, type and values of one tensor of an embedding."""
    what = "negative embedding" if name == PROMPT_EMBEDS else f"negative embedding's {name}"
    shape = SHAPES[name]
    if tensor.ndim != len(shape) or tensor.shape[0] != 1 or tensor.numel() == 0:
        raise UserError(f"{what} has shape {tuple(tensor.shape)}: want ({', '.join(shape)})")
    if tensor.layout != torch.strided or not (tensor.is_floating_point() or name == ATTENTION_MASK):
        raise UserError(f"{what} is a {tensor.layout} tensor of {tensor.dtype}: want dense floats")
    if not torch.isfinite(tensor).all():
        raise UserError(f"{what} holds NaN or infinite values: learn it again")


def _in_words(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The shape of n without its leading 1, and those of the other tensors by name."""
    others = (f"{name} {shape[1:]}" for name, shape in sorted(shapes.items()) if name != PROMPT_EMBEDS)
    return " with ".join([str(shapes[PROMPT_EMBEDS][1:]), *others])


def _read_safetensors(source: Path) -> tuple[dict[str, Tensor], EmbeddingMetadata]:
    """The tensors of a safetensors file and its header; a tensor that is alone is n."""
    try:
        with safe_open(source, framework="pt") as file:
            names = list(file.keys())
            if len(names) == 1 and names[0] not in SHAPES:
                tensors = {PROMPT_EMBEDS: file.get_tensor(names[0])}
            elif set(names) <= SHAPES.keys():
                tensors = {name: file.get_tensor(name) for name in names}
            else:
                raise UserError(
                    f"holds {len(names)} tensors {sorted(names)[:4]}: want exactly one, or {', '.join(SHAPES)}"
                )
            return tensors, EmbeddingMetadata.from_header(file.metadata() or {})
    except UserError:
        raise
    except (SafetensorError, ValueError) as error:
        raise UserError(f"damaged safetensors file ({error}): copy it again or learn it again") from error


def _read_pickle(source: Path) -> dict[str, Tensor]:
    """The tensors of a `torch.save`d file: n alone, or as the only entry of a dict; or several by diffusers' names."""
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's own, of how a file that it refuses was written
            content = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            "was refused: a pickle that is more than a tensor, or damaged; save the tensor alone"
        ) from error
    except Exception as error:  # whatever a damaged file makes the restricted unpickler stumble over
        raise UserError("is damaged, or not a file that torch.save wrote: copy it again") from error
    if not isinstance(content, dict):
        content = {PROMPT_EMBEDS: content}
    elif len(content) == 1 and not content.keys() <= SHAPES.keys():
        content = {PROMPT_EMBEDS: next(iter(content.values()))}
    known = PROMPT_EMBEDS in content and content.keys() <= SHAPES.keys()
    if not known or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise UserError(
            "is a pickle that is more than a tensor: want a tensor, a dict with exactly one, or one with diffusers' "
            f"names {', '.join(SHAPES)}"
        )
    return {name: tensor.detach() for name, tensor in content.items()}
