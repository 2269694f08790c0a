"""Lumina-Image 2.0 (diffusers' Lumina2Pipeline): flow matching, one sequence of text and image, Gemma 2 as encoder.

A negative is n, the last but one hidden state of Gemma, and the mask of the tokens that are attended to: up to 256 of
them. The empty text has one, the beginning of a text; a learned negative has `model.negative_tokens`, 64 by default. A
prompt stands behind the pipeline's own system prompt, a negative stands alone (unless it is written with one).

Where the pipeline guides, the result is rescaled to the norm of the prompt's own output, row by row of the latents
(`cfg_normalization`, on by default), and steps behind a share `cfg_trunc_ratio` of all are not guided. The transformer
is told 1 - t / 1000 and predicts x_0 - e, the velocity with the other sign.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from renege_ray.method.embedding import ATTENTION_MASK, PROMPT_EMBEDS
from renege_ray.method.guidance import Guidance
from renege_ray.method.rescaling import match_norm, row_norm
from renege_ray.method.schedule import Schedule
from renege_ray.models.base import Activations
from renege_ray.models.families.free_length import FreeLength
from renege_ray.models.frozen_pipeline import count_longer, tokenize
from renege_ray.models.noise_schedule import shift_of_resolution

PIXELS_A_LATENT = 8  # in the pipeline, whatever its VAE


class Lumina2(FreeLength):
    """A frozen Lumina2Pipeline."""

    PIPELINE = "Lumina2Pipeline"
    DENOISER = "transformer"
    DENOISER_CLASSES = ("Lumina2Transformer2DModel",)
    FLOW_MATCHING = True
    TOKENS = 256  # the pipeline's max_sequence_length
    TAKES_ROWS = False  # the transformer cuts each text to its own length: there would be a graph for each
    UNGUIDED = (1.0, "Lumina2Pipeline guides, and takes a negative, at a guidance_scale above 1")
    GUIDANCE_OPTIONS = MappingProxyType({"cfg_trunc_ratio": 1.0, "cfg_normalization": 1.0})
    PATCH = 2
    MEMORY = (Activations(17.8, 7.4), Activations(1.415, 4.61), 128)

    @classmethod
    def call_arguments(cls, pipeline: Any, prompts: str | Sequence[str] | None, tokens: int) -> dict[str, Any]:
        """The prompts encoded, which would be refused in words beside a negative embedding."""
        if prompts is None:
            return {}
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        embeds, mask, _, _ = pipeline.encode_prompt(texts, do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many prompts, behind the system prompt, have more tokens than L."""
        return count_longer(self.pipeline.tokenizer, self._behind_the_system_prompt(prompts), self.TOKENS)

    @staticmethod
    def _pixels_a_latent(vae: Mapping[str, Any]) -> int:
        return PIXELS_A_LATENT

    def _timestep_arguments(self, num_inference_steps: int) -> dict[str, Any]:
        """The pipeline takes the channels for the tokens of the image, so that the shift is the same at all sizes."""
        sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        return {"sigmas": sigmas, "mu": shift_of_resolution(self._scheduler, self.latent_shape[0])}

    def _guidance(self, scale: float, schedule: Schedule, options: Mapping[str, float]) -> Guidance:
        steps = len(schedule.timesteps)
        truncated = torch.tensor([(i + 1) / steps > options["cfg_trunc_ratio"] for i in range(steps)])
        guided = torch.where(truncated, 1.0, scale).double()
        return Guidance(guided, partial(match_norm, norm=row_norm) if options["cfg_normalization"] else None)

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        return self._encode_negatives(self._behind_the_system_prompt(prompts))

    def _encode_negatives(self, texts: list[str]) -> dict[str, Tensor]:
        tokens = tokenize(self.pipeline.tokenizer, texts, self.TOKENS).to(self.device)
        states = self.pipeline.text_encoder(
            tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True
        ).hidden_states
        return {PROMPT_EMBEDS: states[-2], ATTENTION_MASK: tokens.attention_mask}

    def _behind_the_system_prompt(self, prompts: Sequence[str]) -> list[str]:
        return [f"{self.pipeline.system_prompt} <Prompt Start> {prompt}" for prompt in prompts]

    def _predict(self, latents: Tensor, timestep: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        mask = tensors[ATTENTION_MASK]
        output: Tensor = self._compiled(
            latents,
            1 - timestep.expand(len(latents)) / self._scheduler.config.num_train_timesteps,
            tensors[PROMPT_EMBEDS],
            WholeMask(mask) if mask.is_meta else mask,
            return_dict=False,
        )[0]
        return -output


class WholeMask:
    """A mask without numbers (on torch's meta device), where the transformer asks for lengths: all tokens."""

    def __init__(self, mask: Tensor) -> None:
        self._mask, self.shape = mask, mask.shape

    def bool(self) -> Tensor:
        """The mask itself."""
        return self._mask.bool()

    def sum(self, dim: int) -> "WholeMask":
        """Something with a `tolist`."""
        return self

    def tolist(self) -> list[int]:
        """The length of each row."""
        return [self.shape[1]] * self.shape[0]
