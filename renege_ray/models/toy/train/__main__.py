"""Trains, measures and stores the embedded model: `python -m renege_ray.models.toy.train --output-dir outputs/toy`.

Stages: vae, diffusion, the two rewards, then the card. About an hour on two CPU cores. Interrupted, the same
command goes on from the last checkpoint; a finished stage is not done again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import nn

from renege_ray.models.toy import WEIGHTS_FOLDER, pipeline
from renege_ray.models.toy.architecture import build_scheduler, build_tokenizer
from renege_ray.models.toy.preferences import REWARD_NETWORKS, tokenize
from renege_ray.models.toy.train import diffusion, rewards, vae
from renege_ray.models.toy.train.card import measure, write_card
from renege_ray.models.toy.train.loop import Recipe

COMMAND = "python -m renege_ray.models.toy.train"


def main(argv: list[str] | None = None) -> int:
    """Runs the stages that are not finished yet."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--output-dir", type=Path, required=True, help="checkpoints and the finished weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="train this part of the steps only (to try it)")
    parser.add_argument("--install", action="store_true", help="replace the package's own weights and card")
    args = parser.parse_args(argv)
    folder: Path = args.output_dir

    def scaled(recipe: Recipe) -> Recipe:
        return replace(recipe, steps=max(1, round(recipe.steps * args.scale)))

    tokenizer = build_tokenizer()
    print("1/4 autoencoder", flush=True)
    autoencoder = vae.train_vae(args.seed, folder / "vae.safetensors", scaled(vae.RECIPE))
    print("2/4 diffusion model", flush=True)
    pictures = max(256, round(diffusion.PICTURES * args.scale))
    unet, text_encoder = diffusion.train_diffusion(
        args.seed,
        autoencoder,
        tokenizer,
        folder,
        scaled(diffusion.CAREFUL_RECIPE),
        scaled(diffusion.WEB_RECIPE),
        pictures,
    )
    print("3/4 rewards", flush=True)
    pool = rewards.PicturePool(autoencoder, unet, lambda texts: text_encoder(tokenize(tokenizer, texts))[0], args.seed)
    networks = {
        name: rewards.train_reward(
            name, args.seed + i, pool, tokenizer, folder / f"reward_{name}.safetensors", scaled(rewards.RECIPE)
        )
        for i, name in enumerate(REWARD_NETWORKS)
    }
    print("4/4 measuring", flush=True)
    weights = folder / "weights"
    pipe = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    store(pipe, networks, weights)
    pipe = pipeline(weights / "pipeline")  # measured is what was stored, rounded to float16
    figures = measure(pipe, pipe.vae, tokenizer, {name: rounded(net) for name, net in networks.items()})
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    card = write_card(figures, f"{COMMAND} --seed {args.seed}")
    (weights / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    print(card)
    if args.install:
        shutil.rmtree(WEIGHTS_FOLDER, ignore_errors=True)
        shutil.copytree(weights, WEIGHTS_FOLDER)
        (WEIGHTS_FOLDER / "MODEL_CARD.md").replace(WEIGHTS_FOLDER.parent / "MODEL_CARD.md")
    return 0


def store(pipe: StableDiffusionPipeline, networks: dict[str, nn.Module], folder: Path) -> None:
    """Writes pipeline and rewards as float16 safetensors."""
    pipe.to(torch.float16).save_pretrained(folder / "pipeline", safe_serialization=True)
    for name, network in networks.items():
        halves = {key: value.half().contiguous() for key, value in network.state_dict().items()}
        save_file(halves, folder / f"reward_{name}.safetensors")


def rounded(network: nn.Module) -> nn.Module:
    """The network with the weights as they are stored, computing in float32."""
    return network.half().float()


if __name__ == "__main__":
    raise SystemExit(main())
