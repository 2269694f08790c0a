"""ImageReward (arXiv 2304.05977): BLIP, whose text tower looks at the image, and a small network on its first token.

The original reads a copy of BLIP's code; here the towers are transformers' own, and the checkpoint's names are
translated. Prompt and image meet in every layer of the text tower, so of a prompt only its tokens can be kept.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from renege_ray.errors import UserError
from renege_ray.models.networks.compiled import TOWER_SIZES, Compiled
from renege_ray.rewards.aesthetic import Head
from renege_ray.rewards.base import TEXTS_KEPT, RewardModel
from renege_ray.rewards.catalogue import BERT_VOCABULARY, RewardFacts
from renege_ray.rewards.checkpoints import assemble, num_heads, read_weights
from renege_ray.rewards.vision import centre_crop, compute_in, normalise

# Of the scores on the original's training set; its scores have mean 0 and deviation 1 there.
MEAN, STD = 0.16717362830052426, 1.0333394966054072
MAX_TOKENS = 35
_VISION = "blip.visual_encoder."
_TEXT = "blip.text_encoder."
_MLP = "mlp."


class ImageReward(RewardModel):
    """R(c, x) = (head(text tower(c, vision tower(x))[0]) - MEAN) / STD."""

    def __init__(
        self,
        facts: RewardFacts,
        checkpoint: Path,
        vision: BlipVisionModel,
        text: BlipTextModel,
        head: Head,
        tokenizer: BertTokenizer,
    ) -> None:
        super().__init__(facts, checkpoint)
        self.vision, self.text, self.head = vision, text, head
        self._tokenizer = tokenizer
        self._judged: Callable[[Tensor, Tensor, Tensor], Tensor] = self._towers
        self._kept_tokens = lru_cache(TEXTS_KEPT)(self._tokens)

    def judge(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,)."""
        pixels = normalise(centre_crop(images, self.vision.config.image_size))
        tokens, mask = torch.stack([self._kept_tokens(p) for p in prompts], dim=1)
        return self._judged(pixels, tokens, mask)

    def compile_towers(self) -> None:
        """Both: the text tower looks at the image."""
        self._judged = Compiled(self._towers, TOWER_SIZES)

    def _towers(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        # Not the pooled output, which transformers normalises twice.
        patches = self.vision(pixels).last_hidden_state
        output = self.text(input_ids=tokens, attention_mask=mask, encoder_hidden_states=patches)
        first = output.last_hidden_state[:, 0]
        rewards: Tensor = (self.head(first) - MEAN) / STD
        return rewards

    def _tokens(self, prompt: str) -> Tensor:
        """Ids and mask (2, MAX_TOKENS), where the towers are: a copy at every call would wait for all computation."""
        ids = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if len(ids) > MAX_TOKENS - 2:
            self.note_truncated(prompt)
        encoded = self._tokenizer(
            prompt, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        return torch.cat([encoded.input_ids, encoded.attention_mask]).to(next(self.text.parameters()).device)


def load(facts: RewardFacts, files: Mapping[str, Path], dtype: torch.dtype) -> ImageReward:
    """From ImageReward.pt; the towers' sizes follow from the weights.

    Raises:
        UserError: a file is damaged or of another model.
    """
    checkpoint = files[facts.name]
    weights = read_weights(checkpoint)
    try:
        vision_config, text_config = _vision_config(weights), _text_config(weights)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"checkpoint {checkpoint} is no ImageReward ({error}): is it the file of another model?"
        ) from error
    vision = assemble(partial(BlipVisionModel, vision_config), _vision_weights(weights), checkpoint)
    compute_in(vision, dtype)
    make_text = partial(BlipTextModel, text_config, add_pooling_layer=False)
    text = assemble(make_text, _below(weights, _TEXT), checkpoint)
    head = assemble(partial(Head, text_config.hidden_size), _below(weights, _MLP), checkpoint)
    tokenizer = _bert_tokenizer(files[BERT_VOCABULARY.name], text_config.vocab_size)
    return ImageReward(facts, checkpoint, vision, text, head, tokenizer)


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _num_layers(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)})


def _vision_config(weights: Mapping[str, Tensor]) -> BlipVisionConfig:
    width, _, patch_size, _ = weights[f"{_VISION}patch_embed.proj.weight"].shape
    positions = weights[f"{_VISION}pos_embed"].shape[1] - 1
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=weights[f"{_VISION}blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=_num_layers(weights, f"{_VISION}blocks."),
        num_attention_heads=num_heads(width),
        image_size=round(positions**0.5) * patch_size,
        patch_size=patch_size,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )


def _text_config(weights: Mapping[str, Tensor]) -> BlipTextConfig:
    vocab_size, width = weights[f"{_TEXT}embeddings.word_embeddings.weight"].shape
    layer = f"{_TEXT}encoder.layer."
    return BlipTextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        encoder_hidden_size=weights[f"{layer}0.crossattention.self.key.weight"].shape[1],
        intermediate_size=weights[f"{layer}0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=_num_layers(weights, layer),
        num_attention_heads=num_heads(width),
        max_position_embeddings=weights[f"{_TEXT}embeddings.position_embeddings.weight"].shape[0],
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        bos_token_id=None,  # nothing is generated
        sep_token_id=None,
    )


_RENAMED = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.": "embeddings.patch_embedding.",
    "blocks.": "encoder.layers.",
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.proj.": ".self_attn.projection.",
    ".attn.qkv.": ".self_attn.qkv.",
}


def _vision_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under transformers' names; the text tower's are the same as the original's."""
    renamed = {}
    for name, tensor in _below(weights, _VISION).items():
        if name.startswith("norm."):
            name = f"post_layer{name}"
        for old, new in _RENAMED.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


def _bert_tokenizer(vocabulary: Path, vocab_size: int) -> BertTokenizer:
    """BERT's uncased one with BLIP's two marks, which come last.

    Raises:
        UserError: the file is damaged, or has another number of words than the model.
    """
    try:
        words = vocabulary.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"BERT vocabulary {vocabulary} is damaged ({error}): download it again") from error
    ids = {word.rstrip("\r"): i for i, word in enumerate(words) if word}
    tokenizer = BertTokenizer(vocab=ids, bos_token="[DEC]", extra_special_tokens=["[ENC]"])
    if len(tokenizer) != vocab_size:
        raise UserError(
            f"BERT vocabulary {vocabulary} has {len(tokenizer)} words with BLIP's two, the model {vocab_size}: "
            "give vocab.txt of google-bert/bert-base-uncased"
        )
    return tokenizer
