"""What every reward has to do, once for all: subclass `RewardConformance`, and give a fixture `load`."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from renege_ray.models.networks import compiled
from renege_ray.rewards.base import RewardModel
from tests.rewards.photographs import photographs

Load = Callable[[str], RewardModel]
"""dtype -> the reward, the same object each time."""

PROMPTS = ("a red fox in the snow", "an astronaut", "", "a cup of coffee on a wooden table, photo")
ODD_PROMPTS = (
    " \t\n ",
    "雪の中の赤い狐",
    "рыжая лиса в снегу",
    "ثعلب أحمر في الثلج",
    "fox 🦊 &amp; “snow”",
    "a\x00fox\x07 \x1b[31mred\u202e\ud7ff",
    "<|endoftext|> [SEP]",
)


class RewardConformance:
    """Subclasses say what is special about their reward, and define the module's fixture `load`.

    scale: what a cosine of 1 is worth in scores; the width of the usual range where they are no cosines.
    is_cosine: whether scores lie within the scale.
    reads_prompts: whether the prompt plays a part.
    cuts_prompts: whether a prompt can be too long.
    compiles: whether `compile_towers` compiles something.
    rounding: of scores by a tower in bfloat16, at most, in parts of the scale.
    """

    scale = 1.0
    is_cosine = True
    reads_prompts = True
    cuts_prompts = True
    compiles = True
    rounding = 5e-4

    def tolerance(self) -> float:
        return 1e-5 * self.scale

    @pytest.fixture
    def reward(self, load: Load) -> RewardModel:
        return load("float32")

    @pytest.fixture
    def images(self) -> Tensor:
        return torch.rand(len(PROMPTS), 3, 48, 64, generator=torch.Generator().manual_seed(0))

    def check(self, rewards: Tensor, count: int) -> None:
        assert rewards.shape == (count,) and rewards.dtype == torch.float32 and rewards.isfinite().all()
        if self.is_cosine:
            assert (rewards.abs() <= self.scale * (1 + 1e-6)).all()

    def gradient(self, reward: RewardModel, images: Tensor, prompts: Sequence[str]) -> Tensor:
        images = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(reward(images, prompts).sum(), images)
        assert gradient.shape == images.shape and gradient.dtype == images.dtype and gradient.isfinite().all()
        return gradient

    def test_each_row_is_judged_by_itself(self, reward: RewardModel, images: Tensor) -> None:
        together = reward.score(images, PROMPTS)
        self.check(together, len(PROMPTS))
        assert len(set(together.tolist())) == len(PROMPTS)
        for i, prompt in enumerate(PROMPTS):
            alone = reward.score(images[i : i + 1], [prompt])
            torch.testing.assert_close(alone[0], together[i], rtol=0, atol=self.tolerance())

    def test_the_prompt_counts(self, reward: RewardModel, images: Tensor) -> None:
        scores = reward.score(images[:1].expand(len(PROMPTS), -1, -1, -1), PROMPTS)
        different = (scores - scores[0]).abs().max() > 10 * self.tolerance()
        assert bool(different) == self.reads_prompts

    def test_every_image_gets_its_own_gradient(self, reward: RewardModel, images: Tensor) -> None:
        together = self.gradient(reward, images, PROMPTS)
        assert (together.flatten(1).norm(dim=1) > 0).all()
        alone = self.gradient(reward, images[2:3], PROMPTS[2:3])
        torch.testing.assert_close(alone[0], together[2], rtol=1e-3, atol=1e-5 * float(together[2].abs().max()))

    def test_the_gradient_is_the_slope(self, reward: RewardModel, images: Tensor) -> None:
        gradient = self.gradient(reward, images[:1], PROMPTS[:1])
        step = 0.02 * gradient / gradient.abs().max()
        up, down = (reward.score(images[:1] + sign * step, PROMPTS[:1]) for sign in (1, -1))
        torch.testing.assert_close((up - down) / 2, (gradient * step).sum()[None], rtol=0.05, atol=self.tolerance())

    def test_no_images(self, reward: RewardModel) -> None:
        nothing = torch.rand(0, 3, 32, 32)
        self.check(reward(nothing, []), 0)
        self.gradient(reward, nothing, [])

    @pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (40, 300), (300, 40), (224, 224)])
    def test_any_size(self, reward: RewardModel, size: tuple[int, int]) -> None:
        images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
        self.check(reward.score(images, ["a fox"]), 1)
        self.gradient(reward, images, ["a fox"])

    def test_grey_images(self, reward: RewardModel) -> None:
        grey = torch.rand(1, 1, 48, 48, generator=torch.Generator().manual_seed(2))
        self.check(reward.score(grey.expand(-1, 3, -1, -1), ["a fox"]), 1)
        for flat in (torch.zeros(1, 3, 48, 48), torch.ones(1, 3, 48, 48)):
            self.check(reward.score(flat, ["a fox"]), 1)
        with pytest.raises(ValueError, match=r"shape \(1, 1, 48, 48\).*repeat the one channel"):
            reward(grey, ["a fox"])

    @pytest.mark.parametrize(
        ("images", "prompts", "message"),
        [
            (torch.rand(3, 8, 8), ["a fox"], "shape"),
            (torch.rand(1, 4, 8, 8), ["a fox"], "shape"),
            (torch.rand(1, 3, 0, 8), ["a fox"], "shape"),
            (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ["a fox"], "uint8"),
            (torch.rand(2, 3, 8, 8), ["a fox"], "2 images need"),
            (torch.rand(5, 3, 8, 8), "a fox", "5 images need"),
        ],
    )
    def test_wrong_arguments(self, reward: RewardModel, images: Tensor, prompts: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            reward(images, prompts)

    def test_odd_prompts(self, reward: RewardModel, images: Tensor) -> None:
        same = images[:1].expand(len(ODD_PROMPTS), -1, -1, -1)
        self.check(reward.score(same, ODD_PROMPTS), len(ODD_PROMPTS))

    def test_long_prompts_are_cut_and_counted_once(self, reward: RewardModel, images: Tensor) -> None:
        before = reward.truncated_prompts
        start = "a red fox in the snow " * 20
        prompts = [f"{start} at night", f"{start} by day", "short"]
        for _ in range(2):
            scores = reward.score(images[:1].expand(3, -1, -1, -1), prompts)
        self.check(scores, 3)
        alike = (scores[0] - scores[1]).abs() <= self.tolerance()
        assert alike == (self.cuts_prompts or not self.reads_prompts)
        assert reward.truncated_prompts - before == (2 if self.reads_prompts and self.cuts_prompts else 0)
        assert reward.describe()["truncated_prompts"] == reward.truncated_prompts

    def test_scores_have_no_gradient(self, reward: RewardModel, images: Tensor) -> None:
        images.requires_grad_()
        assert reward(images, PROMPTS).requires_grad and not reward.score(images, PROMPTS).requires_grad
        with torch.inference_mode():
            reward.score(images, ["seen first in inference mode"] * len(images))
        self.gradient(reward, images.detach(), ["seen first in inference mode"] * len(images))

    def test_it_is_frozen(self, reward: RewardModel) -> None:
        assert not any(parameter.requires_grad for parameter in reward.parameters())
        assert not any(module.training for module in reward.modules())
        assert not any(tensor.is_meta for tensor in [*reward.parameters(), *reward.buffers()])

    def test_bfloat16(self, load: Load) -> None:
        exact, rounded = load("float32"), load("bfloat16")
        for image in photographs().values():
            four = image.expand(len(PROMPTS), -1, -1, -1)
            difference = exact.score(four, PROMPTS) - rounded.score(four, PROMPTS)
            assert difference.abs().max() <= self.rounding * self.scale
        true, near = (self.gradient(load(dtype), four, PROMPTS) for dtype in ("float32", "bfloat16"))
        assert torch.cosine_similarity(true.flatten(1), near.flatten(1)).min() > 0.98

    def test_images_in_bfloat16(self, reward: RewardModel, images: Tensor) -> None:
        rounded = images.bfloat16()
        assert torch.equal(reward.score(rounded, PROMPTS), reward.score(rounded.float(), PROMPTS))
        self.gradient(reward, rounded, PROMPTS)

    def test_what_it_says_of_itself(self, reward: RewardModel) -> None:
        said = reward.describe()
        low, high = reward.usual_range
        assert low < high and said["usual_range"] == [low, high]
        assert said["name"] == reward.name and said["version"] == reward.version != ""
        assert said["checkpoint"] == reward.checkpoint.name
        assert said["sha256"] == hashlib.sha256(reward.checkpoint.read_bytes()).hexdigest()

    @pytest.mark.slow
    def test_compiled_it_judges_the_same(
        self, reward: RewardModel, images: Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torch._dynamo.reset()
        monkeypatch.setattr(compiled, "BACKEND", counter := CompileCounterWithBackend("aot_eager"))
        expected = reward.score(images, PROMPTS), self.gradient(reward, images, PROMPTS)
        as_it_was = dict(vars(reward))
        try:
            reward.compile_towers()
            found = reward.score(images, PROMPTS), self.gradient(reward, images, PROMPTS)
        finally:
            vars(reward).update(as_it_was)
        for a, b in zip(found, expected, strict=True):
            assert (a - b).abs().max() <= 1e-5 * b.abs().max()
        assert counter.frame_count == 2 * self.compiles, "one graph with and one without a gradient"
