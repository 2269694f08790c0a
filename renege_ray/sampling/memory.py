"""What the gradient step takes of an accelerator's memory, and a plan from it.

The gradient is taken in two stages (`method.gradient`), so a batch of b samples, d images decoded at once, takes

    d (decoder + reward)  +  b denoiser         GiB beside the weights,

with the activations kept or, where little fits, computed again in the backward pass. The figures of the families
(`MEMORY`) are counted on fake tensors at the models' own sizes (`tests/models/test_memory.py`); what a piece has
really used replaces them as soon as it is known (`MicroBatches`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from renege_ray.models.base import Activations, TextToImage
from renege_ray.rewards.catalogue import REWARDS, RewardFacts, full_name

TIERS = {"16gb": 16.0, "24gb": 24.0, "80gb": 80.0}  # GB as on the box, 10^9 bytes
RESERVE = 1.5  # GiB for the CUDA context, the libraries' workspaces and what fragmentation loses
ENOUGH = 4  # samples at once; with fewer an accelerator waits for its own launches, so activations are computed again
DECODED_AT_ONCE = (8, 4, 2, 1)  # images; a reward of one image does not fill an accelerator
WITHOUT_GRAPH = 0.2  # of what a sample takes with one, at most


@dataclass(frozen=True)
class GradientMemory:
    """Memory and what the gradient step does with it."""

    available: float
    """GiB beside the weights and the reserve; infinite where there is no limit."""
    fixed: float
    """GiB of the decoder and the reward, for all images that are decoded at once."""
    slope: float
    """GiB of the denoiser, a sample."""
    decoded_at_once: int | None
    """Images; None: all."""
    saving: bool
    """Whether activations are computed again in the backward pass."""

    def samples(self) -> int:
        """How many fit, at least 1."""
        if self.available == float("inf"):
            return _NO_LIMIT
        return max(1, int((self.available - self.fixed) / self.slope))

    def rows(self) -> int:
        """How many fit where no graph is kept, at least 1; under guidance a sample is two of them."""
        return max(1, int(self.available / (WITHOUT_GRAPH * self.slope))) if self.slope else _NO_LIMIT

    def needed(self, samples: int) -> float:
        """GiB for so many at once."""
        return self.fixed + self.slope * samples

    def measured(self, samples: int, peak: float) -> "GradientMemory":
        """The same in proportion to what a piece of so many has really used."""
        ratio = peak / self.needed(samples)
        return replace(self, fixed=self.fixed * ratio, slope=self.slope * ratio)


_NO_LIMIT = 2**31


def reward_memory(names: Iterable[str]) -> float:
    """GiB of an image's activations in the largest of the rewards that are trained against: one is held at a time."""
    known = [REWARDS[full_name(name)] for name in names if full_name(name) in REWARDS]
    return max((facts.activations for facts in known), default=RewardFacts.activations)


def plan_memory(
    memory: str, given: Literal["auto"] | int, model: TextToImage, rewards: Iterable[str] = ()
) -> GradientMemory:
    """How the gradient step uses what is left beside all that has been loaded already.

    A micro-batch size that the user gave is kept; activations are then saved if it does not fit otherwise.

    Args:
        memory: as `RunConfig.memory`.
        given: the setting of the micro-batch size.
        model: on its device.
        rewards: the names of those that are trained against.
    """
    available = available_memory(memory, model.device)
    if available is None:
        return GradientMemory(float("inf"), 0.0, 0.0, None, saving=False)
    return plan_within(available, given, model, rewards)


def plan_within(
    available: float, given: Literal["auto"] | int, model: TextToImage, rewards: Iterable[str] = ()
) -> GradientMemory:
    """How the gradient step uses so many GiB, beside the weights and the reserve; see `plan_memory`."""
    wanted, reward = ENOUGH if given == "auto" else given, reward_memory(rewards)
    for saving in (False, True):
        plan = _with_decodes(available, model.gradient_memory(saving=saving), reward, saving, wanted)
        if plan.samples() >= wanted and plan.needed(1) <= available:
            break
    return plan


def _with_decodes(available: float, of: Activations, reward: float, saving: bool, wanted: int) -> GradientMemory:
    """As many images decoded at once as leave room for the samples that are wanted."""
    decode = of.decode + reward
    for at_once in DECODED_AT_ONCE:
        plan = GradientMemory(available, at_once * decode, of.denoise, at_once, saving)
        if plan.needed(max(wanted, 2 * at_once)) <= available:
            break
    return plan


def available_memory(memory: str, device: torch.device, *, share: float | None = None) -> float | None:
    """GiB for the gradient step, beside the weights that are loaded and the reserve; None: no limit.

    `memory` names what this process has, or is "auto": all of the accelerator that is free. Either way it is no more
    than the share of the accelerator that the process is held to. On a CPU there is no limit. What PyTorch keeps in its
    own cache is free, too: a plan is the same whatever was computed before.

    Args:
        memory: as `RunConfig.memory`.
        device: where the model is.
        share: of the accelerator that this process may use; None: what it is held to, as torch says.
    """
    if device.type != "cuda":
        return None if memory == "auto" else TIERS[memory] * 1e9 / 2**30 - RESERVE
    free, total = torch.cuda.mem_get_info(device)
    own, cached = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    held = total * (torch.cuda.get_per_process_memory_fraction(device) if share is None else share)
    left = free + cached if memory == "auto" else TIERS[memory] * 1e9
    return (min(left, held) - own) / 2**30 - RESERVE


class CudaMeter:
    """See `sampling.batches.Meter`."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._before = device, 0

    def start(self) -> None:
        """See `Meter`."""
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_allocated(self._device)

    def peak(self) -> float:
        """See `Meter`."""
        return (torch.cuda.max_memory_allocated(self._device) - self._before) / 2**30
