"""Use case: refine the negative embedding for each prompt by itself (the paper's Algorithm 1), many at once.

As many prompts as there are slots are tuned as one batch. Each has its own embedding, optimiser state,
clipping, noise, patience and best candidate, and losses are summed, so a prompt ends with the embedding that
it would have got alone. The full generation that measures a candidate is also the trajectory that its gradient
is taken from, on the way (`sampling.trajectories`). A prompt that is done gives its slot to the next one, so the
batch stays full.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from renege_ray.config.jobs import TuningConfig
from renege_ray.config.run import RunConfig
from renege_ray.method.ascent import AscentSettings
from renege_ray.method.embedding import as_stored
from renege_ray.method.search import Search
from renege_ray.models.base import TextToImage
from renege_ray.prompts.sources import pair_seed, prompt_id
from renege_ray.sampling.batches import together_or_alone
from renege_ray.sampling.draws import stratified_step
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.images import initial_noise
from renege_ray.sampling.run_rewards import Rewards
from renege_ray.sampling.trajectories import Path, make_sampler
from renege_ray.training.early_stop import ValidationPoint, should_stop


@dataclass(frozen=True)
class TunedPrompt:
    """What became of a prompt."""

    prompt: str
    embedding: Tensor
    """The best candidate, (1, L, D) float32, rounded to the storage type; the initial one if the prompt failed."""
    best_step: int
    """The number of that candidate."""
    steps: int
    """Updates made."""
    stopped_early: bool
    """Before the last step."""
    rewards: tuple[float, ...]
    """Of the candidates 0, 1, ..., the mean over the tune seeds."""
    images: dict[str, Tensor]
    """Of "global" (candidate 0) and "prompt" (the best one) from the tune seeds, (S, 3, H, W) on the CPU; none if it
    failed.
    """
    seconds: float
    """Its share of the computing time."""
    error: str = ""
    """Why it failed, else nothing."""


@dataclass(frozen=True)
class Measured:
    """A candidate's generation from S seeds, with the gradient that was taken on its way."""

    images: Tensor
    """(S, 3, H, W) on the CPU."""
    reward: float
    """The mean over the seeds."""
    held_out: float
    """The mean over the seeds; NaN where no reward is held out."""
    gradient: Tensor
    """Of the mean reward over the seeds and the gradient steps, (1, L, D) float32; NaN where one is not finite."""


@dataclass
class Slot:
    """A prompt that is being tuned."""

    prompt: str
    seeds: tuple[int, ...]
    noise: Tensor
    search: Search
    history: list[ValidationPoint] = field(default_factory=list)
    images: dict[str, Tensor] = field(default_factory=dict)
    gave_up: bool = False
    seconds: float = 0.0
    error: str = ""

    def fail(self, reason: str) -> None:
        """The prompt gets no embedding."""
        self.error = reason


def tuning_seeds(config: RunConfig, prompt: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The seeds that a prompt is tuned on, and those that it is not tuned on: functions of the run's seed and the
    prompt.
    """
    tuned, fresh = config.tuning.tune_seeds, config.tuning.eval_seeds
    seeds = tuple(pair_seed(config.seed, prompt_id(prompt), k) for k in range(tuned + fresh))
    return seeds[:tuned], seeds[tuned:]


def tuning_ascent(tuning: TuningConfig) -> AscentSettings:
    """The update's constants from the configuration."""
    return AscentSettings(
        lr=tuning.lr,
        steps=tuning.steps,
        betas=tuning.betas,
        max_grad_norm=tuning.max_grad_norm,
        drift_penalty=tuning.drift_penalty,
    )


class PromptTuner:
    """Tunes prompts with a frozen model and rewards, from one initial embedding.

    Attributes:
        slot_steps, slot_steps_used: how many slots have been offered and filled so far, summed over the steps.
    """

    def __init__(
        self, config: RunConfig, model: TextToImage, rewards: Rewards, initial: Tensor, encoded: EncodedPrompts
    ) -> None:
        """`initial`: candidate 0 of every prompt, (1, L, D)."""
        self._config, self._model, self._rewards, self._encoded = config, model, rewards, encoded
        self._initial = initial.float().cpu()
        tuning = config.tuning
        largest, field = tuning.slots * tuning.tune_seeds, "tuning.micro_batch_size"
        self._sampler = make_sampler(config, model, rewards.train, encoded, tuning.micro_batch_size, largest, field)
        self.slot_steps = self.slot_steps_used = 0

    def tune(
        self, prompts: Iterable[str], goes_on: Callable[[Sequence[str]], bool] = lambda prompts: True
    ) -> Iterator[TunedPrompt]:
        """Tune prompts, each by itself; they come out as they get done, not in their order.

        A prompt that raises comes out with its error and spoils no other.

        Args:
            prompts: any number; they are taken as slots become free.
            goes_on: told before every step of the prompts that are about to be computed; where it says no, they are
                given up and nothing more comes out.

        Raises:
            UserError: the configured micro-batch does not fit into memory.
            torch.AcceleratorError: the accelerator is in no state to compute anything any more.
        """
        waiting = iter(prompts)
        slots: list[Slot] = []
        while True:
            new = list(islice(waiting, self._config.tuning.slots - len(slots)))
            slots += [self._open(prompt) for prompt in new]
            if not slots or not goes_on([slot.prompt for slot in slots]):
                return
            self._advance(slots)
            self.slot_steps += self._config.tuning.slots
            self.slot_steps_used += len(slots)
            yield from (self._close(slot) for slot in slots if self._is_done(slot))
            slots = [slot for slot in slots if not self._is_done(slot)]

    def _open(self, prompt: str) -> Slot:
        seeds, _ = tuning_seeds(self._config, prompt)
        noise = torch.cat([initial_noise(seed, self._model.latent_shape) for seed in seeds])
        search = Search(self._initial, tuning_ascent(self._config.tuning), self._config.tuning.patience)
        return Slot(prompt, seeds, noise, search)

    def _advance(self, slots: Sequence[Slot]) -> None:
        """Measure every slot's candidate; make the next one of those that go on."""
        started = time.monotonic()
        for slot, measured in zip(slots, together_or_alone(slots, self._measure, Slot.fail), strict=True):
            if measured is None:
                continue
            self._record(slot, measured)
            if not self._is_done(slot):
                try:
                    slot.search.ascend(measured.gradient)
                except FloatingPointError:
                    slot.gave_up = True  # the candidates so far still stand
        for slot in slots:
            slot.seconds += (time.monotonic() - started) / len(slots)

    def _measure(self, slots: Sequence[Slot]) -> list[Measured]:
        """A full generation of every slot's candidate from its tune seeds, with the gradient taken on its way.

        Of a candidate that turns out to be its prompt's last one the gradient has been taken for nothing. That is once
        a prompt, and known in advance where the number of updates ends it.
        """
        samples = [(row, slot, j) for row, slot in enumerate(slots) for j in range(len(slot.seeds))]
        paths = [Path(slot.prompt, slot.noise[j], row, self._gradient_steps(slot, j)) for row, slot, j in samples]
        found = self._sampler(paths, torch.cat([slot.search.candidate for slot in slots]), to_the_end=True)
        assert found.latents is not None
        images, rewards, held_out = self._judge(found.latents, [slot.prompt for _, slot, _ in samples])
        count, taken = self._config.tuning.tune_seeds, self._config.tuning.gradients_per_rollout
        sums, valid = found.gradients.cpu(), found.rewards[..., 0].isfinite().cpu()
        return [
            Measured(
                images[rows],
                float(rewards[rows].mean()),
                float(held_out[rows].mean()),
                (sums[row : row + 1] / (count * taken)).float().where(valid[rows].all(), torch.nan),
            )
            for row, rows in enumerate(slice(i * count, (i + 1) * count) for i in range(len(slots)))
        ]

    def _judge(self, latents: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Images on the CPU, their rewards and mean held-out rewards, of final latents."""

        @torch.no_grad()
        def judge(places: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
            piece = slice(places[0], places[-1] + 1)
            images = self._model.decode(latents[piece])
            rewards = self._rewards.train(images, prompts[piece]).cpu().double()
            held_out = [reward(images, prompts[piece]).cpu().double() for reward in self._rewards.held_out]
            mean_held_out = sum(held_out) / len(held_out) if held_out else torch.full_like(rewards, torch.nan)
            return images.float().cpu(), rewards, torch.as_tensor(mean_held_out)

        pieces = [made for _, made in self._sampler.decodes.over(range(len(prompts)), judge)]
        images, rewards, held_out = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        return images, rewards, held_out

    def _gradient_steps(self, slot: Slot, seed_index: int) -> tuple[int, ...]:
        """The step indices at which the present candidate's gradient is taken from the image of a seed, ascending;
        none of the last candidate.

        The seeds share the configured range among them, and change their parts with every update.
        """
        tuning, k = self._config.tuning, slot.search.steps
        if k == tuning.steps:
            return ()
        seeds, per_rollout = tuning.tune_seeds, tuning.gradients_per_rollout
        drawn = (
            stratified_step(
                self._config.sampling, m * seeds + (seed_index + k) % seeds, seeds * per_rollout,
                slot.seeds[seed_index], "timestep", k, m,
            )
            for m in range(per_rollout)
        )  # fmt: skip
        return tuple(sorted(drawn))

    def _record(self, slot: Slot, measured: Measured) -> None:
        """Note a measured candidate: its reward, and its images if it is the first or the best."""
        search = slot.search
        try:
            is_best = search.record(measured.reward)
        except FloatingPointError as error:
            slot.error = str(error)
            return
        slot.history.append(ValidationPoint(search.steps, measured.reward, measured.held_out))
        if is_best:
            slot.images["prompt"] = measured.images
        slot.images.setdefault("global", measured.images)

    def _is_done(self, slot: Slot) -> bool:
        exploits = should_stop(slot.history, self._config.tuning.held_out_patience)
        return bool(slot.error) or slot.gave_up or slot.search.over or exploits

    def _close(self, slot: Slot) -> TunedPrompt:
        search = slot.search
        return TunedPrompt(
            prompt=slot.prompt,
            embedding=as_stored(self._initial) if slot.error else search.best,
            best_step=search.best_step,
            steps=search.steps,
            stopped_early=search.steps < self._config.tuning.steps,
            rewards=tuple(search.rewards),
            images=slot.images if not slot.error else {},
            seconds=slot.seconds,
            error=slot.error,
        )
