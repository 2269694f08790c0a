from pathlib import Path

import pytest

from renege_ray.errors import UserError
from renege_ray.prompts import load_prompts, pair_seed, prompt_id


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("split", ["train", "validation", "held_out"])
def test_the_toy_sets(split: str) -> None:
    found = load_prompts("toy", split)  # type: ignore[arg-type]
    assert len(found.prompts) >= 32
    assert found.duplicates == found.blank_lines_skipped == 0


def test_the_toy_splits_share_no_prompt() -> None:
    train, validation, held_out = (set(load_prompts("toy", s).prompts) for s in ("train", "validation", "held_out"))
    assert not train & validation and not train & held_out and not validation & held_out


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    found = load_prompts(write(tmp_path / "p.txt", b"\na cat\n  \n\ta dog \n\n"), "train")
    assert found.prompts == ("a cat", "a dog")
    assert found.blank_lines_skipped == 3
    assert found.notes() == "p.txt: 2 prompts, 3 blank lines skipped"


@pytest.mark.parametrize(
    "data",
    [
        b"a cat\na dog",
        b"a cat\na dog\n",
        b"a cat\r\na dog\r\n",
        b"a cat\ra dog\r",
        b"\xef\xbb\xbfa cat\na dog\n",
    ],
)
def test_line_ends_and_byte_order_marks(tmp_path: Path, data: bytes) -> None:
    found = load_prompts(write(tmp_path / "p.txt", data), "train")
    assert found.prompts == ("a cat", "a dog")
    assert found.blank_lines_skipped == 0


def test_rare_separators_stay_inside_a_prompt(tmp_path: Path) -> None:
    text = "a cat\u2028asleep\na dog\x0bawake\n"
    assert len(load_prompts(write(tmp_path / "p.txt", text.encode()), "train").prompts) == 2


def test_duplicates_are_kept_and_counted(tmp_path: Path) -> None:
    found = load_prompts(write(tmp_path / "p.txt", b"a cat\na  cat\na dog\na cat\n"), "train")
    assert len(found.prompts) == 4
    assert found.duplicates == 2
    assert "2 repeated" in found.notes()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "has 2 blank lines and no prompt"),
        (b"a cat\na caf\xe9\n", "not UTF-8 in line 2"),
        (b"a cat\r\n\r\nb\r\n\xff", "not UTF-8 in line 4"),
        (b"\xff\xfea\x00", "not UTF-8 in line 1"),
        (b"\xef\xbb\xbf\xff", "not UTF-8 in line 1"),
    ],
)
def test_bad_files(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        load_prompts(write(tmp_path / "p.txt", data), "validation")
    assert str(raised.value).startswith(f"prompts.validation: {tmp_path / 'p.txt'}")
    assert "\n" not in str(raised.value)


def test_missing_file_folder_and_other_formats(tmp_path: Path) -> None:
    for path, message in [
        (tmp_path / "none.txt", "there is no file"),
        (tmp_path, "is a folder"),
        (Path(write(tmp_path / "p.csv", b"a,b\n")), "is not a .txt file"),
        (Path(write(tmp_path / "f.txt", b"x")) / "p.txt", "cannot be read"),
    ]:
        with pytest.raises(UserError, match=message):
            load_prompts(str(path), "train")


def test_prompt_id_knows_neither_spacing_nor_unicode_form() -> None:
    assert prompt_id("a café  at\tnight ") == prompt_id("a cafe\u0301 at night")
    assert prompt_id("a cat") != prompt_id("A cat")
    assert prompt_id("a cat") == "51e4674156077982"  # sha256sum of the text; stored in results, so it stays
    assert len(prompt_id("")) == 16


def test_pair_seeds_differ_by_run_prompt_and_image() -> None:
    one, other = prompt_id("a cat"), prompt_id("a dog")
    seeds = {pair_seed(run, p, k) for run in (0, 1) for p in (one, other) for k in range(50)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**32 for seed in seeds)
