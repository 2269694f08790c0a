"""Chroma (diffusers' ChromaPipeline): flow matching, text and image in joint attention, T5 as encoder.

A negative is n, T5's hidden states, and a mask, (1, 512, 4096) and (1, 512). Prompts have as many tokens as it (the
pipeline's `max_sequence_length`), so `model.negative_tokens` is the length of both.

The mask is 1 for a text's tokens and the first of its padding. The transformer *adds* it to the logits of attention, so
that the other padding has exp(-1) of the weight, not none. A learned negative has 1 everywhere, which is as no mask at
all: it means the same where a mask is taken for one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from renege_ray.method.embedding import ATTENTION_MASK, PROMPT_EMBEDS
from renege_ray.models.base import Activations
from renege_ray.models.frozen_pipeline import FrozenPipeline, count_longer
from renege_ray.models.layout import EmbeddingLayout
from renege_ray.models.networks import patches
from renege_ray.models.networks.checkpointing import keep_inputs_alone
from renege_ray.models.noise_schedule import shift_of_resolution
from renege_ray.models.starting_point import told_apart

TOKENS = 512  # the pipeline's max_sequence_length


class Chroma(FrozenPipeline):
    """A frozen ChromaPipeline."""

    PIPELINE = "ChromaPipeline"
    DENOISER = "transformer"
    DENOISER_CLASSES = ("ChromaTransformer2DModel",)
    OPTIONAL = ("image_encoder", "feature_extractor")
    FLOW_MATCHING = True
    JOINT_ATTENTION = True
    UNGUIDED = (1.0, "ChromaPipeline guides, and takes a negative, at a guidance_scale above 1")
    SIZE = (1024, 1024)
    PATCH = patches.SIDE
    PACKED = True
    MEMORY = (Activations(22.6, 7.4), Activations(2.2, 4.61), 128)

    @classmethod
    def layout(cls, pipeline: Any, tokens: int | None = None) -> EmbeddingLayout:
        """As many tokens as prompts are padded to."""
        return EmbeddingLayout(tokens or TOKENS, int(pipeline.text_encoder.config.d_model), masked=True)

    def starting_point(self, embedding: Tensor) -> Tensor:
        """The same, with padding attended to as all else and told apart."""
        n = self.embedding_layout.unpack(embedding)[PROMPT_EMBEDS]
        return self.embedding_layout.pack({PROMPT_EMBEDS: told_apart(n)})

    @classmethod
    def call_arguments(cls, pipeline: Any, prompts: str | Sequence[str] | None, tokens: int) -> dict[str, Any]:
        """The length that prompts are encoded to, which is that of the negative."""
        return {"max_sequence_length": tokens}

    @classmethod
    def negative_arguments(cls, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """The mask in the type of n: it is added to logits."""
        n = tensors[PROMPT_EMBEDS]
        return {PROMPT_EMBEDS: n, ATTENTION_MASK: tensors[ATTENTION_MASK].to(n)}

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many prompts have more tokens than L."""
        return count_longer(self.pipeline.tokenizer, prompts, self.embedding_layout.tokens)

    def save_memory(self, saving: bool = True) -> None:
        """The same; the transformer's own recomputation forgets the mask in half of its blocks."""
        super().save_memory(saving)
        self._denoiser.disable_gradient_checkpointing()
        for block in (*self._denoiser.transformer_blocks, *self._denoiser.single_transformer_blocks):
            keep_inputs_alone(block, saving)

    def _timestep_arguments(self, num_inference_steps: int) -> dict[str, Any]:
        sigmas = torch.linspace(1.0, 1 / num_inference_steps, num_inference_steps, dtype=torch.float64).tolist()
        return {"sigmas": sigmas, "mu": shift_of_resolution(self._scheduler, self._image_tokens)}

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        n, _, mask, *_ = self.pipeline.encode_prompt(
            prompts,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.embedding_layout.tokens,
        )
        return {PROMPT_EMBEDS: n, ATTENTION_MASK: mask}

    def _predict(self, latents: Tensor, timestep: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        mask = tensors[ATTENTION_MASK].to(latents.dtype)
        output: Tensor = self._compiled(latents, timestep.to(latents.dtype) / 1000, tensors[PROMPT_EMBEDS], mask)
        return output

    def _whole_denoiser(self) -> Callable[..., Any]:
        return self._transformed

    def _transformed(self, latents: Tensor, timestep: Tensor, n: Tensor, mask: Tensor) -> Tensor:
        """The transformer's output; places in the image are made here, since they have no B rows."""
        height, width = latents.shape[-2:]
        rows, columns = height // self.PATCH, width // self.PATCH
        axes = (torch.zeros(1), torch.arange(rows), torch.arange(columns))
        places = torch.cartesian_prod(*(axis.to(latents) for axis in axes))
        output: Tensor = self._denoiser(
            patches.pack(latents),
            encoder_hidden_states=n,
            timestep=timestep,
            img_ids=places,
            txt_ids=places.new_zeros(n.shape[1], len(axes)),
            attention_mask=torch.cat([mask, mask.new_ones(len(mask), rows * columns)], dim=1),
            return_dict=False,
        )[0]
        return patches.unpack(output, height, width)
