"""Gradients through float16."""

import torch
from torch import Tensor, nn

from renege_ray.models.networks.half_precision import ScaledBackward, stored_dtype


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 8)).requires_grad_(False)


def gradient(x: Tensor, of: Tensor, *, scaled: bool) -> Tensor:
    """(of . network)' through float16."""
    half, x = network().half(), x.clone().requires_grad_()
    passage = ScaledBackward(half, torch.float16 if scaled else torch.float32)
    y = passage.leave(half(passage.enter(x).half()).float())
    (found,) = torch.autograd.grad(y, x, of)
    return found


def exact(x: Tensor, of: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(network()(x), x, of)
    return found


def test_gradients_of_any_size_come_through() -> None:
    x = torch.randn(5, 8)
    of = torch.randn(5, 8) * torch.tensor([1e-12, 1e-7, 1.0, 1e6, 1e-30])[:, None]
    true = exact(x, of)
    torch.testing.assert_close(gradient(x, of, scaled=True) / of.abs().amax(1, True), true / of.abs().amax(1, True),
                               atol=5e-3, rtol=5e-3)  # fmt: skip
    plain = gradient(x, of, scaled=False)
    assert (plain[[0, 4]] == 0).all() and not plain[3].isfinite().all(), "what happens without it"


def test_rows_do_not_touch_each_other() -> None:
    x, of = torch.randn(3, 8), torch.randn(3, 8)
    of[1], of[2] = 0, torch.inf
    found = gradient(x, of, scaled=True)
    assert torch.equal(found[:1], gradient(x[:1], of[:1], scaled=True))
    assert (found[1] == 0).all()
    assert not found[2].isfinite().any()


def test_the_scale_rounds_nothing() -> None:
    """Where float16 has room anyway, the scaled gradient is the plain one."""
    x, of = torch.randn(4, 8), torch.randn(4, 8)
    torch.testing.assert_close(gradient(x, of, scaled=True), gradient(x, of, scaled=False), atol=2e-4, rtol=0)


def test_weights_that_require_gradients_get_their_own() -> None:
    half, x = network().half().requires_grad_(), torch.randn(2, 8).requires_grad_()
    passage = ScaledBackward(half, torch.float16)
    passage.leave(half(passage.enter(x).half()).float()).sum().backward()
    trained, y = network().requires_grad_(), x.detach().clone().requires_grad_()
    trained(y).sum().backward()
    for found, true in zip(half.parameters(), trained.parameters(), strict=True):
        assert found.grad is not None and true.grad is not None
        torch.testing.assert_close(found.grad.float(), true.grad, atol=1e-2, rtol=1e-2)


def test_what_overflows_is_kept_wider() -> None:
    def kept(dtype: torch.dtype, **config: object) -> torch.dtype:
        module = nn.Linear(1, 1)
        module.config = type("Config", (), config)()
        return stored_dtype(module, dtype)

    assert kept(torch.float16) == kept(torch.float16, force_upcast=False) == torch.float16
    assert kept(torch.float16, force_upcast=True) == torch.float32
    assert kept(torch.float16, model_type="t5") == torch.bfloat16
    for dtype in (torch.float32, torch.bfloat16):
        assert kept(dtype, force_upcast=True, model_type="t5") == dtype
