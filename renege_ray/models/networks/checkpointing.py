"""Gradient checkpointing for networks of diffusers that have none of their own, or one that computes something else."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def keep_inputs_alone(module: nn.Module, saving: bool) -> None:
    """Let a module keep no more than its inputs for the backward pass, which computes it again; or no longer."""
    module.__dict__.pop("forward", None)
    if saving:
        module.__dict__["forward"] = partial(_again, type(module).forward, module)  # dynamo cannot look it up


def _again(forward: Callable[..., Any], module: nn.Module, *inputs: Any, **named: Any) -> Any:
    return checkpoint(forward, module, *inputs, use_reentrant=False, **named)
