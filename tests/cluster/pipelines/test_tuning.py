"""Per-prompt tuning on Ray Data with the embedded model: killed workers, drivers and clusters; deadly prompts."""

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from ray import cloudpickle

from renege_ray.cluster.pipelines.tuning_worker import PromptWorker
from renege_ray.config.cli import from_args
from renege_ray.embeddings.check import check_rows
from renege_ray.prompts.sources import prompt_id
from renege_ray.tuning.tune import Slot
from tests.cluster.killing import below, job, wait_for, with_signal

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

PROMPTS, SLOTS = 36, 4
FLAGS = [
    "--tuning.lr", "2e-2", "--tuning.steps", "2", "--tuning.slots", str(SLOTS), "--tuning.eval-seeds", "1",
    "--sampling.num-inference-steps", "4", "--sampling.gradient-steps", "0,3", "--rewards.judges", "[]",
    "--cluster.cpus-per-worker", "1",
]  # fmt: skip


def files(folder: Path) -> int:
    return len(list(folder.glob("prompts-*/part-*.parquet")))


def rows(folder: Path) -> pd.DataFrame:
    (table,) = folder.glob("prompts-*")
    return pd.read_parquet(table)


def check_lost_work(folder: Path) -> None:
    """A worker that was killed takes at most one block with it: what was in its slots, and what waited to be written
    with the next of them.
    """
    done = set(rows(folder)["prompt_id"])
    notes = [json.loads(path.read_text()) for path in folder.glob("prompts-*/.kills-*.json")]
    lost = [set(note["present"]) - done for note in notes]
    assert lost, "nothing was being computed when the signal came"
    assert all(len(block) <= 2 * SLOTS - 1 for block in lost)


def flags(folder: Path) -> list[str]:
    return [*FLAGS, "--num-workers", "2", "--tuning.num-prompts", str(PROMPTS), "--output-dir", str(folder)]


def test_kills_lose_nothing_and_double_nothing(ray_cluster: str, tmp_path: Path) -> None:
    """SIGKILL of a worker, of the driver, of all of Ray; each time the same command again.

    The tests' own cluster serves where Ray itself is not killed: starting one takes many seconds.
    """
    from renege_ray.cluster.pipelines import tuning_job as prompts

    folder = tmp_path / "run"

    def workers() -> list[int]:
        return below(os.getpid(), ["MapWorker"])

    with job("tune_prompts", flags(folder), folder, ray_cluster) as process:
        wait_for(lambda: files(folder) >= 1, process)
        victims = workers()
        assert victims
        os.kill(victims[0], signal.SIGKILL)
        at_the_kill = files(folder)
        wait_for(lambda: files(folder) >= at_the_kill + 3, process)  # the other worker, or the one that replaced it
        assert len(rows(folder)) < PROMPTS
        os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: not workers())
    before = rows(folder)
    assert before["prompt_id"].is_unique
    check_lost_work(folder)

    written = files(folder)
    with job("tune_prompts", flags(folder), folder) as process:
        wait_for(lambda: files(folder) > written and bool(below(process.pid, ["raylet"])), process)
        for pid in below(process.pid, ["raylet", "gcs_server", "MapWorker", "ray::"]):
            with_signal(pid, signal.SIGKILL)
        assert process.wait(timeout=120) != 0, "the driver lives on without its cluster"
    middle = rows(folder)
    check_lost_work(folder)
    assert len(before) < len(middle) < PROMPTS

    last = from_args(flags(folder), "tune_prompts")
    assert last.resume and prompts.run(last.config, resume=True) == 0
    after = rows(folder)
    assert len(after) == PROMPTS and after["prompt_id"].is_unique and (after["status"] == "ok").all()
    for earlier in (before, middle):  # what was done stayed as it was
        kept = after.set_index("prompt_id").loc[earlier["prompt_id"], "reward_prompt_eval"]
        assert list(kept) == list(earlier["reward_prompt_eval"])
    assert not [path for path in folder.glob("prompts-*/*") if path.name.startswith(".")]
    check_results(folder, after)


def check_results(folder: Path, table: pd.DataFrame) -> None:
    """The summary, and some rows made again by the plain diffusers pipeline from what is stored."""
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["job"], summary["status"]) == ("tune_prompts", "finished")
    assert summary["metrics"]["eval/prompt/reward/mean"] == pytest.approx(table["reward_prompt_eval"].mean())
    assert summary["metrics"]["tuning/rows"] == PROMPTS and summary["metrics"]["tuning/not_below_global"] == 1.0
    for name in ("config", "table", "gains", "distributions", "gallery", "prompts"):
        assert (folder / summary["artifacts"][name]).exists()
    checked = list(check_rows(folder, 8))
    assert len(checked) == 16 and max(row.difference for row in checked) <= 1e-3


class Deadly(PromptWorker):
    """A worker whose process dies when a certain prompt is computed."""

    def _load(self) -> None:
        super()._load()
        measure = self._tuner._measure

        def measure_or_die(slots: Sequence[Slot]) -> object:
            if any("deadly" in slot.prompt for slot in slots):
                os.kill(os.getpid(), signal.SIGKILL)
            if any("difficult" in slot.prompt for slot in slots):
                raise ValueError("too difficult")
            return measure(slots)

        self._tuner._measure = measure_or_die  # type: ignore[method-assign, assignment]


def test_a_deadly_prompt_is_given_up_and_takes_nobody_with_it(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from renege_ray.cluster.pipelines import tuning_job as prompts
    from renege_ray.cluster.pipelines import tuning_results

    # It takes a worker of its own, and the test above has seen it.
    monkeypatch.setattr(tuning_results, "_gallery", lambda *_: Image.new("RGB", (8, 8)))
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(prompts, "PromptWorker", Deadly)
    texts = [f"a big red star number {i}" for i in range(5)]
    texts[2:2] = ["a deadly red star", "a difficult red star"]
    (tmp_path / "prompts.txt").write_text("\n".join([*texts, texts[0]]))
    given = [*FLAGS, "--prompts", str(tmp_path / "prompts.txt"), "--output-dir", str(tmp_path / "run")]
    first = from_args(given, "tune_prompts")
    assert prompts.run(first.config) == 1
    printed = capsys.readouterr()
    assert "1 repeated prompt is tuned once" in printed.out
    assert "2 prompts failed, and tuning.max_failed is 0" in printed.err
    table = rows(tmp_path / "run").set_index("prompt")
    assert sorted(table.index) == sorted(texts)
    assert table.loc["a deadly red star", "error"] == "killed its worker 3 times"
    assert table.loc["a difficult red star", "error"] == "ValueError: too difficult"
    assert list(table.index[table["status"] == "failed"].sort_values()) == ["a deadly red star", "a difficult red star"]
    assert set(table["prompt_id"]) == set(map(prompt_id, texts))

    again = from_args([*given, "--max-failed", "2"], "tune_prompts")
    assert again.resume and prompts.run(again.config, resume=True) == 0, "nothing is left to do, and two may fail"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]["tuning/failed"] == 2
