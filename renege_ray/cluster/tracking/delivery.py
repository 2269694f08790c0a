"""Sends what a run has written into its output folder to MLflow, piece by piece, noting how far it came.

Metrics carry their own time, so sending a line twice changes nothing; an upload is ticked off as soon as it
has arrived. A `Courier` does this in a background thread, so that no training step ever waits for a server.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from PIL import Image

from renege_ray.cluster.tracking import journal, registry, store
from renege_ray.cluster.tracking.charts import charted
from renege_ray.cluster.tracking.refusals import answer, http_status, is_away, is_final, says
from renege_ray.cluster.tracking.texts import away_line, one_line, safe_name
from renege_ray.errors import masked

METRICS_PER_CALL = 1000  # MLflow's limits
PARAMS_PER_CALL = 100
LONGEST_TAG = 5000

SECONDS_BETWEEN_CALLS = 3.0
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 5.0, 120.0
STALLED_SECONDS = 45.0  # a flush gives up when nothing has arrived for this long

_MLFLOW_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}

Piece = TypeVar("Piece", Metric, Param)

logger = logging.getLogger("renege_ray.tracking")


class Delivery:
    """The way from one output folder to one MLflow store; raises whatever the store's client raises."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder = folder
        self.uri = uri
        self.progress = 0  # pieces that arrived so far
        self._client: MlflowClient | None = None

    def open(self, reopen: bool = False) -> str:
        """Connect, and find or create the run; the state file then names it.

        Args:
            reopen: show a run that had ended as running again.

        Returns:
            The id of the run. It is a new one, to which everything is sent, if the store does not know that
            of the state file: then it is another store.
        """
        store.probe(self.uri)
        client = store.connect(self.uri)
        state = self._state()
        if not _is_active(client, state.get("run_id")):
            experiment = store.experiment_id(client, self.uri, state["experiment"])
            tags = {"mlflow.source.name": state["job"], "renege_ray.job": state["job"], **self._parent_tag(state)}
            run = client.create_run(experiment, state["start_time"], tags, state["run_name"])
            state |= {
                "run_id": run.info.run_id,
                "experiment_id": experiment,
                "tracking_uri": masked(self.uri),
                "sent": {},
            }
            self._save(state)
            summary = journal.read_json(self.folder / journal.SUMMARY)
            if summary:
                summary |= {"mlflow_run_id": state["run_id"], "mlflow_tracking_uri": state["tracking_uri"]}
                journal.write_json(self.folder / journal.SUMMARY, summary)
        elif reopen:
            client.update_run(state["run_id"], status="RUNNING")
        self._client = client
        return str(state["run_id"])

    def _parent_tag(self, state: journal.Record) -> dict[str, str]:
        """MLflow's tag of a run below another one, which has to be there first."""
        if "parent" not in state:
            return {}
        parent = journal.read_json(self.folder / state["parent"] / journal.STATE).get("run_id")
        if parent is None:
            raise ConnectionError("the parent run is not in the store yet")
        return {"mlflow.parentRunId": parent}

    def send(self, anew: bool = False) -> bool:
        """Send what is not sent yet.

        Args:
            anew: ask the store first whether it knows the run, even if everything was sent (to some store).

        Returns:
            False if another process or thread is sending this folder now.
        """
        with journal.exclusive(self.folder) as held:
            if not held:
                return False
            if journal.is_sent(self.folder) and not anew:
                return True
            try:
                store.probe(self.uri)  # quick, where MLflow's own calls wait for long
                if self._client is None:
                    self.open()
                self._send_params()
                self._send_metrics()
                self._send_status()
                self._send_uploads()
            except BaseException:
                self._client = None
                raise
            return True

    def _refuse(self, what: str, error: BaseException) -> None:
        """Note, and say once, that a piece can never arrive."""
        status = http_status(error)
        why = one_line(error) if status is None else f"{answer(status)}: {one_line(error)}"
        logger.warning("not sent to MLflow, skipped: %s (%s)", what, why)
        self._tick(refused=journal.refused(self.folder) | {what: why})

    def _one_by_one(self, send: Callable[[list[Piece]], object], pieces: list[Piece], what: str) -> None:
        """Send pieces together; where the store refuses them, each alone, so that one does not keep the others back."""
        try:
            send(pieces)
        except Exception as error:
            if not is_final(error):
                raise
            if len(pieces) == 1:
                self._refuse(f"{what} {pieces[0].key}", error)
                return
            for piece in pieces:
                self._one_by_one(send, [piece], what)

    def _send_params(self) -> None:
        state = self._state()
        if state["sent"].get("params"):
            return
        client, run_id = self._connected(), state["run_id"]
        there = client.get_run(run_id).data.params
        # A parameter cannot be changed in MLflow: what a resumed run sets otherwise becomes a tag.
        changed = {k: v for k, v in state["params"].items() if there.get(k, v) != v}
        client.log_batch(run_id, tags=[RunTag(f"resumed.{key}", value) for key, value in changed.items()][:100])
        new = [Param(key, value) for key, value in state["params"].items() if key not in there]
        for start in range(0, len(new), PARAMS_PER_CALL):
            self._one_by_one(
                lambda part: client.log_batch(run_id, params=part), new[start : start + PARAMS_PER_CALL], "parameter"
            )
        self._tick(params=True)

    def _send_metrics(self) -> None:
        state = self._state()
        batch: list[Metric] = []
        end = state["sent"].get("metrics", 0)
        for record, offset in journal.read(self.folder / journal.METRICS, end):
            line = _metrics_of(record)
            if batch and len(batch) + len(line) > METRICS_PER_CALL:
                self._send_metric_batch(state["run_id"], batch, end)
                batch = []
            batch.extend(line)
            end = offset
        if batch:
            self._send_metric_batch(state["run_id"], batch, end)

    def _send_metric_batch(self, run_id: str, batch: list[Metric], end: int) -> None:
        for start in range(0, len(batch), METRICS_PER_CALL):  # a single line may be longer than a call
            self._one_by_one(
                lambda part: self._connected().log_batch(run_id, metrics=part),
                batch[start : start + METRICS_PER_CALL],
                "metric",
            )
        self._tick(metrics=end)

    def _send_status(self) -> None:
        summary, state = journal.read_json(self.folder / journal.SUMMARY), self._state()
        if summary.get("status") == state["sent"].get("status"):
            return
        records = (record for record, _ in journal.read(self.folder / journal.UPLOADS))
        ends = [record["time"] for record in records if record["path"] == journal.SUMMARY]
        end_time = ends[-1] if ends else int(time.time() * 1000)
        status = _MLFLOW_STATUS.get(summary["status"], "FAILED")
        self._connected().set_terminated(state["run_id"], status=status, end_time=end_time)
        self._tick(status=summary["status"])

    def _send_uploads(self) -> None:
        """Files that have not been tried, then those that were put off.

        Raises:
            Exception: the store is away; or, after all have been tried, what one was put off for.
        """
        for record, offset in journal.read(self.folder / journal.UPLOADS, self._state()["sent"].get("uploads", 0)):
            self._try(record)
            self._tick(uploads=offset)
        put_off, error = self._state()["sent"].get("later", []), None
        for record in put_off:
            error = self._try(record, again=True) or error
        if error is not None:
            raise error

    def _try(self, record: journal.Record, again: bool = False) -> Exception | None:
        """Send a file, or put it off, or give it up; returns why it is put off.

        Raises:
            Exception: the store is away.
        """
        later, failure = self._state()["sent"].get("later", []), None
        try:
            self._upload(self._state()["run_id"], record)
        except Exception as error:
            if is_away(error):
                raise
            if is_final(error):
                self._refuse(str(record.get("path")), error)
            else:
                failure = error
        waits = [other for other in later if other != record] + ([record] if failure else [])
        if waits != later:
            self._tick(later=waits)
        return failure

    def _upload(self, run_id: str, record: journal.Record) -> None:
        client, path = self._connected(), self.folder / record["path"]
        if not path.exists():
            raise FileNotFoundError(f"{path} is gone")
        if record["kind"] == "image":
            with Image.open(path) as image:
                client.log_image(run_id, image, key=record["key"], step=record["step"], timestamp=record["time"])
        elif record["kind"] == "model":
            arguments = (record["base_model"], record["metadata"], record["step"])
            registry.log_and_register(client, run_id, path, *arguments)
        elif record["kind"] == "description":
            client.set_tag(run_id, "mlflow.note.content", _description(run_id, path, record))
        elif path.is_dir():
            client.log_artifacts(run_id, str(path), record["folder"] or path.name)
        else:
            client.log_artifact(run_id, str(path), record["folder"] or None)

    def _connected(self) -> MlflowClient:
        if self._client is None:
            raise RuntimeError("not connected: open() comes first")
        return self._client

    def _state(self) -> journal.Record:
        return journal.read_json(self.folder / journal.STATE)

    def _save(self, state: journal.Record) -> None:
        journal.write_json(self.folder / journal.STATE, state)

    def _tick(self, **sent: Any) -> None:
        state = self._state()
        state["sent"] |= sent
        self._save(state)
        self.progress += 1


class Courier:
    """A daemon thread that keeps sending a folder, and those of child runs; a store that is away is asked again ever
    more rarely.
    """

    def __init__(self, delivery: Delivery, away: bool = False) -> None:
        """`away`: the store did not answer just now, and the user has been told."""
        self._delivery = delivery
        self._children: dict[Path, Delivery] = {}
        self._sent = 0  # pieces of child runs that are done with
        self._told = away
        self._due = 0  # the number of the attempt that a flush waits for
        self._done = 0
        self._failed = False
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, args=(away,), name="mlflow-courier", daemon=True)
        self._thread.start()

    def add(self, folder: Path) -> None:
        """Send the folder of a child run too, until it has ended and everything of it has arrived."""
        with self._changed:
            self._children[folder] = Delivery(folder, self._delivery.uri)

    def flush(self, within: float = math.inf) -> bool:
        """Try to send everything now; wait for it as long as pieces arrive, at most 45 s without one.

        Args:
            within: seconds to wait at most.

        Returns:
            True if nothing is left to send.
        """
        with self._changed:
            self._due = self._done + 2  # the attempt under way may have passed a file that has grown since
            self._changed.notify_all()
            started = time.monotonic()
            last_progress, last_time = self._progress(), started
            while self._done < self._due and self._thread.is_alive():
                self._changed.wait(0.5)
                if self._progress() != last_progress:
                    last_progress, last_time = self._progress(), time.monotonic()
                if time.monotonic() - last_time > STALLED_SECONDS or time.monotonic() - started > within:
                    return False
            folders = [self._delivery.folder, *self._children]
        return not self._failed and all(map(journal.is_sent, folders))

    def stop(self) -> None:
        """Let the thread end after what it does now. It is a daemon: it never holds the process."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def _work(self, away: bool) -> None:
        retry = FIRST_RETRY_SECONDS
        self._pause(retry if away else SECONDS_BETWEEN_CALLS)
        while not self._stopping:
            try:
                self._send()
                failed, retry = False, FIRST_RETRY_SECONDS
            except Exception as error:  # whatever a server, a database or a network may do: never the run's end
                failed = True
                if not self._told:
                    self._told = True
                    logger.warning(away_line(self._delivery.uri, self._delivery.folder, says(error), error))
            with self._changed:
                self._failed = failed
                self._done += 1
                if failed and self._done < self._due:
                    self._done = self._due  # a second attempt at once would not go better
                self._changed.notify_all()
            self._pause(retry if failed else SECONDS_BETWEEN_CALLS)
            retry = min(2 * retry, LAST_RETRY_SECONDS) if failed else FIRST_RETRY_SECONDS

    def _send(self) -> None:
        """The run, then its child runs; of those, the ones that are over and sent are done with."""
        self._delivery.send()
        with self._changed:
            children = list(self._children.items())
        for folder, child in children:
            child.send()
            if (folder / journal.SUMMARY).exists() and journal.is_sent(folder):
                with self._changed:
                    self._sent += child.progress
                    del self._children[folder]

    def _progress(self) -> int:
        """Pieces that arrived so far."""
        return self._delivery.progress + self._sent + sum(child.progress for child in self._children.values())

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._done < self._due, timeout=seconds)


def _description(run_id: str, path: Path, record: journal.Record) -> str:
    """Markdown for the run's page: the answer, the picture among the run's artifacts, the text letter by letter."""
    parts = [f"**{record['answer']}**"] if record.get("answer") else []
    if record.get("picture"):
        source = f"get-artifact?path={quote(Path(record['picture']).name)}&run_uuid={run_id}"
        parts.append(f'<img src="{source}" width="100%">')  # Markdown's own would make the page as wide as the picture
    head = "\n\n".join([*parts, ""])
    text = path.read_text(encoding="utf-8")[: LONGEST_TAG - len(head) - 20]
    return f"{head}```text\n{text}\n```"  # Markdown would reflow a table


def _metrics_of(record: journal.Record) -> list[Metric]:
    """One line of metrics.jsonl. An infinity, which MLflow would chart as 1.8e308, becomes NaN."""
    given = record["metrics"]
    numbers = {
        safe_name(shown): given[name] if isinstance(given[name], int | float) else float("nan")
        for name, shown in charted(given).items()
    }
    return [Metric(name, value, record["time"], record["step"]) for name, value in numbers.items()]


def _is_active(client: MlflowClient, run_id: str | None) -> bool:
    if run_id is None:
        return False
    try:
        return str(client.get_run(run_id).info.lifecycle_stage) == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
