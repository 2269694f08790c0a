"""Randomness as a function of a key, never of call order, rank or worker count.

Every draw names what it is for, such as ``noise((4, 8, 8), seed, "noise", step, sample)``. The same key gives
the same numbers in any process and on any number of workers, because all draws are made on the CPU.
"""

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor

from renege_ray.config.run import SamplingConfig

Key = int | str
_RESOLUTION = 1 << 30


def _digest(key: Sequence[Key]) -> int:
    """256 bits from the key. JSON keeps (1, 2) apart from (12,), and the int 1 apart from the string "1"."""
    text = json.dumps(list(key), ensure_ascii=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode("ascii")).digest(), "big")


def generator(*key: Key) -> torch.Generator:
    """A CPU generator seeded by the SHA-256 of `key`.

    PyTorch's CPU generator (a Mersenne Twister) takes 32 bits of a seed: among the 256,000 samples of a
    run of the paper's size, about eight pairs are expected to share numbers, which does a mean no harm.
    """
    return torch.Generator(device="cpu").manual_seed(_digest(key) % 2**32)


def noise(shape: Sequence[int], *key: Key) -> Tensor:
    """Standard normal numbers of `shape`, float32, on the CPU."""
    return torch.randn(tuple(shape), generator=generator(*key), dtype=torch.float32)


def draw_index(n: int, *key: Key) -> int:
    """An index drawn uniformly from 0 .. n - 1. Raises ValueError where n < 1: there is nothing to draw."""
    if n < 1:
        raise ValueError(f"draw_index: n must be at least 1, got {n}")
    return _digest(key) % n


def stratified_step(sampling: SamplingConfig, stratum: int, strata: int, *key: Key) -> int:
    """A step index (0 = the noisiest) drawn by `key` from one of the strata of equal length that the configured
    range [first, last), counted from the clean end, is cut into.

    Over all strata every part of the range has its share, and each index is as likely as any other.
    """
    first, last = sampling.gradient_steps
    u = draw_index(_RESOLUTION, *key)
    from_the_end = first + (last - first) * (stratum * _RESOLUTION + u) // (strata * _RESOLUTION)
    return sampling.num_inference_steps - 1 - from_the_end
