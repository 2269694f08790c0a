"""Rollouts whose gradients are taken on the way: one ragged batch of samples, each with gradient steps of its own.

All samples take step 0, 1, ... together. Where a sample's gradient is wanted, its e_n is computed with a graph, and
serves the gradient and the next step alike; e_c serves both, too. So a gradient on the way costs no forward pass that
the rollout does not take anyway, and after its last one a sample leaves the batch, unless its final latents are wanted.

A gradient that is a sample's last act waits until all have come so far: those of all samples are taken together then,
each at its own timestep. Hence a batch takes as many calls of the denoiser as its longest rollout has steps, and two
more, however many different last steps there are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from renege_ray.config.run import RunConfig
from renege_ray.method.gradient import gradient_at, reward_and_slope
from renege_ray.method.guidance import Guidance
from renege_ray.method.schedule import Schedule
from renege_ray.models.base import TextToImage
from renege_ray.rewards.weighted import WeightedReward
from renege_ray.sampling.batches import MicroBatches
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.memory import CudaMeter, plan_memory


@dataclass(frozen=True)
class Path:
    """What a sample starts from, and where its gradients are taken."""

    prompt: str
    noise: Tensor
    """x_T, (C, H, W)."""
    negative: int
    """Which of the negatives it goes under."""
    gradient_steps: tuple[int, ...]
    """Step indices (0 = the noisiest), ascending, no two alike; none where the final latents alone are wanted."""


@dataclass(frozen=True)
class Trajectories:
    """What B samples with up to k gradients each gave."""

    gradients: Tensor
    """(N, L, D) float64: for each of the N negatives, the sum of the valid gradients of its samples."""
    rewards: Tensor
    """(B, k, 1 + parts) float64: the weighted reward, then each of its parts; NaN where reward or gradient is not
    finite, or a sample has fewer than k gradients.
    """
    latents: Tensor | None
    """The final latents, (B, C, H, W), where they were asked for."""


class GradientSampler:
    """Takes gradients along rollouts with a frozen model and reward.

    Attributes:
        gradients, rows, decodes: how many samples are held with a graph, go through the denoiser without one, and are
            decoded at once: what was found to fit is kept.
    """

    def __init__(
        self,
        model: TextToImage,
        reward: WeightedReward,
        schedule: Schedule,
        guidance: Guidance,
        encoded: EncodedPrompts,
        gradients: MicroBatches,
        rows: MicroBatches,
        decodes: MicroBatches,
    ) -> None:
        """See the class, and `make_sampler`."""
        self.model, self.reward, self.encoded = model, reward, encoded
        self.schedule, self.guidance = schedule, guidance
        self.gradients, self.rows, self.decodes = gradients, rows, decodes

    def __call__(
        self,
        paths: Sequence[Path],
        negatives: Tensor,
        *,
        to_the_end: bool = False,
        before_each_step: Callable[[], None] = lambda: None,
    ) -> Trajectories:
        """Roll out, and take the gradients.

        Args:
            paths: the B samples.
            negatives: (N, L, D) float32.
            to_the_end: whether the final latents are wanted.
            before_each_step: called before every step of the sampler; what it raises ends the work.

        Raises:
            UserError: a single sample, or a configured micro-batch, does not fit into memory.
        """
        return _Batch(self, paths, negatives, to_the_end).run(before_each_step)


def make_sampler(
    config: RunConfig,
    model: TextToImage,
    reward: WeightedReward,
    encoded: EncodedPrompts,
    given: Literal["auto"] | int,
    largest: int,
    field: str,
    *,
    known: int = 0,
) -> GradientSampler:
    """A sampler whose batches are planned for the memory that there is.

    Args:
        config: of the run.
        given: the setting of the micro-batch size.
        largest: the most samples that there will be in a batch.
        field: what the configuration calls that setting.
        known: a size that is known to fit (from a checkpoint), or 0.
    """
    plan = plan_memory(config.memory, given, model, reward.names)
    model.save_memory(plan.saving)
    schedule = model.schedule(config.sampling.num_inference_steps)
    meter = CudaMeter(model.device) if model.device.type == "cuda" else None
    rows = 2 * (largest if given == "auto" else min(given, largest))
    return GradientSampler(
        model,
        reward,
        schedule,
        model.guidance(config.sampling, schedule),
        encoded,
        MicroBatches(given, largest, field, known=known, memory=plan, meter=meter),
        MicroBatches("auto", min(rows, plan.rows()), field),
        MicroBatches("auto", plan.decoded_at_once or largest, field),
    )


class _Batch:
    """One batch on its way. Samples are rows of x_t, e_n and e_c, and what has left the batch stays as it was."""

    def __init__(self, sampler: GradientSampler, paths: Sequence[Path], negatives: Tensor, to_the_end: bool) -> None:
        self._of, self._paths, self._to_the_end = sampler, paths, to_the_end
        self._prompts = [path.prompt for path in paths]
        self._model = sampler.model.for_prompts(self._prompts)
        self._schedule, self._guidance = sampler.schedule, sampler.guidance
        device = self._model.device
        self._x = torch.stack([path.noise for path in paths]).to(device)
        self._e_n, self._e_c = torch.zeros_like(self._x), torch.zeros_like(self._x)
        # All embeddings that the denoiser is given: the negatives, then the prompts'.
        self._embeds = torch.cat([negatives.to(device), sampler.encoded(self._prompts)])
        self._n = [path.negative for path in paths]
        self._c = [len(negatives) + row for row in range(len(paths))]
        self._indices: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}
        columns = 1 + len(sampler.reward.names)
        wide = torch.device("cpu") if device.type == "mps" else device  # Apple's GPUs have no float64
        taken = max(len(path.gradient_steps) for path in paths)
        self._table = torch.full((len(paths), taken, columns), torch.nan, dtype=torch.float64, device=wide)
        self._sums = torch.zeros(negatives.shape, dtype=torch.float64, device=wide)

    @torch.no_grad()
    def run(self, before_each_step: Callable[[], None]) -> Trajectories:
        """All steps."""
        final = len(self._schedule) - 1
        last = [final if self._to_the_end else path.gradient_steps[-1] for path in self._paths]
        waiting: list[tuple[int, int]] = []
        for i in range(max(last) + 1):
            before_each_step()
            here = [row for row, end in enumerate(last) if end >= i]
            ending = [row for row in here if last[row] == i and not self._to_the_end]
            self._step(i, here, ending)
            waiting += [(row, i) for row in ending]

        def take(piece: Sequence[tuple[int, int]]) -> None:
            before_each_step()
            self._take([i for _, i in piece], [row for row, _ in piece])

        for _ in self._of.gradients.over(waiting, take):
            pass
        return Trajectories(self._sums, self._table, self._x if self._to_the_end else None)

    def _step(self, i: int, here: Sequence[int], ending: Sequence[int]) -> None:
        """Compute e_c of all that are here, e_n of all that go on, and take these to the next step."""
        on_the_way = [row for row in here if i in self._paths[row].gradient_steps and row not in ending]
        plain = [row for row in here if row not in on_the_way and row not in ending]
        t = self._schedule.timesteps[i]

        def outputs(rows: Sequence[tuple[int, int]]) -> Tensor:
            samples, embeds = [row for row, _ in rows], [embed for _, embed in rows]
            return self._model.rows(samples).denoise(self._at(self._x, samples), t, self._at(self._embeds, embeds))

        # Both branches as one batch, the negative first, as in diffusers.
        rows = [*((row, self._n[row]) for row in plain), *((row, self._c[row]) for row in here)]
        made = torch.cat([found for _, found in self._of.rows.over(rows, outputs)])
        self._put(self._e_n, plain, made[: len(plain)])
        self._put(self._e_c, here, made[len(plain) :])
        for piece, e_n in self._of.gradients.over(on_the_way, lambda piece: self._take([i] * len(piece), piece)):
            self._put(self._e_n, piece, e_n)
        going_on = [row for row in here if row not in ending]
        if going_on:
            x, n, c = (self._at(values, going_on) for values in (self._x, self._e_n, self._e_c))
            x0, noise = self._schedule.split(self._guidance(n, c, i), x, i)
            self._put(self._x, going_on, self._schedule.step(x0, noise, i))

    def _take(self, steps: Sequence[int], rows: Sequence[int]) -> Tensor:
        """Note the gradients of samples, each at its step; returns their e_n, (b, C, H, W)."""
        found: list[dict[str, Tensor]] = []

        def slope_of_reward(x0: Tensor) -> Tensor:
            def judge(places: Sequence[int]) -> Tensor:
                prompts = [self._prompts[rows[place]] for place in places]
                x0_of_piece = x0[places[0] : places[-1] + 1]
                values, slope = reward_and_slope(self._model.decode, self._of.reward.terms, x0_of_piece, prompts)
                found.append(values)
                return slope

            return torch.cat([slope for _, slope in self._of.decodes.over(range(len(rows)), judge, nested=True)])

        gradients, e_n = gradient_at(
            self._model.rows(rows).denoise,
            self._at(self._x, rows),
            steps[0] if len(set(steps)) == 1 else torch.tensor(steps),
            self._at(self._e_c, rows),
            self._at(self._embeds, [self._n[row] for row in rows]),
            self._schedule,
            self._guidance,
            slope_of_reward,
        )
        self._note(steps, rows, gradients, {name: torch.cat([part[name] for part in found]) for name in found[0]})
        return e_n

    def _note(self, steps: Sequence[int], rows: Sequence[int], gradients: Tensor, parts: dict[str, Tensor]) -> None:
        rewards = self._of.reward.combine(parts)
        valid = rewards.isfinite() & gradients.isfinite().flatten(1).all(dim=1)
        column = torch.where(valid[:, None], torch.stack([rewards, *parts.values()], dim=1), torch.nan)
        places = [self._paths[row].gradient_steps.index(i) for row, i in zip(rows, steps, strict=True)]
        on = self._table.device
        self._table[self._index(rows, on), self._index(places, on)] = column.to(on).double()
        kept = torch.where(valid[:, None, None], gradients, 0).to(on).double()
        self._sums.index_add_(0, self._index([self._n[row] for row in rows], on), kept)

    def _at(self, values: Tensor, rows: Sequence[int]) -> Tensor:
        """values[rows], without a copy where that is all."""
        return values if list(rows) == list(range(len(values))) else values[self._index(rows, values.device)]

    def _put(self, values: Tensor, rows: Sequence[int], new: Tensor) -> None:
        if rows:
            values[self._index(rows, values.device)] = new

    def _index(self, rows: Sequence[int], device: torch.device) -> Tensor:
        """On an accelerator a list would be copied in a way that waits for all that is being computed. Most steps have
        the rows of the step before.
        """
        key = (tuple(rows), device)
        if key not in self._indices:
            index = torch.tensor(key[0], dtype=torch.int64)
            pinned = index.pin_memory() if device.type == "cuda" else index
            self._indices[key] = pinned.to(device, non_blocking=True)
        return self._indices[key]
