import math

import pytest
import torch
from torch import Tensor

from renege_ray.method import Ascent, AscentSettings, cosine_learning_rate

SHAPE = (1, 5, 7)


def gradients(count: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(SHAPE, generator=g, dtype=dtype) for _ in range(count)]


def initial(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("penalty", [0.0, 3.0])
@pytest.mark.parametrize("max_norm", [0.0, 1.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_agrees_with_adamw_written_by_hand(penalty: float, max_norm: float, weight_decay: float) -> None:
    settings = AscentSettings(
        lr=0.05,
        steps=20,
        weight_decay=weight_decay,
        betas=(0.8, 0.95),
        max_grad_norm=max_norm,
        ema_decay=0.9,
        drift_penalty=penalty,
    )
    ascent = Ascent(initial(), settings)
    n, m, v, mean = initial(), torch.zeros(SHAPE).double(), torch.zeros(SHAPE).double(), initial()
    for k, reward_gradient in enumerate(gradients(12)):
        leaf = n.clone().requires_grad_()
        loss = -(reward_gradient * leaf).sum() + penalty * (leaf - initial()).square().mean()
        (g,) = torch.autograd.grad(loss, leaf)
        norm = math.sqrt(float((g * g).sum()))
        if max_norm and norm > max_norm:
            g = g / norm * max_norm
        lr = 0.05 * (1 + math.cos(math.pi * k / 20)) / 2
        n = n - lr * weight_decay * n
        m = 0.8 * m + 0.2 * g
        v = 0.95 * v + 0.05 * g * g
        n = n - lr * (m / (1 - 0.8 ** (k + 1))) / ((v / (1 - 0.95 ** (k + 1))).sqrt() + 1e-8)
        mean = 0.9 * mean + 0.1 * n
        report = ascent.update(reward_gradient)
        torch.testing.assert_close(ascent.embedding, n, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(ascent.averaged, mean, atol=1e-12, rtol=1e-12)
        assert report.lr == pytest.approx(lr) and report.grad_norm == pytest.approx(norm)
        assert report.drift == pytest.approx(float((n - initial()).pow(2).mean().sqrt())) == ascent.drift
    assert ascent.step_count == 12


def test_agrees_with_torch() -> None:
    n = initial().requires_grad_()
    optimizer = torch.optim.AdamW([n], lr=0.05, weight_decay=0.01, betas=(0.9, 0.999), maximize=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    ascent = Ascent(initial(), AscentSettings(lr=0.05, steps=10, weight_decay=0.01))
    for g in gradients(10):
        n.grad = g.clone()
        optimizer.step()
        scheduler.step()
        ascent.update(g)
    torch.testing.assert_close(ascent.embedding, n.detach(), atol=1e-10, rtol=1e-10)


def test_it_climbs() -> None:
    target = initial() + 1
    ascent = Ascent(initial(), AscentSettings(lr=0.1, steps=200))
    for _ in range(200):
        ascent.update(-2 * (ascent.embedding - target))
    torch.testing.assert_close(ascent.embedding, target, atol=1e-2, rtol=0)


def test_cosine_goes_from_lr_to_zero_and_stays() -> None:
    settings = AscentSettings(lr=2.0, steps=8)
    rates = [cosine_learning_rate(settings, k) for k in range(12)]
    assert rates[0] == 2.0 and rates[4] == pytest.approx(1.0) and rates[8:] == [0.0] * 4
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("cut", [0, 1, 7])
def test_resume_is_bit_exact(cut: int) -> None:
    settings = AscentSettings(
        lr=5e-3, steps=12, weight_decay=0.01, max_grad_norm=1.0, ema_decay=0.99, drift_penalty=0.1
    )
    unbroken = Ascent(initial(torch.float32), settings)
    first = Ascent(initial(torch.float32), settings)
    for g in gradients(cut):
        first.update(g)
    state = first.state()
    assert all(isinstance(tensor, Tensor) for tensor in state.values())
    saved = {name: tensor.clone() for name, tensor in state.items()}
    first.update(gradients(1)[0])  # a state is a copy: going on does not change it
    assert all(torch.equal(saved[name], state[name]) for name in saved)
    second = Ascent(torch.zeros(SHAPE), settings)
    second.restore(state)
    for k, g in enumerate(gradients(12)):
        expected = unbroken.update(g)
        if k >= cut:
            assert second.update(g) == expected
    assert second.state().keys() == unbroken.state().keys()
    for name, tensor in unbroken.state().items():
        assert torch.equal(second.state()[name], tensor), name
    assert torch.equal(second.averaged, unbroken.averaged)


def test_averaging_off_is_the_embedding_itself() -> None:
    ascent = Ascent(initial(torch.float32), AscentSettings(lr=0.1, steps=3))
    ascent.update(gradients(1)[0])
    assert torch.equal(ascent.averaged, ascent.embedding) and not ascent.embedding.requires_grad
    assert ascent.embedding.dtype == torch.float32


def test_the_given_tensor_is_left_alone() -> None:
    given = initial(torch.float32).requires_grad_()
    before = given.detach().clone()
    Ascent(given, AscentSettings(lr=0.1, steps=3)).update(gradients(1)[0])
    assert torch.equal(given, before)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    ascent = Ascent(initial(torch.float32), AscentSettings(lr=0.1, steps=3, ema_decay=0.5))
    before = ascent.state()
    with pytest.raises(FloatingPointError, match="update 0"):
        ascent.update(torch.full(SHAPE, math.nan))
    assert all(torch.equal(before[name], tensor) for name, tensor in ascent.state().items())


def test_wrong_shapes_are_refused() -> None:
    ascent = Ascent(initial(torch.float32), AscentSettings(lr=0.1, steps=3))
    with pytest.raises(ValueError, match="shape"):
        ascent.update(torch.zeros(1, 5, 6))
    with pytest.raises(ValueError, match="holds"):
        ascent.restore({"embedding": torch.zeros(SHAPE)})
    with pytest.raises(ValueError, match="float64"):
        ascent.restore(ascent.state() | {"embedding": initial()})
