"""What a training run reads from files, checked before a model is loaded or anything is started."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from renege_ray.config.run import ModelConfig, RewardsConfig, RunConfig, SamplingConfig
from renege_ray.errors import UserError
from renege_ray.models.load import check_model
from renege_ray.prompts.sources import TOY, PromptSet, Split, load_splits
from renege_ray.rewards.catalogue import JUDGE_NAMES, REWARD_NAMES, check_names, full_name
from renege_ray.rewards.load import locate_rewards
from renege_ray.sampling.negative import Negative, read_start
from renege_ray.training.train import Prompts

INPUTS_FILE = "inputs.json"
_SPLITS: tuple[Split, ...] = ("train", "validation", "held_out")


@dataclass(frozen=True)
class Inputs:
    """The prompts of a run, what its embedding starts from, and what there is to say of them."""

    prompts: Prompts
    initial: Negative
    notes: tuple[str, ...]

    def hashes(self) -> dict[str, str]:
        """SHA-256 of what was read, by the fields that name it: the prompts in their order, the initial embedding."""
        found = {f"prompts.{split}": _hash(_encoded(getattr(self.prompts, split))) for split in _SPLITS}
        if self.initial.embedding is not None:
            found["optim.init"] = _hash([self.initial.embedding.contiguous().numpy().tobytes()])
        return found


def read_inputs(config: RunConfig) -> Inputs:
    """Read all files that the configuration names.

    Raises:
        UserError: a name that is not known, a model or the weights of a reward that cannot be found (those of
            the Hub are downloaded here), a file that is missing, empty or damaged, an embedding that does not fit.
    """
    check_models(config)
    sets = _load_splits(config)
    notes = [
        f"prompts.{split}: {found.notes()}"
        for split, found in sets.items()
        if getattr(config.prompts, split) != TOY or found.remarks
    ]
    if config.model.control is not None:
        check_control_images(config.model.control, [prompt for found in sets.values() for prompt in found.prompts])
    prompts = Prompts(**{split: found.prompts for split, found in sets.items()})
    return Inputs(prompts, read_start(config.optim.init, "optim.init", config), tuple(notes))


def find_problems(config: RunConfig) -> list[UserError]:
    """All that keeps `read_inputs` from its work, not only the first of it; empty if nothing does."""
    start = partial(read_start, config.optim.init, "optim.init", config)
    return find_model_problems(config, partial(_load_splits, config), start)


def find_model_problems(config: RunConfig, *more: Callable[[], object], gradients: bool = True) -> list[UserError]:
    """All that keeps `check_models` from its work, and then `more`, not only the first of it."""
    checks: list[Callable[[], object]] = [
        partial(check_model_and_lora, config.model, config.sampling, gradients=gradients),
        *more,
    ]
    problems: dict[str, UserError] = {}  # by their texts: a model that is not there keeps its encoder from being read
    try:
        names = reward_names(config.rewards)
    except UserError as error:
        problems[str(error)] = error
    else:
        checks = [*(partial(locate_rewards, [name], config.rewards.checkpoints) for name in names), *checks]
    for check in checks:
        try:
            check()
        except UserError as error:
            problems.setdefault(str(error), error)
    return list(problems.values())


def first_problem(problems: Sequence[UserError]) -> UserError:
    """One line for several problems that have been printed."""
    more = f" (and {len(problems) - 1} more, see above)" if len(problems) > 1 else ""
    return UserError(f"{problems[0]}{more}")


def check_models(config: RunConfig, *, gradients: bool = True) -> None:
    """Check that rewards, model and LoRA are there, without loading them; the Hub's files are downloaded here.

    Raises:
        UserError: a name that is not known, files that cannot be found, more steps than the model has, or a scale at
            which its negative has no effect.
    """
    locate_rewards(reward_names(config.rewards), config.rewards.checkpoints)
    check_model_and_lora(config.model, config.sampling, gradients=gradients)


def check_model_and_lora(config: ModelConfig, sampling: SamplingConfig, *, gradients: bool = True) -> None:
    """Check that a model, and a LoRA for it, are there and can be sampled so, without loading them.

    Raises:
        UserError: see `check_model`.
    """
    check_model(config, sampling, gradients=gradients)
    if config.lora is not None:
        from renege_ray.models.loading.lora import check_lora  # imports diffusers

        check_lora(config.lora)


def check_control_images(control: str, prompts: Sequence[str]) -> None:
    """Check that a ControlNet has an image for each of the prompts.

    Raises:
        UserError: some have none, or `control` is no such file or folder.
    """
    from renege_ray.models.families.control_images import ControlImages

    ControlImages.read(control).check(prompts)


def _load_splits(config: RunConfig) -> dict[Split, PromptSet]:
    return load_splits({split: getattr(config.prompts, split) for split in _SPLITS})


def reward_names(config: RewardsConfig) -> list[str]:
    """The rewards that need weights. All names are known, and none is there twice by its short name."""
    check_names(config.train, REWARD_NAMES, "rewards.train:")
    check_names(config.held_out, REWARD_NAMES, "rewards.held_out:")
    check_names(config.judges, JUDGE_NAMES + REWARD_NAMES, "rewards.judges:")
    named = [full_name(name) for name in (*config.train, *config.held_out)]
    for name in named:
        if named.count(name) > 1:
            raise UserError(f"rewards: {name!r} is named twice in rewards.train and rewards.held_out; name it once")
    return [*named, *(name for name in config.judges if name != "judge")]


def record_inputs(inputs: Inputs, folder: Path) -> None:
    """Note in a run's folder what it reads, for `check_inputs`."""
    (folder / INPUTS_FILE).write_text(json.dumps(inputs.hashes(), indent=1) + "\n", encoding="utf-8")


def check_inputs(inputs: Inputs, folder: Path) -> None:
    """Check that a run that goes on reads what it read when it began. A folder without a record is taken on trust.

    Raises:
        UserError: a file has another content now; the message names the field.
    """
    try:
        recorded = json.loads((folder / INPUTS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError:
        raise UserError(f"--resume: {folder / INPUTS_FILE} is damaged; remove it if no input has changed") from None
    changed = [name for name, value in inputs.hashes().items() if recorded.get(name) != value]
    if changed:
        raise UserError(
            f"{', '.join(changed)}: the content is not what the run in {folder} began with, so going on would mix two "
            "runs; put the old file back, or start a new run"
        )


def _encoded(prompts: Iterable[str]) -> Iterable[bytes]:
    """Each prompt with its length before it, so that no two lists have the same bytes."""
    for prompt in prompts:
        text = prompt.encode("utf-8")
        yield len(text).to_bytes(8, "big") + text


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
