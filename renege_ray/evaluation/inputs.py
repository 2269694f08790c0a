"""What an evaluation reads from files, checked before a model is loaded or anything is started."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from renege_ray.config.fingerprint import fingerprint
from renege_ray.config.run import RunConfig
from renege_ray.embeddings.names import ComparedNegative, parse_methods, resolve
from renege_ray.errors import UserError, as_written
from renege_ray.evaluation.table import ImageToMake
from renege_ray.prompts.sources import TOY, PromptSet, Split, load_prompts, load_splits, prompt_id
from renege_ray.rewards.catalogue import JUDGE_NAMES, REWARD_NAMES, check_names, full_name
from renege_ray.rewards.load import locate_rewards
from renege_ray.sampling.images import make_pairs
from renege_ray.training.inputs import check_control_images, check_model_and_lora, check_models

FEW_PAIRS = 256


@dataclass(frozen=True)
class EvaluationInputs:
    """The methods; all images, those of a pair beside each other; what there is to say; and a key of everything that a
    row depends on, besides its method, prompt and seed.
    """

    negatives: tuple[ComparedNegative, ...]
    images: tuple[ImageToMake, ...]
    notes: tuple[str, ...]
    key: str

    @property
    def prompts(self) -> int:
        """How many prompts there are."""
        return len({image.prompt_id for image in self.images})

    @property
    def pairs(self) -> int:
        """How many prompt and seed pairs there are."""
        return len(self.images) // len(self.negatives)


def read_evaluation_inputs(config: RunConfig) -> EvaluationInputs:
    """Read all files that the configuration names.

    Raises:
        UserError: a method, reward or prompt set that is not known; files that are missing, empty or damaged; an
            embedding that does not fit its model; a table that lacks prompts.
    """
    methods = parse_methods(config.evaluation.methods)
    _check_models(config)
    found = _read_prompts(config)
    styles = dict(zip(reversed(found.prompts), reversed(found.categories), strict=True)) if found.categories else {}
    count = len({prompt_id(prompt) for prompt in found.prompts})
    count = min(count, config.evaluation.num_prompts or count)
    pairs = make_pairs(
        found.prompts, count * config.evaluation.seeds_per_prompt, noise_seed(config.seed), num_prompts=count
    )
    if config.model.control is not None:
        check_control_images(config.model.control, [pair.prompt for pair in pairs[:count]])
    negatives = resolve(methods, config, [pair.prompt for pair in pairs[:count]])
    images = tuple(
        ImageToMake(
            prompt_id(pair.prompt), pair.prompt, styles.get(pair.prompt, ""), pair.seed, index // count, place,
            negative.key,
        )
        for index, pair in enumerate(pairs)
        for place, negative in enumerate(negatives)
    )  # fmt: skip
    notes = [f"{negative.label}: {_described(negative)}" for negative in negatives]
    if config.evaluation.prompts != TOY or found.remarks:
        notes.append(f"evaluation.prompts: {found.notes()}")
    if count == 1:
        notes.append("one prompt: what is found holds for it alone, and no interval is claimed")
    elif len(pairs) < FEW_PAIRS:
        notes.append(f"{len(pairs)} prompt and seed pairs: fewer than {FEW_PAIRS} make wide intervals")
    return EvaluationInputs(negatives, images, tuple(notes), fingerprint(config, "evaluate"))


def noise_seed(seed: int) -> int:
    """The seed that evaluations draw their pairs' seeds from: another one than training and tuning do, so that no
    image is judged from noise that its negative was chosen by.
    """
    digest = hashlib.sha256(f"evaluation/{seed}".encode("ascii")).digest()
    return int.from_bytes(digest[:4], "big")


@dataclass(frozen=True)
class Scores:
    """What is measured, by the names that the configuration knows, and what each is: trained against, held out, or a
    judge. The first that is trained against ranks the methods, or else the first of all.
    """

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    judges: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """Every one."""
        return (*self.train, *self.held_out, *self.judges)


def scores_of(config: RunConfig) -> Scores:
    """What an evaluation measures."""
    rewards, chosen = config.rewards, config.evaluation.rewards
    if not chosen:
        return Scores(tuple(rewards.train), rewards.held_out, tuple(_others(rewards.judges, rewards.train)))
    train = [name for name in chosen if _is_among(name, rewards.train)]
    held_out = [name for name in chosen if _is_among(name, rewards.held_out)]
    return Scores(tuple(train), tuple(held_out), tuple(_others(chosen, [*train, *held_out])))


def _others(names: Sequence[str], taken: Sequence[str] | dict[str, float]) -> list[str]:
    return [name for name in dict.fromkeys(names) if not _is_among(name, taken)]


def _is_among(name: str, names: Sequence[str] | dict[str, float]) -> bool:
    return full_name(name) in map(full_name, names)


def _check_models(config: RunConfig) -> None:
    """The model and the rewards that are asked for are there; the Hub's files are downloaded here."""
    chosen = config.evaluation.rewards
    if not chosen:
        check_models(config, gradients=False)
        return
    check_model_and_lora(config.model, config.sampling, gradients=False)
    check_names(chosen, REWARD_NAMES + JUDGE_NAMES, "evaluation.rewards:")
    for name in chosen:
        if [full_name(other) for other in chosen].count(full_name(name)) > 1:
            raise UserError(f"evaluation.rewards: {name!r} is named twice; name it once")
    locate_rewards([name for name in chosen if name not in JUDGE_NAMES], config.rewards.checkpoints)


def _read_prompts(config: RunConfig) -> PromptSet:
    """The prompts to judge by: of a source that training names too, what training does not see."""
    source = config.evaluation.prompts
    splits: tuple[Split, ...] = ("train", "validation")
    shared: dict[Split, str] = {split: source for split in splits if getattr(config.prompts, split) == source}
    if not shared:
        return load_prompts(source, "held_out", "evaluation.prompts")
    return load_splits({**shared, "held_out": source})["held_out"]


def _described(compared: ComparedNegative) -> str:
    """What a label stands for."""
    method, text = compared.method, compared.negative.text
    words = repr(text) if text is not None and not compared.table else as_written(method.value) or method.kind
    words += f", model {as_written(method.model)}" if method.model else ""
    return words + (f", prompts refined by {method.refine}" if method.refine else "")
