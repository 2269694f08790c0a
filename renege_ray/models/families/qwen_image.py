"""Qwen-Image, up to 2512 (diffusers' QwenImagePipeline): flow matching, text and image in joint attention, Qwen2.5-VL
as encoder.

A negative is n, the last hidden states of Qwen2.5-VL for a text in the pipeline's template, of which the first 34
tokens, the instruction to the encoder, are dropped: (1, L_i, D), with a mask where texts of a batch differ in length.
A learned one has `model.negative_tokens`, 64 by default (the empty text has about 5, by the template).

The pipeline guides where it is given a negative, by e_n + w (e_c - e_n) with w its `true_cfg_scale`, and scales each
token to the norm that it has in e_c. Null is " ", which its authors recommend for no negative. `guidance_scale` is
another thing there, an input of distilled models, which are refused.

Latents are those of a video of one frame. The decoder's own clamp is left out: ours lets the gradient through.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from renege_ray.method.embedding import ATTENTION_MASK, PROMPT_EMBEDS
from renege_ray.method.guidance import Guidance
from renege_ray.method.rescaling import match_norm, patch_norm
from renege_ray.method.schedule import Schedule
from renege_ray.models.base import Activations
from renege_ray.models.families.free_length import FreeLength
from renege_ray.models.frozen_pipeline import count_longer
from renege_ray.models.networks import patches
from renege_ray.models.networks.checkpointing import keep_inputs_alone
from renege_ray.models.noise_schedule import shift_of_resolution


class QwenImage(FreeLength):
    """A frozen QwenImagePipeline."""

    PIPELINE = "QwenImagePipeline"
    DENOISER = "transformer"
    DENOISER_CLASSES = ("QwenImageTransformer2DModel",)
    FLOW_MATCHING = True
    TAKES_ROWS = False  # texts are cut to the longest of a batch: there would be a graph for each length
    UNGUIDED = (1.0, "QwenImagePipeline guides, and takes a negative, at a true_cfg_scale above 1")
    SIZE = (1024, 1024)
    PATCH = patches.SIDE
    PACKED = True
    MEMORY = (Activations(23.0, 8.6), Activations(2.05, 5.64), 128)

    @classmethod
    def distilled(cls, denoiser: Mapping[str, Any], scheduler: Mapping[str, Any]) -> str:
        """A transformer that is told the scale has it in its weights."""
        told = denoiser.get("guidance_embeds", False)
        return "guidance_embeds in transformer/config.json: the guidance scale is an input" if told else ""

    def null_embedding(self) -> Tensor:
        """The encoded " ": without a negative the pipeline does not guide."""
        return self.encode_prompts([" "])

    @classmethod
    def negative_arguments(cls, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """The mask by the pipeline's own name; None where all tokens are attended to."""
        mask = tensors.get(ATTENTION_MASK)
        whole = mask is None or bool(mask.all())
        return {PROMPT_EMBEDS: tensors[PROMPT_EMBEDS], "negative_prompt_embeds_mask": None if whole else mask}

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many prompts have more tokens than L, with the template."""
        pipeline = self.pipeline
        texts = [pipeline.prompt_template_encode.format(prompt) for prompt in prompts]
        return count_longer(pipeline.tokenizer, texts, pipeline.prompt_template_encode_start_idx + self.TOKENS)

    def save_memory(self, saving: bool = True) -> None:
        """The same, with the decoder's blocks, for which diffusers has no recomputation."""
        super().save_memory(saving)
        decoder = self._vae.decoder
        for block in (decoder.mid_block, *decoder.up_blocks):
            keep_inputs_alone(block, saving)

    def _timestep_arguments(self, num_inference_steps: int) -> dict[str, Any]:
        sigmas = torch.linspace(1.0, 1 / num_inference_steps, num_inference_steps, dtype=torch.float64).tolist()
        return {"sigmas": sigmas, "mu": shift_of_resolution(self._scheduler, self._image_tokens)}

    def _guidance(self, scale: float, schedule: Schedule, options: Mapping[str, float]) -> Guidance:
        return Guidance(scale, partial(match_norm, norm=patch_norm))

    def _decoded(self, latents: Tensor) -> Tensor:
        # Of one frame, what `decode` comes down to before its clamp.
        images: Tensor = self._vae.decoder(self._vae.post_quant_conv(latents.unsqueeze(2)))
        return images.squeeze(2)

    def _unscale(self, latents: Tensor) -> Tensor:
        config = self._vae.config
        mean, std = (latents.new_tensor(each).view(-1, 1, 1) for each in (config.latents_mean, config.latents_std))
        return latents * std + mean

    @staticmethod
    def _pixels_a_latent(vae: Mapping[str, Any]) -> int:
        return int(2 ** len(vae["temperal_downsample"]))

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        n, mask = self.pipeline.encode_prompt(prompts, device=self.device, max_sequence_length=self.TOKENS)
        mask = n.new_ones(n.shape[:2]) if mask is None else mask
        missing = self.TOKENS - n.shape[1]
        return {PROMPT_EMBEDS: pad(n, (0, 0, 0, missing)), ATTENTION_MASK: pad(mask, (0, missing))}

    def _predict(self, latents: Tensor, timestep: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        n, mask = tensors[PROMPT_EMBEDS], tensors[ATTENTION_MASK]
        # The tokens that are attended to come first. One look at their number: rows that nobody needs cost time.
        length = self.embedding_layout.negative_tokens if n.is_meta else int(mask.sum(dim=1).max())
        height, width = latents.shape[-2:]
        tokens: Tensor = self._compiled(
            patches.pack(latents),
            n[:, :length],
            mask[:, :length].bool(),
            timestep.to(latents.dtype) / 1000,
            img_shapes=[[(1, height // self.PATCH, width // self.PATCH)]],
            return_dict=False,
        )[0]
        return patches.unpack(tokens, height, width)
