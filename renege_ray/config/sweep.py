"""The settings of a sweep, a section of the configuration."""

from typing import Annotated, Literal

from pydantic import Field

from renege_ray.config.types import Count, CountOrZero, Name, Section


class SweepConfig(Section):
    """A search for better settings: each trial is a whole global training, judged on the validation prompts.

    A space (search_spaces/*.yaml, or a Python file with `space(trial)`) says what is varied, between which limits, and
    what is aimed at; its head and CONTRIBUTING say how to write one. The preset's own settings are always trial 0.
    """

    space: Name = Field("paper", description="a file of search_spaces by name, or a path to a .yaml or .py file")
    trials: Literal["auto"] | Count = Field(
        "auto", description="trials in all, those of an earlier start included; auto: as the space says"
    )
    sampler: Literal["auto", "tpe", "random", "nsga2"] = Field(
        "auto", description="how settings are proposed; auto: as the space says"
    )
    scheduler: Literal["auto", "asha", "median", "none"] = Field(
        "auto",
        description="which trials are stopped early, by their validations: asha (all but the best 1 / "
        "reduction_factor at each rung), median (those below the median of the others), none; auto: as the space says",
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
