import torch

from renege_ray.method import guide, predict_x0_and_noise


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
    a = torch.tensor(0.4, dtype=torch.float64)
    for prediction in ("v_prediction", "sample"):
        _, e_n = predict_x0_and_noise(out_n, x_t, a, prediction)
        _, e_c = predict_x0_and_noise(out_c, x_t, a, prediction)
        _, e = predict_x0_and_noise(guide(out_n, out_c, 3.0), x_t, a, prediction)
        torch.testing.assert_close(e, guide(e_n, e_c, 3.0))
