"""The settings of an evaluation, a section of the configuration."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from renege_ray.config.types import AsTuple, Count, CountOrZero, Name, Section


class EvaluationConfig(Section):
    """Methods compared on the same prompts, seeds and noise (what a method may be: see the end of this help)."""

    methods: Annotated[tuple[Name, ...], AsTuple] = Field(
        ("null", "handwritten"), description="what is compared; give --method once for each"
    )
    prompts: Name = Field(
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
    refiners: dict[str, Name] = Field(
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
