"""LAION's aesthetic predictor, version 2: a small network on the image features of OpenAI's CLIP ViT-L/14.

It predicts how people would rate an image from 1 to 10; prompts play no part. (github.com/christophschuhmann/
improved-aesthetic-predictor)
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from renege_ray.errors import UserError
from renege_ray.models.networks.compiled import TOWER_SIZES, Compiled
from renege_ray.rewards.base import RewardModel
from renege_ray.rewards.catalogue import CLIP_L, RewardFacts
from renege_ray.rewards.checkpoints import assemble, read_weights
from renege_ray.rewards.clip_towers import read_clip_config
from renege_ray.rewards.vision import centre_crop, compute_in, normalise


class Head(nn.Module):
    """Features (B, D) -> (B,): five linear layers with nothing between them but dropout, which is off here."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (width, 1024, 128, 64, 16, 1)
        # The checkpoint counts the dropouts too: there is one after each of the first three layers.
        numbers = (0, 2, 4, 6, 7)
        layers = (nn.Linear(before, after) for before, after in pairwise(widths))
        self.layers = nn.ModuleDict({str(number): layer for number, layer in zip(numbers, layers, strict=True)})

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B,)."""
        for layer in self.layers.values():
            features = layer(features)
        return features.squeeze(1)


class Aesthetic(RewardModel):
    """R(x) = head(f(x)) with CLIP's image features f of length 1."""

    def __init__(self, facts: RewardFacts, checkpoint: Path, tower: CLIPVisionModelWithProjection, head: Head) -> None:
        super().__init__(facts, checkpoint)
        self.tower, self.head = tower, head
        self._features: Callable[[Tensor], Tensor] = self._image_embeds

    def judge(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,)."""
        pixels = normalise(centre_crop(images, self.tower.config.image_size))
        rewards: Tensor = self.head(F.normalize(self._features(pixels), dim=1))
        return rewards

    def compile_towers(self) -> None:
        """CLIP's."""
        self._features = Compiled(self._image_embeds, TOWER_SIZES)

    def _image_embeds(self, pixels: Tensor) -> Tensor:
        embeds: Tensor = self.tower(pixels).image_embeds
        return embeds


def load(facts: RewardFacts, files: Mapping[str, Path], dtype: torch.dtype) -> Aesthetic:
    """The head from its .pth file, the tower from CLIP's folder in transformers' format.

    Raises:
        UserError: a file is damaged or of another model.
    """
    checkpoint, clip = files[facts.name], files[CLIP_L.name]
    both = read_clip_config(clip)
    config: CLIPVisionConfig = both.vision_config
    if config.hidden_act != "quick_gelu":
        raise UserError(
            f"{clip.with_name('config.json')} has hidden_act {config.hidden_act}: the aesthetic predictor was trained "
            "on OpenAI's CLIP, which has quick_gelu; give the folder of openai/clip-vit-large-patch14"
        )
    config.projection_dim = both.projection_dim
    tower = assemble(partial(CLIPVisionModelWithProjection, config), read_weights(clip), clip)
    compute_in(tower.vision_model, dtype)
    head = assemble(partial(Head, both.projection_dim), read_weights(checkpoint), checkpoint)
    return Aesthetic(facts, checkpoint, tower, head)
