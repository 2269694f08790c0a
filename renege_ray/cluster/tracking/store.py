"""The MLflow store behind a tracking URI: a client that cannot hang, a quick probe, experiments."""

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests

from renege_ray.cluster.tracking.uris import sqlite_file

# MLflow's own defaults (7 retries of 120 s) would hold a job for a quarter of an hour. A user's setting wins.
_CLIENT_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
# MLflow prints links to a run that has ended, with the password of the tracking URI in them.
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
for _name, _value in _CLIENT_DEFAULTS.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402 (reads the environment above)
from mlflow.exceptions import MlflowException  # noqa: E402

PROBE_SECONDS = 3.0
_BUSY_SECONDS = 30.0
# Where MLflow's tables have the location of artifacts.
_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)

logger = logging.getLogger("renege_ray.tracking")

# Without it the UI takes an experiment for one of language models, and shows traces and prompts instead of charts.
_KIND_OF_EXPERIMENT = {"mlflow.experimentKind": "custom_model_development"}

# MLflow tells its progress at INFO, urllib3 every retry at WARNING. Errors come as exceptions, or above this.
for _logger_name, _level in {"mlflow": "WARNING", "alembic": "WARNING", "urllib3.connectionpool": "ERROR"}.items():
    logging.getLogger(_logger_name).setLevel(_level)


def probe(uri: str) -> None:
    """Return at once if somebody answers at an HTTP URI (any own answer counts); other stores are not asked.

    Raises:
        ConnectionError: within `PROBE_SECONDS` if nobody does.
    """
    if not uri.startswith(("http://", "https://")):
        return
    try:
        answer = requests.get(f"{uri.rstrip('/')}/health", timeout=PROBE_SECONDS)
    except requests.exceptions.SSLError:
        return  # somebody answers; MLflow has its own settings for certificates
    except requests.exceptions.RequestException as error:
        raise ConnectionError(f"no answer: {type(error).__name__}") from error
    if answer.status_code in {502, 503, 504}:  # a proxy without the server behind it
        raise ConnectionError(f"no answer: HTTP {answer.status_code}")


def connect(uri: str) -> MlflowClient:
    """A client of the store at `uri`. The global tracking URI stays as it is."""
    if file := sqlite_file(uri):
        follow_move(file)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """The id of an experiment, created where there is none, restored where it was deleted. With SQLite its artifacts
    lie beside the file.

    Raises:
        MlflowException: the store lets it be neither created nor restored.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        file = sqlite_file(uri)
        location = _artifacts_of(file).as_uri() if file else None
        try:
            return str(client.create_experiment(name, location, _KIND_OF_EXPERIMENT))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another job was faster
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        client.restore_experiment(found.experiment_id)
        logger.warning("the experiment %r had been deleted in MLflow; it is restored, for this run goes into it", name)
    if not set(_KIND_OF_EXPERIMENT) & set(found.tags):  # of somebody else, who has not said what it is
        for key, value in _KIND_OF_EXPERIMENT.items():
            client.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id)


def follow_move(file: Path) -> None:
    """Let an SQLite store know where its artifacts are, after its folder has been moved or copied.

    MLflow keeps absolute locations, and has no call that changes them: new runs would write into the old place, and
    `mlflow ui` would look for the artifacts of old ones there. Only locations that `experiment_id` has chosen are
    changed, in one transaction.
    """
    if not file.exists():
        return
    here = _artifacts_of(file.absolute())
    with closing(sqlite3.connect(file, timeout=_BUSY_SECONDS)) as database:
        try:
            found = database.execute("select distinct artifact_location from experiments").fetchall()
        except sqlite3.OperationalError:
            return  # no tables yet, or not free: the store's own calls will tell
        for (location,) in found:
            there = _folder(location)
            if there is None or there.name != here.name or there == here or _same(there, here):
                continue
            with database:
                for table, column in _LOCATIONS:
                    if column in {row[1] for row in database.execute(f"pragma table_info({table})")}:
                        database.execute(
                            f"update {table} set {column} = ? || substr({column}, ?) where substr({column}, 1, ?) = ?",
                            (here.as_uri(), len(location) + 1, len(location), location),
                        )
            logger.warning("the MLflow store has moved: artifacts that were in %s are looked for in %s", there, here)


def _artifacts_of(file: Path) -> Path:
    return file.parent / "mlartifacts"


def _folder(location: str | None) -> Path | None:
    parts = urlsplit(location or "")
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _same(one: Path, other: Path) -> bool:
    """Whether two paths lead to one folder, by a link, say."""
    return one.parent.exists() and one.parent.samefile(other.parent)
