import torch

from renege_ray.method import Guidance, guide, make_schedule


def test_equation_5_and_its_derivative() -> None:
    e_n = torch.randn(2, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    e_c = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    w = 7.5
    torch.testing.assert_close(guide(e_n, e_c, w), e_n + w * (e_c - e_n))
    (gradient,) = torch.autograd.grad(guide(e_n, e_c, w).sum(), e_n)
    torch.testing.assert_close(gradient, torch.full_like(e_n, 1 - w))


def test_at_scale_1_only_the_prompt_counts() -> None:
    e_n, e_c = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(guide(e_n, e_c, 1.0), e_c)


def test_guiding_x0_or_v_is_guiding_the_noise() -> None:
    x_t, out_n, out_c = torch.randn(3, 1, 4, 8, 8, dtype=torch.float64)
    alphas = torch.tensor([0.4])
    for prediction in ("v_prediction", "sample"):
        schedule = make_schedule(
            alphas, 1, prediction_type=prediction, timestep_spacing="leading", steps_offset=0, set_alpha_to_one=True
        )
        (_, e_n), (_, e_c), (_, e) = (schedule.split(out, x_t, 0) for out in (out_n, out_c, guide(out_n, out_c, 3.0)))
        torch.testing.assert_close(e, guide(e_n, e_c, 3.0))


def test_each_step_may_have_a_scale_of_its_own() -> None:
    """Two scales (Wan 2.2), or steps without guidance (Lumina2); the samples of a batch at steps of their own, too."""
    e_n, e_c = torch.randn(2, 2, 4, 8, 8, dtype=torch.float64)
    guidance = Guidance(torch.tensor([5.0, 2.0, 1.0], dtype=torch.float64))
    for i, w in enumerate((5.0, 2.0, 1.0)):
        torch.testing.assert_close(guidance(e_n, e_c, i), guide(e_n, e_c, w))
        assert guidance.at(i) == w and Guidance(w).at(i) == w
    rows = guidance(e_n, e_c, torch.tensor([2, 0]))
    torch.testing.assert_close(rows, torch.stack([e_c[0], guide(e_n[1], e_c[1], 5.0)]))
    assert guidance(e_n.float(), e_c.float(), 1).dtype == torch.float32


def test_plain_guidance_is_equation_5_bit_for_bit() -> None:
    e_n, e_c = torch.randn(2, 2, 4, 8, 8)
    assert torch.equal(Guidance(7.5)(e_n, e_c, 3), guide(e_n, e_c, 7.5))
    assert torch.equal(Guidance(torch.full((5,), 7.5).double())(e_n, e_c, 3), guide(e_n, e_c, 7.5))
