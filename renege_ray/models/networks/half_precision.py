"""float16 on the way back: gradients that it can hold.

A score moves by hundredths and an image has hundreds of thousands of pixels: the gradient with respect to one of them
is often below 6e-5, where float16 loses digits, and below 6e-8, where it is zero. (bfloat16 has the exponents of
float32.) So a gradient is multiplied by a power of two where it enters a float16 network, and divided by the same where
it leaves: exact, since a gradient is linear in that from which it comes, and a power of two rounds nothing.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_MADE_IN_BFLOAT16 = ("t5", "umt5", "qwen3", "qwen2_5_vl", "gemma2")
_DECODERS_MADE_IN_BFLOAT16 = ("AutoencoderDC",)  # and small enough for float32
_LARGEST_EXPONENT = 126  # of a scale in float32


class ScaledBackward:
    """The way back through one call of a network. Forward, all of it is the identity.

        scaled = ScaledBackward(network)
        y = scaled.leave(network(scaled.enter(x).half()).float())

    Each row of a batch has a scale of its own, so that no row depends on another. What overflows in the network all the
    same becomes an infinite gradient, by which a sample is known to have failed; it never becomes a wrong one.

    Where the network's own weights require gradients nothing is scaled: theirs would be, too.
    """

    def __init__(self, network: torch.nn.Module, dtype: torch.dtype) -> None:
        """`dtype`: that the network computes in; with any but float16 there is nothing to do."""
        self.wanted = (
            dtype == torch.float16
            and torch.is_grad_enabled()
            and not any(weight.requires_grad for weight in network.parameters())
        )
        self.scale: Tensor | None = None  # (B,) float32, as soon as a gradient has come

    def enter(self, x: Tensor) -> Tensor:
        """An input (B, ...) in float32, before it is cast."""
        return _Divide.apply(x, self) if self.wanted and x.requires_grad else x

    def leave(self, y: Tensor) -> Tensor:
        """The output (B, ...) in float32, after it has been cast."""
        return _Multiply.apply(y, self) if self.wanted and y.requires_grad else y


class _Multiply(torch.autograd.Function):
    """Backward: scale each row so that its largest entry is in [1/2, 1), far from both ends of float16."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, scaled: ScaledBackward) -> Tensor:
        ctx.scaled = scaled
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        largest = gradient.flatten(1).abs().amax(dim=1)
        exponent = torch.frexp(largest).exponent.clamp(-_LARGEST_EXPONENT, _LARGEST_EXPONENT)
        scale = torch.ldexp(torch.ones_like(largest), -exponent)
        ctx.scaled.scale = torch.where(largest.isfinite(), scale, 1.0)
        return gradient * _of_rows(ctx.scaled.scale, gradient), None


class _Divide(torch.autograd.Function):
    """Backward: divide each row by the scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scaled: ScaledBackward) -> Tensor:
        ctx.scaled = scaled
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient / _of_rows(ctx.scaled.scale, gradient), None


def _of_rows(scale: Tensor, x: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (x.ndim - 1))


def stored_dtype(module: torch.nn.Module, dtype: torch.dtype) -> torch.dtype:
    """What a network of a model that computes in `dtype` is kept in: where it overflows in float16, something wider.

    Some decoders do (SDXL's, which diffusers keeps in float32, too, and Sana's). T5 and language models do in their
    residual streams; they are too large for float32 on the GPUs in question, and slow in an emulated bfloat16 they
    read each prompt once.
    """
    config = getattr(module, "config", None)
    known = {name: getattr(config, name, None) for name in ("force_upcast", "model_type")}
    return kept_dtype(dtype, {"_class_name": type(module).__name__, **known})


def kept_dtype(dtype: torch.dtype, config: Mapping[str, Any]) -> torch.dtype:
    """`stored_dtype` by what a network's configuration file says."""
    if dtype != torch.float16:
        return dtype
    if config.get("force_upcast") or config.get("_class_name") in _DECODERS_MADE_IN_BFLOAT16:
        return torch.float32
    return torch.bfloat16 if config.get("model_type") in _MADE_IN_BFLOAT16 else dtype
