"""What the catalogue says of a reward's cost, counted on the architectures that the published checkpoints have."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Qwen2VLConfig,
    Qwen2VLModel,
    ViTConfig,
    ViTModel,
)

from renege_ray.models.toy.preferences import REWARD_NETWORKS
from renege_ray.rewards.catalogue import REWARDS, VIDEO_METRICS
from renege_ray.rewards.hpsv3.qwen2_vl import compute_backbone_in, image_features, recompute_layers
from renege_ray.rewards.hpsv3.reward import PIXELS
from renege_ray.rewards.imagereward import MAX_TOKENS
from tests.models.live_memory import LiveMemory

Flops = tuple[float, float]
VIT_H = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 16, "patch_size": 14}
VIT_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "patch_size": 14}


def count(function: Callable[[Tensor], Tensor], *shape: int, device: str = "meta") -> Flops:
    """GFLOP of the way there and of the way back to the input."""
    x = torch.zeros(shape, device=device, requires_grad=True)
    with FlopCounterMode(display=False) as there:
        y = function(x)
    with FlopCounterMode(display=False) as back:
        torch.autograd.grad(y, x, torch.zeros_like(y))
    return there.get_total_flops() / 1e9, back.get_total_flops() / 1e9


def of_layers(layers: int, counted: Callable[[int], Flops]) -> Flops:
    """From networks of one and of two layers, which are alike: making 32 of them takes seconds."""
    one, two = counted(1), counted(2)
    return one[0] + (layers - 1) * (two[0] - one[0]), one[1] + (layers - 1) * (two[1] - one[1])


def clip(layers: int, **sizes: int) -> Flops:
    def counted(number: int) -> Flops:
        with torch.device("meta"):
            tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, num_hidden_layers=number))
        return count(lambda x: tower.requires_grad_(False)(x).image_embeds, 1, 3, 224, 224)

    return of_layers(layers, counted)


def dino() -> Flops:
    def counted(number: int) -> Flops:
        with torch.device("meta"):
            tower = ViTModel(ViTConfig(num_hidden_layers=number), add_pooling_layer=False)
        return count(lambda x: tower.requires_grad_(False)(x).last_hidden_state, 1, 3, 224, 224)

    return of_layers(12, counted)


def imagereward() -> Flops:
    def vision(number: int) -> Flops:
        sizes = VIT_L | {"patch_size": 16, "image_size": 224}
        with torch.device("meta"):
            tower = BlipVisionModel(BlipVisionConfig(**sizes, num_hidden_layers=number))
        return count(lambda x: tower.requires_grad_(False)(x).last_hidden_state, 1, 3, 224, 224)

    def text(number: int) -> Flops:
        config: Any = BlipTextConfig(
            hidden_size=768, encoder_hidden_size=1024, intermediate_size=3072, num_attention_heads=12, vocab_size=9,
            num_hidden_layers=number, bos_token_id=1, eos_token_id=2, pad_token_id=0, sep_token_id=2,
        )  # fmt: skip
        tower = BlipTextModel(config, add_pooling_layer=False).requires_grad_(False)
        tokens = torch.ones(1, MAX_TOKENS, dtype=torch.int64)

        def first(patches: Tensor) -> Tensor:
            output = tower(input_ids=tokens, attention_mask=tokens, encoder_hidden_states=patches)
            return output.last_hidden_state[:, 0]

        return count(first, 1, 197, 1024, device="cpu")

    of_vision, of_text = of_layers(24, vision), of_layers(12, text)
    return of_vision[0] + of_text[0], of_vision[1] + of_text[1]


QWEN2_VL_7B = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4,
    "vocab_size": 151658, "rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}  # fmt: skip
TEXT_TOKENS = 550  # of the instruction with a prompt, about


def qwen2_vl(text_layers: int, vision_layers: int) -> Qwen2VLModel:
    sizes: Any = QWEN2_VL_7B | {"num_hidden_layers": text_layers, "vision_config": {"depth": vision_layers}}
    with torch.device("meta"):
        model = Qwen2VLModel(Qwen2VLConfig(**sizes)).to(torch.bfloat16)
    compute_backbone_in(model, torch.bfloat16)
    return model.eval().requires_grad_(False)


def hpsv3() -> Flops:
    def vision(number: int) -> Flops:
        model = qwen2_vl(0, number)
        return count(lambda x: image_features(model, x, PIXELS), 1, 3, 448, 448)

    def text(number: int) -> Flops:
        model = qwen2_vl(number, 0).language_model
        return count(lambda x: model(inputs_embeds=x).last_hidden_state, 1, 256 + TEXT_TOKENS, 3584)

    of_vision, of_text = of_layers(32, vision), of_layers(28, text)
    there = of_vision[0] + of_text[0]
    return there, of_vision[1] + of_text[1] + there  # on the way back, the layers are computed a second time


@pytest.mark.slow
def test_the_activations_of_hpsv3() -> None:
    """GiB of one image beside the weights, and of two: twice as much."""

    def counted(images: int) -> float:
        model = qwen2_vl(28, 32)
        recompute_layers(model)
        with LiveMemory(model) as memory:
            x = torch.zeros(images, 3, 512, 512, device="meta", requires_grad=True)
            tokens = [image_features(model, x, PIXELS), torch.zeros(images, TEXT_TOKENS, 3584, device="meta")]
            states = model.language_model(inputs_embeds=torch.cat(tokens, dim=1), use_cache=False).last_hidden_state
            torch.autograd.grad(states, x, torch.zeros_like(states))
        return memory.peak / 2**30

    facts = REWARDS["hpsv3"]
    assert facts.activations == pytest.approx(counted(1), abs=0.15)
    assert 2 * facts.activations == pytest.approx(counted(2), abs=0.3)


def toy(name: str) -> Flops:
    with torch.device("meta"):
        network = REWARD_NETWORKS[name](400, 399).requires_grad_(False)
        return count(lambda x: network(x, torch.ones(1, 12, dtype=torch.int64)), 1, 3, 32, 32)


@pytest.mark.parametrize(
    ("names", "counted"),
    [
        (("hpsv2-v2.1", "hpsv2-v2.0", "pickscore"), lambda: clip(32, **VIT_H, projection_dim=1024)),
        (("clip", "aesthetic"), lambda: clip(24, **VIT_L, projection_dim=768)),
        (("imagereward",), imagereward),
        (("hpsv3",), hpsv3),
        (("toy",), lambda: toy("toy")),
        (("toy_held_out",), lambda: toy("toy_held_out")),
        (("subject_consistency",), dino),
        (("background_consistency",), lambda: clip(12, projection_dim=512)),
    ],
)
def test_what_an_image_costs(names: tuple[str, ...], counted: Callable[[], Flops]) -> None:
    true = counted()
    for name in names:
        assert (REWARDS | VIDEO_METRICS)[name].gflop == pytest.approx(true, rel=0.03), name


def test_the_weights_of_a_reward() -> None:
    """Numbers of image and text towers as the published ones have them, in GiB."""
    towers = {
        "hpsv2-v2.1": (631e6, 354e6),
        "clip": (303e6, 124e6),
        "aesthetic": (303e6, 0),
        "imagereward": (303e6, 142e6),
        "hpsv3": (7745e6, 0),
    }
    for name, (image, text) in towers.items():
        facts, looks_at_the_image = REWARDS[name], name == "imagereward"
        stays, comes = 2 * image + 4 * text * looks_at_the_image, 4 * text * (not looks_at_the_image)
        assert facts.gib == pytest.approx(stays / 2**30, abs=0.06), name
        assert facts.text_gib == pytest.approx(comes / 2**30, abs=0.05), name


def test_every_reward_says_what_it_costs() -> None:
    free = [facts.name for facts in (REWARDS | VIDEO_METRICS).values() if not facts.gflop[0]]
    assert free == ["temporal_flickering"], "which has no network"
