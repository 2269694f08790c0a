"""The command `check` on a table of a tiny model: it passes what is true, and finds what is not."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from renege_ray.config.run import ModelConfig, parse_config, write_config
from renege_ray.embeddings.command import main
from renege_ray.errors import UserError
from renege_ray.method.embedding import EmbeddingMetadata
from renege_ray.models.load import load_model
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.run_rewards import Rewards
from renege_ray.tuning.scores import PromptScores
from renege_ray.tuning.table import PromptToTune, TuningTable, make_row, table_schema
from renege_ray.tuning.tune import PromptTuner, tuning_seeds
from tests.tiny import build_tiny_pipeline

PROMPTS = ["a red fox", "a green hen", "two blue cows"]


def write_run(folder: Path, root: str = "") -> Path:
    """A run of three prompts as the job leaves it, with its table at `root`; returns its only file of rows."""
    build_tiny_pipeline(prediction_type="v_prediction").save_pretrained(folder / "model")
    config = parse_config(
        {
            "model": {"id": str(folder / "model")},
            "sampling": {"num_inference_steps": 4, "guidance_scale": 3.0, "gradient_steps": [0, 3]},
            "rewards": {"train": {"toy": 2.0}, "held_out": []},
            "tuning": {"lr": 0.3, "steps": 2},
        }
    )
    write_config(config, folder)
    model, rewards = load_model(ModelConfig(id=str(folder / "model"))), Rewards.load(config.rewards)
    encoded = EncodedPrompts(model)
    initial = encoded(["ugly"])
    done = list(PromptTuner(config, model, rewards, initial, encoded).tune(PROMPTS))
    scores = PromptScores(config, model, rewards, initial, encoded)
    rows = [
        make_row(PromptToTune(tuned.prompt), tuned, columns, tuning_seeds(config, tuned.prompt), False)
        for tuned, columns in zip(done, scores.score(done), strict=True)
    ]
    header = EmbeddingMetadata(text_encoder_hash=model.text_encoder_hash).to_header()
    table = TuningTable(root or str(folder / "prompts-0"))
    return Path(table.write(rows, table_schema(scores.names, model.embedding_layout, header)))


@pytest.mark.slow
def test_recorded_rewards_are_met_or_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_run(tmp_path)
    assert main(["check", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 + 2 * len(PROMPTS) and printed[-1].endswith("recorded rewards are met to 0.001")

    rows = pq.read_table(file)
    place = rows.schema.get_field_index("reward_prompt_eval")
    wrong = [value + 0.01 * (row == 1) for row, value in enumerate(rows["reward_prompt_eval"].to_pylist())]
    pq.write_table(rows.set_column(place, rows.schema.field(place), [wrong]), file)
    assert main(["check", str(tmp_path), "--rows", "3"]) == 1
    assert "largest difference 1.0e-02; recorded rewards are NOT met" in capsys.readouterr().out


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no tuned prompts; name the output folder"):
        main(["check", str(tmp_path)])
    with pytest.raises(UserError, match="--rows: 0"):
        main(["check", str(tmp_path), "--rows", "0"])
