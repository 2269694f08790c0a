"""How often each part of the models is run, counted before a run starts."""

from dataclasses import astuple, dataclass

from renege_ray.config.run import RunConfig
from renege_ray.training.gradient import gradient_step_indices


@dataclass(frozen=True)
class Cost:
    """How often each part of the models is run, per image (a batch of 8 counts 8 times)."""

    denoiser_forward: int
    denoiser_backward: int
    decode_forward: int
    decode_backward: int
    rewarded_images: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


NOTHING = Cost(0, 0, 0, 0, 0)


def gradient_cost(config: RunConfig) -> Cost:
    """All updates: the steps of the rollouts are drawn in advance, so the count is exact.

    Gradients on the way cost no forward pass; a rollout's last one, after which it ends, costs both branches.
    """
    optim = config.optim
    group_size = optim.batch_size // optim.timestep_groups
    rollouts = sum(
        group_size * gradient_step_indices(config, step, group)[-1]
        for step in range(optim.steps)
        for group in range(optim.timestep_groups)
    )
    ends = optim.steps * optim.batch_size
    return Cost(2 * rollouts + 2 * ends, *[ends * optim.gradients_per_rollout] * 4)


def training_cost(config: RunConfig) -> Cost:
    """A training with its validations, without the test at its end."""
    return gradient_cost(config) + evaluation_cost(config, validation_images(config))


def evaluation_cost(config: RunConfig, images: int) -> Cost:
    """Full generations of so many images."""
    return Cost(2 * images * config.sampling.num_inference_steps, 0, images, 0, images)


def validation_images(config: RunConfig) -> int:
    """Images of all validations, the baselines and the handwritten candidates at the start included."""
    every, steps = config.validation.every, config.optim.steps
    rounds = 1 + steps // every + (1 if steps % every else 0)
    pairs = config.validation.num_prompts * config.validation.seeds_per_prompt
    return pairs * (rounds + 1 + len(config.prompts.handwritten))


def tuning_cost(config: RunConfig, prompts: int) -> Cost:
    """All prompts, if none stops early: every candidate's generation, the gradients on its way, which cost no forward
    pass of the denoiser, and what else is compared.
    """
    tuning = config.tuning
    seeds = tuning.tune_seeds + tuning.eval_seeds
    generated = (tuning.steps + 1) * tuning.tune_seeds + 2 * seeds + 2 * tuning.eval_seeds
    gradients = prompts * tuning.steps * tuning.tune_seeds * tuning.gradients_per_rollout
    return evaluation_cost(config, prompts * generated) + Cost(0, *[gradients] * 4)
