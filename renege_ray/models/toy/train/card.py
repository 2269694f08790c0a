"""Measures the embedded model and writes what was found as its model card."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer

from renege_ray.models.toy import GUIDANCE_SCALE, NUM_INFERENCE_STEPS
from renege_ray.models.toy.captions import parse, prompts
from renege_ray.models.toy.judge import Judge, agreement
from renege_ray.models.toy.scenes import (
    DEFECTS,
    NAMED_DEFECTS,
    UNNAMED_DEFECTS,
    Picture,
    draw,
    random_defects,
    random_offset,
    scenes_of,
)
from renege_ray.models.toy.train.rewards import ranking_accuracy
from renege_ray.models.toy.train.vae import random_pictures, reconstruction_psnr

PLAIN_PROMPTS = 500
RENDERS = 600
SECOND_HEADING = "## The second model"
_LOADER = jinja2.PackageLoader("renege_ray.models.toy.train", ".")
_TEMPLATES = jinja2.Environment(loader=_LOADER, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


@torch.no_grad()
def generate(pipe: StableDiffusionPipeline, texts: Sequence[str], negative: str = "", seed: int = 0) -> Tensor:
    """Images (N, 3, 32, 32) by plain diffusers, with the package's default guidance and steps."""
    images = []
    for i in range(0, len(texts), 50):
        chunk = list(texts[i : i + 50])
        generators = [torch.Generator().manual_seed(seed * 10**6 + i + j) for j in range(len(chunk))]
        images.append(
            pipe(
                chunk,
                negative_prompt=[negative] * len(chunk),
                guidance_scale=GUIDANCE_SCALE,
                num_inference_steps=NUM_INFERENCE_STEPS,
                height=32,
                width=32,
                generator=generators,
                output_type="pt",
            ).images
        )
    return torch.cat(images)


def judge_on_renders(judge: Judge) -> dict[str, float]:
    """Share of real renders of held-out scenes, spoiled and decoded by nobody, that the judge names right."""
    rng = random.Random("renders")
    scenes = scenes_of("held_out")
    pictures = [Picture(rng.choice(scenes), random_offset(rng), random_defects(rng)) for _ in range(RENDERS)]
    # A little noise, or every render would be met exactly.
    images = draw(pictures)
    images = images + 0.02 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    pairs = list(zip(pictures, judge.judge(images.clamp(0, 1)), strict=True))
    shares = {
        part: sum(getattr(a.scene, part) == getattr(b.scene, part) for a, b in pairs) / RENDERS
        for part in ("shape", "colour", "background", "size")
    }
    shares["clean or not"] = sum((not a.defects) == (not b.defects) for a, b in pairs) / RENDERS
    return shares | {d: sum((d in a.defects) == (d in b.defects) for a, b in pairs) / RENDERS for d in DEFECTS}


def summarise(found: Sequence[Picture], texts: Sequence[str]) -> dict[str, float]:
    """Shares over images: free of defects, each attribute right, each defect present."""
    agreed = agreement(found, [parse(text) for text in texts])
    shares = {name.removeprefix("judge_"): float(values.nanmean()) for name, values in agreed.items()}
    return shares | {d: sum(d in picture.defects for picture in found) / len(found) for d in DEFECTS}


def measure(
    pipe: StableDiffusionPipeline, vae: AutoencoderKL, tokenizer: CLIPTokenizer, rewards: dict[str, nn.Module]
) -> dict[str, Any]:
    """All the figures of the card."""
    return {
        "vae_psnr_db": reconstruction_psnr(vae, random_pictures(500, "card")),
        "judge": judge_on_renders(Judge()),
        "rewards": {name: ranking_accuracy(net, tokenizer, vae, seed=1) for name, net in rewards.items()},
        "generation": measure_generation(pipe),
    }


def measure_generation(pipe: StableDiffusionPipeline) -> dict[str, dict[str, float]]:
    """What the judge says of images of held-out prompts, {with or without a negative, seed: shares}."""
    pipe.set_progress_bar_config(disable=True)
    judge = Judge()
    texts = prompts("held_out")[:PLAIN_PROMPTS]
    negatives = {"no negative prompt": "", "negative prompt": ", ".join(NAMED_DEFECTS)}
    rows = {}
    for name, negative in negatives.items():
        for seed in range(2):
            images = generate(pipe, texts, negative, seed)
            rows[f"{name}, seed {seed}"] = summarise(judge.judge(images), texts)
    return rows


def write_card(figures: dict[str, Any], trained_with: str) -> str:
    """The model card in Markdown."""
    rewards, judge = figures["rewards"], figures["judge"]
    kinds = list(next(iter(rewards.values())))
    return _TEMPLATES.get_template("card.md.j2").render(
        figures=figures,
        trained_with=trained_with,
        named=NAMED_DEFECTS,
        unnamed=UNNAMED_DEFECTS,
        guidance_scale=GUIDANCE_SCALE,
        steps=NUM_INFERENCE_STEPS,
        plain_prompts=PLAIN_PROMPTS,
        generation=_generation_table(figures["generation"]),
        rewards=_table(["reward", *kinds], {f"`{name}`": row.values() for name, row in rewards.items()}),
        judge=_table(list(judge), {_percent(next(iter(judge.values()))): list(judge.values())[1:]}),
    )


def write_second_section(rows: dict[str, dict[str, float]], trained_with: str) -> str:
    """What the card says of the second model, in Markdown."""
    section = _TEMPLATES.get_template("second.md.j2")
    return section.render(heading=SECOND_HEADING, trained_with=trained_with, generation=_generation_table(rows))


def with_second_section(card: str, section: str) -> str:
    """The card with the section on the second model, in place of one that is there."""
    return f"{card.partition(SECOND_HEADING)[0].rstrip()}\n\n{section}"


def _generation_table(rows: dict[str, dict[str, float]]) -> str:
    table = _table(["share of images", *next(iter(rows.values()))], {name: row.values() for name, row in rows.items()})
    columns = "The first five columns: free of defects, attribute as asked for. The others: the defect is present."
    return f"{table}\n\n{columns}"


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.1f} %"


def _table(header: list[str], rows: Mapping[str, Iterable[float]]) -> str:
    """A table in Markdown of shares, {first cell: the others}."""
    cells = [header, ["---"] * len(header), *([name, *map(_percent, shares)] for name, shares in rows.items())]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
