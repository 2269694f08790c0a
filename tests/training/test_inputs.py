"""A run that goes on has to read what it read when it began."""

from pathlib import Path
from typing import Any

import pytest
import torch

from renege_ray.config.run import ModelConfig, RunConfig, parse_config
from renege_ray.errors import UserError
from renege_ray.method.embedding import PROMPT_EMBEDS, EmbeddingMetadata, NegativeEmbedding
from renege_ray.models.load import identify_text_encoder
from renege_ray.training.inputs import INPUTS_FILE, check_inputs, read_inputs, record_inputs


def config(**sections: dict[str, Any]) -> RunConfig:
    return parse_config(sections)


def test_a_changed_prompt_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("a cat\na dog\n")
    run = config(prompts={"train": str(path)})
    record_inputs(read_inputs(run), tmp_path)
    check_inputs(read_inputs(run), tmp_path)
    path.write_text("\na cat\r\n a dog")  # the same prompts
    check_inputs(read_inputs(run), tmp_path)
    for content in ("a dog\na cat\n", "a cat\n", "a cata dog\n", "a cat\na dog\na dog\n"):
        path.write_text(content)
        with pytest.raises(
            UserError, match=r"^prompts.train: the content is not what the run in .* began with"
        ) as raised:
            check_inputs(read_inputs(run), tmp_path)
        assert "\n" not in str(raised.value)


def test_a_changed_initial_embedding_is_refused(tmp_path: Path) -> None:
    encoder = identify_text_encoder(ModelConfig(id="toy"))
    path = tmp_path / "n.safetensors"
    n = torch.randn(encoder.layout.shapes[PROMPT_EMBEDS], generator=torch.Generator().manual_seed(0))
    NegativeEmbedding({PROMPT_EMBEDS: n}, EmbeddingMetadata(encoder.hash)).save(path)
    run = config(optim={"init": str(path)})
    record_inputs(read_inputs(run), tmp_path)
    check_inputs(read_inputs(run), tmp_path)
    NegativeEmbedding({PROMPT_EMBEDS: n + 1e-6}, EmbeddingMetadata(encoder.hash)).save(path)
    with pytest.raises(UserError, match=r"^optim.init: "):
        check_inputs(read_inputs(run), tmp_path)


def test_a_run_without_a_record_or_with_a_damaged_one(tmp_path: Path) -> None:
    inputs = read_inputs(config())
    check_inputs(inputs, tmp_path)
    (tmp_path / INPUTS_FILE).write_text("{")
    with pytest.raises(UserError, match=r"inputs.json is damaged"):
        check_inputs(inputs, tmp_path)


def test_what_is_said_of_the_prompts(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("prompt\na cat\n\na cat\n")
    (note,) = read_inputs(config(prompts={"train": str(path)})).notes
    assert note == (
        "prompts.train: p.csv: 2 prompts, from its column 'prompt', 1 blank prompt skipped, "
        "1 repeated (kept, so drawn more often)"
    )
    assert read_inputs(config()).notes == ()
