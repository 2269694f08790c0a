"""Tables in four formats, plots and pictures of the report, without a browser."""

import io
from base64 import b64decode
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from renege_ray.evaluation.comparison import Comparison
from renege_ray.evaluation.report import gallery
from renege_ray.evaluation.report.charts import chart_of_means
from renege_ray.evaluation.report.page import headline
from renege_ray.evaluation.report.tables import ABOUT, Table, latex, markdown
from renege_ray.evaluation.report.thumbnails import SIZES, thumbnails
from renege_ray.evaluation.report.write import write_report
from renege_ray.output.image_statistics import ImageStatistics
from renege_ray.rewards.catalogue import JUDGE_SCORES, REWARDS, VIDEO_METRICS
from tests.evaluation_tables import STRANGE, evaluation_table, made_up_scores

METHODS = ["null", "handwritten", "global", "prompt"]
HPSV2 = ("anime", "concept-art", "paintings", "photo")


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return evaluation_table(made_up_scores(80), styles=HPSV2)


def write(folder: Path, table: pd.DataFrame, **changes: object) -> dict[str, Path]:
    arguments: dict[str, object] = {
        "methods": METHODS,
        "scores": ["toy", "held_out"],
        "train_score": "toy",
        "held_out_scores": ["held_out"],
        "judge_scores": [],
        "title": "Title",
        "notes": [],
        "images_root": str(folder),
    }
    return write_report(folder, table, **(arguments | changes))  # type: ignore[arg-type]


def test_all_formats_hold_the_same_figures(tmp_path: Path, table: pd.DataFrame) -> None:
    written = write(tmp_path, table)
    comparison = Comparison.from_table(table, ["toy", "held_out"], METHODS)
    for name, frame in (
        ("means", comparison.means),
        ("win_rates", comparison.comparisons),
        ("splits", comparison.splits()),
        ("counts", comparison.counts),
    ):
        pd.testing.assert_frame_equal(pd.read_parquet(written[f"{name}_parquet"]), frame, check_dtype=False)
        read = pd.read_csv(written[f"{name}_csv"], keep_default_na=False, na_values=[""])  # "null" is a method
        pd.testing.assert_frame_equal(read, frame, check_dtype=False)
    mean = comparison.mean("toy", "prompt", "photo")
    low, high = mean["paired_low"], mean["paired_high"]
    cell = f"{mean['mean']:.3f} [{low:.3f}, {high:.3f}]".replace("-", "\N{MINUS SIGN}")
    rows = [line for line in written["means_md"].read_text().splitlines() if line.startswith("| toy | prompt |")]
    assert [part.strip() for part in rows[0].split("|")][-3] == cell
    assert cell.replace("\N{MINUS SIGN}", "$-$") in written["means_tex"].read_text()
    wins = comparison.between("held_out", "global", "handwritten", "anime")["win_rate"]
    assert f"| held_out | global over handwritten | {wins:.2f} [" in written["win_rates_md"].read_text()
    spread = comparison.splits().iloc[0]["spread"]
    assert f"± {spread:.3f}" in written["splits_md"].read_text()
    for name in ("plot_toy", "plot_held_out"):
        assert ElementTree.parse(written[name]).getroot().tag.endswith("svg")
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part")]
    assert "splits_md" not in write(tmp_path / "other", table.assign(style="one"))


def test_texts_of_any_kind_stay_in_their_cells() -> None:
    table = Table("name", "100 % caption", ("score_a", "x"), ((STRANGE + " & 5 % _ # {}", "−1 ± 2 –"),))
    row = markdown(table).splitlines()[-1]
    assert row.replace(r"\|", "").count("|") == 3
    text = latex(table)
    assert r"\& 5 \% \_ \# \{\}" in text and r"score\_a" in text and r"100 \% caption" in text
    assert r"$-$1 $\pm$ 2 --" in text and r"\$x\_1\$" in text


def test_a_report_of_one_method_and_one_prompt(tmp_path: Path) -> None:
    """Nothing to compare, nothing to claim: the report says so and does not fail."""
    scores = {"global": {name: values[:1] for name, values in made_up_scores(1)["global"].items()}}
    written = write(tmp_path, evaluation_table(scores), methods=["global"])
    page = written["report"].read_text()
    assert "No pictures were kept" in page
    assert "nan" not in written["means_md"].read_text()
    assert "| toy | global | 0" in written["means_md"].read_text() or "\N{EN DASH}" in written["means_md"].read_text()


@pytest.mark.parametrize("constant", [0.0, 1.0, 21.3, -1e-6, 0.25, 1e5])
def test_axes_of_a_constant_score_have_ticks_that_can_be_told_apart(constant: float) -> None:
    """Also where the score differs by rounding alone."""
    scores = {
        method: {"toy": np.full(30, constant) + i * 1e-9 * abs(constant)} for i, method in enumerate(("null", "global"))
    }
    chart = chart_of_means(Comparison.from_table(evaluation_table(scores), ["toy"], ["null", "global"]), "toy")
    svg = ElementTree.fromstring(chart)
    ticks = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text") if text.get("class") == "faint"]
    places = [float(text.get("x", 0)) for text in svg.iter() if text.get("class") == "faint"]
    assert 3 <= len(ticks) <= 8 and len(set(ticks)) == len(ticks) and all(len(str(tick)) <= 8 for tick in ticks)
    assert min(np.diff(places)) > 30
    dots = [float(dot.get("cx", 0)) for dot in svg.iter("{http://www.w3.org/2000/svg}circle")]
    assert all(places[0] <= dot <= places[-1] for dot in dots)


def test_the_answer_comes_first_in_words(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base, noise = rng.normal(size=40), 0.3 * rng.normal(size=40)
    for gain, few, words in (
        (0.5, 40, "Yes. global wins over null on"),
        (-0.5, 40, "No. global wins over null on"),
        (0.0, 40, "That cannot be told. global wins over null on"),
        (0.5, 4, "Too few prompts or seeds to tell. global wins over null on 100 % of the pairs"),
    ):
        scores = {"null": {"toy": base[:few]}, "global": {"toy": (base + gain + noise - noise.mean())[:few]}}
        compared = Comparison.from_table(evaluation_table(scores), ["toy"], ["null", "global"])
        assert " ".join(headline(compared, "toy")).startswith(words)
    page = write(tmp_path, evaluation_table(scores), methods=["null", "global"], scores=["toy"], held_out_scores=[])
    assert "Too few prompts or seeds to tell." in page["report"].read_text()


def test_every_score_that_there_is_is_explained_in_a_few_words() -> None:
    names = [*REWARDS, *VIDEO_METRICS, *(score for scores in JUDGE_SCORES.values() for score in scores)]
    for name in [*names, *ImageStatistics.names, "reward"]:
        assert 10 < len(ABOUT[name]) < 110, name


def test_a_score_that_is_not_there_is_refused(tmp_path: Path, table: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="hpsv2"):
        write(tmp_path, table, train_score="hpsv2")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    """Twelve PNG files of 512 px, smooth with some noise, and one that is broken."""
    generator = np.random.default_rng(0)
    paths = []
    for i in range(12):
        coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((512, 512), Image.Resampling.BICUBIC)).astype(int)
        noisy = (smooth + generator.integers(-6, 7, smooth.shape)).clip(0, 255).astype(np.uint8)
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(noisy).save(paths[-1])
    (tmp_path / "broken.png").write_bytes(paths[0].read_bytes()[:1000])
    return paths


def test_thumbnails_fit_their_budget(photographs: list[Path], tmp_path: Path) -> None:
    paths = [*photographs, None, tmp_path / "none.png", tmp_path / "broken.png"]
    as_they_are = thumbnails(paths)
    assert [b64decode(data) for data in as_they_are[:12] if data] == [path.read_bytes() for path in photographs]
    assert as_they_are[12:] == [None, None, None]
    sizes = []
    for budget in (200_000, 60_000):
        found = thumbnails(paths, budget)
        assert found[12:] == [None, None, None]
        encoded = [b64decode(data) for data in found if data]
        assert len(encoded) == 12 and sum(map(len, encoded)) <= budget
        with Image.open(io.BytesIO(encoded[0])) as image:
            assert image.format == "WEBP"
            sizes.append(max(image.size))
    assert sizes[0] > sizes[1] and set(sizes) <= set(SIZES)


def test_more_pairs_than_a_page_holds(monkeypatch: pytest.MonkeyPatch, table: pd.DataFrame, tmp_path: Path) -> None:
    """The best, the worst and some between are kept, in the order of the pairs."""
    monkeypatch.setattr(gallery, "MOST_PICTURES", 4 * 30)
    page = write(tmp_path, table)["report"].read_text()
    assert "30 of 80 pairs" in page
    comparison = Comparison.from_table(table, ["toy"], METHODS)
    chosen = gallery._telling(comparison, "toy")
    gains = comparison.values["toy"][:, -1] - comparison.values["toy"][:, 0]
    order = np.argsort(gains)
    assert len(set(chosen)) == 30 and list(chosen) == sorted(chosen)
    assert set(order[:10]) | set(order[-10:]) <= set(chosen)
