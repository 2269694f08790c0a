"""What the rows of an evaluation say while more are coming: how many there are, and each method's mean so far."""

from collections.abc import Mapping

import numpy as np

from renege_ray.evaluation.comparison import FAILED, score_column
from renege_ray.evaluation.table import row_id, score_names
from renege_ray.output.parquet_folder import NewFiles, ParquetFolder


class EvaluationProgress:
    """The rows of some ids, with running sums of the score that comes first in the table."""

    def __init__(self, labels: Mapping[str, str], wanted: set[str]) -> None:
        """`labels`: {method key: label}."""
        self._labels, self._wanted = labels, wanted
        self._new_files = NewFiles()
        self._score = ""
        self._sums = dict.fromkeys(labels, 0.0)
        self._counts = dict.fromkeys(labels, 0)
        self._failed = 0
        self.rows = 0

    def update(self, table: ParquetFolder) -> bool:
        """Read the files that have come since the last call; returns whether there were any."""
        found = False
        for rows in self._new_files.read(table):
            found = True
            self._score = score_names(rows.column_names)[0]
            column = score_column(self._score)
            columns = ["prompt_id", "pair_index", "method_key", "status", column]
            for row in rows.select(columns).to_pylist():
                score, status = row.pop(column), row.pop("status")
                if row_id(**row) not in self._wanted:
                    continue
                self.rows += 1
                self._failed += status == FAILED
                if not np.isnan(score):
                    self._sums[row["method_key"]] += score
                    self._counts[row["method_key"]] += 1
        return found

    def live_metrics(self) -> dict[str, float]:
        """Counts, and each method's mean of the first score over the images that it applies to."""
        means = {
            f"eval/{self._labels[key]}/{self._score}/mean": self._sums[key] / count
            for key, count in self._counts.items()
            if count
        }
        return {"evaluation/done": float(self.rows), "evaluation/failed": float(self._failed)} | means
