"""Prompt sets, the stable identity of a prompt, and the seeds of its images.

A source of prompts is named by one text:

    toy                          the prompts of the embedded model, which has sets of its own for each split; their
                                 category is the shape
    imagereward-10k              a published set (also parti and hpsv2), from the cache or its public home
    parti=DIR/PartiPrompts.tsv   a published set from a local copy
    FILE                         a .txt, .jsonl, .json, .csv, .tsv or .parquet file
    FILE:COLUMN                  the same, and which column the prompts are in

The three splits (what is learned from, what the best embedding is chosen by, what is reported at the end) never share
a prompt. A source that one split names is all that split's. A source that several splits name is divided among them by
a hash of each prompt's id, 80 : 10 : 10 in training, validation and held-out prompts, whatever else is in the file.
What two different sources have in common stays in the held-out prompts first, then in the validation prompts.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Literal

from renege_ray.errors import UserError
from renege_ray.prompts.files import SUFFIXES, read_prompt_file
from renege_ray.prompts.published import SETS, read_builtin

Split = Literal["train", "validation", "held_out"]
TOY = "toy"
# Held-out prompts come first: they stay the same, but for their share, whichever other splits name the source.
SHARES: dict[Split, int] = {"held_out": 10, "validation": 10, "train": 80}

_LOCAL_COPY = re.compile(rf"({'|'.join(SETS)})=(.+)", re.DOTALL)
_FILE_AND_COLUMN = re.compile(rf"(.+?(?:{'|'.join(map(re.escape, SUFFIXES))})):(.+)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class PromptSet:
    """Prompts in the order of their source; what appears twice there is drawn twice as often."""

    prompts: tuple[str, ...]
    """The texts."""
    name: str
    """Of the source, for people."""
    blank_lines_skipped: int = 0
    """Lines (or rows, or items) without a prompt."""
    categories: tuple[str, ...] = ()
    """Of each prompt ("" where it has none), or empty where the source knows none."""
    unit: str = "line"
    """What a line is called in this source."""
    remarks: tuple[str, ...] = ()
    """What else there is to say, in a few words each."""

    @cached_property
    def duplicates(self) -> int:
        """How many prompts are repetitions of an earlier one (by `prompt_id`); counted where it is asked for."""
        return len(self.prompts) - len(set(map(prompt_id, self.prompts)))

    def notes(self) -> str:
        """What a user should know of the set, in one line: "list.txt: 7 prompts, 1 blank line skipped"."""
        parts = [f"{len(self.prompts)} prompt{'s' * (len(self.prompts) != 1)}", *self.remarks]
        if self.blank_lines_skipped:
            parts.append(f"{self.blank_lines_skipped} blank {self.unit}{'s' * (self.blank_lines_skipped != 1)} skipped")
        if self.duplicates:
            parts.append(f"{self.duplicates} repeated (kept, so drawn more often)")
        return f"{self.name}: {', '.join(parts)}"


def load_prompts(source: str, split: Split, field: str | None = None) -> PromptSet:
    """All prompts of a source; of 'toy', those of `split`.

    `field` is what the configuration calls the source, by default `prompts.<split>`.

    Raises:
        UserError: there is no such source, or it cannot be read; see `read_prompt_file` and `read_builtin`.
    """
    return _load(source, split, field)[0]


def load_splits(sources: Mapping[Split, str]) -> dict[Split, PromptSet]:
    """The prompts of each split, given its source; no prompt is in two of them. A source is read once.

    Raises:
        UserError: as for `load_prompts`; or a split would be left without a prompt.
    """
    found: dict[Split, PromptSet] = {}
    keys: dict[Split, object] = {}
    earlier: dict[str, tuple[PromptSet, object]] = {}
    for split, source in sources.items():
        if source == TOY or source not in earlier:
            earlier[source] = _load(source, split)
        found[split], keys[split] = earlier[source]
    for split, key in keys.items():
        sharing = [other for other in SHARES if keys.get(other) == key]
        if len(sharing) > 1:
            found[split] = _share(found[split], split, sharing)
    return _without_common(found)


def source_label(source: str) -> str:
    """A source's name for stored metadata, where the folders of one machine would mean nothing."""
    local = _LOCAL_COPY.fullmatch(source)
    if local is not None:
        return local[1]
    return source if source == TOY or source in SETS else _file_and_column(source)[0].name


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


def split_of(prompt_id: str, among: Iterable[Split]) -> Split:
    """Which of the splits that name a source a prompt of it belongs to: a function of its id alone.

    Source: the id, hashed again (evaluations take prompts in the order of their ids), as a number in [0, 1).
    """
    shares = {split: share for split, share in SHARES.items() if split in set(among)}
    digest = hashlib.sha256(f"split/{prompt_id}".encode("ascii")).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64 * sum(shares.values())
    for split, share in shares.items():
        if point < share:
            return split
        point -= share
    return "train" if "train" in shares else next(reversed(shares))  # a float that was rounded up to 1


def _load(source: str, split: Split, field: str | None = None) -> tuple[PromptSet, object]:
    """The prompts of a source, and a key that is the same for two sources if they are one."""
    field = field or f"prompts.{split}"
    if source == TOY:
        from renege_ray.models.toy.captions import parse, prompts  # needed for the toy model's own set only

        texts = prompts(split)
        shapes = tuple(str(parse(text)["shape"]) for text in texts)
        return _prompt_set(texts, f"toy ({split})", categories=shapes), (TOY, split)
    local = _LOCAL_COPY.fullmatch(source)
    if source in SETS or local is not None:
        name = local[1] if local else source
        table, remarks = read_builtin(name, field, Path(local[2]).expanduser() if local else None)
        key: object = name
    else:
        path, column = _file_and_column(source)
        table, remarks, name = read_prompt_file(path, field, column), (), path.name
        key = (path.resolve(), table.column)
        remarks = (f"from its column {table.column!r}",) if table.column is not None else ()
        if table.hashes:
            remarks += (f"{table.hashes} that start with # (prompts too: a text file has no comments)",)
    return _prompt_set(table.prompts, name, table.blank, table.categories, table.unit, remarks), key


def _file_and_column(source: str) -> tuple[Path, str | None]:
    match = _FILE_AND_COLUMN.fullmatch(source)
    if match is None or Path(source).exists():
        return Path(source).expanduser(), None
    return Path(match[1]).expanduser(), match[2]


def _prompt_set(
    prompts: Sequence[str],
    name: str,
    blank: int = 0,
    categories: tuple[str, ...] = (),
    unit: str = "line",
    remarks: tuple[str, ...] = (),
) -> PromptSet:
    # Of a table a row is skipped for its prompt alone, so that is what is called blank there.
    unit = unit if unit == "line" else "prompt"
    return PromptSet(tuple(prompts), name, blank, categories, unit, remarks)


def _share(found: PromptSet, split: Split, sharing: Sequence[Split]) -> PromptSet:
    """The part of a source that falls to one of the splits that name it."""
    mine = _only(found, [split_of(prompt_id(prompt), sharing) == split for prompt in found.prompts])
    others = " and ".join(f"prompts.{other}" for other in sharing if other != split)
    total = len(found.prompts)
    if not mine.prompts:
        raise UserError(
            f"prompts.{split}: none of the {total} prompts of {found.name} falls to it (sources that several splits "
            f"name are divided by hash, here with {others}); name a source of its own, or a larger one"
        )
    return replace(mine, remarks=(f"its share of {total} (divided by hash with {others})", *found.remarks))


def _without_common(found: dict[Split, PromptSet]) -> dict[Split, PromptSet]:
    """Leave in each split only what is in none of those that come before it in `SHARES`."""
    taken: set[str] = set()
    for split in SHARES:
        if split not in found:
            continue
        ids = [prompt_id(prompt) for prompt in found[split].prompts]
        common = [name in taken for name in ids]
        taken.update(ids)
        if not any(common):
            continue
        kept = _only(found[split], [not is_common for is_common in common])
        if not kept.prompts:
            raise UserError(
                f"prompts.{split}: all prompts of {found[split].name} are in a later split too, and splits share none; "
                "name a source with other prompts, or the same source in the same words, which is then divided"
            )
        remark = f"without {sum(common)} that are in a later split too"
        found[split] = replace(kept, remarks=(*kept.remarks, remark))
    return found


def _only(found: PromptSet, keep: Sequence[bool]) -> PromptSet:
    prompts = tuple(compress(found.prompts, keep))
    return replace(found, prompts=prompts, categories=tuple(compress(found.categories, keep)))
