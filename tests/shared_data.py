"""Where the real prompt files and the released embeddings are, on machines that have them."""

import os
from pathlib import Path

import pytest

SHARED_DATA = Path(os.environ.get("RENEGE_RAY_SHARED_DATA") or Path(__file__).parents[2] / "shared" / "data")


def shared_file(name: str) -> Path:
    """A file below the folder; the test is skipped, saying so, where the folder is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"there is no folder {SHARED_DATA} (RENEGE_RAY_SHARED_DATA names another)")
    return SHARED_DATA / name
