"""Whose output space an embedding lives in: the text encoders of a pipeline, named, hashed and measured."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import torch

from renege_ray.errors import UserError
from renege_ray.models.folder import read_json
from renege_ray.models.layout import EmbeddingLayout

# What, besides its weights, decides a text encoder's output. The rest of its configuration (the versions of
# libraries, the type of the stored weights, paths) differs between copies of one encoder.
CONFIG_KEYS = {
    "clip_text_model": (
        "hidden_act",
        "hidden_size",
        "intermediate_size",
        "layer_norm_eps",
        "max_position_embeddings",
        "model_type",
        "num_attention_heads",
        "num_hidden_layers",
        "vocab_size",
    ),
    "gemma2": (
        "attn_logit_softcapping",
        "head_dim",
        "hidden_activation",
        "hidden_size",
        "intermediate_size",
        "model_type",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "query_pre_attn_scalar",
        "rms_norm_eps",
        "sliding_window",
        "vocab_size",
    ),
    "qwen2_5_vl": (
        "hidden_act",
        "hidden_size",
        "intermediate_size",
        "model_type",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "rms_norm_eps",
        "vocab_size",
    ),
    "qwen3": (
        "head_dim",
        "hidden_act",
        "hidden_size",
        "intermediate_size",
        "model_type",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "rms_norm_eps",
        "vocab_size",
    ),
    "t5": (
        "d_ff",
        "d_kv",
        "d_model",
        "feed_forward_proj",
        "layer_norm_epsilon",
        "model_type",
        "num_heads",
        "num_layers",
        "relative_attention_max_distance",
        "relative_attention_num_buckets",
        "vocab_size",
    ),
}
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")  # as pipelines call them
SD3_T5_TOKENS, SD3_MOST_T5_TOKENS = 256, 512  # the default and the limit of its pipeline's max_sequence_length
T5_TOKENS = 120  # what PixArt-alpha pads to (its Section 3.1): T5 itself knows no length


@dataclass(frozen=True)
class TextEncoderIdentity:
    """The text encoders of a model."""

    name: str
    """For people: classes and sizes, since configurations do not say reliably whose weights they are."""
    hash: str
    """16 hexadecimal digits for comparing, the same on every machine."""
    layout: EmbeddingLayout
    """What an embedding in their output space is made of."""


def identify(pipeline: Any, layout: EmbeddingLayout | None = None) -> TextEncoderIdentity:
    """The text encoders of a diffusers pipeline, whatever it generates.

    Args:
        pipeline: of diffusers.
        layout: what an embedding is made of, where the encoders alone do not say it.

    Raises:
        UserError: encoders that no supported family has.
    """
    encoders = text_encoders(pipeline)
    return TextEncoderIdentity(
        name=" + ".join(describe_encoder(encoder) for encoder in encoders),
        hash=hash_text_encoders(encoders),
        layout=layout or layout_of(pipeline),
    )


def layout_of(pipeline: Any, tokens: int | None = None) -> EmbeddingLayout:
    """What an embedding is made of: by one CLIP encoder, a pair of which the second projects (SDXL), a pair of which
    both do, with or without T5 (SD3), or T5 (PixArt).

    Args:
        pipeline: of diffusers; or what is known of its parts.
        tokens: of a negative, where the encoders leave that free; None: what pipelines take by default.

    Raises:
        UserError: encoders that no supported family has, or that cannot have so many tokens.
    """
    encoders: list[Any] = text_encoders(pipeline)
    kinds = [encoder.config.model_type for encoder in encoders]
    if kinds == ["t5"]:
        return EmbeddingLayout(T5_TOKENS, int(encoders[0].config.d_model), masked=True)
    if kinds == ["clip_text_model"]:
        return EmbeddingLayout(_clip_tokens(pipeline, encoders), int(encoders[0].config.hidden_size))
    if kinds[:2] == ["clip_text_model"] * 2 and kinds[2:] in ([], ["t5"]) and _projects(encoders[0]):
        return _layout_of_sd3(pipeline, encoders, tokens)
    if kinds == ["clip_text_model"] * 2:
        width = sum(int(encoder.config.hidden_size) for encoder in encoders)
        pooled = int(encoders[1].config.projection_dim)
        return EmbeddingLayout(_clip_tokens(pipeline, encoders), width, pooled_width=pooled)
    raise UserError(
        f"{type(pipeline).__name__} has the text encoders {kinds or 'none'}: only those of Stable Diffusion 1.x and "
        "2.x (one CLIP), SDXL (two), SD3 (two and T5) and PixArt-alpha (T5) are supported"
    )


def _layout_of_sd3(pipeline: Any, encoders: list[Any], tokens: int | None) -> EmbeddingLayout:
    """CLIP's tokens, then T5's (or zeros in their place), in the width that the transformer reads."""
    clip = _clip_tokens(pipeline, encoders)
    tokens = tokens or clip + SD3_T5_TOKENS
    if not clip < tokens <= clip + SD3_MOST_T5_TOKENS:
        raise UserError(
            f"a negative of {tokens} tokens is none for SD3: it has {clip} of CLIP and then 1 to {SD3_MOST_T5_TOKENS} "
            f"of T5; give model.negative_tokens between {clip + 1} and {clip + SD3_MOST_T5_TOKENS}"
        )
    pooled = sum(int(encoder.config.projection_dim) for encoder in encoders[:2])
    return EmbeddingLayout(tokens, int(pipeline.transformer.config.joint_attention_dim), pooled_width=pooled)


def _projects(encoder: Any) -> bool:
    """Whether a CLIP encoder ends in a projection."""
    return "CLIPTextModelWithProjection" in (type(encoder).__name__, *(encoder.config.architectures or ()))


def _clip_tokens(pipeline: Any, encoders: list[Any]) -> int:
    """L: what the tokenizer pads to. One whose files are not all there says no length, which reads as a huge one."""
    length, room = int(pipeline.tokenizer.model_max_length), encoders[0].config.max_position_embeddings
    if not 0 < length <= room:
        raise UserError(
            f"the model's tokenizer pads to {length:.3g} tokens, and its text encoder has room for {room}: check "
            "model_max_length in tokenizer/tokenizer_config.json, or export or download the model again"
        )
    return length


def read_encoders(folder: Path) -> list[torch.nn.Module]:
    """The text encoders of the model in a folder on the meta device, by their configuration files."""
    import transformers

    encoders = []
    for name in (name for name in ENCODERS if (folder / name).is_dir()):
        config = transformers.AutoConfig.from_pretrained(folder / name, local_files_only=True)
        with torch.device("meta"):
            encoders.append(getattr(transformers, config.architectures[0])(config))
    return encoders


def read_denoiser(folder: Path, denoiser: str) -> SimpleNamespace:
    """The configuration of a denoiser of this name, of the model in a folder, as the network has it."""
    return SimpleNamespace(config=SimpleNamespace(**read_json(folder / denoiser / "config.json")))


def read_parts(folder: Path, denoiser: str) -> SimpleNamespace:
    """What is asked of a pipeline about embeddings, for the model in a folder, by its configuration files alone.

    Args:
        folder: in diffusers' format.
        denoiser: the name of that component.
    """
    from transformers import AutoConfig

    parts = {}
    for name in ENCODERS:
        if (folder / name).is_dir():
            config = AutoConfig.from_pretrained(folder / name, local_files_only=True)
            parts[name] = SimpleNamespace(config=config)
    parts[denoiser] = read_denoiser(folder, denoiser)
    tokenizer = read_json(folder / "tokenizer" / "tokenizer_config.json")
    length = SimpleNamespace(model_max_length=tokenizer.get("model_max_length", 0))
    return SimpleNamespace(tokenizer=length, **parts)


def text_encoders(pipeline: Any) -> list[torch.nn.Module]:
    """A pipeline's text encoders, in diffusers' order; of compiled ones, the modules that were compiled."""
    found = (getattr(pipeline, name, None) for name in ENCODERS)
    return [getattr(encoder, "_orig_mod", encoder) for encoder in found if encoder is not None]


def hash_text_encoders(encoders: list[torch.nn.Module]) -> str:
    """16 hexadecimal digits for all encoders of a pipeline; for one, those of `hash_text_encoder`."""
    return join_hashes([hash_text_encoder(encoder) for encoder in encoders])


def join_hashes(hashes: Sequence[str]) -> str:
    """One hash of a pipeline's encoders."""
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:16]


def hash_text_encoder(text_encoder: torch.nn.Module) -> str:
    """16 hexadecimal digits of a SHA-256 over an encoder's weights, in order of their names, and its
    configuration.

    Weights are rounded to float16 first, so that the float32 and the float16 files of one encoder have the
    same hash. Names count without `text_model.`, `model.` and `language_model.`, prefixes that come and go with the
    version of transformers and with the head of a language model.
    """
    kind = _kind(text_encoder.config)
    state = (kind, [(weight.data_ptr(), weight._version, weight.dtype) for weight in text_encoder.parameters()])
    if _HASHES.get(text_encoder, (None, ""))[0] != state:
        weights = dict(text_encoder.named_parameters())
        _HASHES[text_encoder] = (state, hash_weights(text_encoder.config, weights, weights.__getitem__))
    return _HASHES[text_encoder][1]


def hash_weights(config: Any, names: Iterable[str], weight: Callable[[str], torch.Tensor]) -> str:
    """The same of weights that come one at a time, so that they need not all be in memory."""
    digest = hashlib.sha256(_kind(config).encode())
    short = {bare(name): name for name in names}
    for name in sorted(short):
        half = weight(short[name]).detach().to("cpu", torch.float16).contiguous()
        digest.update(f"{name} {tuple(half.shape)}".encode())
        digest.update(half.numpy().tobytes())
    return digest.hexdigest()[:16]


def bare(name: str) -> str:
    """The name of a weight without the prefixes that come and go."""
    return name.removeprefix("text_model.").removeprefix("model.").removeprefix("language_model.")


def _kind(config: Any) -> str:
    keys = CONFIG_KEYS.get(config.model_type, ("model_type",))
    of = dict.fromkeys(keys, getattr(config, "text_config", config)) | {"model_type": config}  # it may see images, too
    return json.dumps({key: getattr(of[key], key, None) for key in keys})


# T5's 4.7 billion weights take many seconds, and a pipeline's encoder is looked at for every call of it.
_HASHES: WeakKeyDictionary[torch.nn.Module, tuple[object, str]] = WeakKeyDictionary()


def describe_encoder(encoder: Any) -> str:
    """An encoder in a few words: its class and sizes."""
    config = getattr(encoder.config, "text_config", encoder.config)  # of a model that sees images, too
    return f"{type(encoder).__name__} ({config.num_hidden_layers} layers of width {config.hidden_size})"
