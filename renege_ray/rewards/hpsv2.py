"""Human Preference Score v2 (arXiv 2306.09341): CLIP ViT-H/14, fine-tuned on what people prefer.

The score is the cosine of image and prompt; tables in papers show it times 100. Versions v2.0 and v2.1 are two
trainings of the same network, whose scores cannot be compared with each other.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from renege_ray.rewards.catalogue import CLIP_VOCABULARY, RewardFacts
from renege_ray.rewards.clip_tokens import ClipTokenizer, clean_as_open_clip
from renege_ray.rewards.clip_towers import ClipReward, clip_from_open_clip
from renege_ray.rewards.vision import letterbox

MARKERS = ("<start_of_text>", "<end_of_text>")


def load(facts: RewardFacts, files: Mapping[str, Path], dtype: torch.dtype) -> ClipReward:
    """Either version, from a checkpoint of the package hpsv2.

    Raises:
        UserError: a file is damaged or of another model.
    """
    checkpoint = files[facts.name]
    model = clip_from_open_clip(checkpoint, hidden_act="gelu", dtype=dtype)
    length = model.config.text_config.max_position_embeddings
    tokenizer = ClipTokenizer(files[CLIP_VOCABULARY.name], MARKERS, clean_as_open_clip, length)
    return ClipReward(facts, checkpoint, model, tokenizer, fit=letterbox)
