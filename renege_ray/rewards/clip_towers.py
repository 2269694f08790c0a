"""What the rewards made of CLIP share: two towers, and the cosine between an image's and a prompt's features.

Shapes: images (B, 3, H, W), features (B, D). The image tower may compute in bfloat16 (`vision.compute_in`). Resizing,
normalisation and the cosine are float32 always, since bfloat16 cannot tell 0.280 from 0.281, and so is the text tower,
which sees a prompt once.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from renege_ray.errors import UserError
from renege_ray.models.loading.user_errors import user_errors
from renege_ray.models.networks.compiled import TOWER_SIZES, Compiled
from renege_ray.models.networks.on_demand import OncePerText, OnDemand
from renege_ray.output.progress import Counter
from renege_ray.rewards.base import TEXTS_KEPT, RewardModel
from renege_ray.rewards.catalogue import RewardFacts
from renege_ray.rewards.checkpoints import HEAD_WIDTH, assemble, num_heads, read_weights
from renege_ray.rewards.clip_tokens import ClipTokenizer
from renege_ray.rewards.vision import compute_in, normalise

# Width of a tower: width of its attention heads, where that is not 64 (here ViT-H/14). A state dict does not say.
_VISION_HEAD_WIDTHS = {1280: 80}


class ClipReward(RewardModel):
    """R(c, x) = scale * cos(f(x), g(c)) with the image tower f and the text tower g.

    The text tower is on the accelerator only while it reads prompts that it has not read lately.
    """

    def __init__(
        self,
        facts: RewardFacts,
        checkpoint: Path,
        model: CLIPModel,
        tokenizer: ClipTokenizer,
        fit: Callable[[Tensor, int], Tensor],
        scale: float = 1.0,
    ) -> None:
        """Put the parts together.

        Args:
            facts: of the reward.
            checkpoint: the file that the model is from.
            model: frozen.
            tokenizer: of the model.
            fit: (B, 3, H, W), size -> (B, 3, size, size).
            scale: what the cosine is multiplied by.
        """
        super().__init__(facts, checkpoint)
        self.model, self.scale = model, scale
        self._tokenizer, self._fit = tokenizer, fit
        self._image_size: int = model.config.vision_config.image_size
        self._features: Callable[[Tensor], Tensor] = self._tower
        self._place_text_tower(torch.device("cpu"))

    def place(self, device: torch.device) -> None:
        """See `RewardModel`."""
        self.model.vision_model.to(device)
        self.model.visual_projection.to(device)
        self._place_text_tower(device)

    def _place_text_tower(self, device: torch.device) -> None:
        self._text_tower = OnDemand((self.model.text_model, self.model.text_projection), device)
        self._texts = OncePerText(self._text_features_of_one, self._text_tower.on_device, TEXTS_KEPT)

    def prepare(self, prompts: Iterable[str], say: Callable[[str], None] = lambda line: None) -> None:
        """See `ReadsPrompts`."""
        prompts = list(prompts)
        self._texts.prepare(prompts, Counter(len(prompts), f"{self.name} reads prompts:", say).add)

    def judge(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,)."""
        cosines = (self.image_features(images) * self.text_features(prompts).to(images.device)).sum(dim=1)
        return self.scale * cosines

    def image_features(self, images: Tensor) -> Tensor:
        """f(x), (B, D) float32 of length 1, differentiable."""
        pixels = normalise(self._fit(images, self._image_size))
        return F.normalize(self._features(pixels), dim=1)

    def compile_towers(self) -> None:
        """The image tower: it sees every image, the text tower a prompt once."""
        self._features = Compiled(self._tower, TOWER_SIZES)

    def _tower(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.model.get_image_features(pixels).pooler_output
        return features

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """g(c), (B, D) float32 of length 1; those of recent prompts are kept."""
        return torch.stack(self._texts(prompts))

    def _text_features_of_one(self, prompt: str) -> Tensor:
        """(D,), of the prompt alone."""
        ids, cut = self._tokenizer(prompt)
        if cut:
            self.note_truncated(prompt)
        # A caller may be in inference mode, whose tensors no later gradient could use.
        with torch.inference_mode(False), torch.no_grad():
            tokens = torch.tensor([ids], device=self._text_tower.device)
            features = self.model.get_text_features(tokens).pooler_output
            return F.normalize(features, dim=1)[0]


def clip_from_folder(weights: Path, dtype: torch.dtype) -> tuple[CLIPModel, float]:
    """A CLIP in transformers' format, from its model.safetensors beside its config.json, and its logit scale.

    Args:
        weights: model.safetensors.
        dtype: of the image tower.

    Raises:
        UserError: a file is damaged, or is of another kind of model.
    """
    config = read_clip_config(weights)
    tensors = read_weights(weights)
    model = assemble(partial(CLIPModel, config), tensors, weights)
    compute_in(model.vision_model, dtype)
    return model, tensors["logit_scale"].float().exp().item()


def read_clip_config(weights: Path) -> CLIPConfig:
    """The config.json beside the weights. Raises UserError where it is no CLIP's."""
    path = weights.with_name("config.json")
    with user_errors(str(path), "download it again"):
        settings = json.loads(path.read_text(encoding="utf-8"))
        kind = settings.get("model_type")
        if kind != "clip":
            raise UserError(f"{path} is of a {kind!r} model: give the folder of a CLIP")
        return CLIPConfig.from_dict(settings)


def clip_from_open_clip(checkpoint: Path, hidden_act: str, dtype: torch.dtype) -> CLIPModel:
    """A CLIP in open_clip's layout as transformers' model; its size follows from the weights.

    Args:
        checkpoint: 686 tensors for ViT-H/14, alone or under `state_dict`.
        hidden_act: of the towers, which the weights do not say: "gelu", or "quick_gelu" for OpenAI's.
        dtype: of the image tower.

    Raises:
        UserError: the file is damaged, or has other tensors.
    """
    weights = read_weights(checkpoint)
    try:
        config = _config_of_open_clip(weights, hidden_act)
        converted = _convert_open_clip(weights)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"checkpoint {checkpoint} is no CLIP in open_clip's layout ({error}): is it the file of another model?"
        ) from error
    model = assemble(partial(CLIPModel, config), converted, checkpoint)
    compute_in(model.vision_model, dtype)
    return model


def _config_of_open_clip(weights: Mapping[str, Tensor], hidden_act: str) -> CLIPConfig:
    text_width = weights["ln_final.weight"].shape[0]
    vision_width, _, patch_size, _ = weights["visual.conv1.weight"].shape
    positions = weights["visual.positional_embedding"].shape[0] - 1
    vocab_size = weights["token_embedding.weight"].shape[0]

    def tower(prefix: str, width: int, head_width: int) -> dict[str, int | str]:
        layers = {name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)}
        return {
            "hidden_size": width,
            "intermediate_size": weights[f"{prefix}0.mlp.c_fc.weight"].shape[0],
            "num_hidden_layers": len(layers),
            "num_attention_heads": num_heads(width, head_width),
            "hidden_act": hidden_act,
        }

    return CLIPConfig(
        projection_dim=weights["text_projection"].shape[1],
        text_config={
            **tower("transformer.resblocks.", text_width, HEAD_WIDTH),
            "vocab_size": vocab_size,
            "max_position_embeddings": weights["positional_embedding"].shape[0],
            "bos_token_id": vocab_size - 2,
            "eos_token_id": vocab_size - 1,  # whose features are the prompt's: the largest id, as open_clip has it
        },
        vision_config={
            **tower("visual.transformer.resblocks.", vision_width, _VISION_HEAD_WIDTHS.get(vision_width, HEAD_WIDTH)),
            "image_size": round(positions**0.5) * patch_size,
            "patch_size": patch_size,
        },
    )


_RENAMED = {
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_RENAMED_PARTS = {
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "transformer.resblocks": "text_model.encoder.layers",
}
_RENAMED_IN_LAYERS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn": "self_attn",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def _convert_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under transformers' names. Attention's input projection is three there; the last projections are transposed."""
    converted = {}
    for name, tensor in weights.items():
        if name in _RENAMED:
            converted[_RENAMED[name]] = tensor
        elif name in _TRANSPOSED:
            converted[_TRANSPOSED[name]] = tensor.T.contiguous()
        else:
            renamed = _renamed(name)
            if ".in_proj_" in renamed:
                for part, third in zip("qkv", tensor.chunk(3), strict=True):
                    converted[renamed.replace("in_proj_", f"{part}_proj.")] = third
            else:
                converted[renamed] = tensor
    return converted


def _renamed(name: str) -> str:
    for old, new in _RENAMED_PARTS.items():
        if name.startswith(f"{old}."):
            name = name.replace(old, new, 1)
            break
    for old, new in _RENAMED_IN_LAYERS.items():
        name = name.replace(f".{old}.", f".{new}.")
    return name
