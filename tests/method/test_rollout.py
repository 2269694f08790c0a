import pytest
import torch
from torch import Tensor

from renege_ray.method import Schedule, make_schedule, rollout
from renege_ray.method.guidance import Guidance

W = 3.0


def linear_denoiser(latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
    """Depends on everything that it is given, on each sample alone."""
    assert timestep.ndim == 0 and timestep.dtype == torch.int64
    return 0.5 * latents + prompt_embeds.mean(dim=(1, 2))[:, None, None, None] + 1e-3 * timestep


@pytest.fixture
def schedule() -> Schedule:
    alphas = torch.linspace(0.999, 0.01, 100)
    return make_schedule(
        alphas, 6, prediction_type="v_prediction", timestep_spacing="trailing", steps_offset=0, set_alpha_to_one=True
    )


@pytest.fixture
def given() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x, c, n = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((3, 4, 8, 8), (3, 5, 7), (1, 5, 7)))
    return x, c, n


def test_one_batch_of_both_branches_negative_first(schedule: Schedule, given: tuple[Tensor, Tensor, Tensor]) -> None:
    x, c, n = given
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
        seen.append((latents, prompt_embeds))
        return linear_denoiser(latents, timestep, prompt_embeds)

    rollout(spy, x, c, n, schedule, Guidance(W))
    assert len(seen) == len(schedule)
    assert all(torch.equal(embeds, torch.cat([n.expand_as(c), c])) for _, embeds in seen)
    assert torch.equal(seen[0][0], torch.cat([x, x]))


def test_a_rollout_can_be_cut_anywhere(schedule: Schedule, given: tuple[Tensor, Tensor, Tensor]) -> None:
    x, c, n = given
    whole = rollout(linear_denoiser, x, c, n, schedule, Guidance(W), keep=range(len(schedule)))
    assert sorted(whole.kept) == list(range(6))
    assert torch.equal(whole.kept[0], x)
    for stop in range(6):
        part = rollout(linear_denoiser, x, c, n, schedule, Guidance(W), stop=stop, keep={stop})
        assert torch.equal(part.latents, whole.kept[stop]) and torch.equal(part.kept[stop], part.latents)
    assert torch.equal(rollout(linear_denoiser, x, c, n, schedule, Guidance(W), stop=6).latents, whole.latents)
    assert not torch.equal(whole.latents, whole.kept[5])


def test_samples_do_not_touch_each_other(schedule: Schedule, given: tuple[Tensor, Tensor, Tensor]) -> None:
    x, c, n = given
    own = torch.cat([n, 2 * n, -n])
    together = rollout(linear_denoiser, x, c, own, schedule, Guidance(W)).latents
    for j in range(3):
        alone = rollout(linear_denoiser, x[j : j + 1], c[j : j + 1], own[j : j + 1], schedule, Guidance(W)).latents
        torch.testing.assert_close(alone[0], together[j])


def test_the_caller_owns_the_gradient_mode(schedule: Schedule, given: tuple[Tensor, Tensor, Tensor]) -> None:
    x, c, n = given
    n.requires_grad_()
    assert rollout(linear_denoiser, x, c, n, schedule, Guidance(W)).latents.requires_grad
    with torch.no_grad():
        assert not rollout(linear_denoiser, x, c, n, schedule, Guidance(W)).latents.requires_grad


def test_nothing_is_drawn(schedule: Schedule, given: tuple[Tensor, Tensor, Tensor]) -> None:
    x, c, n = given
    before = torch.get_rng_state()
    rollout(linear_denoiser, x, c, n, schedule, Guidance(W))
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_arguments(schedule: Schedule, given: tuple[Tensor, Tensor, Tensor]) -> None:
    x, c, n = given
    for stop in (-1, 7):
        with pytest.raises(ValueError, match="stop"):
            rollout(linear_denoiser, x, c, n, schedule, Guidance(W), stop=stop)
    for stop, keep in ((3, {4}), (6, {6}), (3, {-1})):
        with pytest.raises(ValueError, match="keep"):
            rollout(linear_denoiser, x, c, n, schedule, Guidance(W), stop=stop, keep=keep)
    for bad in (n[0], n.expand(2, -1, -1), n[:, :4]):
        with pytest.raises(ValueError, match="negative embedding"):
            rollout(linear_denoiser, x, c, bad, schedule, Guidance(W))
