"""What all families share: a diffusers pipeline, frozen, as a `TextToImage`.

Sampling is always deterministic; see `renege_ray.models.noise_schedule`.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from math import prod
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar, Self

import diffusers
import torch
from torch import Tensor

from renege_ray.config.run import ModelConfig, SamplingConfig
from renege_ray.errors import UserError, first_line
from renege_ray.method.guidance import Guidance
from renege_ray.method.schedule import Schedule
from renege_ray.models.base import Activations, TextToImage, clamp_straight_through
from renege_ray.models.folder import read_json
from renege_ray.models.guidance import PLAIN, check_scale, options_of
from renege_ray.models.layout import EmbeddingLayout
from renege_ray.models.networks.compiled import FILLING, BatchSizes, Compiled
from renege_ray.models.networks.frozen_convolution import freeze_convolutions
from renege_ray.models.networks.half_precision import ScaledBackward, stored_dtype
from renege_ray.models.networks.on_demand import OnDemand
from renege_ray.models.noise_schedule import ddim_of, flow_of, flow_schedule_of, sampled_otherwise, schedule_of
from renege_ray.models.text_encoder import identify, layout_of, read_parts, text_encoders

PIXELS_AT_ONCE = 2**20  # four images of 512 x 512


class FrozenPipeline(ABC):
    """A frozen pipeline; see `TextToImage` for what its attributes and methods mean.

    The pipeline's modules are changed in place: frozen, in eval mode, moved, and cast. A family says how it
    encodes a text (`_encode`) and what its denoiser is given (`_predict`), both in named tensors.
    """

    PIPELINE: ClassVar[str]  # the class of diffusers that holds the family's models
    DENOISER: ClassVar[str]  # the name of the pipeline's component
    SAFETY_CHECKER: ClassVar[bool] = False  # whether the pipeline has one
    DENOISER_CLASSES: ClassVar[tuple[str, ...]] = ()  # of diffusers; none: any
    OPTIONAL: ClassVar[tuple[str, ...]] = ()  # components that a folder may come without
    FLOW_MATCHING: ClassVar[bool] = False  # whether the denoiser predicts e - x_0
    # What the pipeline does not look at a negative at or below, and what happens there, in its terms.
    UNGUIDED: ClassVar[tuple[float, str]] = (1.0, PLAIN)
    # What else its guidance hangs on, by its names, at its defaults: `sampling.guidance_options`.
    GUIDANCE_OPTIONS: ClassVar[Mapping[str, float]] = MappingProxyType({})
    POOLS_FIRST: ClassVar[bool] = False  # whether the first text encoder ends in a projection
    JOINT_ATTENTION: ClassVar[bool] = False  # whether text and image attend to each other as one sequence
    TAKES_ROWS: ClassVar[bool] = True  # whether texts in it are of one length; else it is not compiled
    # (height, width) in pixels that the pipeline makes where it is told none; None: what the denoiser was trained at.
    SIZE: ClassVar[tuple[int, int] | None] = None
    PATCH: ClassVar[int] = 1  # latents a side of what the denoiser takes as one: sides are multiples of it
    PACKED: ClassVar[bool] = False  # whether its channels are those of a whole patch (see `networks.patches`)
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
        negative_tokens: int | None = None,
    ) -> None:
        """Take over a pipeline.

        Args:
            pipeline: with its encoders' weights in float32 or float16, or as their files have them: the hash is taken
                before they are cast.
            name: what to call it.
            dtype: what the networks compute in. Latents and the scheduler's arithmetic stay float32.
            device: where to compute. Text encoders are there only while they are used (see `encoding`).
            compile: compile denoiser and decoder; see `models.networks.compiled`.
            size: (height, width) of the images in pixels; what the denoiser was trained at if None.
            negative_tokens: see `chosen_layout`.

        Raises:
            UserError: the model's scheduler is not one that the family is sampled by, or a size that its decoder
                cannot make.
        """
        self.name, self.dtype, self.device = name, dtype, torch.device(device)
        self.pipeline = pipeline
        self._vae, self._denoiser = pipeline.vae, getattr(pipeline, self.DENOISER)
        self._scheduler = self.scheduler_of(pipeline.scheduler, name)
        self._latent_size = self._size_of_latents(size)
        identity = identify(pipeline, self.chosen_layout(pipeline, negative_tokens))
        self.text_encoder_name, self.text_encoder_hash = identity.name, identity.hash
        self.embedding_layout: EmbeddingLayout = identity.layout
        encoders = text_encoders(pipeline)
        self._encoders = OnDemand(encoders, self.device)
        for module in (*self._networks(), *encoders):
            module.requires_grad_(False).eval()
            # Not module.to(): diffusers' own warns of modules to be kept in float32, and then names none.
            torch.nn.Module.to(module, dtype=stored_dtype(module, dtype))
        for network in self._networks():
            torch.nn.Module.to(network, device=self.device)
        for weight in (weight for module in self._networks() for weight in module.parameters()):
            if weight.ndim == 4:  # convolutions of images: 1.4 times as fast on a CPU, and tensor cores want it
                weight.data = weight.data.to(memory_format=torch.channels_last)
        for network in self._networks():
            freeze_convolutions(network)
        self._compiled, self._decoder = self._whole_denoiser(), self._decoded
        if compile:
            self._compile()

    @classmethod
    def options(cls, config: ModelConfig) -> dict[str, Any]:
        """The family's own arguments, besides those that all have, as a configuration gives them."""
        return {"size": config.size, "negative_tokens": config.negative_tokens}

    @classmethod
    def layout(cls, pipeline: Any, tokens: int | None = None) -> EmbeddingLayout:
        """What an embedding is made of.

        Args:
            pipeline: the pipeline; or what is known of its text encoders and its denoiser by their configurations.
            tokens: of a negative, for families that leave it free; None: the family's default.

        Raises:
            UserError: no such encoders are supported, or so many tokens cannot be.
        """
        return layout_of(pipeline, tokens)

    @classmethod
    def chosen_layout(cls, pipeline: Any, negative_tokens: int | None) -> EmbeddingLayout:
        """The same with as many tokens as a configuration says. UserError where the family leaves it no choice."""
        layout = cls.layout(pipeline, negative_tokens)
        if negative_tokens not in (None, layout.negative_tokens):
            raise UserError(
                f"model.negative_tokens: {negative_tokens}, but a negative of {cls.PIPELINE} has "
                f"{layout.negative_tokens} tokens; leave it out"
            )
        return layout

    @classmethod
    def layout_in(cls, folder: Path, negative_tokens: int | None = None) -> EmbeddingLayout:
        """The same for the model in a folder, by its configuration files alone."""
        return cls.chosen_layout(read_parts(folder, cls.DENOISER), negative_tokens)

    @classmethod
    def scheduler_of(cls, scheduler: Any, model: str) -> Any:
        """What the family is sampled by, of the model's own scheduler. UserError where that cannot be."""
        return flow_of(scheduler, model) if cls.FLOW_MATCHING else ddim_of(scheduler, model)

    @classmethod
    def without_weights(
        cls, folder: Path, *, size: tuple[int, int] | None = None, negative_tokens: int | None = None
    ) -> Self:
        """A model of which only shapes and operations are known (on torch's meta device), by its configuration files.

        It has no pipeline and no VAE; its `denoise` can be counted, and its schedule and guidance are known. The
        arguments are those of `options`.
        """
        model = cls.__new__(cls)
        model.name, model.dtype, model.device = folder.name, torch.float32, torch.device("meta")
        model._vae, model._denoiser = None, shape_of(folder / cls.DENOISER)
        model.embedding_layout = cls.layout_in(folder, negative_tokens)
        vae = read_json(folder / "vae" / "config.json")
        model.pipeline = SimpleNamespace(vae_scale_factor=cls._pixels_a_latent(vae))
        model._compiled = model._whole_denoiser()
        model._scheduler = cls.scheduler_of(read_scheduler(folder), folder.name)
        model._latent_size = model._size_of_latents(size)
        return model

    @property
    def remark(self) -> str:
        """What is to be said of how it is sampled; empty if it is as its own scheduler would."""
        return sampled_otherwise(self._scheduler) if self.FLOW_MATCHING else ""

    @property
    def denoiser(self) -> torch.nn.Module:
        """The UNet or transformer itself, frozen."""
        module: torch.nn.Module = self._denoiser
        return module

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        channels = int(self._denoiser.config.in_channels)
        return channels // self.PATCH**2 if self.PACKED else channels, *self._latent_size

    @property
    def _image_tokens(self) -> int:
        """How many tokens the latents of an image are, by which resolutions shift their noise levels."""
        return prod(side // self.PATCH for side in self.latent_shape[-2:])

    @property
    def embedding_shape(self) -> tuple[int, int]:
        """(L', D') of a packed embedding."""
        return self.embedding_layout.packed_shape

    def encoding(self) -> AbstractContextManager[None]:
        """A block in which the text encoders stay where they compute."""
        return self._encoders.on_device()

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """c, (B, L', D') float32: what the pipeline encodes the texts to, packed."""
        with self.encoding():
            return self.embedding_layout.pack(self._encode(list(prompts)))

    @torch.no_grad()
    def encode_negatives(self, texts: Sequence[str]) -> Tensor:
        """n of negative prompts, (B, L', D') float32: what the pipeline encodes them to, packed."""
        with self.encoding():
            return self.embedding_layout.pack(self._encode_negatives(list(texts)))

    def null_embedding(self) -> Tensor:
        """What the pipeline takes where it is given no negative prompt: the encoded empty text."""
        return self.encode_negatives([""])

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
    def call_arguments(cls, pipeline: Any, prompts: str | Sequence[str] | None, tokens: int) -> dict[str, Any]:
        """What the call of the family's pipeline needs besides these prompts and a negative of so many tokens."""
        return {}

    @classmethod
    def negative_arguments(cls, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """The tensors of a negative, with a row for each prompt, as the call of the family's pipeline takes them."""
        return dict(tensors)

    @classmethod
    def distilled(cls, denoiser: Mapping[str, Any], scheduler: Mapping[str, Any]) -> str:
        """What in the configurations of its parts says that a model's guidance is distilled; empty if nothing does."""
        return ""

    @abstractmethod
    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many of the prompts are too long for the text encoder."""

    def schedule(self, num_inference_steps: int) -> Schedule:
        """The schedule in T steps; see `make_schedule` and `flow_schedule_of` for the errors."""
        if self.FLOW_MATCHING:
            arguments = self._timestep_arguments(num_inference_steps)
            return flow_schedule_of(self._scheduler, num_inference_steps, **arguments)
        return schedule_of(self._scheduler, num_inference_steps)

    def _timestep_arguments(self, num_inference_steps: int) -> dict[str, Any]:
        """What the pipeline gives to its flow-matching scheduler's `set_timesteps`, besides the number of steps."""
        return {}

    def guidance(self, sampling: SamplingConfig, schedule: Schedule) -> Guidance:
        """Eq. 5 as the pipeline has it. Raises UserError where the negative would have no effect at any step."""
        least, because = self.UNGUIDED
        check_scale(sampling.guidance_scale, least=least, because=because)
        return self._guidance(
            sampling.guidance_scale, schedule, options_of(sampling, self.GUIDANCE_OPTIONS, self.PIPELINE)
        )

    def _guidance(self, scale: float, schedule: Schedule, options: Mapping[str, float]) -> Guidance:
        """The guidance at a scale that is above `UNGUIDED`. `options`: all of `GUIDANCE_OPTIONS`."""
        return Guidance(scale)

    def denoise(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The denoiser's output, (B, C, H, W) -> (B, C, H, W), in the dtype of the latents."""
        scaled = ScaledBackward(self._denoiser, self.dtype)
        tensors = self.embedding_layout.unpack(scaled.enter(prompt_embeds).to(self.dtype))
        timestep = timestep.to(self.device, non_blocking=True).expand(len(latents))
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
        images = self._decoder(unscaled)
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

    def _compile(self) -> None:
        if self.TAKES_ROWS:
            sizes = BatchSizes.of(prod(self.latent_shape[1:]))
            self._compiled = Compiled(self._compiled, sizes, replays=True)
        # An image has as many places in the decoder's widest layers as this many latents in the denoiser.
        pixels = prod(self._latent_size) * self.pipeline.vae_scale_factor**2
        self._decoder = Compiled(self._decoder, BatchSizes.of(pixels * FILLING // PIXELS_AT_ONCE))

    def _whole_denoiser(self) -> Callable[..., Any]:
        """What `_predict` calls with tensors of B rows, by way of `_compiled`: one graph where it is compiled."""
        denoiser: torch.nn.Module = self._denoiser
        return denoiser

    def _decoded(self, latents: Tensor) -> Tensor:
        images: Tensor = self._vae.decode(latents, return_dict=False)[0]
        return images

    def _networks(self) -> list[Any]:
        """What computes on latents and images."""
        return [self._vae, self._denoiser]

    def _unscale(self, latents: Tensor) -> Tensor:
        """Latents of the denoiser as the VAE has them."""
        shift = getattr(self._vae.config, "shift_factor", None)
        scaled = latents / float(self._vae.config.scaling_factor)
        return scaled if shift is None else scaled + float(shift)

    def _size_of_latents(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """(H, W) of the latents of images of a size in pixels, or of the size that the family's are made at."""
        factor = self.pipeline.vae_scale_factor
        size = size or self.SIZE
        if size is None:
            trained = self._denoiser.config.sample_size
            if trained is None:
                raise UserError("model.size: the model's configuration has no sample_size; give it, such as 512,512")
            height, width = (trained, trained) if isinstance(trained, int) else trained
            return int(height), int(width)
        multiple = factor * self.PATCH
        if any(side % multiple for side in size):
            what = "a latent's pixels" if self.PATCH == 1 else "the pixels of a token"
            raise UserError(f"model.size: {list(size)} has a side that is no multiple of {multiple}, {what}")
        return size[0] // factor, size[1] // factor

    @staticmethod
    def _pixels_a_latent(vae: Mapping[str, Any]) -> int:
        """How many pixels a side of a latent stands for, by the VAE's configuration."""
        return int(2 ** (len(vae["block_out_channels"]) - 1))

    @abstractmethod
    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """The texts, as named tensors in the layout of the embedding."""

    def _encode_negatives(self, texts: list[str]) -> dict[str, Tensor]:
        """The same of negative prompts, which most pipelines encode as they do prompts."""
        return self._encode(texts)

    @abstractmethod
    def _predict(self, latents: Tensor, timestep: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """The denoiser's output in its own dtype; all tensors have B rows."""


def read_scheduler(folder: Path) -> Any:
    """The scheduler of the model in a folder.

    Raises:
        UserError: its configuration is missing or damaged.
    """
    file = folder / "scheduler" / "scheduler_config.json"
    config = read_json(file)
    try:
        return getattr(diffusers, str(config.get("_class_name"))).from_config(config)
    except (AttributeError, ImportError, TypeError, ValueError) as error:
        raise UserError(f"no scheduler can be made of {file} ({first_line(error)})") from error


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
