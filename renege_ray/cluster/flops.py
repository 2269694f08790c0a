"""The floating-point operations of a run, and the hours that they are on a GPU; nothing heavy is loaded.

Counted on torch's meta device by the models' configuration files. For SD1.5 at 512x512 that is, in GFLOP an image:
denoiser 803 and, back to the negative alone, 866; decoder 2,515 and 2,549. Rewards are in their catalogue. Text
encoders are left out: they read a prompt once.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from renege_ray.cluster.cost import Cost
from renege_ray.config.gpus import ASSUMED_EFFICIENCY, Gpu
from renege_ray.config.run import RunConfig
from renege_ray.models.families.registry import check_family
from renege_ray.models.frozen_pipeline import FrozenPipeline, shape_of
from renege_ray.models.hardware import fastest_dtype
from renege_ray.models.loading.hub import find_folder
from renege_ray.models.loading.user_errors import user_errors
from renege_ray.models.text_encoder import read_encoders
from renege_ray.rewards.catalogue import REWARDS, VIDEO_METRICS, full_name

BothWays = tuple[float, float]
"""Floating-point operations forward, and backward to the input."""


@dataclass(frozen=True)
class Parts:
    """Floating-point operations of the parts of the models."""

    denoiser: float
    decoder: float
    rewards: float

    @property
    def total(self) -> float:
        """Of all parts."""
        return self.denoiser + self.decoder + self.rewards


@dataclass(frozen=True)
class ShapedModel:
    """A model of which only shapes and operations are known."""

    model: FrozenPipeline
    decoder: Any
    """The VAE of diffusers."""
    folder: Path

    @classmethod
    def read(cls, config: RunConfig) -> "ShapedModel":
        """The model in a folder, or among the Hub's files, by its configuration files.

        Raises:
            UserError: it cannot be found, or a configuration file is missing or damaged.
        """
        folder: Path = find_folder(config.model)
        family = check_family(folder, config.model.id)
        with user_errors(f"model {config.model.id!r}: its configuration", "export or download it again"):
            model = family.without_weights(folder, **family.options(config.model))
            return cls(model, shape_of(folder / "vae"), folder)

    @property
    def frames(self) -> int:
        """Of a video; 1 of an image."""
        return prod(self.model.latent_shape[1:-2])

    def numbers(self) -> int:
        """Of the weights of the networks that compute on images."""
        controlnet = getattr(self.model.pipeline, "controlnet", torch.nn.Identity())
        return _numbers(self.model.denoiser, self.decoder, controlnet)

    def encoder_numbers(self) -> int:
        """Of the weights of the text encoders, which are on an accelerator only while they read prompts."""
        return _numbers(*read_encoders(self.folder))

    def denoiser_flops(self) -> BothWays:
        """Of one image, or video, in one branch of the guidance; back to the negative."""
        with torch.device("meta"):
            latents, timestep = torch.empty(1, *self.model.latent_shape), torch.empty((), dtype=torch.int64)
            return _both_ways(
                lambda embeds: self.model.denoise(latents, timestep, embeds), (1, *self.model.embedding_shape)
            )

    def decoder_flops(self) -> BothWays:
        """Of one image, or of all frames of a video."""
        latents = (1, self.model.latent_shape[0], *self.model.latent_shape[-2:])
        forward, backward = _both_ways(lambda x: self.decoder.decode(x, return_dict=False)[0], latents)
        return self.frames * forward, self.frames * backward


def _numbers(*networks: torch.nn.Module) -> int:
    return sum(weight.numel() for network in networks for weight in network.parameters())


def reward_flops(names: Iterable[str], frames: int = 1) -> BothWays:
    """Of one image, or video, that all of these rewards see; what is not in the catalogue is small."""
    known = REWARDS | VIDEO_METRICS
    counted = [known[full_name(name)].gflop for name in names if full_name(name) in known]
    return sum(there for there, _ in counted) * frames * 1e9, sum(back for _, back in counted) * frames * 1e9


def flops_of(model: ShapedModel, cost: Cost, trained: Iterable[str], judged: Iterable[str]) -> Parts:
    """Of a run.

    Args:
        model: by its shapes.
        cost: how often the parts are run.
        trained: rewards that gradients are taken of.
        judged: rewards and judges that look at all other images.
    """
    denoiser, decoder = model.denoiser_flops(), model.decoder_flops()
    ascended, (looked, _) = reward_flops(trained, model.frames), reward_flops(judged, model.frames)
    gradients = cost.decode_backward
    return Parts(
        denoiser=denoiser[0] * cost.denoiser_forward + denoiser[1] * cost.denoiser_backward,
        decoder=decoder[0] * cost.decode_forward + decoder[1] * gradients,
        rewards=sum(ascended) * gradients + looked * (cost.rewarded_images - gradients),
    )


def hours_on(parts: Parts, gpu: Gpu, dtype: str) -> float:
    """Hours of one GPU.

    Args:
        parts: of the run.
        gpu: which one.
        dtype: as `model.dtype`. Where that is float16, decoder and rewards compute in float32.
    """
    names = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    chosen = names.get(dtype) or fastest_dtype("cuda", gpu.capability)
    peak = gpu.float32_peak if chosen == torch.float32 else gpu.peak
    others = gpu.peak if chosen == torch.bfloat16 else gpu.float32_peak
    seconds = (parts.denoiser / peak + (parts.decoder + parts.rewards) / others) / 1e12
    return seconds / (gpu.measured or ASSUMED_EFFICIENCY) / 3600


def describe_hours(parts: Parts, gpu: Gpu, dtype: str) -> str:
    """The hours in a line that says where they come from."""
    hours = hours_on(parts, gpu, dtype)
    shown = f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"
    share = gpu.measured or ASSUMED_EFFICIENCY
    source = "as measured with this package" if gpu.measured else "an assumption: nothing has been measured on one yet"
    return (
        f"about {shown} hours of one {gpu.name}, shared by the workers: at {share:.0%} of its dense peak "
        f"({gpu.peak:g} TFLOP/s, {gpu.float32_peak:g} in float32), {source}"
    )


def _both_ways(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> BothWays:
    with torch.device("meta"):
        x = torch.empty(shape, requires_grad=True)
        with FlopCounterMode(display=False) as there:
            y = function(x)
        with FlopCounterMode(display=False) as back:
            torch.autograd.grad(y, x, torch.empty_like(y))
    return float(there.get_total_flops()), float(back.get_total_flops())
