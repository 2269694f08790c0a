"""Each rescaling against its closed form, and its gradient against finite differences."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from renege_ray.method.guidance import Guidance
from renege_ray.method.rescaling import limit_norm, match_deviation, match_norm, patch_norm, row_norm

RESCALES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "patches": partial(match_norm, norm=patch_norm),
    "rows": partial(match_norm, norm=row_norm),
    "deviation": partial(match_deviation, share=0.7),
    "a limit that binds": partial(limit_norm, most=0.5),
    "a limit that does not": partial(limit_norm, most=50.0),
}


def outputs(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    e_n, e_c = torch.randn(2, 2, 3, 4, 6, dtype=torch.float64, generator=generator)
    return e_n, e_c


@pytest.mark.parametrize("name", RESCALES)
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    e_n, e_c = outputs()
    scales = torch.tensor([4.0, 1.5], dtype=torch.float64)
    for guidance, step in (
        (Guidance(3.0, RESCALES[name]), 0),
        (Guidance(scales, RESCALES[name]), torch.tensor([1, 0])),
    ):
        assert torch.autograd.gradcheck(lambda n, g=guidance, i=step: g(n, e_c, i), e_n.clone().requires_grad_())


@pytest.mark.parametrize("name", RESCALES)
def test_the_prompts_own_output_stays_and_rows_do_not_touch(name: str) -> None:
    e_n, e_c = outputs()
    guidance = Guidance(3.0, RESCALES[name])
    if name != "a limit that binds":
        torch.testing.assert_close(guidance(e_c, e_c, 0), e_c)
    whole = guidance(e_n, e_c, 0)
    for i in range(2):
        torch.testing.assert_close(guidance(e_n[i : i + 1], e_c[i : i + 1], 0), whole[i : i + 1])


def test_tokens_are_scaled_to_the_prompts_norm_as_they_are_packed() -> None:
    """As Qwen-Image's pipeline does, which packs 2 x 2 latents of all channels before it guides."""

    def packed(x: Tensor) -> Tensor:
        return x.view(2, 3, 2, 2, 3, 2).permute(0, 2, 4, 1, 3, 5).reshape(2, 6, 12)

    e_n, e_c = outputs()
    guided = e_n + 3 * (e_c - e_n)
    expected = packed(guided) * (packed(e_c).norm(dim=-1, keepdim=True) / packed(guided).norm(dim=-1, keepdim=True))
    torch.testing.assert_close(packed(Guidance(3.0, RESCALES["patches"])(e_n, e_c, 0)), expected)


def test_only_the_direction_of_a_token_is_learned() -> None:
    """dr/du = s (1 - u^ u^T), so that de/de_n = (1 - w) s (1 - u^ u^T)."""
    e_c, e_n = torch.randn(2, 1, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    w = 3.0
    jacobian = torch.autograd.functional.jacobian(lambda n: Guidance(w, RESCALES["patches"])(n, e_c, 0), e_n)
    u = (e_n + w * (e_c - e_n)).flatten()
    unit, s = u / u.norm(), e_c.norm() / u.norm()
    expected = (1 - w) * s * (torch.eye(12, dtype=torch.float64) - torch.outer(unit, unit))
    torch.testing.assert_close(jacobian.reshape(12, 12), expected)


def test_a_limit_scales_down_and_never_up() -> None:
    e_n, e_c = outputs()
    for most in (0.5, 1.0, 50.0):
        found = Guidance(3.0, partial(limit_norm, most=most))(e_n, e_c, 0).flatten(1).norm(dim=1)
        free = Guidance(3.0)(e_n, e_c, 0).flatten(1).norm(dim=1)
        torch.testing.assert_close(found, torch.minimum(free, most * e_c.flatten(1).norm(dim=1)))


@pytest.mark.parametrize("name", RESCALES)
def test_steps_without_guidance_are_not_rescaled(name: str) -> None:
    """There pipelines leave e_c as it is, also where it would be limited to less."""
    e_n, e_c = outputs()
    guidance = Guidance(torch.tensor([3.0, 1.0], dtype=torch.float64), RESCALES[name])
    torch.testing.assert_close(guidance(e_n, e_c, 1), e_c)
    rows = guidance(e_n, e_c, torch.tensor([0, 1]))
    torch.testing.assert_close(rows, torch.stack([guidance(e_n, e_c, 0)[0], e_c[1]]))
