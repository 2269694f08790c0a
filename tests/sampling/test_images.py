"""Evaluation on fixed pairs: the images are the pipeline's, the workers share them, the figures are right."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from renege_ray.config.run import SamplingConfig
from renege_ray.models.families.stable_diffusion import StableDiffusion
from renege_ray.sampling.images import Evaluation, Pair, evaluate, make_pairs, to_bytes
from tests.group import run_group

SAMPLING = SamplingConfig(num_inference_steps=3, guidance_scale=3.0, gradient_steps=(0, 2))


class Brightness:
    """Mean brightness; NaN for prompts that say nothing about it."""

    names = ("brightness",)

    def score(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        means = images.mean(dim=(1, 2, 3))
        return {"brightness": torch.where(torch.tensor(["fox" in p for p in prompts]), means, torch.nan)}


@pytest.fixture
def model(tiny_pipeline: Callable[..., Any]) -> StableDiffusion:
    return StableDiffusion(tiny_pipeline(), "tiny")


def test_pairs_are_fixed_and_evenly_spread() -> None:
    prompts = [f"prompt {i}" for i in range(10)]
    pairs = make_pairs(prompts, 25, 1)
    assert pairs == make_pairs(list(reversed(prompts)), 25, 1), "the order of the file does not matter"
    assert len(set(pairs)) == 25
    uses = [sum(pair.prompt == prompt for pair in pairs) for prompt in prompts]
    assert sorted(set(uses)) == [2, 3]
    assert {p.seed for p in pairs}.isdisjoint({p.seed for p in make_pairs(prompts, 25, 2)})
    few = make_pairs(prompts, 6, 1, num_prompts=3)
    assert len({pair.prompt for pair in few}) == 3 and few[:3] == pairs[:3]
    with pytest.raises(ValueError, match="no prompts"):
        make_pairs([], 1, 0)


def test_an_image_can_be_had_again_with_diffusers(model: StableDiffusion) -> None:
    negative = model.encode_prompts(["ugly"]).half().float()
    pair = Pair("a red fox", 1234)
    image = evaluate(model, {"n": negative}, [pair], [], SAMPLING, keep_images=1).images["n"][0]
    expected = model.pipeline(
        pair.prompt,
        negative_prompt_embeds=negative,
        num_inference_steps=3,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(pair.seed),
        output_type="pt",
    ).images[0]
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-4)


def test_workers_share_the_pairs(model: StableDiffusion) -> None:
    negatives = {"null": model.encode_prompts([""]), "handwritten": model.encode_prompts(["ugly"])}
    pairs = make_pairs(["a red fox", "a blue fox", "a hen"], 5, 0)

    def work(workers: Any) -> Evaluation:
        return evaluate(model, negatives, pairs, [Brightness()], SAMPLING, workers, batch_size=2, keep_images=3)

    (alone,) = run_group(1, work)
    for world_size in (2, 3, 7):
        for shared in run_group(world_size, work):
            for method, scores in alone.scores.items():
                for name, values in scores.items():
                    torch.testing.assert_close(
                        shared.scores[method][name], values, rtol=1e-5, atol=1e-6, equal_nan=True
                    )
                torch.testing.assert_close(shared.images[method], alone.images[method], rtol=0, atol=1e-5)
    assert alone.images["null"].shape == (3, 3, 16, 16)
    assert alone.scores["null"]["brightness"].isnan().tolist() == ["fox" not in pair.prompt for pair in pairs]


def test_figures() -> None:
    nan = float("nan")
    pairs = tuple(Pair("p", i) for i in range(4))
    evaluation = Evaluation(
        pairs,
        {
            "null": {"r": torch.tensor([1.0, 2.0, 3.0, nan]), "sharpness": torch.zeros(4)},
            "global": {"r": torch.tensor([2.0, 2.0, 1.0, 5.0]), "sharpness": torch.ones(4)},
        },
    )
    metrics = evaluation.metrics()
    assert metrics["eval/null/r/mean"] == 2.0 and metrics["eval/global/r/mean"] == 2.5
    assert metrics["eval/global/win_rate_vs_null/r"] == 0.5, (
        "a win, a tie, a loss; the pair without a score is left out"
    )
    assert "eval/null/win_rate_vs_global/r" not in metrics
    assert not any("win_rate" in name and "sharpness" in name for name in metrics)


def test_plain_there_and_back(model: StableDiffusion) -> None:
    pairs = make_pairs(["a red fox"], 2, 0)
    negatives = {name: model.encode_prompts([name]) for name in ("null", "handwritten", "global")}
    evaluation = evaluate(model, negatives, pairs, [Brightness()], SAMPLING, keep_images=2)
    images = {method: to_bytes(images) for method, images in sorted(evaluation.images.items())}
    back = Evaluation.from_plain(json.loads(json.dumps(evaluation.plain())), images)
    assert back.pairs == pairs and back.metrics() == evaluation.metrics()
    assert [list(columns) for columns in back.scores.values()] == [list(c) for c in evaluation.scores.values()]
    assert list(back.scores) == list(back.images) == list(negatives)
    for method, images in evaluation.images.items():
        assert (back.images[method] - images).abs().max() <= 0.5 / 255 + 1e-6
