"""The whole loop against a ReFL-style one: sample gradients per second, denoiser forwards and FLOPs per gradient.

    python -m benchmarks.bench_refl_loop [REPETITIONS]

Both compute updates of the preset `toy` (its batch, sampler steps, guidance, range of gradient steps and reward). Ours
takes k = 1, 2, 4 gradients from a rollout; the ReFL-style loop (`benchmarks.refl`) takes one, without gradient
checkpointing, which would save it memory and slow it down. On one thread the computing time counts, so that other work
on the machine does little; on all cores the clock, which says nothing on a machine that has other work.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.refl import PlainStableDiffusion, at_depth, counted_rows, depths, refl_gradient, weighted_mean
from renege_ray.config.run import RunConfig, load_preset
from renege_ray.method.guidance import Guidance
from renege_ray.models.load import load_model
from renege_ray.models.loading.hub import read_pipeline
from renege_ray.models.toy import FIRST_MODEL, PIPELINE_FOLDER
from renege_ray.models.toy.captions import prompts as toy_prompts
from renege_ray.rewards.load import load_rewards
from renege_ray.rewards.weighted import WeightedReward
from renege_ray.sampling.draws import noise
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.workers import Workers
from renege_ray.training.gradient import GradientOfBatch

AIMS = {1: 1.0, 2: 2.0, 4: 3.0}  # gradients per second, ours / the ReFL-style loop's, by k
AIM_FLOPS = 0.85  # FLOPs per gradient at k = 4, of those before
FLOPS_BEFORE = 2.921e9  # what `count` found at k = 4 at commit c734eba
REFL = 0  # stands for k in what is keyed by it


@dataclass(frozen=True)
class Loop:
    """One way to compute updates."""

    name: str
    updates: dict[int, Callable[[], object]]
    """{depth: an update whose rollouts go to that step, counted from the clean end}."""
    shares: dict[int, float]
    """Of the depths; see `depths`."""
    gradients: int
    """Of samples, in an update."""
    denoiser: nn.Module


def make_loops(config: RunConfig) -> dict[int, Loop]:
    """{k: ours with k gradients a rollout, REFL: the ReFL-style loop}."""
    reward = WeightedReward({reward: 1.0 for reward in load_rewards(config.rewards.train).values()})
    model, plain = load_model(config.model), PlainStableDiffusion(read_pipeline(PIPELINE_FOLDER, FIRST_MODEL))
    encoded, batch = EncodedPrompts(model), config.optim.batch_size
    prompts = toy_prompts("train")[:batch]
    n, c = encoded([""]), encoded(prompts)
    schedule, x_T = model.schedule(config.sampling.num_inference_steps), noise((batch, *model.latent_shape), "refl")

    def ours(depth: int, per_rollout: int) -> Callable[[], object]:
        settings = at_depth(config, depth, per_rollout)
        gradient = GradientOfBatch(settings, model, reward, prompts, Workers(), encoded)
        return lambda: gradient(0, n)

    def refl(depth: int) -> Callable[[], object]:
        step, w = len(schedule) - 1 - depth, config.sampling.guidance_scale
        return lambda: refl_gradient(plain, reward, x_T, step, prompts, c, n, schedule, Guidance(w))

    loops = {}
    for k in AIMS:
        shares = depths(config.sampling, k)
        updates = {depth: ours(depth, k) for depth in shares}
        loops[k] = Loop(f"k = {k}", updates, shares, k * batch, model.denoiser)
    shares = depths(config.sampling, 1)
    loops[REFL] = Loop("ReFL-style", {depth: refl(depth) for depth in shares}, shares, batch, plain.pipeline.unet)
    return loops


def count(loop: Loop) -> tuple[float, float]:
    """Rows that go through the denoiser, and floating-point operations; both per gradient."""
    rows: dict[int, float] = {}
    operations: dict[int, float] = {}
    for depth, update in loop.updates.items():
        with counted_rows(loop.denoiser) as counted, FlopCounterMode(display=False) as counter:
            update()
        rows[depth], operations[depth] = sum(counted), counter.get_total_flops()
    return weighted_mean(rows, loop.shares) / loop.gradients, weighted_mean(operations, loop.shares) / loop.gradients


def seconds(loop: Loop, clock: Callable[[], float]) -> float:
    """Per gradient."""
    spent = {}
    for depth, update in loop.updates.items():
        started = clock()
        update()
        spent[depth] = clock() - started
    return weighted_mean(spent, loop.shares) / loop.gradients


def compare(loops: dict[int, Loop], threads: int, repetitions: int) -> dict[int, float]:
    """{k: gradients per second of ours / of the ReFL-style loop}; prints them, and each repetition's."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    rounds = []
    for _ in range(repetitions):  # taking turns, so that what the machine does meanwhile meets all
        rounds.append({k: seconds(loop, clock) for k, loop in loops.items()})
    total = {k: sum(spent[k] for spent in rounds) for k in loops}
    print(f"{threads} thread(s): {loops[REFL].name} {repetitions / total[REFL]:.2f} gradients/s")
    for k, aim in AIMS.items():
        each = ", ".join(f"{spent[REFL] / spent[k]:.2f}" for spent in rounds)
        rate, ratio = repetitions / total[k], total[REFL] / total[k]
        print(f"  k = {k}: {rate:.2f} gradients/s, {ratio:.2f} times ({each}; aim: {aim})", flush=True)
    return {k: total[REFL] / total[k] for k in AIMS}


def main(repetitions: int = 2) -> dict[int, float]:
    """Print everything; returns the ratios {k: ...} on one thread."""
    torch.set_num_threads(1)
    loops = make_loops(load_preset("toy"))
    for k, loop in loops.items():
        forwards, flops = count(loop)
        print(f"{loop.name}: {forwards:.2f} denoiser forwards, {flops / 1e9:.3f} GFLOP per gradient", flush=True)
        if k == 4:
            print(f"  {flops / FLOPS_BEFORE:.2f} of the FLOPs at commit c734eba (aim: at most {AIM_FLOPS})")
    found = {threads: compare(loops, threads, repetitions) for threads in (1, len(os.sched_getaffinity(0)))}
    return found[1]


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
