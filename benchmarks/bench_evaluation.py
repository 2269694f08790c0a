"""Evaluation against a bare batched diffusers loop over the same images: images per second, the same images, memory.

    python -m benchmarks.bench_evaluation [IMAGES]

The loop does nothing but call the pipeline, a batch at a time. The evaluation's rows hold scores and kept images, too;
they are made by what runs in a worker, without Ray, and take turns with the loop. Both have one thread, and what counts
is their computing time, so that other work on the machine does not. Then 1,000 images (IMAGES) are evaluated in this
process; what they need beyond what the first 200 needed is what grows with their number.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from renege_ray.config.run import ModelConfig, RunConfig, load_preset, parse_config, to_mapping
from renege_ray.embeddings.names import ComparedNegative, parse_methods
from renege_ray.evaluation.images import ImageMaker, Loaders
from renege_ray.evaluation.inputs import scores_of
from renege_ray.evaluation.table import ImageToMake
from renege_ray.models.base import TextToImage
from renege_ray.models.load import load_model
from renege_ray.models.toy.captions import prompts as toy_prompts
from renege_ray.output.image_statistics import ImageStatistics
from renege_ray.prompts.refine import load_refiner
from renege_ray.prompts.sources import prompt_id
from renege_ray.rewards.load import load_scorers
from renege_ray.sampling.images import initial_noise
from renege_ray.sampling.negative import Negative

AIM = 0.9
BATCHES, ROUNDS = 2, 3
NEGATIVE = ComparedNegative(parse_methods(["text=blurry"])[0], ModelConfig(), Negative("blurry"), key="0" * 16)


def configure(**evaluation: object) -> RunConfig:
    """The preset with other settings of the evaluation."""
    settings = to_mapping(load_preset("toy"))
    settings["evaluation"] |= evaluation
    return parse_config(settings)


def items(count: int) -> list[ImageToMake]:
    """Images of held-out prompts."""
    texts = toy_prompts("held_out")
    return [
        ImageToMake(prompt_id(text), text, "", i, i // len(texts), 0, NEGATIVE.key)
        for i in range(count)
        for text in [texts[i % len(texts)]]
    ]


def make_maker(config: RunConfig, model: TextToImage, folder: Path) -> ImageMaker:
    """What a worker has."""
    scorers = [*load_scorers(scores_of(config).all).values(), ImageStatistics()]

    def keep(path: str, data: bytes) -> None:
        (folder / Path(path).name).write_bytes(data)

    return ImageMaker(config, [NEGATIVE], scorers, Loaders(lambda wanted: model, load_refiner), keep)


def bare_loop(
    pipeline: object, config: RunConfig, images: Sequence[ImageToMake], shape: tuple[int, int, int]
) -> Tensor:
    """The same images by diffusers alone, (B, H, W, 3) of the last batch."""
    size, made = config.evaluation.batch_size, None
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        made = pipeline(  # type: ignore[operator]
            [item.prompt for item in batch],
            negative_prompt=["blurry"] * len(batch),
            latents=torch.cat([initial_noise(item.seed, shape) for item in batch]),
            num_inference_steps=config.sampling.num_inference_steps,
            guidance_scale=config.sampling.guidance_scale,
            output_type="pt",
            height=32,
            width=32,
        ).images
    assert isinstance(made, Tensor)
    return made


def compare(folder: Path) -> float:
    """Images per second, evaluation / bare loop."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    from renege_ray.models.toy import PIPELINE_FOLDER

    config = configure()
    # The user's own pipeline, as it is loaded: nothing of ours has touched it.
    pipeline = StableDiffusionPipeline.from_pretrained(PIPELINE_FOLDER, safety_checker=None, dtype=torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    model = load_model(config.model)
    maker = make_maker(config, model, folder)
    images = items(BATCHES * config.evaluation.batch_size)
    list(maker.rows(images[:2], lambda batch: None))
    bare_loop(pipeline, config, images[:2], model.latent_shape)
    seconds = {"bare loop": 0.0, "evaluation": 0.0}
    for _ in range(ROUNDS):  # taking turns, so that what the machine does meanwhile meets both
        started = time.process_time()
        bare_loop(pipeline, config, images, model.latent_shape)
        seconds["bare loop"] += time.process_time() - started
        started = time.process_time()
        list(maker.rows(images, lambda batch: None))
        seconds["evaluation"] += time.process_time() - started
    rates = {name: ROUNDS * len(images) / spent for name, spent in seconds.items()}
    ratio = rates["evaluation"] / rates["bare loop"]
    print(f"evaluation {rates['evaluation']:.2f}, bare loop {rates['bare loop']:.2f} images/s; ", end="")
    print(f"ratio {ratio:.2f} (aim: {AIM})")
    return ratio


def watch_memory(folder: Path, count: int) -> float:
    """MiB by which the peak of the process's memory grows from 200 images to so many."""
    config = configure(batch_size=100)
    few_steps = to_mapping(config)
    few_steps["sampling"] |= {"num_inference_steps": 2, "gradient_steps": [0, 1]}
    few_steps["optim"]["gradients_per_rollout"] = few_steps["tuning"]["gradients_per_rollout"] = 1
    config = parse_config(few_steps)
    maker = make_maker(config, load_model(config.model), folder)
    images = items(count)
    peaks = []
    for part in (images[:200], images):
        for _ in maker.rows(part, lambda batch: None):
            pass
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
    grown = peaks[1] - peaks[0]
    all_of_them = count * 3 * 32 * 32 * 4 / 2**20
    print(f"{count} images need {grown:.1f} MiB more than 200 (the images alone are {all_of_them:.1f} MiB)")
    return grown


def main(images: int = 1000) -> float:
    """Print everything; returns the ratio of the rates."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        ratio = compare(Path(folder))
        watch_memory(Path(folder), images)
    return ratio


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
