"""What families share whose texts have any length: a learned negative has `model.negative_tokens`."""

from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import pad

from renege_ray.errors import UserError
from renege_ray.method.embedding import ATTENTION_MASK, PROMPT_EMBEDS
from renege_ray.models.frozen_pipeline import FrozenPipeline
from renege_ray.models.layout import EmbeddingLayout
from renege_ray.models.starting_point import filled_up


class FreeLength(FrozenPipeline):
    """A frozen pipeline whose prompts come with a mask, in `TOKENS` rows, and whose negative is shorter."""

    TOKENS: ClassVar[int] = 512  # the pipeline's max_sequence_length
    NEGATIVE_TOKENS: ClassVar[int] = 64
    JOINT_ATTENTION = True

    @classmethod
    def layout(cls, pipeline: Any, tokens: int | None = None) -> EmbeddingLayout:
        """Texts of up to `TOKENS` tokens, of which a learned negative has `tokens`. UserError where these are more."""
        tokens = tokens or cls.NEGATIVE_TOKENS
        if tokens > cls.TOKENS:
            raise UserError(
                f"model.negative_tokens: {tokens} is more than the {cls.TOKENS} tokens that {cls.PIPELINE} takes"
            )
        config = pipeline.text_encoder.config
        width = int(getattr(config, "text_config", config).hidden_size)  # of a model that sees images, too
        return EmbeddingLayout(cls.TOKENS, width, masked=True, learned_tokens=tokens)

    def starting_point(self, embedding: Tensor) -> Tensor:
        """The same text, filled up to the learned length by copies of its tokens, told apart.

        Raises:
            UserError: it has more tokens than are learned.
        """
        return filled_up(embedding, self.embedding_layout)

    @classmethod
    def negative_arguments(cls, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """As long as the prompts, which the pipeline wants them to be: what is added is not attended to."""
        n, mask = tensors[PROMPT_EMBEDS], tensors[ATTENTION_MASK]
        missing = -n.shape[1] % cls.TOKENS
        return {PROMPT_EMBEDS: pad(n, (0, 0, 0, missing)), ATTENTION_MASK: pad(mask, (0, missing))}
