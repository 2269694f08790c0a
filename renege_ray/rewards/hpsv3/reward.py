"""Human Preference Score v3 (arXiv 2508.03789): Qwen2-VL 7B, fine-tuned on which of two images people prefer.

The language model reads the image, an instruction that says what to look at, and the prompt. The state of one token,
<|Reward|>, holds its judgement: a normal distribution N(mu, sigma^2), of which mu is the reward, and sigma how far
people are apart.

Positions are 0, 1, 2 ... for text and image alike, where Qwen2-VL has rows and columns for an image: its authors' own
forward pass has it so, and the model was trained by it. What follows <|Reward|> is left out; nothing before it sees it.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen2VLModel

from renege_ray.errors import UserError
from renege_ray.models.loading.user_errors import user_errors
from renege_ray.rewards.base import TEXTS_KEPT, RewardModel
from renege_ray.rewards.catalogue import QWEN2_VL, REWARDS, RewardFacts
from renege_ray.rewards.checkpoints import assemble, read_weights
from renege_ray.rewards.hpsv3.qwen2_vl import assemble_backbone, image_features, read_config
from renege_ray.rewards.video.frames import over_frames

PIXELS = 256 * 28 * 28  # of an image: 256 tokens if it is square
REWARD_TOKEN, IMAGE_TOKEN = "<|Reward|>", "<|image_pad|>"
# The authors' instruction (MIT licence) in Qwen2-VL's chat, as one text. Trailing spaces count.
TEMPLATE = Path(__file__).with_name("prompt.txt").read_text(encoding="utf-8").removesuffix("\n")
_HEAD = "rm_head."
(SIGMA,) = REWARDS["hpsv3"].beside


class Head(nn.Module):
    """States (B, D) -> (B, 2): mu and ln sigma."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # The checkpoint counts two activations and a dropout too.
        self.layers = nn.ModuleDict({"0": nn.Linear(width, 1024), "3": nn.Linear(1024, 16), "5": nn.Linear(16, 2)})

    def forward(self, states: Tensor) -> Tensor:
        """(B, D) -> (B, 2)."""
        first, second, last = self.layers.values()
        found: Tensor = last(F.relu(second(F.relu(first(states)))))
        return found


class Reading:
    """The tokens before the image, which are always the same, and those after it, which end with <|Reward|>.

    Special tokens part a text, so both sides can be tokenized by themselves.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        before, self._after = TEMPLATE.split(IMAGE_TOKEN)
        self.before = self._ids(before)

    def after(self, prompt: str) -> list[int]:
        """Ids of the instruction with a prompt."""
        return self._ids(self._after.format(text_prompt=prompt))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


class HPSv3(RewardModel):
    """R(c, x) = mu(head(s)), with the state s of <|Reward|> after the image x and the prompt c."""

    def __init__(
        self, facts: RewardFacts, checkpoint: Path, model: Qwen2VLModel, head: Head, tokenizer: Tokenizer
    ) -> None:
        super().__init__(facts, checkpoint)
        self.model, self.head = model, head
        self._reading = Reading(tokenizer)
        self._kept_ids = lru_cache(TEXTS_KEPT)(self._ids_after)
        self._kept_before = lru_cache(1)(lambda device: self._tensor(self._reading.before))

    def judge(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """mu, (B,)."""
        return self.distribution(images, prompts)[:, 0]

    def measure(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """mu by the reward's name, and sigma (B,); of videos, the means over their frames."""

        def both(images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
            self.check(images, prompts)
            mu, log_sigma = self.distribution(images.float(), prompts).unbind(dim=1)
            return {self.name: mu, SIGMA: log_sigma.exp()}

        return over_frames(both, images, prompts)

    def distribution(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """mu and ln sigma, (B, 2) float32, differentiable."""
        found: Tensor = self.head(self.states(images, prompts))
        return found

    def states(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """s, (B, D) float32, differentiable."""
        seen = image_features(self.model, images, PIXELS)
        before, after = self._kept_before(images.device), [self._kept_ids(prompt) for prompt in prompts]
        # Shorter rows are filled up at their ends, which no token before sees, so no mask is needed.
        padded = nn.utils.rnn.pad_sequence(after, batch_first=True)
        embed = self.model.language_model.embed_tokens
        rows = [embed(before).float().expand(len(images), -1, -1), seen, embed(padded).float()]
        states = self.model.language_model(inputs_embeds=torch.cat(rows, dim=1), use_cache=False).last_hidden_state
        start = len(before) + seen.shape[1]
        return torch.stack([states[i, start + len(ids) - 1] for i, ids in enumerate(after)])

    def _ids_after(self, prompt: str) -> Tensor:
        return self._tensor(self._reading.after(prompt))

    def _tensor(self, ids: list[int]) -> Tensor:
        """Where the model is: a copy at every call would wait for all computation."""
        with torch.inference_mode(False):
            return torch.tensor(ids, device=self.model.language_model.embed_tokens.weight.device)


def load(facts: RewardFacts, files: Mapping[str, Path], dtype: torch.dtype) -> HPSv3:
    """From HPSv3.safetensors, which has the whole fine-tuned model; tokenizer and configuration are Qwen2-VL's.

    Raises:
        UserError: a file is damaged or of another model.
    """
    checkpoint, vocabulary = files[facts.name], files[QWEN2_VL.name]
    config = read_config(vocabulary.with_name("config.json"))
    weights = read_weights(checkpoint)
    model = assemble_backbone(config, weights, checkpoint, dtype)
    layers = {
        f"layers.{name.removeprefix(_HEAD)}": tensor for name, tensor in weights.items() if name.startswith(_HEAD)
    }
    head = assemble(lambda: Head(config.text_config.hidden_size), layers, checkpoint)
    return HPSv3(facts, checkpoint, model, head, _tokenizer(vocabulary, config.text_config.vocab_size))


def _tokenizer(path: Path, vocab_size: int) -> Tokenizer:
    """Qwen2-VL's with <|Reward|>, which comes last.

    Raises:
        UserError: the file is damaged, or is of another model.
    """
    with user_errors(f"tokenizer {path}", "download it again"):
        tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens([AddedToken(REWARD_TOKEN, normalized=False, special=True)])
    if tokenizer.get_vocab_size() != vocab_size or tokenizer.token_to_id(REWARD_TOKEN) != vocab_size - 1:
        raise UserError(
            f"tokenizer {path} has {tokenizer.get_vocab_size()} tokens with {REWARD_TOKEN}, the model {vocab_size}: "
            "give tokenizer.json of Qwen/Qwen2-VL-7B-Instruct"
        )
    return tokenizer
