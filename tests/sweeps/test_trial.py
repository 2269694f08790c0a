"""What a trial is spared, and that its configuration stays a valid one."""

import pytest

from renege_ray.config.run import RunConfig, load_preset, parse_config, to_mapping, with_values
from renege_ray.sweeps.trial import thrifty


@pytest.fixture(scope="module")
def base() -> RunConfig:
    return with_values(load_preset("toy"), {"prompts.handwritten": ["blurry", "dull"], "validation.every": 7})


def test_checkpoints_come_with_validations_and_one_candidate_stands_for_all(base: RunConfig) -> None:
    config = thrifty(with_values(base, {"optim.lr": 0.1}), base, ["eval/global/reward/mean"])
    assert (config.checkpoint.every, config.prompts.handwritten) == (7, ("blurry",))
    assert parse_config(to_mapping(config)) == config


@pytest.mark.parametrize(
    ("changes", "objective"),
    [
        ({"prompts.handwritten": ["dull", "grey"]}, "eval/global/reward/mean"),
        ({"optim.init": "handwritten"}, "eval/global/reward/mean"),
        ({}, "eval/global/win_rate_vs_handwritten/reward"),
    ],
)
def test_candidates_that_matter_stay(base: RunConfig, changes: dict[str, object], objective: str) -> None:
    config = with_values(base, changes)
    assert thrifty(config, base, [objective]).prompts.handwritten == config.prompts.handwritten
