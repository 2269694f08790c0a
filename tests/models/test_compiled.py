"""Compiled networks: how many graphs there are, that none breaks, and that no result hangs on how rows are cut."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from renege_ray.config.run import ModelConfig, load_preset, parse_config, with_values
from renege_ray.models.families.registry import FAMILIES
from renege_ray.models.frozen_pipeline import FrozenPipeline
from renege_ray.models.load import load_model
from renege_ray.models.networks import compiled
from renege_ray.models.networks.compiled import BatchSizes, Compiled, pieces_of, room_for, size_within
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.images import generate, make_pairs
from renege_ray.sampling.workers import Workers
from renege_ray.training.gradient import samples_of
from tests import tiny
from tests.models.compiled_updates import PROMPTS, STEPS, check_two_graphs_of_each_network


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Counts graphs, which are made for gradients, too, but not translated to C++ or Triton."""
    torch._dynamo.reset()
    counters.clear()
    counting = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(compiled, "BACKEND", counting)
    yield counting
    torch._dynamo.reset()


# How rows are cut


def test_sizes_fill_the_accelerator_and_no_more() -> None:
    sizes = {side: BatchSizes.of(side**2) for side in (8, 64, 96, 128)}
    assert sizes == {8: BatchSizes(8, 2), 64: BatchSizes(8, 2), 96: BatchSizes(2, 1), 128: BatchSizes(2, 1)}
    assert BatchSizes.of(16 * 40 * 72) == BatchSizes(1, 1)


def test_pieces_are_no_larger_than_there_is_room_for() -> None:
    assert [size_within(8, room) for room in (1, 2, 3, 8, 64)] == [1, 2, 2, 8, 8]
    assert pieces_of(16, 8) == [8, 8] and pieces_of(12, 8) == [8, 4] and pieces_of(1, 8) == [1]


@pytest.mark.parametrize(("world_size", "most"), [(1, 0.001), (8, 0.07)])
@pytest.mark.parametrize("per_rollout", [1, 4])
def test_few_rows_are_wasted(world_size: int, most: float, per_rollout: int) -> None:
    """Of the denoiser's rows in updates of preset sd15; one with a gradient costs twice as much as one without."""
    config = with_values(load_preset("sd15"), {"optim.gradients_per_rollout": per_rollout})
    share = config.optim.batch_size // world_size
    needed = made = 0

    def count(rows: int, size: int, cost: int) -> None:
        nonlocal needed, made
        needed += cost * rows
        made += cost * size * len(pieces_of(rows, size))

    for step in range(20):
        groups = samples_of(config, ["a"], step, Workers(0, world_size))
        at = [sample.gradient_steps for group in groups for sample in group]
        for i in range(max(steps[-1] for steps in at) + 1):
            here = sum(steps[-1] >= i for steps in at)
            on_the_way = sum(i in steps[:-1] for steps in at)
            ending = sum(steps[-1] == i for steps in at)
            count(2 * here - on_the_way - ending, 8, 1)
            count(on_the_way, 2, 2)
        count(share, 2, 2)
    assert made <= (1 + most) * needed


# One network


class Network(nn.Module):
    """Rows that do not touch each other; a named tensor, a dict and None among its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor, t: Tensor, *, more: dict[str, Tensor | None], flag: bool = False) -> tuple[Tensor]:
        scale = more["scale"]
        assert scale is not None and flag
        return (torch.tanh(self.layer(x)) * t[:, None].sin() * scale[:, None],)


@pytest.mark.parametrize("rows", [1, 2, 5, 8, 11])
def test_filling_up_changes_no_result(counter: CompileCounterWithBackend, rows: int) -> None:
    network = Network().requires_grad_(False)
    x, scale = torch.randn(rows, 3), torch.rand(rows)

    def run(function: Callable[..., tuple[Tensor]]) -> list[Tensor]:
        arguments = {"more": {"scale": scale, "none": None}, "flag": True}
        leaf = x.clone().requires_grad_()
        with torch.no_grad():
            plain = function(leaf, torch.tensor(3.0).expand(rows), **arguments)[0]
        y = function(leaf, torch.arange(float(rows)), **arguments)[0]
        return [plain, y.detach(), *torch.autograd.grad(y.square().sum(), leaf)]

    with room_for(16):
        found = run(Compiled(network, BatchSizes(8, 2)))
    for a, b in zip(found, run(network), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert counter.frame_count == 2, "one graph with and one without a gradient"


def test_a_row_that_is_not_finite_spoils_no_other(counter: CompileCounterWithBackend) -> None:
    network = Network().requires_grad_(False)
    leaf = torch.ones(3, 3).index_fill(0, torch.tensor(2), torch.nan).requires_grad_()
    y = Compiled(network, BatchSizes(8, 4))(leaf, torch.ones(3), more={"scale": torch.ones(3)}, flag=True)[0]
    (gradient,) = torch.autograd.grad(y.sum(), leaf)
    assert gradient[:2].isfinite().all() and gradient[2].isnan().all()


# All families


def load(folder: Path, *, compile: bool, **options: Any) -> FrozenPipeline:
    return load_model(ModelConfig(id=str(folder), compile=compile, **options), "cpu")  # type: ignore[return-value]


@pytest.mark.slow
@pytest.mark.parametrize("build", [tiny.build_tiny_sd2, tiny.build_tiny_pixart], ids=["UNet", "transformer"])
def test_two_graphs_on_the_way_back_too(
    build: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each family's graphs are counted by the conformance suite; here they are split for the gradient, too."""
    build().save_pretrained(tmp_path)
    check_two_graphs_of_each_network(
        lambda compile: load(tmp_path, compile=compile), monkeypatch, backend="aot_eager", saving=True
    )


@pytest.mark.slow
def test_generations_take_the_same_graph(counter: CompileCounterWithBackend, tmp_path: Path) -> None:
    model, plain = (
        FAMILIES["StableDiffusionPipeline"](tiny.build_tiny_sd2(), "tiny", compile=made) for made in (True, False)
    )
    sampling = parse_config({"sampling": {"num_inference_steps": STEPS, "gradient_steps": [0, 2]}}).sampling
    images = []
    for of in (model, plain):
        encoded, pairs = EncodedPrompts(of), make_pairs(PROMPTS, 5, 0)
        for count in (5, 3, 2):
            with room_for(8):  # as many images as a whole batch has
                images.append(generate(of, of.null_embedding(), pairs[:count], sampling, encoded))
    for a, b in zip(images[:3], images[3:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 2, "the denoiser's and the decoder's"


@pytest.mark.slow
def test_what_inductor_makes_is_the_same(tmp_path: Path) -> None:
    """The real compiler, on the smallest of its tasks: a network's convolutions, frozen, there and back."""
    torch._dynamo.reset()
    network = tiny.build_tiny_pipeline().vae.decoder.requires_grad_(False).to(memory_format=torch.channels_last)
    from renege_ray.models.networks.frozen_convolution import freeze_convolutions

    freeze_convolutions(network)
    results: list[Sequence[Tensor]] = []
    for function in (network, Compiled(network, BatchSizes(2, 2))):
        leaf = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        y = function(leaf)
        results.append([y.detach(), *torch.autograd.grad(y.sin().sum(), leaf)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
