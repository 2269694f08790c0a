"""Stable Diffusion 1.x and 2.x, and anything else that diffusers' StableDiffusionPipeline holds.

A negative is n alone, (1, 77, 768) for CLIP ViT-L/14 and (1, 77, 1024) for OpenCLIP ViT-H/14.
"""

from collections.abc import Sequence

from torch import Tensor

from renege_ray.method.embedding import PROMPT_EMBEDS
from renege_ray.models.base import Activations
from renege_ray.models.frozen_pipeline import FrozenPipeline, count_longer, tokenize


class StableDiffusion(FrozenPipeline):
    """A frozen StableDiffusionPipeline."""

    PIPELINE = "StableDiffusionPipeline"
    DENOISER = "unet"
    SAFETY_CHECKER = True
    MEMORY = (Activations(0.61, 1.85), Activations(0.16, 1.15), 64)  # SD1.5

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many prompts have more tokens than L."""
        return count_longer(self.pipeline.tokenizer, prompts, self.embedding_layout.tokens)

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """The encoder's last hidden state, as the pipeline takes it."""
        encoder = self.pipeline.text_encoder
        tokens = tokenize(self.pipeline.tokenizer, prompts, self.embedding_layout.tokens).to(self.device)
        # The pipeline shows padding to the encoder unless the encoder's configuration says otherwise.
        masked = getattr(encoder.config, "use_attention_mask", False)
        return {PROMPT_EMBEDS: encoder(tokens.input_ids, attention_mask=tokens.attention_mask if masked else None)[0]}

    def _predict(self, latents: Tensor, timestep: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        output: Tensor = self._compiled(
            latents, timestep, encoder_hidden_states=tensors[PROMPT_EMBEDS], return_dict=False
        )[0]
        return output
