"""Grids that stay in place, image statistics with exact answers, and aligned tables."""

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageFont

from renege_ray.output import pictures
from renege_ray.output.fonts import font_for
from renege_ray.output.pictures import PAGE, image_grid, image_saturation, image_sharpness, save_png, text_table, to_pil

CAPTIONS = ["a small red circle on white", "a large blue star on pink", "a cross"]


def test_small_images_are_enlarged_by_a_whole_factor_and_keep_their_pixels() -> None:
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    grid = image_grid({"null": images, "global": images}, CAPTIONS)
    right, bottom = grid.width - 12, grid.height - 12  # the last cell ends at the margin
    cell = grid.crop((right - 128, bottom - 128, right, bottom))
    expected = to_pil(images[-1]).resize((128, 128), Image.Resampling.NEAREST)
    assert list(cell.tobytes()) == list(expected.tobytes())


@pytest.mark.parametrize(("size", "count"), [((512, 512), 8), ((512, 768), 4), ((1024, 1024), 12)])
def test_large_images_are_scaled_down_to_fit(size: tuple[int, int], count: int) -> None:
    images = torch.zeros(count, 3, *size)
    grid = image_grid({"null": images}, ["word " * 60] * count)
    assert grid.width <= max(1600, count * 134 + 160)
    assert grid.height < 400


def test_layout_does_not_depend_on_labels_title_or_pixels() -> None:
    dark, bright = torch.zeros(3, 3, 32, 32), torch.ones(3, 3, 32, 32)
    before = image_grid({"null": dark, "global": dark}, CAPTIONS, title="step 0")
    rows = {"null": bright, "global with a long label\n0.912": bright}
    after = image_grid(rows, CAPTIONS, title="step 1200 " * 9)
    assert before.size == after.size
    width, height = before.size
    corner = (width - 13, height - 13)
    assert before.getpixel(corner) == (0, 0, 0)
    assert after.getpixel(corner) == (255, 255, 255)
    assert before.getpixel((width - 12, height - 12)) == after.getpixel((width - 12, height - 12)) == PAGE


def test_grid_refuses_rows_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="2 captions do not fit"):
        image_grid({"null": torch.zeros(3, 3, 8, 8)}, ["a", "b"])
    with pytest.raises(ValueError, match="one shape"):
        image_grid({"null": torch.zeros(1, 3, 8, 8), "global": torch.zeros(2, 3, 8, 8)}, ["a"])
    with pytest.raises(ValueError, match="one shape"):
        image_grid({}, [])


def test_unbreakable_and_empty_captions_are_drawn() -> None:
    image_grid({"": torch.zeros(2, 3, 8, 8)}, ["x" * 500, ""])


@pytest.mark.parametrize(
    "text", ["красная звезда", "κόκκινο αστέρι", "نجمة حمراء", "étoile", "a red star", "Đỏ ngôi sao"]
)
def test_letters_are_drawn_by_a_font_that_has_them(text: str) -> None:
    font = font_for(text, 13)
    box = bytes(font.getmask("\U0010ffff"))
    assert not [letter for letter in text if not letter.isspace() and bytes(font.getmask(letter)) == box]
    if text.isascii():
        assert font.getname() == ImageFont.load_default(13).getname(), "what Pillow's own font has is drawn by it"


def test_captions_in_scripts_without_blanks_are_wrapped() -> None:
    """Five lines of a script without blanks, of which four are drawn, the last with an ellipsis."""
    font = font_for("", 13)
    lines = pictures._wrap("ж" * 60, font, 100, 4)
    assert len(lines) == 4 and lines[-1].endswith("...") and set("".join(lines)) == {"ж", "."}
    assert all(font.getlength(line) <= 100 for line in lines)
    assert pictures._wrap("one two", font, 100) == ["one two"]
    one, long = image_grid({"": torch.zeros(1, 3, 8, 8)}, ["ж"]), image_grid({"": torch.zeros(1, 3, 8, 8)}, ["ж" * 60])
    assert long.height - one.height == 3 * 17


def test_saturation_and_sharpness_have_exact_values() -> None:
    grey, red, half = torch.full((3, 9, 9), 0.3), torch.zeros(3, 9, 9), torch.zeros(3, 9, 9)
    red[0] = 1.0
    half[0], half[1] = 0.75, 0.25
    images = torch.stack([grey, red, half])
    torch.testing.assert_close(image_saturation(images), torch.tensor([0.0, 1.0, 0.75]))
    torch.testing.assert_close(image_sharpness(images), torch.zeros(3), atol=1e-6, rtol=0)

    checkerboard = (torch.arange(9)[:, None] + torch.arange(9)).remainder(2).float().expand(1, 3, 9, 9)
    every_neighbour_differs_by_one = torch.tensor([4.0])
    torch.testing.assert_close(image_sharpness(checkerboard), every_neighbour_differs_by_one)


def test_statistics_of_a_batch_are_those_of_its_images() -> None:
    images = torch.rand(4, 3, 12, 10, generator=torch.Generator().manual_seed(1))
    for statistic in (image_saturation, image_sharpness):
        each = torch.cat([statistic(image[None]) for image in images])
        torch.testing.assert_close(statistic(images), each)


def test_text_table_aligns_numbers_right_and_names_left() -> None:
    table = text_table(["method", "reward", "win rate"], [["null", "-1.25", "-"], ["global", "12.50", "81%"]])
    assert table.split("\n") == [
        "method  reward  win rate",
        "------  ------  --------",
        "null     -1.25         -",
        "global   12.50       81%",
    ]
    with pytest.raises(ValueError, match="2 cells"):
        text_table(["a"], [["1", "2"]])


def test_save_png_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "images" / "grid.png"
    for colour in ("red", "blue"):
        save_png(Image.new("RGB", (4, 4), colour), target)
    assert [path.name for path in target.parent.iterdir()] == ["grid.png"]
    with Image.open(target) as image:
        assert image.getpixel((0, 0)) == (0, 0, 255)
