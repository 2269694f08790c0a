"""Stable Diffusion with a ControlNet (diffusers' StableDiffusionControlNetPipeline; arXiv 2302.05543).

A second network reads the latents, the prompt and a control image (edges, a pose, depth), and adds to the UNet's
activations, in both branches of the guidance, at full strength. A negative is that of Stable Diffusion.
"""

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from renege_ray.config.run import ModelConfig
from renege_ray.errors import UserError
from renege_ray.method.embedding import PROMPT_EMBEDS
from renege_ray.models.base import Activations
from renege_ray.models.families.control_images import ControlImages
from renege_ray.models.families.stable_diffusion import StableDiffusion
from renege_ray.models.frozen_pipeline import shape_of


class StableDiffusionControlNet(StableDiffusion):
    """A frozen StableDiffusionControlNetPipeline with its control images."""

    PIPELINE = "StableDiffusionControlNetPipeline"
    MEMORY = (Activations(1.3, 1.85), Activations(0.6, 1.15), 64)  # SD1.5

    def __init__(self, pipeline: Any, name: str, *, control: str, **options: Any) -> None:
        """Take over a pipeline; see `FrozenPipeline`, and `ControlImages` for `control`."""
        if getattr(pipeline.controlnet.config, "global_pool_conditions", True):
            raise UserError(
                f"model {name!r} has several ControlNets, or one that pools its image: give one that does not"
            )
        self._images = ControlImages.read(control)
        self._controls: Tensor | None = None
        super().__init__(pipeline, name, **options)

    @classmethod
    def options(cls, config: ModelConfig) -> dict[str, Any]:
        """Those of all families, and the control images."""
        return super().options(config) | {"control": config.control}

    @classmethod
    def without_weights(cls, folder: Path, *, control: str | None = None, **options: Any) -> Self:
        """As all families; the ControlNet is part of what is counted."""
        model = super().without_weights(folder, **options)
        model.pipeline.controlnet = shape_of(folder / "controlnet")
        model._compiled = model._whole_denoiser()
        scale = model.pipeline.vae_scale_factor
        model._controls = torch.empty(1, 3, *(side * scale for side in model.latent_shape[-2:]), device="meta")
        return model

    def for_prompts(self, prompts: Sequence[str]) -> Self:
        """The model that is shown the control image of each prompt; the networks are shared.

        Raises:
            UserError: there is no image for one of the prompts.
        """
        height, width = (side * self.pipeline.vae_scale_factor for side in self.latent_shape[-2:])
        processor = self.pipeline.control_image_processor
        shown = copy(self)
        shown._controls = torch.cat(
            [processor.preprocess(image, height=height, width=width) for image in self._images.open(prompts)]
        ).to(self.device, self.dtype)
        return shown

    def rows(self, indices: Sequence[int]) -> Self:
        """The model with the control images of these samples."""
        shown = copy(self)
        shown._controls = None if self._controls is None else self._controls[list(indices)]
        return shown

    def _networks(self) -> list[Any]:
        return [*super()._networks(), self.pipeline.controlnet]

    def _whole_denoiser(self) -> Callable[..., Any]:
        controlnet = getattr(self.pipeline, "controlnet", None)  # of `without_weights`, which adds it later
        return partial(_both_networks, controlnet, self._denoiser)

    def _predict(self, latents: Tensor, timestep: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        control = self._control_of_each(len(latents))
        output: Tensor = self._compiled(latents, timestep, tensors[PROMPT_EMBEDS], control)
        return output

    def _control_of_each(self, count: int) -> Tensor:
        """(count, 3, height, width): the prompts' images, as often as there are branches."""
        if self._controls is None or count % len(self._controls):
            shown = 0 if self._controls is None else len(self._controls)
            raise ValueError(f"{self.name}: {count} samples for {shown} control images; see `for_prompts`")
        return self._controls.repeat(count // len(self._controls), 1, 1, 1)


def _both_networks(
    controlnet: Any, unet: Any, latents: Tensor, timestep: Tensor, states: Tensor, control: Tensor
) -> Tensor:
    down, middle = controlnet(
        latents, timestep, encoder_hidden_states=states, controlnet_cond=control, return_dict=False
    )
    output: Tensor = unet(
        latents,
        timestep,
        encoder_hidden_states=states,
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
        return_dict=False,
    )[0]
    return output
