"""What the hardware of this process is good for: where to compute, and in which floating type.

The decisions are functions of what the hardware says, so that they can be read, and tested, without it.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch.nn import functional as F

from renege_ray.errors import first_line
from renege_ray.output.console import say

# Ampere; before, torch emulates it in float32, and its `is_bf16_supported()` is true all the same.
NATIVE_BFLOAT16 = (8, 0)
TENSOR_CORES = (7, 0)  # Volta; before, float16 is as slow as float32 or much slower
# Of 7.5, as the T4, but without tensor cores, and known for float16 convolutions that are not finite.
WITHOUT_TENSOR_CORES = "GTX 16"
_TOLERANCE = 1e-3


def fastest_dtype(device_type: str, capability: tuple[int, int] | None = None, name: str = "") -> torch.dtype:
    """The type that networks compute fastest in on a device, of those that are right for them there.

    Args:
        device_type: "cuda", "mps", "cpu" or another of torch's.
        capability: an NVIDIA GPU's compute capability; None for AMD's, all of which have bfloat16.
        name: what the GPU calls itself.

    Returns:
        bfloat16 where the hardware has it. float16 where its tensor cores know nothing better (V100, T4, RTX 20xx);
        what overflows in it is for the models to know. Else float32: on a CPU, on older GPUs, and on Apple's, whose
        float16 is no faster.
    """
    if device_type != "cuda":
        return torch.float32
    if capability is None or capability >= NATIVE_BFLOAT16:
        return torch.bfloat16
    if capability >= TENSOR_CORES and WITHOUT_TENSOR_CORES not in name:
        return torch.float16
    return torch.float32


def fastest_dtype_on(device: torch.device) -> torch.dtype:
    """`fastest_dtype` by what a device of this machine says of itself."""
    if device.type != "cuda":
        return fastest_dtype(device.type)
    capability = None if torch.version.hip else torch.cuda.get_device_capability(device)
    return fastest_dtype("cuda", capability, torch.cuda.get_device_name(device))


@lru_cache
def default_device() -> torch.device:
    """Where this process computes if nobody says where: the first CUDA device, Apple's GPU, or the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else without_cuda()


@lru_cache
def without_cuda() -> torch.device:
    """Apple's GPU or the CPU; where there is one that does not work, that is said, once a process."""
    mps = torch.backends.mps
    device, why_not = choose_without_cuda(built=mps.is_built(), available=mps.is_available(), trouble=trouble_with)
    if why_not:
        say(why_not, error=True)
    return device


def choose_without_cuda(
    *, built: bool, available: bool, trouble: Callable[[torch.device], str]
) -> tuple[torch.device, str]:
    """Apple's GPU where it is there and works, else the CPU.

    Args:
        built: whether this torch knows Apple's GPUs; only one for macOS does.
        available: whether macOS offers one.
        trouble: what is wrong with what a device computes; "" if nothing is.

    Returns:
        The device, and a line that says why it is not the GPU where one could be expected.
    """
    if not built:
        return torch.device("cpu"), ""
    why_not = trouble(torch.device("mps")) if available else "macOS offers none (it takes macOS 14 on Apple silicon)"
    if why_not:
        return torch.device("cpu"), f"Apple's GPU (MPS) is not used: {why_not}; computing on the CPU"
    return torch.device("mps"), ""


def trouble_with(device: torch.device) -> str:
    """Why a device cannot be used: what it raises in a small computation, or that its result is not the CPU's.

    The computation is made of what the models are: a convolution, norms, attention, a bicubic resize, and the way back
    through them.
    """
    try:
        found, true = _probe(device), _probe(torch.device("cpu"))
    except Exception as error:  # an operation that it lacks can be any kind of error
        return first_line(error)
    if not torch.allclose(found, true, atol=_TOLERANCE, rtol=_TOLERANCE):
        return "a small computation on it gives another result than on the CPU"
    return ""


def _probe(device: torch.device) -> torch.Tensor:
    """A gradient (2, 8, 12, 12), on the CPU."""
    draw = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*shape, generator=draw).to(device) for shape in ((2, 8, 12, 12), (16, 8, 3, 3)))
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    signal = torch.tensor(0.5, dtype=torch.float64)  # a step's factor: a number on the CPU
    y = F.group_norm(F.conv2d(x * signal, weight, padding=1), 4)
    tokens = F.layer_norm(y.flatten(2).mT, (16,)).unflatten(2, (2, 8)).transpose(1, 2)
    y = F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2).flatten(2).mT.unflatten(2, (12, 12))
    y = F.interpolate(F.silu(y), size=(8, 8), mode="bicubic", antialias=True)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    return gradient.cpu()
