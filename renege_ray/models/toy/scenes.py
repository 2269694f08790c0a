"""The world of the embedded model: 32x32 pictures of one coloured shape, some of them spoiled.

A scene is what a caption talks about (shape, colour, background, size). A picture is a scene drawn at a jittered
position and then, as happens to pictures on the web, possibly spoiled by defects. Some defects have names that captions
use now and then (`NAMED_DEFECTS`); others are never named by anybody (`UNNAMED_DEFECTS`): those a handwritten negative
prompt cannot mention, and a learned negative embedding can still remove.

Shapes: B pictures, H = W = 32 pixels, values in [0, 1].
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

IMAGE_SIZE = 32
MAX_JITTER = 2  # pixels; the shape's centre moves by whole pixels in both directions
RADII = {"small": 7.0, "big": 11.5}  # pixels

SHAPES = ("circle", "square", "triangle", "cross", "ring", "star")
COLOURS = {
    "red": (0.86, 0.13, 0.13),
    "green": (0.10, 0.58, 0.16),
    "blue": (0.16, 0.36, 0.92),
    "yellow": (0.97, 0.86, 0.12),
    "purple": (0.55, 0.18, 0.70),
    "orange": (0.97, 0.50, 0.08),
}
BACKGROUNDS = {
    "white": (0.97, 0.97, 0.97),
    "navy": (0.13, 0.17, 0.45),
    "teal": (0.35, 0.75, 0.75),
    "pink": (0.97, 0.70, 0.79),
}
SIZES = tuple(RADII)

NAMED_DEFECTS = ("blurry", "washed out", "dark")
UNNAMED_DEFECTS = ("colour cast", "dark corners", "stripes")
DEFECTS = NAMED_DEFECTS + UNNAMED_DEFECTS
# How many defects a training picture has: most are spoiled somehow, or guidance alone would remove all defects
# and leave nothing to learn.
DEFECT_COUNT_PROBABILITIES = (0.15, 0.45, 0.28, 0.12)
# The web, of which the diffusion model learns last, is worse still: guidance prefers pictures that are clean.
WEB_DEFECT_COUNT_PROBABILITIES = (0.10, 0.46, 0.30, 0.14)
MAX_DEFECTS = len(DEFECT_COUNT_PROBABILITIES) - 1

Split = Literal["train", "validation", "held_out"]


@dataclass(frozen=True, order=True)
class Scene:
    """What a caption describes: one coloured shape of one of two sizes before a plain background."""

    shape: str
    colour: str
    background: str
    size: str


@dataclass(frozen=True)
class Picture:
    """A scene as it was drawn: the centre's offset in pixels and the defects that spoil it."""

    scene: Scene
    offset: tuple[int, int] = (0, 0)
    defects: frozenset[str] = frozenset()


@functools.cache
def all_scenes() -> tuple[Scene, ...]:
    """All 288 scenes in a fixed order."""
    return tuple(Scene(*parts) for parts in itertools.product(SHAPES, COLOURS, BACKGROUNDS, SIZES))


def _unseen_triples() -> dict[Split, set[tuple[str, str, str]]]:
    """20 held-out and 10 validation combinations of shape, colour and background, both sizes of each.

    At most one background is taken from any shape-colour pair, so each pair is still seen before three others: what is
    tested is a new combination of things that are all known.
    """
    rng = random.Random(20)
    pairs = list(itertools.product(SHAPES, COLOURS))
    rng.shuffle(pairs)
    backgrounds = list(BACKGROUNDS)
    triples = [(shape, colour, backgrounds[i % 4]) for i, (shape, colour) in enumerate(pairs[:30])]
    return {"held_out": set(triples[:20]), "validation": set(triples[20:])}


@functools.cache
def scenes_of(split: Split) -> tuple[Scene, ...]:
    """The scenes of a split; no model of the package was trained on a scene outside `train`."""
    unseen = _unseen_triples()
    if split != "train":
        return tuple(s for s in all_scenes() if (s.shape, s.colour, s.background) in unseen[split])
    hidden = unseen["held_out"] | unseen["validation"]
    return tuple(s for s in all_scenes() if (s.shape, s.colour, s.background) not in hidden)


@functools.cache
def possible_defects() -> tuple[frozenset[str], ...]:
    """All sets of at most `MAX_DEFECTS` defects. A picture is never both dark and washed out: they cancel."""
    subsets = itertools.chain.from_iterable(itertools.combinations(DEFECTS, n) for n in range(MAX_DEFECTS + 1))
    return tuple(frozenset(s) for s in subsets if not {"dark", "washed out"} <= set(s))


def random_defects(
    rng: random.Random, count_probabilities: Sequence[float] = DEFECT_COUNT_PROBABILITIES
) -> frozenset[str]:
    """Draws a set of defects as the training pictures have them: first how many, then which."""
    count = rng.choices(range(MAX_DEFECTS + 1), count_probabilities)[0]
    return rng.choice([s for s in possible_defects() if len(s) == count])


def random_offset(rng: random.Random) -> tuple[int, int]:
    """Draws the offset (x, y) of a picture's centre, in pixels."""
    return rng.randint(-MAX_JITTER, MAX_JITTER), rng.randint(-MAX_JITTER, MAX_JITTER)


def draw(pictures: Sequence[Picture]) -> Tensor:
    """Draws pictures: (B, 3, 32, 32) float32 in [0, 1]."""
    clean = draw_scenes([p.scene for p in pictures], [p.offset for p in pictures])
    return spoil(clean, [p.defects for p in pictures])


def draw_scenes(scenes: Sequence[Scene], offsets: Sequence[tuple[int, int]]) -> Tensor:
    """Draws scenes without defects: (B, 3, 32, 32) float32 in [0, 1], edges antialiased over one pixel."""
    centre = torch.tensor(offsets, dtype=torch.float32).reshape(-1, 2) + (IMAGE_SIZE - 1) / 2
    radius = torch.tensor([RADII[s.size] for s in scenes])
    grid = torch.arange(IMAGE_SIZE, dtype=torch.float32)
    x = grid[None, None, :] - centre[:, 0, None, None]  # (B, 1, W)
    y = grid[None, :, None] - centre[:, 1, None, None]  # (B, H, 1)
    distance = torch.empty(len(scenes), IMAGE_SIZE, IMAGE_SIZE)
    for shape in SHAPES:
        rows = [i for i, s in enumerate(scenes) if s.shape == shape]
        if rows:
            distance[rows] = _signed_distance(shape, x[rows], y[rows], radius[rows, None, None])
    coverage = (0.5 - distance).clamp(0, 1)[:, None]  # (B, 1, H, W)
    foreground = torch.tensor([COLOURS[s.colour] for s in scenes])[:, :, None, None]
    background = torch.tensor([BACKGROUNDS[s.background] for s in scenes])[:, :, None, None]
    return background + coverage * (foreground - background)


def spoil(images: Tensor, defects: Sequence[Iterable[str]]) -> Tensor:
    """Applies each image's defects, always in the order of `_SPOILERS`: (B, 3, 32, 32) -> the same shape."""
    images = images.clone()
    for name, spoiler in _SPOILERS.items():
        rows = [i for i, present in enumerate(defects) if name in present]
        if rows:
            images[rows] = spoiler(images[rows])
    return images


def _signed_distance(shape: str, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Distance in pixels to the shape's outline, negative inside; (B, H, W). Image coordinates: y points down."""
    if shape == "circle":
        return torch.hypot(x, y) - radius
    if shape == "square":
        return torch.maximum(x.abs() + 0 * y, y.abs() + 0 * x) - 0.84 * radius
    if shape == "ring":
        return (torch.hypot(x, y) - 0.76 * radius).abs() - 0.26 * radius
    if shape == "cross":
        arm, length = 0.30 * radius, radius
        upright = torch.maximum(x.abs() - arm, y.abs() - length)
        level = torch.maximum(x.abs() - length, y.abs() - arm)
        return torch.minimum(upright, level)
    if shape == "triangle":
        # Three half-planes of an equilateral triangle, its centroid a little below the centre.
        y = y - 0.22 * radius
        angles = torch.tensor([math.pi / 2, math.pi * 7 / 6, -math.pi / 6])  # the outward normals
        sides = [x * math.cos(a) + y * math.sin(a) for a in angles.tolist()]
        return torch.stack(sides).amax(0) - 0.62 * radius
    if shape == "star":
        # Five points: the outline's radius is linear between points and notches in polar coordinates' sector.
        angle = torch.atan2(x + 0 * y, -y + 0 * x)
        sector = 2 * math.pi / 5
        a = torch.remainder(angle + sector / 2, sector) - sector / 2  # angle from the nearest point
        distance = torch.hypot(x, y)
        px, py = distance * torch.cos(a), distance * torch.sin(a).abs()
        outer, inner = 1.08 * radius, 0.46 * radius
        tip = (outer, 0 * outer)
        notch = (inner * math.cos(sector / 2), inner * math.sin(sector / 2))
        ex, ey = notch[0] - tip[0], notch[1] - tip[1]
        return ((px - tip[0]) * ey - (py - tip[1]) * ex) / torch.hypot(ex, ey)
    raise ValueError(f"unknown shape {shape!r}")


def _blur(images: Tensor, sigma: float = 2.2) -> Tensor:
    reach = 5
    kernel = torch.exp(-torch.arange(-reach, reach + 1, dtype=images.dtype).square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel[:, :, None, :], groups=3)
    return F.conv2d(rows, kernel[:, :, :, None], groups=3)


def _washed_out(images: Tensor) -> Tensor:
    return 0.42 * images + 0.46


def _dark(images: Tensor) -> Tensor:
    return 0.42 * images


def _colour_cast(images: Tensor) -> Tensor:
    return images * torch.tensor([1.0, 0.88, 0.52])[:, None, None]  # the yellow of a wrong white balance


def _dark_corners(images: Tensor) -> Tensor:
    axis = torch.linspace(-1, 1, IMAGE_SIZE)
    radius = torch.hypot(axis[None, :], axis[:, None])
    fade = ((radius - 0.75) / 0.55).clamp(0, 1)
    return images * (1 - 0.85 * fade)


def _stripes(images: Tensor) -> Tensor:
    rows = torch.arange(IMAGE_SIZE)
    light = torch.where(rows // 4 % 2 == 0, 1.0, 0.62)  # every other band of four rows is darker
    return images * light[:, None]


_SPOILERS = {
    "blurry": _blur,
    "stripes": _stripes,
    "colour cast": _colour_cast,
    "washed out": _washed_out,
    "dark": _dark,
    "dark corners": _dark_corners,
}
