"""The embedded model's two rewards and its judge."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from renege_ray.models.toy import PIPELINE_FOLDER, WEIGHTS_FOLDER
from renege_ray.models.toy.captions import parse
from renege_ray.models.toy.judge import Judge, agreement
from renege_ray.models.toy.preferences import REWARD_NETWORKS, tokenize


class ToyReward(nn.Module):
    """One of the two toy rewards, a `Reward`: "toy" to train against, "toy_held_out" to expose reward hacking.

    A difference of 1.5 is one defect, 1.5 (size) to 2 (shape, colour, background) one wrong attribute; only differences
    between pictures for the same prompt mean anything.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self._tokenizer = CLIPTokenizer.from_pretrained(PIPELINE_FOLDER / "tokenizer", local_files_only=True)
        self._network = REWARD_NETWORKS[name](len(self._tokenizer), self._tokenizer.eos_token_id)
        self._network.load_state_dict(
            {k: v.float() for k, v in load_file(WEIGHTS_FOLDER / f"reward_{name}.safetensors").items()}
        )
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Rewards (B,) float32 of images (B, 3, 32, 32) in [0, 1]; computed in float32 whatever the images' type."""
        tokens = tokenize(self._tokenizer, list(prompts)).to(images.device)
        rewards: Tensor = self._network(images.float(), tokens)
        return rewards


class ToyJudge:
    """The nearest-picture judge as a `Scorer`: is an image free of defects, and as its prompt says?"""

    names: tuple[str, ...] = ("judge_clean", "judge_shape", "judge_colour", "judge_background", "judge_size")

    def __init__(self) -> None:
        self._judge = Judge()

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """1 or 0 for each image (B, 3, 32, 32), NaN where its prompt leaves a part open."""
        scores = agreement(self._judge.judge(images), [parse(prompt) for prompt in prompts])
        return {name: scores[name] for name in self.names}
