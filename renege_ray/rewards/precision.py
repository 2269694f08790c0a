"""An image tower in bfloat16 whose scores are those of float32.

Weights and matrix products of attention and MLP are bfloat16, which is nearly all of the work. The residual stream, to
which they are added, the norms and what comes after the last layer stay float32. Measured on ViTs of 32 layers with
random weights, cosines are off by 0.0004 then; with everything in bfloat16 it is 0.0013, as much as two images differ.
"""

from typing import Any

import torch
from torch import Tensor, nn


def compute_in(tower: nn.Module, dtype: torch.dtype) -> None:
    """Move attention and MLP of a vision tower of transformers (CLIP's, BLIP's) to a dtype, in place."""
    if dtype == torch.float32:
        return
    layers: Any = tower.encoder.layers  # type: ignore[union-attr]
    for layer in layers:
        for block in (layer.self_attn, layer.mlp):
            block.to(dtype)
            block.register_forward_pre_hook(_cast_inputs, with_kwargs=True)


def _cast_inputs(block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
    """To the block's own dtype; its output is added to a float32 stream, and so becomes float32 again."""
    dtype = next(block.parameters()).dtype

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) else value

    return tuple(map(cast, inputs)), {name: cast(value) for name, value in named.items()}
