"""What a training run reads from files, checked before a model is loaded or anything is started."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from renege_ray.config import ModelConfig, RunConfig
from renege_ray.errors import UserError
from renege_ray.method.embedding import NegativeEmbedding
from renege_ray.models.text_encoder import identify_text_encoder
from renege_ray.prompts import load_prompts
from renege_ray.rewards import JUDGE_NAMES, REWARD_NAMES, check_names
from renege_ray.train_global import Prompts

_NAMED_STARTS = ("null", "handwritten")


@dataclass(frozen=True)
class Inputs:
    """Prompts and initial embedding (1, L, D) float32 of a run (None: a named start), and what there is to
    say of them.
    """

    prompts: Prompts
    initial: Tensor | None
    notes: tuple[str, ...]


def read_inputs(config: RunConfig) -> Inputs:
    """Read all files that the configuration names.

    Raises:
        UserError: a name that is not known, a model that cannot be found (a model of the Hub is downloaded
            here), a file that is missing, empty or damaged, an embedding that does
            not fit.
    """
    check_models(config)
    notes = []
    sets = {}
    for split in ("train", "validation", "held_out"):
        source = getattr(config.prompts, split)
        sets[split] = load_prompts(source, split)
        if sets[split].blank_lines_skipped:
            notes.append(f"prompts.{split}: {sets[split].blank_lines_skipped} blank lines of {source} skipped")
    prompts = Prompts(**{split: found.prompts for split, found in sets.items()})
    return Inputs(prompts, read_initial(config.optim.init, "optim.init", config.model), tuple(notes))


def check_models(config: RunConfig) -> None:
    """Check that rewards and model exist, without loading them. Raises UserError."""
    check_names(config.rewards.train, REWARD_NAMES, "rewards.train:")
    check_names(config.rewards.held_out, REWARD_NAMES, "rewards.held_out:")
    check_names(config.rewards.judges, JUDGE_NAMES + REWARD_NAMES, "rewards.judges:")
    if config.model.id != "toy":
        from renege_ray.models.hub import find_folder  # imports diffusers

        find_folder(config.model.id, revision=config.model.revision, variant=config.model.variant)


def read_initial(init: str, field: str, model: ModelConfig) -> Tensor | None:
    """The initial embedding (1, L, D) float32 where a setting names a file; None for a named start.

    Raises:
        UserError: it is neither a named start nor a file, or the file does not fit the model.
    """
    if init in _NAMED_STARTS:
        return None
    if not Path(init).is_file():
        raise UserError(f"{field}: {init!r} is neither null, handwritten, nor an existing file")
    embedding = NegativeEmbedding.load(init)
    encoder = identify_text_encoder(model)
    embedding.check_fits(*encoder.embedding_shape, encoder.hash, encoder.name)
    return embedding.prompt_embeds.float()
