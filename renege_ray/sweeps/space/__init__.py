"""Search spaces: which settings a sweep varies, how it draws them, and what it judges by.

A space is a YAML file, or a Python file with `space(trial)` where one setting decides which others there are; both are
described in docs/sweeps.md. This package knows neither Ray nor Optuna: whatever has `suggest_float`, `suggest_int`,
`suggest_categorical` and `params` is a trial.
"""

from renege_ray.sweeps.space.read import SPACES, read_search_space, space_names
from renege_ray.sweeps.space.space import SchedulerConfig, SearchSpace
from renege_ray.sweeps.space.trials import OutsideSpace

__all__ = ["SPACES", "OutsideSpace", "SchedulerConfig", "SearchSpace", "read_search_space", "space_names"]
