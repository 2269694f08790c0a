"""Prompt sets, the stable identity of a prompt, and the seeds of its images."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from renege_ray.errors import UserError

Split = Literal["train", "validation", "held_out"]
TOY = "toy"


@dataclass(frozen=True)
class PromptSet:
    """Prompts in the order of their source; what appears twice there is drawn twice as often.

    duplicates: how many prompts are repetitions of an earlier one (by `prompt_id`).
    categories: of each prompt ("" where it has none), or empty where the source knows none.
    """

    prompts: tuple[str, ...]
    name: str
    blank_lines_skipped: int = 0
    duplicates: int = 0
    categories: tuple[str, ...] = ()

    def notes(self) -> str:
        """What a user should know of the set, in one line: "list.txt: 7 prompts, 1 blank line skipped"."""
        parts = [f"{len(self.prompts)} prompt{'s' * (len(self.prompts) != 1)}"]
        if self.blank_lines_skipped:
            parts.append(f"{self.blank_lines_skipped} blank line{'s' * (self.blank_lines_skipped != 1)} skipped")
        if self.duplicates:
            parts.append(f"{self.duplicates} repeated (kept, so drawn more often)")
        return f"{self.name}: {', '.join(parts)}"


def load_prompts(name_or_path: str, split: Split, field: str | None = None) -> PromptSet:
    """The prompts of `split`: 'toy' for those of the embedded model, else a file with one prompt a line.

    `field` is what the configuration calls the source, by default `prompts.<split>`.

    Raises:
        UserError: the file is missing, a folder, no .txt file, not UTF-8 (the line is named) or empty.
    """
    if name_or_path == TOY:
        from renege_ray.models.toy.captions import (
            prompts,
        )  # the toy model's code is needed for its own set only

        return _prompt_set(prompts(split), f"toy ({split})", 0)
    field = field or f"prompts.{split}"
    lines = _lines(Path(name_or_path), field)
    kept = [line.strip() for line in lines if line.strip()]
    if not kept:
        raise UserError(f"{field}: {name_or_path} has {len(lines)} blank lines and no prompt; write one prompt a line")
    return _prompt_set(kept, Path(name_or_path).name, len(lines) - len(kept))


def prompt_id(prompt: str) -> str:
    """16 hex digits that name a prompt, whatever its spacing, its Unicode form and its place in a file."""
    text = " ".join(unicodedata.normalize("NFC", prompt).split())
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def pair_seed(run_seed: int, prompt_id: str, k: int) -> int:
    """The seed of the k-th image of a prompt, 0 .. 2**32 - 1.

    A function of the prompt and not of its place, so that a prompt's images stay the same when others join
    the set; 32 bits, which is what torch's CPU generator takes.
    """
    digest = hashlib.sha256(f"{run_seed}/{prompt_id}/{k}".encode("ascii")).digest()
    return int.from_bytes(digest[:4], "big")


def _prompt_set(prompts: Iterable[str], name: str, blank: int) -> PromptSet:
    kept = tuple(prompts)
    repeated = sum(count - 1 for count in Counter(map(prompt_id, kept)).values())
    return PromptSet(kept, name, blank, repeated)


def _lines(path: Path, field: str) -> list[str]:
    """The lines of a text file: UTF-8 with or without a byte order mark, ended by LF, CRLF or CR."""
    if path.is_dir():
        raise UserError(f"{field}: {path} is a folder; name a .txt file with one prompt a line")
    if path.suffix.lower() != ".txt" and path.exists():
        raise UserError(f"{field}: {path} is not a .txt file; give a text file with one prompt a line")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{field}: there is no file {path}; give 'toy' or a .txt file of prompts") from None
    except OSError as error:
        raise UserError(f"{field}: {path} cannot be read ({error.strerror}); check its permissions") from None
    if not data:
        raise UserError(f"{field}: {path} is empty; write one prompt a line")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = _universal_newlines(data[: error.start].decode("utf-8-sig")).count("\n") + 1
        raise UserError(f"{field}: {path} is not UTF-8 in line {line}; save it as UTF-8") from None
    # Not splitlines(), which would also cut at rare separators inside a prompt.
    return _universal_newlines(text).removesuffix("\n").split("\n")


def _universal_newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
