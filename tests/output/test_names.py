"""Names made of texts: readable in any script, one for each text, on any file system."""

import unicodedata
from itertools import combinations
from pathlib import Path

import pytest

from renege_ray.output.names import LONGEST, alike, file_names, is_unicode, readable, with_hash


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red fox", "a-red-fox"),
        ("红色的星星", "红色的星星"),
        ("красная звезда!", "красная-звезда"),
        ("نجمة حمراء", "نجمة-حمراء"),
        ("लाल तारा", "लाल-तारा"),
        ("ดาวสีแดง", "ดาวสีแดง"),
        ("cafe\N{COMBINING ACUTE ACCENT}", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"),
        ("sd-v1.5, lr_3e-3", "sd-v1.5-lr_3e-3"),
        ("A cat. A dog...", "A-cat-A-dog"),
        ("../../etc/passwd", "etc-passwd"),
        (".hidden", "hidden"),
        ("C:\\nul\0\x1b[2J\n", "C-nul-2J"),
        ("a\N{RIGHT-TO-LEFT OVERRIDE}gnp.\N{ZERO WIDTH SPACE}b", "agnp.b"),
        ("\N{HEAVY BLACK HEART}\N{VARIATION SELECTOR-16} love", "love"),
        ("con", "_con"),
        ("?!…", ""),
        ("🦊", ""),
        ("\udcff", ""),
    ],
)
def test_what_can_be_read_stays(text: str, expected: str) -> None:
    assert readable(text) == expected


@pytest.mark.parametrize(
    "texts",
    [
        ["红色的星星", "蓝色的圆"],
        ["🦊", "🐱", "?", "text", "", " "],
        ["a red fox", "a-red fox", "A Red Fox", "a  red fox ", "a_red fox"],
        ["x" * 60 + "1", "x" * 60 + "2", "x" * 300],
        ["星" * 100 + "a", "星" * 100 + "b"],
        ["é", "e\N{COMBINING ACUTE ACCENT}", "E\N{COMBINING ACUTE ACCENT}"],
        ["straße", "strasse", "STRASSE"],
        ["ﬁne", "fine", "１", "1"],
        ["क्ष", "क्\N{ZERO WIDTH JOINER}ष"],
        ["con", "CON", "nul.txt", "aux", "com1"],
        ["a" + mark for mark in ".,;:!?/\\\"'|*<>\0\n\t"],
        ["fox", "fox\udcff", "fox\udcfe"],
    ],
    ids=lambda texts: ascii(texts[0])[:20],
)
def test_no_two_texts_have_one_name_anywhere(texts: list[str], tmp_path: Path) -> None:
    names = file_names([*texts, *texts])
    assert list(names) == texts and names == dict(zip(texts, map(file_names(reversed(texts)).get, texts), strict=True))
    assert all(alike(first) != alike(second) for first, second in combinations(names.values(), 2))
    for name in names.values():
        assert 0 < len(name.encode()) <= LONGEST and name == unicodedata.normalize("NFC", name)
        assert (
            name[0] not in ".-" and name[-1] != "." and name.casefold().partition(".")[0] not in {"con", "nul", "aux"}
        )
        (tmp_path / f"{name}.png").touch(exist_ok=False)


def test_a_name_that_looks_like_another_ones_with_its_hash() -> None:
    trap = with_hash("fox", "fox", LONGEST)
    names = file_names(["fox", "FOX", trap])
    assert len(set(map(alike, names.values()))) == 3


def test_texts_that_cannot_be_written_are_known() -> None:
    assert is_unicode("红🦊") and not is_unicode("a\udcff") and not is_unicode("\ud83e")
