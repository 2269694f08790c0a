"""Algorithm 1: the search for the negative embedding of one prompt, as far as it is arithmetic.

    n_0        the global embedding                                       candidate 0
    R(n)       reward of full generations with n from the prompt's fixed noise, mean over its seeds
    n*         the candidate with the largest R so far
    repeat at most N times, and no longer once n* has stayed the same for K candidates in a row:
        n_{k+1}  one update of `Ascent` by the gradient of the reward at n_k
        measure R(n_{k+1}); it becomes n* if it is above R(n*)

Candidate 0 is among the candidates, so R(n*) >= R(n_0) on the seeds that R was measured with. Every candidate
is rounded to the type that embeddings are stored in before it is measured; the ascent itself is not rounded.
Shapes: n is (1, L, D).
"""

import math

from torch import Tensor

from renege_ray.method.ascent import Ascent, AscentSettings
from renege_ray.method.embedding import as_stored


class Search:
    """One prompt's candidates: `record` the reward of `candidate`, `ascend` to the next, until `over`.

    Attributes:
        best: n*, (1, L, D), rounded to the storage type, in float32.
        best_step: its number.
        rewards: R of the candidates 0, 1, ... so far.
    """

    def __init__(self, initial: Tensor, settings: AscentSettings, patience: int) -> None:
        """Start at candidate 0.

        Args:
            initial: n_0, (1, L, D).
            settings: of the ascent; its `steps` are N.
            patience: K.
        """
        self._patience = patience
        self._ascent = Ascent(as_stored(initial), settings)
        self._candidate = self.best = as_stored(initial)
        self.best_step = 0
        self.rewards: list[float] = []

    @property
    def candidate(self) -> Tensor:
        """n_k, (1, L, D), rounded to the storage type, in float32: what is to be measured."""
        return self._candidate

    @property
    def steps(self) -> int:
        """k, the number of updates made."""
        return self._ascent.step_count

    @property
    def over(self) -> bool:
        """Whether N updates have been made, or K candidates in a row were no better than n*."""
        without_a_rise = len(self.rewards) - 1 - self.best_step
        return bool(self.rewards) and (
            without_a_rise >= self._patience or len(self.rewards) > self._ascent.settings.steps
        )

    def record(self, reward: float) -> bool:
        """Note R of the present candidate; a reward that is not finite is no rise. Returns whether it is the best now.

        Raises:
            FloatingPointError: R of candidate 0 is not finite: there is nothing to compare with.
        """
        if not self.rewards and not math.isfinite(reward):
            raise FloatingPointError(f"the reward of the initial embedding is {reward}")
        self.rewards.append(reward)
        if len(self.rewards) > 1 and not (math.isfinite(reward) and reward > self.rewards[self.best_step]):
            return False
        self.best, self.best_step = self._candidate, len(self.rewards) - 1
        return True

    def ascend(self, gradient_of_reward: Tensor) -> None:
        """Go on to the next candidate by the gradient of the reward at this one, (1, L, D).

        Raises:
            FloatingPointError: the gradient is not finite.
        """
        self._ascent.update(gradient_of_reward)
        self._candidate = as_stored(self._ascent.embedding)
