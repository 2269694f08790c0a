"""Whether a negative has an effect, and so a gradient, under a family's guidance; checked before anything is loaded."""

from collections.abc import Mapping

from renege_ray.config.faults import did_you_mean
from renege_ray.config.run import SamplingConfig
from renege_ray.errors import UserError
from renege_ray.method.guidance import Guidance

PLAIN = "d eps / d eps_n = 1 - w"


def check_scale(scale: float, *, least: float = 1.0, because: str = PLAIN) -> None:
    """Check that a scale is above the one at which a pipeline takes no negative.

    Args:
        scale: `sampling.guidance_scale`.
        least: that scale.
        because: what happens there, in the pipeline's terms.

    Raises:
        UserError: it is not.
    """
    if not scale > least:
        raise UserError(
            f"sampling.guidance_scale: {scale:g} is not above {least:g}, so no gradient that improves images reaches "
            f"the negative embedding ({because}); give a scale above {least:g}, such as {least + 3:g}"
        )


def options_of(sampling: SamplingConfig, known: Mapping[str, float], pipeline: str) -> dict[str, float]:
    """The options of a pipeline's guidance, those of `sampling.guidance_options` and the defaults of the others.

    Raises:
        UserError: an option that the pipeline does not have.
    """
    for name in sampling.guidance_options:
        if name not in known:
            have = ", ".join(known) or "none"
            raise UserError(
                f"sampling.guidance_options: {pipeline} has no {name!r}; {did_you_mean(name, list(known))}it has {have}"
            )
    return {**known, **sampling.guidance_options}


def check_gradient_steps(guidance: Guidance, sampling: SamplingConfig) -> None:
    """Check that the negative has an effect at all steps that gradients are taken at.

    Raises:
        UserError: some are outside the interval that is guided.
    """
    steps, (first, last) = sampling.num_inference_steps, sampling.gradient_steps
    without = [place for place in range(first, last) if not guidance.at(steps - 1 - place) > 1]
    if without:
        guided = [place for place in range(steps) if guidance.at(steps - 1 - place) > 1]
        longest = f"; guided are [{guided[0]}, {guided[-1] + 1}]" if guided else ""
        raise UserError(
            f"sampling.gradient_steps: [{first}, {last}] has steps without guidance ({len(without)} of them, the first "
            f"{without[0]} from the clean end), where no gradient reaches the negative embedding{longest}"
        )
