from pathlib import Path

import pytest

from renege_ray.errors import UserError
from renege_ray.models.toy import captions
from renege_ray.prompts.sources import (
    SHARES,
    PromptSet,
    Split,
    load_prompts,
    load_splits,
    pair_seed,
    prompt_id,
    source_label,
    split_of,
)

SPLITS: tuple[Split, ...] = ("train", "validation", "held_out")


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
    [b"a cat\na dog", b"a cat\na dog\n", b"a cat\r\na dog\r\n", b"a cat\ra dog\r", b"\xef\xbb\xbfa cat\na dog\n"],
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
        (b"\xff\xfea\x00\x00", "is damaged UTF-16"),
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
        (Path(write(tmp_path / "p.xlsx", b"a,b\n")), "is no file of prompts; give one that ends in .txt"),
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


# Naming a source


def test_a_column_is_named_after_a_colon(tmp_path: Path) -> None:
    data = b"prompt,in words: long\na cat,a cat on a mat\n"
    path = write(tmp_path / "p.csv", data)
    assert load_prompts(path, "train").prompts == ("a cat",)
    assert load_prompts(f"{path}:in words: long", "train").prompts == ("a cat on a mat",)
    with pytest.raises(UserError, match=r"no column 'Prompt'; it has 'prompt', 'in words: long'"):
        load_prompts(f"{path}:Prompt", "train")
    with pytest.raises(UserError, match="text file without columns"):
        load_prompts(write(tmp_path / "p.txt", b"a cat\n") + ":prompt", "train")


def test_a_file_with_a_colon_in_its_name_is_that_file(tmp_path: Path) -> None:
    write(tmp_path / "old.csv", b"prompt\nno\n")
    assert load_prompts(write(tmp_path / "old.csv:new.csv", b"prompt\nyes\n"), "train").prompts == ("yes",)


def test_what_goes_into_stored_metadata_names_no_folder() -> None:
    labels = {"toy": "toy", "parti": "parti", "parti=/some/dir/x.tsv": "parti", "/some/dir/x.csv:caption": "x.csv"}
    assert {source: source_label(source) for source in labels} == labels


# Splits


def numbered(path: Path, first: int, last: int) -> str:
    return write(path, "".join(f"prompt {i}\n" for i in range(first, last)).encode())


def test_a_source_that_one_split_names_is_all_its_own(tmp_path: Path) -> None:
    sources: dict[Split, str] = {
        split: numbered(tmp_path / f"{split}.txt", 100 * i, 100 * i + 50) for i, split in enumerate(SPLITS)
    }
    found = load_splits(sources)
    assert {split: found[split] for split in SPLITS} == {split: load_prompts(sources[split], split) for split in SPLITS}


def test_a_source_that_all_name_is_divided(tmp_path: Path) -> None:
    path = numbered(tmp_path / "p.txt", 0, 4000)
    found = load_splits({split: path for split in SPLITS})
    parts = [found[split].prompts for split in SPLITS]
    assert sorted(sum(parts, ())) == sorted(load_prompts(path, "train").prompts)
    for split in SPLITS:  # 4 standard deviations of a binomial distribution
        share = SHARES[split] / 100
        assert abs(len(found[split].prompts) - 4000 * share) < 4 * (4000 * share * (1 - share)) ** 0.5
        assert "its share of 4000" in found[split].notes()
    assert list(found["train"].prompts) == sorted(found["train"].prompts, key=lambda text: int(text.split()[1]))


def test_the_share_of_a_prompt_does_not_depend_on_the_rest_of_the_file(tmp_path: Path) -> None:
    few, many = numbered(tmp_path / "few.txt", 500, 900), numbered(tmp_path / "many.txt", 0, 1000)
    small, large = (load_splits({split: path for split in SPLITS}) for path in (few, many))
    for split in SPLITS:
        assert set(small[split].prompts) == set(large[split].prompts) & set(load_prompts(few, split).prompts)


def test_two_splits_share_a_source_in_their_proportion() -> None:
    ids = [prompt_id(str(i)) for i in range(2000)]
    evenly = [split_of(name, ("validation", "held_out")) for name in ids]
    assert 800 < evenly.count("validation") < 1200
    # The held-out prompts of a source stay held out when validation leaves it, though some more join them.
    three = {name for name in ids if split_of(name, SPLITS) == "held_out"}
    assert three <= {name for name in ids if split_of(name, ("train", "held_out")) == "held_out"}
    assert {split_of(name, ("train",)) for name in ids} == {"train"}


def test_one_source_in_other_words_is_still_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "".join(f"prompt {i},x\n" for i in range(300))
    path = write(tmp_path / "p.csv", f"text,other\n{rows}".encode())
    monkeypatch.chdir(tmp_path)
    found = load_splits({"train": path, "validation": "p.csv:text", "held_out": f"../{tmp_path.name}/p.csv"})
    assert sum(len(found[split].prompts) for split in SPLITS) == 300


def test_copies_of_a_prompt_go_to_the_same_split(tmp_path: Path) -> None:
    data = "".join(f"prompt {i}\nprompt  {i}\n" for i in range(200)).encode()
    path = write(tmp_path / "p.txt", data)
    found = load_splits({split: path for split in SPLITS})
    ids = {split: {prompt_id(prompt) for prompt in found[split].prompts} for split in SPLITS}
    assert sum(map(len, ids.values())) == 200
    assert sum(found[split].duplicates for split in SPLITS) == 200


def test_what_two_sources_have_in_common_stays_in_the_later_split(tmp_path: Path) -> None:
    found = load_splits(
        {
            "train": numbered(tmp_path / "a.txt", 0, 100),
            "validation": numbered(tmp_path / "b.txt", 90, 120),
            "held_out": write(tmp_path / "c.txt", b"prompt 5\nprompt  110\nanother\n"),
        }
    )
    assert len(found["held_out"].prompts) == 3
    assert len(found["validation"].prompts) == 29 and "prompt 110" not in found["validation"].prompts
    assert len(found["train"].prompts) == 89
    assert "without 11 that are in a later split too" in found["train"].notes()


def test_a_split_without_a_prompt_is_refused(tmp_path: Path) -> None:
    one, other = numbered(tmp_path / "a.txt", 0, 1), numbered(tmp_path / "b.txt", 0, 1)
    with pytest.raises(UserError, match=r"prompts\.\w+: none of the 1 prompts of a.txt falls to it"):
        load_splits({split: one for split in SPLITS})
    with pytest.raises(UserError, match=r"prompts.train: all prompts of a.txt are in a later split too"):
        load_splits({"train": one, "validation": "toy", "held_out": other})


def test_categories_stay_with_their_prompts(tmp_path: Path) -> None:
    rows = "".join(f"prompt {i},kind {i}\n" for i in range(300))
    path = write(tmp_path / "p.csv", f"prompt,style\n{rows}".encode())
    for found in load_splits({split: path for split in SPLITS}).values():
        assert [prompt.replace("prompt", "kind") for prompt in found.prompts] == list(found.categories)


def test_toy_stays_as_it_is() -> None:
    for split, found in load_splits({split: "toy" for split in SPLITS}).items():
        texts = tuple(captions.prompts(split))
        shapes = tuple(captions.parse(text)["shape"] for text in texts)
        assert found == PromptSet(texts, f"toy ({split})", categories=shapes)
