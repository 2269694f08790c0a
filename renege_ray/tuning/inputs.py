"""What per-prompt tuning reads from files, checked before a model is loaded or anything is started."""

import hashlib
from dataclasses import dataclass

from renege_ray.config.fingerprint import fingerprint
from renege_ray.config.run import RunConfig, check_gradients_per_rollout
from renege_ray.method.embedding import as_stored
from renege_ray.prompts.sources import TOY, Split, load_prompts
from renege_ray.sampling.negative import Negative, read_start
from renege_ray.training.inputs import check_models
from renege_ray.tuning.table import PromptToTune


@dataclass(frozen=True)
class TuningInputs:
    """The prompts, no two of them with one id; what their embeddings start from; what there is to say; and a key of
    everything that a row depends on, the content of the initial embedding included.
    """

    prompts: tuple[PromptToTune, ...]
    initial: Negative
    notes: tuple[str, ...]
    key: str


def read_tuning_inputs(config: RunConfig) -> TuningInputs:
    """Read all files that the configuration names.

    Raises:
        UserError: more gradients than steps to take them at, a name that is not known, a file that is missing, empty
            or damaged, an embedding that does not fit the model.
    """
    # Not for every configuration to satisfy: a training that never tunes has no need of it.
    check_gradients_per_rollout(config.sampling, config.tuning.gradients_per_rollout, "tuning.gradients_per_rollout")
    check_models(config)
    source = config.tuning.prompts
    found = _read_prompts(source)
    unique = {prompt.id: prompt for prompt in reversed(found)}  # of two with one id, the first counts
    prompts = [prompt for prompt in found if unique[prompt.id] is prompt]
    notes = []
    if len(prompts) < len(found):
        repeated = len(found) - len(prompts)
        notes.append(f"{source}: {repeated} repeated prompt{'s are' if repeated > 1 else ' is'} tuned once")
    prompts = prompts[: config.tuning.num_prompts or None]
    initial = read_start(config.tuning.init, "tuning.init", config)
    return TuningInputs(tuple(prompts), initial, tuple(notes), _key(config, initial))


def _read_prompts(source: str) -> list[PromptToTune]:
    """All prompts of a source: of 'toy', the held-out ones first.

    They are in the order of their hashed ids: the first so many are the mixture that evaluations take, too
    (`make_pairs`).
    """
    splits: tuple[Split, ...] = ("held_out", "validation", "train") if source == TOY else ("held_out",)
    prompts: list[PromptToTune] = []
    for split in splits:
        found = load_prompts(source, split, "tuning.prompts")
        categories = found.categories or ("",) * len(found.prompts)
        of_split = map(PromptToTune, found.prompts, categories)
        prompts += sorted(of_split, key=lambda prompt: prompt.id)
    return prompts


def _key(config: RunConfig, initial: Negative) -> str:
    digest = hashlib.sha256(fingerprint(config, "tune_prompts").encode("ascii"))
    if initial.embedding is not None:
        digest.update(as_stored(initial.embedding).numpy().tobytes())
    return digest.hexdigest()[:16]
