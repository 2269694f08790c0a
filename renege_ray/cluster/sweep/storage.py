"""The file of a sweep's Optuna study, and patience with whoever else has it open."""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import optuna
from sqlalchemy.engine import URL

from renege_ray.output.console import say

STUDY_FILE = "study.db"
_BUSY_SECONDS = 5.0  # SQLite's own, silent wait
_SECONDS_BETWEEN_TRIES = 0.5
_PATIENCE_SECONDS = 600.0

T = TypeVar("T")


def open_storage(folder: Path) -> optuna.storages.RDBStorage:
    """The study's file in an output folder; made where there is none.

    Whoever else holds it, such as a dashboard or a backup, is waited for: Optuna gives up after SQLite's first wait.
    """
    options = {"connect_args": {"timeout": _BUSY_SECONDS, "factory": PatientConnection}}
    return optuna.storages.RDBStorage(study_url(folder), engine_kwargs=options)


def study_url(folder: Path) -> str:
    """The study as Optuna's storage URL, for its dashboard, too; with what a path may have quoted."""
    return URL.create("sqlite", database=str(folder / STUDY_FILE)).render_as_string()


class PatientConnection(sqlite3.Connection):
    """Waits for minutes where a database is locked, and says so."""

    def cursor(self, factory: Any = None) -> sqlite3.Cursor:  # type: ignore[override]  # overloads of typeshed
        """A cursor that waits."""
        return super().cursor(factory or _PatientCursor)

    def commit(self) -> None:
        """Commit, when the others let it."""
        _patiently(super().commit)


class _PatientCursor(sqlite3.Cursor):
    def execute(self, sql: str, parameters: Any = (), /) -> "_PatientCursor":
        execute = super().execute
        _patiently(lambda: execute(sql, parameters))
        return self

    def executemany(self, sql: str, seq_of_parameters: Any, /) -> "_PatientCursor":
        executemany = super().executemany
        rows = list(seq_of_parameters)
        _patiently(lambda: executemany(sql, rows))
        return self


def _patiently(access: Callable[[], T]) -> T:
    """What an access gives, tried again for as long as others hold the database, up to a limit."""
    deadline, told = time.monotonic() + _PATIENCE_SECONDS, False
    while True:
        try:
            return access()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            if not told:
                told = True
                say(f"the sweep's {STUDY_FILE} is locked by another program; waiting for it")
            time.sleep(_SECONDS_BETWEEN_TRIES)
