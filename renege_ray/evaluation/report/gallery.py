"""What the page's gallery knows of each pair, as JSON, and its pictures in pieces that are read when they are shown."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from renege_ray.evaluation.comparison import OK, Comparison
from renege_ray.evaluation.report.charts import colour_of
from renege_ray.evaluation.report.tables import ABOUT, digits_of
from renege_ray.evaluation.report.thumbnails import thumbnails
from renege_ray.output.storage import local_files
from renege_ray.rewards.base import UNRANKED

MOST_PICTURES = 10_000
PAIRS_IN_A_PIECE = 32


@dataclass(frozen=True)
class Gallery:
    """The gallery as the page holds it."""

    data: str
    """For `gallery.js`, see `_facts`."""
    pieces: list[str]
    """JSON lists of base64, a row of methods for each pair."""
    shown: int
    pictures: int


def make_gallery(
    comparison: Comparison, table: pd.DataFrame, train_score: str, others: Sequence[str], images_root: str
) -> Gallery:
    """The gallery of all pairs, or of the telling ones where there are more than a page can hold."""
    chosen = _telling(comparison, train_score)
    facts, names = _facts(comparison, table, chosen)
    facts |= {"train": comparison.scores.index(train_score), "others": [comparison.scores.index(s) for s in others]}
    with local_files(images_root, names) as paths:
        encoded = thumbnails(paths)
    step = PAIRS_IN_A_PIECE * len(comparison.methods)
    pieces = [_json(encoded[start : start + step]) for start in range(0, len(encoded), step)]
    return Gallery(_json(facts), pieces, len(chosen), sum(picture is not None for picture in encoded))


def _telling(comparison: Comparison, score: str) -> np.ndarray:
    """Indices of the pairs to show: all; or the largest and smallest gains of the last method over the first, and pairs
    at even distances between.
    """
    count, most = len(comparison.pairs), max(3, MOST_PICTURES // len(comparison.methods))
    if count <= most:
        return np.arange(count)
    order = np.argsort(comparison.values[score][:, -1] - comparison.values[score][:, 0], kind="stable")
    third = most // 3
    middle = order[third:-third]
    between = middle[np.linspace(0, len(middle) - 1, most - 2 * third).astype(int)]
    return np.sort(np.concatenate([order[:third], between, order[-third:]]))


def _facts(
    comparison: Comparison, table: pd.DataFrame, chosen: np.ndarray
) -> tuple[dict[str, object], list[str | None]]:
    """The facts, and the picture of each pair and method below the folder of images, pairs first.

    Everything that most pairs do not have (a status other than ok, a mark, a refined prompt) is by "pair/method".
    """
    methods, pairs = comparison.methods, comparison.pairs.iloc[chosen]
    prompts = {prompt: index for index, prompt in enumerate(dict.fromkeys(pairs["prompt"]))}
    styles = {style: index for index, style in enumerate(dict.fromkeys(pairs["style"]))}
    place = {key: index for index, key in enumerate(zip(pairs["prompt_id"], pairs["seed"], strict=True))}
    column = {method: index for index, method in enumerate(methods)}
    names: list[str | None] = [None] * (len(place) * len(methods))
    status: dict[str, str] = {}
    marks: dict[str, str] = {}
    refined: dict[str, str] = {}
    rows = table[table["method"].isin(methods)]
    texts = {name: _texts(rows, name) for name in ("status", "marks", "image", "refined_prompt", "prompt")}
    for i, (id, seed, method) in enumerate(zip(rows["prompt_id"], rows["seed"], rows["method"], strict=True)):
        pair = place.get((id, seed))
        if pair is None:
            continue
        key = f"{pair}/{column[method]}"
        if texts["image"][i]:
            names[pair * len(methods) + column[method]] = texts["image"][i]
        if texts["status"][i] != OK:
            status[key] = texts["status"][i]
        if texts["marks"][i]:
            marks[key] = texts["marks"][i]
        if texts["refined_prompt"][i] not in ("", texts["prompt"][i]):
            refined[key] = texts["refined_prompt"][i]
    values = np.stack([comparison.values[score][chosen] for score in comparison.scores], axis=-1)  # (pairs, M, S)
    facts = {
        "methods": list(methods),
        "scores": list(comparison.scores),
        "ranked": [score not in UNRANKED for score in comparison.scores],
        "about": [ABOUT.get(score, "") for score in comparison.scores],
        "digits": [digits_of(comparison, score) for score in comparison.scores],
        "least": [comparison.least[score] for score in comparison.scores],
        "prompts": list(prompts),
        "styles": list(styles),
        "pairs": [
            [prompts[row.prompt], styles[row.style], str(row.seed)] for row in pairs.itertuples()
        ],  # seeds as text: a browser's numbers end at 2^53
        "values": [_rounded(row) for row in values.reshape(len(pairs), -1)],
        "status": status,
        "marks": marks,
        "refined": refined,
        "colours": [colour_of(index) for index in range(len(methods))],
        "pairsInAPiece": PAIRS_IN_A_PIECE,
    }
    return facts, names


def _texts(rows: pd.DataFrame, name: str) -> list[str]:
    if name not in rows.columns:
        return [""] * len(rows)
    return [text if isinstance(text, str) else "" for text in rows[name]]


def _rounded(values: np.ndarray) -> list[float | None]:
    return [None if math.isnan(value) else float(f"{value:.5g}") for value in values]


def _json(data: object) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
