"""Frozen convolutions against PyTorch's own: the same numbers, and nothing kept for the weights."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from renege_ray.models.networks.frozen_convolution import freeze_convolutions
from tests.models.live_memory import LiveMemory

LAYERS = [
    (nn.Conv2d(6, 4, 3, padding=1), (2, 6, 9, 7)),
    (nn.Conv2d(6, 4, 3, stride=2, bias=False), (2, 6, 9, 8)),
    (nn.Conv2d(6, 6, (3, 1), dilation=2, groups=3, padding=(2, 0)), (1, 6, 9, 7)),
    (nn.Conv2d(6, 4, 1).to(memory_format=torch.channels_last), (2, 6, 9, 7)),
    (nn.Conv3d(6, 4, 3, padding=1), (2, 6, 3, 5, 5)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_outputs_and_gradients_are_those_of_the_layer(layer: Any, shape: tuple[int, ...]) -> None:
    layer.requires_grad_(False)
    x, weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.randn(())

    def run() -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        (gradient,) = torch.autograd.grad((y.sin() * weight).sum(), leaf)
        return y.detach(), gradient

    before = run()
    state = layer.state_dict()
    freeze_convolutions(layer)
    after = run()
    for a, b in zip(after, before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert list(layer.state_dict()) == list(state), "the weights have their old names"


def test_inputs_are_not_kept() -> None:
    """Of ten layers one input lives at a time; PyTorch's own keep all ten until the way back."""
    peaks = []
    for frozen in (False, True):
        network = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(10))).requires_grad_(False)
        if frozen:
            freeze_convolutions(network)
        with LiveMemory(network) as memory:
            leaf = torch.zeros(1, 8, 64, 64, requires_grad=True)
            torch.autograd.grad(network(leaf).sum(), leaf)
        peaks.append(memory.peak / (8 * 64 * 64 * 4))
    assert peaks[0] > 10 and peaks[1] < 5


@pytest.mark.slow
def test_a_compiled_network_keeps_no_inputs_either() -> None:
    """PyTorch's own keep all six there, too."""
    kept, gradients = [], []
    for frozen in (False, True):
        torch.manual_seed(0)
        network = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(6))).requires_grad_(False)
        if frozen:
            freeze_convolutions(network)
        weights = {weight.data_ptr() for weight in network.parameters()}
        saved: list[Tensor] = []

        def note(tensor: Tensor, saved: list[Tensor] = saved, weights: set[int] = weights) -> Tensor:
            saved += [tensor] if tensor.data_ptr() not in weights else []
            return tensor

        leaf = torch.ones(1, 4, 8, 8, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            y = torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=False)(leaf)
        gradients.append(torch.autograd.grad(y.sum(), leaf)[0])
        kept.append(len(saved))
    assert kept == [6, 0]
    torch.testing.assert_close(gradients[1], gradients[0])


def test_a_layer_that_learns_is_pytorchs_own() -> None:
    layer = nn.Conv2d(3, 2, 3)
    freeze_convolutions(layer)
    layer(torch.zeros(1, 3, 5, 5, requires_grad=True)).sum().backward()
    assert layer.weight.grad is not None, "someone who thaws the weights gets their gradients"


def test_what_is_padded_otherwise_is_left_alone() -> None:
    circular = nn.Conv2d(3, 2, 3, padding=1, padding_mode="circular")
    freeze_convolutions(circular)
    assert type(circular) is nn.Conv2d
