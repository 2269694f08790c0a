"""Modules that are on a device only while they are used. torch's meta device stands for an accelerator."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import gpu_models
from renege_ray.models.families.stable_diffusion import StableDiffusion
from renege_ray.models.networks.on_demand import OncePerText, OnDemand
from renege_ray.rewards.base import prepare_texts
from renege_ray.rewards.weighted import WeightedReward
from renege_ray.sampling.run_rewards import Rewards
from tests.tiny import build_tiny_pipeline

META = torch.device("meta")


def devices_of(*modules: nn.Module) -> set[str]:
    return {tensor.device.type for module in modules for tensor in (*module.parameters(), *module.buffers())}


def test_weights_come_and_go_and_stay_what_they_were() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).requires_grad_(False)
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in module.state_dict().items()}
    used = OnDemand([module], META)
    with pytest.raises(RuntimeError, match="stop"), used.on_device():
        assert devices_of(module) == {"meta"}
        with used.on_device():
            pass
        assert devices_of(module) == {"meta"}, "the outer block still needs them"
        raise RuntimeError("stop")
    for name, tensor in module.state_dict().items():
        assert tensor.data_ptr() == before[name][0] and torch.equal(tensor, before[name][1]), (
            "no copy, the same numbers"
        )


def test_the_text_encoder_rests_beside_an_accelerator_and_all_else_is_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = StableDiffusion(build_tiny_pipeline(), "tiny", device=META)
    pipeline, seen = model.pipeline, []
    monkeypatch.setattr(model, "_encode", lambda prompts: seen.append(devices_of(pipeline.text_encoder)) or {})
    monkeypatch.setattr(type(model.embedding_layout), "pack", lambda self, tensors: torch.empty(0))
    assert devices_of(pipeline.text_encoder) == {"cpu"} and devices_of(pipeline.unet, pipeline.vae) == {"meta"}
    model.encode_prompts(["a red fox"])
    assert seen == [{"meta"}] and devices_of(pipeline.text_encoder) == {"cpu"}


def test_a_reward_s_text_tower_is_moved_once_for_all_prompts_that_are_prepared() -> None:
    reward = gpu_models.hpsv2(gpu_models.TINY, torch.device("cpu"), torch.float32)
    on_cpu = reward.text_features(["a red fox"])
    reward.place(META)
    model, moves = reward.model, []
    tower = reward._text_tower
    original = tower.on_device

    def counted() -> Any:
        moves.append(1)
        return original()

    reward._texts = OncePerText(reward._text_features_of_one, counted, 16)
    assert devices_of(model.vision_model, model.visual_projection) == {"meta"}
    assert devices_of(model.text_model, model.text_projection) == {"cpu"}
    rewards = Rewards(WeightedReward({reward: 1.0}))
    prepare_texts(rewards.scorers(), ["a red fox", "a hen", "a red fox"])
    features = reward.text_features(["a hen", "a red fox"])
    assert len(moves) == 1 and features.device == META and features.shape == (2, on_cpu.shape[1])
    assert devices_of(model.text_model, model.text_projection) == {"cpu"}


def test_each_text_once_alone_and_the_latest_kept() -> None:
    asked: list[str] = []
    blocks: list[int] = []

    def compute(text: str) -> Tensor:
        if text == "bad":
            raise ValueError(text)
        asked.append(text)
        return torch.tensor(float(len(text)))

    class Block:
        def __enter__(self) -> None:
            blocks.append(1)

        def __exit__(self, *why: object) -> None:
            pass

    texts = OncePerText(compute, Block, capacity=2)
    assert (
        [float(found) for found in texts(["a", "bb", "a"])] == [1, 2, 1] and asked == ["a", "bb"] and len(blocks) == 1
    )
    texts(["bb", "a"])
    assert asked == ["a", "bb"] and len(blocks) == 1
    texts(["ccc"])
    texts(["a"])
    assert asked == ["a", "bb", "ccc"], "bb was the oldest"
    texts.prepare(["a", "bb", "ccc", "dddd"])
    texts(["dddd", "ccc", "bb", "a"])
    assert asked == ["a", "bb", "ccc", "bb", "dddd"], "there is room for all that was prepared"
    texts.prepare(["e", "bad", "f"])
    assert asked[-1] == "e"
    with pytest.raises(ValueError, match="bad"):
        texts(["bad"])
    with pytest.raises(ValueError, match="capacity"):
        OncePerText(compute, Block, capacity=0)
