"""How steady a video is, as VBench measures it (arXiv 2311.17982, Sections 3.1 and A.1; github.com/Vchitect/VBench).

    temporal flickering      (255 - mean |x_f - x_(f-1)|) / 255                                over pixels, channels, f
    subject consistency      mean over f of (cos+(d_f, d_(f-1)) + cos+(d_f, d_1)) / 2          d: DINO ViT-B/16
    background consistency   the same                                                          d: CLIP ViT-B/32

f = 2 .. F, x in 8 bits, and cos+ a cosine that counts as 0 below 0. Higher is steadier; a still video has 1. What moves
on purpose counts too: VBench's own tables take temporal flickering on prompts for still scenes only.

VBench resizes without antialiasing, so do these. Videos (B, 3, F, H, W) in [0, 1]. A still image, and a video of one
frame, has NaN.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection, ViTModel

from renege_ray.errors import UserError
from renege_ray.models.loading.user_errors import user_errors
from renege_ray.rewards.base import VideoScorer
from renege_ray.rewards.catalogue import CLIP_B, DINO
from renege_ray.rewards.video.frames import flatten_frames, is_video
from renege_ray.rewards.vision import MEAN, STD, centre, normalise

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DINO_SIZE = 224  # VBench's, whatever the network was trained at

Features = Callable[[Tensor], Tensor]
"""Images (N, 3, H, W) in [0, 1] -> (N, D)."""


def temporal_flickering(videos: Tensor) -> Tensor:
    """(B,) of videos (B, 3, F, H, W), F >= 2."""
    pixels = _in_8_bits(videos)
    return 1 - (pixels[:, :, 1:] - pixels[:, :, :-1]).abs().flatten(1).mean(dim=1)


def frame_consistency(features: Tensor) -> Tensor:
    """(B,) of the features of each frame, (B, F, D), F >= 2."""
    others = features[:, 1:]
    to_previous = F.cosine_similarity(others, features[:, :-1], dim=-1).clamp(min=0)
    to_first = F.cosine_similarity(others, features[:, :1], dim=-1).clamp(min=0)
    return (to_previous + to_first).mean(dim=1) / 2


class VideoMetric(VideoScorer):
    """One of the three, by its name."""

    def __init__(self, name: str, measure: Callable[[Tensor], Tensor]) -> None:
        """`measure`: videos (B, 3, F, H, W), F >= 2 -> (B,)."""
        self.names = (name,)
        self._measure = measure

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """{name: (B,)}; prompts play no part."""
        moves = is_video(images) and images.shape[2] > 1
        value = self._measure(images.float()) if moves else images.new_full((len(images),), torch.nan)
        return {self.names[0]: value}


class Consistency:
    """Videos (B, 3, F, H, W) -> (B,): how alike the frames' features are. One video's frames are computed at once."""

    def __init__(self, features: Features) -> None:
        self._features = features

    def __call__(self, videos: Tensor) -> Tensor:
        """(B,)."""
        frames = (flatten_frames(_in_8_bits(video[None])) for video in videos)
        return torch.cat([frame_consistency(self._features(images)[None]) for images in frames])


class DinoFeatures:
    """The class token of a DINO vision transformer, (N, D); the shorter side becomes 224 pixels, nothing is cut off."""

    def __init__(self, model: ViTModel) -> None:
        self._model = model

    def __call__(self, images: Tensor) -> Tensor:
        """(N, D)."""
        resized = _resize_shorter_side(images, DINO_SIZE, "bilinear")
        pixels = normalise(resized, IMAGENET_MEAN, IMAGENET_STD)
        states: Tensor = self._model(pixels, interpolate_pos_encoding=True).last_hidden_state
        return states[:, 0]


class ClipFeatures:
    """CLIP's image embedding, (N, D), of the middle of an image."""

    def __init__(self, model: CLIPVisionModelWithProjection) -> None:
        self._model = model

    def __call__(self, images: Tensor) -> Tensor:
        """(N, D)."""
        size = self._model.config.image_size
        pixels = normalise(centre(_resize_shorter_side(images, size, "bicubic"), size), MEAN, STD)
        embeds: Tensor = self._model(pixels).image_embeds
        return embeds


def load(name: str, files: Mapping[str, Path], device: torch.device) -> VideoMetric:
    """A metric by its name, in float32.

    Raises:
        UserError: its network cannot be read.
    """
    if name == "temporal_flickering":
        return VideoMetric(name, temporal_flickering)
    if name == "subject_consistency":
        dino = _read(ViTModel, files[DINO.name], add_pooling_layer=False).to(device)
        return VideoMetric(name, Consistency(DinoFeatures(dino)))
    clip = _read(CLIPVisionModelWithProjection, files[CLIP_B.name]).to(device)
    return VideoMetric(name, Consistency(ClipFeatures(clip)))


def _read(kind: Any, weights: Path, **options: Any) -> Any:
    """A network of transformers, frozen, from the folder of its weights; pickled code is not run."""
    with user_errors(f"checkpoint {weights}", "download it again"):
        model, report = kind.from_pretrained(
            weights.parent, local_files_only=True, weights_only=True, dtype=torch.float32, output_loading_info=True,
            use_safetensors=weights.suffix == ".safetensors", **options,
        )  # fmt: skip
    if report["missing_keys"]:
        lacks = sorted(report["missing_keys"])[0]
        raise UserError(f"checkpoint {weights} has no {lacks}: is it the file of another model?")
    return model.eval().requires_grad_(False)


def _in_8_bits(images: Tensor) -> Tensor:
    """Rounded to the 256 values that a frame of a video file has, in [0, 1]."""
    return (images.float().clamp(0, 1) * 255).round() / 255


def _resize_shorter_side(images: Tensor, size: int, mode: str) -> Tensor:
    shorter = min(images.shape[-2:])
    height, width = (size * side // shorter for side in images.shape[-2:])
    return F.interpolate(images, size=(height, width), mode=mode, align_corners=False)
