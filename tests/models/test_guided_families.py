"""What is said before anything is loaded of guidance under which no gradient reaches a negative."""

import pytest
import torch

from renege_ray.config.run import SamplingConfig
from renege_ray.errors import UserError
from renege_ray.method import Guidance
from renege_ray.models.guidance import check_gradient_steps, check_scale, options_of


def test_a_scale_has_to_be_above_the_familys_own_bound() -> None:
    check_scale(1.01)
    check_scale(0.01, least=0.0)
    with pytest.raises(UserError, match=r"sampling.guidance_scale: 1 is not above 1, .*no gradient.* give .*above 1"):
        check_scale(1.0)
    with pytest.raises(UserError, match=r"sampling.guidance_scale: 0.5 is not .* \(d eps / d eps_n = 1 - w\)"):
        check_scale(0.5)
    with pytest.raises(UserError, match=r"not above 0, .*\(its own words\)"):
        check_scale(float("nan"), least=0.0, because="its own words")


def test_options_are_the_pipelines_own() -> None:
    sampling = SamplingConfig(guidance_options={"cfg_truncation": 0.7})
    known = {"cfg_truncation": 1.0, "cfg_normalization": 0.0}
    assert options_of(sampling, known, "P") == {"cfg_truncation": 0.7, "cfg_normalization": 0.0}
    with pytest.raises(UserError, match=r"sampling.guidance_options: P has no 'cfg_truncation'; it has none"):
        options_of(sampling, {}, "P")
    with pytest.raises(UserError, match="did you mean cfg_truncation"):
        options_of(SamplingConfig(guidance_options={"cfg_trunkation": 0.7}), known, "P")


def test_gradients_are_taken_only_where_there_is_guidance() -> None:
    guidance = Guidance(torch.tensor([4.0, 4.0, 4.0, 1.0, 1.0]).double())  # none at the last two of five steps
    check_gradient_steps(guidance, SamplingConfig(num_inference_steps=5, gradient_steps=(2, 5)))
    with pytest.raises(UserError, match=r"gradient_steps: \[0, 3\].*2 of them.*guided are \[2, 5\]"):
        check_gradient_steps(guidance, SamplingConfig(num_inference_steps=5, gradient_steps=(0, 3)))
    check_gradient_steps(Guidance(2.0), SamplingConfig(num_inference_steps=5, gradient_steps=(0, 5)))
