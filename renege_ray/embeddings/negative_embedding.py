"""The public `NegativeEmbedding`: one that knows diffusers' pipelines and hands them what they ask for."""

from collections.abc import Mapping, Sequence
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
            the pipeline's dtype and on the device that it computes on; as a list where the pipeline wants one.

        Raises:
            UserError: another text encoder, or tokens that are no multiple of L; both are named.
        """
        self.check_pipeline(pipe, text_encoder)
        return pipeline_arguments(pipe, self.tensors, prompts, tokens)

    def check_pipeline(self, pipe: Any, text_encoder: str | None) -> None:
        """Compare shapes and, unless the user vouches for them, the encoders themselves; see `for_pipeline`.

        Raises:
            UserError: they are others.
        """
        from renege_ray.embeddings.pipeline_encoders import check_encoders
        from renege_ray.models.families.registry import FAMILIES
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


def pipeline_arguments(
    pipe: Any, tensors: Mapping[str, Tensor], prompts: str | Sequence[str] | None, tokens: int | None
) -> dict[str, Any]:
    """The keyword arguments of `NegativeEmbedding.for_pipeline`.

    Args:
        pipe: a pipeline that they fit.
        tensors: of a negative for all prompts, or with a row for each.
        prompts: what it will be called with.
        tokens: the length that n is repeated to; its own if None.

    Raises:
        UserError: tokens that are no multiple of its own, or that the family knows no repetition.
    """
    from renege_ray.models.families.registry import FAMILIES  # imports diffusers
    from renege_ray.models.frozen_pipeline import FrozenPipeline

    n = tensors[PROMPT_EMBEDS]
    length = n.shape[1]
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
    # By what the pipeline takes: it may have no text encoder that would tell.
    if ATTENTION_MASK not in tensors and ATTENTION_MASK in signature(type(pipe).__call__).parameters:
        tensors = {**tensors, ATTENTION_MASK: n.new_ones(n.shape[:2]).long()}
    count = 1 if prompts is None or isinstance(prompts, str) else len(prompts)
    # Where parts of a pipeline wait in main memory for their turn, its `device` is where they wait.
    device, rows = getattr(pipe, "_execution_device", pipe.device), {}
    for name, tensor in tensors.items():
        tensor = tensor.to(device, pipe.dtype if tensor.is_floating_point() else tensor.dtype)
        if name in (PROMPT_EMBEDS, ATTENTION_MASK):
            tensor = tensor.repeat(1, windows, *[1] * (tensor.ndim - 2))
        rows[name] = tensor.expand(count, *[-1] * (tensor.ndim - 1))
    return family.call_arguments(pipe, prompts, length) | family.negative_arguments(rows)
