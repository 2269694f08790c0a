"""Adding a ControlNet to a Stable Diffusion model."""

from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

from renege_ray.config.run import ModelConfig
from renege_ray.errors import UserError
from renege_ray.models.families.control_images import ControlImages
from renege_ray.models.families.registry import check_family
from renege_ray.models.families.stable_diffusion import StableDiffusion
from renege_ray.models.families.stable_diffusion_controlnet import StableDiffusionControlNet
from renege_ray.models.loading.user_errors import user_errors


def check_control(config: ModelConfig, folder: Path) -> None:
    """Check that there are control images exactly where the model in a folder has a ControlNet; nothing is loaded.

    Raises:
        UserError: one of the two without the other, images that are not there, or a family that takes no ControlNet.
    """
    family = check_family(folder, config.id)
    if config.controlnet is not None and family is not StableDiffusion:
        raise UserError(
            f"model.controlnet: a ControlNet is added to a {StableDiffusion.PIPELINE}, and {config.id!r} is a "
            f"{family.PIPELINE}; leave it out"
        )
    has_network = config.controlnet is not None or family is StableDiffusionControlNet
    if has_network and config.control is None:
        raise UserError(f"model.control: missing, and the ControlNet of {config.id!r} has to be shown images")
    if config.control is not None:
        if not has_network:
            raise UserError(
                f"model.control: {config.id!r} has no ControlNet to look at it; add one by model.controlnet"
            )
        ControlImages.read(config.control)


def add_controlnet(pipeline: Any, controlnet: str, dtype: torch.dtype) -> StableDiffusionControlNetPipeline:
    """The pipeline with a ControlNet, which is read in `dtype`.

    Raises:
        UserError: it cannot be found or read, or it is not for this model.
    """
    path = Path(controlnet).expanduser()
    remedy = "give a folder with config.json and a safetensors file"
    with user_errors(f"model.controlnet: {controlnet!r}", remedy, hub=not path.is_dir()):
        network = ControlNetModel.from_pretrained(
            path if path.is_dir() else controlnet,
            use_safetensors=True,
            local_files_only=path.is_dir(),
            torch_dtype=dtype,
        )
    for name in ("cross_attention_dim", "block_out_channels", "in_channels"):
        has, wanted = getattr(network.config, name), getattr(pipeline.unet.config, name)
        if has != wanted:
            raise UserError(
                f"model.controlnet: {controlnet!r} does not fit the model: its {name} is {has}, not {wanted}; give one "
                "that was trained for it"
            )
    return StableDiffusionControlNetPipeline(**pipeline.components, controlnet=network, requires_safety_checker=False)
