"""Stable Diffusion 3 and 3.5 (diffusers' StableDiffusion3Pipeline): flow matching, text and image in joint attention.

A negative is n, the last but one hidden states of two CLIP encoders side by side and filled up with zeros to the width
of T5 (77 tokens), then T5's tokens (the pipeline's `max_sequence_length`, 256), in all (1, 333, 4096); and the pooled
embeddings of both CLIP encoders (1, 768 + 1280). All of it is learned, also where the filling was: the transformer
reads it. There is no mask: padding is attended to. Where a model comes without T5, its tokens are zeros, as in the
pipeline. Prompts have as many tokens as the negative, so `model.negative_tokens` is the length of both.

The pipeline's skip-layer guidance (`skip_guidance_layers`) is off, as it is by its default: it has no part in the
negative.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from renege_ray.method.embedding import POOLED_EMBEDS, PROMPT_EMBEDS
from renege_ray.models.base import Activations
from renege_ray.models.frozen_pipeline import FrozenPipeline, count_longer, tokenize
from renege_ray.models.noise_schedule import shift_of_resolution
from renege_ray.models.starting_point import told_apart


class StableDiffusion3(FrozenPipeline):
    """A frozen StableDiffusion3Pipeline."""

    PIPELINE = "StableDiffusion3Pipeline"
    DENOISER = "transformer"
    DENOISER_CLASSES = ("SD3Transformer2DModel",)
    OPTIONAL = ("text_encoder_3", "tokenizer_3")
    FLOW_MATCHING = True
    JOINT_ATTENTION = True
    POOLS_FIRST = True
    UNGUIDED = (1.0, "StableDiffusion3Pipeline guides, and takes a negative, at a guidance_scale above 1")
    PATCH = 2
    MEMORY = (Activations(6.34, 7.4), Activations(0.6, 4.61), 128)  # SD3.5 medium

    def starting_point(self, embedding: Tensor) -> Tensor:
        """The same, with T5's tokens for padding, or the zeros in their place, told apart."""
        tensors = self.embedding_layout.unpack(embedding)
        return self.embedding_layout.pack(tensors | {PROMPT_EMBEDS: told_apart(tensors[PROMPT_EMBEDS])})

    @classmethod
    def call_arguments(cls, pipeline: Any, prompts: str | Sequence[str] | None, tokens: int) -> dict[str, Any]:
        """The length that prompts are encoded to, which has to be that of the negative."""
        return {"max_sequence_length": tokens - pipeline.tokenizer_max_length}

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many prompts no encoder sees to their end."""
        if self.pipeline.text_encoder_3 is None:
            return count_longer(self.pipeline.tokenizer, prompts, self._clip_tokens)
        return count_longer(self.pipeline.tokenizer_3, prompts, self.embedding_layout.tokens - self._clip_tokens)

    @property
    def _clip_tokens(self) -> int:
        return int(self.pipeline.tokenizer_max_length)

    def _timestep_arguments(self, num_inference_steps: int) -> dict[str, Any]:
        if not self._scheduler.config.get("use_dynamic_shifting"):
            return {}
        return {"mu": shift_of_resolution(self._scheduler, self._image_tokens, max_shift=1.16)}

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        pipeline, states, pooled = self.pipeline, [], []
        for tokenizer, encoder in (
            (pipeline.tokenizer, pipeline.text_encoder),
            (pipeline.tokenizer_2, pipeline.text_encoder_2),
        ):
            output = encoder(self._tokens(tokenizer, prompts, self._clip_tokens), output_hidden_states=True)
            states.append(output.hidden_states[-2])
            pooled.append(output.text_embeds)
        clip, width = torch.cat(states, dim=-1), self.embedding_layout.width
        length = self.embedding_layout.tokens - self._clip_tokens
        if pipeline.text_encoder_3 is None:
            t5 = clip.new_zeros(len(prompts), length, width)
        else:
            t5 = pipeline.text_encoder_3(self._tokens(pipeline.tokenizer_3, prompts, length))[0]
        n = torch.cat([pad(clip, (0, width - clip.shape[-1])), t5.to(clip)], dim=1)
        return {PROMPT_EMBEDS: n, POOLED_EMBEDS: torch.cat(pooled, dim=-1)}

    def _tokens(self, tokenizer: Any, prompts: list[str], length: int) -> Tensor:
        ids: Tensor = tokenize(tokenizer, prompts, length).input_ids
        return ids.to(self.device)

    def _predict(self, latents: Tensor, timestep: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        output: Tensor = self._compiled(
            latents,
            encoder_hidden_states=tensors[PROMPT_EMBEDS],
            pooled_projections=tensors[POOLED_EMBEDS],
            timestep=timestep.expand(len(latents)),
            return_dict=False,
        )[0]
        return output
