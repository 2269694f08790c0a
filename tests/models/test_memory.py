"""The families' figures of memory, against a count of all live tensors at the models' true sizes."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from renege_ray.models.families.lumina2 import Lumina2
from renege_ray.models.families.pixart_alpha import PixArtAlpha
from renege_ray.models.families.sana import Sana
from renege_ray.models.families.stable_diffusion import StableDiffusion
from renege_ray.models.families.stable_diffusion_3 import StableDiffusion3
from renege_ray.models.families.stable_diffusion_xl import StableDiffusionXL
from renege_ray.models.families.z_image import ZImage
from renege_ray.models.networks.checkpointing import keep_inputs_alone
from renege_ray.models.networks.frozen_convolution import freeze_convolutions
from tests.models.live_memory import LiveMemory
from tests.models.true_sizes import CHANNELS, SIDES, decoder_of, denoise, denoiser_of

FAMILIES = {
    "SD1.5": StableDiffusion, "SD2.1": StableDiffusion, "SDXL": StableDiffusionXL, "PixArt": PixArtAlpha,
    "SD3.5": StableDiffusion3, "Z-Image": ZImage, "Sana": Sana, "Lumina2": Lumina2,
}  # fmt: skip


def planned(name: str, part: str, saving: bool) -> float:
    """GiB of one sample in bfloat16."""
    *figures, side = FAMILIES[name].MEMORY
    found: float = getattr(figures[saving], part)
    return found * (SIDES[name] / side) ** 2


def counted(name: str, part: str, saving: bool, batch: int) -> float:
    """GiB of a forward and a backward pass, beside the weights."""
    dtype = torch.get_default_dtype()
    with FakeTensorMode(allow_non_fake_inputs=True):
        torch.set_default_dtype(torch.bfloat16)
        try:
            network: Any = decoder_of(name) if part == "decode" else denoiser_of(name)
        finally:
            torch.set_default_dtype(dtype)
        network.requires_grad_(False).eval()
        freeze_convolutions(network)
        if saving and part == "decode" and name == "Sana":
            for block in network.decoder.up_blocks:
                keep_inputs_alone(block, saving)
        elif saving:
            network.enable_gradient_checkpointing()
        with LiveMemory(network) as memory:
            latents = torch.zeros(batch, CHANNELS[name], SIDES[name], SIDES[name], dtype=torch.bfloat16)
            if part == "decode":
                leaf = latents.requires_grad_()
                output = network.decode(leaf, return_dict=False)[0]
            else:
                output, leaf = denoise(name, network, latents)
            torch.autograd.grad(output, leaf, torch.zeros_like(output))
        return memory.peak / 2**30


@pytest.mark.parametrize(
    ("name", "saving", "batch"),
    [
        ("SD1.5", False, 1), ("SD1.5", False, 16), ("SD1.5", True, 4), ("SD2.1", False, 4),
        ("SDXL", False, 4), ("SDXL", True, 1), ("PixArt", False, 16), ("PixArt", True, 4),
        ("SD3.5", False, 2), ("SD3.5", True, 2), ("Z-Image", False, 1), ("Z-Image", True, 2), ("Sana", False, 2),
        ("Sana", True, 2), ("Lumina2", False, 1), ("Lumina2", True, 2),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_the_denoiser_takes_what_is_planned(name: str, saving: bool, batch: int) -> None:
    found = counted(name, "denoise", saving, batch)
    assert batch * planned(name, "denoise", saving) == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize(
    ("name", "saving", "batch"),
    [
        ("SD1.5", False, 1),
        ("SDXL", False, 4),
        ("SD2.1", True, 1),
        ("SD3.5", True, 1),
        ("Sana", False, 1),
        ("Sana", True, 1),
    ],
)
@pytest.mark.slow
def test_the_decoder_takes_what_is_planned(name: str, saving: bool, batch: int) -> None:
    found = counted(name, "decode", saving, batch)
    assert batch * planned(name, "decode", saving) == pytest.approx(found, rel=0.1)
