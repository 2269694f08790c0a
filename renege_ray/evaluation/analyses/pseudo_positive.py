"""What a negative embedding looks like (the paper's Figure 6): it takes the prompt's place.

    without guidance        e = e_p                     p: null, handwritten, or learned, in the place of c
    guided away from null   e = e_0 + w (e_p - e_0)

Each column has the same initial noise.
"""

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

from renege_ray.config.sampling_flags import positive
from renege_ray.evaluation.analyses.base import Findings, Subject
from renege_ray.method.guidance import Guidance
from renege_ray.method.rollout import rollout
from renege_ray.method.schedule import Schedule
from renege_ray.models.base import TextToImage
from renege_ray.output.image_statistics import ImageStatistics
from renege_ray.output.pictures import image_grid
from renege_ray.sampling.images import initial_noise

NUM_IMAGES = 8


@torch.no_grad()
def draw_as_prompt(
    model: TextToImage, embedding: Tensor, seeds: Sequence[int], schedule: Schedule, guidance: Guidance
) -> Tensor:
    """Images (S, 3, H, W) in [0, 1] of an embedding (1, L, D) in the place of the prompt, guided away from null."""
    x_T = torch.cat([initial_noise(seed, model.latent_shape) for seed in seeds]).to(model.device)
    prompt = embedding.to(model.device).expand(len(seeds), -1, -1)
    null = model.null_embedding().to(model.device)
    return model.decode(rollout(model.denoise, x_T, prompt, null, schedule, guidance).latents)


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of this analysis alone."""
    about = f"columns (default: {NUM_IMAGES}); the seeds are SEED, SEED + 1, ..."
    command.add_argument("--num-images", type=positive, default=NUM_IMAGES, metavar="N", help=about)


def analyse(subject: Subject) -> Findings:
    """Figure 6 of an embedding: a grid, and two plain figures of its rows."""
    sampling = subject.config.sampling
    seeds = [subject.config.seed + k for k in range(subject.options.num_images)]
    schedule = subject.model.schedule(sampling.num_inference_steps)
    statistics = ImageStatistics()
    grid: dict[str, Tensor] = {}
    rows: list[list[str]] = []
    metrics: dict[str, float] = {}
    guided = subject.model.guidance(sampling, schedule)
    ways = {"no guidance": Guidance(1.0), f"w = {sampling.guidance_scale:g}": guided}
    for how, guidance in ways.items():
        plain = how == "no guidance"
        for name, embedding in subject.negatives().items():
            if not plain and name == "null":
                continue  # guided away from itself, it is the same
            images = draw_as_prompt(subject.model, embedding, seeds, schedule, guidance).float().cpu()
            grid[f"{name}\n{how}"] = images
            figures = {key: float(values.mean()) for key, values in statistics.score(images, [name]).items()}
            rows.append([name, how, *(f"{value:.4f}" for value in figures.values())])
            key = f"pseudo_positive/{name}/{'plain' if plain else 'guided'}"
            metrics |= {f"{key}/{statistic}": value for statistic, value in figures.items()}
    picture = image_grid(grid, [f"seed {seed}" for seed in seeds], "negative embeddings in the place of the prompt")
    words = f"means over {len(seeds)} images; handwritten is {subject.handwritten!r}"
    return Findings(
        ["in place of the prompt", "guidance", *statistics.names], rows, words, metrics, {"pseudo_positive": picture}
    )
