"""Does a table of tuned prompts say what its embeddings do? Rows made again by diffusers alone.

Nothing of this package makes the images: the model's own pipeline does, with DDIM, from a row's stored embedding and
seeds. The configured rewards judge them, and what they say is compared with what the row says.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from renege_ray.config.run import RunConfig
from renege_ray.embeddings.prompt_embeddings import PromptEmbeddings
from renege_ray.embeddings.tables import run_of_table
from renege_ray.errors import UserError
from renege_ray.models.frozen_pipeline import FrozenPipeline
from renege_ray.models.load import load_model
from renege_ray.output.folder import CONFIG_FILE
from renege_ray.rewards.weighted import WeightedReward
from renege_ray.sampling.run_rewards import REWARD, Rewards
from renege_ray.tuning.scores import EVAL, TUNE, column


@dataclass(frozen=True)
class Checked:
    """A row's training reward on the tune or the eval seeds: as recorded, and as it came out again."""

    prompt: str
    split: str
    recorded: float
    again: float

    @property
    def difference(self) -> float:
        """Absolute; NaN where either is."""
        return abs(self.again - self.recorded)


def check_rows(folder: str | Path, rows: int) -> Iterator[Checked]:
    """Make rows of a run again, as many as there are up to `rows`, in the order of their ids: an arbitrary mixture.

    Args:
        folder: the output folder of tune-prompts, or the run's folder in a storage.
        rows: how many; each is compared on its tune seeds and on its eval seeds.

    Raises:
        UserError: the folder holds no run of tuned prompts, or not its model.
    """
    with PromptEmbeddings.open(folder) as embeddings:
        config = run_of_table(str(folder))
        if config is None:
            raise UserError(f"{folder} has no {CONFIG_FILE}: name the output folder of tune-prompts")
        pipeline, options = _plain_pipeline(config)
        reward = Rewards.load(config.rewards.model_copy(update={"held_out": (), "judges": ()}), pipeline.device).train
        columns = [column(REWARD, "prompt", split) for split in (TUNE, EVAL)]
        wanted = ["prompt", *columns, "tune_seeds", "eval_seeds"]
        for row in embeddings.rows(sorted(embeddings.prompts)[:rows], wanted):
            arguments = embeddings.for_pipeline(pipeline, row["prompt"]) | options
            for split, name in zip((TUNE, EVAL), columns, strict=True):
                images = _images(pipeline, row["prompt"], arguments, row[f"{split}_seeds"])
                yield Checked(row["prompt"], split, row[name], _mean(reward, images, row["prompt"]))


def _plain_pipeline(config: RunConfig) -> tuple[Any, dict[str, Any]]:
    """The pipeline in float32 with deterministic DDIM, and what it is to be called with besides the embeddings."""
    model = load_model(config.model.model_copy(update={"dtype": "float32", "compile": False}))
    assert isinstance(model, FrozenPipeline)
    pipeline = model.pipeline
    scheduler = pipeline.scheduler.config
    pipeline.scheduler = DDIMScheduler.from_config(scheduler, clip_sample=scheduler.get("clip_sample", False))
    pipeline.set_progress_bar_config(disable=True)
    _, height, width = model.latent_shape
    return pipeline, {
        "num_inference_steps": config.sampling.num_inference_steps,
        "guidance_scale": config.sampling.guidance_scale,
        "height": height * pipeline.vae_scale_factor,
        "width": width * pipeline.vae_scale_factor,
        "output_type": "pt",
    }


def _images(pipeline: Any, prompt: str, arguments: dict[str, Any], seeds: list[int]) -> Tensor:
    """(S, 3, H, W) in [0, 1], one seed after the other."""
    words = {} if "prompt_embeds" in arguments else {"prompt": prompt}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.cat([pipeline(**words, **arguments, generator=generator).images for generator in generators])


@torch.no_grad()
def _mean(reward: WeightedReward, images: Tensor, prompt: str) -> float:
    return float(reward(images, [prompt] * len(images)).cpu().double().mean())
