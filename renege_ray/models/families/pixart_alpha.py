"""PixArt-alpha (diffusers' PixArtAlphaPipeline): a transformer that reads 120 tokens of T5.

A negative is n, T5's last hidden state (1, 120, 4096), and the mask of the tokens that are attended to (1, 120). The
empty text has one such token, and a gradient reaches no other: learned under its mask, 119 of 120 rows would stay what
they are. So learning starts from `starting_point`, where all tokens are attended to, and a learned file holds a mask
of ones; for files that hold n alone, as the authors' does, the mask is ones, too.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.utils import is_bs4_available, is_ftfy_available
from torch import Tensor

from renege_ray.method.embedding import ATTENTION_MASK, PROMPT_EMBEDS
from renege_ray.models.base import Activations
from renege_ray.models.frozen_pipeline import FrozenPipeline, count_longer, tokenize
from renege_ray.models.networks.constants import constant
from renege_ray.models.starting_point import filled


class PixArtAlpha(FrozenPipeline):
    """A frozen PixArtAlphaPipeline."""

    PIPELINE = "PixArtAlphaPipeline"
    DENOISER = "transformer"
    MEMORY = (Activations(0.77, 1.85), Activations(0.11, 1.15), 64)  # PixArt-XL

    def starting_point(self, embedding: Tensor) -> Tensor:
        """The same negative with all tokens attended to: copies of those that are, told apart, replace the others."""
        tensors = self.embedding_layout.unpack(embedding)
        n, mask = tensors[PROMPT_EMBEDS], tensors[ATTENTION_MASK].bool()
        return self.embedding_layout.pack({PROMPT_EMBEDS: filled(n, mask), ATTENTION_MASK: torch.ones_like(mask)})

    @classmethod
    def call_arguments(cls, pipeline: Any, prompts: str | Sequence[str] | None, tokens: int) -> dict[str, Any]:
        """No negative prompt, whose default would be refused, and the prompts encoded, which would be, too."""
        if prompts is None:
            return {"negative_prompt": None}
        texts = _clean(pipeline, [prompts] if isinstance(prompts, str) else prompts)
        embeds, mask, _, _ = pipeline.encode_prompt(texts, do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask, "negative_prompt": None}

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many prompts have more tokens than L."""
        return count_longer(self.pipeline.tokenizer, _clean(self.pipeline, prompts), self.embedding_layout.tokens)

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        tokens = tokenize(self.pipeline.tokenizer, _clean(self.pipeline, prompts), self.embedding_layout.tokens).to(
            self.device
        )
        states = self.pipeline.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
        return {PROMPT_EMBEDS: states, ATTENTION_MASK: tokens.attention_mask}

    def _predict(self, latents: Tensor, timestep: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        output: Tensor = self._compiled(
            latents,
            encoder_hidden_states=tensors[PROMPT_EMBEDS],
            encoder_attention_mask=tensors[ATTENTION_MASK],
            timestep=timestep.expand(len(latents)),
            added_cond_kwargs=self._size(latents),
            return_dict=False,
        )[0]
        return output[:, : latents.shape[1]]  # the other half is a variance, which DDIM does not need

    def _size(self, latents: Tensor) -> dict[str, Tensor | None]:
        """The size of the image, which the transformers for 1024x1024 are told."""
        if not self._denoiser.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        height, width = (side * self.pipeline.vae_scale_factor for side in latents.shape[-2:])
        return {
            "resolution": constant((height, width), latents.dtype, latents.device).expand(len(latents), -1),
            "aspect_ratio": constant((height / width,), latents.dtype, latents.device).expand(len(latents), -1),
        }


def _clean(pipeline: Any, prompts: Sequence[str]) -> list[str]:
    """Texts as the pipeline's default has them: in lower case, and cleaned where its helpers are installed."""
    cleaned: list[str] = pipeline._text_preprocessing(
        list(prompts), clean_caption=is_bs4_available() and is_ftfy_available()
    )
    return cleaned
