"""HPSv3 beside its formula on transformers' own model and processor, with weights in the published file's layout."""

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from transformers import PreTrainedTokenizerFast, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessor

from renege_ray.config.run import RunConfig
from renege_ray.errors import UserError
from renege_ray.rewards.base import as_scorer
from renege_ray.rewards.hpsv3.qwen2_vl import patches
from renege_ray.rewards.hpsv3.reward import PIXELS, TEMPLATE, HPSv3
from renege_ray.rewards.load import load_rewards
from renege_ray.rewards.weighted import WeightedReward
from renege_ray.sampling.images import Evaluation, Pair
from renege_ray.sampling.run_rewards import Rewards
from renege_ray.sweeps.space.metrics import reported_metrics
from tests.rewards.conformance import ODD_PROMPTS, PROMPTS, Load, RewardConformance
from tests.rewards.hpsv3_folders import hpsv3_folder
from tests.rewards.photographs import photographs

AFTER = "\n\nEND\n<|im_end|>\n<|im_start|>assistant\n"
"""What follows <|Reward|> in the conversation that the package hpsv3 makes."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hpsv3")


@pytest.fixture(scope="module")
def weights(folder: Path) -> dict[str, Tensor]:
    return hpsv3_folder(folder, TEMPLATE + "".join(PROMPTS))


@pytest.fixture(scope="module")
def load(folder: Path, weights: dict[str, Tensor]) -> Load:
    return cache(lambda dtype: load_rewards(["hpsv3"], checkpoints={"hpsv3": folder}, dtype=dtype)["hpsv3"])


class Reference:
    """Conversation, padding on the right, positions 0, 1, 2 ... and the head on all tokens, as the authors have it."""

    def __init__(self, folder: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["vocab_size"] = len(weights["model.embed_tokens.weight"])
        (tmp_path / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}))
        save_file(
            {n: w for n, w in weights.items() if "rm_head" not in n}, tmp_path / "model.safetensors", {"format": "pt"}
        )
        loaded, report = Qwen2VLForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        self.model = loaded.eval().requires_grad_(False)
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"), pad_token="<|endoftext|>"
        )
        self.tokenizer.add_special_tokens({"extra_special_tokens": ["<|Reward|>"]})
        width = weights["model.norm.weight"].numel()
        self.head = nn.Sequential(
            nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
        ).eval()
        self.head.load_state_dict({n.removeprefix("rm_head."): w for n, w in weights.items() if "rm_head" in n})

    def __call__(self, pixel_values: Tensor, grid: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States (B, D) and mu, ln sigma (B, 2)."""
        places = [int(t * h * w) // 4 for t, h, w in grid]
        texts = [
            TEMPLATE.replace("<|image_pad|>", "<|image_pad|>" * count).format(text_prompt=prompt) + AFTER
            for count, prompt in zip(places, prompts, strict=True)
        ]
        batch = self.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        count, length = batch.input_ids.shape
        states = self.model.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, pixel_values=pixel_values,
            image_grid_thw=grid, position_ids=torch.arange(length).expand(3, count, length),
        ).last_hidden_state  # fmt: skip
        rated = batch.input_ids == self.tokenizer.convert_tokens_to_ids("<|Reward|>")
        return states[rated], self.head(states)[rated]


@pytest.fixture(scope="module")
def reference(folder: Path, weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(folder, weights, tmp_path_factory.mktemp("reference"))


class TestConformance(RewardConformance):
    """Of HPSv3."""

    scale = 4.0  # as far as scores of the random weights lie apart
    is_cosine = False
    cuts_prompts = False
    compiles = False  # there would be a graph for each length of a prompt
    rounding = 7e-3  # with everything in bfloat16, as the original has it, it is as much

    @pytest.mark.slow
    def test_bfloat16(self, load: Load) -> None:
        super().test_bfloat16(load)


def test_the_conversation_is_the_packages() -> None:
    """Of hpsv3 1.0.0 on the chat template of Qwen/Qwen2-VL-7B-Instruct, to the last space."""
    assert (
        hashlib.sha256((TEMPLATE + AFTER).encode()).hexdigest()
        == "40fd38055486d395061623e4822ddced73dcd22bd6cc7562bedd81bae934fd04"
    )


def test_states_and_scores_are_those_of_the_formula(load: Load, reference: Reference) -> None:
    """Prompts of several lengths in one batch, images wide and square."""
    prompts = [PROMPTS[0], PROMPTS[2], *ODD_PROMPTS[4:]]
    reward = load("float32")
    assert isinstance(reward, HPSv3)
    for image in (photographs()["astronaut"], photographs()["chelsea"]):
        given = patches(image, PIXELS)
        pixels, grid = given[0], torch.tensor([[1, *given[1:]]])
        states, expected = reference(pixels.repeat(len(prompts), 1), grid.repeat(len(prompts), 1), prompts)
        images = image.expand(len(prompts), -1, -1, -1)
        found = reward.states(images, prompts)
        torch.testing.assert_close(found, states, rtol=0, atol=1e-5)
        torch.testing.assert_close(reward.head(found), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(reward.score(images, prompts), expected[:, 0], rtol=0, atol=1e-5)


def test_sigma_is_logged_and_ranks_nothing(load: Load) -> None:
    reward = load("float32")
    assert isinstance(reward, HPSv3)
    images, prompts = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(6)), PROMPTS[:2]
    (trained,) = Rewards(WeightedReward({reward: 2.0})).scorers()
    assert trained.names == ("reward", "hpsv3", "hpsv3_sigma")
    assert as_scorer(reward).names == ("hpsv3", "hpsv3_sigma")
    scores = trained.score(images, prompts)
    with torch.no_grad():
        mu, log_sigma = reward.distribution(images, prompts).unbind(1)
    expected = {"reward": 2 * mu, "hpsv3": mu, "hpsv3_sigma": log_sigma.exp()}
    assert scores.keys() == expected.keys() and all(torch.equal(scores[name], expected[name]) for name in expected)
    evaluation = Evaluation([Pair(prompt, 0) for prompt in prompts], {"null": scores, "global": scores}, {})
    config = RunConfig(rewards={"train": {"hpsv3": 2.0}})
    reported = {name for name in reported_metrics(config) if "hpsv3" in name and "handwritten" not in name}
    assert reported == {name for name in evaluation.metrics() if "hpsv3" in name}
    assert not [name for name in reported if "sigma" in name and "win_rate" in name]


def test_of_a_video_both_are_means_over_its_frames(load: Load) -> None:
    frames = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(7))
    scorer = as_scorer(load("float32"))
    of_video, of_frames = scorer.score(frames.transpose(0, 1)[None], ["a fox"]), scorer.score(frames, ["a fox"] * 2)
    with pytest.raises(ValueError, match="2 images need a list of as many prompts"):
        scorer.score(frames, ["a fox"])
    for name in ("hpsv3", "hpsv3_sigma"):
        torch.testing.assert_close(of_video[name], of_frames[name].mean()[None], rtol=0, atol=1e-5)


def test_the_gradient_is_that_of_the_formula(load: Load, reference: Reference) -> None:
    """By way of transformers' own processor, which is differentiable where the image need not be resized."""
    images = torch.rand(2, 3, 448, 448, generator=torch.Generator().manual_seed(3))
    ours, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()
    (found,) = torch.autograd.grad(load("float32")(ours, PROMPTS[:2]).sum(), ours)
    batch = Qwen2VLImageProcessor()(list(theirs), do_rescale=False, do_resize=False, return_tensors="pt")
    mu = reference(batch.pixel_values, batch.image_grid_thw, PROMPTS[:2])[1][:, 0]
    (expected,) = torch.autograd.grad(mu.sum(), theirs)
    assert expected.abs().max() > 1e-5
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("size", [(512, 512), (1024, 1024), (768, 1344), (300, 40), (448, 448), (27, 29)])
def test_patches_are_the_processors(size: tuple[int, int]) -> None:
    """The package resizes in 8 bits by PIL before the processor sees an image; here nothing is rounded."""
    smooth = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    image = nn.functional.interpolate(smooth, size, mode="bilinear").mul(255).round() / 255
    found, h, w = patches(image, PIXELS)
    resized = to_pil_image(image[0]).resize((14 * w, 14 * h), Image.Resampling.BICUBIC)
    assert h % 2 == w % 2 == 0 and abs(h * w / 1024 - 1) < 0.25
    batch = Qwen2VLImageProcessor()(pil_to_tensor(resized), do_resize=False, return_tensors="pt")
    assert batch.image_grid_thw.tolist() == [[1, h, w]]
    levels = (found - batch.pixel_values).abs() * 0.27 * 255  # of 255; 0.27 is the normalisation's deviation
    assert levels.max() <= 3 and levels.mean() <= 0.6


def test_an_image_of_extreme_proportions(load: Load) -> None:
    with pytest.raises(ValueError, match="200"):
        load("float32").score(torch.rand(1, 3, 1, 201), ["a fox"])


def test_prompts_with_its_own_special_tokens(load: Load) -> None:
    """The original fails on them. The last <|Reward|> is the instruction's, and the image stands where it stood."""
    image = torch.rand(1, 3, 56, 56, generator=torch.Generator().manual_seed(5))
    scores = [load("float32").score(image, [prompt]) for prompt in ("<|Reward|> a fox", "<|image_pad|> a fox", "a fox")]
    assert torch.stack(scores).isfinite().all() and scores[0] != scores[2] != scores[1]


def replace_weights(folder: Path, to: Path, change: dict[str, Tensor | None]) -> Path:
    weights = load_file(folder / "HPSv3.safetensors") | change
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, to / "HPSv3.safetensors")
    for name in ("tokenizer.json", "config.json"):
        (to / name).write_bytes((folder / name).read_bytes())
    return to


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rm_head.5.weight": None}, "does not fit: layers.5.weight"),
        ({"model.layers.1.mlp.up_proj.weight": None}, "does not fit: language_model.layers.1"),
        ({"visual.merger.mlp.2.weight": torch.zeros(3, 3)}, "has to be .* is it the file of another model"),
        ({"model.embed_tokens.weight": None}, "does not fit: language_model.embed_tokens.weight"),
        ({"model.embed_tokens.weight": torch.zeros(9, 64)}, "tokenizer .* tokens with <|Reward|>, the model 9: give"),
    ],
)  # fmt: skip
def test_other_weights_are_refused(
    folder: Path, load: Load, tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    replace_weights(folder, tmp_path, change)
    with pytest.raises(UserError, match=message.replace("|", "[|]")) as raised:
        load_rewards(["hpsv3"], checkpoints={"hpsv3": tmp_path})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("HPSv3.safetensors", "half a file", "HPSv3.safetensors cannot be read"),
        ("tokenizer.json", "{}", "tokenizer.json cannot be read"),
        ("config.json", "{", "config.json cannot be read"),
        ("config.json", '{"model_type": "qwen2_5_vl"}', "is of a 'qwen2_5_vl' model: give the folder of Qwen/Qwen2-VL"),
        ("config.json", '{"model_type": "qwen2_vl"}', "does not fit"),
    ],
)
def test_damaged_files_are_refused(
    folder: Path, load: Load, tmp_path: Path, name: str, content: str, message: str
) -> None:
    replace_weights(folder, tmp_path, {})
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as raised:
        load_rewards(["hpsv3"], checkpoints={"hpsv3": tmp_path})
    assert "\n" not in str(raised.value)


def test_the_weights_are_kept_in_their_type(folder: Path, load: Load) -> None:
    """What is large is never float32; what the residual streams pass through is."""
    reward = load("bfloat16")
    large = {name for name, weight in reward.named_parameters() if weight.dtype == torch.bfloat16}
    small = {name for name, weight in reward.named_parameters() if weight.dtype == torch.float32}
    assert all("norm" in name or "ln_q" in name or "patch_embed" in name or "head" in name for name in small)
    assert not any("norm" in name or "lm_head" in name for name in large) and large
