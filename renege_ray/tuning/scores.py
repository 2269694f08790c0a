"""How null, handwritten, the initial embedding and a prompt's own compare, on its tune seeds and on fresh ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from renege_ray.config.run import RunConfig
from renege_ray.method.embedding import as_stored
from renege_ray.models.base import TextToImage
from renege_ray.rewards.base import Scorer
from renege_ray.sampling.batches import MicroBatches, together_or_alone
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.images import Pair, score
from renege_ray.sampling.images import generate as make_images
from renege_ray.sampling.run_rewards import Rewards
from renege_ray.tuning.tune import TunedPrompt, tuning_seeds

METHODS = ("null", "handwritten", "global", "prompt")
TUNE, EVAL = "tune", "eval"


def column(score: str, method: str, split: str) -> str:
    """The name of a score's column, such as `reward_prompt_eval`; split: `tune` or `eval`."""
    return f"{score}_{method}_{split}"


def score_columns(scores: Sequence[str]) -> list[str]:
    """The columns of all scores, methods and splits."""
    return [column(score, method, split) for score in scores for method in METHODS for split in (TUNE, EVAL)]


@dataclass(frozen=True)
class _Sample:
    """One image: of which prompt (by its index), method and split, from which seed; or the image itself."""

    index: int
    method: str
    split: str
    pair: Pair
    negative: Tensor
    image: Tensor | None = None


class PromptScores:
    """Generates what tuning has not generated already, and scores it all.

    Attributes:
        names: of the scores: `reward` (what is trained against, weighted), its parts, held-out rewards, judges.
        initial: "global" as it was measured: rounded to the storage type, (1, L, D).
    """

    def __init__(
        self, config: RunConfig, model: TextToImage, rewards: Rewards, initial: Tensor, encoded: EncodedPrompts
    ) -> None:
        self._config, self._model, self._encoded = config, model, encoded
        self._scorers: list[Scorer] = rewards.scorers()
        self.names = [name for scorer in self._scorers for name in scorer.names]
        self.initial = as_stored(initial.float().cpu())
        self._negatives = {
            "null": encoded.null().cpu(),
            "handwritten": encoded.negatives([config.prompts.handwritten[0]]).cpu(),
            "global": self.initial,
        }
        largest = config.tuning.slots * config.tuning.tune_seeds
        self._micro_batches = MicroBatches(config.tuning.micro_batch_size, largest, "tuning.micro_batch_size")

    def score(self, tuned: Sequence[TunedPrompt]) -> list[dict[str, float] | str]:
        """For each prompt its columns (see `column`), means over the seeds of a split; or why it has none.

        NaN stands where a score does not apply to a prompt. Where the batch raises, each prompt is tried alone.
        """
        return together_or_alone(tuned, self._score, lambda one, reason: reason)

    def _score(self, tuned: Sequence[TunedPrompt]) -> list[dict[str, float]]:
        samples = [sample for index, one in enumerate(tuned) for sample in self._samples(index, one)]
        seen: list[dict[tuple[str, str], list[Tensor]]] = [{} for _ in tuned]
        for piece, scores in self._micro_batches.over(samples, self._score_samples):
            for sample, row in zip(piece, scores, strict=True):
                seen[sample.index].setdefault((sample.method, sample.split), []).append(row)
        for one, rows in zip(tuned, seen, strict=True):
            if one.best_step == 0:  # the prompt's own embedding is the initial one: the same images
                rows["prompt", TUNE], rows["prompt", EVAL] = rows["global", TUNE], rows["global", EVAL]
        return [self._means(rows) for rows in seen]

    def _samples(self, index: int, tuned: TunedPrompt) -> list[_Sample]:
        """All images of a prompt; those from the tune seeds that tuning has made are not made again."""
        tune_seeds, eval_seeds = tuning_seeds(self._config, tuned.prompt)
        negatives = self._negatives | ({"prompt": tuned.embedding} if tuned.best_step else {})
        samples = []
        for method, negative in negatives.items():
            made = tuned.images.get(method, [None] * len(tune_seeds))
            for seed, image in zip(tune_seeds, made, strict=True):
                samples.append(_Sample(index, method, TUNE, Pair(tuned.prompt, seed), negative, image))
            for seed in eval_seeds:
                samples.append(_Sample(index, method, EVAL, Pair(tuned.prompt, seed), negative))
        return samples

    def _score_samples(self, samples: Sequence[_Sample]) -> Tensor:
        """(b, scores) float64."""
        missing = [sample for sample in samples if sample.image is None]
        made = iter(self._generate(missing))
        images = torch.stack([next(made) if sample.image is None else sample.image for sample in samples])
        images, prompts = images.to(self._model.device), [sample.pair.prompt for sample in samples]
        scores = score(self._scorers, images, prompts)
        return torch.stack([scores[name].cpu().double() for name in self.names], dim=1)

    def _generate(self, samples: Sequence[_Sample]) -> Sequence[Tensor]:
        if not samples:
            return []
        negatives, pairs = torch.cat([sample.negative for sample in samples]), [sample.pair for sample in samples]
        images = make_images(self._model, negatives, pairs, self._config.sampling, self._encoded)
        return list(images.float().cpu())

    def _means(self, rows: dict[tuple[str, str], list[Tensor]]) -> dict[str, float]:
        return {
            column(name, method, split): float(values[i])
            for (method, split), found in rows.items()
            for values in [torch.stack(found).nanmean(dim=0)]
            for i, name in enumerate(self.names)
        }
