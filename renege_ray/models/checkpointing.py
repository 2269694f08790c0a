"""Gradient checkpointing for networks of diffusers that have none of their own."""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def keep_inputs_alone(module: nn.Module, saving: bool) -> None:
    """Let a module keep no more than its input for the backward pass, which computes it again; or no longer.

    Args:
        module: its class has a `forward` of one tensor.
        saving: whether to.
    """
    module.__dict__.pop("forward", None)
    if saving:
        module.__dict__["forward"] = partial(_again, module)


def _again(module: Any, x: Tensor) -> Tensor:
    made: Tensor = checkpoint(type(module).forward, module, x, use_reentrant=False)
    return made
