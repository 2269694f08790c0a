"""What the use cases ask of a text-to-image model, whatever its family.

Notation and shapes are those of `renege_ray.method.guidance`. A model of videos has one dimension more, the F frames,
after the channels: latents (B, C, F, H, W), videos (B, 3, F, height, width). See `renege_ray.rewards.video.frames`.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from renege_ray.config.run import SamplingConfig
from renege_ray.method.guidance import Guidance
from renege_ray.method.schedule import Schedule
from renege_ray.models.layout import EmbeddingLayout


class TextToImage(Protocol):
    """A frozen latent diffusion model: its weights require no gradients, and it draws no random numbers."""

    @property
    def name(self) -> str:
        """What the user called it."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are, but for the text encoders' (see `encoding`), and every tensor that is passed in."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What the networks compute in; tensors in and out are float32 all the same."""
        ...

    @property
    def remark(self) -> str:
        """What is to be said of how it is sampled; empty if there is nothing."""
        ...

    @property
    def denoiser(self) -> torch.nn.Module:
        """The network behind `denoise`, for those who ask about its weights."""
        ...

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, H, W) of the latents, (C, F, H, W) of a video's."""
        ...

    @property
    def embedding_layout(self) -> EmbeddingLayout:
        """What an embedding is made of; everywhere else it is one packed tensor."""
        ...

    @property
    def embedding_shape(self) -> tuple[int, int]:
        """(L', D') of a packed text embedding, called (L, D) wherever it does not matter what is in it."""
        ...

    @property
    def text_encoder_name(self) -> str:
        """The text encoder, for people."""
        ...

    @property
    def text_encoder_hash(self) -> str:
        """16 hexadecimal digits that tell text encoders apart, the same on every machine."""
        ...

    def encoding(self) -> AbstractContextManager[None]:
        """A block in which the text encoders stay on the device. Elsewhere they rest on the host, and `encode_prompts`
        and `null_embedding` bring them for the length of the call.
        """
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """c, (B, L, D) float32, without a gradient; prompts that are too long are cut."""
        ...

    def encode_negatives(self, texts: Sequence[str]) -> Tensor:
        """n, (B, L, D) float32, of negative prompts, as the family's pipeline encodes them: some put instructions
        before a prompt, and none before a negative.
        """
        ...

    def null_embedding(self) -> Tensor:
        """The negative that the family's pipeline takes where it is given none, (1, L, D) float32."""
        ...

    def starting_point(self, embedding: Tensor) -> Tensor:
        """An embedding to learn from, (1, L, D), that acts as `embedding` and gives each token its own gradient."""
        ...

    def for_prompts(self, prompts: Sequence[str]) -> "TextToImage":
        """The model for a batch of these prompts, in their order: the same, unless it is given an image beside each.

        Its `denoise` takes as many samples as there are prompts, or a multiple (both branches of the guidance).
        """
        ...

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many of the prompts are too long for the text encoder."""
        ...

    def schedule(self, num_inference_steps: int) -> Schedule:
        """The model's noise schedule in T steps."""
        ...

    def guidance(self, sampling: SamplingConfig, schedule: Schedule) -> Guidance:
        """Eq. 5 as the family's pipeline has it, with the scale as that pipeline calls it, over a schedule.

        Raises:
            UserError: at that scale no gradient that improves images reaches the negative.
        """
        ...

    def denoise(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The model's output, a `renege_ray.method.Denoiser`: (B, C, H, W) -> (B, C, H, W)."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, H, W) -> images (B, 3, height, width) in [0, 1], differentiable."""
        ...

    def rows(self, indices: Sequence[int]) -> "TextToImage":
        """The model for these samples of the batch that `for_prompts` was given, in this order."""
        ...

    def save_memory(self, saving: bool = True) -> None:
        """From now on, keep fewer activations for the backward pass, or all again; results stay as they are."""
        ...

    def gradient_memory(self, *, saving: bool) -> "Activations":
        """About what the gradient step takes, as it is and after `save_memory`."""
        ...


@dataclass(frozen=True)
class Activations:
    """GiB that are held for the backward pass, beside the weights."""

    denoise: float
    """Of the denoiser, a sample."""
    decode: float
    """Of the decoder, an image (a video)."""


class _ClampStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def clamp_straight_through(images: Tensor) -> Tensor:
    """clamp(images, 0, 1) in value, the identity in gradient.

    Rewards must see exactly what pipelines put out, so values are clamped. The derivative of clamp is zero
    wherever the decoder overshoots, and under guidance it overshoots most where an image is oversaturated. A
    reward that asks for less saturation would not be heard there, and a pixel once outside could never come
    back. The identity keeps that signal; where the reward asks for still more, it pushes a pixel outwards to
    no effect. So where the decoder overshoots, this is not the derivative of the reward, on purpose.

    A one-sided rule (pass only what points inwards) is not linear in the gradient: the gradient of a sum of
    rewards would not be the sum of their gradients. It also has to know whether one ascends or descends.
    """
    clamped: Tensor = _ClampStraightThrough.apply(images)
    return clamped
