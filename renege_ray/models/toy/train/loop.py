"""The training loop that the autoencoder, the diffusion model and the rewards share.

A batch is a function of the step, so an interrupted training continues from its checkpoint as if nothing had happened.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from renege_ray.output.console import say

CHECKPOINT_SECONDS = 120.0
PROGRESS_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """AdamW with a short linear warm-up, a cosine to zero, clipping and an average of the weights."""

    steps: int
    batch_size: int
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    warmup_steps: int = 100
    average_decay: float = 0.999

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        return self.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def fit(module: nn.Module, loss_of_step: Callable[[int], Tensor], recipe: Recipe, checkpoint: Path) -> None:
    """Trains `module` in place and leaves the averaged weights in it.

    Args:
        loss_of_step: the loss on the batch of a step; the batch depends on the step alone.
        checkpoint: a safetensors file that is written now and then, and continued from where it exists.
    """
    parameters = dict(module.named_parameters())
    average = {name: p.detach().clone() for name, p in parameters.items()}
    optimiser = torch.optim.AdamW(
        parameters.values(), lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay
    )
    first = _restore(checkpoint, parameters, average, optimiser) if checkpoint.exists() else 0
    began = saved = told = time.monotonic()
    recent: list[float] = []
    for step in range(first, recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate_at(step)
        loss = loss_of_step(step)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), recipe.clip_norm)
        optimiser.step()
        # A young average must not remember the random beginning.
        decay = min(recipe.average_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), list(parameters.values()), 1 - decay)
        recent.append(float(loss.detach()))
        now = time.monotonic()
        if now - told > PROGRESS_SECONDS or step == recipe.steps - 1:
            left = (now - began) / (step + 1 - first) * (recipe.steps - step - 1)
            mean = sum(recent) / len(recent)
            say(f"  {checkpoint.stem}: step {step + 1}/{recipe.steps}  loss {mean:.4f}  {left:.0f} s left")
            told, recent = now, []
        if now - saved > CHECKPOINT_SECONDS or step == recipe.steps - 1:
            _save(checkpoint, step + 1, parameters, average, optimiser)
            saved = now
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(average[name])


def _save(
    path: Path, step: int, parameters: dict[str, nn.Parameter], average: dict[str, Tensor], optimiser: torch.optim.AdamW
) -> None:
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        state = optimiser.state[parameter]
        tensors |= {
            f"weight/{name}": parameter.detach(),
            f"average/{name}": average[name],
            f"exp_avg/{name}": state["exp_avg"],
            f"exp_avg_sq/{name}": state["exp_avg_sq"],
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, {"step": json.dumps(step)})
    os.replace(temporary, path)


def _restore(
    path: Path, parameters: dict[str, nn.Parameter], average: dict[str, Tensor], optimiser: torch.optim.AdamW
) -> int:
    with safe_open(path, "pt") as file, torch.no_grad():
        step = int(json.loads(file.metadata()["step"]))
        for name, parameter in parameters.items():
            parameter.copy_(file.get_tensor(f"weight/{name}"))
            average[name].copy_(file.get_tensor(f"average/{name}"))
            optimiser.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": file.get_tensor(f"exp_avg/{name}").to(parameter),
                "exp_avg_sq": file.get_tensor(f"exp_avg_sq/{name}").to(parameter),
            }
    return step
