"""What a finished run leaves for people: the embeddings, the table of results, the before/after picture."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from renege_ray.config.fingerprint import fingerprint
from renege_ray.config.run import RunConfig
from renege_ray.method.embedding import STORAGE_DTYPE, EmbeddingMetadata, NegativeEmbedding
from renege_ray.models.base import TextToImage
from renege_ray.models.layout import EmbeddingLayout
from renege_ray.output.folder import EMBEDDING_FILE
from renege_ray.output.pictures import image_grid, save_png, text_table
from renege_ray.output.statistics import bootstrap_means
from renege_ray.prompts.sources import source_label
from renege_ray.rewards.base import UNRANKED, RewardModel, RewardScorer
from renege_ray.sampling.images import Evaluation
from renege_ray.sampling.run_rewards import REWARD, Rewards
from renege_ray.training.state import TrainingState
from renege_ray.version import __version__

LABELS = {"null": "null", "handwritten": "handwritten", "global": "global (learned)"}


@dataclass(frozen=True)
class ModelFacts:
    """What the results say of the models; known only where they were loaded."""

    base_model: str
    text_encoder: str
    text_encoder_hash: str
    reward: str
    layout: EmbeddingLayout
    rewards: list[dict[str, Any]]
    """Version, checkpoint and SHA-256 of each reward, see `RewardModel.describe`."""

    @classmethod
    def of(cls, model: TextToImage, rewards: Rewards) -> "ModelFacts":
        """Those of loaded models. Large checkpoints of rewards are read through for their SHA-256: once is enough."""
        judges = [judge.reward for judge in rewards.judges if isinstance(judge, RewardScorer)]
        everything = [*rewards.train.rewards, *rewards.held_out, *judges]
        return cls(
            base_model=model.name,
            text_encoder=model.text_encoder_name,
            text_encoder_hash=model.text_encoder_hash,
            reward=rewards.train.name,
            layout=model.embedding_layout,
            rewards=[reward.describe() for reward in everything if isinstance(reward, RewardModel)],
        )

    def plain(self) -> dict[str, Any]:
        """As maps, lists, texts and numbers, to travel between processes."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "ModelFacts":
        """What `plain()` was called on."""
        return cls(**{**plain, "layout": EmbeddingLayout(**plain["layout"])})


@dataclass(frozen=True)
class Artifacts:
    """Where the results of a run lie."""

    embedding: Path
    last_embedding: Path
    table: Path
    rewards: Path
    picture: Path | None

    def named(self) -> dict[str, Path]:
        """By the names that summary.json uses."""
        files = {"embedding": self.embedding, "last_embedding": self.last_embedding}
        files |= {"table": self.table, "rewards": self.rewards}
        return files | ({"before_after": self.picture} if self.picture else {})


def metadata_of(config: RunConfig, facts: ModelFacts, step: int) -> EmbeddingMetadata:
    """The metadata of an embedding learned by this run, after `step` updates."""
    return EmbeddingMetadata(
        text_encoder_hash=facts.text_encoder_hash,
        text_encoder=facts.text_encoder,
        base_model=facts.base_model,
        guidance_scale=config.sampling.guidance_scale,
        reward=facts.reward,
        prompts=source_label(config.prompts.train),
        steps=step,
        config_fingerprint=fingerprint(config),
        package_version=__version__,
    )


def write_results(config: RunConfig, facts: ModelFacts, state: TrainingState, test: Evaluation) -> Artifacts:
    """Write everything below `config.output_dir`; what is there already is replaced."""
    folder = config.output_dir
    best, last = folder / EMBEDDING_FILE, folder / "last_embedding.safetensors"
    save_embedding(best, state.best.prompt_embeds, config, facts, state.best.step)
    save_embedding(last, state.last, config, facts, state.step)
    table = folder / "results.txt"
    table.write_text(results_table(test, state), encoding="utf-8")
    rewards = folder / "rewards.json"
    rewards.write_text(json.dumps(facts.rewards, indent=2) + "\n", encoding="utf-8")
    return Artifacts(best, last, table, rewards, _write_picture(test, folder / "images" / "before_after.png"))


def save_embedding(path: Path, embedding: Tensor, config: RunConfig, facts: ModelFacts, step: int) -> None:
    """Write an embedding (1, L, D) that this run has learned after `step` updates, rounded to the storage type."""
    tensors = facts.layout.unpack_negative(embedding.to(STORAGE_DTYPE))
    NegativeEmbedding(tensors, metadata_of(config, facts, step)).save(path)


def results_table(test: Evaluation, state: TrainingState) -> str:
    """Mean scores by method, and how often the learned negative wins, on held-out prompts and seeds."""
    scores = list(next(iter(test.scores.values())))
    parts = [score for score in scores if score != REWARD]
    # A single training reward of weight 1 is the weighted sum: one column is enough.
    redundant = any(all(_same(test, method, REWARD, part) for method in test.scores) for part in parts)
    shown = parts if redundant else scores
    header = ["negative", *shown]
    rows = [
        [LABELS.get(method, method), *(_number(test.mean(method, score)) for score in shown)] for method in test.scores
    ]
    compared = [score for score in shown if score not in UNRANKED]
    for other in test.scores:
        if other != "global" and "global" in test.scores:
            wins = [f"{test.win_rate('global', other, score):.2f}" if score in compared else "" for score in shown]
            rows.append([f"wins of global over {other}", *wins])
    return (
        f"{len(test.pairs)} held-out prompt and seed pairs; handwritten is {state.handwritten!r}; "
        f"global is the best by validation, from step {state.best.step} of {state.step}\n\n"
        f"{text_table(header, rows)}\n"
    )


def answer(test: Evaluation) -> str:
    """In a sentence, what the learned negative has brought on held-out pairs, with a 95 % interval of the gain."""
    others = [other for other in test.scores if other != "global"]
    if "global" not in test.scores or not others:
        return ""
    wins = " and ".join(f"{other} on {test.win_rate('global', other, REWARD):.0%}" for other in others)
    return (
        f"The learned negative beats {wins} of {len(test.pairs)} held-out pairs; reward {gain_words(test, others[0])}"
    )


def gain_words(test: Evaluation, other: str) -> str:
    """The mean gain in training reward of the learned negative over another one, and its interval over prompts."""
    gains = test.scores["global"][REWARD] - test.scores[other][REWARD]
    found = bootstrap_means(gains.numpy()[:, None], [pair.prompt for pair in test.pairs])
    low, high = found.low[0], found.high[0]
    interval = "" if math.isnan(low) else f" [{low:+.3f}, {high:+.3f}]"
    return f"{found.mean[0]:+.3f}{interval} over {other}"


def _same(test: Evaluation, method: str, first: str, second: str) -> bool:
    return bool(test.scores[method][first].equal(test.scores[method][second]))


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"


def _write_picture(test: Evaluation, path: Path) -> Path | None:
    if not test.images:
        return None
    count = len(next(iter(test.images.values())))
    captions = [pair.prompt for pair in test.pairs[:count]]
    rows = {f"{LABELS.get(m, m)}\n{test.mean(m, REWARD):.3f}": images for m, images in test.images.items()}
    save_png(image_grid(rows, captions, "held-out prompts, the same seeds in each column"), path)
    return path
