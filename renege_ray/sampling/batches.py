"""How much a worker computes at once: a plan from the memory that is there, and batches cut into pieces that fit.

The gradient step is what needs memory. Counted for a sample at the models' own sizes in bfloat16 (denoiser and
decoder; a reward comes on top), with activations kept, and computed again:

    SD1.x   512x512     3.8 GiB   1.9 GiB           SD2.1   768x768      8.1 GiB   3.9 GiB
    PixArt  512x512     4.2 GiB   2.2 GiB           SDXL    1024x1024   18.4 GiB   8.7 GiB

Computing them again repeats the forward passes of the denoiser and the decoder: on SD1.5 3.3 TFLOP more a sample of
48, most of which are the rollout's. A larger micro-batch gains an accelerator more than these 7 % as long as only a
few samples fit. Hence the rule: keep the activations where at least `ENOUGH` samples fit so.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch

from renege_ray.errors import UserError, describe
from renege_ray.models.base import TextToImage

Item = TypeVar("Item")
Output = TypeVar("Output")
Failed = TypeVar("Failed")
TIERS = {"16gb": 16.0, "24gb": 24.0, "80gb": 80.0}  # GB as on the box, 10^9 bytes
REWARD_MEMORY = 1.2  # GiB a sample for a ViT-H reward and the image in float32
RESERVE = 1.5  # GiB for the CUDA context, the libraries' workspaces and what fragmentation loses
ENOUGH = 4  # samples; under guidance the rollout computes twice as many at once


@dataclass(frozen=True)
class MemoryPlan:
    """What fits into the memory."""

    micro_batch_size: int | None
    """Samples that are computed at once, at least 1; None: as many as there are."""
    saving: bool
    """Whether activations are computed again in the backward pass."""


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
    kept, saved = (int(available // (model.gradient_memory(saving=saving) + REWARD_MEMORY)) for saving in (False, True))
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


class MicroBatches:
    """How many samples are computed at once: as given, or found by halving whenever memory does not suffice.

    Attributes:
        size: the number of samples; what was found is kept for the rest of the run.
    """

    def __init__(self, given: Literal["auto"] | int, largest: int, field: str, *, known: int = 0) -> None:
        """Start with the whole batch where the size is to be found.

        Args:
            given: the setting.
            largest: the size of a whole batch.
            field: what the configuration calls the setting.
            known: a size that is known (from a checkpoint) or expected to fit, or 0.
        """
        self.size = known or (largest if given == "auto" else min(given, largest))
        self._finds_size, self._field = given == "auto", field

    def over(
        self, items: Sequence[Item], compute: Callable[[Sequence[Item]], Output]
    ) -> Iterator[tuple[Sequence[Item], Output]]:
        """The pieces of a batch, in order, each with what `compute` makes of it.

        Raises:
            UserError: a piece of the given size, or a single sample, does not fit into the memory.
        """
        start = 0
        while start < len(items):
            piece = items[start : start + self.size]
            done = _try(compute, piece)
            if done is None:
                self._halve()
                continue
            start += len(piece)
            yield piece, done[0]

    def _halve(self) -> None:
        if not self._finds_size or self.size == 1:
            raise UserError(
                f"{self._field}: {self.size} does not fit into the memory of the accelerator; "
                "use a smaller one, 'auto' to have it found, or a model of smaller images"
            )
        self.size //= 2
        torch.cuda.empty_cache()


def _try(compute: Callable[[Sequence[Item]], Output], piece: Sequence[Item]) -> tuple[Output] | None:
    """What `compute` returns, or None where the accelerator's memory did not suffice. The exception ends here,
    since it holds on to all that the failed attempt had allocated.
    """
    try:
        return (compute(piece),)
    except torch.cuda.OutOfMemoryError:
        return None


def together_or_alone(
    items: Sequence[Item],
    compute: Callable[[Sequence[Item]], Sequence[Output]],
    failed: Callable[[Item, str], Failed],
    fatal: tuple[type[Exception], ...] = (),
) -> list[Output | Failed]:
    """What `compute` makes of each item, in order. Where it raises for all together, each is tried alone, and what
    raises alone comes out as `failed(item, reason)`.

    Raises:
        UserError, torch.AcceleratorError, `fatal`: no single item is to blame for these.
    """
    if not items:
        return []
    blameless: tuple[type[Exception], ...] = (UserError, torch.AcceleratorError, *fatal)
    try:
        return list(compute(items))
    except blameless:
        raise
    except Exception as error:
        if len(items) == 1:
            return [failed(items[0], describe(error))]
    return [made for item in items for made in together_or_alone([item], compute, failed, fatal)]
