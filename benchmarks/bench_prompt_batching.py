"""Prompts tuned as one batch against one by one: prompts per second, the same results, and how full slots are.

    python -m benchmarks.bench_prompt_batching [PROMPTS]

One batch of 16 and 16 one by one run Algorithm 1 of the preset `toy` with few updates and no patience, so that both
do the same work. The slots are counted over PROMPTS prompts (500), in chunks as the job makes them and with the
preset's patience; there, two sampler steps and one seed have to do.
"""

import os
import sys
import time

import torch

from renege_ray.config.run import RunConfig, load_preset, parse_config, to_mapping
from renege_ray.models.base import TextToImage
from renege_ray.models.load import load_model
from renege_ray.models.toy.captions import prompts as toy_prompts
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.run_rewards import Rewards
from renege_ray.tuning.tune import PromptTuner, TunedPrompt

AIM_RATE, AIM_FILLED = 1.5, 0.9
BATCH, UPDATES, ROUNDS = 16, 3, 2


def configure(sampler_steps: int | None = None, **tuning: int) -> RunConfig:
    """The preset with other settings of tuning, and with so many sampler steps."""
    settings = to_mapping(load_preset("toy"))
    settings["tuning"] |= tuning
    if sampler_steps is not None:
        settings["sampling"] |= {"num_inference_steps": sampler_steps, "gradient_steps": [0, sampler_steps]}
    return parse_config(settings)


def make_tuner(config: RunConfig, model: TextToImage, rewards: Rewards) -> PromptTuner:
    """A tuner that starts from the null embedding."""
    encoded = EncodedPrompts(model)
    return PromptTuner(config, model, rewards, encoded([""]), encoded)


def largest_difference(first: dict[str, TunedPrompt], second: dict[str, TunedPrompt]) -> float:
    """Between the rewards of all candidates of all prompts."""
    pairs = ((a, b) for text in first for a, b in zip(first[text].rewards, second[text].rewards, strict=True))
    return max(abs(a - b) for a, b in pairs)


def compare(model: TextToImage, rewards: Rewards) -> float:
    """Prompts per second, together / one by one."""
    texts = toy_prompts("held_out")[:BATCH]
    seconds = {"together": 0.0, "one by one": 0.0}
    found: dict[str, dict[str, TunedPrompt]] = {name: {} for name in seconds}
    for _ in range(ROUNDS):  # taking turns, so that what the machine does meanwhile meets both
        for name, slots in (("together", BATCH), ("one by one", 1)):
            config = configure(slots=slots, steps=UPDATES, patience=UPDATES + 1)
            tuner = make_tuner(config, model, rewards)
            started = time.perf_counter()
            found[name] = {tuned.prompt: tuned for tuned in tuner.tune(texts)}
            seconds[name] += time.perf_counter() - started
    rates = {name: ROUNDS * BATCH / spent for name, spent in seconds.items()}
    ratio = rates["together"] / rates["one by one"]
    difference = largest_difference(found["together"], found["one by one"])
    print(f"{BATCH} together {rates['together']:.2f}, one by one {rates['one by one']:.2f} prompts/s; rewards differ")
    print(f"by at most {difference:.1e} (aim: 1e-4); ratio {ratio:.2f} (aim: {AIM_RATE})")
    return ratio


def filled(model: TextToImage, rewards: Rewards, prompts: int) -> float:
    """The share of the slots that were in use over a run of so many prompts."""
    from renege_ray.cluster.pipelines.tuning_job import CHUNK_ROUNDS

    config = configure(sampler_steps=2, tune_seeds=1)
    tuner = make_tuner(config, model, rewards)
    texts, size = toy_prompts("train")[:prompts], CHUNK_ROUNDS * config.tuning.slots
    for start in range(0, len(texts), size):
        list(tuner.tune(texts[start : start + size]))
    share = tuner.slot_steps_used / tuner.slot_steps
    print(f"slots in use over {prompts} prompts in chunks of {size}: {share:.1%} (aim: {AIM_FILLED:.0%})")
    return share


def main(prompts: int = 500) -> float:
    """Print everything; returns the ratio of the rates."""
    torch.set_num_threads(min(2, len(os.sched_getaffinity(0))))
    config = load_preset("toy")
    model, rewards = load_model(config.model), Rewards.load(config.rewards)
    ratio = compare(model, rewards)
    filled(model, rewards, prompts)
    return ratio


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
