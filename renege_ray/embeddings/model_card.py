"""The model card of a published embedding: what the Hub reads of it (YAML) and what people read (Markdown)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from renege_ray.config.run import RunConfig
from renege_ray.method.embedding import EmbeddingMetadata
from renege_ray.models.toy import EMBEDDED_MODELS
from renege_ray.output.folder import EMBEDDING_FILE
from renege_ray.output.image_statistics import ImageStatistics
from renege_ray.prompts.sources import source_label

PAPER = "https://arxiv.org/abs/2412.19637"
_METHODS = {"null": "empty text", "handwritten": "handwritten", "global": "this embedding", "prompt": "per prompt"}

_SNIPPET = """\
import torch
from diffusers import DiffusionPipeline
{imports}from safetensors.torch import load_file

device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
pipe = DiffusionPipeline.from_pretrained({base_model}).to(device, dtype)
negative = load_file({file})
{encode}image = pipe(
{prompt}    **{{name: tensor.to(device, dtype) for name, tensor in negative.items()}},
{settings}).images[0]
image.save("image.png")
"""
# A pipeline with an attention mask (PixArt-alpha) refuses a prompt in words beside a negative embedding.
_IN_WORDS = '    "a photograph of a fox in the snow",\n'
_ENCODE = """\
prompt, mask, _, _ = pipe.encode_prompt("a photograph of a fox in the snow", do_classifier_free_guidance=False)
"""
_ENCODED = "    prompt_embeds=prompt, prompt_attention_mask=mask, negative_prompt=None,\n"

_BODY = """\
# {title}

A *negative embedding* for `{base_model}`: what the text encoder puts out for the negative prompt, but learned by the
gradient of a reward ([ReNeg]({paper})). It takes the place of a handwritten negative prompt.

## Use

```python
{snippet}```

{placeholder}For a batch of B prompts, repeat each tensor B times in its first dimension.

The file fits every model with the same text encoder: {encoder}.

| where | how |
| --- | --- |
| diffusers | as above |
| ComfyUI | the node in `integrations/comfyui` of renege_ray; it gives CONDITIONING |
| A1111, Forge, InvokeAI | not at all: their embeddings are the encoder's input, this is its output |

## How it was learned

{learned}
{results}## Licence

{licence}
"""


@dataclass(frozen=True)
class CardFacts:
    """What a card is written from.

    Attributes:
        metadata: of the embedding.
        base_model: the Hub's id OWNER/NAME, or another name where there is none.
        licence: an identifier of the Hub's list, or "other" for the base model's terms.
        repository: where it will be published, OWNER/NAME; "" if that is not known.
        config: the run's; None where only the embedding is known.
        metrics: the run's, as in its summary.json.
        pictures: paths in the folder.
        masked: whether the embedding has an attention mask.
    """

    metadata: EmbeddingMetadata
    base_model: str
    licence: str = "other"
    repository: str = ""
    config: RunConfig | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    pictures: tuple[PurePosixPath, ...] = ()
    masked: bool = False

    @property
    def title(self) -> str:
        """The card's title and the name of the model in the Hub's tables."""
        return self.repository.rpartition("/")[2] or f"Negative embedding for {self.base_model.rpartition('/')[2]}"

    @property
    def is_on_hub(self) -> bool:
        """Whether the base model is named as the Hub names models."""
        return self.base_model.count("/") == 1 and not self.base_model.startswith((".", "/", "~"))


def model_card(facts: CardFacts) -> ModelCard:
    """The card, parsed again from its text, as the Hub would.

    Source: the Hub's documentation of model cards and their metadata.
    """
    text = _BODY.format(
        title=facts.title,
        base_model=facts.base_model,
        paper=PAPER,
        snippet=usage_snippet(facts),
        placeholder=_placeholder(facts),
        encoder=_encoder(facts.metadata),
        learned=_learned(facts),
        results=_results(facts),
        licence=_licence(facts),
    )
    return ModelCard(f"---\n{_card_data(facts).to_yaml()}\n---\n\n{text}")


def _placeholder(facts: CardFacts) -> str:
    if facts.is_on_hub:
        return ""
    which = f" --model {facts.base_model}" * (facts.base_model != EMBEDDED_MODELS[0])
    export = f"python -m renege_ray.models.toy export {facts.base_model}{which}"
    made = f" (`{export}` writes it)" * (facts.base_model in EMBEDDED_MODELS)
    return f"`{facts.base_model}` stands for a folder in diffusers' format{made}. "


def usage_snippet(facts: CardFacts) -> str:
    """Python that makes a picture with the embedding and diffusers alone."""
    settings = []
    if facts.metadata.guidance_scale is not None:
        settings.append(f"guidance_scale={facts.metadata.guidance_scale:g}")
    if facts.config is not None:
        settings.append(f"num_inference_steps={facts.config.sampling.num_inference_steps}")
    file = json.dumps(EMBEDDING_FILE)
    return _SNIPPET.format(
        imports="from huggingface_hub import hf_hub_download\n" if facts.repository else "",
        base_model=json.dumps(facts.base_model),
        encode=_ENCODE if facts.masked else "",
        prompt=_ENCODED if facts.masked else _IN_WORDS,
        file=f"hf_hub_download({json.dumps(facts.repository)}, {file})" if facts.repository else file,
        settings="".join(f"    {setting},\n" for setting in settings),
    )


def _card_data(facts: CardFacts) -> ModelCardData:
    other = facts.licence == "other"
    results = _eval_results(facts)
    return ModelCardData(
        base_model=facts.base_model,
        base_model_relation="adapter",
        library_name="diffusers",
        pipeline_tag="text-to-image",
        license=facts.licence,
        license_name="as-the-base-model" if other else None,
        license_link=f"https://huggingface.co/{facts.base_model}" if other and facts.is_on_hub else None,
        tags=["text-to-image", "diffusers", "negative-embedding", "classifier-free-guidance", "renege_ray"],
        inference=False,
        model_name=facts.title if results else None,
        eval_results=results or None,
    )


def _eval_results(facts: CardFacts) -> list[EvalResult]:
    """The mean scores of the learned embedding, for the Hub's own table."""
    if facts.config is None:
        return []
    held_out = source_label(facts.config.prompts.held_out)
    return [
        EvalResult(
            task_type="text-to-image",
            dataset_type=held_out,
            dataset_name=f"{held_out} ({facts.config.test.num_pairs} held-out prompt and seed pairs)",
            metric_type=score,
            metric_name=f"mean {score}",
            metric_value=value,
        )
        for score, value in _means(facts.metrics).get("global", {}).items()
    ]


def _means(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """{method: {score: mean}} of the metrics `eval/METHOD/SCORE/mean`; image statistics are no scores."""
    found: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        parts = name.split("/")
        if len(parts) == 4 and parts[0] == "eval" and parts[3] == "mean" and parts[2] not in ImageStatistics.names:
            found.setdefault(parts[1], {})[parts[2]] = value
    return found


def _learned(facts: CardFacts) -> str:
    metadata, config = facts.metadata, facts.config
    lines = {
        "reward": metadata.reward,
        "prompts": metadata.prompts,
        "updates": str(metadata.steps or ""),
        "guidance scale": "" if metadata.guidance_scale is None else f"{metadata.guidance_scale:g}",
        "learning rate, batch": f"{config.optim.lr:g}, {config.optim.batch_size}" if config else "",
        "sampler": f"DDIM, {config.sampling.num_inference_steps} steps" if config else "",
        "configuration": metadata.config_fingerprint,
        "made by": f"renege_ray {metadata.package_version}" if metadata.package_version else "",
    }
    known = [f"- {name}: {value}" for name, value in lines.items() if value]
    return "\n".join(known or ["Nothing is recorded of it."]) + "\n"


def _results(facts: CardFacts) -> str:
    """The means of all methods and how often this embedding wins, with the pictures."""
    means = _means(facts.metrics)
    if not means and not facts.pictures:
        return ""
    lines = ["## Results", ""]
    if means and facts.config is not None:
        scores = list(next(iter(means.values())))
        lines += [
            f"Means over {facts.config.test.num_pairs} pairs of held-out prompts "
            f"({source_label(facts.config.prompts.held_out)}) and seeds, which nothing was chosen by:",
            "",
            f"| negative | {' | '.join(scores)} |",
            f"| --- |{' ---: |' * len(scores)}",
        ]
        for method, row in means.items():
            numbers = " | ".join(f"{row[score]:.4f}" if score in row else "" for score in scores)
            lines.append(f"| {_METHODS.get(method, method)} | {numbers} |")
        for other in means:
            wins = [facts.metrics.get(f"eval/global/win_rate_vs_{other}/{score}") for score in scores]
            if any(win is not None for win in wins):
                numbers = " | ".join("" if win is None else f"{win:.2f}" for win in wins)
                lines.append(f"| wins over {_METHODS.get(other, other)} | {numbers} |")
        lines.append("")
    lines += [f"![{path.stem.replace('_', ' ')}]({path})\n" for path in facts.pictures]
    return "\n".join(lines) + "\n"


def _encoder(metadata: EmbeddingMetadata) -> str:
    known = [metadata.text_encoder, f"hash `{metadata.text_encoder_hash}`" if metadata.text_encoder_hash else ""]
    return ", ".join(filter(None, known)) or "that of the base model"


def _licence(facts: CardFacts) -> str:
    if facts.licence == "other":
        return f"The terms of the base model, `{facts.base_model}`, apply."
    return f"{facts.licence}. What the terms of the base model, `{facts.base_model}`, ask for applies too."
