"""A training's metrics in MLflow: a few sections of what is compared, and no two names that become one."""

from collections import Counter

from renege_ray.cluster.tracking.charts import charted
from renege_ray.config.run import load_preset
from renege_ray.sweeps.space.metrics import reported_metrics


def sections(names: list[str]) -> Counter[str]:
    return Counter(shown.rpartition("/")[0] for shown in charted(names).values())


def test_a_validation_is_three_sections_of_curves_that_change() -> None:
    names = reported_metrics(load_preset("toy"))
    found = charted(names)
    assert set(sections(names)) == {"validation", "validation wins over null", "validation wins over handwritten"}
    assert min(sections(names).values()) > 3, "no section of one chart"
    assert all(name.startswith("eval/global/") for name in found)
    assert found["eval/global/toy/mean"] == "validation/toy"
    assert found["eval/global/win_rate_vs_null/toy"] == "validation wins over null/toy"
    assert len(set(found.values())) == len(found)
    test = charted([f"test/{name.removeprefix('eval/')}" for name in names])
    assert set(test.values()) == {"test/reward", "test/wins over null", "test/wins over handwritten"}


def test_other_names_stay_and_methods_that_are_compared_share_a_section() -> None:
    assert charted(["train/reward", "perf/seconds", "test/gain over null"]) == {
        name: name for name in ("train/reward", "perf/seconds", "test/gain over null")
    }
    names = [f"eval/{method}/{score}/mean" for method in ("null", "global", "a/b") for score in ("toy", "clip")]
    names += ["eval/global/win_rate_vs_null/toy", "eval/null/failed", "eval/global/failed"]
    found = charted(names)
    assert set(found) == set(names) and len(set(found.values())) == len(names)
    assert found["eval/a/b/toy/mean"] == "mean - toy/a/b"
    assert found["eval/null/failed"] == "left out - failed/null"
    alone = charted(["eval/handwritten/reward/mean"])  # a sweep of handwritten texts
    assert alone == {"eval/handwritten/reward/mean": "mean - reward/handwritten"}
