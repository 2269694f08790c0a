"""Pictures and tables to compare methods by: image grids, two plain image statistics, aligned text tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from renege_ray.output.fonts import Font, font_for
from renege_ray.output.whole_files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# All in px. Images below SMALLEST_SHOWN are enlarged by a whole factor, so that every pixel stays square;
# images above LARGEST_SHOWN are scaled down to it, and further where a row would be wider than WIDEST_GRID.
SMALLEST_SHOWN = 128
LARGEST_SHOWN = 256
WIDEST_GRID = 1600
LABEL_WIDTH = 120  # fixed: a changing label must not move the pictures under a slider
GAP = 6
MARGIN = 12
FONT, TITLE_FONT = 13, 16
CAPTION_LINES = 4
PAGE, INK, FAINT_INK = ((240, 240, 243), (28, 28, 32), (84, 84, 92))  # a grey page: white images keep their edge


def image_grid(rows: Mapping[str, Tensor], captions: Sequence[str], title: str = "") -> Image.Image:
    """One row of images per method under one column of captions per prompt.

    The layout is a function of the shapes, the number of rows and the captions alone, never of labels, title
    or pixels, so that the grids of one run lie exactly over each other when one slides through the steps.

    Args:
        rows: label -> images (k, 3, H, W) in [0, 1]; a label may hold line breaks (the name, then a score).
        captions: k prompts, wrapped to the width of a column and cut after four lines.
        title: one line above everything, such as "step 120".

    Raises:
        ValueError: if there is nothing to show, or if the rows and the captions disagree about k, H and W.
    """
    shapes = {tuple(images.shape) for images in rows.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 4 or not captions:
        raise ValueError(f"every row must hold images of one shape (k, 3, H, W), got {sorted(shapes)}")
    shape = shapes.pop()
    count, channels, height, width = shape
    if count != len(captions) or channels != 3:
        raise ValueError(f"{len(captions)} captions do not fit rows of shape {shape}")
    cell_width, cell_height = _shown_size(width, height, count)

    line_height = 17
    fonts = [font_for(caption, FONT) for caption in captions]
    wrapped = [_wrap(text, font, cell_width, CAPTION_LINES) for text, font in zip(captions, fonts, strict=True)]
    pictures_top = MARGIN + 26 + line_height * max(len(lines) for lines in wrapped) + GAP
    pictures_left = MARGIN + LABEL_WIDTH + GAP
    canvas = Image.new(
        "RGB",
        (
            pictures_left + count * (cell_width + GAP) - GAP + MARGIN,
            pictures_top + len(rows) * (cell_height + GAP) - GAP + MARGIN,
        ),
        PAGE,
    )
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, MARGIN), title, fill=INK, font=font_for(title, TITLE_FONT))
    for column, lines in enumerate(wrapped):
        x = pictures_left + column * (cell_width + GAP)
        first_line = pictures_top - GAP - line_height * len(lines)  # captions stand on their pictures
        for number, line in enumerate(lines):
            draw.text((x, first_line + number * line_height), line, fill=FAINT_INK, font=fonts[column])
    for row, (label, images) in enumerate(rows.items()):
        y, font = pictures_top + row * (cell_height + GAP), font_for(label, FONT)
        lines = [line for part in label.split("\n") for line in _wrap(part, font, LABEL_WIDTH)]
        for number, line in enumerate(lines):
            top = y + (cell_height - line_height * len(lines)) // 2 + number * line_height
            draw.text((MARGIN, top), line, fill=INK, font=font)
        for column, image in enumerate(images):
            x = pictures_left + column * (cell_width + GAP)
            canvas.paste(_resize(to_pil(image), cell_width, cell_height), (x, y))
    return canvas


def to_pil(image: Tensor) -> Image.Image:
    """One image (3, H, W) in [0, 1], values outside clamped, as 8-bit RGB."""
    pixels = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())


def render(figure: "Figure") -> Image.Image:
    """A matplotlib figure as an RGB picture, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    return Image.frombytes("RGBA", (width, height), bytes(canvas.buffer_rgba())).convert("RGB")


def save_png(image: Image.Image, path: Path, following: Sequence[Image.Image] = ()) -> None:
    """Write a PNG, whole or not at all; its folder is made.

    With frames that follow the first it is an animated one, 8 frames a second, which loses nothing either.
    """
    with whole_file(path) as temporary:
        image.save(temporary, format="PNG", **animation(following))


def animation(following: Sequence[Image.Image]) -> dict[str, Any]:
    """What Pillow's `save` is to be told of frames that follow the first: 8 a second."""
    return {"save_all": True, "append_images": following, "duration": 125, "loop": 0} if following else {}


def image_saturation(images: Tensor) -> Tensor:
    """Mean over pixels of the largest minus the smallest channel: 0 is grey, 1 is pure colour.

    (This is HSV's chroma, which unlike HSV's saturation does not call a nearly black pixel saturated.)

    Args:
        images: (B, 3, H, W) in [0, 1].

    Returns:
        (B,) in [0, 1]; a rise far above the start of training is a sign of reward hacking.
    """
    return (images.amax(dim=1) - images.amin(dim=1)).mean(dim=(1, 2))


def image_sharpness(images: Tensor) -> Tensor:
    """Mean absolute Laplacian (4 neighbours, interior pixels) of the Rec. 709 luminance.

    Args:
        images: (B, 3, H, W) in [0, 1], H and W at least 3.

    Returns:
        (B,) in [0, 4]: 0 for a flat image, larger for edges and for noise.
    """
    weights = torch.tensor([0.2126, 0.7152, 0.0722], dtype=images.dtype, device=images.device)
    luminance = (images * weights[:, None, None]).sum(dim=1)
    centre = luminance[:, 1:-1, 1:-1]
    vertical = luminance[:, :-2, 1:-1] + luminance[:, 2:, 1:-1]
    horizontal = luminance[:, 1:-1, :-2] + luminance[:, 1:-1, 2:]
    return (vertical + horizontal - 4 * centre).abs().mean(dim=(1, 2))


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text: columns of numbers flush right, all others flush left, no trailing blanks.

    Raises:
        ValueError: if a row is longer or shorter than the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row of {len(row)} cells does not fit a header of {len(header)}: {list(row)}")
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numeric = [bool(rows) and all(_is_number(cell) for cell in column[1:]) for column in columns]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


def _is_number(cell: str) -> bool:
    """Numbers, percentages, and the marks for "no value"."""
    try:
        float(cell.rstrip("%").strip())
    except ValueError:
        return cell in {"", "-"}
    return True


def _shown_size(width: int, height: int, count: int) -> tuple[int, int]:
    """The size in px at which an image of (width, height) is shown in a row of `count`."""
    longest = max(width, height)
    if longest < SMALLEST_SHOWN:
        factor = SMALLEST_SHOWN // longest
        return width * factor, height * factor
    room = (WIDEST_GRID - 2 * MARGIN - LABEL_WIDTH) // count - GAP
    shown = max(SMALLEST_SHOWN, min(longest, LARGEST_SHOWN, room))
    return max(1, width * shown // longest), max(1, height * shown // longest)


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    enlarge = width >= image.width
    return image.resize((width, height), Image.Resampling.NEAREST if enlarge else Image.Resampling.LANCZOS)


def _wrap(text: str, font: Font, width: int, most: int | None = None) -> list[str]:
    """Break at blanks, and in words that are longer than a line (some scripts have no blanks), so that every line fits
    `width` px; what is beyond `most` lines becomes an ellipsis.
    """
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for character in word:
            if lines[-1] and font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    if most is not None and len(lines) > most:
        lines = [*lines[: most - 1], _cut(lines[most - 1] + " ...", font, width)]
    return lines or [""]


def _cut(line: str, font: Font, width: int) -> str:
    """The line itself where it fits `width` px, else as much of it as fits with an ellipsis."""
    if font.getlength(line) <= width:
        return line
    start = line.removesuffix("...")
    while start and font.getlength(start.rstrip() + "...") > width:
        start = start[:-1]
    return start.rstrip() + "..."
