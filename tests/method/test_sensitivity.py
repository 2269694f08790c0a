import pytest
import torch

from renege_ray.method import make_schedule, probe_jacobian, rollout
from renege_ray.method.guidance import Guidance

W = 3.0


class Network(torch.nn.Module):
    """Nonlinear in the latents, the embedding and its weights; samples and the timestep matter."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.nn.Conv2d(2, 2, 3, padding=1, dtype=torch.float64)
        self.read = torch.nn.Linear(3, 2, dtype=torch.float64)
        self.unused = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
        read = self.read(embeds.tanh()).prod(dim=1)[:, :, None, None]
        return torch.tanh(self.mix(latents) + read) + 1e-3 * timestep


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_probe_is_multiplied_by_the_whole_jacobian(prediction: str) -> None:
    """Against torch's Jacobian of a rollout in one graph."""
    schedule = make_schedule(
        torch.linspace(0.999, 0.05, 100), 5, prediction_type=prediction, timestep_spacing="trailing", steps_offset=0,
        set_alpha_to_one=False,
    )  # fmt: skip
    g = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network()
    shapes = ((2, 2, 3, 3), (2, 4, 3), (1, 4, 3), (2, 2, 3, 3))
    z, c, n, v = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes)
    names = [name for name, _ in network.named_parameters()]
    weights = tuple(network.parameters())

    def final_latents(negative: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        def denoise(*arguments: torch.Tensor) -> torch.Tensor:
            return torch.func.functional_call(network, dict(zip(names, tensors, strict=True)), arguments)

        return rollout(denoise, z, c, negative, schedule, Guidance(W)).latents

    jacobians = torch.autograd.functional.jacobian(final_latents, (n, *weights))
    with torch.no_grad():
        path = rollout(network, z, c, n, schedule, Guidance(W), keep=range(5))
    shared = probe_jacobian(network, path.kept, c, n.requires_grad_(), schedule, Guidance(W), v, [n, *weights])
    for product, jacobian in zip(shared, jacobians, strict=True):
        torch.testing.assert_close(product, torch.tensordot(v, jacobian, dims=4), atol=1e-11, rtol=1e-9)
    assert shared[names.index("unused") + 1].eq(0).all() and shared[0].norm() > 1e-3

    own = n.detach().repeat(2, 1, 1).requires_grad_()
    (of_each,) = probe_jacobian(network, path.kept, c, own, schedule, Guidance(W), v, [own])
    expected = torch.einsum("bchw,bchwkld->bld", v, jacobians[0])
    torch.testing.assert_close(of_each, expected, atol=1e-11, rtol=1e-9)
    assert not any(weight.grad is not None for weight in weights)
