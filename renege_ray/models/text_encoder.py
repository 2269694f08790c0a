"""Whose output space an embedding lives in, found without loading the rest of a model."""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from renege_ray.config import ModelConfig
from renege_ray.errors import UserError


@dataclass(frozen=True)
class TextEncoderIdentity:
    """As in `TextToImage`: a name for people, a hash for comparing, and (L, D)."""

    name: str
    hash: str
    embedding_shape: tuple[int, int]


def identify_text_encoder(config: ModelConfig) -> TextEncoderIdentity:
    """Read the tokenizer's and the text encoder's files of a model.

    Raises:
        UserError: the model cannot be found, or its text encoder cannot be read.
    """
    from transformers import CLIPTextModel, CLIPTokenizer

    from renege_ray.models.hub import find_folder
    from renege_ray.models.stable_diffusion import hash_text_encoder
    from renege_ray.models.toy import PIPELINE_FOLDER

    if config.id == "toy":
        folder = Path(PIPELINE_FOLDER)
    else:
        folder = find_folder(config.id, revision=config.revision, variant=config.variant)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        encoder = CLIPTextModel.from_pretrained(
            folder / "text_encoder", variant=config.variant, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"model.id: the text encoder of {config.id!r} cannot be read from {folder}: {reason}"
        ) from error
    size = encoder.config
    return TextEncoderIdentity(
        name=f"{type(encoder).__name__} ({size.num_hidden_layers} layers of width {size.hidden_size})",
        hash=hash_text_encoder(encoder),
        embedding_shape=(int(tokenizer.model_max_length), int(size.hidden_size)),
    )
