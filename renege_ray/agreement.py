"""Do other scores confirm what the training reward says? In words.

A reward that is trained against rises by itself; what counts is whether rewards that saw no gradient, and judges, say
the same of the same images.
"""

import math
from collections.abc import Sequence
from itertools import combinations

import pandas as pd

from renege_ray.comparison import Comparison
from renege_ray.figures import digits_for, interval, number


def disagreements(comparison: Comparison, train_score: str, others: Sequence[str]) -> list[str]:
    """A sentence for every two methods of which another score does not say what the training reward says, and one for
    all those of which they do.

    A score says something where the 95 % interval of the paired difference excludes zero.
    """
    if not others:
        return ["No score beside the training reward was measured that could confirm it."]
    found, agreed = [], 0
    for lower, higher in combinations(comparison.methods, 2):
        row = comparison.between(train_score, higher, lower)
        trained = verdict(row)
        if trained is None:
            return ["There are too few prompts or seeds to say whether the scores agree: no interval is claimed."]
        better, worse = (higher, lower) if trained >= 0 else (lower, higher)
        claim = comparison.between(train_score, better, worse)
        against = _objections([comparison.between(score, better, worse) for score in others], trained != 0)
        if not against:
            agreed += 1
        elif trained:
            found.append(f"{train_score} puts {better} above {worse} ({amount(claim)}), but {against}.")
        else:
            found.append(f"{train_score} sees no difference of {better} and {worse}, but {against}.")
    if agreed:
        which = "every two negatives" if not found else f"the other {agreed} of {agreed + len(found)} comparisons"
        confirm = "confirms" if len(others) == 1 else "confirm"
        found.append(f"On {which}, {_joined(others)} {confirm} what {train_score} says.")
    return found


def verdict(row: pd.Series) -> int | None:
    """1 where the difference is surely above zero, -1 below, 0 where that cannot be told; None without an interval."""
    low, high = float(row["difference_low"]), float(row["difference_high"])
    return None if math.isnan(low) or math.isnan(high) else int(low > 0) - int(high < 0)


def amount(row: pd.Series) -> str:
    """A difference with its interval."""
    digits = digits_for(row["difference"])
    bounds = interval(row["difference_low"], row["difference_high"], digits)
    return f"{number(row['difference'], digits, signed=True)} {bounds}"


def _objections(rows: Sequence[pd.Series], claimed: bool) -> str:
    """What other scores say against the claim that the rows' method is better than the other, or, where nothing is
    claimed, that it is as good; "" where all say the same.
    """
    firm, undecided, silent = [], [], []
    for row in rows:
        score, _, method, other = row.name
        said = verdict(row)
        if said is None:
            silent.append(score)
        elif said == 0:
            undecided.append(score)
        elif not claimed:
            firm.append(f"{score} puts {method if said == 1 else other} above ({amount(row)})")
        elif said == -1:
            firm.append(f"{score} says the opposite ({amount(row)})")
    if claimed and undecided:
        firm.append(f"{_joined(undecided)} {'sees' if len(undecided) == 1 else 'see'} no difference")
    if claimed and silent:
        firm.append(f"{_joined(silent)} {'applies' if len(silent) == 1 else 'apply'} to too few pairs to tell")
    return "; ".join(firm)


def _joined(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
