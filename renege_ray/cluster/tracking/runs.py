"""Tracking of a job in MLflow: one run a job, fed from the files of the output folder.

    with open_run(output_dir, job="train_global", experiment="renege_ray", params=settings) as log:
        log.metrics(step, {"train/toy/mean": reward})
        log.image("validation", image_grid(...), step)
        log.finish(artifacts={"embedding": path}, metrics=results)
        print(log.review())

Only the process that opened the run talks to MLflow. A copy of its `RunLog` in another process (rank 0 of a
training) appends to the same files, and the opener sends them: a server that is away costs a training nothing
at all. To send what a server missed:

    renege-ray tracking send OUTPUT_DIR --tracking-uri URI
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from renege_ray.cluster.tracking import journal
from renege_ray.cluster.tracking.delivery import Courier, Delivery
from renege_ray.cluster.tracking.refusals import says
from renege_ray.cluster.tracking.run_log import RunLog
from renege_ray.cluster.tracking.texts import away_line, flatten
from renege_ray.cluster.tracking.uris import resolve_uri, sqlite_file, sqlite_uri, ui_command
from renege_ray.errors import UserError, masked

__all__ = ["RunLog", "masked", "open_run", "resolve_uri", "send", "ui_command"]

logger = logging.getLogger("renege_ray.tracking")


def open_run(
    output_dir: Path, *, job: str, experiment: str, params: Mapping[str, Any], tracking_uri: str | None = None
) -> RunLog:
    """Open the run of an output folder: in the driver, before any worker starts (it creates the store).

    A folder that holds a run goes on with that run. A store that does not answer is no error: one line is
    logged, and the run is created as soon as the store is back.

    Args:
        job: the job's name, such as "train_global".
        params: the configuration, nested (`model_dump(mode="json")`); credentials in URLs are masked.
        tracking_uri: see `resolve_uri` for what None means.

    Raises:
        UserError: for a tracking URI that MLflow cannot use.
    """
    output_dir = Path(output_dir).absolute()
    uri = resolve_uri(tracking_uri, output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    journal.begin(output_dir, job, experiment, flatten(params), masked(uri))
    delivery = Delivery(output_dir, uri)
    run_id = None
    try:
        run_id = delivery.open(reopen=True)
    except Exception as error:  # servers and databases fail in many ways; none of them is the training's concern
        logger.warning(away_line(uri, output_dir, says(error), error))
    return RunLog(run_id, uri, output_dir, Courier(delivery, away=run_id is None))


def send(output_dir: Path, tracking_uri: str | None = None) -> tuple[str, str]:
    """Send what MLflow has not got of a run that is over (or was killed), child runs included; to another store:
    everything.

    Args:
        tracking_uri: None means the store that the run was meant for.

    Returns:
        The id of the run and the URI that it was sent to.

    Raises:
        UserError: if the folder holds no run, or if it is being sent by another process.
        Exception: whatever keeps the store from taking it; calling again goes on from there.
    """
    output_dir = Path(output_dir).absolute()
    state = journal.read_json(output_dir / journal.STATE)
    if not state:
        raise UserError(f"output_dir: {str(output_dir)!r} holds no {journal.STATE}; give the folder of a run")
    tracking_uri = tracking_uri or _where_it_went(str(state["tracking_uri"]), output_dir)
    if "***" in tracking_uri:
        raise UserError(f"tracking_uri: {tracking_uri!r} is stored without its password; give --tracking-uri URI")
    uri = resolve_uri(tracking_uri, output_dir)
    for folder in journal.family(output_dir):  # a child run after its parent, whose id it names
        if not Delivery(folder, uri).send(anew=True):
            raise UserError(f"output_dir: {str(output_dir)!r} is being sent by its own run; wait for its end")
    return journal.read_json(output_dir / journal.STATE)["run_id"], uri


def _where_it_went(uri: str, output_dir: Path) -> str:
    """The store that a run was meant for, also where both have been moved together."""
    file, beside = sqlite_file(uri), output_dir.parent / "mlflow.db"
    return sqlite_uri(beside) if file and not file.exists() and beside.exists() else uri
