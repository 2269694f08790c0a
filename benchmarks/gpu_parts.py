"""The parts of `benchmarks/gpu.py`: updates of Stable Diffusion 1.5 and SDXL, a ReFL-style loop, prompts tuned.

Samples, steps and settings are those of the preset `sd15`; HPSv2's ViT-H judges. A rollout goes as deep as it does on
average over the configured range of gradient steps (`benchmarks.refl.depths`).
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu_models
from benchmarks.gpu_report import Figures, Goal, Part, Report, free_memory, run_parts
from benchmarks.refl import PlainStableDiffusion, at_depth, depths, refl_gradient, weighted_mean
from renege_ray.config.run import RunConfig, load_preset, with_values
from renege_ray.errors import UserError
from renege_ray.method.guidance import Guidance
from renege_ray.models.families.stable_diffusion import StableDiffusion
from renege_ray.models.families.stable_diffusion_xl import StableDiffusionXL
from renege_ray.models.frozen_pipeline import FrozenPipeline
from renege_ray.models.load import choose_dtype
from renege_ray.output.console import say
from renege_ray.rewards.weighted import WeightedReward
from renege_ray.sampling.draws import noise
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.memory import plan_memory
from renege_ray.sampling.run_rewards import Rewards
from renege_ray.sampling.workers import Workers
from renege_ray.training.gradient import GlobalGradient, GradientOfBatch
from renege_ray.tuning.tune import PromptTuner

PROMPTS = [f"a photograph of {number} red apples on a wooden table, early morning" for number in range(64)]
GIB = 2**30
NOTABLY = 1.03  # times as fast
MATMUL_WORK = 1e14  # operations, which takes a large GPU a fifth of a second


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    sizes: gpu_models.Sizes
    matrices: tuple[int, ...]
    """Sides of the matrix products by which the peak is found."""
    micro_batches: tuple[int, ...]
    """The sizes that are tried, ascending."""
    settings: dict[str, object]
    """That differ from the preset's."""
    alone: int
    """Prompts that are tuned one by one."""


FULL = Scale(gpu_models.TRUE, (4096, 8192, 16384), (4, 8, 16, 32), {}, alone=3)
TINY = Scale(
    gpu_models.TINY, (64, 128), (1, 2), {"sampling.num_inference_steps": 5, "sampling.gradient_steps": [0, 4]}, alone=2
)


class Encoded:
    """A model that has encoded all prompts: they are encoded once in a run, and belong to no update."""

    def __init__(self, model: FrozenPipeline) -> None:
        self.model, self.prompts = model, EncodedPrompts(model)
        self.null = self.prompts([*PROMPTS, ""])[-1:]


class Bench:
    """What the parts share: the device, the models, the best micro-batch and what a ReFL-style loop does there."""

    def __init__(self, scale: Scale, device: torch.device) -> None:
        self.scale, self.device = scale, device
        self.dtype = choose_dtype("auto", device)
        self.config = with_values(load_preset("sd15"), scale.settings)
        self.peak: float | None = None  # TFLOP/s
        self.micro_batch: int | None = None
        self.refl_rate: float | None = None  # gradients/s
        self._tflop: dict[tuple[str, int], float] = {}

    @cached_property
    def reward(self) -> WeightedReward:
        """A ViT-H that judges, and has read all prompts."""
        reward = gpu_models.hpsv2(self.scale.sizes, self.device, self.dtype)
        reward.text_features(PROMPTS)
        return WeightedReward({reward: 1.0})

    @cached_property
    def eager(self) -> Encoded:
        """Stable Diffusion 1.5 as it is."""
        return self._stable_diffusion(compile=False)

    @cached_property
    def compiled(self) -> Encoded:
        """The same with networks of its own, compiled."""
        return self._stable_diffusion(compile=True)

    @cached_property
    def compiled_reward(self) -> WeightedReward:
        """A ViT-H of its own, with its image tower compiled."""
        reward = gpu_models.hpsv2(self.scale.sizes, self.device, self.dtype)
        reward.text_features(PROMPTS)
        reward.compile_towers()
        return WeightedReward({reward: 1.0})

    def _stable_diffusion(self, *, compile: bool) -> Encoded:
        pipeline = gpu_models.stable_diffusion(self.scale.sizes, self.device, self.dtype)
        return Encoded(StableDiffusion(pipeline, "sd15", dtype=self.dtype, device=self.device, compile=compile))

    def find_peak(self) -> Figures:
        """TFLOP/s of square matrix products in the type that the networks compute in, by side; the best is the peak."""
        found = {}
        for side in self.scale.matrices:
            a, b = (torch.randn(side, side, device=self.device, dtype=self.dtype) for _ in range(2))
            products = max(3, int(MATMUL_WORK / (2 * side**3))) if self.device.type == "cuda" else 3
            work = partial(_repeat, partial(torch.mm, a, b), products)
            self.seconds(work)
            found[str(side)] = 2 * side**3 * products / self.seconds(work) / 1e12
        self.peak = max(found.values())
        return {"tflop_per_s": self.peak, "by_side": found}

    def first_update(self) -> Figures:
        """The best micro-batch, and what it does at k = 1."""
        self.micro_batch, tried = self._best_micro_batch()
        return {**self.sd15(self.eager, 1), "gradients_per_s_by_micro_batch": tried}

    def sd15(self, model: Encoded, per_rollout: int) -> Figures:
        """Updates at the best micro-batch, or at the smallest where it is not known."""
        size = self.micro_batch or self.scale.micro_batches[0]
        return largest_that_fits(size, lambda size: self.updates(model, per_rollout, size))

    def one_at_a_time(self, model: Encoded) -> Figures:
        """Updates of one sample; compiled, their rollouts are replayed as CUDA graphs (`models.networks.compiled`)."""
        return self.updates(model, 1, 1)

    def sdxl(self) -> Figures:
        """Updates of SDXL at the micro-batch that the plan says, at most 4."""
        pipeline = gpu_models.stable_diffusion_xl(self.scale.sizes, self.device, self.dtype)
        model = Encoded(StableDiffusionXL(pipeline, "sdxl", dtype=self.dtype, device=self.device))
        size = self._gradient(model, at_depth(self.config, 0, 1), 4, "auto").micro_batch_size
        return largest_that_fits(size, lambda size: self.updates(model, 1, size))

    def updates(self, model: Encoded, per_rollout: int, micro_batch: int) -> Figures:
        """Rates of updates of one micro-batch with k gradients a rollout, and the memory that they take."""
        shares = depths(self.config.sampling, per_rollout)
        runs = {d: self._gradient(model, at_depth(self.config, d, per_rollout), micro_batch) for d in shares}
        plan, made = plan_memory(self.config.memory, micro_batch, model.model), list[GlobalGradient]()

        def update(depth: int) -> None:
            made.append(runs[depth](len(made), model.null))

        first_s, spent, peak_gib = self._time(update, shares)
        per_second = micro_batch * per_rollout / spent
        tflop = self._tflop_per_gradient(model, per_rollout)
        figures: Figures = {
            "micro_batch": micro_batch,
            "gradients_per_rollout": per_rollout,
            "gradients_per_s": per_second,
            "rollouts_per_s": per_second / per_rollout,
            "tflop_per_gradient": tflop,
            "tflop_per_s": per_second * tflop,
            "share_of_peak": per_second * tflop / self.peak if self.peak else None,
            "peak_gib": peak_gib,
            "planned_gib": plan.needed(micro_batch) if self.device.type == "cuda" else None,
            "recomputes_activations": plan.saving,
            "first_s": first_s,
            "finite": sum(int(done.valid.sum()) for done in made) / sum(done.valid.numel() for done in made),
        }
        if self.refl_rate and isinstance(model.model, StableDiffusion):
            figures["times_refl"] = per_second / self.refl_rate
        return figures

    def refl(self) -> Figures:
        """The ReFL-style loop on networks of its own, at the best micro-batch or the largest below it that fits."""
        plain = PlainStableDiffusion(gpu_models.stable_diffusion(self.scale.sizes, self.device, self.dtype))
        size = self.micro_batch or self.scale.micro_batches[0]
        return largest_that_fits(size, lambda size: self._refl_at(plain, size))

    def _refl_at(self, plain: PlainStableDiffusion, size: int) -> Figures:
        sampling, model, prompts = self.config.sampling, self.eager.model, PROMPTS[:size]
        c, n, schedule = self.eager.prompts(prompts), self.eager.null, model.schedule(sampling.num_inference_steps)
        x_T = noise((size, *model.latent_shape), "refl").to(self.device)

        def update(depth: int) -> None:
            step = len(schedule) - 1 - depth
            refl_gradient(plain, self.reward, x_T, step, prompts, c, n, schedule, Guidance(sampling.guidance_scale))

        first_s, spent, peak_gib = self._time(update, depths(sampling, 1))
        self.refl_rate = size / spent
        return {
            "micro_batch": size,
            "gradients_per_rollout": 1,
            "gradients_per_s": self.refl_rate,
            "rollouts_per_s": self.refl_rate,
            "peak_gib": peak_gib,
            "first_s": first_s,
        }

    def _time(self, update: Callable[[int], None], shares: Mapping[int, float]) -> tuple[float, float, float | None]:
        """Seconds of the first update; of a later one, on average over the depths; its peak GiB beside what was there.

        The first one compiles, chooses kernels (with more memory than they take later) and is not counted.
        """
        before = self._allocated()
        first_s = self.seconds(lambda: update(next(iter(shares))))
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        spent = {depth: self.seconds(partial(update, depth)) for depth in shares}
        peak = (torch.cuda.max_memory_allocated(self.device) - before) / GIB if self.device.type == "cuda" else None
        return first_s, weighted_mean(spent, shares), peak

    def prompts(self) -> Figures:
        """Prompts per second by Algorithm 1 with one update and one seed: 16 together, and a few one by one."""
        together, alone = self._tuned(16, 16), self._tuned(self.scale.alone, 1)
        return {"prompts_per_s": together, "prompts_per_s_alone": alone, "times_one_by_one": together / alone}

    def _tuned(self, count: int, slots: int) -> float:
        """Prompts per second, the second time that as many are tuned."""
        settings = {"steps": 1, "patience": 2, "tune_seeds": 1, "gradients_per_rollout": 1, "held_out_patience": 0}
        config = with_values(
            self.config, {f"tuning.{name}": value for name, value in (settings | {"slots": slots}).items()}
        )
        eager = self.eager
        tuner = PromptTuner(config, eager.model, Rewards(self.reward), eager.null, eager.prompts)
        for tuned in tuner.tune(PROMPTS[:slots]):
            if tuned.error:
                raise RuntimeError(tuned.error)
        return count / self.seconds(lambda: list(tuner.tune(PROMPTS[:count])))

    def _best_micro_batch(self) -> tuple[int, dict[str, float]]:
        """The smallest size that none beats notably, up to the one that is planned; gradients per second by size."""
        depth = next(iter(depths(self.config.sampling, 1)))
        config, n = at_depth(self.config, depth, 1), self.eager.null
        planned = self._gradient(self.eager, config, max(self.scale.micro_batches), "auto").micro_batch_size
        tried: dict[int, float] = {}
        best_rate = 0.0
        for size in sorted({*(size for size in self.scale.micro_batches if size < planned), planned}):
            gradient = self._gradient(self.eager, config, size)
            try:
                gradient(0, n)  # what a size takes once: workspaces, the choice of kernels
                tried[size] = size / self.seconds(partial(gradient, 1, n))
            except UserError:  # it does not fit
                break
            if best_rate * NOTABLY > tried[size]:
                break  # what is larger gains nothing more
            best_rate = max(tried.values())
        if not tried:
            raise torch.OutOfMemoryError("not one sample fits")
        best = next(size for size, rate in tried.items() if NOTABLY * rate >= max(tried.values()))
        return best, {str(size): rate for size, rate in tried.items()}

    def _gradient(
        self, model: Encoded, config: RunConfig, batch: int, micro_batch: int | str | None = None
    ) -> GradientOfBatch:
        """Updates of one batch, computed at once unless a micro-batch is given."""
        settings = {
            "optim.batch_size": batch, "optim.timestep_groups": 1, "optim.micro_batch_size": micro_batch or batch
        }  # fmt: skip
        config = with_values(config, settings)
        compiles = "compiled" in vars(self) and model is self.compiled
        reward = self.compiled_reward if compiles else self.reward
        return GradientOfBatch(config, model.model, reward, PROMPTS, Workers(), model.prompts)

    def _tflop_per_gradient(self, model: Encoded, per_rollout: int) -> float:
        """10^12 floating-point operations, counted in updates of one sample; a compiled model's are the eager one's.

        They grow by the same number with each step of the rollout: two short rollouts tell those of any other.
        """
        if model is not self.eager and isinstance(model.model, StableDiffusion):
            return self._tflop_per_gradient(self.eager, per_rollout)
        if (known := self._tflop.get((model.model.name, per_rollout))) is not None:
            return known
        sampling = self.config.sampling
        deepest = sampling.num_inference_steps - per_rollout
        short, longer = (
            self._operations(self._gradient(model, at_depth(self.config, depth, per_rollout), 1), model.null)
            for depth in (deepest, deepest - 1)
        )
        shares = depths(sampling, per_rollout)
        mean = weighted_mean({depth: float(depth) for depth in shares}, shares)
        tflop = (short + (longer - short) * (deepest - mean)) / per_rollout / 1e12
        self._tflop[model.model.name, per_rollout] = tflop
        return tflop

    @staticmethod
    def _operations(gradient: GradientOfBatch, n: torch.Tensor) -> int:
        with FlopCounterMode(display=False) as counter:
            gradient(0, n)
        return counter.get_total_flops()

    def seconds(self, work: Callable[[], object]) -> float:
        """By the clock, from an idle device to an idle device."""
        self._wait()
        started = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0


def largest_that_fits(size: int, measure: Callable[[int], Figures]) -> Figures:
    """What is measured at a size, or at a half of it, and so on, where memory does not suffice."""
    while True:
        try:
            return measure(size)
        except (torch.OutOfMemoryError, UserError):  # the second is what a `GradientOfBatch` makes of the first
            if size == 1:
                raise
        size //= 2
        free_memory()


def _repeat(work: Callable[[], object], times: int) -> None:
    for _ in range(times):
        work()


def parts_of(bench: Bench, full: bool) -> list[Part]:
    """What is measured, what matters most first; the seconds are those of a full-sized run on a large GPU."""
    parts = [
        Part("peak", "peak: matrix products", 10, bench.find_peak),
        Part("sd15_eager_k1", "SD1.5 + ViT-H, eager, k = 1", 60, bench.first_update),
        Part("refl", "SD1.5 + ViT-H, ReFL-style loop", 30, bench.refl),
        Part("sd15_eager_k4", "SD1.5 + ViT-H, eager, k = 4", 30, lambda: bench.sd15(bench.eager, 4)),
        Part("prompts", "SD1.5 + ViT-H, 16 prompts tuned together", 40, bench.prompts),
        Part("sdxl", "SDXL + ViT-H, one update, k = 1", 40, bench.sdxl),
        Part("sd15_compiled_k4", "SD1.5 + ViT-H, compiled, k = 4", 100, lambda: bench.sd15(bench.compiled, 4)),
        Part("sd15_compiled_k1", "SD1.5 + ViT-H, compiled, k = 1", 30, lambda: bench.sd15(bench.compiled, 1)),
        Part("sd15_eager_one", "SD1.5 + ViT-H, eager, one sample", 15, lambda: bench.one_at_a_time(bench.eager)),
        Part(
            "sd15_replayed_one", "SD1.5 + ViT-H, compiled, CUDA graphs, one sample", 60,
            lambda: bench.one_at_a_time(bench.compiled),
        ),
    ]  # fmt: skip
    return parts if full else [Part(part.name, part.about, 0, part.run) for part in parts]


def best(parts: dict[str, Figures], figure: str, names: tuple[str, ...]) -> float | None:
    """The largest of a figure among the parts that have it."""
    found = [parts[name][figure] for name in names if parts[name].get(figure) is not None]
    return max(found, default=None)


SD15 = tuple(f"sd15_{way}_k{k}" for way in ("eager", "compiled") for k in (1, 4))
GOALS = {
    "share_of_peak": Goal("SD1.5 + ViT-H, share of the measured peak", 0.5, lambda p: best(p, "share_of_peak", SD15)),
    "times_refl": Goal(
        "SD1.5 + ViT-H at k = 4, times the ReFL-style loop", 3.0,
        lambda p: best(p, "times_refl", ("sd15_eager_k4", "sd15_compiled_k4")),
    ),
    "times_one_by_one": Goal(
        "16 prompts together, times one by one", 8.0, lambda p: best(p, "times_one_by_one", ("prompts",))
    ),
}  # fmt: skip


def run(output: Path, device: torch.device, seconds: float, *, tiny: bool) -> int:
    """Measure everything; returns the exit code, 0 unless a part failed."""
    torch.backends.cudnn.benchmark = True
    if tiny:  # compiling for a CPU takes minutes
        torch.compiler.set_stance("force_eager")
    bench = Bench(TINY if tiny else FULL, device)
    on_gpu = device.type == "cuda"
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "memory_gib": round(torch.cuda.get_device_properties(device).total_memory / GIB, 1) if on_gpu else None,
        "dtype": str(bench.dtype).removeprefix("torch."),
        "sizes": "tiny: the figures say nothing" if tiny else "true",
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    parts = parts_of(bench, full=not tiny)
    report = Report(output, facts, parts, GOALS)
    sound = run_parts(report, parts, seconds, say)
    say(report.markdown())
    return 0 if sound else 1
