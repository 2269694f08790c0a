"""What a training run reads from files, checked before a model is loaded or anything is started."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from renege_ray.config import RewardsConfig, RunConfig
from renege_ray.errors import UserError
from renege_ray.method.embedding import NegativeEmbedding
from renege_ray.models.text_encoder import identify_text_encoder
from renege_ray.prompts import load_prompts
from renege_ray.rewards import JUDGE_NAMES, REWARD_NAMES, check_names, full_name, locate_rewards
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
        UserError: a name that is not known, a model or the weights of a reward that cannot be found (those of
            the Hub are downloaded here), a file that is missing, empty or damaged, an embedding that does not fit.
    """
    _check_rewards(config.rewards)
    if config.model.id != "toy":
        from renege_ray.models.hub import find_folder  # imports diffusers

        find_folder(config.model)
    if config.model.lora is not None:
        from renege_ray.models.lora import check_lora  # likewise

        check_lora(config.model.lora)
    notes = []
    sets = {}
    for split in ("train", "validation", "held_out"):
        source = getattr(config.prompts, split)
        sets[split] = load_prompts(source, split)
        if sets[split].blank_lines_skipped:
            notes.append(f"prompts.{split}: {sets[split].blank_lines_skipped} blank lines of {source} skipped")
    prompts = Prompts(**{split: found.prompts for split, found in sets.items()})
    return Inputs(prompts, _initial(config), tuple(notes))


def _check_rewards(config: RewardsConfig) -> None:
    """Names that are known, none of them twice by its short name, and weights that are there."""
    check_names(config.train, REWARD_NAMES, "rewards.train:")
    check_names(config.held_out, REWARD_NAMES, "rewards.held_out:")
    check_names(config.judges, JUDGE_NAMES + REWARD_NAMES, "rewards.judges:")
    named = [full_name(name) for name in (*config.train, *config.held_out)]
    for name in named:
        if named.count(name) > 1:
            raise UserError(f"rewards: {name!r} is named twice in rewards.train and rewards.held_out; name it once")
    judges = [name for name in config.judges if name not in JUDGE_NAMES]
    locate_rewards([*named, *judges], config.checkpoints)


def _initial(config: RunConfig) -> Tensor | None:
    if config.optim.init in _NAMED_STARTS:
        return None
    if not Path(config.optim.init).is_file():
        raise UserError(f"optim.init: {config.optim.init!r} is neither null, handwritten, nor an existing file")
    embedding = NegativeEmbedding.load(config.optim.init)
    encoder = identify_text_encoder(config.model)
    embedding.check_fits(encoder.layout.shapes, encoder.hash, encoder.name)
    return encoder.layout.pack(embedding.tensors)
