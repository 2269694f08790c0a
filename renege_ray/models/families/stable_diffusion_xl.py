"""Stable Diffusion XL and what is fine-tuned from it (diffusers' StableDiffusionXLPipeline).

A negative is n, the last but one hidden states of both encoders side by side (1, 77, 768 + 1280), and the pooled
embedding of the second one (1, 1280); both are learned. The time ids say that an image is as large as it was
made, and uncropped, as the pipeline's defaults do.

Without a negative prompt the base model's pipeline takes zeros (`force_zeros_for_empty_prompt`), so that is what
`null` means in comparisons. Learning starts from the encoded empty text all the same: seen from zeros all tokens are
alike, they would get the same gradient at every step and stay alike for ever.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from renege_ray.method.embedding import POOLED_EMBEDS, PROMPT_EMBEDS
from renege_ray.models.base import Activations
from renege_ray.models.frozen_pipeline import FrozenPipeline, count_longer, tokenize
from renege_ray.models.networks.constants import constant


class StableDiffusionXL(FrozenPipeline):
    """A frozen StableDiffusionXLPipeline."""

    PIPELINE = "StableDiffusionXLPipeline"
    DENOISER = "unet"
    MEMORY = (Activations(4.62, 7.4), Activations(0.46, 4.61), 128)  # SDXL

    def null_embedding(self) -> Tensor:
        """Zeros, or the encoded empty text, as the pipeline's configuration says."""
        null = self.encode_negatives([""])
        return torch.zeros_like(null) if self.pipeline.config.force_zeros_for_empty_prompt else null

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many prompts have more tokens than L; both tokenizers cut at the same place."""
        return count_longer(self.pipeline.tokenizer, prompts, self.embedding_layout.tokens)

    def _unscale(self, latents: Tensor) -> Tensor:
        """By the mean and the standard deviation of each channel too, where the VAE comes with them."""
        config = self._vae.config
        if getattr(config, "latents_mean", None) is None or getattr(config, "latents_std", None) is None:
            return super()._unscale(latents)
        mean, std = (
            constant(tuple(values), latents.dtype, latents.device).view(1, -1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        return super()._unscale(latents * std) + mean

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        pipeline, states = self.pipeline, []
        for tokenizer, encoder in (
            (pipeline.tokenizer, pipeline.text_encoder),
            (pipeline.tokenizer_2, pipeline.text_encoder_2),
        ):
            ids = tokenize(tokenizer, prompts, self.embedding_layout.tokens).input_ids.to(self.device)
            output = encoder(ids, output_hidden_states=True)
            states.append(output.hidden_states[-2])
        return {PROMPT_EMBEDS: torch.cat(states, dim=-1), POOLED_EMBEDS: output.text_embeds}

    def _predict(self, latents: Tensor, timestep: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        height, width = (side * self.pipeline.vae_scale_factor for side in latents.shape[-2:])
        # The original size, the upper left corner of the crop, the size to generate.
        size = constant((height, width, 0, 0, height, width), latents.dtype, latents.device)
        output: Tensor = self._compiled(
            latents,
            timestep,
            encoder_hidden_states=tensors[PROMPT_EMBEDS],
            added_cond_kwargs={"text_embeds": tensors[POOLED_EMBEDS], "time_ids": size.expand(len(latents), -1)},
            return_dict=False,
        )[0]
        return output
