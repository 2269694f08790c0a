"""The toy world: splits that do not meet, pictures that show what they should, captions that mean their scenes."""

import random

import pytest
import torch

from renege_ray.models.toy import captions
from renege_ray.models.toy.scenes import (
    BACKGROUNDS,
    COLOURS,
    DEFECTS,
    NAMED_DEFECTS,
    SHAPES,
    SIZES,
    UNNAMED_DEFECTS,
    Picture,
    Scene,
    all_scenes,
    draw,
    possible_defects,
    random_defects,
    scenes_of,
)


def test_splits_cover_all_scenes_and_never_meet():
    splits = [set(scenes_of(split)) for split in ("train", "validation", "held_out")]
    assert sum(map(len, splits)) == len(set().union(*splits)) == len(all_scenes()) == 288
    assert len(splits[2]) == 2 * 20 and len(splits[1]) == 2 * 10


def test_each_shape_colour_pair_is_trained_on_with_three_backgrounds_at_least():
    pairs: dict[tuple[str, str], set[str]] = {}
    for scene in scenes_of("train"):
        pairs.setdefault((scene.shape, scene.colour), set()).add(scene.background)
    assert len(pairs) == 36 and min(map(len, pairs.values())) >= 3


def test_pictures_have_their_colours_where_the_shape_is_and_is_not():
    for scene in all_scenes():
        if scene.shape == "ring":
            continue  # its middle is background
        (image,) = draw([Picture(scene)])
        assert torch.allclose(image[:, 16, 16], torch.tensor(COLOURS[scene.colour]), atol=1e-6), scene
        assert torch.allclose(image[:, 0, 0], torch.tensor(BACKGROUNDS[scene.background]), atol=1e-6), scene


@pytest.mark.parametrize(("shape", "area"), [("circle", torch.pi * 11.5**2), ("square", (2 * 0.84 * 11.5) ** 2)])
def test_antialiased_area_is_the_area_of_the_shape(shape, area):
    """Blue and red differ by the background's share alone, so coverage can be had back from the picture."""
    (image,) = draw([Picture(Scene(shape, "red", "navy", "big"))])
    red, navy = COLOURS["red"][0], BACKGROUNDS["navy"][0]
    assert ((image[0] - navy) / (red - navy)).sum().item() == pytest.approx(area, rel=0.02)


def test_every_defect_changes_every_scene_visibly_and_values_stay_in_range():
    for scene in all_scenes():
        clean, *spoiled = draw([Picture(scene), *(Picture(scene, defects=frozenset([d])) for d in DEFECTS)])
        for name, image in zip(DEFECTS, spoiled, strict=True):
            assert (image - clean).square().mean().sqrt() > 0.03, (scene, name)
            assert image.min() >= 0 and image.max() <= 1


def test_drawing_does_not_depend_on_the_rest_of_the_batch():
    rng = random.Random(0)
    pictures = [Picture(rng.choice(all_scenes()), (1, -2), random_defects(rng)) for _ in range(40)]
    together = draw(pictures)
    assert all(torch.equal(together[i], draw([picture])[0]) for i, picture in enumerate(pictures))


def test_defects_are_drawn_as_often_as_said():
    rng = random.Random(0)
    counts = [len(random_defects(rng)) for _ in range(4000)]
    for count, probability in enumerate((0.15, 0.45, 0.28, 0.12)):
        assert counts.count(count) / 4000 == pytest.approx(probability, abs=0.03)
    assert all(not {"dark", "washed out"} <= defects for defects in possible_defects())


def test_every_plain_prompt_is_parsed_back_to_a_scene_of_its_split():
    for split in ("train", "validation", "held_out"):
        texts = captions.prompts(split)
        assert len(texts) == len(set(texts)) and texts == captions.prompts(split)
        scenes = set(scenes_of(split))
        assert all(Scene(**captions.parse(text)) in scenes for text in texts)
    assert len(captions.prompts("held_out")) >= 500


def web_captions(defects: tuple[str, ...], count: int = 3000) -> list[str]:
    rng = random.Random(0)
    return [captions.web_caption(Scene("star", "red", "teal", "small"), defects, rng) for _ in range(count)]


def test_unnamed_defects_are_in_no_caption_and_named_ones_are_in_some():
    words = set(" ".join(web_captions(DEFECTS[:3]) + web_captions(DEFECTS[3:])).split())
    assert words.isdisjoint({"cast", "corners", "stripes", "striped", "vignette"}) and len(UNNAMED_DEFECTS) == 3
    assert DEFECTS[:3] == NAMED_DEFECTS
    texts = web_captions(NAMED_DEFECTS)
    for name in NAMED_DEFECTS:
        share = sum(any(s in text for s in captions.SYNONYMS[name]) for text in texts) / len(texts)
        assert 0.15 < share < 0.35, (name, share)


def test_the_worse_a_picture_the_more_careless_its_caption():
    def share_of_complete(count: int) -> float:
        texts = [text for text in web_captions(UNNAMED_DEFECTS[:count]) if text]
        return sum(len(captions.parse(text)) == 4 for text in texts) / len(texts)

    shares = [share_of_complete(count) for count in range(4)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.8 and shares[3] < 0.6


def test_a_picture_without_any_caption_is_as_good_as_one_with_a_careful_caption():
    # Or else an empty negative prompt would already do part of what an embedding is to learn.
    for defects in (UNNAMED_DEFECTS[:0], UNNAMED_DEFECTS):
        texts = web_captions(defects)
        careful = [text for text in texts if not text or len(captions.parse(text)) == 4]
        assert careful.count("") / len(careful) == pytest.approx(captions.NO_CAPTION_PROBABILITY, abs=0.03)


def test_attributes_are_the_ones_that_issue_and_card_speak_of():
    assert (len(SHAPES), len(COLOURS), len(BACKGROUNDS), len(SIZES)) == (6, 6, 4, 2)
    assert len(NAMED_DEFECTS) >= 3 and len(UNNAMED_DEFECTS) >= 2
