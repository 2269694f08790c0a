"""What a job tells about itself as it runs: metrics, pictures, files, the learned embedding, its summary.

A worker imports `RunLog` from here, not from `tracking`: MLflow takes seconds to load, for the driver alone.
"""

import math
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from PIL import Image

from renege_ray.cluster.tracking import journal
from renege_ray.cluster.tracking.texts import flatten, send_command
from renege_ray.cluster.tracking.uris import ui_command
from renege_ray.errors import masked
from renege_ray.output.pictures import save_png

if TYPE_CHECKING:
    from renege_ray.cluster.tracking.delivery import Courier

# Who has asked the job to stop does not wait for long: what is not sent by then can be sent later.
LEAVING_SECONDS = 6.0


class RunLog:
    """What a job reports. It can be pickled: the sending thread stays in the process that opened the run.

    Its copy in another process (rank 0 of a training) only appends to the files of the output folder, which
    the opener sends. Where the copy does not see that folder, being on another machine without shared
    storage, it sends by itself: call `flush` at the end there.

    Attributes:
        run_id: the MLflow run, or None while the store has not answered yet.
        uri: the tracking URI, credentials included: print `masked(uri)`.
        output_dir: the job's output folder.
    """

    def __init__(self, run_id: str | None, uri: str, output_dir: Path, courier: "Courier | None" = None) -> None:
        self.run_id = run_id
        self.uri = uri
        self.output_dir = Path(output_dir).absolute()
        self._courier = courier
        self._opened = time.time()
        self._recorded: set[tuple[str, int]] | None = None
        self._pictured: set[tuple[str, int]] | None = None
        self._finished = False

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the thread and what was read from the files so far."""
        return self.__dict__ | {"_courier": None, "_recorded": None, "_pictured": None}

    def child(self, folder: Path, *, job: str, params: Mapping[str, Any]) -> "RunLog":
        """The log of a run below this one in MLflow, such as a trial of a sweep; this run's thread sends it.

        A folder that holds a run goes on with that run.

        Args:
            folder: two levels below this run's folder.
            job, params: as for `tracking.open_run`.
        """
        folder = folder.absolute()
        experiment = journal.read_json(self.output_dir / journal.STATE)["experiment"]
        parent = os.path.relpath(self.output_dir, folder)
        journal.begin(folder, job, experiment, flatten(params), masked(self.uri), parent=parent)
        self.adopt(folder)
        return RunLog(None, self.uri, folder)

    def adopt(self, folder: Path) -> None:
        """Send what is left to send of a child run's folder."""
        if self._courier is not None:
            self._courier.add(folder.absolute())

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append to metrics.jsonl; MLflow gets it within seconds.

        A name is recorded once a step, the first value counts: a resumed run repeats the steps since its
        checkpoint, and they are not doubled. NaN and infinities are kept in the file by name; MLflow gets NaN
        for them.
        """
        if self._recorded is None:
            lines = (record for record, _ in journal.read(self.output_dir / journal.METRICS))
            self._recorded = {(name, line["step"]) for line in lines for name in line["metrics"]}
        new = {name: float(value) for name, value in values.items() if (name, step) not in self._recorded}
        if new:
            self._serve_other_machine()
            numbers = {name: journal.encode_number(value) for name, value in new.items()}
            line = {"step": int(step), "time": journal.now(), "metrics": numbers}
            journal.append(self.output_dir / journal.METRICS, line)
            self._recorded |= {(name, step) for name in new}

    def image(self, key: str, picture: Image.Image | Path, step: int) -> Path:
        """Save images/KEY_STEP.png, and show it in MLflow under `key` with a slider over the steps.

        Args:
            key: short ASCII; anything but letters, digits, dots, dashes and underscores becomes a dash.
        """
        key = re.sub(r"[^A-Za-z0-9_.-]+", "-", key)[:60]
        if self._pictured is None:
            lines = (record for record, _ in journal.read(self.output_dir / journal.UPLOADS))
            self._pictured = {(line["key"], line["step"]) for line in lines if line["kind"] == "image"}
        path = self.output_dir / "images" / f"{key}_{step:06d}.png"
        if isinstance(picture, Image.Image):
            save_png(picture, path)
        else:
            with Image.open(picture) as opened:
                save_png(opened, path)
        if (key, step) not in self._pictured:
            self._upload("image", path, key=key, step=int(step))
            self._pictured.add((key, step))
        return path

    def artifact(self, path: Path, folder: str = "") -> None:
        """Send a file (or a whole folder) of the output folder to the run's artifacts, below `folder`.

        The file is read when it is sent, seconds later: do not move it. Reported again, it is replaced.
        """
        self._upload("artifact", path, folder=folder)

    def describe(self, path: Path, answer: str = "", picture: Path | None = None) -> None:
        """Show a text file, such as the table of results, as the run's description in MLflow, letter by letter.

        Args:
            answer: what the run has found, in a sentence; it comes first.
            picture: one of the artifacts that `finish` is given; it comes second.
        """
        shown = {} if picture is None else {"picture": self._relative(picture)}
        self._upload("description", path, answer=answer, **shown)

    def register_embedding(self, path: Path, base_model: str, metadata: Mapping[str, object], step: int) -> None:
        """Register a safetensors file of one tensor (1, L, D) as a new version of `renege_ray-<base_model>`.

        `mlflow.pyfunc.load_model("models:/renege_ray-toy/1")` then hands it out: `predict(None)` as an array,
        `unwrap_python_model().negative_prompt_embeds(pipe)` as a tensor for diffusers.

        Args:
            metadata: becomes the model's metadata and the version's tags, as text.
            step: the training step that the embedding is from.
        """
        texts = {str(key): str(value) for key, value in metadata.items() if value is not None}
        self._upload("model", path, base_model=base_model, metadata=texts, step=int(step))

    def flush(self, within: float = math.inf) -> bool:
        """Wait until MLflow has everything; at most so many seconds, and bounded besides, see `Courier.flush`.

        Returns:
            True if it has, False if something is left to be sent later. Where only files are written: True.
        """
        return True if self._courier is None else self._courier.flush(within)

    def finish(
        self,
        status: str = "finished",
        *,
        artifacts: Mapping[str, Path] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> journal.Record:
        """Write summary.json, send what is left, end the MLflow run. Say `review()` after it.

        The metrics are not reported again: give them to `metrics` too, with the step that they belong to.

        Args:
            status: "finished", "failed" or "interrupted".
            artifacts: name -> file or folder in the output folder; those not reported yet are sent too.
            metrics: name -> number; a number that is not finite is null in the file.

        Returns:
            The summary: {"job", "status", "mlflow_run_id", "mlflow_tracking_uri" (masked), "seconds" (since
            the run was opened in this process), "artifacts": {name: path relative to the folder}, "metrics"}.
        """
        if status not in {"finished", "failed", "interrupted"}:
            raise ValueError(f"unknown status {status!r}")
        state = journal.read_json(self.output_dir / journal.STATE)
        uploads = (record for record, _ in journal.read(self.output_dir / journal.UPLOADS))
        reported = {record["path"] for record in uploads if record["kind"] == "artifact"}
        relative = {name: self._relative(path) for name, path in (artifacts or {}).items()}
        for path in relative.values():
            if path not in reported:
                self._upload("artifact", self.output_dir / path, folder="")
        summary = {
            "job": state["job"],
            "status": status,
            "mlflow_run_id": state.get("run_id"),
            "mlflow_tracking_uri": masked(self.uri),
            "seconds": round(time.time() - self._opened, 2),
            "artifacts": relative,
            "metrics": {k: float(v) if math.isfinite(v) else None for k, v in (metrics or {}).items()},
        }
        journal.write_json(self.output_dir / journal.SUMMARY, summary)
        self._upload("artifact", self.output_dir / journal.SUMMARY, folder="")
        self._finished = True
        self.flush(within=LEAVING_SECONDS if status == "interrupted" else math.inf)
        if self._courier is not None:
            self._courier.stop()
        summary = journal.read_json(self.output_dir / journal.SUMMARY)  # with the run's id, if it got one just now
        self.run_id = summary["mlflow_run_id"]
        return summary

    def review(self) -> str:
        """The last line of a job: how to open the UI, or, where something was not sent, how to send it."""
        folders = journal.family(self.output_dir)
        if all(map(journal.is_sent, folders)):
            refused = [what for folder in folders for what in journal.refused(folder)]
            without = f" (without {', '.join(refused[:3])}, which it refuses)" if refused else ""
            state = journal.read_json(self.output_dir / journal.STATE)
            page = (str(state.get("experiment_id") or ""), str(state.get("run_id") or ""))
            return f"MLflow: {ui_command(self.uri, *page)}{without}"
        return f"MLflow has not got everything; send it by: {send_command(self.uri, self.output_dir)}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the run as failed or interrupted where the job did not end it itself."""
        if not self._finished:
            interrupted = error is not None and isinstance(error, KeyboardInterrupt | SystemExit)
            self.finish("interrupted" if interrupted else "failed")

    def _relative(self, path: Path) -> str:
        absolute = Path(path).absolute()
        if not absolute.is_relative_to(self.output_dir):
            raise ValueError(f"{path} is not in the output folder {self.output_dir}")
        return str(absolute.relative_to(self.output_dir))

    def _upload(self, kind: str, path: Path, **details: object) -> None:
        record = {"kind": kind, "path": self._relative(path), "time": journal.now(), **details}
        self._serve_other_machine()
        journal.append(self.output_dir / journal.UPLOADS, record)

    def _serve_other_machine(self) -> None:
        """A copy on a machine that does not see the opener's folder has to send its own files."""
        if self._courier is None and self.run_id is not None and not (self.output_dir / journal.STATE).exists():
            state = {"run_id": self.run_id, "tracking_uri": masked(self.uri), "params": {}, "sent": {"params": True}}
            journal.write_json(self.output_dir / journal.STATE, state)
            from renege_ray.cluster.tracking.delivery import Courier, Delivery  # MLflow, where it is needed after all

            self._courier = Courier(Delivery(self.output_dir, self.uri))
