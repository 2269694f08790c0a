"""The paper: guidance, schedule, rollout, objective, embedding, ascent, sensitivity.

Nothing here needs more than torch and safetensors. Read `guidance` first: it has the notation.
"""

from renege_ray.method.ascent import Ascent, AscentReport, AscentSettings, cosine_learning_rate
from renege_ray.method.embedding import EmbeddingMetadata, NegativeEmbedding
from renege_ray.method.guidance import Guidance, guide
from renege_ray.method.objective import predict_x0, reward_of_prediction
from renege_ray.method.rollout import Denoiser, Rollout, rollout
from renege_ray.method.schedule import Schedule, flow_schedule, make_schedule
from renege_ray.method.sensitivity import probe_jacobian

__all__ = [
    "Ascent",
    "AscentReport",
    "AscentSettings",
    "Denoiser",
    "EmbeddingMetadata",
    "Guidance",
    "NegativeEmbedding",
    "Rollout",
    "Schedule",
    "cosine_learning_rate",
    "flow_schedule",
    "guide",
    "make_schedule",
    "predict_x0",
    "probe_jacobian",
    "reward_of_prediction",
    "rollout",
]
