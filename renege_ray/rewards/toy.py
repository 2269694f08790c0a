"""The embedded model's two rewards and its judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTokenizer

from renege_ray.models.toy import PIPELINE_FOLDER, WEIGHTS_FOLDER
from renege_ray.models.toy.captions import parse
from renege_ray.models.toy.judge import Judge, agreement
from renege_ray.models.toy.preferences import REWARD_NETWORKS, tokenize
from renege_ray.models.toy.scenes import IMAGE_SIZE
from renege_ray.rewards.base import RewardModel
from renege_ray.rewards.catalogue import JUDGE_SCORES, REWARDS, RewardFacts
from renege_ray.rewards.vision import letterbox


class ToyReward(RewardModel):
    """One of the two toy rewards: "toy" to train against, "toy_held_out" to expose reward hacking.

    A difference of 1.5 is one defect, 1.5 (size) to 2 (shape, colour, background) one wrong attribute; only differences
    between pictures for the same prompt mean anything.
    """

    def __init__(self, name: str) -> None:
        checkpoint = WEIGHTS_FOLDER / f"reward_{name}.safetensors"
        super().__init__(REWARDS[name], checkpoint)
        self._tokenizer = CLIPTokenizer.from_pretrained(PIPELINE_FOLDER / "tokenizer", local_files_only=True)
        self._network = REWARD_NETWORKS[name](len(self._tokenizer), self._tokenizer.eos_token_id)
        self._network.load_state_dict({k: v.float() for k, v in load_file(checkpoint).items()})
        self.eval().requires_grad_(False)

    def judge(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,); images of another size than the embedded model's are scaled to it."""
        lengths = [len(ids) for ids in self._tokenizer([*prompts], verbose=False)["input_ids"]]
        for prompt, length in zip(prompts, lengths, strict=True):
            if length > self._tokenizer.model_max_length:
                self.note_truncated(prompt)
        tokens = tokenize(self._tokenizer, list(prompts)).to(images.device)
        rewards: Tensor = self._network(letterbox(images, IMAGE_SIZE), tokens)
        return rewards


def load(facts: RewardFacts, files: Mapping[str, Path], dtype: torch.dtype) -> ToyReward:
    """From the package; the networks are small, so they compute in float32 whatever the dtype."""
    return ToyReward(facts.name)


class ToyJudge:
    """The nearest-picture judge as a `Scorer`: is an image free of defects, and as its prompt says?"""

    names: tuple[str, ...] = JUDGE_SCORES["judge"]

    def __init__(self) -> None:
        self._judge = Judge()

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """1 or 0 for each image (B, 3, 32, 32), NaN where its prompt leaves a part open."""
        scores = agreement(self._judge.judge(images), [parse(prompt) for prompt in prompts])
        return {name: scores[name] for name in self.names}
