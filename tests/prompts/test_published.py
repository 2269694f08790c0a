"""Published prompt sets: the real files where they are at hand, made ones for all that does not hang on them."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest

from renege_ray.errors import UserError
from renege_ray.prompts import published as builtin_prompts
from renege_ray.prompts.published import SETS, PublishedSet, RemoteFile, read_builtin
from renege_ray.prompts.sources import load_prompts, load_splits
from tests.shared_data import shared_file

STYLES = ("anime", "concept-art", "paintings", "photo")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONTENT = b"Prompt\tCategory\na cat\tAnimals\na car\tVehicles\n"
MADE = RemoteFile(
    "GitHub", "somebody/prompts", COMMIT, "data/Made.tsv", hashlib.sha256(CONTENT).hexdigest(), 2, "Prompt"
)


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine's caches, and no connection."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> PublishedSet:
    """A published set by the name of `parti`."""
    published = PublishedSet((MADE,))
    monkeypatch.setitem(SETS, "parti", published)
    return published


# The real files


def test_the_real_imagereward_prompts() -> None:
    found = load_prompts(f"imagereward-10k={shared_file('prompts/refl_data.json')}", "train")
    assert len(found.prompts) == 10_000
    # 9,803 texts; by id, which knows no white space, five fewer.
    raw = json.loads(shared_file("prompts/refl_data.json").read_text(encoding="utf-8"))
    assert len({row["text"] for row in raw}) == 9_803
    assert found.duplicates == 10_000 - len({" ".join(row["text"].split()) for row in raw})
    assert found.prompts == tuple(row["text"].strip() for row in raw)


def test_the_real_parti_prompts() -> None:
    found = load_prompts(f"parti={shared_file('prompts')}", "held_out")
    assert len(found.prompts) == len(found.categories) == 1_632
    counts = Counter(found.categories)
    assert len(counts) == 12 and counts["Animals"] == 314 and counts["Abstract"] == 51
    lines = shared_file("prompts/PartiPrompts.tsv").read_text(encoding="utf-8").split("\n")[1:-1]
    assert found.prompts == tuple(line.split("\t")[0].strip() for line in lines)


def test_the_real_sets_divided() -> None:
    path = shared_file("prompts/refl_data.json")
    found = load_splits(
        {
            "train": f"imagereward-10k={path}",
            "validation": f"imagereward-10k={path}",
            "held_out": f"parti={shared_file('prompts/PartiPrompts.tsv')}",
        }
    )
    texts = {split: {" ".join(prompt.split()) for prompt in prompts.prompts} for split, prompts in found.items()}
    assert not texts["train"] & texts["validation"] and not (texts["train"] | texts["validation"]) & texts["held_out"]
    assert len(found["held_out"].prompts) == 1_632
    assert 8_500 < len(found["train"].prompts) < 9_200


def test_a_real_list_of_prompts() -> None:
    found = load_prompts(str(shared_file("prompts/hps_v2_train_subset.txt")), "train")
    assert len(found.prompts) == 750 and found.blank_lines_skipped == 2


# Local copies


def hpsv2_folder(folder: Path, count: int = 800) -> Path:
    folder.mkdir()
    for style in STYLES:
        texts = [f"{style} number {i}" for i in range(count)]
        (folder / f"{style}.json").write_text(json.dumps(texts), encoding="utf-8")
    return folder


def test_hpsv2_from_a_folder_with_its_styles(tmp_path: Path) -> None:
    found = load_prompts(f"hpsv2={hpsv2_folder(tmp_path / 'hps')}", "held_out")
    assert len(found.prompts) == 3_200
    assert Counter(found.categories) == {style: 800 for style in STYLES}
    assert all(prompt.startswith(style) for prompt, style in zip(found.prompts, found.categories, strict=True))
    assert "anime.json has another SHA-256 than is known of it" in found.notes()


def test_hpsv2_from_what_is_not_its_folder(tmp_path: Path) -> None:
    folder = hpsv2_folder(tmp_path / "hps", count=799)
    with pytest.raises(UserError, match=r"anime.json has 799 prompts, but anime.json of hpsv2 has 800"):
        load_prompts(f"hpsv2={folder}", "held_out")
    with pytest.raises(UserError, match=r"is no folder; give the folder that holds anime.json, concept-art.json"):
        load_prompts(f"hpsv2={folder / 'anime.json'}", "held_out")
    (folder / "photo.json").unlink()
    with pytest.raises(UserError, match=r"prompts.held_out: .*799|there is no file .*photo.json"):
        load_prompts(f"hpsv2={folder}", "held_out")


def test_a_local_copy_is_checked(made: PublishedSet, tmp_path: Path) -> None:
    path = tmp_path / "Made.tsv"
    path.write_bytes(CONTENT)
    for local in (path, tmp_path):
        table, remarks = read_builtin("parti", "f", local)
        assert table.prompts == ("a cat", "a car") and table.categories == ("Animals", "Vehicles") and not remarks
    path.write_bytes(CONTENT.replace(b"cat", b"dog"))
    with pytest.raises(UserError, match=r"is not the Made.tsv of parti \(its SHA-256 is \w{64}, not \w{64}\)"):
        read_builtin("parti", "f", path)
    path.write_bytes(CONTENT + b"a tree\tPlants\n")
    with pytest.raises(UserError, match=r"has 3 prompts, but Made.tsv of parti has 2"):
        read_builtin("parti", "f", path)
    with pytest.raises(UserError, match="there is no file"):
        read_builtin("parti", "f", tmp_path / "none.tsv")


# Downloads


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "hpsv2",
            r"benchmark/anime.json, .*photo.json of zhwang/HPDv2 \(data set of the Hugging Face Hub\).*hpsv2=FOLDER",
        ),
        ("parti", r"PartiPrompts.tsv of google-research/parti \(repository on GitHub\).*parti=FILE"),
        ("imagereward-10k", r"data/refl_data.json of THUDM/ImageReward .*imagereward-10k=FILE"),
    ],
)
def test_without_a_connection_one_line_says_what_to_do(name: str, expected: str) -> None:
    with pytest.raises(UserError, match=rf"^prompts.held_out: {name} needs {expected}$") as raised:
        load_prompts(name, "held_out")
    assert "\n" not in str(raised.value)


def test_from_the_cache_of_the_hub(tmp_path: Path) -> None:
    """The files in the layout that huggingface_hub documents for its cache."""
    snapshot = tmp_path / "hub" / "datasets--zhwang--HPDv2" / "snapshots" / SETS["hpsv2"].files[0].revision
    snapshot.mkdir(parents=True)
    hpsv2_folder(snapshot / "benchmark")
    assert len(load_prompts("hpsv2", "held_out").prompts) == 3_200


def test_a_download_is_checked_and_kept(made: PublishedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(builtin_prompts, "GITHUB", (tmp_path / "web").as_uri())
    there = tmp_path / "web" / MADE.repository / COMMIT / MADE.path
    there.parent.mkdir(parents=True)
    there.write_bytes(b"<html>log in first</html>")
    with pytest.raises(UserError, match="gave something else"):
        read_builtin("parti", "f")
    there.write_bytes(CONTENT)
    assert read_builtin("parti", "f")[0].prompts == ("a cat", "a car")
    there.unlink()
    assert read_builtin("parti", "f")[0].prompts == ("a cat", "a car")


def test_a_set_of_the_hub_that_is_checked_strictly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETS, "hpsv2", replace(SETS["hpsv2"], exact=True))
    with pytest.raises(UserError, match=r"is not the anime.json of hpsv2"):
        load_prompts(f"hpsv2={hpsv2_folder(tmp_path / 'hps')}", "held_out")
