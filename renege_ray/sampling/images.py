"""Use case: compare negatives by full generations on the same prompts and seeds."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from renege_ray.config.run import SamplingConfig
from renege_ray.method.rollout import rollout
from renege_ray.models.base import TextToImage
from renege_ray.output.image_statistics import ImageStatistics
from renege_ray.output.statistics import least_difference, wins
from renege_ray.prompts.sources import pair_seed, prompt_id
from renege_ray.rewards.base import UNRANKED, Scorer, VideoScorer, prepare_texts
from renege_ray.rewards.video.frames import middle_frame, over_frames
from renege_ray.sampling.batches import MicroBatches
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.workers import Workers


@dataclass(frozen=True)
class Pair:
    """A prompt and the seed of its initial noise: one image for each negative."""

    prompt: str
    seed: int


def make_pairs(
    prompts: Sequence[str], count: int, run_seed: int, *, num_prompts: int | None = None
) -> tuple[Pair, ...]:
    """`count` pairs over `num_prompts` of the prompts (default: all of them), each used equally often.

    The prompts are taken in the order of their hashed ids: an arbitrary mixture of the set that stays as it
    is when the file is sorted anew. The k-th time a prompt is used, its seed is `pair_seed(run_seed,
    prompt_id, k)`.
    """
    if count < 1:
        raise ValueError(f"make_pairs: count must be at least 1, got {count}")
    by_id = {prompt_id(prompt): prompt for prompt in reversed(prompts)}  # of two with one id, the first counts
    ids = sorted(by_id)[:num_prompts]
    if not ids:
        raise ValueError("make_pairs: there are no prompts")
    rounds = [divmod(index, len(ids)) for index in range(count)]
    return tuple(Pair(by_id[ids[i]], pair_seed(run_seed, ids[i], k)) for k, i in rounds)


def initial_noise(seed: int, latent_shape: tuple[int, ...]) -> Tensor:
    """x_T of one image, (1, C, H, W), or of one video, (1, C, F, H, W), float32 on the CPU.

    The numbers are those that a diffusers pipeline draws for
    `generator=torch.Generator("cpu").manual_seed(seed)`, so that any row of an evaluation can be had again
    without this package.
    """
    return torch.randn((1, *latent_shape), generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)


@dataclass(frozen=True)
class Evaluation:
    """Scores and first images of several methods on the same P pairs.

    scores[method][score]: (P,) float64, NaN where a score does not apply. images[method]: (k, 3, H, W) in [0,
    1].
    """

    pairs: tuple[Pair, ...]
    scores: dict[str, dict[str, Tensor]]
    images: dict[str, Tensor] = field(default_factory=dict)

    def mean(self, method: str, score: str) -> float:
        """The mean of a score over the pairs that it applies to; NaN where there are none."""
        return float(self.scores[method][score].nanmean())

    def win_rate(self, method: str, other: str, score: str) -> float:
        """The share of pairs on which `method` scores above `other`; a tie (`least_difference`) counts half."""
        first, second = self.scores[method][score].numpy(), self.scores[other][score].numpy()
        least = least_difference(*(found[score].numpy() for found in self.scores.values() if score in found))
        won = wins(first, second, least)
        return float(won[~np.isnan(won)].mean()) if not np.isnan(won).all() else math.nan

    def metrics(self) -> dict[str, float]:
        """`eval/<method>/<score>/mean` of every score, and `eval/<method>/win_rate_vs_<other>/<score>` of
        each method against those named before it. Image statistics have no better or worse, hence no win
        rates.
        """
        figures = {
            f"eval/{method}/{score}/mean": self.mean(method, score)
            for method, scores in self.scores.items()
            for score in scores
        }
        for other, method in combinations(self.scores, 2):
            for score in self.scores[method]:
                if score in self.scores[other] and score not in UNRANKED:
                    figures[f"eval/{method}/win_rate_vs_{other}/{score}"] = self.win_rate(method, other, score)
        return figures

    def renamed(self, names: Mapping[str, str]) -> "Evaluation":
        """The methods {new name: old name} alone, in the order given."""
        return Evaluation(
            self.pairs,
            {new: self.scores[old] for new, old in names.items()},
            {new: self.images[old] for new, old in names.items() if old in self.images},
        )

    def joined(self, other: "Evaluation") -> "Evaluation":
        """The methods of both, which have to be on the same pairs."""
        if self.pairs != other.pairs:
            raise ValueError("Evaluation.joined: the two evaluations are not on the same pairs")
        return Evaluation(self.pairs, self.scores | other.scores, self.images | other.images)

    def plain(self) -> dict[str, Any]:
        """Pairs and scores as JSON takes them, exactly and in their order; for images there is `to_bytes`."""
        scores = {
            method: {score: values.tolist() for score, values in columns.items()}
            for method, columns in self.scores.items()
        }
        return {"pairs": [[pair.prompt, pair.seed] for pair in self.pairs], "scores": scores}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], images: Mapping[str, Tensor]) -> "Evaluation":
        """What `plain()` was called on, with the 8-bit images (k, 3, H, W) of methods."""
        scores = {
            method: {score: torch.tensor(values, dtype=torch.float64) for score, values in columns.items()}
            for method, columns in plain["scores"].items()
        }
        pairs = tuple(Pair(prompt, seed) for prompt, seed in plain["pairs"])
        return cls(pairs, scores, {method: images[method].float() / 255 for method in scores if method in images})


def to_bytes(images: Tensor) -> Tensor:
    """Images in [0, 1] as 8-bit numbers, rounded as diffusers rounds them."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def evaluate(
    model: TextToImage,
    negatives: Mapping[str, Tensor],
    pairs: Sequence[Pair],
    scorers: Sequence[Scorer],
    sampling: SamplingConfig,
    workers: Workers | None = None,
    *,
    batch_size: int = 16,
    keep_images: int = 0,
    encoded: EncodedPrompts | None = None,
    made: Callable[[int], None] = lambda count: None,
) -> Evaluation:
    """Generate every pair with every negative (1, L, D) and score the images; the ranks share the pairs.

    Every rank returns the whole evaluation. Image statistics are scored along with what `scorers` give.
    Images of the first `keep_images` pairs are kept; of videos, the middle frames. Where a batch does not fit into the
    accelerator's memory, batches become smaller. `made` is told how many images this rank has made, batch by batch.
    """
    workers = workers or Workers()
    encoded = encoded or EncodedPrompts(model)
    judges: list[Scorer] = [*scorers, ImageStatistics()]
    names = [name for judge in judges for name in judge.names]
    table = torch.zeros(len(negatives), len(names), len(pairs), dtype=torch.float64)
    kept: Tensor | None = None
    batches = MicroBatches("auto", batch_size, "validation.batch_size")
    texts = [pairs[i].prompt for i in workers.share(len(pairs))]
    encoded.prepare(texts)
    prepare_texts(judges, texts)
    for row, negative in enumerate(negatives.values()):

        def images_and_scores(indices: Sequence[int], negative: Tensor = negative) -> tuple[Tensor, Tensor]:
            chunk = [pairs[i] for i in indices]
            images = generate(model, negative, chunk, sampling, encoded)
            scores = score(judges, images, [pair.prompt for pair in chunk])
            middle = middle_frame(images).float().cpu()
            return middle, torch.stack([scores[name].cpu().double() for name in names])

        for indices, (images, scores) in batches.over(list(workers.share(len(pairs))), images_and_scores):
            table[row, :, list(indices)] = scores
            made(len(indices))
            for image, i in zip(images, indices, strict=True):
                if i < keep_images:
                    if kept is None:
                        kept = image.new_zeros(len(negatives), min(keep_images, len(pairs)), *image.shape)
                    kept[row, i] = image
    table = workers.all_sum(table)
    pictures = _sum_images(kept, len(negatives), min(keep_images, len(pairs)), workers)
    return Evaluation(
        tuple(pairs),
        {method: dict(zip(names, table[row].unbind(), strict=True)) for row, method in enumerate(negatives)},
        {method: pictures[row] for row, method in enumerate(negatives)} if pictures is not None else {},
    )


def score(judges: Sequence[Scorer], images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    """What all judges say of images or videos, {name: (B,)}; what judges images judges a video by its frames."""
    scores: dict[str, Tensor] = {}
    for judge in judges:
        scores |= (
            judge.score(images, prompts)
            if isinstance(judge, VideoScorer)
            else over_frames(judge.score, images, prompts)
        )
    return scores


def generate(
    model: TextToImage, negative: Tensor, pairs: Sequence[Pair], sampling: SamplingConfig, encoded: EncodedPrompts
) -> Tensor:
    """Images (B, 3, H, W), or videos (B, 3, F, H, W), in [0, 1] of the pairs under the negative embedding
    (1 | B, L, D), without gradient.
    """
    prompts = [pair.prompt for pair in pairs]
    model = model.for_prompts(prompts)
    with torch.no_grad():
        latents = torch.cat([initial_noise(pair.seed, model.latent_shape) for pair in pairs]).to(model.device)
        schedule = model.schedule(sampling.num_inference_steps)
        final = rollout(
            model.denoise,
            latents,
            encoded(prompts),
            negative.to(model.device),
            schedule,
            model.guidance(sampling, schedule),
        )
        return model.decode(final.latents)


def generate_all(
    model: TextToImage,
    negative: Tensor,
    pairs: Sequence[Pair],
    sampling: SamplingConfig,
    encoded: EncodedPrompts,
    batch_size: int,
) -> Tensor:
    """Images, or videos, of all pairs on the CPU, `batch_size` at a time, or as many as fit; see `generate`."""
    negatives = negative.expand(len(pairs), -1, -1)

    def images(piece: Sequence[int]) -> Tensor:
        chosen = slice(piece[0], piece[-1] + 1)
        return generate(model, negatives[chosen], pairs[chosen], sampling, encoded).cpu()

    batches = MicroBatches("auto", batch_size, "validation.batch_size")
    return torch.cat([made for _, made in batches.over(range(len(pairs)), images)])


def _sum_images(kept: Tensor | None, methods: int, count: int, workers: Workers) -> Tensor | None:
    """The kept images of all ranks. A rank that made none of them learns their size from the others."""
    if count == 0:
        return None
    size = torch.tensor(kept.shape[-2:] if kept is not None and workers.rank == 0 else (0, 0), dtype=torch.float64)
    height, width = (int(n) for n in workers.all_sum(size).tolist())  # pair 0 is rank 0's, so rank 0 knows
    return workers.all_sum(kept if kept is not None else torch.zeros(methods, count, 3, height, width))
