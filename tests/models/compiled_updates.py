"""How many graphs a compiled model makes in ragged updates: for the conformance suite and the tests of compiling."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from renege_ray.config.run import parse_config
from renege_ray.models.frozen_pipeline import FrozenPipeline
from renege_ray.models.networks import compiled
from renege_ray.rewards.video.frames import over_frames
from renege_ray.rewards.weighted import WeightedReward
from renege_ray.sampling import trajectories
from renege_ray.sampling.draws import noise
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.memory import GradientMemory
from renege_ray.sampling.trajectories import GradientSampler, make_sampler
from tests.models import tiny_images
from tests.simple_rewards import Channel

STEPS, W = 5, 3.0
PROMPTS = [*tiny_images.PROMPTS, *tiny_images.PROMPTS[:2]]


def check_two_graphs_of_each_network(
    load: Callable[[bool], FrozenPipeline], monkeypatch: pytest.MonkeyPatch, *, backend: str = "eager", saving: bool
) -> None:
    """Two graphs of the denoiser (none where it cannot be compiled) and one of the decoder serve all updates, without a
    break, and give the gradients that they give uncompiled.

    Args:
        load: the model, compiled or not.
        backend: "eager" finds the graphs; "aot_eager" splits them for the way back, too, which takes a minute.
        saving: whether activations are computed a second time.
    """
    torch._dynamo.reset()
    counters.clear()
    counter, graphs = CompileCounterWithBackend(backend), list[int]()
    memory = GradientMemory(float("inf"), 0.0, 0.0, None, saving=saving)
    monkeypatch.setattr(compiled, "BACKEND", counter)
    monkeypatch.setattr(trajectories, "plan_memory", lambda *arguments: memory)
    model = load(True)
    found = updates(model, lambda: graphs.append(counter.frame_count))
    made = 3 if model.TAKES_ROWS else 1
    assert graphs == [made] * 3, "of the denoiser with and without a gradient, of the decoder with one"
    assert not counters["graph_break"]
    expected = updates(load(False))
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    torch._dynamo.reset()


class ChannelOfFrames(Channel):
    """Of a video, the mean over its frames."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return over_frames(super().__call__, images, prompts)


def updates(model: FrozenPipeline, after_each: Callable[[], None] = lambda: None) -> Tensor:
    """Gradients of three updates of five samples that leave at other steps each time, (3, 1, L, D)."""
    settings = {"sampling": {"num_inference_steps": STEPS, "guidance_scale": W, "gradient_steps": [0, STEPS]}}
    reward = WeightedReward({ChannelOfFrames(): 1.0})
    sampler: GradientSampler = make_sampler(
        parse_config(settings), model, reward, EncodedPrompts(model), "auto", len(PROMPTS), "size"
    )
    where = [[(1,), (2, 4), (4,), (1,), (0, 1)], [(3,), (0,), (3,), (3,), (2,)], [(0, 4)] * 5]
    found = []
    for k, steps in enumerate(where):
        drawn = zip(PROMPTS, steps, strict=True)
        paths = [trajectories.Path(text, noise(model.latent_shape, k, j), 0, at) for j, (text, at) in enumerate(drawn)]
        found.append(sampler(paths, model.starting_point(model.encode_prompts([""]))).gradients)
        after_each()
    return torch.stack(found)
