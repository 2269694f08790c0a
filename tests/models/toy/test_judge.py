"""The judge on real renders, whose truth is known."""

import random

import pytest
import torch

from renege_ray.models.toy.judge import Judge, agreement
from renege_ray.models.toy.scenes import DEFECTS, Picture, draw, random_defects, random_offset, scenes_of

pytestmark = pytest.mark.slow  # a judge draws all that there is before its first verdict


@pytest.fixture(scope="module")
def judge():
    return Judge()


def test_judge_names_real_renders_right(judge):
    """>= 97 % for each attribute and each defect, with pixel noise of 0.03."""
    rng = random.Random(3)
    pictures = [Picture(rng.choice(scenes_of("held_out")), random_offset(rng), random_defects(rng)) for _ in range(400)]
    images = draw(pictures)
    images = (images + 0.03 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    found = judge.judge(images)
    for part in ("shape", "colour", "background", "size"):
        right = [getattr(a.scene, part) == getattr(b.scene, part) for a, b in zip(pictures, found, strict=True)]
        assert sum(right) / len(right) >= 0.97, part
    for defect in DEFECTS:
        right = [(defect in a.defects) == (defect in b.defects) for a, b in zip(pictures, found, strict=True)]
        assert sum(right) / len(right) >= 0.97, defect


def test_the_nearest_is_the_picture_itself_when_that_is_what_is_shown(judge):
    picture = Picture(scenes_of("train")[7], (-2, 1), frozenset({"stripes"}))
    assert judge.judge(draw([picture])) == [picture]


def test_agreement_leaves_open_what_a_prompt_leaves_open(judge):
    scene = scenes_of("train")[0]
    found = judge.judge(draw([Picture(scene)]).repeat(2, 1, 1, 1))
    scores = agreement(found, [{"shape": scene.shape, "colour": "purple"}, {}])
    assert scores["judge_clean"].tolist() == [1, 1]
    assert scores["judge_shape"][0] == 1 and scores["judge_colour"][0] == 0
    assert scores["judge_shape"][1].isnan() and scores["judge_size"].isnan().all()
