"""The model card of a published embedding: what the Hub reads of it (YAML) and what people read (Markdown)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from renege_ray.config.run import RunConfig
from renege_ray.method.embedding import EmbeddingMetadata
from renege_ray.models.toy import EMBEDDED_MODELS
from renege_ray.output.folder import EMBEDDING_FILE
from renege_ray.prompts.sources import source_label
from renege_ray.rewards.base import UNRANKED

_METHODS = {"null": "empty text", "handwritten": "handwritten", "global": "this embedding", "prompt": "per prompt"}
_LOADER = jinja2.PackageLoader("renege_ray.embeddings", ".")
_TEMPLATES = jinja2.Environment(loader=_LOADER, undefined=jinja2.StrictUndefined)


@dataclass(frozen=True)
class CardFacts:
    """What a card is written from."""

    metadata: EmbeddingMetadata
    """Of the embedding."""
    base_model: str
    """The Hub's id OWNER/NAME, or another name where there is none."""
    licence: str = "other"
    """An identifier of the Hub's list, or "other" for the base model's terms."""
    repository: str = ""
    """Where it will be published, OWNER/NAME; "" if that is not known."""
    config: RunConfig | None = None
    """The run's; None where only the embedding is known."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The run's, as in its summary.json."""
    pictures: tuple[PurePosixPath, ...] = ()
    """Paths in the folder."""
    masked: bool = False
    """Whether the embedding has an attention mask."""

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
    metadata = facts.metadata
    known = [metadata.text_encoder, f"hash `{metadata.text_encoder_hash}`" if metadata.text_encoder_hash else ""]
    which = f" --model {facts.base_model}" * (facts.base_model != EMBEDDED_MODELS[0])
    text = _TEMPLATES.get_template("model_card.md.j2").render(
        facts=facts,
        snippet=usage_snippet(facts).rstrip("\n"),
        export=f"renege-ray toy export {facts.base_model}{which}" * (facts.base_model in EMBEDDED_MODELS),
        encoder=", ".join(filter(None, known)) or "that of the base model",
        learned=_learned(facts),
        held_out=source_label(facts.config.prompts.held_out) if facts.config else "",
        scores=_scores(facts),
        rows=_results(facts) if facts.config else [],
    )
    return ModelCard(f"---\n{_card_data(facts).to_yaml()}\n---\n\n{text}")


def usage_snippet(facts: CardFacts) -> str:
    """Python that makes a picture with the embedding and diffusers alone."""
    return _TEMPLATES.get_template("usage.py.j2").render(facts=facts, file=EMBEDDING_FILE, quote=json.dumps)


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
        if len(parts) == 4 and parts[0] == "eval" and parts[3] == "mean" and parts[2] not in UNRANKED:
            found.setdefault(parts[1], {})[parts[2]] = value
    return found


def _scores(facts: CardFacts) -> list[str]:
    return list(next(iter(_means(facts.metrics).values()), {}))


def _learned(facts: CardFacts) -> dict[str, str]:
    """What is known of the training, in words."""
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
    return {name: value for name, value in lines.items() if value}


def _results(facts: CardFacts) -> list[tuple[str, list[str]]]:
    """Rows of the table: the means of all methods, and how often this embedding wins."""
    means, scores = _means(facts.metrics), _scores(facts)
    rows = [
        (_METHODS.get(method, method), [f"{row[score]:.4f}" if score in row else "" for score in scores])
        for method, row in means.items()
    ]
    for other in means:
        wins = [facts.metrics.get(f"eval/global/win_rate_vs_{other}/{score}") for score in scores]
        if any(win is not None for win in wins):
            cells = ["" if win is None else f"{win:.2f}" for win in wins]
            rows.append((f"wins over {_METHODS.get(other, other)}", cells))
    return rows
