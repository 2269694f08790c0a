"""FLUX.2-klein, the base models (diffusers' Flux2KleinPipeline): flow matching, one sequence of text and image, Qwen3
as encoder.

A negative is n, three of Qwen3's hidden states side by side for a text in its chat template, padded to 512 tokens,
(1, 512, 3 x 2560). All of them are attended to, and each has a place of its own in the sequence. Prompts have as many
(the pipeline's `max_sequence_length`), so `model.negative_tokens` is the length of both.

The pipeline takes no negative in words: without an embedding it is the empty text. The distilled models, which say so
by `is_distilled`, do not guide and are refused.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from renege_ray.method.embedding import PROMPT_EMBEDS
from renege_ray.models.base import Activations
from renege_ray.models.frozen_pipeline import FrozenPipeline, count_longer
from renege_ray.models.layout import EmbeddingLayout
from renege_ray.models.networks import patches
from renege_ray.models.starting_point import told_apart

TOKENS = 512  # the pipeline's max_sequence_length
STATES = 3  # of its text_encoder_out_layers


class Flux2Klein(FrozenPipeline):
    """A frozen Flux2KleinPipeline."""

    PIPELINE = "Flux2KleinPipeline"
    DENOISER = "transformer"
    DENOISER_CLASSES = ("Flux2Transformer2DModel",)
    FLOW_MATCHING = True
    JOINT_ATTENTION = True
    UNGUIDED = (1.0, "Flux2KleinPipeline guides, and takes a negative, at a guidance_scale above 1")
    SIZE = (1024, 1024)
    PATCH = patches.SIDE
    PACKED = True
    MEMORY = (Activations(13.5, 7.4), Activations(1.7, 4.61), 128)  # of 4 billion weights

    @classmethod
    def layout(cls, pipeline: Any, tokens: int | None = None) -> EmbeddingLayout:
        """As many tokens as prompts are padded to."""
        return EmbeddingLayout(tokens or TOKENS, STATES * int(pipeline.text_encoder.config.hidden_size))

    def starting_point(self, embedding: Tensor) -> Tensor:
        """The same, with the tokens of padding told apart."""
        return told_apart(embedding)

    @classmethod
    def call_arguments(cls, pipeline: Any, prompts: str | Sequence[str] | None, tokens: int) -> dict[str, Any]:
        """The length that prompts are encoded to, which is that of the negative."""
        return {"max_sequence_length": tokens}

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many prompts have more tokens than L, with the template."""
        tokenizer = self.pipeline.tokenizer
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
            for prompt in prompts
        ]
        return count_longer(tokenizer, texts, self.embedding_layout.tokens)

    def _timestep_arguments(self, num_inference_steps: int) -> dict[str, Any]:
        sigmas = torch.linspace(1.0, 1 / num_inference_steps, num_inference_steps, dtype=torch.float64).tolist()
        return {"sigmas": sigmas, "mu": compute_empirical_mu(self._image_tokens, num_inference_steps)}

    def _unscale(self, latents: Tensor) -> Tensor:
        """By the statistics of the VAE's batch norm, which are those of the 2 x 2 latents of a token."""
        norm = self._vae.bn
        mean, var = (each.to(latents).view(1, -1, 1, 1) for each in (norm.running_mean, norm.running_var))
        std = torch.sqrt(var + self._vae.config.batch_norm_eps)
        return pixel_shuffle(pixel_unshuffle(latents, self.PATCH) * std + mean, self.PATCH)

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        n, _ = self.pipeline.encode_prompt(
            prompts, device=self.device, max_sequence_length=self.embedding_layout.tokens
        )
        return {PROMPT_EMBEDS: n}

    def _predict(self, latents: Tensor, timestep: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        output: Tensor = self._compiled(latents, timestep.to(latents.dtype) / 1000, tensors[PROMPT_EMBEDS])
        return output

    def _whole_denoiser(self) -> Callable[..., Any]:
        return self._transformed

    def _transformed(self, latents: Tensor, timestep: Tensor, n: Tensor) -> Tensor:
        """The transformer's output; places in the sequence are made here, since they have no B rows."""
        height, width = latents.shape[-2:]
        one, rows, columns, tokens = (
            torch.arange(count, device=latents.device)
            for count in (1, height // self.PATCH, width // self.PATCH, n.shape[1])
        )
        output: Tensor = self._denoiser(
            patches.pack(latents),
            encoder_hidden_states=n,
            timestep=timestep,
            img_ids=torch.cartesian_prod(one, rows, columns, one),
            txt_ids=torch.cartesian_prod(one, one, one, tokens),
            return_dict=False,
        )[0]
        return patches.unpack(output, height, width)
