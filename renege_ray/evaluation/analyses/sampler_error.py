"""How well one step predicts the end (the paper's Figure 3): DDIM's paths against DDPM's.

    error(t) = rms over latents of  x_0(x_t) - z        x_0(x_t)   Eq. 6 at step t of a path
                                                        z          where the whole path ends

Rewards are given to x_0(x_t), so the nearer it is to z, the earlier a gradient may be taken. Both samplers start from
the same noise; DDIM's path is deterministic, DDPM's is an ancestral one with fresh noise at each step.
"""

import argparse
import math
from collections.abc import Sequence
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from renege_ray.config.run import SamplingConfig
from renege_ray.config.sampling_flags import positive
from renege_ray.evaluation.analyses.base import Findings, Subject
from renege_ray.method.rollout import both_branches, guided_x0_and_noise
from renege_ray.method.schedule import Schedule
from renege_ray.models.base import TextToImage
from renege_ray.output.pictures import render
from renege_ray.output.progress import counted
from renege_ray.output.statistics import Z_95
from renege_ray.sampling.draws import noise
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.images import Pair, initial_noise

Sampler = Literal["DDIM", "DDPM"]
SAMPLERS: tuple[Sampler, ...] = ("DDIM", "DDPM")
NUM_IMAGES = 64


@torch.no_grad()
def prediction_errors(
    model: TextToImage,
    embedding: Tensor,
    pairs: Sequence[Pair],
    encoded: EncodedPrompts,
    sampling: SamplingConfig,
    sampler: Sampler,
) -> Tensor:
    """error(t) of B paths at each step, (B, T) float64 on the CPU; the fresh noise of a path hangs on its pair alone.

    Args:
        model: the model.
        embedding: n, (1, L, D).
        pairs: prompts and seeds.
        encoded: the prompts' embeddings.
        sampling: steps and guidance.
        sampler: how to go from one step to the next.
    """
    schedule = model.schedule(sampling.num_inference_steps)
    guidance = model.guidance(sampling, schedule)
    embeds = both_branches(embedding.to(model.device), encoded([pair.prompt for pair in pairs]))
    x = torch.cat([initial_noise(pair.seed, model.latent_shape) for pair in pairs]).to(model.device)
    predictions = []
    for i in range(len(schedule)):
        x0, e = guided_x0_and_noise(model.denoise, x, i, embeds, schedule, guidance)
        predictions.append(x0)
        if sampler == "DDIM":
            x = schedule.step(x0, e, i)
        else:
            fresh = torch.stack([noise(model.latent_shape, pair.seed, "ddpm", i) for pair in pairs])
            x = schedule.ancestral_step(x, x0, fresh.to(x), i)
    return torch.stack([_rms(x0 - x) for x0 in predictions], dim=1)


def _rms(difference: Tensor) -> Tensor:
    return difference.cpu().double().square().flatten(1).mean(dim=1).sqrt()


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of this analysis alone."""
    about = f"images (default: {NUM_IMAGES}), all of other prompts or seeds"
    command.add_argument("--num-images", type=positive, default=NUM_IMAGES, metavar="N", help=about)


def analyse(subject: Subject) -> Findings:
    """Figure 3 of a model: both curves as a table and a figure."""
    pairs = subject.pairs(subject.options.num_images)
    size = subject.config.validation.batch_size
    chunks = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    work = [(chunk, sampler) for chunk in chunks for sampler in SAMPLERS]
    parts: dict[Sampler, list[Tensor]] = {sampler: [] for sampler in SAMPLERS}
    sampling = subject.config.sampling
    for chunk, sampler in counted(work, "batch", subject.say):
        parts[sampler].append(
            prediction_errors(subject.model, subject.embedding, chunk, subject.encoded, sampling, sampler)
        )
    errors = {sampler: torch.cat(found) for sampler, found in parts.items()}
    schedule = subject.model.schedule(sampling.num_inference_steps)
    curves = {sampler: (values.mean(dim=0), _half_width(values)) for sampler, values in errors.items()}
    difference = errors["DDPM"] - errors["DDIM"]  # of each image: the pairs are the same

    header = ["step", "t", *(name for sampler in SAMPLERS for name in (sampler, "+- 95 %")), "DDPM - DDIM", "+- 95 %"]
    gains = difference.mean(dim=0), _half_width(difference)
    columns = [column.tolist() for pair in (*curves.values(), gains) for column in pair]
    rows = [
        [str(i), f"{schedule.timesteps[i].item():g}", *(f"{column[i]:.4f}" for column in columns)]
        for i in range(len(schedule))
    ]
    lower = int((difference.mean(dim=0) > 0).sum())
    means = {sampler: float(values.mean()) for sampler, values in errors.items()}
    words = (
        f"error of x_0 predicted from x_t, {len(pairs)} images: mean over all steps DDIM {means['DDIM']:.4f}, "
        f"DDPM {means['DDPM']:.4f}; DDIM is nearer at {lower} of {len(schedule)} steps"
    )
    metrics = {f"sampler_error/{sampler.lower()}/mean": mean for sampler, mean in means.items()}
    metrics |= {"sampler_error/steps": float(len(schedule)), "sampler_error/steps_where_ddim_is_nearer": float(lower)}
    return Findings(header, rows, words, metrics, {"sampler_error": draw(schedule, curves, sampling)})


def _half_width(values: Tensor) -> Tensor:
    """Of the 95 % interval of the mean over the images, (T,); NaN for one image."""
    if len(values) < 2:
        return torch.full(values.shape[1:], math.nan, dtype=values.dtype)
    return Z_95 * values.std(dim=0) / math.sqrt(len(values))


def draw(schedule: Schedule, curves: dict[Sampler, tuple[Tensor, Tensor]], sampling: SamplingConfig) -> Image.Image:
    """Both errors over t, with their intervals, and the steps that gradients are taken at."""
    from matplotlib.figure import Figure

    t = schedule.timesteps.tolist()
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    first, last = sampling.gradient_steps  # counted from the clean end
    if last - first > 1:
        axes.axvspan(t[-1 - first], t[-last], color="0.92", label="steps that gradients are taken at")
    for sampler, (mean, half) in curves.items():
        (line,) = axes.plot(t, mean, marker="o", markersize=3, label=sampler)
        axes.fill_between(t, mean - half, mean + half, color=line.get_color(), alpha=0.25, linewidth=0)
    axes.set(
        title="x$_0$ predicted from x$_t$ against the end of the path (95 % over images)",
        xlabel="timestep t (0: clean)",
        ylabel="root mean square error of the latents",
        ylim=(0, None),
    )
    axes.legend()
    return render(figure)
