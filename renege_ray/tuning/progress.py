"""What the rows of a tuning say while more are coming: how many there are, and the mean gains so far."""

import math

import numpy as np

from renege_ray.output.parquet_folder import NewFiles, ParquetFolder
from renege_ray.sampling.run_rewards import REWARD
from renege_ray.tuning.scores import EVAL, TUNE, column
from renege_ray.tuning.table import FAILED

_SPLITS = (TUNE, EVAL)


class TuningProgress:
    """Running sums over the rows of a table: a look costs what has come since the last one.

    Attributes:
        rows: how many there are.
    """

    def __init__(self) -> None:
        scores = [column(REWARD, method, split) for method in ("prompt", "global") for split in _SPLITS]
        self._new_files = NewFiles(["status", *scores])
        self._failed = 0
        self._sums = dict.fromkeys(_SPLITS, 0.0)
        self._counts = dict.fromkeys(_SPLITS, 0)
        self.rows = 0

    def update(self, table: ParquetFolder) -> bool:
        """Read the files that have come since the last call; returns whether there were any."""
        found = False
        for rows in self._new_files.read(table):
            found = True
            self.rows += len(rows)
            self._failed += int((rows["status"].to_numpy() == FAILED).sum())
            for split in _SPLITS:
                own, start = (rows[column(REWARD, method, split)].to_numpy() for method in ("prompt", "global"))
                gains = own - start
                self._sums[split] += float(np.nansum(gains))
                self._counts[split] += int((~np.isnan(gains)).sum())
        return found

    def live_metrics(self) -> dict[str, float]:
        """Counts, and the mean gains over the prompts that have one."""
        gains = {
            f"tuning/gain/{split}": self._sums[split] / count if count else math.nan
            for split, count in self._counts.items()
        }
        return {"tuning/done": float(self.rows), "tuning/failed": float(self._failed)} | gains
