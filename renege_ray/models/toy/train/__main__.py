"""Trains, measures and stores the embedded models: `python -m renege_ray.models.toy.train --output-dir outputs/toy`.

Stages: vae, diffusion, the two rewards, then the card. About an hour on two CPU cores. With `--second`: the second
model's diffusion, beside the installed first one, and its part of the card; about half an hour. Interrupted, the same
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

from renege_ray.models.loading.hub import read_pipeline
from renege_ray.models.toy import FIRST_MODEL, PIPELINE_FOLDER, SECOND_MODEL, SECOND_UNET_FOLDER, WEIGHTS_FOLDER
from renege_ray.models.toy.architecture import build_scheduler, build_text_encoder, build_tokenizer, build_unet
from renege_ray.models.toy.preferences import REWARD_NETWORKS, tokenize
from renege_ray.models.toy.train import diffusion, rewards, vae
from renege_ray.models.toy.train.card import (
    measure,
    measure_generation,
    with_second_section,
    write_card,
    write_second_section,
)
from renege_ray.models.toy.train.loop import Recipe
from renege_ray.models.toy.train.second import train_second
from renege_ray.output.console import say
from renege_ray.output.paths import absolute_path

COMMAND = "python -m renege_ray.models.toy.train"
CARD = WEIGHTS_FOLDER.parent / "MODEL_CARD.md"


def main(argv: list[str] | None = None) -> int:
    """Runs the stages that are not finished yet."""
    args = _parse(argv)
    train_second_model(args) if args.second else train_first_model(args)
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--output-dir", type=absolute_path, required=True, help="checkpoints and the finished weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="train this part of the steps only (to try it)")
    parser.add_argument("--install", action="store_true", help="replace the package's own weights and card")
    parser.add_argument("--second", action="store_true", help="the second model, which needs the first one installed")
    return parser.parse_args(argv)


def train_first_model(args: argparse.Namespace) -> None:
    """Everything that the first model is made of, with rewards and card."""
    folder: Path = args.output_dir

    def scaled(recipe: Recipe) -> Recipe:
        return replace(recipe, steps=max(1, round(recipe.steps * args.scale)))

    tokenizer = build_tokenizer()
    say("1/4 autoencoder")
    autoencoder = vae.train_vae(args.seed, folder / "vae.safetensors", scaled(vae.RECIPE))
    say("2/4 diffusion model")
    pictures = max(256, round(diffusion.PICTURES * args.scale))
    torch.manual_seed(args.seed)
    unet, text_encoder = build_unet(), build_text_encoder(tokenizer)
    diffusion.train_diffusion(
        args.seed,
        unet,
        text_encoder,
        autoencoder,
        tokenizer,
        folder,
        scaled(diffusion.CAREFUL_RECIPE),
        scaled(diffusion.WEB_RECIPE),
        pictures,
    )
    say("3/4 rewards")
    pool = rewards.PicturePool(autoencoder, unet, lambda texts: text_encoder(tokenize(tokenizer, texts))[0], args.seed)
    networks = {
        name: rewards.train_reward(
            name, args.seed + i, pool, tokenizer, folder / f"reward_{name}.safetensors", scaled(rewards.RECIPE)
        )
        for i, name in enumerate(REWARD_NETWORKS)
    }
    say("4/4 measuring")
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
    pipe = read_pipeline(weights / PIPELINE_FOLDER.name, FIRST_MODEL)  # measured is what was stored, rounded to float16
    figures = measure(pipe, pipe.vae, tokenizer, {name: rounded(net) for name, net in networks.items()})
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    card = write_card(figures, f"{COMMAND} --seed {args.seed}")
    (weights / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    say(card)
    if args.install:
        shutil.rmtree(WEIGHTS_FOLDER, ignore_errors=True)
        shutil.copytree(weights, WEIGHTS_FOLDER)
        (WEIGHTS_FOLDER / "MODEL_CARD.md").replace(CARD)
        say(f"The second model goes with the old text encoder: train it anew with {COMMAND} --second --install")


def train_second_model(args: argparse.Namespace) -> None:
    """The second model's UNet, and its part of the card."""
    folder: Path = args.output_dir
    say("1/2 diffusion model")
    unet = train_second(args.seed, folder, args.scale)
    say("2/2 measuring")
    weights = folder / SECOND_UNET_FOLDER.name
    unet.half().save_pretrained(weights, safe_serialization=True)
    rows = measure_generation(read_pipeline(PIPELINE_FOLDER, SECOND_MODEL, parts={"unet": weights}))
    (folder / "second_figures.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    section = write_second_section(rows, f"{COMMAND} --second --seed {args.seed}")
    say(section)
    if args.install:
        shutil.rmtree(SECOND_UNET_FOLDER, ignore_errors=True)
        shutil.copytree(weights, SECOND_UNET_FOLDER)
        CARD.write_text(with_second_section(CARD.read_text(encoding="utf-8"), section), encoding="utf-8")


def store(pipe: StableDiffusionPipeline, networks: dict[str, nn.Module], folder: Path) -> None:
    """Writes pipeline and rewards as float16 safetensors."""
    pipe.to(torch.float16).save_pretrained(folder / PIPELINE_FOLDER.name, safe_serialization=True)
    for name, network in networks.items():
        halves = {key: value.half().contiguous() for key, value in network.state_dict().items()}
        save_file(halves, folder / f"reward_{name}.safetensors")


def rounded(network: nn.Module) -> nn.Module:
    """The network with the weights as they are stored, computing in float32."""
    return network.half().float()


if __name__ == "__main__":
    raise SystemExit(main())
