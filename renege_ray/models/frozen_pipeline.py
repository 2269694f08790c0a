"""What all families share: a diffusers pipeline, frozen, as a `TextToImage`.

Sampling is always deterministic DDIM; see `renege_ray.models.noise_schedule`.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import diffusers
import torch
from torch import Tensor

from renege_ray.config.run import ModelConfig
from renege_ray.errors import UserError
from renege_ray.method.schedule import Schedule
from renege_ray.models.base import Activations, TextToImage, clamp_straight_through
from renege_ray.models.frozen_convolution import freeze_convolutions
from renege_ray.models.half_precision import ScaledBackward, stored_dtype
from renege_ray.models.layout import EmbeddingLayout
from renege_ray.models.noise_schedule import ddim_of, schedule_of
from renege_ray.models.text_encoder import identify, read_layout, text_encoders

PIXELS_AT_ONCE = 2**20  # four images of 512 x 512


class FrozenPipeline(ABC):
    """A frozen pipeline; see `TextToImage` for what its attributes and methods mean.

    The pipeline's modules are changed in place: frozen, in eval mode, moved, and cast. A family says how it
    encodes a text (`_encode`) and what its denoiser is given (`_predict`), both in named tensors.
    """

    PIPELINE: ClassVar[str]  # the class of diffusers that holds the family's models
    DENOISER: ClassVar[str]  # the name of the pipeline's component
    SAFETY_CHECKER: ClassVar[bool] = False  # whether the pipeline has one
    # GiB in bfloat16 (of a frame, where it is a video), as it is and after `save_memory`, at so many latents a side:
    # counted by adding up all live tensors of a forward and a backward pass on torch's fake tensors.
    MEMORY: ClassVar[tuple[Activations, Activations, int]]

    def __init__(
        self,
        pipeline: Any,
        name: str,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        compile: bool = False,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Take over a pipeline.

        Args:
            pipeline: with float32 or float16 weights: the encoders' hash is taken before they are cast.
            name: what to call it.
            dtype: what the networks compute in. Latents and the scheduler's arithmetic stay float32.
            device: where to compute.
            compile: `torch.compile` the denoiser (one graph with and one without gradient for each shape).
            size: (height, width) of the images in pixels; what the denoiser was trained at if None.

        Raises:
            UserError: the model's scheduler has no DDIM form (it is a flow-matching model, say), or a size that its
                decoder cannot make.
        """
        self.name, self.dtype, self.device = name, dtype, torch.device(device)
        self.pipeline = pipeline
        self._vae, self._denoiser = pipeline.vae, getattr(pipeline, self.DENOISER)
        self._scheduler = ddim_of(pipeline.scheduler, name)
        self._latent_size = _latent_size(self._denoiser, size, pipeline.vae_scale_factor)
        identity = identify(pipeline)
        self.text_encoder_name, self.text_encoder_hash = identity.name, identity.hash
        self.embedding_layout: EmbeddingLayout = identity.layout
        for module in (*self._networks(), *text_encoders(pipeline)):
            module.requires_grad_(False).eval()
            # Not module.to(): diffusers' own warns of modules to be kept in float32, and then names none.
            torch.nn.Module.to(module, device=self.device, dtype=stored_dtype(module, dtype))
        for weight in (weight for module in self._networks() for weight in module.parameters()):
            if weight.ndim == 4:  # convolutions of images: 1.4 times as fast on a CPU, and tensor cores want it
                weight.data = weight.data.to(memory_format=torch.channels_last)
        for network in self._networks():
            freeze_convolutions(network)
        self._compiled = torch.compile(self._denoiser) if compile else self._denoiser

    @classmethod
    def options(cls, config: ModelConfig) -> dict[str, Any]:
        """The family's own arguments, besides those that all have, as a configuration gives them."""
        return {"size": config.size}

    @classmethod
    def without_weights(cls, folder: Path, *, size: tuple[int, int] | None = None) -> Self:
        """A model of which only shapes and operations are known (on torch's meta device), by its configuration files.

        It has no pipeline and no VAE; its `denoise` can be counted. The arguments are those of `options`.
        """
        model = cls.__new__(cls)
        model.name, model.dtype, model.device = folder.name, torch.float32, torch.device("meta")
        model._vae, model.embedding_layout = None, read_layout(folder)
        model._denoiser = model._compiled = shape_of(folder / cls.DENOISER)
        vae = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
        model.pipeline = SimpleNamespace(vae_scale_factor=2 ** (len(vae["block_out_channels"]) - 1))
        model._latent_size = _latent_size(model._denoiser, size, model.pipeline.vae_scale_factor)
        return model

    @property
    def denoiser(self) -> torch.nn.Module:
        """The UNet or transformer itself, frozen."""
        module: torch.nn.Module = self._denoiser
        return module

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return int(self._denoiser.config.in_channels), *self._latent_size

    @property
    def embedding_shape(self) -> tuple[int, int]:
        """(L', D') of a packed embedding."""
        return self.embedding_layout.packed_shape

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """c, (B, L', D') float32: what the pipeline encodes the texts to, packed."""
        return self.embedding_layout.pack(self._encode(list(prompts)))

    def null_embedding(self) -> Tensor:
        """What the pipeline takes where it is given no negative prompt: the encoded empty text."""
        return self.encode_prompts([""])

    def starting_point(self, embedding: Tensor) -> Tensor:
        """The embedding itself: nothing in it keeps the gradient from any of its tokens."""
        return embedding

    def for_prompts(self, prompts: Sequence[str]) -> TextToImage:
        """The same: all that most families know of a prompt is its embedding."""
        return self

    def rows(self, indices: Sequence[int]) -> TextToImage:
        """The same, for the same reason."""
        return self

    @classmethod
    def call_arguments(cls, pipeline: Any, prompts: str | Sequence[str] | None) -> dict[str, Tensor | None]:
        """What the call of the family's pipeline with these prompts needs, besides them and the negative."""
        return {}

    @abstractmethod
    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many of the prompts are too long for the text encoder."""

    def schedule(self, num_inference_steps: int) -> Schedule:
        """The DDIM schedule in T steps; see `make_schedule` for the errors."""
        return schedule_of(self._scheduler, num_inference_steps)

    def denoise(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The denoiser's output, (B, C, H, W) -> (B, C, H, W), in the dtype of the latents."""
        scaled = ScaledBackward(self._denoiser, self.dtype)
        tensors = self.embedding_layout.unpack(scaled.enter(prompt_embeds).to(self.dtype))
        timestep = timestep.to(self.device, non_blocking=True)
        output = self._predict(scaled.enter(latents).to(self.dtype), timestep, tensors)
        return scaled.leave(output.to(latents.dtype))

    def decode(self, latents: Tensor) -> Tensor:
        """Images as the pipeline's `output_type="pt"` has them; for the gradient see
        `clamp_straight_through`.

        Without a gradient a few images are decoded at a time: many fill the memory, and are not made any sooner.
        """
        if not torch.is_grad_enabled():
            pixels = prod(latents.shape[-2:]) * self.pipeline.vae_scale_factor**2
            pieces = latents.split(max(1, PIXELS_AT_ONCE // pixels))
            return torch.cat([self._decode(piece) for piece in pieces])
        return self._decode(latents)

    def _decode(self, latents: Tensor) -> Tensor:
        scaled = ScaledBackward(self._vae, self._vae.dtype)
        unscaled = scaled.enter(self._unscale(latents)).to(self._vae.dtype)
        images: Tensor = self._vae.decode(unscaled, return_dict=False)[0]
        return clamp_straight_through(scaled.leave(images.to(latents.dtype)) * 0.5 + 0.5)

    def save_memory(self, saving: bool = True) -> None:
        """Compute activations a second time in the backward pass, or no longer."""
        for network in self._networks():
            if getattr(network, "_supports_gradient_checkpointing", False):
                (network.enable_gradient_checkpointing if saving else network.disable_gradient_checkpointing)()
        self._vae.use_slicing = saving  # the frames of a video, one after the other

    def gradient_memory(self, *, saving: bool) -> Activations:
        """What the denoiser and the decoder take. It grows with the area of the latents and the size of a number."""
        plain, saved, side = self.MEMORY
        of, scale = saved if saving else plain, prod(self.latent_shape[1:]) / side**2 / 2
        decoder = self._vae.dtype if self._vae is not None else self.dtype  # float32 where float16 overflows
        return Activations(of.denoise * scale * self.dtype.itemsize, of.decode * scale * decoder.itemsize)

    def _networks(self) -> list[Any]:
        """What computes on latents and images."""
        return [self._vae, self._denoiser]

    def _unscale(self, latents: Tensor) -> Tensor:
        """Latents of the denoiser as the VAE has them."""
        return latents / float(self._vae.config.scaling_factor)

    @abstractmethod
    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """The texts, as named tensors in the layout of the embedding."""

    @abstractmethod
    def _predict(self, latents: Tensor, timestep: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """The denoiser's output in its own dtype; all tensors have B rows."""


def shape_of(folder: Path) -> Any:
    """A network of diffusers on the meta device, frozen, from its configuration file."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        return getattr(diffusers, config["_class_name"]).from_config(config).requires_grad_(False)


def tokenize(tokenizer: Any, prompts: list[str], length: int) -> Any:
    """Token ids and attention mask (B, length) each: cut and padded, as the pipelines do."""
    return tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")


def count_longer(tokenizer: Any, prompts: Sequence[str], length: int) -> int:
    """How many of the prompts have more tokens than `length`."""
    ids = tokenizer(list(prompts), truncation=False, verbose=False).input_ids if prompts else []
    return sum(len(tokens) > length for tokens in ids)


def _latent_size(denoiser: Any, size: tuple[int, int] | None, factor: int) -> tuple[int, int]:
    """(H, W) of the latents of images of a size in pixels, or of the size that the denoiser was trained at."""
    if size is None:
        trained = denoiser.config.sample_size
        if trained is None:
            raise UserError("model.size: the model's configuration has no sample_size; give it, such as 512,512")
        height, width = (trained, trained) if isinstance(trained, int) else trained
        return int(height), int(width)
    if any(side % factor for side in size):
        raise UserError(f"model.size: {list(size)} has a side that is no multiple of {factor}, a latent's pixels")
    return size[0] // factor, size[1] // factor
