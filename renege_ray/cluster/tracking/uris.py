"""Tracking URIs: which one a run uses, how it is printed, how its UI is opened. Loads no MLflow."""

import os
import shlex
import shutil
import sys
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url

from renege_ray.errors import UserError, masked

UI_PORT = 5000
_DATABASES = ("postgresql", "mysql", "mssql")


def resolve_uri(tracking_uri: str | None, output_dir: Path) -> str:
    """The tracking URI of a run: the given one, then MLFLOW_TRACKING_URI, then a local SQLite file.

    The default is `mlflow.db` in the *parent* of `output_dir`, so that the runs of several folders share one
    UI. A relative SQLite path becomes absolute, because workers run in other folders.

    Raises:
        UserError: for a URI that MLflow 3 cannot track to (a plain folder, for one).
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or ""
    if not uri:
        return sqlite_uri(output_dir.absolute().parent / "mlflow.db")
    if file := sqlite_file(uri):
        return sqlite_uri(file.expanduser().absolute())
    scheme = urlsplit(uri).scheme
    is_http = scheme in {"http", "https"} and bool(urlsplit(uri).hostname)
    if is_http or uri.startswith("databricks") or scheme.split("+")[0] in _DATABASES:
        return uri
    raise UserError(
        f"tracking_uri: {masked(uri)!r} is no MLflow tracking URI;"
        f" give http(s)://HOST:PORT, or sqlite:///FILE.db for a local file, or leave it out"
    )


def sqlite_uri(file: Path) -> str:
    """The URI of an SQLite file, with what a URI takes for something else quoted.

    MLflow makes the folder of what stands behind `sqlite:///` without unquoting it; with the driver named it does not.
    """
    path = str(file)
    quoted = path.replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{path}" if quoted == path else f"sqlite+pysqlite:///{quoted}"


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite URI; None for other URIs."""
    if not uri.startswith(("sqlite:///", "sqlite+pysqlite:///")):
        return None
    file = make_url(uri).database
    return Path(file) if file else None


def ui_command(uri: str, experiment_id: str = "", run_id: str = "") -> str:
    """What a person types and opens to look at the runs in the store at `uri`, or at one of them."""
    # Without the last part a browser that has not been there before is shown what MLflow has for language models.
    page = f"/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning" if run_id else ""
    if uri.startswith(("http://", "https://")):
        return f"open {masked(uri).rstrip('/')}{page} in a browser"
    where = f"--host 127.0.0.1 --port {UI_PORT}"
    command = f"{program('mlflow')} ui --backend-store-uri {shlex.quote(masked(uri))} {where}"
    return f"{command}  (then open http://127.0.0.1:{UI_PORT}{page})" if page else command


def program(name: str) -> str:
    """A program of this environment as a person types it: where that is not activated, by its path."""
    if shutil.which(name) is None:
        beside = Path(sys.executable).parent / name
        name = os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside)
    return shlex.quote(name)
