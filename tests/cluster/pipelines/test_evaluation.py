"""Evaluation on Ray Data with the embedded model: killed workers and drivers, added methods, failures, what is left."""

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from ray import cloudpickle

from renege_ray.cluster.pipelines.evaluation_worker import EvaluateWorker
from renege_ray.config.cli import from_args
from renege_ray.config.run import RunConfig
from renege_ray.evaluation.images import Row
from renege_ray.evaluation.table import ImageToMake
from renege_ray.models.load import load_model
from renege_ray.output.statistics import least_difference
from renege_ray.rewards.load import load_rewards
from tests.cluster.killing import below, job, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

PROMPTS, SEEDS = 30, 3
METHODS = ["--method", "null", "--method", "handwritten"]
FLAGS = [
    "--num-prompts", str(PROMPTS), "--seeds-per-prompt", str(SEEDS), "--evaluation.batch-size", "6",
    "--sampling.num-inference-steps", "4", "--rewards.judges", "[]", "--num-workers", "2",
    "--cluster.cpus-per-worker", "1",
]  # fmt: skip


def rows(folder: Path) -> pd.DataFrame:
    (table,) = folder.glob("rows-*")
    return pd.read_parquet(table)


class Raising(EvaluateWorker):
    """A worker that cannot make one image of the method `text`."""

    def _load(self) -> None:
        super()._load()
        made = self._maker._made

        def made_or_raised(batch: Sequence[ImageToMake]) -> list[Row]:
            if any(item.method == 2 and item.pair_index == 1 and item.prompt_id < "04" for item in batch):
                raise ValueError("too difficult")
            return made(batch)

        self._maker._made = made_or_raised  # type: ignore[method-assign]


def test_kills_lose_nothing_and_methods_are_added(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL of a worker and of the driver; the same command again with one method more; a few failures."""
    from renege_ray.cluster.pipelines import evaluation_job as evaluate

    folder = tmp_path / "run"
    flags = [*FLAGS, "--output-dir", str(folder)]

    def files() -> int:
        return len(list(folder.glob("rows-*/part-*.parquet")))

    def workers() -> list[int]:
        return below(os.getpid(), ["MapWorker"])

    with job("evaluate", [*flags, *METHODS], folder, ray_cluster) as process:
        wait_for(lambda: files() >= 1, process)
        os.kill(workers()[0], signal.SIGKILL)
        at_the_kill = files()
        wait_for(lambda: files() > at_the_kill, process)
        os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: not workers())
    before = rows(folder)
    assert not before.duplicated(["prompt_id", "pair_index", "method_key"]).any()

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(evaluate, "EvaluateWorker", Raising)
    again = from_args([*flags, *METHODS, "--method", "text=dark"], "evaluate")
    assert again.resume and evaluate.run(again.config, resume=True) == 1
    printed = capsys.readouterr()
    assert f"{len(before)} of {PROMPTS * SEEDS * 3} images have a row already" in printed.out
    after = rows(folder)
    key = ["prompt_id", "pair_index", "method_key"]
    assert len(after) == PROMPTS * SEEDS * 3 and not after.duplicated(key).any()
    kept = after.set_index(key).loc[[tuple(row) for row in before[key].to_numpy()], "score/toy"]
    assert list(kept) == list(before["score/toy"]), "what was done stayed as it was"
    failed = after[after["status"] == "failed"]
    assert len(failed) > 0 and set(failed["error"]) == {"ValueError: too difficult"}
    assert set(after.loc[after["method"] != "text", "status"]) == {"ok"}
    assert f"{len(failed)} images failed, and evaluation.max_failed is 0" in printed.err
    allowed = from_args([*flags, *METHODS, "--method", "text=dark,as=gloom", "--max-failed", "9"], "evaluate")
    assert evaluate.run(allowed.config, resume=allowed.resume) == 0, "nothing is left to do, and nine may fail"
    check_results(folder, allowed.config)


def check_results(folder: Path, config: RunConfig) -> None:
    """Files, figures, and some rows made again by the plain diffusers pipeline."""
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["job"], summary["status"]) == ("evaluate", "finished")
    for path in summary["artifacts"].values():
        assert (folder / path).exists()
    assert {"config", "table", "images", "report"} <= set(summary["artifacts"])
    table = pd.read_parquet(folder / "images.parquet")
    assert list(table["method"].unique()) == ["null", "handwritten", "gloom"]
    assert not [path for path in folder.rglob("*") if path.name.endswith(".part")]
    wide = table.pivot(index=["prompt_id", "pair_index"], columns="method", values="score/toy")
    metrics = summary["metrics"]
    for method in wide:
        assert metrics[f"eval/{method}/toy/mean"] == pytest.approx(wide[method].mean())
    gains, least = wide["handwritten"] - wide["null"], least_difference(*(wide[method] for method in wide))
    rate = (gains > least).mean() + (gains.abs() <= least).mean() / 2
    assert metrics["eval/handwritten/win_rate_vs_null/toy"] == pytest.approx(rate)
    assert metrics["eval/gloom/failed"] == (table["status"] == "failed").sum()
    model, reward = load_model(config.model), load_rewards(["toy"])["toy"]
    pipeline = model.pipeline  # type: ignore[attr-defined]
    pipeline.set_progress_bar_config(disable=True)
    texts = {"null": "", "handwritten": config.prompts.handwritten[0], "gloom": "dark"}
    for row in table[table["status"] == "ok"].sample(6, random_state=0).to_dict("records"):
        image = pipeline(
            row["prompt"], num_inference_steps=4, guidance_scale=config.sampling.guidance_scale,
            negative_prompt_embeds=model.encode_prompts([texts[row["method"]]]),
            generator=torch.Generator().manual_seed(int(row["seed"])), output_type="pt", height=32, width=32,
        ).images  # fmt: skip
        assert float(reward(image, [row["prompt"]])) == pytest.approx(row["score/toy"], abs=1e-3)
        stored = Image.open(folder / "images" / row["image"]).convert("RGB")
        difference = torch.tensor(list(stored.tobytes())).reshape(32, 32, 3) - image[0].permute(1, 2, 0) * 255
        assert difference.abs().max() <= 1
