"""Sana and SANA-1.5 (diffusers' SanaPipeline): flow matching by linear attention, with Gemma 2 as text encoder.

A negative is n, Gemma's last hidden state, and the mask of the tokens that are attended to: 300 of them, or as many as
`model.negative_tokens` says. The empty text has one, the beginning of a text; learning starts from copies of it that
are told apart, among which cross-attention is as it was. A prompt stands behind the pipeline's own instruction (its
default `complex_human_instruction`), of which the first token stays and what the last 299 places hold; a negative
stands alone.

Its scheduler is a DPM-Solver over flow-matching noise levels, which are sampled by Euler's steps: the same solver at
order 1. The size is that of the model's latents, not one of the bins that the pipeline moves sizes to
(`use_resolution_binning`). The decoder compresses 32 times a side and has no gradient checkpointing of its own.
"""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

from diffusers import SanaPipeline
from torch import Tensor

from renege_ray.method.embedding import ATTENTION_MASK, PROMPT_EMBEDS
from renege_ray.models.base import Activations
from renege_ray.models.families.free_length import FreeLength
from renege_ray.models.frozen_pipeline import count_longer
from renege_ray.models.networks.checkpointing import keep_inputs_alone

INSTRUCTION: list[str] = signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default


class Sana(FreeLength):
    """A frozen SanaPipeline."""

    PIPELINE = "SanaPipeline"
    DENOISER = "transformer"
    DENOISER_CLASSES = ("SanaTransformer2DModel",)
    FLOW_MATCHING = True
    JOINT_ATTENTION = False
    TOKENS = 300  # the pipeline's max_sequence_length
    NEGATIVE_TOKENS = TOKENS
    UNGUIDED = (1.0, "SanaPipeline guides, and takes a negative, at a guidance_scale above 1")
    MEMORY = (Activations(2.33, 11.9), Activations(0.242, 5.48), 32)  # Sana 1.6B

    @classmethod
    def distilled(cls, denoiser: Mapping[str, Any], scheduler: Mapping[str, Any]) -> str:
        """Sana-Sprint's transformer is told the guidance scale."""
        told = denoiser.get("guidance_embeds")
        return "guidance_embeds in transformer/config.json: the guidance scale is an input" if told else ""

    @classmethod
    def call_arguments(cls, pipeline: Any, prompts: str | Sequence[str] | None, tokens: int) -> dict[str, Any]:
        """No negative prompt, whose default would be refused, and the prompts encoded, which would be, too."""
        if prompts is None:
            return {"negative_prompt": None}
        embeds, mask = _encoded(pipeline, [prompts] if isinstance(prompts, str) else list(prompts), INSTRUCTION)
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask, "negative_prompt": None}

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many prompts, behind the instruction, have more tokens than there is room for."""
        tokenizer, instruction = self.pipeline.tokenizer, "\n".join(INSTRUCTION)
        texts = [instruction + text for text in self.pipeline._text_preprocessing(list(prompts))]
        return count_longer(tokenizer, texts, len(tokenizer.encode(instruction)) + self.TOKENS - 2)

    def save_memory(self, saving: bool = True) -> None:
        """The same, with the decoder's blocks computed a second time, too."""
        super().save_memory(saving)
        for block in self._vae.decoder.up_blocks:
            keep_inputs_alone(block, saving)

    @staticmethod
    def _pixels_a_latent(vae: Mapping[str, Any]) -> int:
        return int(2 ** (len(vae["encoder_block_out_channels"]) - 1))

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        n, mask = _encoded(self.pipeline, prompts, INSTRUCTION, self.device)
        return {PROMPT_EMBEDS: n, ATTENTION_MASK: mask}

    def _encode_negatives(self, texts: list[str]) -> dict[str, Tensor]:
        n, mask = _encoded(self.pipeline, texts, None, self.device)
        return {PROMPT_EMBEDS: n, ATTENTION_MASK: mask}

    def _predict(self, latents: Tensor, timestep: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        output: Tensor = self._compiled(
            latents,
            encoder_hidden_states=tensors[PROMPT_EMBEDS],
            encoder_attention_mask=tensors[ATTENTION_MASK],
            timestep=timestep.expand(len(latents)) * self._denoiser.config.timestep_scale,
            return_dict=False,
        )[0]
        return output[:, : latents.shape[1]]  # a learned variance, where there is one, has no use


def _encoded(
    pipeline: Any, texts: list[str], instruction: list[str] | None, device: Any = None
) -> tuple[Tensor, Tensor]:
    """Hidden states (B, 300, D) and mask (B, 300) of texts behind an instruction."""
    n, mask, _, _ = pipeline.encode_prompt(
        texts,
        do_classifier_free_guidance=False,
        device=device,
        max_sequence_length=Sana.TOKENS,
        complex_human_instruction=instruction,
    )
    return n, mask
