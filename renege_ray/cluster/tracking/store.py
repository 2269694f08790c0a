"""The MLflow store behind a tracking URI: a client that cannot hang, a quick probe, experiments."""

import logging
import os
from pathlib import Path

import requests

from renege_ray.cluster.tracking.uris import SQLITE

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
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """The id of an experiment, created where there is none. With SQLite its artifacts lie beside the file."""
    found = client.get_experiment_by_name(name)
    if found is None:
        location = None
        if uri.startswith(SQLITE):
            location = (Path(uri.removeprefix(SQLITE)).parent / "mlartifacts").as_uri()
        try:
            return str(client.create_experiment(name, location, _KIND_OF_EXPERIMENT))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another job was faster
            if found is None:
                raise
    return str(found.experiment_id)
