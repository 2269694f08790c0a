"""Z-Image, the base model (diffusers' ZImagePipeline): flow matching, one sequence of image and text, Qwen3 as encoder.

A negative is n, the last but one hidden states of Qwen3 for a text in its chat template, (L_i, D): as many tokens as
the text has, up to 512. A learned one has `model.negative_tokens`, 64 by default (the empty text has 8, by the
template); the transformer fills every text up to a multiple of 32 with a token of its own.

Its scale g goes beyond the prompt's output, e = e_c + g (e_c - e_n), so that w = g + 1. `cfg_truncation` ends the
guidance where (1000 - t) / 1000 is above it; `cfg_normalization` keeps |e| within so many |e_c|. The transformer is
told (1000 - t) / 1000 and predicts x_0 - e, the velocity with the other sign.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from renege_ray.method.embedding import ATTENTION_MASK, PROMPT_EMBEDS
from renege_ray.method.guidance import Guidance
from renege_ray.method.rescaling import limit_norm
from renege_ray.method.schedule import Schedule
from renege_ray.models.base import Activations
from renege_ray.models.families.free_length import FreeLength
from renege_ray.models.frozen_pipeline import count_longer
from renege_ray.models.noise_schedule import shift_of_resolution

TURBO_SHIFT = 3.0  # of the noise levels of Z-Image-Turbo; the base model's is 6


class ZImage(FreeLength):
    """A frozen ZImagePipeline."""

    PIPELINE = "ZImagePipeline"
    DENOISER = "transformer"
    DENOISER_CLASSES = ("ZImageTransformer2DModel",)
    FLOW_MATCHING = True
    TAKES_ROWS = False  # lists of texts, each of its own length: there would be a graph for each
    UNGUIDED = (0.0, "ZImagePipeline guides by e_c + g (e_c - e_n), and takes a negative at a guidance_scale g above 0")
    GUIDANCE_OPTIONS = MappingProxyType({"cfg_truncation": 1.0, "cfg_normalization": 0.0})
    SIZE = (1024, 1024)
    PATCH = 2
    MEMORY = (Activations(27.1, 7.4), Activations(2.03, 4.61), 128)

    @classmethod
    def distilled(cls, denoiser: Mapping[str, Any], scheduler: Mapping[str, Any]) -> str:
        """Z-Image-Turbo has the base model's architecture; its noise levels are its own."""
        turbo = scheduler.get("shift") == TURBO_SHIFT
        return f"shift {TURBO_SHIFT:g} in scheduler/scheduler_config.json, as Z-Image-Turbo has it" if turbo else ""

    @classmethod
    def negative_arguments(cls, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """A list of (L_i, D), the tokens that are attended to."""
        n = tensors[PROMPT_EMBEDS]
        mask = tensors.get(ATTENTION_MASK, torch.ones_like(n[..., 0])).bool()
        return {PROMPT_EMBEDS: [row[attended] for row, attended in zip(n, mask, strict=True)]}

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many prompts have more tokens than L, with the template."""
        tokenizer = self.pipeline.tokenizer
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True
            )
            for prompt in prompts
        ]
        return count_longer(tokenizer, texts, self.TOKENS)

    def _timestep_arguments(self, num_inference_steps: int) -> dict[str, Any]:
        sigmas = torch.linspace(1.0, 1 / num_inference_steps, num_inference_steps).tolist()
        return {"sigmas": sigmas, "mu": shift_of_resolution(self._scheduler, self._image_tokens)}

    def _guidance(self, scale: float, schedule: Schedule, options: Mapping[str, float]) -> Guidance:
        most, last = options["cfg_normalization"], options["cfg_truncation"]
        cleanness = (1000 - schedule.timesteps.float()) / 1000
        guided = torch.where(cleanness > last, 1.0, scale + 1.0) if last <= 1 else torch.full_like(cleanness, scale + 1)
        return Guidance(guided.double(), partial(limit_norm, most=most) if most > 0 else None)

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        states, _ = self.pipeline.encode_prompt(
            list(prompts), device=self.device, do_classifier_free_guidance=False, max_sequence_length=self.TOKENS
        )
        lengths = torch.tensor([len(tokens) for tokens in states], device=self.device)
        mask = torch.arange(self.TOKENS, device=self.device) < lengths[:, None]
        n = torch.stack([pad(tokens, (0, 0, 0, self.TOKENS - len(tokens))) for tokens in states])
        return {PROMPT_EMBEDS: n, ATTENTION_MASK: mask}

    def _predict(self, latents: Tensor, timestep: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        n, mask = tensors[PROMPT_EMBEDS], tensors[ATTENTION_MASK]
        # The tokens that are attended to come first. One look at their number, since lists are what the model takes.
        lengths = [self.embedding_layout.negative_tokens] * len(n) if n.is_meta else mask.sum(dim=1).tolist()
        output = self._compiled(
            list(latents.unsqueeze(2).unbind()),
            (1000 - timestep.expand(len(latents))) / 1000,
            [row[:length] for row, length in zip(n, lengths, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(output).squeeze(2)
