"""The metrics that a training reports at each of its validations, by name; nothing is loaded."""

from itertools import combinations

from renege_ray.config.run import RunConfig
from renege_ray.output.image_statistics import ImageStatistics
from renege_ray.rewards.catalogue import JUDGE_SCORES, beside, full_name
from renege_ray.sampling.run_rewards import REWARD

METHODS = ("null", "handwritten", "global")


def reported_metrics(config: RunConfig) -> list[str]:
    """See `renege_ray.sampling.images.Evaluation.metrics`."""
    rewards = [full_name(name) for name in (*config.rewards.train, *config.rewards.held_out)]
    judges = [score for name in config.rewards.judges for score in JUDGE_SCORES.get(name, (full_name(name),))]
    scores = list(dict.fromkeys((REWARD, *rewards, *judges)))
    unranked = (*(other for score in scores for other in beside(score)), *ImageStatistics.names)
    means = [f"eval/{method}/{score}/mean" for method in METHODS for score in (*scores, *unranked)]
    pairs = [(method, other) for other, method in combinations(METHODS, 2)]
    return means + [f"eval/{method}/win_rate_vs_{other}/{score}" for method, other in pairs for score in scores]


def method_of(metric: str) -> str:
    """null, handwritten or global."""
    return metric.split("/")[1]
