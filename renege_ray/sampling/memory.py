"""How much a worker computes at once: the micro-batch, and whether activations are kept or computed again.

The gradient step is what needs memory. Counted for a sample at the models' own sizes in bfloat16 (denoiser and
decoder; a reward comes on top), with activations kept, and computed again:

    SD1.x   512x512     3.8 GiB   1.9 GiB           SD2.1   768x768      8.1 GiB   3.9 GiB
    PixArt  512x512     4.2 GiB   2.2 GiB           SDXL    1024x1024   18.4 GiB   8.7 GiB

Computing them again repeats the forward passes of the denoiser and the decoder: on SD1.5 3.3 TFLOP more a sample of
48, most of which are the rollout's. A larger micro-batch gains an accelerator more than these 7 % as long as only a
few samples fit. Hence the rule: keep the activations where at least `ENOUGH` samples fit so.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from renege_ray.models.base import TextToImage

TIERS = {"16gb": 16.0, "24gb": 24.0, "80gb": 80.0}  # GB as on the box, 10^9 bytes
REWARD = 1.2  # GiB a sample for a ViT-H reward and the image in float32
RESERVE = 1.5  # GiB for the CUDA context, the libraries' workspaces and what fragmentation loses
ENOUGH = 4  # samples; under guidance the rollout computes twice as many at once


@dataclass(frozen=True)
class MemoryPlan:
    """micro_batch_size: samples that are computed at once, at least 1; None: as many as there are.

    saving: whether activations are computed again in the backward pass.
    """

    micro_batch_size: int | None
    saving: bool


def plan_memory(memory: str, given: Literal["auto"] | int, model: TextToImage) -> MemoryPlan:
    """What fits beside all that has been loaded already.

    A micro-batch size that the user gave is kept; activations are then saved if it does not fit otherwise. The
    figures are estimates: where they are too high by much, a larger micro-batch may be given; where too low, a run
    with `auto` halves the size.

    Args:
        memory: as `RunConfig.memory`.
        given: the setting of the micro-batch size.
        model: on its device.
    """
    available = available_memory(memory, model.device)
    if available is None:
        return MemoryPlan(None if given == "auto" else given, saving=False)
    kept, saved = (int(available // (model.gradient_memory(saving=saving) + REWARD)) for saving in (False, True))
    if given != "auto":
        return MemoryPlan(given, saving=given > kept)
    saving = kept < ENOUGH
    return MemoryPlan(max(1, saved if saving else kept), saving=saving)


def available_memory(memory: str, device: torch.device) -> float | None:
    """GiB for the gradient step, beside the weights that are loaded and the reserve; None: no limit.

    `memory` names a size, or is "auto": all of the accelerator that is free; on a CPU there is no limit.
    """
    if device.type != "cuda":
        return None if memory == "auto" else TIERS[memory] * 1e9 / 2**30 - RESERVE
    if memory == "auto":
        return torch.cuda.mem_get_info(device)[0] / 2**30 - RESERVE
    return (TIERS[memory] * 1e9 - torch.cuda.memory_allocated(device)) / 2**30 - RESERVE
