"""The public `NegativeEmbedding`: one that knows diffusers' pipelines and hands them what they ask for."""

from collections.abc import Sequence
from inspect import signature
from typing import Any

from torch import Tensor

from renege_ray.errors import UserError
from renege_ray.method import embedding
from renege_ray.method.embedding import ATTENTION_MASK, PROMPT_EMBEDS


class NegativeEmbedding(embedding.NegativeEmbedding):
    """A negative embedding and its metadata; see `renege_ray.method.embedding.NegativeEmbedding`."""

    def for_pipeline(
        self,
        pipe: Any,
        prompts: str | Sequence[str] | None = None,
        *,
        tokens: int | None = None,
        text_encoder: str | None = None,
    ) -> dict[str, Any]:
        """The keyword arguments for the call of a diffusers pipeline:

            pipe(prompts, **embedding.for_pipeline(pipe, prompts))    Stable Diffusion, SDXL
            pipe(**embedding.for_pipeline(pipe, prompts))             PixArt-alpha

        (PixArt's pipeline refuses a prompt in words beside a negative embedding, so there the prompts come encoded.)

        Any pipeline will do whose text encoders are those that the embedding was learned for: also one of another
        model, for other tasks, or for video. An embedding whose encoder is not known (a foreign file) is judged by
        its shapes.

        Args:
            pipe: the pipeline.
            prompts: what it will be called with; one prompt if None (and for PixArt, one that you encode yourself).
            tokens: the length of the `prompt_embeds` that it will be called with, where these are longer than one
                window of the encoder: n is repeated to 2 L, 3 L, ..., and attention over repeated tokens is the same
                as over the tokens.
            text_encoder: "same" vouches that the prompts are encoded by the text encoder that the embedding was learned
                for, where the pipeline's own does not show it (quantised, or left out for encoded prompts).

        Returns:
            `negative_prompt_embeds` (B, tokens, D), and what else the embedding holds, with a row for each prompt, in
            the pipeline's dtype and on the device that it computes on.

        Raises:
            UserError: another text encoder, or tokens that are no multiple of L; both are named.
        """
        from renege_ray.models.families.registry import FAMILIES  # imports diffusers
        from renege_ray.models.frozen_pipeline import FrozenPipeline

        self._check_encoders(pipe, text_encoder)
        length = self.prompt_embeds.shape[1]
        windows, rest = divmod(tokens or length, length)
        family = FAMILIES.get(type(pipe).__name__, FrozenPipeline)
        if windows != 1 and family.JOINT_ATTENTION:
            raise UserError(
                f"tokens: {tokens}, but text and image attend to each other as one sequence in a {family.PIPELINE}, "
                f"where repeated tokens would weigh more; leave it at the {length} tokens of the negative embedding"
            )
        if rest or windows < 1:
            raise UserError(
                f"tokens: {tokens} is no multiple of the {length} tokens of the negative embedding; pad the prompts "
                f"to {max(windows + 1, 1) * length}"
            )
        arguments = family.call_arguments(pipe, prompts, length)
        count = 1 if prompts is None or isinstance(prompts, str) else len(prompts)
        # Where parts of a pipeline wait in main memory for their turn, its `device` is where they wait.
        device = getattr(pipe, "_execution_device", pipe.device)
        for name, tensor in self._complete(pipe).items():
            tensor = tensor.to(device, pipe.dtype if tensor.is_floating_point() else tensor.dtype)
            if name in (PROMPT_EMBEDS, ATTENTION_MASK):
                tensor = tensor.repeat(1, windows, *[1] * (tensor.ndim - 2))
            arguments[name] = tensor.expand(count, *[-1] * (tensor.ndim - 1))
        return arguments

    def _complete(self, pipe: Any) -> dict[str, Tensor]:
        """The tensors, and a mask of ones where the pipeline needs one that a foreign file does not hold."""
        tensors = dict(self.tensors)
        # By what the pipeline takes: it may have no text encoder that would tell.
        if ATTENTION_MASK not in tensors and ATTENTION_MASK in signature(type(pipe).__call__).parameters:
            tensors[ATTENTION_MASK] = self.prompt_embeds.new_ones(self.prompt_embeds.shape[:2]).long()
        return tensors

    def _check_encoders(self, pipe: Any, text_encoder: str | None) -> None:
        """Compare shapes and, unless the user vouches for them, the encoders themselves."""
        from renege_ray.models.families.registry import FAMILIES
        from renege_ray.models.pipeline_encoders import check_encoders
        from renege_ray.models.text_encoder import describe_encoder, layout_of, text_encoders

        known = self.metadata.text_encoder_hash
        if text_encoder not in (None, "same"):
            raise UserError(f'text_encoder: {text_encoder!r} says nothing; give "same", or leave it out')
        if encoders := text_encoders(pipe):
            family, length = FAMILIES.get(type(pipe).__name__), self.prompt_embeds.shape[1]
            layout = family.layout(pipe, length) if family else layout_of(pipe, length)
            self.check_fits(layout.shapes, known, " + ".join(map(describe_encoder, encoders)))
        if known and text_encoder is None:
            check_encoders(pipe, known, self.metadata.text_encoder)
