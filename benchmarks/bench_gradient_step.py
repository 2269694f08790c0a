"""The exact gradient step against the naive one: wall time and floating-point operations.

    python -m benchmarks.bench_gradient_step

Exact: frozen weights, the prompt's branch without a graph, no recomputation. Naive (`benchmarks.naive`): both
branches with a graph, gradients of all weights, gradient checkpointing. The gradient of n is the same.
"""

import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.naive import naive_gradient
from renege_ray.method.guidance import Guidance
from renege_ray.method.objective import reward_of_prediction
from renege_ray.models.families.stable_diffusion import StableDiffusion
from renege_ray.models.loading.hub import read_pipeline
from renege_ray.models.toy import FIRST_MODEL, GUIDANCE_SCALE, NUM_INFERENCE_STEPS, PIPELINE_FOLDER
from renege_ray.rewards.load import load_rewards
from renege_ray.sampling.draws import noise

AIM = 2.0
ROUNDS = 15
BATCH = 8


def steps_to_compare() -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """The exact and the naive step of the embedded model, at the same latents: each returns dJ / dn."""
    model = StableDiffusion(read_pipeline(PIPELINE_FOLDER, FIRST_MODEL), "toy")
    reward = load_rewards(["toy"])["toy"]
    prompts = [f"a big red star on a {background} background" for background in ("teal", "black")] * (BATCH // 2)
    c, n = model.encode_prompts(prompts), model.encode_prompts([""])
    x_t = noise((BATCH, *model.latent_shape), "benchmark")
    schedule, step = model.schedule(NUM_INFERENCE_STEPS), NUM_INFERENCE_STEPS * 2 // 3

    def exact() -> Tensor:
        leaf = n.clone().requires_grad_()
        rewards = reward_of_prediction(
            model.denoise, model.decode, reward, x_t, step, prompts, c, leaf, schedule, Guidance(GUIDANCE_SCALE)
        )
        (gradient,) = torch.autograd.grad(rewards.sum(), leaf)
        return gradient

    def naive() -> Tensor:
        return naive_gradient(model, reward, x_t, step, prompts, c, n, schedule, Guidance(GUIDANCE_SCALE))

    return exact, naive


def flops(step: Callable[[], Tensor]) -> float:
    """Floating-point operations of one step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def main() -> float:
    """Print both ratios, naive / exact; returns that of the wall times."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    exact, naive = steps_to_compare()
    difference = (exact() - naive()).norm() / naive().norm()
    times: dict[str, list[float]] = {"exact": [], "naive": []}
    for _ in range(ROUNDS):  # taking turns, so that what the machine does meanwhile meets both
        for name, step in (("exact", exact), ("naive", naive)):
            started = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    wall, work = medians["naive"] / medians["exact"], flops(naive) / flops(exact)
    print(f"exact {1e3 * medians['exact']:.1f} ms, naive {1e3 * medians['naive']:.1f} ms for {BATCH} samples")
    print(f"gradients differ by {difference:.1e} (relative)")
    print(f"naive / exact: {wall:.2f} in wall time (aim: {AIM}), {work:.2f} in floating-point operations")
    return wall


if __name__ == "__main__":
    main()
