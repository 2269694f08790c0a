"""Do other scores confirm what the training reward says? In words.

A reward that is trained against rises by itself; what counts is whether rewards that saw no gradient, and judges, say
the same of the same images.
"""

from collections.abc import Sequence
from itertools import combinations

import pandas as pd

from renege_ray.evaluation.comparison import Comparison, verdict
from renege_ray.output.numbers import digits_for, interval, number


def disagreements(comparison: Comparison, train_score: str, others: Sequence[str]) -> list[str]:
    """A sentence for every two methods of which another score does not say what the training reward says, with the
    contradictions first, and one for all those of which they do.

    A score says something where the 95 % interval of the paired difference excludes zero, and what is as good as zero.
    """
    if not others:
        return ["No score beside the training reward was measured that could confirm it."]
    contradicted, unconfirmed, agreed = [], [], 0
    for lower, higher in combinations(comparison.methods, 2):
        row = comparison.between(train_score, higher, lower)
        trained = _verdict(row)
        if trained is None:
            return ["There are too few prompts or seeds to say whether the scores agree: no interval is claimed."]
        better, worse = (higher, lower) if trained >= 0 else (lower, higher)
        claim = _claim(comparison.between(train_score, better, worse))
        rows = [comparison.between(score, better, worse) for score in others]
        against = _against(rows, claimed=trained != 0)
        doubts = _doubts(rows) if trained else []
        if against:
            contradicted.append(f"{claim}, but {'; '.join(against + doubts)}.")
        elif doubts:
            unconfirmed.append(f"{claim}; {'; '.join(doubts)}.")
        else:
            agreed += 1
    found = contradicted + unconfirmed
    if agreed:
        which = "every two negatives" if not found else f"the other {agreed} of {agreed + len(found)} comparisons"
        found.append(f"On {which}, {_say(others, 'confirms', 'confirm')} what {train_score} says.")
    return found


def _verdict(row: pd.Series) -> int | None:
    return verdict(*(float(row[name]) for name in ("difference_low", "difference_high", "least_difference")))


def amount(row: pd.Series) -> str:
    """A difference with its interval."""
    digits = digits_for(row["difference"])
    bounds = interval(row["difference_low"], row["difference_high"], digits)
    return f"{number(row['difference'], digits, signed=True)} {bounds}"


def _claim(row: pd.Series) -> str:
    """What the training reward says of the row's two methods, of which it does not put the second above."""
    score, _, method, other = row.name
    if not _verdict(row):
        return f"{score} sees no difference of {method} and {other}"
    return f"{score} puts {method} above {other} ({amount(row)})"


def _against(rows: Sequence[pd.Series], *, claimed: bool) -> list[str]:
    """What other scores say against the claim that the rows' method is better than the other, or, where nothing is
    claimed, that it is as good.
    """
    found = []
    for row in rows:
        score, _, method, other = row.name
        said = _verdict(row)
        if claimed and said == -1:
            found.append(f"{score} says the opposite ({amount(row)})")
        elif not claimed and said:
            found.append(f"{score} puts {method if said == 1 else other} above ({amount(row)})")
    return found


def _doubts(rows: Sequence[pd.Series]) -> list[str]:
    """Which other scores do not tell whether the rows' method is better, after those that do; [] where all tell."""
    said = {row.name[0]: _verdict(row) for row in rows}
    if all(said.values()):
        return []
    words = {
        1: ("says the same", "say the same"),
        0: ("sees no difference", "see no difference"),
        None: ("applies to too few pairs to tell", "apply to too few pairs to tell"),
    }
    grouped = {answer: [score for score in said if said[score] == answer] for answer in words}
    return [_say(scores, *words[answer]) for answer, scores in grouped.items() if scores]


def _say(scores: Sequence[str], one: str, several: str) -> str:
    return f"{_joined(scores)} {one if len(scores) == 1 else several}"


def _joined(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
