"""CLIPScore (arXiv 2104.08718) with OpenAI's CLIP ViT-L/14: does the image show what the prompt says?

The score is the cosine of image and prompt. The paper multiplies it by 2.5 (others by 100) and cuts it off at 0, where
it would have no gradient.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from renege_ray.rewards.catalogue import CLIP_VOCABULARY, RewardFacts
from renege_ray.rewards.clip_tokens import ClipTokenizer, clean_as_open_clip
from renege_ray.rewards.clip_towers import ClipReward, clip_from_folder
from renege_ray.rewards.vision import centre_crop

MARKERS = ("<|startoftext|>", "<|endoftext|>")


def load(facts: RewardFacts, files: Mapping[str, Path], dtype: torch.dtype) -> ClipReward:
    """From a folder in transformers' format.

    Raises:
        UserError: a file is damaged or of another model.
    """
    checkpoint = files[facts.name]
    model, _ = clip_from_folder(checkpoint, dtype)
    length = model.config.text_config.max_position_embeddings
    # OpenAI's own tokenizer cleans a text as open_clip's does, which was made from it.
    tokenizer = ClipTokenizer(files[CLIP_VOCABULARY.name], MARKERS, clean_as_open_clip, length)
    return ClipReward(facts, checkpoint, model, tokenizer, fit=centre_crop)
