"""The settings of per-prompt tuning, a section of the configuration."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from renege_ray.config.types import AsTuple, Count, CountOrZero, Name, Section


class TuningConfig(Section):
    """An embedding for each prompt, by ascent on that prompt's reward (the paper's Algorithm 1)."""

    prompts: Name = Field(
        "toy", description="prompts to tune: 'toy' (the held-out ones first), a published set, or a file (see prompts)"
    )
    num_prompts: CountOrZero = Field(
        0, description="only so many of them, the same even mixture that jobs/evaluate.py takes; 0 is all"
    )
    init: Name = Field(
        "null",
        description="the embedding that every prompt starts from: null, handwritten, or a file (the global one)",
    )
    lr: float = Field(5e-3, gt=0, description="learning rate at the start of the cosine decay")
    steps: Count = Field(10, description="updates N at most")
    patience: Count = Field(3, description="stop after so many candidates in a row without a new best reward")
    held_out_patience: CountOrZero = Field(
        2,
        description="stop after so many candidates in a row with the held-out rewards below their best while the "
        "training reward is above what it was there; 0 is off",
    )
    tune_seeds: Count = Field(2, description="images that a prompt's reward and gradient are taken from")
    eval_seeds: Count = Field(2, description="further images that nothing is tuned on: the honest figure")
    gradients_per_rollout: Count = Field(1, description="gradient steps taken from each image's rollout in an update")
    betas: Annotated[tuple[float, float], AsTuple] = Field((0.9, 0.999), description="AdamW's averages")
    max_grad_norm: float = Field(0.0, ge=0, description="clip a prompt's gradient to this norm; 0 is off")
    drift_penalty: float = Field(0.0, ge=0, description="weight of the mean squared distance from the start; 0 is off")
    slots: Count = Field(16, description="prompts that a worker tunes at once; a finished one gives its slot away")
    micro_batch_size: Literal["auto"] | Count = Field(
        "auto", description="images that a worker computes at once; auto is as many as fit"
    )
    max_failed: CountOrZero = Field(0, description="failed prompts with which the job still ends well")

    @field_validator("init", mode="before")
    @classmethod
    def _null_is_a_word_here(cls, value: object) -> object:
        return "null" if value is None else value  # what YAML makes of an unquoted null

    @model_validator(mode="after")
    def _averages(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"tuning.betas: {list(self.betas)} is not within 0 <= beta < 1; for example [0.9, 0.999]")
        return self
