"""ImageReward beside its computation written out in plain torch, from the names in the original's checkpoint."""

import math
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from renege_ray.errors import UserError
from renege_ray.rewards.imagereward import ImageReward
from renege_ray.rewards.load import load_rewards
from renege_ray.rewards.vision import centre_crop, normalise
from tests.rewards.conformance import PROMPTS, Load, RewardConformance
from tests.rewards.photographs import photographs

VISION_WIDTH, TEXT_WIDTH, LAYERS, HEAD_WIDTH = 128, 64, 2, 64
WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "fox", "in", "the", "snow", "an", "astronaut", "cup",
    "of", "coffee", "on", "wooden", "table", ",", "photo", "at", "night", "by", "day", "short", "##s", "狐",
]  # fmt: skip
Weights = dict[str, Tensor]


def random_weights() -> Weights:
    """Every tensor of ImageReward.pt, at reduced depth and width."""
    generator = torch.Generator().manual_seed(0)
    weights: Weights = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        weights[f"{name}.weight"] = torch.randn(outputs, inputs, generator=generator) * inputs**-0.5
        weights[f"{name}.bias"] = 0.1 * torch.randn(outputs, generator=generator)

    def norm(name: str, width: int) -> None:
        weights[f"{name}.weight"] = 1 + 0.1 * torch.randn(width, generator=generator)
        weights[f"{name}.bias"] = 0.1 * torch.randn(width, generator=generator)

    vision, text = "blip.visual_encoder", "blip.text_encoder"
    weights[f"{vision}.cls_token"] = torch.randn(1, 1, VISION_WIDTH, generator=generator)
    weights[f"{vision}.pos_embed"] = 0.1 * torch.randn(1, 197, VISION_WIDTH, generator=generator)
    weights[f"{vision}.patch_embed.proj.weight"] = 0.05 * torch.randn(VISION_WIDTH, 3, 16, 16, generator=generator)
    weights[f"{vision}.patch_embed.proj.bias"] = 0.1 * torch.randn(VISION_WIDTH, generator=generator)
    norm(f"{vision}.norm", VISION_WIDTH)
    for i in range(LAYERS):
        block = f"{vision}.blocks.{i}"
        norm(f"{block}.norm1", VISION_WIDTH)
        norm(f"{block}.norm2", VISION_WIDTH)
        linear(f"{block}.attn.qkv", VISION_WIDTH, 3 * VISION_WIDTH)
        linear(f"{block}.attn.proj", VISION_WIDTH, VISION_WIDTH)
        linear(f"{block}.mlp.fc1", VISION_WIDTH, 4 * VISION_WIDTH)
        linear(f"{block}.mlp.fc2", 4 * VISION_WIDTH, VISION_WIDTH)
    words = len(WORDS) + 2
    weights[f"{text}.embeddings.word_embeddings.weight"] = torch.randn(words, TEXT_WIDTH, generator=generator)
    weights[f"{text}.embeddings.position_embeddings.weight"] = torch.randn(64, TEXT_WIDTH, generator=generator)
    weights[f"{text}.embeddings.position_ids"] = torch.arange(64)[None]
    norm(f"{text}.embeddings.LayerNorm", TEXT_WIDTH)
    for i in range(LAYERS):
        layer = f"{text}.encoder.layer.{i}"
        for attention, width in (("attention", TEXT_WIDTH), ("crossattention", VISION_WIDTH)):
            linear(f"{layer}.{attention}.self.query", TEXT_WIDTH, TEXT_WIDTH)
            linear(f"{layer}.{attention}.self.key", width, TEXT_WIDTH)
            linear(f"{layer}.{attention}.self.value", width, TEXT_WIDTH)
            linear(f"{layer}.{attention}.output.dense", TEXT_WIDTH, TEXT_WIDTH)
            norm(f"{layer}.{attention}.output.LayerNorm", TEXT_WIDTH)
        linear(f"{layer}.intermediate.dense", TEXT_WIDTH, 4 * TEXT_WIDTH)
        linear(f"{layer}.output.dense", 4 * TEXT_WIDTH, TEXT_WIDTH)
        norm(f"{layer}.output.LayerNorm", TEXT_WIDTH)
    linear("blip.vision_proj", VISION_WIDTH, 256)
    linear("blip.text_proj", TEXT_WIDTH, 256)
    for number, (inputs, outputs) in {
        0: (TEXT_WIDTH, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)
    }.items():  # fmt: skip
        linear(f"mlp.layers.{number}", inputs, outputs)
    return weights


def written_out(weights: Weights, pixels: Tensor, ids: Tensor) -> Tensor:
    """The score of one image (1, 3, 224, 224) and the ids (L,) of one prompt, without padding."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        unit = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        return unit * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        heads = [
            torch.softmax(q @ k.T / math.sqrt(HEAD_WIDTH), dim=-1) @ v
            for q, k, v in zip(*(x.split(HEAD_WIDTH, dim=-1) for x in (queries, keys, values)), strict=True)
        ]
        return torch.cat(heads, dim=-1)

    vision, text = "blip.visual_encoder", "blip.text_encoder"
    patches = F.unfold(pixels, 16, stride=16)[0].T @ weights[f"{vision}.patch_embed.proj.weight"].flatten(1).T
    patches = patches + weights[f"{vision}.patch_embed.proj.bias"]
    x = torch.cat([weights[f"{vision}.cls_token"][0], patches]) + weights[f"{vision}.pos_embed"][0]
    for i in range(LAYERS):
        block = f"{vision}.blocks.{i}"
        q, k, v = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x, 1e-6)).chunk(3, dim=-1)
        x = x + linear(f"{block}.attn.proj", attention(q, k, v))
        hidden = F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x, 1e-6)))
        x = x + linear(f"{block}.mlp.fc2", hidden)
    image = norm(f"{vision}.norm", x, 1e-6)

    y = weights[f"{text}.embeddings.word_embeddings.weight"][ids]
    y = y + weights[f"{text}.embeddings.position_embeddings.weight"][: len(ids)]
    y = norm(f"{text}.embeddings.LayerNorm", y, 1e-12)
    for i in range(LAYERS):
        layer = f"{text}.encoder.layer.{i}"
        for name, seen in (("attention", None), ("crossattention", image)):
            seen = y if seen is None else seen
            q = linear(f"{layer}.{name}.self.query", y)
            k, v = (linear(f"{layer}.{name}.self.{part}", seen) for part in ("key", "value"))
            y = y + linear(f"{layer}.{name}.output.dense", attention(q, k, v))
            y = norm(f"{layer}.{name}.output.LayerNorm", y, 1e-12)
        hidden = F.gelu(linear(f"{layer}.intermediate.dense", y))
        y = norm(f"{layer}.output.LayerNorm", y + linear(f"{layer}.output.dense", hidden), 1e-12)
    score = y[0]
    for number in (0, 2, 4, 6, 7):
        score = linear(f"mlp.layers.{number}", score)
    return (score[0] - 0.16717362830052426) / 1.0333394966054072


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights()


@pytest.fixture(scope="module")
def folder(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imagereward")
    torch.save(weights, folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def load(folder: Path) -> Load:
    return cache(
        lambda dtype: load_rewards(["imagereward"], checkpoints={"imagereward": folder}, dtype=dtype)["imagereward"]
    )


class TestConformance(RewardConformance):
    """Of ImageReward."""

    scale = 4.0
    is_cosine = False


@pytest.mark.parametrize("photograph", photographs())
def test_scores_and_gradients_are_those_of_the_formulas(load: Load, weights: Weights, photograph: str) -> None:
    """Padding and its mask included: the formulas have none."""
    image = photographs()[photograph].clone().requires_grad_()
    for prompt in PROMPTS:
        # BERT's words: those of the list, and [UNK] for any other.
        words = ["[CLS]", *prompt.replace(",", " ,").split(), "[SEP]"]
        ids = torch.tensor([WORDS.index(word) if word in WORDS else 1 for word in words])
        expected = written_out(weights, normalise(centre_crop(image, 224)), ids)
        found = load("float32")(image, [prompt])
        torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-5)
    (right,), (ours,) = torch.autograd.grad(expected, image), torch.autograd.grad(found[0], image)
    torch.testing.assert_close(ours / right.abs().max(), right / right.abs().max(), rtol=0, atol=1e-5)


def test_a_prompt_is_cut_at_35_tokens(load: Load) -> None:
    reward = load("float32")
    assert isinstance(reward, ImageReward)
    before = reward.truncated_prompts
    tokens, mask = reward._tokens("red " * 33)
    assert tokens.shape == (35,) and mask.all() and tokens[-1] == WORDS.index("[SEP]")
    assert reward.truncated_prompts == before
    cut, _ = reward._tokens("red " * 34)
    assert torch.equal(cut, tokens) and reward.truncated_prompts == before + 1


def test_files_of_other_models(folder: Path, weights: Weights, tmp_path: Path) -> None:
    torch.save({"layers.0.weight": torch.zeros(2)}, tmp_path / "a.pt")
    torch.save({name: tensor for name, tensor in weights.items() if "norm2.bias" not in name}, tmp_path / "b.pt")
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS[:-1]), encoding="utf-8")
    cases = {
        "is no ImageReward": {"imagereward": tmp_path / "a.pt"},
        "layer_norm2.bias has to be .* there is nothing": {"imagereward": tmp_path / "b.pt"},
        "has 29 words with BLIP's two, the model 30": {
            "imagereward": folder,
            "bert_vocabulary": tmp_path / "vocab.txt",
        },
    }
    for message, checkpoints in cases.items():
        with pytest.raises(UserError, match=message):
            load_rewards(["imagereward"], checkpoints=checkpoints)
