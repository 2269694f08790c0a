"""What metrics are called in MLflow, which draws one chart a name and groups charts by what stands before the last /.

The files of a run, its summary and the objectives of sweeps keep the full names; here they become a few sections, each
with what a reviewer compares. What never changes during a training (null, handwritten) is no curve: the run's
description has it in its table.
"""

from collections.abc import Iterable, Mapping

from renege_ray.sampling.run_rewards import REWARD

_LEARNED = "global"
_SPLITS = {"eval": "validation", "test": "test"}


def charted(names: Iterable[str]) -> Mapping[str, str]:
    """{name: what it is called in MLflow} of one report, without what is not to be a curve.

    `eval/global/toy/mean` is toy among "validation", `eval/global/win_rate_vs_null/toy` is toy among "validation: wins
    over null". Where several methods are compared, as in an evaluation, each score has a section of methods.
    """
    names = list(names)
    methods = {parts[1] for name in names if (parts := _parts(name))}
    training = _LEARNED in methods and methods <= {"null", "handwritten", _LEARNED}
    found = {}
    for name in names:
        parts = _parts(name)
        if parts is None:
            found[name] = _left_out(name)
        elif not training:
            found[name] = _of_comparison(*parts[1:])
        elif parts[1] == _LEARNED and (shown := _of_training(parts[0], *parts[2:])):
            found[name] = shown
    return found


def _left_out(name: str) -> str:
    """What `eval/<method>/<status>` counts, the methods of a status together."""
    words = name.split("/")
    return f"left out - {words[2]}/{words[1]}" if words[0] in _SPLITS and len(words) == 3 else name


def _parts(name: str) -> tuple[str, str, str, str] | None:
    """Split, method, and the two words behind them, of the names of an evaluation."""
    split, _, rest = name.partition("/")
    words = rest.rsplit("/", 2)
    return (_SPLITS[split], words[0], words[1], words[2]) if split in _SPLITS and len(words) == 3 else None


def _of_training(split: str, first: str, last: str) -> str | None:
    """Of the final test, which is a point and no curve, what runs are compared by."""
    wins = first.startswith("win_rate_vs_")
    if split == "test":
        name = f"wins over {first.removeprefix('win_rate_vs_')}" if wins else first
        return f"test/{name}" if REWARD in (first, last) else None
    return f"{split} wins over {first.removeprefix('win_rate_vs_')}/{last}" if wins else f"{split}/{first}"


def _of_comparison(method: str, first: str, last: str) -> str:
    if first.startswith("win_rate_vs_"):
        return f"wins - {last}/{method} over {first.removeprefix('win_rate_vs_')}"
    return f"mean - {first}/{method}"
