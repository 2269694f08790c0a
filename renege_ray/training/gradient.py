"""The gradient of the mean reward of one global batch, shared among the workers.

Notation of a step s: B samples in G contiguous groups of B / G; all samples of a group take their gradient at
the same step indices of the sampler, so that no worker waits for another one's longer rollout. Everything
random about a sample is a function of (run seed, s, sample index): the number of workers decides who computes
a sample, never what it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from renege_ray.config.run import RunConfig
from renege_ray.models.base import TextToImage
from renege_ray.rewards.weighted import WeightedReward
from renege_ray.sampling.draws import draw_index, noise, stratified_step
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.run_rewards import REWARD
from renege_ray.sampling.trajectories import Path, make_sampler
from renege_ray.sampling.workers import Workers


@dataclass(frozen=True)
class GlobalGradient:
    """What all workers know after a step."""

    gradient: Tensor
    """(1, L, D) float32, of the mean reward over the valid samples; zero where there is none."""
    rewards: dict[str, Tensor]
    """{"reward": (B * k,), part: (B * k,)} float64 in sample order; k gradients a rollout."""
    valid: Tensor
    """(B * k,) bool, False where the reward or its gradient was not finite."""
    stop: bool
    """Some worker has been asked to stop, and left its share undone: the rest is of no use."""

    def means(self) -> dict[str, float]:
        """The mean over the valid samples of the reward and of each of its parts."""
        return {name: float(values[self.valid].mean()) for name, values in self.rewards.items()}


@dataclass(frozen=True)
class Sample:
    """One rollout: index in the global batch, prompt, and the step indices that it takes a gradient at
    (ascending).
    """

    index: int
    prompt: str
    gradient_steps: tuple[int, ...]


def gradient_step_indices(config: RunConfig, step: int, group: int) -> tuple[int, ...]:
    """The k step indices (0 = the noisiest) at which group `group` takes its gradients in step `step`,
    ascending.

    The configured range is cut into k G strata; group g draws one index from each of the strata g, G + g,
    2 G + g, ...: over all groups every part of the range has its share in each step.
    """
    groups, per_rollout = config.optim.timestep_groups, config.optim.gradients_per_rollout
    drawn = (
        stratified_step(
            config.sampling, m * groups + group, groups * per_rollout, config.seed, "timestep", step, group, m
        )
        for m in range(per_rollout)
    )
    return tuple(sorted(drawn))


def samples_of(config: RunConfig, prompts: Sequence[str], step: int, workers: Workers) -> list[list[Sample]]:
    """This worker's samples of the global batch of `step`, group by group; within a group they go round the
    ranks.
    """
    group_size = config.optim.batch_size // config.optim.timestep_groups
    groups = []
    for group in range(config.optim.timestep_groups):
        at = gradient_step_indices(config, step, group)
        mine = (group * group_size + k for k in workers.share(group_size))
        drawn = ((j, prompts[draw_index(len(prompts), config.seed, "prompt", step, j)]) for j in mine)
        groups.append([Sample(j, prompt, at) for j, prompt in drawn])
    return groups


def drawn_prompts(config: RunConfig, prompts: Sequence[str], workers: Workers) -> list[str]:
    """The different prompts of this worker's samples in all steps of a training, in the order of their coming."""
    groups, size = config.optim.timestep_groups, config.optim.batch_size
    mine = [group * (size // groups) + k for group in range(groups) for k in workers.share(size // groups)]
    drawn = (
        draw_index(len(prompts), config.seed, "prompt", step, j) for step in range(config.optim.steps) for j in mine
    )
    return [prompts[i] for i in dict.fromkeys(drawn)]


class _AskedToStopError(Exception):
    """Ends a step of the training between two steps of the sampler."""


class GradientOfBatch:
    """Computes `GlobalGradient`s; holds the frozen model, the reward and the micro-batch size."""

    def __init__(
        self,
        config: RunConfig,
        model: TextToImage,
        reward: WeightedReward,
        prompts: Sequence[str],
        workers: Workers,
        encoded: EncodedPrompts,
        micro_batch_size: int = 0,
    ) -> None:
        """`micro_batch_size`: one that is known to fit (from a checkpoint), or 0."""
        self._config, self._model = config, model
        self._prompts, self._workers = prompts, workers
        self._part_names = tuple(reward.names)
        groups = config.optim.timestep_groups
        share = groups * -(-config.optim.batch_size // groups // workers.world_size)
        self._sampler = make_sampler(
            config, model, reward, encoded, config.optim.micro_batch_size, share, "optim.micro_batch_size",
            known=micro_batch_size,
        )  # fmt: skip

    @property
    def micro_batch_size(self) -> int:
        """How many samples are held with a graph at once."""
        return self._sampler.gradients.size

    def __call__(
        self, step: int, negative: Tensor, asked_to_stop: Callable[[], bool] = lambda: False
    ) -> GlobalGradient:
        """The gradient at `negative` (1, L, D) float32 of the mean reward of global batch `step`.

        `asked_to_stop` is polled before every step of the sampler: a step of the training of a large model takes
        minutes.

        Per-sample gradients are summed in float64, so that the number of workers and the size of the
        micro-batches change the sum by less than the rounding of the network itself. One `all_sum` a step.
        """
        config = self._config
        rows = (config.optim.batch_size, config.optim.gradients_per_rollout, 1 + len(self._part_names))
        gradient, table = torch.zeros(negative.shape, dtype=torch.float64), torch.zeros(rows, dtype=torch.float64)
        samples = [sample for group in samples_of(config, self._prompts, step, self._workers) for sample in group]
        shape = self._model.latent_shape
        paths = [
            Path(s.prompt, noise(shape, config.seed, "noise", step, s.index), 0, s.gradient_steps) for s in samples
        ]

        def go_on() -> None:
            if asked_to_stop():
                raise _AskedToStopError

        stop = False
        try:
            found = self._sampler(paths, negative, before_each_step=go_on)
            gradient = found.gradients.cpu()
            table[[sample.index for sample in samples]] = found.rewards.cpu()
        except _AskedToStopError:
            stop = True
        return self._reduce(gradient, table, stop)

    def _reduce(self, gradient: Tensor, table: Tensor, stop: bool) -> GlobalGradient:
        """Sum over the workers: the gradient, the table of rewards (each row filled by one worker), the wish
        to stop.
        """
        packed = torch.cat([gradient.flatten(), table.flatten(), torch.tensor([float(stop)], dtype=torch.float64)])
        packed = self._workers.all_sum(packed)
        summed = packed[: gradient.numel()].view_as(gradient)
        rewards = packed[gradient.numel() : -1].view(-1, table.shape[-1])
        valid = rewards[:, 0].isfinite()
        count = int(valid.sum())
        return GlobalGradient(
            gradient=(summed / max(count, 1)).float(),
            rewards=dict(zip((REWARD, *self._part_names), rewards.unbind(dim=1), strict=True)),
            valid=valid,
            stop=bool(packed[-1] > 0),
        )
