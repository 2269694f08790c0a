"""Text-to-video models such as ZeroScope and ModelScope's (diffusers' TextToVideoSDPipeline).

The UNet attends over frames too; text encoder, VAE (a frame at a time) and negative are those of Stable Diffusion.
"""

from pathlib import Path
from typing import Any, Self

from torch import Tensor

from renege_ray.config.run import ModelConfig
from renege_ray.models.base import Activations
from renege_ray.models.families.stable_diffusion import StableDiffusion


class TextToVideo(StableDiffusion):
    """A frozen TextToVideoSDPipeline; latents are (B, C, F, H, W)."""

    PIPELINE = "TextToVideoSDPipeline"
    SAFETY_CHECKER = False
    MEMORY = (Activations(0.49, 0.46), Activations(0.49, 0.29), 32)  # ZeroScope
    FRAMES = 16

    def __init__(self, pipeline: Any, name: str, *, frames: int = FRAMES, **options: Any) -> None:
        """Take over a pipeline; see `FrozenPipeline`. `frames`: F."""
        self._frames = frames
        super().__init__(pipeline, name, **options)

    @classmethod
    def options(cls, config: ModelConfig) -> dict[str, Any]:
        """Those of all families, and the number of frames."""
        return super().options(config) | {"frames": config.frames}

    @classmethod
    def without_weights(cls, folder: Path, *, frames: int = FRAMES, **options: Any) -> Self:
        """As all families."""
        model = super().without_weights(folder, **options)
        model._frames = frames
        return model

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, F, H, W)."""
        channels, *size = super().latent_shape
        return channels, self._frames, *size

    def decode(self, latents: Tensor) -> Tensor:
        """Videos (B, 3, F, height, width): each frame is decoded by itself."""
        frames = latents.transpose(1, 2)
        images = super().decode(frames.flatten(0, 1))
        return images.unflatten(0, frames.shape[:2]).transpose(1, 2)
