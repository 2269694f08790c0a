import torch
from torch import nn

from renege_ray.models.networks.checkpointing import keep_inputs_alone


def test_the_same_result_by_a_second_computation_until_it_is_undone() -> None:
    torch.manual_seed(0)
    module, calls = nn.Linear(3, 3), []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    inner = nn.Sequential(module)
    x = torch.randn(2, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(inner(x).square().sum(), x)
    assert len(calls) == 1
    keep_inputs_alone(inner, True)
    (found,) = torch.autograd.grad(inner(x).square().sum(), x)
    assert torch.equal(found, expected) and len(calls) == 3
    keep_inputs_alone(inner, False)
    torch.autograd.grad(inner(x).square().sum(), x)
    assert len(calls) == 4
