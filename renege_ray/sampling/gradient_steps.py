"""At which steps of the sampler gradients are taken: stratified draws from the configured range."""

from renege_ray.config.run import SamplingConfig
from renege_ray.sampling.draws import Key, draw_index

_RESOLUTION = 1 << 30


def stratified_step(sampling: SamplingConfig, stratum: int, strata: int, *key: Key) -> int:
    """A step index (0 = the noisiest) drawn by `key` from one of the strata of equal length that the configured
    range [first, last), counted from the clean end, is cut into.

    Over all strata every part of the range has its share, and each index is as likely as any other.
    """
    first, last = sampling.gradient_steps
    u = draw_index(_RESOLUTION, *key)
    from_the_end = first + (last - first) * (stratum * _RESOLUTION + u) // (strata * _RESOLUTION)
    return sampling.num_inference_steps - 1 - from_the_end
