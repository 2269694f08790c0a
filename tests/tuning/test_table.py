"""Scores, rows, files, look-up and report of tuned prompts, on a tiny pipeline."""

import math
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline

from renege_ray.config.run import ModelConfig, RunConfig, parse_config
from renege_ray.embeddings.prompt_embeddings import PromptEmbeddings
from renege_ray.errors import UserError
from renege_ray.method.embedding import EmbeddingMetadata
from renege_ray.models.families.stable_diffusion import StableDiffusion
from renege_ray.models.layout import EmbeddingLayout
from renege_ray.models.load import load_model
from renege_ray.rewards.weighted import WeightedReward
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.run_rewards import Rewards
from renege_ray.tuning.progress import TuningProgress
from renege_ray.tuning.report import Gain, TuningReport, draw_distributions, write_listed
from renege_ray.tuning.scores import EVAL, METHODS, TUNE, PromptScores, column
from renege_ray.tuning.table import PromptToTune, TuningTable, make_row, table_schema
from renege_ray.tuning.tune import PromptTuner, TunedPrompt, tuning_seeds
from tests.simple_rewards import Channel, NaNWhere, RaisesFor
from tests.tiny import build_tiny_pipeline, build_tiny_pixart, build_tiny_sdxl

STRANGE = [
    "a red fox",
    "two blue cows",
    "'; DROP TABLE prompts; --",
    "../../etc/passwd",
    "C:\\nul\0\x1b[2J",
    "🦊 und ein 狐, قط",
    "word " * 10_000,
]


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    return StableDiffusion(build_tiny_pipeline(prediction_type="v_prediction"), "tiny")


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return parse_config(
        {
            "seed": 5,
            "prompts": {"handwritten": ["blurry"]},
            "sampling": {"num_inference_steps": 4, "guidance_scale": 3.0, "gradient_steps": [0, 3]},
            "tuning": {"lr": 0.3, "steps": 2, "slots": 4, "eval_seeds": 3},
        }
    )


def make_rewards(train: Any = None, other: Any = None) -> Rewards:
    return Rewards(WeightedReward({train or Channel(): 2.0}), (other or Channel("other", 1),))


def tune_and_score(
    config: RunConfig, model: StableDiffusion, rewards: Rewards, prompts: list[str]
) -> tuple[PromptScores, list[TunedPrompt], list[Any]]:
    encoded = EncodedPrompts(model)
    done = list(PromptTuner(config, model, rewards, encoded(["ugly"]), encoded).tune(prompts))
    scores = PromptScores(config, model, rewards, encoded(["ugly"]), encoded)
    return scores, done, scores.score([tuned for tuned in done if not tuned.error])


@pytest.fixture(scope="module")
def folder(config: RunConfig, model: StableDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a table of two files; one of its prompts has failed."""
    rewards = make_rewards(NaNWhere("cows"))
    scores, done, found = tune_and_score(config, model, rewards, STRANGE)
    columns = dict(zip((tuned.prompt for tuned in done if not tuned.error), found, strict=True))
    header = EmbeddingMetadata(text_encoder_hash=model.text_encoder_hash, text_encoder="Tiny").to_header()
    root = tmp_path_factory.mktemp("run")
    table = TuningTable(str(root / "prompts-0123"))
    rows = [
        make_row(
            PromptToTune(tuned.prompt, "strange"), tuned, columns.get(tuned.prompt, ""),
            tuning_seeds(config, tuned.prompt), bool(model.count_truncated([tuned.prompt])),
        )
        for tuned in done
    ]  # fmt: skip
    schema = table_schema(scores.names, model.embedding_layout, header)
    table.write(rows[:3], schema)
    table.write(rows[3:], schema)
    return root


@pytest.mark.slow
def test_scores_are_those_of_a_diffusers_pipeline(config: RunConfig, model: StableDiffusion) -> None:
    """Every method, both kinds of seeds: means of the rewards of images that the plain pipeline makes."""
    rewards = make_rewards()
    scores, done, found = tune_and_score(config, model, rewards, STRANGE[:3])
    assert scores.names == ["reward", "channel", "other"]
    for tuned, columns in zip(done, found, strict=True):
        negatives = {
            "null": model.encode_prompts([""]),
            "handwritten": model.encode_prompts(["blurry"]),
            "global": model.encode_prompts(["ugly"]).half().float(),
            "prompt": tuned.embedding,
        }
        for split, seeds in zip((TUNE, EVAL), tuning_seeds(config, tuned.prompt), strict=True):
            for method in METHODS:
                images = torch.cat(
                    [
                        model.pipeline(
                            tuned.prompt, negative_prompt_embeds=negatives[method], num_inference_steps=4,
                            guidance_scale=3.0, generator=torch.Generator().manual_seed(seed), height=16, width=16,
                            output_type="pt",
                        ).images
                        for seed in seeds
                    ]
                )  # fmt: skip
                texts = [tuned.prompt] * len(seeds)
                expected = float(Channel()(images, texts).mean())
                assert columns[column("channel", method, split)] == pytest.approx(expected, abs=1e-3)
                assert columns[column("reward", method, split)] == pytest.approx(2 * expected, abs=2e-3)
                other = float(Channel("other", 1)(images, texts).mean())
                assert columns[column("other", method, split)] == pytest.approx(other, abs=1e-3)
        assert columns[column("reward", "prompt", TUNE)] == pytest.approx(max(tuned.rewards), abs=1e-5)
        assert columns[column("reward", "prompt", TUNE)] >= columns[column("reward", "global", TUNE)]


def test_a_prompt_whose_scores_raise_spoils_no_other(config: RunConfig, model: StableDiffusion) -> None:
    encoded, good = EncodedPrompts(model), make_rewards()
    done = list(PromptTuner(config, model, good, encoded([""]), encoded).tune(STRANGE[:3]))
    bad = make_rewards(other=RaisesFor("cows"))
    found = PromptScores(config, model, bad, encoded([""]), encoded).score(done)
    outcome = dict(zip((tuned.prompt for tuned in done), found, strict=True))
    assert outcome.pop("two blue cows") == "RuntimeError: no cows, please"
    assert all(isinstance(columns, dict) for columns in outcome.values())


def test_a_prompt_that_did_not_rise_has_the_scores_of_its_start(config: RunConfig, model: StableDiffusion) -> None:
    encoded, rewards = EncodedPrompts(model), make_rewards()
    (tuned,) = PromptTuner(config, model, rewards, encoded([""]), encoded).tune(["a fox"])
    start = encoded([""]).half().float()
    still = TunedPrompt(
        "a fox", start, 0, 2, False, (1.0,), {m: tuned.images["global"] for m in ("global", "prompt")}, 0
    )
    (columns,) = PromptScores(config, model, rewards, encoded([""]), encoded).score([still])
    assert isinstance(columns, dict)
    for split in (TUNE, EVAL):
        assert columns[column("reward", "prompt", split)] == columns[column("reward", "global", split)]


def test_rows_are_read_back_by_anybody(folder: Path, model: StableDiffusion) -> None:
    frame = pd.read_parquet(folder / "prompts-0123").set_index("prompt")
    assert sorted(frame.index) == sorted(STRANGE), "every prompt has its row, whatever is in it"
    assert frame["prompt_id"].is_unique and frame["prompt_id"].str.fullmatch("[0-9a-f]{16}").all()
    status = frame["status"].to_dict()
    assert status["two blue cows"] == "failed" and "nan" in frame.loc["two blue cows", "error"]
    assert status[STRANGE[-1]] == "truncated" and status["a red fox"] == "ok"
    assert math.isnan(frame.loc["two blue cows", "reward_prompt_eval"])
    assert (
        frame.drop("two blue cows")["reward_prompt_tune"] >= frame.drop("two blue cows")["reward_global_tune"]
    ).all()
    assert all(len(seeds) == 2 for seeds in frame["tune_seeds"]) and all(len(s) == 3 for s in frame["eval_seeds"])
    assert {path.parent.name for path in folder.rglob("*.parquet")} == {"prompts-0123"}
    field = pq.read_schema(next(folder.rglob("*.parquet"))).field("embedding")
    assert tuple(field.type.shape) == model.embedding_shape


def test_a_full_disk_leaves_the_table_as_it_was(tmp_path: Path) -> None:
    table = TuningTable(str(tmp_path / "table"))
    schema = table_schema(["reward"], EmbeddingLayout(200, 300), {})
    tuned = TunedPrompt("a fox", torch.randn(1, 200, 300), 0, 0, False, (), {}, 0.0)
    row = make_row(PromptToTune("a fox"), tuned, {}, ([1], [2]), False)
    table.write([row], schema)
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # the system refuses the rest of a larger file
    try:
        with pytest.raises(OSError, match="Errno"):
            table.write([row], schema)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.suffix for path in (tmp_path / "table").iterdir()] == [".parquet"]
    assert table.ids() == {PromptToTune("a fox").id}
    (tmp_path / "table" / ".part-1.parquet.part").write_bytes(b"PAR1")  # a writer that was killed
    assert len(table.files()) == 1
    table.remove_leftovers()
    assert len(list((tmp_path / "table").iterdir())) == 1


def test_embeddings_are_looked_up(folder: Path, model: StableDiffusion) -> None:
    with PromptEmbeddings.open(folder) as embeddings:
        assert len(embeddings) == len(STRANGE) - 1
        for prompt in set(STRANGE) - {"two blue cows"}:
            assert prompt in embeddings and embeddings.match(prompt).similarity == 1.0
            assert torch.equal(embeddings[prompt], embeddings[PromptToTune(prompt).id])
            assert embeddings[prompt].shape == (1, *model.embedding_shape)
            assert embeddings[prompt].dtype == torch.float16
        assert "two blue cows" not in embeddings
        with pytest.raises(KeyError):
            embeddings["a green fox"]
        with pytest.warns(UserWarning, match=r"'a green fox' has not been tuned; .* 'a red fox' \(50%"):
            nearest = embeddings.batch(["a green fox", "a red fox"])
        assert torch.equal(nearest[0], nearest[1]) and nearest.dtype == torch.float32
        with pytest.raises(UserError, match="shares no word"):
            embeddings.match("xyzzy")


def test_embeddings_serve_a_pipeline(folder: Path, model: StableDiffusion) -> None:
    """A list of prompts at once: each image is that of its own prompt and embedding alone."""
    prompts = ["a red fox", STRANGE[3]]
    calls = {"num_inference_steps": 3, "guidance_scale": 4.0, "height": 16, "width": 16, "output_type": "pt"}
    noise = torch.randn(2, *model.latent_shape)
    with PromptEmbeddings.open(str(folder / "prompts-0123")) as embeddings:
        batch = model.pipeline(prompts, latents=noise, **embeddings.for_pipeline(model.pipeline, prompts), **calls)
        for i, prompt in enumerate(prompts):
            alone = model.pipeline(
                prompt, latents=noise[i : i + 1], negative_prompt_embeds=embeddings[prompt].float(), **calls
            )
            torch.testing.assert_close(batch.images[i], alone.images[0], rtol=0, atol=1e-4)
        with pytest.raises(UserError, match="learned for the text encoder Tiny"):
            embeddings.for_pipeline(build_tiny_pipeline(seed=1), prompts)
        with pytest.raises(UserError, match="does not fit"):
            embeddings.for_pipeline(build_tiny_pipeline(width=8), prompts)


@pytest.mark.parametrize("build", [build_tiny_sdxl, build_tiny_pixart])
def test_embeddings_of_several_tensors(build: Any, config: RunConfig, tmp_path: Path) -> None:
    """From tuning to a pipeline: what is in an embedding is for the families to know."""
    build().save_pretrained(tmp_path / "model")
    model = load_model(ModelConfig(id=str(tmp_path / "model")))
    encoded, rewards, prompts = EncodedPrompts(model), make_rewards(), ["a red fox", "a hen"]
    initial = model.starting_point(encoded(["ugly"]))
    done = list(PromptTuner(config, model, rewards, initial, encoded).tune(prompts))
    scores = PromptScores(config, model, rewards, initial, encoded)
    found = scores.score(done)
    assert all(tuned.best_step > 0 and not tuned.error for tuned in done)
    header = EmbeddingMetadata(text_encoder_hash=model.text_encoder_hash).to_header()
    rows = [
        make_row(PromptToTune(tuned.prompt), tuned, columns, tuning_seeds(config, tuned.prompt), False)
        for tuned, columns in zip(done, found, strict=True)
    ]
    table = TuningTable(str(tmp_path / "run" / "prompts-0"))
    table.write(rows, table_schema(scores.names, model.embedding_layout, header))
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "model")
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    masked = model.embedding_layout.masked  # PixArt's pipeline takes prompts encoded, and bins the sizes of real models
    with PromptEmbeddings.open(tmp_path / "run") as embeddings:
        embeddings.check_fits(model.embedding_layout.shapes, model.text_encoder_hash, "Tiny")
        arguments = embeddings.for_pipeline(pipeline, prompts)
        longer = embeddings.for_pipeline(pipeline, prompts, tokens=2 * model.embedding_layout.tokens)
    for row, prompt in enumerate(prompts):
        own = next(tuned for tuned in done if tuned.prompt == prompt)
        for name, tensor in model.embedding_layout.unpack(own.embedding).items():
            torch.testing.assert_close(arguments[name][row : row + 1], tensor, rtol=0, atol=0)
            times = 1 if "pooled" in name else 2
            assert longer[name].shape[1] == times * tensor.shape[1]
    images = [
        pipeline(
            **({"use_resolution_binning": False} if masked else {"prompt": prompts}), **arguments,
            num_inference_steps=4, guidance_scale=3.0, output_type="pt",
            generator=[torch.Generator().manual_seed(tuning_seeds(config, prompt)[0][k]) for prompt in prompts],
        ).images
        for k in range(config.tuning.tune_seeds)
    ]  # fmt: skip
    for row, prompt in enumerate(prompts):
        own = next(tuned for tuned in done if tuned.prompt == prompt)
        torch.testing.assert_close(torch.stack([made[row] for made in images]), own.images["prompt"], rtol=0, atol=1e-3)


def test_bad_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        PromptEmbeddings.open(tmp_path / "none")
    with pytest.raises(UserError, match="holds no tuned prompts"):
        PromptEmbeddings.open(tmp_path)
    (tmp_path / "prompts-a").mkdir()
    (tmp_path / "prompts-a" / "part.parquet").write_bytes(b"PAR1 not at all PAR1")
    with pytest.raises(UserError, match="damaged or foreign"):
        PromptEmbeddings.open(tmp_path)
    (tmp_path / "prompts-b").mkdir()
    with pytest.raises(UserError, match="tables of 2 settings"):
        PromptEmbeddings.open(tmp_path)
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "prompts-b" / "part.parquet")
    with pytest.raises(UserError, match="damaged or foreign"):
        PromptEmbeddings.open(tmp_path / "prompts-b")


def test_the_report_is_that_of_pandas(folder: Path, tmp_path: Path) -> None:
    table, progress = TuningTable(str(folder / "prompts-0123")), TuningProgress()
    report = TuningReport(table)
    assert progress.update(table) and not progress.update(table)
    frame = pd.read_parquet(folder / "prompts-0123")
    metrics = report.metrics()
    gains = (frame["reward_prompt_eval"] - frame["reward_global_eval"]).dropna()
    assert metrics["eval/prompt/reward/mean"] == pytest.approx(frame["reward_prompt_eval"].mean())
    assert metrics["eval/gain/reward/mean"] == pytest.approx(gains.mean())
    half = 1.96 * gains.sem()
    assert metrics["eval/gain/reward/low"] == pytest.approx(gains.mean() - half)
    assert metrics["eval/gain/reward/improved"] == pytest.approx((gains > 0).mean())
    won = (gains > 0).mean() + (gains == 0).mean() / 2
    assert metrics["eval/prompt/win_rate_vs_global/reward"] == pytest.approx(won)
    assert (metrics["tuning/rows"], metrics["tuning/failed"], metrics["tuning/truncated"]) == (
        len(frame), 1.0, float((frame["status"] == "truncated").sum()),
    )  # fmt: skip
    assert metrics["tuning/not_below_global"] == 1.0
    live = progress.live_metrics()
    for split in (TUNE, EVAL):
        assert live[f"tuning/gain/{split}"] == pytest.approx(metrics[f"{split}/gain/reward/mean"])
    assert (live["tuning/done"], live["tuning/failed"]) == (len(frame), 1.0)
    order = [frame["prompt"][i] for i in report.by_gain()]
    assert order == list(frame.loc[gains.sort_values(ascending=False, kind="stable").index, "prompt"])
    chosen = report.chosen(2)
    assert [name for name, _ in chosen] == ["best"] * 2 + ["median"] * 2 + ["worst"] * 2
    assert len({index for _, index in chosen}) == 6
    assert "6 prompts" not in report.text() and "7 prompts, 1 failed" in report.text()
    listed = pd.read_csv(write_listed(report, tmp_path / "gains.csv"))
    assert len(listed) == 7 and listed["prompt_id"].is_unique
    assert draw_distributions(report).size[0] > 600


def test_gains_of_few_prompts_claim_no_interval() -> None:
    assert math.isnan(Gain.of(np.array([])).mean)
    assert Gain.of(np.array([1.0, math.nan])).mean == 1.0
    assert math.isnan(Gain.of(np.array([1.0])).interval[0])
    assert Gain.of(np.array([1.0, 0.0])).improved == 0.5
    assert Gain.of(np.array([1.0, 1e-5, -1.0, 0.0]), least=1e-4).improved == 0.25


def test_prompts_that_gain_by_rounding_alone_tie(tmp_path: Path) -> None:
    """Of 40 prompts, 10 gain, and 30 are what they were but for the storage type's rounding."""
    scores = np.random.default_rng(0).normal(size=40)
    gained = np.where(np.arange(40) < 10, 0.5, 2e-4)
    rows = {column("reward", method, split): scores for method in METHODS for split in (TUNE, EVAL)}
    rows |= {column("reward", "prompt", EVAL): scores + gained, column("reward", "prompt", TUNE): scores - 2e-4}
    rows |= {name: np.zeros(40) for name in ("steps", "best_step", "stopped_early")} | {"status": np.full(40, "ok")}
    pd.DataFrame(rows).to_parquet(tmp_path / "part.parquet")
    metrics = TuningReport(TuningTable(str(tmp_path))).metrics()
    assert metrics["eval/gain/reward/improved"] == 0.25
    assert metrics["eval/prompt/win_rate_vs_global/reward"] == metrics["eval/prompt/win_rate_vs_null/reward"] == 0.625
    assert metrics["tuning/not_below_global"] == 1.0
