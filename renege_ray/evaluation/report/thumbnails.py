"""The pictures of the gallery as base64, small enough together for MLflow's viewer."""

import base64
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

# MLflow shows files of up to 50 MiB; base64 takes 4/3.
LARGEST_SUM = 34 * 2**20
SIZES = (512, 384, 256, 192, 160, 128, 96, 64)  # px of the longer side
_BROWSERS_READ = {"PNG", "WEBP", "JPEG", "GIF"}
_QUALITY = 80
_TRIED = 24


def thumbnails(paths: Sequence[Path | None], largest_sum: int = LARGEST_SUM) -> list[str | None]:
    """Base64 of each picture, in the order given; None where there is none that can be read.

    Files that are small already are taken as they are. Others are scaled down, to the largest of `SIZES` at which
    all of them together are expected to stay below `largest_sum` bytes.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        if _fit_as_they_are(paths, largest_sum, pool):
            encoded = list(pool.map(_read, paths))
        else:
            size = _size_that_fits(paths, largest_sum, pool)
            encoded = list(pool.map(lambda path: _scaled(path, size), paths))
    return [base64.b64encode(data).decode("ascii") if data else None for data in encoded]


def _fit_as_they_are(paths: Sequence[Path | None], largest_sum: int, pool: ThreadPoolExecutor) -> bool:
    there = [path for path in paths if path and path.is_file()]
    if sum(path.stat().st_size for path in there) > largest_sum:
        return False
    return all(pool.map(_is_small, there))


def _is_small(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return max(image.size) <= SIZES[0] and image.format in _BROWSERS_READ
    except OSError:
        return True  # not a picture: left out in any case


def _size_that_fits(paths: Sequence[Path | None], largest_sum: int, pool: ThreadPoolExecutor) -> int:
    there = [path for path in paths if path]
    tried = there[:: max(1, len(there) // _TRIED)]
    for size in SIZES:
        bytes_each = [len(data) for data in pool.map(lambda path, size=size: _scaled(path, size), tried) if data]
        if sum(bytes_each) / max(1, len(bytes_each)) * len(there) <= 0.95 * largest_sum:
            return size
    return SIZES[-1]


def _read(path: Path | None) -> bytes | None:
    try:
        if path is None:
            return None
        with Image.open(path) as image:
            image.verify()
        return path.read_bytes()
    except (OSError, SyntaxError):  # Pillow's PNG reader calls a broken file a syntax error
        return None


def _scaled(path: Path | None, size: int) -> bytes | None:
    """WebP of at most `size` px a side."""
    try:
        if path is None:
            return None
        with Image.open(path) as image:
            small = image.convert("RGB")
        small.thumbnail((size, size), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, "WEBP", quality=_QUALITY, method=2)
        return buffer.getvalue()
    except (OSError, SyntaxError):
        return None
