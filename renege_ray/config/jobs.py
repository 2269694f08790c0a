"""The sections of the configuration that belong to single jobs, and what all sections are made of."""

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from renege_ray.config.paths import MethodText, NamedFile, PathOrName, PathOrUri, PromptSource, Text

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Name = Text
# YAML has lists only; what is in them stays strictly typed.
AsTuple = Field(strict=False)


class Section(BaseModel):
    """Immutable and strict: no unknown fields, no texts or booleans in place of numbers, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class TuningConfig(Section):
    """An embedding for each prompt, by ascent on that prompt's reward (the paper's Algorithm 1)."""

    prompts: PromptSource = Field(
        "toy", description="prompts to tune: 'toy' (the held-out ones first), a published set, or a file (see prompts)"
    )
    num_prompts: CountOrZero = Field(
        0, description="only so many of them, the same even mixture that renege-ray evaluate takes; 0 is all"
    )
    init: PathOrName = Field(
        "null", description="the embedding that every prompt starts from: null, handwritten, or a file (the global one)"
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


class EvaluationConfig(Section):
    """Methods compared on the same prompts, seeds and noise (what a method may be: see the end of this help)."""

    methods: Annotated[tuple[MethodText, ...], AsTuple] = Field(
        ("null", "handwritten"), description="what is compared; give --method once for each"
    )
    prompts: PromptSource = Field(
        "hpsv2",
        description="prompts to judge by: 'toy', a published set, or a file (see prompts), each with its styles or "
        "categories; of a source that training names too, the share that training never sees",
    )
    num_prompts: CountOrZero = Field(0, description="only so many of them, an even mixture of the set; 0 is all")
    seeds_per_prompt: Count = Field(1, description="images of a prompt under each method")
    rewards: Annotated[tuple[Name, ...], AsTuple] = Field(
        (),
        description="what to measure, by name, instead of all that the section rewards names; the first is what "
        "methods are ranked by, unless one of them is trained against",
    )
    allow_missing: bool = Field(
        False,
        description="where a table of tuned prompts (prompt=DIR) lacks a prompt, use the global embedding and mark "
        "the row, instead of refusing",
    )
    refiners: dict[str, PathOrUri] = Field(
        {}, description="local copies of refiners' models: {NAME: FOLDER}; others come from the Hub"
    )
    batch_size: Count = Field(16, description="images that a worker makes at once; halved where memory is short")
    keep_images: Literal["webp", "png", "none"] = Field("webp", description="how images are kept, if they are")
    max_failed: CountOrZero = Field(0, description="images that could not be made with which the job still ends well")

    @field_validator("methods", mode="before")
    @classmethod
    def _null_is_a_word_here(cls, value: object) -> object:
        # What YAML makes of an unquoted null.
        return ["null" if item is None else item for item in value] if isinstance(value, list | tuple) else value

    @field_validator("methods")
    @classmethod
    def _some(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        if not methods:
            raise ValueError("evaluation.methods: [] compares nothing; for example --method null --method handwritten")
        return methods


class SweepConfig(Section):
    """A search for better settings: each trial is a whole global training, judged on the validation prompts.

    A space (search_spaces/*.yaml, or a Python file with `space(trial)`) says what is varied, between which limits, and
    what is aimed at; its head and docs/sweeps.md say how to write one. The preset's own settings are always trial 0.
    """

    space: NamedFile = Field("paper", description="a file of search_spaces by name, or a path to a .yaml or .py file")
    trials: Literal["auto"] | Count = Field(
        "auto", description="trials in all, those of an earlier start included; auto: as the space says"
    )
    sampler: Literal["auto", "tpe", "random", "nsga2"] = Field(
        "auto", description="how settings are proposed; auto: as the space says"
    )
    scheduler: Literal["auto", "asha", "median", "none"] = Field(
        "auto",
        description="which trials are stopped early, by their validations: asha (all but the best 1 / "
        "reduction_factor at each rung), median (those below that of finished ones), none; auto: as the space says",
    )
    workers_per_trial: Count = Field(
        1, description="data-parallel workers of a trial; with 1 it trains in its own process, which starts at once"
    )
    max_concurrent: Literal["auto"] | Count = Field(
        "auto", description="trials at the same time; auto is as many as there are CPU cores or GPUs for"
    )
    budget_hours: Literal["auto"] | Annotated[float, Field(gt=0)] = Field(
        "auto", description="begin no further trial after so long; auto: as the space says"
    )
    confirm_seeds: CountOrZero = Field(
        3,
        description="fresh seeds on which the best setting is trained anew against the preset's defaults; 0 is off, "
        "and then nothing tells a real gain from luck",
    )


class ClusterConfig(Section):
    """Workers. None of this changes the result, but for the order of sums."""

    num_workers: str = Field("1", description="N, or MIN-MAX for a group that shrinks and grows with the cluster")
    use_gpu: Literal["auto"] | bool = Field("auto", description="a GPU for each worker; auto: where there are any")
    cpus_per_worker: Literal["auto"] | Annotated[float, Field(gt=0)] = Field(
        "auto", description="CPU cores that a worker reserves; auto is an equal share"
    )
    gpus_per_worker: float = Field(1.0, gt=0, description="GPUs that a worker reserves; below 1, several share one")
    max_failures: CountOrZero = Field(3, description="worker failures after which the run gives up")
    storage_path: PathOrUri | None = Field(
        None, description="folder or URI that all nodes share, for checkpoints; needed with several nodes only"
    )

    @field_validator("num_workers", mode="before")
    @classmethod
    def _number_or_range(cls, value: object) -> str:
        text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", text, re.ASCII)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if match and high < low:
            raise ValueError(f"cluster.num_workers: {text} is reversed; give MIN-MAX, such as {high or 1}-{low}")
        if low < 1:
            zero = "0 workers do nothing" if match else f"{value!r} is not a number of workers"
            raise ValueError(f"cluster.num_workers: {zero}; give N or MIN-MAX from 1 up, such as 2 or 1-4")
        return str(low) if low == high else f"{low}-{high}"

    @property
    def worker_range(self) -> tuple[int, int]:
        """The smallest and the largest number of workers."""
        low, _, high = self.num_workers.partition("-")
        return int(low), int(high or low)
