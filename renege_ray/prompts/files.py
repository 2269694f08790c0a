"""Prompts out of the files that people keep them in: .txt, .jsonl, .json, .csv, .tsv and .parquet.

A file is read once, row by row; only its prompts and their categories stay in memory (a .json list is one document, so
that the whole of it is there for a moment). Which column the prompts are in is named, or guessed by `PROMPT_COLUMNS`.
Text is UTF-8, or UTF-16 with its mark, as some programs of Windows write it. A .csv or .tsv file may have any of
`DELIMITERS` in place of the one that its name promises.
"""

import codecs
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from renege_ray.errors import UserError, first_line
from renege_ray.output.names import is_unicode

# In the order in which they are looked for, whatever the case.
PROMPT_COLUMNS = ("prompt", "prompts", "text", "caption", "captions", "description", "sentence")
CATEGORY_COLUMNS = ("category", "style")
DELIMITERS = ",;\t|"
_LONGEST_FIELD = 2**31 - 1  # characters, the most that the csv module takes everywhere


@dataclass(frozen=True)
class PromptTable:
    """The prompts of a file in its order, without blank ones."""

    prompts: tuple[str, ...]
    """Without the white space around them."""
    categories: tuple[str, ...]
    """Of each prompt ("" where a row has none), or empty where the file has no such column."""
    blank: int
    """Rows without a prompt, which were skipped."""
    column: str | None
    """The column that the prompts are from; None where there are no columns."""
    unit: str
    """What a row is called in this kind of file."""
    hashes: int = 0
    """Lines of a text file that start with "#", and are prompts like all others."""


class _Row(NamedTuple):
    number: int
    """Of the line, item or row, from 1."""
    prompt: Any
    """What stands there, which may be no text."""
    category: Any = None


class _Columns(NamedTuple):
    prompt: str
    category: str | None


class _Rows(NamedTuple):
    columns: _Columns | None
    """None where there are none."""
    rows: Iterable[_Row]


def read_prompt_file(path: Path, field: str, column: str | None = None) -> PromptTable:
    """Read the prompts of a file.

    Args:
        path: the file; its suffix says of which kind it is.
        field: whose value the path is, for messages.
        column: where the prompts are; None to guess.

    Raises:
        UserError: the file is missing, a folder, empty, of an unknown kind, damaged, not UTF-8 (the line is named),
            without such a column (those that it has are named), with a prompt that is no text, or without any prompt.
    """
    unit, reader = _kind(path, field)
    name = f"{field}: {path}"
    if column is not None and reader is _read_text:
        raise UserError(f"{name} is a text file without columns; leave ':{column}' out")
    try:
        with reader(path, name, column) as (columns, rows):
            return _collect(rows, columns, name, unit)
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror or error}); check the file") from None


def _kind(path: Path, field: str) -> "tuple[str, _Reader]":
    """What a row is called in a file, and who reads it."""
    if path.is_dir():
        raise UserError(f"{field}: {path} is a folder; name a file of prompts ({', '.join(_KINDS)})")
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        known = ", ".join(_KINDS)
        raise UserError(
            f"{field}: there is no file {path}; give a file of prompts ({known}) or a set by name"
        ) from None
    except OSError as error:
        raise UserError(f"{field}: {path} cannot be read ({error.strerror}); check its permissions") from None
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{field}: {path} is no file of prompts; give one that ends in {', '.join(_KINDS)}")
    if size == 0:
        raise UserError(f"{field}: {path} is empty; write one prompt per {kind[0]}")
    return kind


def _collect(rows: Iterable[_Row], columns: _Columns | None, name: str, unit: str) -> PromptTable:
    """Take the prompts out of the rows."""
    prompts: list[str] = []
    categories: list[str] = []
    blank = hashes = 0
    for row in rows:
        if row.prompt is None or (isinstance(row.prompt, str) and not row.prompt.strip()):
            blank += 1
            continue
        prompts.append(_checked(row, name, unit))
        hashes += columns is None and unit == "line" and prompts[-1].startswith("#")
        if columns and columns.category:
            # Of thousands of rows a handful of categories: one object each.
            categories.append("" if row.category is None else str(row.category).strip())
    if not prompts:
        raise UserError(f"{name} has {blank} blank {unit}s and no prompt; write one prompt per {unit}")
    column = columns.prompt if columns else None
    return PromptTable(tuple(prompts), tuple(categories), blank, column, unit, hashes)


def _checked(row: _Row, name: str, unit: str) -> str:
    if not isinstance(row.prompt, str):
        shown = repr(row.prompt) if len(repr(row.prompt)) <= 60 else f"{repr(row.prompt)[:57]}..."
        raise UserError(f"{name}, {unit} {row.number}: {shown} is no text; give prompts as texts")
    if not is_unicode(row.prompt):  # JSON can escape one half of a pair of surrogates
        raise UserError(f"{name}, {unit} {row.number}: holds half a character (\\ud800 to \\udfff alone)")
    return row.prompt.strip()


def _choose_columns(names: Sequence[str], wanted: str | None, name: str, remark: str = "") -> _Columns:
    """The columns of prompts and of categories among those that a file has."""
    prompt = _first_known(names, PROMPT_COLUMNS) if wanted is None else _called(wanted, names)
    if prompt is None and wanted is not None:
        raise UserError(f"{name} has no column {wanted!r}; it has {_listed(names)}{remark}")
    if prompt is None:
        have = f"there are {_listed(names)}{remark}"
        raise UserError(f"{name}: which column are the prompts in? name it by FILE:COLUMN; {have}")
    return _Columns(prompt, _first_known([other for other in names if other != prompt], CATEGORY_COLUMNS))


def _called(wanted: str, names: Sequence[str]) -> str | None:
    """The column of this name, or of this name with blanks around it."""
    return next(
        (name for name in sorted(names, key=lambda name: name != wanted) if name.strip() == wanted.strip()), None
    )


def _first_known(names: Sequence[str], known: Sequence[str]) -> str | None:
    by_word = {name.strip().lower(): name for name in reversed(names)}  # of two that are alike, the first counts
    return next((by_word[word] for word in known if word in by_word), None)


def _listed(names: Sequence[str], most: int = 12) -> str:
    return (", ".join(map(repr, names[:most])) or "none") + (
        f" and {len(names) - most} more" if len(names) > most else ""
    )


# Kinds of files. Each reader is a context manager, which keeps the file open while the rows are taken.


@contextmanager
def _opened(path: Path, name: str, newline: str | None = None) -> Iterator[TextIO]:
    """A text file: UTF-8 with or without a byte order mark, or UTF-16 with one; lines end in LF, CRLF or CR."""
    with path.open("rb") as binary:
        head = binary.read(4096)
    marked = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)) or (not marked and 3 * head.count(0) > len(head)):
        raise UserError(f"{name} is UTF-32, or UTF-16 without its mark; save it as UTF-8")
    try:
        with path.open(encoding="utf-16" if marked else "utf-8-sig", newline=newline) as file:
            yield file
    except UnicodeDecodeError:
        if marked:
            raise UserError(f"{name} is damaged UTF-16; save it as UTF-8") from None
        raise UserError(f"{name} is not UTF-8 in line {_first_undecodable_line(path)}; save it as UTF-8") from None


def _first_undecodable_line(path: Path) -> int:
    """From 1. Bytes that are not UTF-8 become lone surrogates here, which no UTF-8 stands for."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if any("\udc80" <= character <= "\udcff" for character in line):
                return number
    return 1


@contextmanager
def _read_text(path: Path, name: str, column: str | None) -> Iterator[_Rows]:
    """One prompt a line. Not by splitlines(), which would also cut at rare separators inside a prompt."""
    with _opened(path, name) as file:
        yield _Rows(None, (_Row(number, line) for number, line in enumerate(file, 1)))


@contextmanager
def _read_json_lines(path: Path, name: str, column: str | None) -> Iterator[_Rows]:
    """A JSON text or object a line."""
    with _opened(path, name) as file:
        entries = (
            (number, _parsed(line, name, number) if line.strip() else None) for number, line in enumerate(file, 1)
        )
        yield _of_entries(entries, column, name, "line")


@contextmanager
def _read_json(path: Path, name: str, column: str | None) -> Iterator[_Rows]:
    """A JSON list of texts or objects."""
    with _opened(path, name) as file:
        content = _parsed(file.read(), name)
    if not isinstance(content, list):
        raise UserError(f"{name} holds {_json_kind(content)}, not a list; give a list of texts, or of objects")
    yield _of_entries(enumerate(content, 1), column, name, "item")


def _parsed(text: str, name: str, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        hint = ""
        if line is None and error.msg == "Extra data":
            hint = "; a file of a JSON value in each line is called .jsonl"
        elif line == 1 and text.strip() == "[":
            hint = "; a list over several lines is called .json"
        raise UserError(f"{name} is not valid JSON in line {line or error.lineno}: {error.msg}{hint}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets in thousands
        raise UserError(f"{name} cannot be taken as JSON: {error}") from None


def _of_entries(entries: Iterable[tuple[int, Any]], column: str | None, name: str, unit: str) -> _Rows:
    """Rows of JSON values: all of them texts, or all of them objects with a prompt in the same place; null is blank."""
    entries = iter(entries)
    head: list[tuple[int, Any]] = []
    for entry in entries:
        head.append(entry)
        if entry[1] is not None:
            break
    first = head[-1][1] if head else None
    columns = _choose_columns(list(first), column, name) if isinstance(first, dict) else None
    if columns is None and column is not None:
        raise UserError(f"{name} has no column {column!r}: it holds {_json_kind(first)}s, not objects")

    def rows() -> Iterator[_Row]:
        for number, value in chain(head, entries):
            if columns is None or value is None:
                yield _Row(number, value)
                continue
            if not isinstance(value, dict) or columns.prompt not in value:
                what = "an object without it" if isinstance(value, dict) else _json_kind(value)
                raise UserError(f"{name}, {unit} {number}: want an object with {columns.prompt!r}, this is {what}")
            yield _Row(number, value[columns.prompt], value.get(columns.category) if columns.category else None)

    return _Rows(columns, rows())


def _json_kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return kinds.get(type(value), "a number")


@contextmanager
def _read_csv(path: Path, name: str, column: str | None) -> Iterator[_Rows]:
    with _opened(path, name, newline="") as file, _fields_of_any_length():
        yield _of_delimited(file, _delimiter(file, ",", column), csv.QUOTE_MINIMAL, column, name)


@contextmanager
def _read_tsv(path: Path, name: str, column: str | None) -> Iterator[_Rows]:
    """Quoted like CSV if it all reads so; otherwise quotation marks are part of the prompts, as in PartiPrompts."""
    with _opened(path, name, newline="") as file, _fields_of_any_length():
        delimiter = _delimiter(file, "\t", column)
        start = file.tell()
        try:
            for _ in csv.reader(file, delimiter=delimiter, strict=True):
                pass
            quoting = csv.QUOTE_MINIMAL
        except csv.Error:
            quoting = csv.QUOTE_NONE
        file.seek(start)
        yield _of_delimited(file, delimiter, quoting, column, name)


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    """The csv module refuses fields of more than 128 KiB, whichever column they are in; its limit is the process's."""
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _delimiter(file: TextIO, promised: str, column: str | None) -> str:
    """The promised one, unless the column is found, or the header falls into several, by another one alone; or what a
    first line says as Excel reads it ("sep=;"), which is then behind the file's place.
    """
    line = file.readline()
    if line.lower().startswith("sep=") and line[4:5] in tuple(DELIMITERS):
        return line[4]
    file.seek(0)
    candidates = sorted(DELIMITERS, key=lambda delimiter: delimiter != promised)
    headers = {delimiter: next(csv.reader([line], delimiter=delimiter), []) for delimiter in candidates}
    for delimiter, header in headers.items():
        if (column is not None and _called(column, header) is not None) or (
            column is None and _first_known(header, PROMPT_COLUMNS) is not None
        ):
            return delimiter
    several = [delimiter for delimiter, header in headers.items() if len(header) > 1]
    return several[0] if several else promised


def _of_delimited(file: TextIO, delimiter: str, quoting: Any, column: str | None, name: str) -> _Rows:
    """Rows by the csv module (not by pyarrow, which takes texts for numbers and names no line in its errors).

    A row of another length than the header is an error: most often a prompt with a comma lacks its quotes, and taking
    a part of it for the whole would go unnoticed.
    """
    reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)

    def lines() -> Iterator[list[str]]:
        while True:
            start = reader.line_num + 1
            try:
                yield next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                where = f"line {start}" if start >= reader.line_num else f"lines {start} to {reader.line_num}"
                raise UserError(f'{name}, {where}: {error}; quote fields as in "a ""big"" cat"') from None

    content = lines()
    header = next(content, [])
    columns = _choose_columns(header, column, name, " in the first line, which names the columns")
    place = header.index(columns.prompt)
    category_place = header.index(columns.category) if columns.category is not None else None

    def rows() -> Iterator[_Row]:
        for fields in content:
            number = reader.line_num
            if not any(field.strip() for field in fields):  # of spreadsheets, with any number of separators
                yield _Row(number, None)
                continue
            if len(fields) != len(header):
                raise UserError(
                    f"{name}, line {number}: has {len(fields)} fields where the header has {len(header)}; "
                    "put quotes around prompts that hold the separator"
                )
            yield _Row(number, fields[place], fields[category_place] if category_place is not None else None)

    return _Rows(columns, rows())


@contextmanager
def _read_parquet(path: Path, name: str, column: str | None) -> Iterator[_Rows]:
    """Of the file, only the columns that are wanted are read, a batch of rows at a time."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = _choose_columns(file.schema_arrow.names, column, name)
            yield _Rows(columns, _of_batches(file, columns))
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{name} is damaged or no Parquet file ({first_line(error)}); write it again") from None


def _of_batches(file: Any, columns: _Columns) -> Iterator[_Row]:
    number = 0
    for batch in file.iter_batches(columns=[column for column in columns if column is not None]):
        prompts = batch.column(columns.prompt).to_pylist()
        categories = batch.column(columns.category).to_pylist() if columns.category else [None] * len(prompts)
        for prompt, category in zip(prompts, categories, strict=True):
            number += 1
            yield _Row(number, prompt, category)


_Reader = Callable[[Path, str, str | None], Any]
_KINDS: dict[str, tuple[str, _Reader]] = {
    ".txt": ("line", _read_text),
    ".jsonl": ("line", _read_json_lines),
    ".json": ("item", _read_json),
    ".csv": ("row", _read_csv),
    ".tsv": ("row", _read_tsv),
    ".parquet": ("row", _read_parquet),
}
SUFFIXES = tuple(_KINDS)
