"""Trains the two reward networks on pairs of pictures that simulated people compare, and measures how they rank.

A person's utility of a picture falls with each attribute that is not as the prompt says and with each defect; they
prefer picture i to j with probability sigmoid(u_i - u_j) (Bradley and Terry), so the reward that is learned equals the
utility up to a constant.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from renege_ray.models.toy.architecture import build_scheduler
from renege_ray.models.toy.captions import caption
from renege_ray.models.toy.preferences import REWARD_NETWORKS, tokenize
from renege_ray.models.toy.scenes import (
    BACKGROUNDS,
    COLOURS,
    DEFECTS,
    SHAPES,
    SIZES,
    Picture,
    Scene,
    all_scenes,
    draw,
    possible_defects,
    random_defects,
    random_offset,
    scenes_of,
)
from renege_ray.models.toy.train.loop import Recipe, fit

RECIPE = Recipe(steps=1600, batch_size=24, learning_rate=1.5e-3, average_decay=0.99)
ATTRIBUTES = {"shape": SHAPES, "colour": tuple(COLOURS), "background": tuple(BACKGROUNDS), "size": SIZES}
ATTRIBUTE_COST = {"shape": 2.0, "colour": 2.0, "background": 2.0, "size": 1.5}
DEFECT_COST = 1.5
POOL_NOISE = 0.25  # standard deviations of scaled latents, at the most
PREDICTED_FROM = 700  # of 1000 training timesteps: earlier predictions hardly show what will become of them

Captioner = Callable[[list[str]], Tensor]
"""Captions -> embeds (B, L, D)."""


def utility(picture: Picture, asked: Scene) -> float:
    """What a simulated person thinks of a picture for a prompt that asks for a scene; 0 is perfect."""
    wrong = sum(cost for part, cost in ATTRIBUTE_COST.items() if getattr(picture.scene, part) != getattr(asked, part))
    return -wrong - DEFECT_COST * len(picture.defects)


def with_wrong(attribute: str, scene: Scene, rng: random.Random, allowed: Collection[Scene]) -> Scene:
    """The scene with one attribute changed to another value, such that it is one of the allowed scenes."""
    others = [replace(scene, **{attribute: v}) for v in ATTRIBUTES[attribute] if v != getattr(scene, attribute)]
    return rng.choice([other for other in others if other in allowed])


def candidates(asked: Scene, rng: random.Random) -> list[Picture]:
    """Pictures to compare for one prompt: a base, each attribute wrong by itself, two single defects, a stranger."""
    base = random_defects(rng) if rng.random() < 0.6 else frozenset[str]()
    scenes, possible = set(scenes_of("train")), set(possible_defects())
    more = [base ^ {d} for d in rng.sample(DEFECTS, 4)]
    pictures = [Picture(asked, random_offset(rng), base)]
    pictures += [Picture(with_wrong(a, asked, rng, scenes), random_offset(rng), base) for a in ATTRIBUTES]
    pictures += [Picture(asked, random_offset(rng), d) for d in more if d in possible][:2]
    while len(pictures) < 8:
        pictures.append(Picture(rng.choice(sorted(scenes)), random_offset(rng), random_defects(rng)))
    return pictures


class PicturePool:
    """The pictures as a reward will meet them: as drawn, decoded from slightly noisy latents, or half-finished.

    Half-finished is what the diffusion model predicts of a picture at some step of the sampler (x_0, Eq. 6): the
    gradient of the reward is taken there. A reward that has never seen one calls it blurry, since it is, and the
    embedding then learns to sharpen what later steps would have sharpened anyway.

    Made once for every training scene and set of defects; a picture is looked up instead of decoded at each step.
    """

    def __init__(self, vae: AutoencoderKL, denoiser: UNet2DConditionModel, captioner: Captioner, seed: int) -> None:
        rng = random.Random(f"pool {seed}")
        generator = torch.Generator().manual_seed(seed)
        scenes = scenes_of("train")
        keys = [(scene, defects) for scene in scenes for defects in possible_defects()]
        drawn = draw([Picture(scene, random_offset(rng), defects) for scene, defects in keys])
        self._rows = {key: row for row, key in enumerate(keys)}
        self._decoded = torch.cat([_through(vae, c, POOL_NOISE, generator) for c in drawn.split(250)])
        embeds = [captioner([caption(scene, rng) for scene, _ in keys[i : i + 250]]) for i in range(0, len(keys), 250)]
        self._predicted = torch.cat(
            [_predicted(vae, denoiser, c, e, generator) for c, e in zip(drawn.split(250), embeds, strict=True)]
        )

    def images(self, pictures: list[Picture], rng: random.Random) -> Tensor:
        """(B, 3, 32, 32), each drawn sharp or taken from the pool (where its position is the pool's) at random."""
        images = draw(pictures)
        for i, picture in enumerate(pictures):
            row, kind = self._rows.get((picture.scene, picture.defects)), rng.random()
            if row is not None and kind < 0.7:
                images[i] = (self._predicted if kind < 0.4 else self._decoded)[row].float() / 255
        return images


@torch.no_grad()
def _predicted(
    vae: AutoencoderKL, denoiser: UNet2DConditionModel, images: Tensor, embeds: Tensor, generator: torch.Generator
) -> Tensor:
    """x_0 as predicted with the caption's embeds at a random step of the last `PREDICTED_FROM`, decoded; uint8."""
    scheduler = build_scheduler()
    latents = vae.encode(images * 2 - 1).latent_dist.mean * vae.config.scaling_factor
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = torch.randint(PREDICTED_FROM, (len(latents),), generator=generator)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    alpha = scheduler.alphas_cumprod[timesteps][:, None, None, None]
    x0 = alpha.sqrt() * noisy - (1 - alpha).sqrt() * denoiser(noisy, timesteps, embeds).sample
    return _to_bytes(vae.decode(x0 / vae.config.scaling_factor).sample)


def _to_bytes(decoded: Tensor) -> Tensor:
    return ((decoded.clamp(-1, 1) / 2 + 0.5) * 255).round().to(torch.uint8)


@torch.no_grad()
def _through(vae: AutoencoderKL, images: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    latents = vae.encode(images * 2 - 1).latent_dist.mean
    spread = noise / vae.config.scaling_factor
    latents = latents + spread * torch.randn(latents.shape, generator=generator) * torch.rand(
        len(latents), 1, 1, 1, generator=generator
    )
    return _to_bytes(vae.decode(latents).sample)


def preference_loss(rewards: Tensor, utilities: Tensor) -> Tensor:
    """Cross-entropy of all pairs of one prompt's pictures, both (prompts, pictures); soft Bradley-Terry labels."""
    reward_gap = rewards[:, :, None] - rewards[:, None, :]
    utility_gap = utilities[:, :, None] - utilities[:, None, :]
    upper = torch.triu(torch.ones_like(utility_gap[0], dtype=torch.bool), diagonal=1)
    return F.binary_cross_entropy_with_logits(reward_gap[:, upper], utility_gap[:, upper].sigmoid())


def train_reward(
    name: str, seed: int, pool: PicturePool, tokenizer: CLIPTokenizer, checkpoint: Path, recipe: Recipe = RECIPE
) -> nn.Module:
    """Trains one reward network alone, from its own random weights, on its own pairs."""
    torch.manual_seed(seed)
    network = REWARD_NETWORKS[name](len(tokenizer), tokenizer.eos_token_id)
    scenes = scenes_of("train")

    def loss_of_step(step: int) -> Tensor:
        rng = random.Random(f"{seed} {name} {step}")
        asked = [rng.choice(scenes) for _ in range(recipe.batch_size)]
        groups = [candidates(scene, rng) for scene in asked]
        images = pool.images([p for group in groups for p in group], rng)
        tokens = tokenize(tokenizer, [caption(scene, rng) for scene in asked]).repeat_interleave(len(groups[0]), 0)
        rewards = network(images, tokens).reshape(len(groups), -1)
        utilities = torch.tensor([[utility(p, s) for p in group] for s, group in zip(asked, groups, strict=True)])
        return preference_loss(rewards, utilities)

    fit(network, loss_of_step, recipe, checkpoint)
    return network.eval().requires_grad_(False)


@torch.no_grad()
def ranking_accuracy(
    network: nn.Module, tokenizer: CLIPTokenizer, vae: AutoencoderKL, seed: int, pairs: int = 600
) -> dict[str, float]:
    """Share of so many hard pairs ranked right, for every attribute and defect, on held-out scenes.

    A hard pair differs in one attribute or one defect alone, both pictures may share other defects, and both are at
    random positions; half of the pairs are shown as drawn, half as the autoencoder decodes them.
    """
    rng = random.Random(f"ranking {seed}")
    generator = torch.Generator().manual_seed(seed)
    everything, possible = set(all_scenes()), set(possible_defects())
    accuracy = {}
    for kind in (*ATTRIBUTES, *DEFECTS):
        better: list[Picture] = []
        worse: list[Picture] = []
        texts: list[str] = []
        while len(texts) < pairs:
            scene = rng.choice(scenes_of("held_out"))
            shared = random_defects(rng) if rng.random() < 0.5 else frozenset[str]()
            if kind in ATTRIBUTES:
                other, spoiled = with_wrong(kind, scene, rng, everything), shared
            else:
                other, shared = scene, shared - {kind}
                spoiled = shared | {kind}
                if spoiled not in possible:
                    continue
            better.append(Picture(scene, random_offset(rng), shared))
            worse.append(Picture(other, random_offset(rng), spoiled))
            texts.append(caption(scene, rng))
        images = draw(better + worse)
        decoded = torch.cat([_through(vae, c, 0.0, generator) for c in images.split(250)]).float() / 255
        images[::2] = decoded[::2]
        scores = torch.cat(
            [network(i, t) for i, t in zip(images.split(300), tokenize(tokenizer, texts * 2).split(300), strict=True)]
        )
        accuracy[kind] = float((scores[:pairs] > scores[pairs:]).float().mean())
    return accuracy
