"""Whether a worker compiles its networks, by what the run costs it."""

import torch

from renege_ray.cluster.cost import Cost
from renege_ray.config.run import ModelConfig
from renege_ray.models.networks.compiled import decide, pays_off


def settle(model: ModelConfig, cost: Cost, workers: int, device: torch.device) -> tuple[ModelConfig, str]:
    """The model's configuration with a decision in `compile`, and a line that says why.

    Args:
        model: of the run.
        cost: of all workers.
        workers: how many share it.
        device: of this one.
    """
    compiles, why = decide(model.compile, rows_of(cost) // max(1, workers), device)
    return model.model_copy(update={"compile": compiles}), why


def describe_compiling(model: ModelConfig, cost: Cost, workers: int) -> str:
    """The line of a plan, which is made where no GPU need be."""
    if model.compile != "auto":
        return f"model.compile {str(model.compile).lower()}"
    return f"model.compile auto, on a CUDA GPU: {pays_off(rows_of(cost) // max(1, workers))[1]}"


def rows_of(cost: Cost) -> int:
    """Rows of the denoiser, as `models.networks.compiled.decide` counts them: going back is as much as two of them."""
    return cost.denoiser_forward + 2 * cost.denoiser_backward
