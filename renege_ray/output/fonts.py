"""A font that has a text's letters: Pillow's own for Latin ones, else matplotlib's or one that is installed."""

from functools import cache
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_NO_CHARACTER = "\U0010ffff"  # never assigned, so it is drawn as the box of what a font lacks


def font_for(text: str, size: int) -> Font:
    """The first font that has all letters of a text, else the one that has most of them; `size`: in px."""
    return _font_for(frozenset(character for character in text if not character.isspace()), size)


@cache
def _font_for(letters: frozenset[str], size: int) -> Font:
    best = ImageFont.load_default(size)
    fewest = _missing(best, letters)
    if not fewest:
        return best
    for path in _installed():
        try:
            font = ImageFont.truetype(path, size)
            missing = _missing(font, letters)
        except OSError:  # damaged, or of pictures in other sizes
            continue
        if missing < fewest:
            best, fewest = font, missing
        if not fewest:
            break
    return best


def _missing(font: Font, letters: frozenset[str]) -> int:
    box = bytes(font.getmask(_NO_CHARACTER))
    return sum(bytes(font.getmask(letter)) == box for letter in letters)


@cache
def _installed() -> tuple[str, ...]:
    """The paths of fonts, the one with the most scripts that comes with matplotlib first."""
    import matplotlib
    from matplotlib.font_manager import findSystemFonts

    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), *sorted(findSystemFonts())
