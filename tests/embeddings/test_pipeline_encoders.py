"""`for_pipeline` on pipelines as people have them: whatever was done to a text encoder, it is known or vouched for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtAlphaPipeline, StableDiffusionPipeline
from peft import LoraConfig
from torch import nn

from renege_ray import NegativeEmbedding
from renege_ray.errors import UserError
from renege_ray.method.embedding import EmbeddingMetadata
from renege_ray.models.text_encoder import identify
from tests.tiny import build_tiny_pipeline, build_tiny_pixart


def embedding_for(pipeline: Any) -> NegativeEmbedding:
    identity = identify(pipeline)
    shapes = identity.layout.shapes
    tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
    return NegativeEmbedding(tensors, EmbeddingMetadata(text_encoder_hash=identity.hash, text_encoder=identity.name))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sd"
    build_tiny_pipeline().save_pretrained(folder)
    return folder


def load(folder: Path) -> Any:
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)


def compiled(pipe: Any) -> None:
    pipe.text_encoder = torch.compile(pipe.text_encoder)


def compiled_in_place(pipe: Any) -> None:
    pipe.text_encoder.compile()


def in_float8(pipe: Any) -> None:
    pipe.text_encoder.to(torch.float8_e4m3fn)


def in_bfloat16(pipe: Any) -> None:
    pipe.to(torch.bfloat16)


def on_meta(pipe: Any) -> None:
    pipe.text_encoder.to("meta")


def offloaded(pipe: Any) -> None:
    """What enable_sequential_cpu_offload does, without a GPU to compute on."""
    from accelerate import cpu_offload

    cpu_offload(pipe.text_encoder, torch.device("cpu"), offload_buffers=True)
    assert all(weight.is_meta for weight in pipe.text_encoder.parameters())


def with_textual_inversion(pipe: Any) -> None:
    pipe.load_textual_inversion({"<cat>": torch.ones(16)}, token="<cat>")
    pipe.load_textual_inversion({"<dog>": torch.zeros(2, 16)}, token="<dog>")


def quantised(pipe: Any) -> None:
    for module in pipe.text_encoder.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.to(torch.int8), requires_grad=False)


def without_encoder(pipe: Any) -> None:
    pipe.text_encoder = None


CHANGES = [
    compiled, compiled_in_place, in_float8, in_bfloat16, on_meta, offloaded, with_textual_inversion, quantised,
    without_encoder,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_an_encoder_is_known_whatever_was_done_to_it(folder: Path, change: Callable[[Any], None]) -> None:
    pipe = load(folder)
    mine, others = embedding_for(pipe), embedding_for(build_tiny_pipeline(seed=1))
    change(pipe)
    arguments = mine.for_pipeline(pipe, ["a", "b"])
    assert arguments["negative_prompt_embeds"] is not None and len(arguments["negative_prompt_embeds"]) == 2
    with pytest.raises(UserError, match="learned for") as refusal:
        others.for_pipeline(pipe)
    assert "\n" not in str(refusal.value) and 'say text_encoder="same"' in str(refusal.value)
    others.for_pipeline(pipe, text_encoder="same")


def test_where_nothing_tells_the_user_may_vouch(folder: Path, tmp_path: Path) -> None:
    build_tiny_pipeline().save_pretrained(tmp_path / "model")
    pipe = load(tmp_path / "model")
    mine = embedding_for(pipe)
    in_float8(pipe)
    (tmp_path / "model").rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"is in float8_e4m3fn, which hides whose it was; its files.* not in .*model"):
        mine.for_pipeline(pipe)
    mine.for_pipeline(pipe, text_encoder="same")
    with pytest.raises(UserError, match='give "same"'):
        mine.for_pipeline(pipe, text_encoder="yes")
    with pytest.raises(UserError, match="shape"):  # nobody can vouch for another shape
        mine.for_pipeline(build_tiny_pipeline(width=8), text_encoder="same")


def test_a_lora_on_the_encoder_is_named(folder: Path) -> None:
    pipe = load(folder)
    mine = embedding_for(pipe)
    pipe.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    with pytest.raises(UserError, match=r"with a LoRA on \d+ of its layers"):
        mine.for_pipeline(pipe)
    mine.for_pipeline(pipe, text_encoder="same")


def test_pixart_with_encoded_prompts_as_diffusers_tells(tmp_path: Path) -> None:
    """Encode with the text encoder alone, then load the pipeline without it."""
    build_tiny_pixart().save_pretrained(tmp_path / "pixart")
    encoder = PixArtAlphaPipeline.from_pretrained(tmp_path / "pixart", transformer=None)
    mine = embedding_for(encoder)
    prompt, mask, _, _ = encoder.encode_prompt("a cat")
    pipe = PixArtAlphaPipeline.from_pretrained(tmp_path / "pixart", text_encoder=None)
    embeds = {"prompt_embeds": prompt, "prompt_attention_mask": mask}
    images = pipe(
        prompt=None, **embeds, **mine.for_pipeline(pipe), num_inference_steps=2, output_type="pt",
        use_resolution_binning=False, height=pipe.transformer.config.sample_size * pipe.vae_scale_factor,
        width=pipe.transformer.config.sample_size * pipe.vae_scale_factor,
    ).images  # fmt: skip
    assert images.isfinite().all()
