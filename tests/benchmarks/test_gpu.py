"""The benchmark for a GPU, with tiny models on a CPU: all of it runs, and the parts do each other no harm."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_models
from benchmarks.gpu_parts import GOALS, TINY, Bench, largest_that_fits, parts_of
from benchmarks.gpu_report import CUT_OFF, DONE, NO_MEMORY, NO_TIME, NOT_RUN, Figures, Goal, Part, Report, run_parts
from benchmarks.refl import at_depth, depths, weighted_mean
from renege_ray.errors import UserError

ROOT = Path(gpu.__file__).parents[1]
WITHOUT_THE_PLATFORM = """\
import runpy, sys
sys.modules.update(dict.fromkeys(["ray", "mlflow", "optuna"]))  # an import of them raises
sys.argv = ["benchmarks/gpu.py", "--tiny", "--output", sys.argv[1]]
runpy.run_path("benchmarks/gpu.py", run_name="__main__")
"""


@pytest.mark.slow
def test_all_parts_run_on_a_cpu_without_ray_and_mlflow(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_THE_PLATFORM, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    parts = found["parts"]
    assert [part["status"] for part in parts.values()] == [DONE] * 10
    for name in ("sd15_eager_k1", "sd15_eager_k4", "sd15_compiled_k1", "sd15_compiled_k4", "sdxl"):
        part = parts[name]
        assert part["gradients_per_s"] == pytest.approx(part["gradients_per_rollout"] * part["rollouts_per_s"])
        assert part["tflop_per_s"] == pytest.approx(part["gradients_per_s"] * part["tflop_per_gradient"])
        assert part["share_of_peak"] == pytest.approx(part["tflop_per_s"] / parts["peak"]["tflop_per_s"])
        assert part["finite"] == 1 and {"planned_gib", "peak_gib"} <= part.keys()
    assert parts["sd15_eager_k1"]["tflop_per_gradient"] > parts["sd15_eager_k4"]["tflop_per_gradient"]
    assert parts["sd15_eager_k4"]["times_refl"] == pytest.approx(
        parts["sd15_eager_k4"]["gradients_per_s"] / parts["refl"]["gradients_per_s"]
    )
    assert {goal["met"] for goal in found["goals"].values()} <= {True, False}  # none of them is left open
    assert found["sizes"].startswith("tiny") and found["device"] == "cpu"
    table = (tmp_path / "gpu.md").read_text()
    assert table in done.stdout and all(f"| {part['about']} | {DONE} |" in table for part in parts.values())


@pytest.mark.slow
def test_the_models_are_of_true_size() -> None:
    """In millions of parameters, as the published files have them."""

    def millions(module: torch.nn.Module) -> float:
        return round(sum(weight.numel() for weight in module.parameters()) / 1e6, 1)

    meta = torch.device("meta")
    sd15 = gpu_models.stable_diffusion(gpu_models.TRUE, meta, torch.bfloat16)
    sdxl = gpu_models.stable_diffusion_xl(gpu_models.TRUE, meta, torch.bfloat16)
    reward = gpu_models.hpsv2(gpu_models.TRUE, meta, torch.bfloat16)
    assert [millions(part) for part in (sd15.unet, sd15.vae, sd15.text_encoder)] == [859.5, 83.7, 123.1]
    assert [millions(part) for part in (sdxl.unet, sdxl.text_encoder_2)] == [2567.5, 694.7]
    assert [millions(part) for part in (reward.model, reward.model.vision_model)] == [986.1, 630.8]
    assert sd15.unet.dtype == torch.bfloat16 and torch.get_default_dtype() == torch.float32


@pytest.mark.slow
def test_short_rollouts_tell_the_operations_of_all() -> None:
    bench, per_rollout = Bench(TINY, torch.device("cpu")), 1
    shares, model = depths(bench.config.sampling, per_rollout), bench.eager
    counted = {
        depth: bench._operations(bench._gradient(model, at_depth(bench.config, depth, per_rollout), 1), model.null)
        for depth in shares
    }
    expected = weighted_mean(counted, shares) / per_rollout / 1e12
    assert bench._tflop_per_gradient(model, per_rollout) == pytest.approx(expected, rel=1e-6)


def sleep() -> Figures:
    time.sleep(60)
    return {}


def no_memory() -> Figures:
    raise torch.OutOfMemoryError("CUDA out of memory")


def wrong() -> Figures:
    raise RuntimeError("cuBLAS said no")


def parts_and_report(folder: Path, *runs: Callable[[], Figures], needs: float = 0.0) -> tuple[list[Part], Report]:
    parts = [Part(f"part{i}", f"part {i}", needs, run) for i, run in enumerate(runs)]
    goals = {"rate": Goal("a rate", 2.0, lambda found: found[parts[-1].name].get("gradients_per_s"))}
    return parts, Report(folder, {"device": "none"}, parts, goals)


def written(folder: Path) -> Figures:
    found: Figures = json.loads((folder / "gpu.json").read_text())
    return found


def test_a_part_costs_its_own_figures_only(tmp_path: Path) -> None:
    parts, report = parts_and_report(tmp_path, no_memory, wrong, lambda: {"gradients_per_s": 3.0})
    assert written(tmp_path)["goals"]["rate"]["met"] is None
    assert not run_parts(report, parts, 60, lambda text: None)
    found = written(tmp_path)
    statuses = [part["status"] for part in found["parts"].values()]
    assert statuses == [NO_MEMORY, "failed: RuntimeError: cuBLAS said no", DONE]
    assert found["goals"]["rate"] == {"about": "a rate", "aim": 2.0, "found": 3.0, "met": True}


def test_out_of_memory_is_no_failure(tmp_path: Path) -> None:
    parts, report = parts_and_report(tmp_path, no_memory)
    assert run_parts(report, parts, 60, lambda text: None)


def test_what_was_found_is_there_while_the_next_part_runs(tmp_path: Path) -> None:
    seen = []

    def look() -> Figures:
        seen.append(written(tmp_path)["parts"])
        return {}

    parts, report = parts_and_report(tmp_path, lambda: {"gradients_per_s": 3.0}, look)
    run_parts(report, parts, 60, lambda text: None)
    assert seen[0]["part0"]["gradients_per_s"] == 3.0 and seen[0]["part1"]["status"] == NOT_RUN


def test_a_part_is_cut_off_at_the_end_of_the_time(tmp_path: Path) -> None:
    parts, report = parts_and_report(tmp_path, sleep, sleep)
    started = time.monotonic()
    assert run_parts(report, parts, 0.3, lambda text: None)
    assert time.monotonic() - started < 10
    assert [part["status"] for part in written(tmp_path)["parts"].values()] == [CUT_OFF, NO_TIME]
    assert f"| part 1 | {NO_TIME} |" in (tmp_path / "gpu.md").read_text()


def test_a_part_that_would_not_fit_is_not_begun(tmp_path: Path) -> None:
    parts, report = parts_and_report(tmp_path, sleep, needs=30.0)
    assert run_parts(report, parts, 20, lambda text: None)
    assert written(tmp_path)["parts"]["part0"]["status"] == NO_TIME


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no"), UserError("optim.micro_batch_size: 8 does not fit")])
def test_a_size_that_does_not_fit_is_halved(error: Exception) -> None:
    tried = []

    def measure(size: int) -> Figures:
        tried.append(size)
        if size > 3:
            raise error
        return {"micro_batch": size}

    assert largest_that_fits(12, measure) == {"micro_batch": 3} and tried == [12, 6, 3]
    with pytest.raises(type(error)):
        largest_that_fits(1, lambda size: measure(8))


def test_all_parts_fit_into_the_time() -> None:
    parts = parts_of(Bench(TINY, torch.device("cpu")), full=True)
    assert sum(part.needs for part in parts) < gpu.SECONDS <= 480
    assert len({part.name for part in parts}) == len(parts) and len(GOALS) == 3


def test_what_is_missing_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(gpu, "find_spec", lambda name: None if name in ("diffusers", "ftfy") else object())
    assert gpu.main() == 2
    assert capsys.readouterr().err == "benchmarks/gpu.py: missing diffusers, ftfy; install them and run it again\n"


def test_without_a_gpu_only_the_tiny_one_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main() == 2
    assert "--tiny" in capsys.readouterr().err
