"""Means, differences, win rates, splits and words against plain pandas, on tables with known answers."""

import math
from itertools import pairwise, permutations

import numpy as np
import pandas as pd
import pytest

from renege_ray.config.run import ModelConfig, SamplingConfig
from renege_ray.evaluation.agreement import disagreements
from renege_ray.evaluation.comparison import ALL, Comparison
from renege_ray.evaluation.report.page import answer
from renege_ray.method.embedding import as_stored
from renege_ray.models.load import load_model
from renege_ray.output.statistics import bootstrap_means, without_pair_effects
from renege_ray.rewards.load import load_scorers
from renege_ray.sampling.images import evaluate, make_pairs
from tests.evaluation_tables import evaluation_table, made_up_scores

METHODS = ["null", "handwritten", "global", "prompt"]
STYLES = ("anime", "concept-art", "paintings", "photo")


def compare(table: pd.DataFrame, scores: list[str] | None = None, methods: list[str] | None = None) -> Comparison:
    return Comparison.from_table(table, scores or ["toy", "held_out"], methods or METHODS, resamples=2000)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """120 prompts of four styles with two seeds each; rows in no order."""
    made = evaluation_table(made_up_scores(240), seeds_per_prompt=2, styles=STYLES)
    return made.sample(frac=1, random_state=1).reset_index(drop=True)


@pytest.fixture(scope="module")
def comparison(table: pd.DataFrame) -> Comparison:
    return compare(table)


def test_figures_are_those_of_plain_pandas(table: pd.DataFrame, comparison: Comparison) -> None:
    assert comparison.styles == STYLES
    for style in (ALL, *STYLES):
        rows = table if style == ALL else table[table["style"] == style]
        wide = rows.pivot(index=["prompt_id", "seed"], columns="method", values="score/held_out")
        for method, other in permutations(METHODS, 2):
            found = comparison.between("held_out", method, other, style)
            difference = wide[method] - wide[other]
            assert found["difference"] == pytest.approx(difference.mean())
            ties = difference.abs() <= found["least_difference"]
            assert found["win_rate"] == pytest.approx((difference[~ties] > 0).sum() / len(wide) + ties.mean() / 2)
            assert found["difference_low"] < found["difference"] < found["difference_high"]
            assert (found["pairs"], found["prompts"]) == (len(wide), len(wide) // 2)
            opposite = comparison.between("held_out", other, method, style)
            assert found["win_rate"] + opposite["win_rate"] == pytest.approx(1)
        for method in METHODS:
            assert comparison.mean("held_out", method, style)["mean"] == pytest.approx(wide[method].mean())
    metrics = comparison.metrics()
    assert metrics["eval/global/toy/mean"] == comparison.mean("toy", "global")["mean"]
    assert metrics["eval/prompt/win_rate_vs_null/toy"] == comparison.between("toy", "prompt", "null")["win_rate"]
    assert "eval/null/win_rate_vs_prompt/toy" not in metrics


def test_row_order_does_not_matter(table: pd.DataFrame, comparison: Comparison) -> None:
    again = compare(table.sample(frac=1, random_state=7))
    pd.testing.assert_frame_equal(again.comparisons, comparison.comparisons, rtol=1e-9)
    pd.testing.assert_frame_equal(again.means, comparison.means, rtol=1e-9)


def test_neighbours_are_separated_where_they_are(comparison: Comparison) -> None:
    steps = comparison.steps("toy")
    assert [(step.lower, step.higher) for step in steps] == list(pairwise(METHODS))
    assert all(step.separated for step in steps)
    assert [step.separated for step in comparison.steps("held_out")] == [True, False, True]
    # What all methods share is most of the variance: without pairing nothing could be told apart.
    row = comparison.mean("toy", "global")
    assert row["high"] - row["low"] > 3 * (row["paired_high"] - row["paired_low"])


def test_separated_neighbours_have_intervals_that_do_not_overlap() -> None:
    """By the intervals themselves, on either side of the criterion; a third method as wild as can be has no say."""
    rng = np.random.default_rng(3)
    base, wild = rng.normal(size=300), rng.normal(scale=30, size=300)
    difference = rng.normal(size=300)
    difference -= difference.mean()
    answers = set()
    for shift in (0.10, 0.13, 0.15, 0.17, 0.19, 0.3):
        scores = {"null": base, "handwritten": base + difference + shift, "global": wild}
        found = compare(evaluation_table({m: {"toy": v} for m, v in scores.items()}), ["toy"], list(scores))
        freed = without_pair_effects(found.values["toy"][:, :2])
        intervals = bootstrap_means(freed, list(found.pairs["prompt_id"]))
        expected = bool(intervals.low[1] > intervals.high[0])
        assert found.steps("toy")[0].separated == expected
        answers.add(expected)
    assert answers == {True, False}


def test_what_is_not_ok_is_left_out_and_counted(table: pd.DataFrame) -> None:
    spoiled = table.copy()
    rows = spoiled.index[spoiled["method"] == "global"]
    for row, status in zip(rows, ("black", "black", "nan", "failed"), strict=False):
        spoiled.loc[row, "status"] = status
        spoiled.loc[row, "score/toy"] = 1e9
    spoiled.loc[rows[10], "score/held_out"] = math.nan
    spoiled.loc[rows[11], "score/held_out"] = math.inf
    spoiled.loc[rows[20:25], "marks"] = "fallback: global"
    spoiled = spoiled.drop(rows[30])
    found = compare(spoiled)
    counts = found.counts.set_index("method").loc["global"]
    assert counts.to_dict() == {"images": 239, "ok": 235, "black": 2, "nan": 1, "failed": 1, "marked": 5}
    good = table.loc[rows[4:]].drop(rows[30])
    assert found.mean("toy", "global")["mean"] == pytest.approx(good["score/toy"].mean())
    assert found.mean("toy", "global")["pairs"] == 235
    assert found.between("held_out", "global", "null")["pairs"] == 233
    for method in METHODS:
        row = found.mean("held_out", method, "photo")
        assert row["paired_low"] < row["mean"] < row["paired_high"]
    assert found.between("held_out", "prompt", "null")["pairs"] == 240
    assert found.metrics()["eval/global/black"] == 2


def test_ties_count_half() -> None:
    ones, steps = np.ones(40), np.arange(40.0)
    table = evaluation_table({"null": {"toy": ones}, "global": {"toy": np.where(steps < 10, 2.0, 1.0)}})
    assert compare(table, ["toy"], ["null", "global"]).between("toy", "global", "null")["win_rate"] == 0.625


def test_an_embedding_that_differs_by_its_rounding_alone_ties() -> None:
    """Null and null as it is stored, by the embedded model: rates of one half, no difference in words or signs."""
    model, pairs = load_model(ModelConfig(id="toy")), make_pairs(["a red circle on blue", "a square", "stripes"], 24, 0)
    null = model.null_embedding()
    negatives = {"null": null, "global": as_stored(null), "other": null + 0.05}
    sampling, scorers = (
        SamplingConfig(num_inference_steps=6, guidance_scale=2.5, gradient_steps=(1, 4)),
        load_scorers(["toy", "toy_held_out"]),
    )
    found = evaluate(model, negatives, pairs, list(scorers.values()), sampling, batch_size=24)
    scores = {method: {s: found.scores[method][s].numpy() for s in scorers} for method in negatives}
    for score in scorers:
        assert (scores["global"][score] != scores["null"][score]).mean() > 0.5, (
            "equal to the last bit: nothing is tested"
        )
        assert found.win_rate("global", "null", score) == found.win_rate("null", "global", score) == 0.5
        assert found.win_rate("other", "null", score) != 0.5
    prompts = [f"prompt {i}" for i in range(24)]
    table = evaluation_table(scores, prompts=prompts, styles=("one", "two"))
    compared = compare(table, list(scorers), ["null", "global", "other"])
    for score in scorers:
        for style in (ALL, "one", "two"):
            row = compared.between(score, "global", "null", style)
            assert row["win_rate"] == 0.5 and 0 < row["least_difference"] < 0.01
        assert compared.steps(score)[0].verdict == 0 and not compared.steps(score)[0].separated
    assert answer(compared, "toy")[1]["direction"] == "same" and "no difference" in answer(compared, "toy")[1]["words"]
    assert not any(
        "above null" in said or "null above" in said for said in disagreements(compared, "toy", ["toy_held_out"])
    )


def test_a_small_gain_that_is_true_still_wins() -> None:
    null = np.random.default_rng(0).normal(size=60)
    table = evaluation_table({"null": {"toy": null}, "global": {"toy": null + 0.01}})
    found = compare(table, ["toy"], ["null", "global"])
    assert found.between("toy", "global", "null")["win_rate"] == 1.0
    assert found.steps("toy")[0].verdict == 1


def test_splits_are_those_of_hpsv2(table: pd.DataFrame, comparison: Comparison) -> None:
    splits = comparison.splits()
    assert len(splits) == 2 * 4 * 4
    photo = table[(table["style"] == "photo") & (table["method"] == "global")]
    by_prompt = photo.groupby("prompt_id")["score/toy"].mean().sort_index().to_numpy()
    means = [by_prompt[i : i + 3].mean() for i in range(0, 30, 3)]  # HPSv2: 800 prompts, 80 at a time
    row = splits.set_index(["score", "style", "method"]).loc[("toy", "photo", "global")]
    assert row["mean"] == pytest.approx(np.mean(means))
    assert row["spread"] == pytest.approx(np.std(means))


def test_no_interval_is_claimed_of_one_prompt_or_one_seed() -> None:
    scores = made_up_scores(40)
    one_prompt = evaluation_table(scores, seeds_per_prompt=40)
    one_seed = evaluation_table(scores).assign(seed=3)
    one_pair = evaluation_table({method: {k: v[:1] for k, v in by.items()} for method, by in scores.items()})
    for table in (one_prompt, one_seed, one_pair):
        found = compare(table)
        bounds = found.comparisons[["difference_low", "difference_high", "win_rate_low", "win_rate_high"]]
        assert bounds.isna().all(axis=None)
        assert found.means[["low", "high", "paired_low", "paired_high"]].isna().all(axis=None)
        assert found.comparisons[["difference", "win_rate"]].notna().all(axis=None)
        assert not any(step.separated for step in found.steps("toy"))
        assert "no interval is claimed" in disagreements(found, "toy", ["held_out"])[0]


def test_bad_tables_are_refused(table: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="no column 'score/hpsv2'"):
        compare(table, ["hpsv2"])
    with pytest.raises(ValueError, match="no row of the methods \\['text'\\]"):
        compare(table, methods=["null", "text"])
    with pytest.raises(ValueError, match="two rows"):
        compare(pd.concat([table, table.iloc[:1]]))


def test_words_say_where_the_scores_disagree(comparison: Comparison) -> None:
    said = disagreements(comparison, "toy", ["held_out"])
    assert len(said) == 2
    assert said[0].startswith("toy puts global above handwritten (+0.3")
    assert "but held_out says the opposite (\N{MINUS SIGN}0.19" in said[0]
    assert said[1] == "On the other 5 of 6 comparisons, held_out confirms what toy says."
    assert disagreements(comparison, "toy", ["toy"]) == ["On every two negatives, toy confirms what toy says."]

    scores = made_up_scores(60)
    noise = np.random.default_rng(3).normal(size=60)
    for method in METHODS:  # one score that cannot tell, and one that applies nowhere
        scores[method] |= {"blind": noise * (1 if method == "null" else 1.01), "silent": np.full(60, math.nan)}
    found = compare(evaluation_table(scores), ["toy", "held_out", "blind", "silent"])
    said = disagreements(found, "toy", ["blind", "silent"])
    assert said[0].endswith("; blind sees no difference; silent applies to too few pairs to tell.")
    said = disagreements(found, "toy", ["held_out", "blind"])
    assert "but held_out says the opposite" in said[0] and said[0].endswith("; blind sees no difference."), (
        "it is first"
    )
    assert said[1].endswith("); held_out says the same; blind sees no difference.")
    assert "blind sees no difference of" in disagreements(found, "blind", ["toy"])[0]
    assert "toy puts handwritten above (+0.2" in disagreements(found, "blind", ["toy"])[0]
