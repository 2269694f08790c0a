"""The judge: which drawable picture is nearest to an image, and is that what the prompt asked for?

Nothing here is learned and nothing has a gradient, so no embedding can have been trained to please it. The whole
space of pictures (scene, position, defects) is searched in two rounds: all of them coarsely, at 8x8 pixels and every
other position, then the best of those finely, at 32x32 pixels and all neighbouring positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from renege_ray.models.toy.scenes import MAX_JITTER, Picture, Scene, all_scenes, draw_scenes, possible_defects, spoil

FINALISTS = 16
_SHIFTS = range(-MAX_JITTER, MAX_JITTER + 1)
POSITIONS = tuple((x, y) for x in _SHIFTS for y in _SHIFTS)
COARSE_POSITIONS = tuple(i for i, (x, y) in enumerate(POSITIONS) if x % 2 == 0 and y % 2 == 0)


class Judge:
    """Finds the drawable picture that is nearest to each image, by the squared error over pixels and channels.

    A candidate is (scene index, position index, defects index).
    """

    def judge(self, images: Tensor) -> list[Picture]:
        """The nearest picture for each image of (B, 3, 32, 32), values in [0, 1]."""
        with torch.no_grad():
            images = images.detach().float().cpu()
            return [v for chunk in images.split(32) for v in self._judge(chunk)]

    def _judge(self, images: Tensor) -> list[Picture]:
        coarse = F.avg_pool2d(images, 4).flatten(1)
        references, squares = self._coarse_references
        # ||image - reference||^2 up to the image's own square, which is the same for every reference.
        distance = squares - 2 * coarse @ references.T
        best = distance.topk(FINALISTS, largest=False).indices.tolist()
        finalists = [sorted({n for row in rows for n in _neighbours(self._coarse_candidates[row])}) for rows in best]
        flat = [candidate for row in finalists for candidate in row]
        scene, position, _ = torch.tensor(flat).T
        drawn = spoil(self._clean[scene, position], [possible_defects()[d] for _, _, d in flat])
        image_of = torch.tensor([i for i, row in enumerate(finalists) for _ in row])
        errors = (drawn - images[image_of]).square().mean((1, 2, 3)).split([len(row) for row in finalists])
        return [_picture(row[int(e.argmin())]) for row, e in zip(finalists, errors, strict=True)]

    @cached_property
    def _clean(self) -> Tensor:
        """Every scene at every position without defects: (288, 25, 3, 32, 32)."""
        return torch.stack([draw_scenes([scene] * len(POSITIONS), POSITIONS) for scene in all_scenes()])

    @cached_property
    def _coarse_candidates(self) -> list[tuple[int, int, int]]:
        scenes, defects = range(len(all_scenes())), range(len(possible_defects()))
        return [(s, p, d) for d in defects for s in scenes for p in COARSE_POSITIONS]

    @cached_property
    def _coarse_references(self) -> tuple[Tensor, Tensor]:
        clean = self._clean[:, list(COARSE_POSITIONS)].flatten(0, 1)
        # Blurring takes nearly all of the time, and comes before all other defects: once will do for all that have it.
        blurred = spoil(clean, [{"blurry"}] * len(clean))
        spoiled = (
            spoil(blurred if "blurry" in defects else clean, [defects - {"blurry"}] * len(clean))
            for defects in possible_defects()
        )
        references = torch.cat([F.avg_pool2d(images, 4).flatten(1) for images in spoiled])  # (N, 192)
        return references, references.square().sum(1)


def _neighbours(candidate: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """The candidate moved by at most one pixel in each direction, within the jitter."""
    scene, position, defects = candidate
    x, y = POSITIONS[position]
    near = [i for i, (u, v) in enumerate(POSITIONS) if abs(u - x) <= 1 and abs(v - y) <= 1]
    return [(scene, i, defects) for i in near]


def _picture(candidate: tuple[int, int, int]) -> Picture:
    scene, position, defects = candidate
    return Picture(all_scenes()[scene], POSITIONS[position], possible_defects()[defects])


def agreement(found: Sequence[Picture], asked: Sequence[dict[str, str]]) -> dict[str, Tensor]:
    """1 where what was found is what was asked for, else 0, NaN where a prompt leaves a part open; each (B,) float32.

    Names: `judge_clean` (no defect), `judge_shape`, `judge_colour`, `judge_background`, `judge_size`.
    """
    results = {"judge_clean": torch.tensor([float(not picture.defects) for picture in found])}
    for part in ("shape", "colour", "background", "size"):
        results[f"judge_{part}"] = torch.tensor(
            [_agrees(picture.scene, part, a) for picture, a in zip(found, asked, strict=True)]
        )
    return results


def _agrees(scene: Scene, part: str, asked: dict[str, str]) -> float:
    return float(getattr(scene, part) == asked[part]) if part in asked else float("nan")
