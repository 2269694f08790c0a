"""renege_ray learns negative embeddings for text-to-image diffusion by the gradient of a reward (ReNeg).

The public names below are loaded when they are first used, so that ``import renege_ray`` stays light and has
no side effects. Ray, MLflow and Optuna are reached through `renege_ray.cluster` only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from renege_ray.version import __version__

if TYPE_CHECKING:
    from renege_ray.config.run import RunConfig, load_preset
    from renege_ray.embeddings.negative_embedding import NegativeEmbedding
    from renege_ray.embeddings.prompt_embeddings import PromptEmbeddings
    from renege_ray.errors import UserError
    from renege_ray.method.guidance import guide
    from renege_ray.method.rollout import rollout
    from renege_ray.method.schedule import Schedule, make_schedule
    from renege_ray.models.load import load_model
    from renege_ray.rewards.load import load_rewards

__all__ = [
    "NegativeEmbedding",
    "PromptEmbeddings",
    "RunConfig",
    "Schedule",
    "UserError",
    "__version__",
    "guide",
    "load_model",
    "load_preset",
    "load_rewards",
    "make_schedule",
    "rollout",
]

_HOME = {
    "NegativeEmbedding": "renege_ray.embeddings.negative_embedding",
    "PromptEmbeddings": "renege_ray.embeddings.prompt_embeddings",
    "RunConfig": "renege_ray.config.run",
    "Schedule": "renege_ray.method.schedule",
    "UserError": "renege_ray.errors",
    "guide": "renege_ray.method.guidance",
    "load_model": "renege_ray.models.load",
    "load_preset": "renege_ray.config.run",
    "load_rewards": "renege_ray.rewards.load",
    "make_schedule": "renege_ray.method.schedule",
    "rollout": "renege_ray.method.rollout",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
