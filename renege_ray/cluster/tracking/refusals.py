"""What an error of a tracking store means for what was sent: is nobody there, may it arrive later, or never?"""

import re
import sqlite3
from http import HTTPStatus

import requests
from mlflow.exceptions import MlflowException, RestException
from PIL import UnidentifiedImageError

from renege_ray.errors import causes

# The request itself is at fault: sent again, it is refused again.
_NEVER = {400, 405, 409, 410, 411, 413, 414, 415, 422, 431, 451}
# Nobody is let in, or nobody is there behind the proxy: whatever else would be sent now has the same answer.
_NOBODY = {401, 407, 408, 429, 502, 503, 504}
# As MLflow, and urllib3 after its retries, tell a status that has no exception of its own.
_STATUS = re.compile(r"(?:failed with error code |too many )(\d{3})\b")


def is_away(error: BaseException) -> bool:
    """Whether the store as a whole takes nothing now."""
    status = http_status(error)
    if status is not None:
        return status in _NOBODY
    return isinstance(error, ConnectionError | TimeoutError | requests.RequestException) or _is_locked(error)


def is_final(error: BaseException) -> bool:
    """Whether this piece can never arrive."""
    if isinstance(error, FileNotFoundError | UnidentifiedImageError):
        return True
    return http_status(error) in _NEVER


def http_status(error: BaseException) -> int | None:
    """The HTTP status that a server answered with, or what its answer amounts to; None where there was no answer."""
    for cause in causes(error):
        response = getattr(cause, "response", None)
        if isinstance(cause, requests.HTTPError) and response is not None:
            return int(response.status_code)
        if found := _STATUS.search(str(cause)):
            return int(found[1])
        if isinstance(cause, RestException) or (
            isinstance(cause, MlflowException) and cause.error_code != "INTERNAL_ERROR"
        ):
            return cause.get_http_status_code()
    return None


def says(error: BaseException) -> str:
    """What a store does that takes nothing: a part of a sentence whose subject is the store."""
    status = http_status(error)
    if status is not None:
        return f"answers {answer(status)}"
    if _is_locked(error):
        return "is locked by another program"
    return "does not answer" if is_away(error) else "takes nothing"


def answer(status: int) -> str:
    """A status in words, with what helps."""
    help_for = {
        401: "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        403: "this user may not do that",
    }
    phrase = next((known.phrase for known in HTTPStatus if known == status), "")
    return ", ".join(filter(None, [f"{status} {phrase}".strip(), help_for.get(status)]))


def _is_locked(error: BaseException) -> bool:
    """Whether another program has an SQLite database to itself for a while."""
    return any(
        (isinstance(cause, sqlite3.OperationalError) and "locked" in str(cause)) or "database is locked" in str(cause)
        for cause in causes(error)
    )
