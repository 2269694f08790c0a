"""When to stop because the reward is being exploited rather than served.

A reward model is a stand-in for what people like. While both the reward that is trained against and one that
no gradient has seen rise, the pictures get better; once the held-out one falls while the other goes on
rising, the embedding is learning the faults of the reward model (Goodhart's law).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ValidationPoint:
    """Mean rewards at one validation. `held_out_reward` is NaN where no reward is held out."""

    step: int
    train_reward: float
    held_out_reward: float


def overoptimised_in_a_row(history: Sequence[ValidationPoint]) -> int:
    """How many validations at the end of `history`, in a row, look like the exploitation of the reward.

    A validation counts when its held-out reward is below the best one so far while its training reward is
    above what it was at that best point.
    """
    in_a_row = 0
    best: ValidationPoint | None = None
    for point in history:
        if math.isnan(point.held_out_reward):
            return 0
        if best is None or point.held_out_reward >= best.held_out_reward:
            best, in_a_row = point, 0
        elif point.train_reward > best.train_reward:
            in_a_row += 1
        else:
            in_a_row = 0
    return in_a_row


def should_stop(history: Sequence[ValidationPoint], patience: int) -> bool:
    """True when the last `patience` validations all look like exploitation. Patience 0 turns the early stop
    off.
    """
    return 0 < patience <= overoptimised_in_a_row(history)
