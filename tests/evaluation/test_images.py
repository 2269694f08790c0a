"""Rows of an evaluation on a tiny pipeline: diffusers' own images and scores, bad images, marks, and bounded memory."""

import math
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from renege_ray.config.run import ModelConfig, RunConfig, parse_config
from renege_ray.embeddings.names import FALLBACK, ComparedNegative, parse_methods
from renege_ray.evaluation.images import ImageMaker, Loaders, folder_of, status_of
from renege_ray.evaluation.table import EvaluationTable, ImageToMake, make_row, table_schema, with_weighted_reward
from renege_ray.models.families.stable_diffusion import StableDiffusion
from renege_ray.prompts.sources import prompt_id
from renege_ray.rewards.base import RewardScorer, Scorer
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.negative import NULL, Negative
from tests.simple_rewards import Channel, RaisesFor
from tests.tiny import build_tiny_pipeline

PROMPTS = ["a red fox", "two blue cows", "'; DROP TABLE x"]


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    return StableDiffusion(build_tiny_pipeline(), "tiny")


def configure(**evaluation: object) -> RunConfig:
    return parse_config(
        {
            "sampling": {"num_inference_steps": 3, "guidance_scale": 4.0, "gradient_steps": [0, 1]},
            "evaluation": {"batch_size": 4, "keep_images": "png"} | evaluation,
        }
    )


def negative(spec: str, key: str, negative: Negative = NULL, **facts: Any) -> ComparedNegative:
    return ComparedNegative(parse_methods([spec])[0], ModelConfig(), negative, key=key, **facts)


def to_make(prompts: Sequence[str], negatives: Sequence[ComparedNegative], seeds: int = 1) -> list[ImageToMake]:
    return [
        ImageToMake(prompt_id(prompt), prompt, "style", 100 * k + i, k, place, n.key)
        for i, prompt in enumerate(prompts)
        for k in range(seeds)
        for place, n in enumerate(negatives)
    ]


def make_rows(
    config: RunConfig,
    model: StableDiffusion,
    negatives: Sequence[ComparedNegative],
    items: Sequence[ImageToMake],
    scorers: Sequence[Scorer],
    folder: Path | None = None,
    refiner: Any = None,
) -> pd.DataFrame:
    def keep(path: str, data: bytes) -> None:
        assert folder is not None
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(data)

    loaders = Loaders(lambda wanted: model, lambda name, folders: refiner)
    maker = ImageMaker(config, negatives, scorers, loaders, keep)
    return pd.DataFrame(list(maker.rows(items, lambda batch: None)))


def test_rows_are_the_images_and_scores_of_a_diffusers_pipeline(model: StableDiffusion, tmp_path: Path) -> None:
    learned = torch.randn(1, *model.embedding_shape, generator=torch.Generator().manual_seed(0))
    negatives = [
        negative("null", "n"),
        negative("text=ugly", "t", Negative("ugly")),
        negative("global=f.pt", "g", Negative(embedding=learned)),
        negative("null,refine=promptist", "r", refiner=("", "")),
    ]
    items = to_make(PROMPTS[::2], negatives)
    scorers = [RewardScorer(Channel()), RewardScorer(Channel("other", 1))]
    rows = make_rows(configure(), model, negatives, items, scorers, tmp_path, lambda prompt: f"{prompt}, nice")
    assert list(rows["status"].unique()) == ["ok"] and list(rows["model"].unique()) == ["tiny"]
    assert list(rows["marks"].unique()) == [""]
    embeddings = {
        "null": model.encode_prompts([""]), "text": model.encode_prompts(["ugly"]), "global": learned,
        "null with promptist": model.encode_prompts([""]),
    }  # fmt: skip
    for row, item in zip(rows.to_dict("records"), items, strict=True):
        refined = f"{item.prompt}, nice" if row["method"] == "null with promptist" else ""
        assert row["refined_prompt"] == refined
        image = model.pipeline(
            refined or item.prompt, negative_prompt_embeds=embeddings[row["method"]], num_inference_steps=3,
            guidance_scale=4.0, generator=torch.Generator().manual_seed(item.seed), height=16, width=16,
            output_type="pt",
        ).images  # fmt: skip
        for scorer in scorers:  # by the words of the user, whatever was drawn
            expected = float(scorer.reward(image, [item.prompt]))
            assert row[f"score/{scorer.reward.name}"] == pytest.approx(expected, abs=2e-3)
        stored = torch.tensor(list(Image.open(tmp_path / row["image"]).tobytes())).reshape(16, 16, 3).permute(2, 0, 1)
        assert (stored - image[0] * 255).abs().max() <= 0.6
    by_label = {label: rows[rows["method"] == label] for label in embeddings}
    assert all(list(by_label["null"]["seed"]) == list(found["seed"]) for found in by_label.values()), "paired"


def test_small_images_are_kept_without_loss_or_not_at_all(model: StableDiffusion, tmp_path: Path) -> None:
    negatives = [negative("null", "n")]
    items = to_make(PROMPTS[:1], negatives)
    for form in ("webp", "png"):
        make_rows(configure(keep_images=form), model, negatives, items, [RewardScorer(Channel())], tmp_path)
    pictures = [
        Image.open(tmp_path / folder_of(negatives[0]) / f"{items[0].prompt_id}-0.{form}").convert("RGB").tobytes()
        for form in ("webp", "png")
    ]
    assert pictures[0] == pictures[1]
    rows = make_rows(configure(keep_images="none"), model, negatives, items, [RewardScorer(Channel())])
    assert list(rows["image"]) == [""]


class Brush:
    """A decoder that paints the images of some seeds over."""

    def __init__(self, model: StableDiffusion, values: dict[int, float]) -> None:
        self._model, self._values = model, values
        self._noise = {seed: torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in values}
        self._seen: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def for_prompts(self, prompts: Sequence[str]) -> Any:
        return self

    def denoise(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
        if self._seen is None:
            self._seen = latents.clone()  # both branches of the first step are x_T
        return self._model.denoise(latents, timestep, prompt_embeds)

    def decode(self, latents: Tensor) -> Tensor:
        images = self._model.decode(latents)
        assert self._seen is not None
        for seed, value in self._values.items():
            mine = (self._seen[: len(images)] == self._noise[seed]).flatten(1).all(dim=1)
            images[mine] = value
        self._seen = None
        return images


def test_bad_images_are_named_and_spoil_no_other(model: StableDiffusion, tmp_path: Path) -> None:
    negatives = [negative("null", "n")]
    items = to_make(["a red fox", "a hen", "a cow", "a crow"], negatives)
    painted: Any = Brush(model, {items[0].seed: math.nan, items[1].seed: 0.0})
    scorers = [RewardScorer(Channel()), RewardScorer(RaisesFor("crow"))]
    rows = make_rows(configure(), painted, negatives, items, scorers[:1], tmp_path)
    assert list(rows["status"]) == ["nan", "black", "ok", "ok"]
    assert list(rows["score/channel"].isna()) == [True, False, False, False]
    assert (rows["image"] != "").tolist() == [False, True, True, True]
    rows = make_rows(configure(), model, negatives, items, scorers, tmp_path)
    assert list(rows["status"]) == ["ok", "ok", "ok", "failed"]
    assert "no crow, please" in rows["error"].iloc[3]
    assert status_of(torch.full((3, 4, 4), 3 / 255)) == "ok"


def test_prompts_that_a_table_lacks_are_marked(model: StableDiffusion) -> None:
    own = torch.randn(1, *model.embedding_shape).half()
    spare = torch.randn(1, *model.embedding_shape)
    tuned = negative("prompt=x", "p", Negative(embedding=spare), table="x")

    tables: Any = {"x": {"a red fox": own}}
    encoded = EncodedPrompts(model)
    assert torch.equal(tuned.embedding_for("a red fox", encoded, tables.get)[0], own.float())
    found, mark = tuned.embedding_for("a hen", encoded, tables.get)
    assert torch.equal(found, spare) and mark == FALLBACK
    null = negative("prompt=x", "p", table="x")
    assert torch.equal(null.embedding_for("a hen", encoded, tables.get)[0], model.null_embedding())


class Watcher:
    """A scorer that counts which of the images it was given are still held by anybody."""

    names = ("mean",)

    def __init__(self) -> None:
        self._seen: list[weakref.ref[Tensor]] = []
        self.most = 0

    def score(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        self.most = max(self.most, sum(reference() is not None for reference in self._seen))
        self._seen.append(weakref.ref(images))
        return {"mean": images.mean(dim=(1, 2, 3))}


class Still:
    """A model that denoises nothing, which costs nothing."""

    def __init__(self, model: StableDiffusion) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def for_prompts(self, prompts: Sequence[str]) -> Any:
        return self

    def denoise(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
        return torch.zeros_like(latents)


def test_a_thousand_images_hold_no_more_than_a_batch(model: StableDiffusion, tmp_path: Path) -> None:
    config = parse_config(
        {
            "sampling": {"num_inference_steps": 1, "guidance_scale": 4.0, "gradient_steps": [0, 1]},
            "evaluation": {"batch_size": 50, "keep_images": "webp"},
        }
    )
    negatives = [negative("null", "n")]
    watcher, still = Watcher(), cast(Any, Still(model))
    items = to_make([f"fox {i}" for i in range(20)], negatives, seeds=50)
    assert len(make_rows(config, still, negatives, items, [watcher], tmp_path)) == 1000
    assert watcher.most <= 1


def test_the_table_is_in_order_and_speaks_by_present_labels(tmp_path: Path) -> None:
    negatives = [negative("null", "kn"), negative("text=x", "kt", Negative("x"))]
    items = to_make(PROMPTS, negatives, seeds=2)
    table = EvaluationTable(str(tmp_path / "rows"))
    schema = table_schema(["a", "b"])
    rows = [make_row(item, "old", "toy", {"a": float(i), "b": 1.0}, 0.1) for i, item in enumerate(items)]
    table.write(rows[7:], schema)
    table.write(rows[:7], schema)
    assert table.ids() == {item.id for item in items}
    wanted = {item.id for item in items if item.prompt != PROMPTS[1]}
    found = table.frame({"kn": "null", "kt": "words"}, wanted)
    assert list(found["method"]) == ["null", "words"] * 4 and list(found["pair_index"]) == [0, 0, 1, 1] * 2
    assert set(found["prompt"]) == {PROMPTS[0], PROMPTS[2]}
    both = with_weighted_reward(found, {"a": 2.0, "b": -1.0})
    assert list(both["score/reward"]) == [2 * a - 1 for a in found["score/a"]]
