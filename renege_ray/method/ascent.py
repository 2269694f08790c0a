"""Gradient ascent on the objective (Eq. 7): AdamW on n, with cosine decay and a penalty on drift.

At update k = 0 .. K-1, with G the gradient of the mean reward at n:

    loss       f(n)  = -J(n) + p mean((n - n_0)^2)               p    drift penalty, n_0 the initial embedding
    gradient   g     = -G + 2 p (n - n_0) / (L D)
    clipping   g    <- g min(1, g_max / |g|)                      g_max = 0: no clipping
    rate       lr_k  = lr (1 + cos(pi k / K)) / 2
    decay      n    <- (1 - lr_k wd) n                            wd   weight decay, decoupled
    moments    m    <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g^2,
               mhat = m / (1 - b1^(k+1)),    vhat = v / (1 - b2^(k+1))
    step       n    <- n - lr_k mhat / (sqrt(vhat) + 1e-8)
    average    nbar <- r nbar + (1 - r) n                         r    EMA decay, r = 0: nbar = n

Shapes: n, n_0, nbar, m, v, g, G are all (1, L, D). (Loshchilov & Hutter 2019 for AdamW; 2017 for the cosine.)
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-8  # keeps AdamW's step finite where no gradient has ever been


@dataclass(frozen=True)
class AscentSettings:
    """The update's constants."""

    lr: float
    """Learning rate at the first update."""
    steps: int
    """K, after which the learning rate is zero."""
    weight_decay: float = 0.0
    """wd."""
    betas: tuple[float, float] = (0.9, 0.999)
    """(b1, b2)."""
    max_grad_norm: float = 0.0
    """g_max; 0 turns clipping off."""
    ema_decay: float = 0.0
    """r; 0 turns averaging off."""
    drift_penalty: float = 0.0
    """p."""


@dataclass(frozen=True)
class AscentReport:
    """What one update did: |g| before clipping, the drift after it, and the learning rate that it used."""

    grad_norm: float
    drift: float
    lr: float


def cosine_learning_rate(settings: AscentSettings, step: int) -> float:
    """lr_k; zero from k = K on."""
    return settings.lr * 0.5 * (1 + math.cos(math.pi * min(step / settings.steps, 1.0)))


class Ascent:
    """The embedding that is being learned, and everything that the next update depends on."""

    def __init__(self, initial: Tensor, settings: AscentSettings) -> None:
        """Start at n = n_0.

        Args:
            initial: n_0, (1, L, D); it is copied, and all arithmetic is in its dtype (float32 in use).
            settings: the constants.
        """
        self.settings = settings
        self._initial = initial.detach().clone()
        self._embedding = self._initial.clone()
        self._averaged = self._initial.clone()
        self._first_moment = torch.zeros_like(self._initial)
        self._second_moment = torch.zeros_like(self._initial)
        self._step_count = 0

    @property
    def embedding(self) -> Tensor:
        """n, (1, L, D), detached; a new tensor after each update, never changed in place."""
        return self._embedding

    @property
    def averaged(self) -> Tensor:
        """nbar, (1, L, D), detached; n itself if averaging is off."""
        return self._averaged

    @property
    def step_count(self) -> int:
        """k, the number of updates made."""
        return self._step_count

    @property
    def drift(self) -> float:
        """Root mean square over the elements of n - n_0."""
        return (self._embedding - self._initial).square().mean().sqrt().item()

    def update(self, gradient_of_mean_reward: Tensor) -> AscentReport:
        """Make update k.

        Args:
            gradient_of_mean_reward: G, (1, L, D); converted to the embedding's dtype and device.

        Raises:
            ValueError: G has another shape.
            FloatingPointError: G is not finite; the embedding and the moments are left as they were.
        """
        if gradient_of_mean_reward.shape != self._embedding.shape:
            shapes = tuple(gradient_of_mean_reward.shape), tuple(self._embedding.shape)
            raise ValueError("gradient of shape {} for an embedding of shape {}".format(*shapes))
        s, n, n_0, k = self.settings, self._embedding, self._initial, self._step_count
        b1, b2 = s.betas
        lr = cosine_learning_rate(s, k)

        g = -gradient_of_mean_reward.detach().to(n) + 2 * s.drift_penalty * (n - n_0) / n.numel()
        norm = g.norm().item()
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient of update {k} is not finite")
        if s.max_grad_norm and norm > s.max_grad_norm:
            g = g * (s.max_grad_norm / norm)

        n = (1 - lr * s.weight_decay) * n
        m = b1 * self._first_moment + (1 - b1) * g
        v = b2 * self._second_moment + (1 - b2) * g.square()
        m_hat, v_hat = m / (1 - b1 ** (k + 1)), v / (1 - b2 ** (k + 1))
        n = n - lr * m_hat / (v_hat.sqrt() + EPSILON)

        self._embedding, self._first_moment, self._second_moment = n, m, v
        self._averaged = s.ema_decay * self._averaged + (1 - s.ema_decay) * n if s.ema_decay else n
        self._step_count = k + 1
        return AscentReport(grad_norm=norm, drift=self.drift, lr=lr)

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs, as tensors: it goes on bit for bit as an unbroken one would."""
        tensors = {
            "embedding": self._embedding,
            "initial": self._initial,
            "averaged": self._averaged,
            "first_moment": self._first_moment,
            "second_moment": self._second_moment,
        }
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        return copies | {"step_count": torch.tensor(self._step_count)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state()`.

        Raises:
            ValueError: a tensor is missing or too many, or has another shape or dtype than this embedding.
        """
        expected = self.state()
        if state.keys() != expected.keys():
            raise ValueError(f"optimiser state holds {sorted(state)}, want {sorted(expected)}")
        for name, tensor in state.items():
            want = expected[name]
            if tensor.shape != want.shape or tensor.dtype != want.dtype:
                raise ValueError(
                    f"optimiser state {name!r} is {tensor.dtype} {tuple(tensor.shape)}, "
                    f"want {want.dtype} {tuple(want.shape)}"
                )
        device = self._embedding.device
        restored = {name: tensor.detach().to(device, copy=True) for name, tensor in state.items()}
        self._embedding, self._initial = restored["embedding"], restored["initial"]
        self._averaged = restored["averaged"]
        self._first_moment, self._second_moment = restored["first_moment"], restored["second_moment"]
        self._step_count = int(restored["step_count"])
