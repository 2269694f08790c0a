"""Embeddings looked up in tables whose files are merged, before and meanwhile."""

from pathlib import Path

import pytest
import torch

from renege_ray.embeddings.prompt_embeddings import PromptEmbeddings
from renege_ray.embeddings.prompt_index import PromptIndex
from renege_ray.errors import UserError
from renege_ray.output import merged_files
from renege_ray.output.merged_files import Merger
from renege_ray.prompts.sources import prompt_id
from renege_ray.tuning.table import TuningTable
from tests.tuned_rows import embedding, prompt, write_table

GOOD = [number for number in range(20) if number % 5 != 4]


def check(embeddings: PromptEmbeddings) -> None:
    assert len(embeddings) == len(GOOD) and sorted(embeddings.prompts.values()) == sorted(map(prompt, GOOD))
    for number in GOOD:
        assert torch.equal(embeddings[prompt(number)].float(), embedding(number))
        assert torch.equal(embeddings[prompt_id(prompt(number))], embeddings[prompt(number)])
    (row,) = embeddings.rows([prompt(7)], ["prompt", "tune_seeds"])
    assert row == {"prompt": prompt(7), "tune_seeds": [7, 1]}
    assert prompt(4) not in embeddings and "0" * 16 not in embeddings and "word " * 10_000 not in embeddings
    with pytest.raises(KeyError):
        embeddings[prompt(4)]


@pytest.mark.parametrize("group_bytes", [1, 2**20])
def test_a_merged_table_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_bytes: int) -> None:
    """Of small files alone, of both kinds, and merged; in row groups of one small file each, and in one of all."""
    monkeypatch.setattr(merged_files, "ROW_GROUP_BYTES", group_bytes)
    monkeypatch.setattr(merged_files, "FEWEST_ROWS", 12)
    table = write_table(tmp_path, files=5, rows=4)
    with PromptEmbeddings.open(tmp_path) as embeddings:
        check(embeddings)
        state = embeddings.state()
    for all_rows, files in ((False, 3), (True, 2)):
        list(Merger(table).merge(all_rows=all_rows))
        assert len(table.files()) == files
        with PromptEmbeddings.open(tmp_path) as embeddings:
            check(embeddings)
            assert embeddings.state() == state, "evaluations that know the table find it unchanged"
    write_table(tmp_path, files=1, rows=1, first=20)
    with PromptEmbeddings.open(tmp_path) as embeddings:
        assert embeddings.state() != state


def test_a_table_may_be_merged_after_it_was_opened(tmp_path: Path) -> None:
    table = write_table(tmp_path, files=5, rows=4)
    with PromptEmbeddings.open(tmp_path) as embeddings:
        embeddings[prompt(0)]
        list(Merger(table).merge(all_rows=True))
        check(embeddings)


def test_a_table_that_was_deleted_is_no_endless_search(tmp_path: Path) -> None:
    table = write_table(tmp_path, files=2, rows=4)
    with PromptEmbeddings.open(tmp_path) as embeddings:
        for path in table.files():
            Path(path).unlink()
        with pytest.raises(KeyError):
            embeddings[prompt(0)]


def test_the_nearest_prompt_is_the_one_that_shares_most_words(tmp_path: Path) -> None:
    """As the share of the words of both that are in both, counted one prompt after the other."""
    write_table(tmp_path, files=5, rows=4)
    index = PromptIndex(TuningTable(str(tmp_path)))
    for text in ("a fox", "Number 7 of FOX_12!", "18", "a fox of number 3 and 17"):
        words = set(text.casefold().replace("_", " ").replace("!", "").split())
        shares = {other: len(words & set(other.split())) / len(words | set(other.split())) for other in index.values()}
        best = max(shares, key=lambda other: shares[other])
        assert index.nearest(text) == (best, pytest.approx(shares[best]))
    assert index.nearest("xyzzy") is None


def test_an_index_is_small(tmp_path: Path) -> None:
    """Fewer bytes a prompt than its text, its id and its place would take as Python's objects (about 350)."""
    write_table(tmp_path, files=4, rows=500)
    index = PromptIndex(TuningTable(str(tmp_path)))
    arrays = (index._ids, index._order, index._sorted, index._files, index._rows)
    assert sum(array.nbytes for array in arrays) + index._prompts.nbytes < 100 * len(index)


def test_foreign_ids_are_refused(tmp_path: Path) -> None:
    import pandas as pd

    pd.DataFrame({"prompt_id": ["x"], "prompt": ["a fox"], "status": ["ok"]}).to_parquet(tmp_path / "part-1.parquet")
    with pytest.raises(UserError, match="damaged or foreign"):
        PromptEmbeddings.open(tmp_path)
