"""What is told of a growing table, and reported in the end, whatever is merged meanwhile."""

from pathlib import Path

import numpy as np
import pytest

from renege_ray.output.merged_files import Merger
from renege_ray.tuning.progress import TuningProgress
from renege_ray.tuning.report import TuningReport
from renege_ray.tuning.table import TuningTable
from tests.tuned_rows import prompt, write_table

GAINS = [float(number) for number in range(20) if number % 5 != 4]


def check(progress: TuningProgress, rows: int, gains: list[float]) -> None:
    live = progress.live_metrics()
    assert (progress.rows, live["tuning/done"], live["tuning/failed"]) == (rows, rows, rows - len(gains))
    assert live["tuning/gain/eval"] == pytest.approx(np.mean(gains)) and live["tuning/gain/tune"] == 0.0


def test_no_row_counts_twice(tmp_path: Path) -> None:
    """Files that were counted are merged with one that was not."""
    progress = TuningProgress()
    assert not progress.update(TuningTable(str(tmp_path))) and np.isnan(progress.live_metrics()["tuning/gain/eval"])
    table = write_table(tmp_path, files=4, rows=4)
    assert progress.update(table)
    check(progress, 16, [gain for gain in GAINS if gain < 16])
    write_table(tmp_path, files=1, rows=4, first=16)
    list(Merger(table).merge(all_rows=True))
    assert progress.update(table) and not progress.update(table)
    check(progress, 20, GAINS)


def test_the_report_of_a_merged_table_is_the_same(tmp_path: Path) -> None:
    table = write_table(tmp_path, files=5, rows=4)
    before = TuningReport(table)
    list(Merger(table).merge(all_rows=True))
    after = TuningReport(table)
    assert after.rows == 20 and after.failed == 4 and len(table.files()) == 1
    assert after.metrics() == pytest.approx(before.metrics(), nan_ok=True) and after.text() == before.text()
    best, *_ = after.listed()[1:]
    assert best[1] == prompt(18) and sorted(map(repr, after.listed())) == sorted(map(repr, before.listed()))
    assert [after.prompt(row) for _, row in after.chosen(1)] == [prompt(18), prompt(8), prompt(0)]
