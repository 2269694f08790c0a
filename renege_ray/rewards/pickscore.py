"""PickScore (arXiv 2305.01569): CLIP ViT-H/14, fine-tuned on which of two images users of Pick-a-Pic kept.

The score is the cosine of image and prompt times the model's logit scale (about 100).
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from renege_ray.rewards.catalogue import CLIP_VOCABULARY, RewardFacts
from renege_ray.rewards.clip_tokens import ClipTokenizer, clean_as_transformers
from renege_ray.rewards.clip_towers import ClipReward, clip_from_folder
from renege_ray.rewards.vision import centre_crop

MARKERS = ("<|startoftext|>", "<|endoftext|>")


def load(facts: RewardFacts, files: Mapping[str, Path], dtype: torch.dtype) -> ClipReward:
    """From a folder in transformers' format.

    Raises:
        UserError: a file is damaged or of another model.
    """
    checkpoint = files[facts.name]
    model, logit_scale = clip_from_folder(checkpoint, dtype)
    length = model.config.text_config.max_position_embeddings
    tokenizer = ClipTokenizer(files[CLIP_VOCABULARY.name], MARKERS, clean_as_transformers, length)
    return ClipReward(facts, checkpoint, model, tokenizer, fit=centre_crop, scale=logit_scale)
