"""Stable Diffusion 1.x and 2.x, and anything else that diffusers' StableDiffusionPipeline holds, as a
`TextToImage`.

Sampling is always deterministic DDIM over the noise schedule that `DDIMScheduler.from_config` builds from the
model's own scheduler, whatever that is; so images equal those of the pipeline with that scheduler.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from renege_ray.errors import UserError
from renege_ray.method.schedule import Schedule, make_schedule
from renege_ray.models.base import clamp_straight_through
from renege_ray.models.hub import find_folder, is_local, read_pipeline

# What, besides its weights, decides a CLIP text encoder's output. The rest of its configuration (the versions
# of libraries, the type of the stored weights, paths) differs between copies of one encoder.
ENCODER_CONFIG_KEYS = (
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_norm_eps",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
)


class StableDiffusion:
    """A frozen StableDiffusionPipeline; see `TextToImage` for what its attributes and methods mean.

    The pipeline's modules are changed in place: frozen, in eval mode, moved, and cast.
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        name: str,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        compile: bool = False,
    ) -> None:
        """Take over a pipeline.

        Args:
            pipeline: with float32 or float16 weights: the encoder's hash is taken before they are cast.
            name: what to call it.
            dtype: what the networks compute in. Latents and the scheduler's arithmetic stay float32.
            device: where to compute.
            compile: `torch.compile` the UNet (one graph with and one without gradient for each shape).

        Raises:
            UserError: the model's scheduler has no DDIM form (it is a flow-matching model, say).
        """
        self.name, self.dtype, self.device = name, dtype, torch.device(device)
        self.pipeline = pipeline
        self._vae, self._unet, self._text_encoder = pipeline.vae, pipeline.unet, pipeline.text_encoder
        self._tokenizer = pipeline.tokenizer
        self._scheduler = _ddim_of(pipeline.scheduler, name)
        self.text_encoder_hash = hash_text_encoder(self._text_encoder)
        for module in (self._vae, self._unet, self._text_encoder):
            module.requires_grad_(False).eval()
            # Not module.to(): diffusers' own warns of modules to be kept in float32, and then names none.
            torch.nn.Module.to(module, device=self.device, dtype=dtype)
        for module in (
            self._vae,
            self._unet,
        ):  # convolutions: 1.4 times as fast on a CPU, and tensor cores want it
            module.to(memory_format=torch.channels_last)
        self._denoise = torch.compile(self._unet) if compile else self._unet

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        revision: str | None = None,
        variant: str | None = None,
        compile: bool = False,
    ) -> "StableDiffusion":
        """Load a folder in diffusers' format, or a model of the Hugging Face Hub, from safetensors files
        only.

        Args:
            model: the folder or the Hub's id.
            revision: branch, tag or commit on the Hub.
            variant: such as "fp16", for files named `*.fp16.safetensors`.
            dtype, device, compile: as in the constructor.

        Raises:
            UserError: no such folder or model, a file is missing, or the Hub cannot be reached.
        """
        folder = find_folder(model, revision=revision, variant=variant)
        pipeline = read_pipeline(folder, model, variant=variant)
        # The name goes into stored metadata, where the path of one machine would mean nothing.
        name = folder.resolve().name if is_local(model) else model
        return cls(pipeline, name, dtype=dtype, device=device, compile=compile)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W), from the size that the UNet was trained at."""
        size = self._unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return int(self._unet.config.in_channels), int(height), int(width)

    @property
    def embedding_shape(self) -> tuple[int, int]:
        """(L, D), with L the length that the tokenizer pads to."""
        return int(self._tokenizer.model_max_length), int(self._text_encoder.config.hidden_size)

    @property
    def text_encoder_name(self) -> str:
        """Class and size: configurations do not say reliably whose weights they are."""
        config = self._text_encoder.config
        kind = type(self._text_encoder).__name__
        return f"{kind} ({config.num_hidden_layers} layers of width {config.hidden_size})"

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """c, (B, L, D) float32: the encoder's last hidden state, as the pipeline takes it."""
        tokens = self._tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self._tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        # The pipeline shows padding to the encoder unless the encoder's configuration says otherwise.
        masked = getattr(self._text_encoder.config, "use_attention_mask", False)
        hidden: Tensor = self._text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask if masked else None)[
            0
        ]
        return hidden.float()

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many prompts have more tokens than L."""
        ids = self._tokenizer(list(prompts), truncation=False, verbose=False).input_ids if prompts else []
        return sum(len(tokens) > self._tokenizer.model_max_length for tokens in ids)

    def schedule(self, num_inference_steps: int) -> Schedule:
        """The DDIM schedule in T steps; see `make_schedule` for the errors."""
        config = self._scheduler.config
        return make_schedule(
            self._scheduler.alphas_cumprod,
            num_inference_steps,
            prediction_type=config.prediction_type,
            timestep_spacing=config.timestep_spacing,
            steps_offset=config.steps_offset,
            set_alpha_to_one=config.set_alpha_to_one,
        )

    def denoise(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The UNet's output, (B, C, H, W) -> (B, C, H, W), in the dtype of the latents."""
        output: Tensor = self._denoise(
            latents.to(self.dtype),
            timestep.to(self.device, non_blocking=True),
            encoder_hidden_states=prompt_embeds.to(self.dtype),
            return_dict=False,
        )[0]
        return output.to(latents.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Images as the pipeline's `output_type="pt"` has them; for the gradient see
        `clamp_straight_through`.
        """
        scaled = (latents / self._vae.config.scaling_factor).to(self.dtype)
        images: Tensor = self._vae.decode(scaled, return_dict=False)[0]
        return clamp_straight_through(images.to(latents.dtype) * 0.5 + 0.5)


def _ddim_of(scheduler: Any, name: str) -> DDIMScheduler:
    """The DDIM scheduler over a scheduler's noise schedule."""
    prediction_type = scheduler.config.get("prediction_type", "epsilon")
    if "beta_schedule" not in scheduler.config or prediction_type not in (
        "epsilon",
        "v_prediction",
        "sample",
    ):
        raise UserError(
            f"model {name!r}: its scheduler {type(scheduler).__name__} (prediction type {prediction_type!r}) "
            "has no DDIM form; use a model that predicts noise, v or x_0"
        )
    return DDIMScheduler.from_config(scheduler.config)


def hash_text_encoder(text_encoder: torch.nn.Module) -> str:
    """16 hexadecimal digits of a SHA-256 over an encoder's weights, in order of their names, and its
    configuration.

    Weights are rounded to float16 first, so that the float32 and the float16 files of one encoder have the
    same hash. Names count without `text_model.`, a prefix that comes and goes with the version of
    transformers.
    """
    digest = hashlib.sha256()
    config: Any = text_encoder.config
    digest.update(json.dumps({key: getattr(config, key, None) for key in ENCODER_CONFIG_KEYS}).encode())
    weights = {name.removeprefix("text_model."): weight for name, weight in text_encoder.named_parameters()}
    for name in sorted(weights):
        half = weights[name].detach().to("cpu", torch.float16).contiguous()
        digest.update(f"{name} {tuple(half.shape)}".encode())
        digest.update(half.numpy().tobytes())
    return digest.hexdigest()[:16]
