"""Prompts out of files of every kind, written here by other means than those that read them."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from renege_ray.errors import UserError
from renege_ray.prompts.files import PromptTable, read_prompt_file
from renege_ray.prompts.sources import load_prompts

STRANGE = (
    'a "big" red star',
    "two\nlines, and a comma",
    "tab\there",
    "emoji 👩‍🚀 and e\u0301",
    "control \x07 and \x00 and \u2028 kept",
    "a \\ backslash, 'quotes' and {braces}",
    "Ähren, 日本語, ‏עברית",
)


def write_table(path: Path, prompts: Sequence[str | None], column: str = "prompt", **others: Sequence[Any]) -> Path:
    """A file of the kind that the suffix says, by pandas or json."""
    frame = pd.DataFrame({column: list(prompts), **others})
    rows = json.loads(frame.to_json(orient="records"))
    if path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="," if path.suffix == ".csv" else "\t", quoting=csv.QUOTE_ALL)
    return path


TABLES = [".csv", ".tsv", ".json", ".jsonl", ".parquet"]


@pytest.mark.parametrize("suffix", [*TABLES, ".CSV", ".Parquet"])
def test_strange_prompts_survive(suffix: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / f"p{suffix.lower()}", STRANGE).rename(tmp_path / f"q{suffix}")
    assert read_prompt_file(path, "f") == PromptTable(STRANGE, (), 0, "prompt", read_prompt_file(path, "f").unit)


@pytest.mark.parametrize("suffix", TABLES)
def test_columns_and_categories(suffix: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / f"p{suffix}", ["a cat", "a dog"], "Text", id=[1, 2], Style=["anime", "photo"])
    assert read_prompt_file(path, "f").column == "Text"
    assert read_prompt_file(path, "f").categories == ("anime", "photo")
    named = read_prompt_file(path, "f", "Style")
    assert named.prompts == ("anime", "photo") and named.categories == ()


@pytest.mark.parametrize("suffix", TABLES)
def test_blank_prompts_are_skipped_and_counted(suffix: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / f"p{suffix}", ["a cat", "", " \n ", None, " a dog "], style=list("abcde"))
    found = read_prompt_file(path, "f")
    assert found.prompts == ("a cat", "a dog") and found.blank == 3
    assert found.categories == ("a", "e")


@pytest.mark.parametrize("suffix", TABLES)
def test_columns_that_are_not_there(suffix: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / f"p{suffix}", ["a cat"], "words", number=[1])
    with pytest.raises(UserError, match=r"which column .* FILE:COLUMN; there are 'words', 'number'"):
        read_prompt_file(path, "f")
    with pytest.raises(UserError, match=r"no column 'prompt'; it has 'words', 'number'"):
        read_prompt_file(path, "f", "prompt")
    assert read_prompt_file(path, "f", "words").prompts == ("a cat",)


@pytest.mark.parametrize("suffix", TABLES)
def test_a_table_without_a_prompt(suffix: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / f"p{suffix}", ["", " "])
    with pytest.raises(UserError, match=r"has 2 blank .* and no prompt"):
        read_prompt_file(path, "f")


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["id", "Prompt", "text"], "Prompt"),
        (["caption", "text"], "text"),
        (["PROMPT", "prompt"], "PROMPT"),
        (["image", " caption "], " caption "),
    ],
)
def test_which_column_is_guessed(names: list[str], chosen: str, tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text(",".join(names) + "\n" + ",".join(f"in {name}" for name in names) + "\n")
    assert read_prompt_file(path, "f").column == chosen
    assert read_prompt_file(path, "f").prompts == (f"in {chosen}".strip(),)


def test_lists_of_texts(tmp_path: Path) -> None:
    whole, lines = tmp_path / "p.json", tmp_path / "p.jsonl"
    whole.write_text(json.dumps([None, *STRANGE, " "]), encoding="utf-8-sig")
    lines.write_text("\n" + "\r\n".join(json.dumps(text) for text in STRANGE) + "\n \n", encoding="utf-8")
    for path in (whole, lines):
        found = read_prompt_file(path, "f")
        assert found.prompts == STRANGE and found.blank == 2 and found.column is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.json", b'{"prompts": ["a"]}', "holds an object, not a list"),
        ("p.json", b'"a cat"', "holds a text, not a list"),
        ("p.json", b'["a",\n"b"', "not valid JSON in line 2"),
        ("p.json", b'["a", 3]', r"item 2: 3 is no text"),
        ("p.json", b'["a", {"prompt": "b"}]', "item 2: .*is no text"),
        ("p.json", b'[{"prompt": "a"}, "b"]', "item 2: want an object with 'prompt', this is a text"),
        ("p.json", b'[{"prompt": "a"}, {"Prompt": "b"}]', "item 2: .* an object without it"),
        ("p.json", b'[{"prompt": ["a", "b"]}]', "item 1: .* is no text"),
        ("p.json", b"[" * 100_000, "cannot be taken as JSON|not valid JSON"),
        ("p.json", b"[" + b"1" * 5000 + b"]", "cannot be taken as JSON"),
        ("p.json", b'["half \\ud83d"]', "item 1: holds half a character"),
        ("p.json", b"[]", "has 0 blank items and no prompt"),
        ("p.json", b'["a", "caf\xe9"]', "not UTF-8 in line 1"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": 7}\n', "line 2: 7 is no text"),
        ("p.jsonl", b'{"prompt": "a"}\n\n{"prompt"}\n', "not valid JSON in line 3"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": true}\n', "line 2: True is no text"),
        ("p.csv", b"prompt,id\na cat, sitting,1\n", "line 2: has 3 fields where the header has 2"),
        ("p.csv", b"prompt,id\na cat,1\na dog\n", "line 3: has 1 fields where the header has 2"),
        ("p.csv", b'prompt\n"a" cat\n', "line 2: .*expected after"),
        ("p.csv", b'prompt\n"a\ncat\n', "lines 2 to 3: unexpected end"),
        ("p.csv", b'prompt;id\na;1\n"b;2\nc;3\n' + b"d;4\n" * 50_000, "lines 3 to 50004: unexpected end"),
        ("p.csv", b"words;number\na cat;1\n", "which column .* there are 'words', 'number'"),
        (
            "p.csv",
            b"a cat, on a mat\na dog\n",
            "there are 'a cat', ' on a mat' in the first line, which names the columns",
        ),
        ("p.jsonl", b'[\n "a",\n "b"\n]\n', "line 1: .* a list over several lines is called .json"),
        ("p.csv", b"prompt;id\na; cat;1\n", "line 2: has 3 fields where the header has 2"),
        ("p.csv", "prompt,id\na,1\n".encode("utf-16-le"), "UTF-16 without its mark; save it as UTF-8"),
        ("p.txt", "a cat\n".encode("utf-32"), "is UTF-32, or UTF-16 without"),
        ("p.txt", "a cat\n".encode("utf-16")[:-1], "is damaged UTF-16; save it as UTF-8"),
        ("p.json", b'{"prompt": "a"}\n{"prompt": "b"}\n', "line 2: Extra data; .* is called .jsonl"),
        ("p.csv", b"prompt\na cat\n\xff\n", "not UTF-8 in line 3"),
        ("p.csv", b"\n", "there are none"),
        ("p.csv", b"prompt\n", "has 0 blank rows and no prompt"),
        ("p.parquet", b"PAR1 is not enough", "no Parquet file"),
        ("p.jsonl", b"", "is empty; write one prompt per line"),
        ("p.md", b"a cat", "is no file of prompts"),
    ],
)
def test_bad_files(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        read_prompt_file(path, "prompts.train")
    assert str(raised.value).startswith(f"prompts.train: {path}")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


def test_parquet_columns_that_are_no_texts(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": pa.array([b"\xff"], pa.binary())}), path)
    with pytest.raises(UserError, match=r"row 1: .* is no text"):
        read_prompt_file(path, "f")
    pq.write_table(pa.table({"prompt": pa.array(["a", None, "b"]).dictionary_encode()}), path)
    assert read_prompt_file(path, "f").prompts == ("a", "b")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="no Parquet file"):
        read_prompt_file(path, "f")


def test_parquet_of_several_row_groups_reads_the_wanted_column_alone(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    prompts = [f"prompt {i}" for i in range(1000)]
    table = pa.table({"image": [bytes(200)] * 1000, "caption": prompts, "category": ["x", "y"] * 500})
    pq.write_table(table, path, row_group_size=64)
    found = read_prompt_file(path, "f")
    assert list(found.prompts) == prompts and found.categories == ("x", "y") * 500


def test_a_tab_separated_file_without_quoting_keeps_its_quotation_marks(tmp_path: Path) -> None:
    path = tmp_path / "p.tsv"
    path.write_text(
        '\ufeffPrompt\tCategory\n"G I G G L E" painted on a wall\tWords\n"quoted"\tWords\n', encoding="utf-8"
    )
    found = read_prompt_file(path, "f")
    assert found.prompts == ('"G I G G L E" painted on a wall', '"quoted"')
    assert found.categories == ("Words", "Words")


@pytest.mark.parametrize("write", [lambda p: p.write_bytes(b"prompt\r\na\r\n\"b\r\nc\"\r\n"),
                                   lambda p: p.write_bytes(b"prompt\ra\r\"b\r\nc\"\r")])  # fmt: skip
def test_line_ends_of_csv(write: Callable[[Path], int], tmp_path: Path) -> None:
    write(tmp_path / "p.csv")
    assert read_prompt_file(tmp_path / "p.csv", "f").prompts == ("a", "b\r\nc")


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_fields_of_any_length(suffix: str, tmp_path: Path) -> None:
    """Of the prompts, and of columns that nobody asked for; the process's own limit is as before."""
    limit = csv.field_size_limit()
    long = "x y" * 100_000
    path = write_table(tmp_path / f"p{suffix}", ["a cat", long, "a dog"], embedding=["1", "2", "[0.1,]" * 50_000])
    assert read_prompt_file(path, "f").prompts == ("a cat", long, "a dog")
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("delimiter", [";", "\t", "|", ","])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_tables_with_another_separator(suffix: str, delimiter: str, end: str, tmp_path: Path) -> None:
    path = tmp_path / f"p{suffix}"
    rows = [["id", "prompt", "style"], ["1", 'a "big" cat; a dog, a hen | a\tcow', "photo"], ["2", "a dog", "anime"]]
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=delimiter, lineterminator=end).writerows(rows)
    found = read_prompt_file(path, "f")
    assert found.prompts == (rows[1][1], "a dog") and found.categories == ("photo", "anime")
    assert read_prompt_file(path, "f", "style").prompts == ("photo", "anime")


@pytest.mark.parametrize(
    ("header", "row", "column", "expected"),
    [
        ("prompt", "a cat; a dog", None, "a cat; a dog"),  # one column: nothing speaks for another separator
        ("prompt;style", "a cat, a dog;x", None, "a cat, a dog"),
        ("words;of, all", "a cat, a dog;x", "words", "a cat, a dog"),
        ("a;b,prompt", "x;y,a cat", None, "a cat"),
        ("id; words ", "1;a cat", "words", "a cat"),
        ("sep=;\nid;prompt", "1;a cat", None, "a cat"),
        ("sep=|\nid|prompt", "1|a cat\n||\n|\n\n", None, "a cat"),
    ],
)
def test_which_separator_is_meant(header: str, row: str, column: str | None, expected: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(f"{header}\n{row}\n")
    assert read_prompt_file(tmp_path / "p.csv", "f", column).prompts == (expected,)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "ein Stern, 红色\nzwei"),
        ("p.csv", 'prompt;x\n"ein Stern, 红色";1\nzwei;2'),
        ("p.tsv", "prompt\tx\nein Stern, 红色\t1\nzwei\t2"),
        ("p.json", '["ein Stern, 红色", "zwei"]'),
        ("p.jsonl", '{"prompt": "ein Stern, 红色"}\n{"prompt": "zwei"}'),
    ],
)
def test_encodings_that_say_what_they_are(name: str, content: str, encoding: str, tmp_path: Path) -> None:
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / name).write_bytes(content.replace("\n", end).encode(encoding))
        assert read_prompt_file(tmp_path / name, "f").prompts == ("ein Stern, 红色", "zwei")


def test_lines_that_start_with_a_hash_are_prompts_and_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("# my prompts\na cat\n  #sunset over a lake\n")
    found = read_prompt_file(path, "f")
    assert found.prompts == ("# my prompts", "a cat", "#sunset over a lake") and found.hashes == 2
    assert "p.txt: 3 prompts, 2 that start with # (prompts too" in load_prompts(str(path), "train").notes()
    write_table(tmp_path / "p.csv", ["# a cat"])
    assert "#" not in load_prompts(str(tmp_path / "p.csv"), "train").notes()


def test_only_the_prompts_of_a_large_file_are_kept(tmp_path: Path) -> None:
    """A table of 40 MB, most of it in a column that nobody asked for."""
    import tracemalloc

    path = tmp_path / "p.csv"
    with path.open("w") as file:
        file.write("prompt,other\n")
        for i in range(4000):
            file.write(f"prompt {i},{'x' * 10_000}\n")
    tracemalloc.start()
    found = read_prompt_file(path, "f")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.prompts) == 4000
    assert peak < 4e6
