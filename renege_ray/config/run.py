"""The typed, validated configuration of a run: everything that a result depends on, and nothing else.

Defaults are the paper's settings where it gives them. A preset (presets/*.yaml) changes some, flags change
others (renege_ray.config.cli); the whole effective configuration is one `RunConfig`, written beside the results.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from renege_ray.config.faults import did_you_mean, explain
from renege_ray.config.jobs import (
    AsTuple,
    ClusterConfig,
    Count,
    CountOrZero,
    EvaluationConfig,
    Name,
    Section,
    SweepConfig,
    TuningConfig,
)
from renege_ray.config.paths import Folder, PathOrName, PathOrUri, PromptSource, TrackingUri, check_no_secrets
from renege_ray.config.yaml_files import read_yaml, write_yaml
from renege_ray.errors import UserError
from renege_ray.output.folder import CONFIG_FILE
from renege_ray.output.paths import absolute_path

PRESETS = Path(__file__).parent / "presets"


class ModelConfig(Section):
    """The frozen text-to-image model."""

    id: PathOrName = Field(
        "toy", description="'toy' or 'toy2' (in the package), a folder in diffusers format, or a Hub id"
    )
    revision: Name | None = Field(None, description="branch, tag or commit of a Hub id")
    variant: Name | None = Field(None, description="weights variant of a Hub id or folder, such as fp16")
    lora: PathOrName | None = Field(None, description="a LoRA to add to the weights: a file, a folder, or a Hub id")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="of the model's arithmetic; auto is bfloat16 where the hardware has it, float16 on GPUs that have "
        "tensor cores for no other (V100, T4, RTX 20xx), else float32",
    )
    compile: Literal["auto"] | bool = Field(
        "auto",
        description="torch.compile denoiser, decoder and the rewards' image towers: minutes to start, then faster; "
        "auto does so on a CUDA GPU where the run is long enough to pay for it",
    )
    size: Annotated[tuple[Count, Count], AsTuple] | None = Field(
        None, description="height, width of the images in pixels; by default what the model was trained at"
    )
    negative_tokens: Count | None = Field(
        None, description="tokens of the learned negative, where the model leaves that free; default: the family's"
    )
    frames: Count = Field(16, description="of a video, where the model makes videos")
    controlnet: PathOrName | None = Field(
        None, description="a ControlNet to add to a Stable Diffusion model: a folder, or a Hub id"
    )
    control: PathOrUri | None = Field(
        None,
        description="what a ControlNet is shown: an image file for all prompts, or a folder with one for each and "
        'metadata.jsonl, lines of {"file_name": "1.png", "text": "the prompt"}',
    )

    @model_validator(mode="after")
    def _a_controlnet_is_shown_something(self) -> Self:
        if self.controlnet is not None and self.control is None:
            raise ValueError(f"model.control: missing, and model.controlnet {self.controlnet!r} has to be shown images")
        return self


class PromptsConfig(Section):
    """Prompts to learn from and to judge by: 'toy', a published set (imagereward-10k, parti, hpsv2; NAME=PATH for a
    local copy), or a .txt, .jsonl, .json, .csv, .tsv or .parquet file (FILE:COLUMN to name the column).

    No prompt is in two splits: a source that several name is divided by hash, 80 : 10 : 10; see
    `renege_ray.prompts.sources`.
    """

    train: PromptSource = Field("toy", description="to learn from: 'toy', a published set, or a file (FILE:COLUMN)")
    validation: PromptSource = Field("toy", description="likewise: to choose the best embedding by")
    held_out: PromptSource = Field("toy", description="likewise: for the final test; nothing is chosen by these")
    handwritten: Annotated[tuple[Name, ...], AsTuple] = Field(
        ("low quality, worst quality, blurry",),
        description="candidate negative prompts; the one with the best reward on validation stands for "
        "'handwritten' (as a flag: one text, or a YAML list)",
    )

    @field_validator("handwritten")
    @classmethod
    def _some_and_different(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        if not texts or any(not text.strip() for text in texts):
            raise ValueError(
                f"prompts.handwritten: {list(texts)!r} needs at least one text and no blank one; for example ['blurry']"
            )
        return tuple(dict.fromkeys(texts))


class SamplingConfig(Section):
    """How an image is made, in training as in evaluation (deterministic steps under guidance)."""

    num_inference_steps: Count = Field(30, description="sampler steps T")
    guidance_scale: float = Field(
        7.5, gt=0, description="of classifier-free guidance, as the model's pipeline calls it: above 1, as a rule"
    )
    guidance_options: dict[str, float] = Field(
        {}, description="what else the pipeline's guidance is told, by its own names: {NAME: NUMBER}"
    )
    gradient_steps: Annotated[tuple[int, int], AsTuple] = Field(
        (0, 10),
        description="first, last: steps that gradients are taken at, counted from the clean end; "
        "[0, 10] is the last ten",
    )

    @model_validator(mode="after")
    def _there_are_steps_for_gradients(self) -> Self:
        first, last = self.gradient_steps
        if not 0 <= first < last <= self.num_inference_steps:
            why = (
                "is reversed" if first > last
                else "is empty" if first == last
                else f"leaves the {self.num_inference_steps} steps of sampling.num_inference_steps"
            )  # fmt: skip
            raise ValueError(
                f"sampling.gradient_steps: [{first}, {last}] {why}; give first, last with 0 <= first "
                f"< last <= {self.num_inference_steps}, such as [0, {max(1, self.num_inference_steps // 3)}]"
            )
        return self


class OptimConfig(Section):
    """The ascent on the mean reward: AdamW with cosine decay."""

    lr: float = Field(5e-3, gt=0, description="learning rate at the start of the cosine decay")
    steps: Count = Field(4000, description="updates")
    batch_size: Count = Field(64, description="rollouts in the global batch of one update, over all workers")
    timestep_groups: Count = Field(
        4, description="equal groups of the batch; a group shares its steps, so that workers wait for no one"
    )
    micro_batch_size: Literal["auto"] | Count = Field(
        "auto", description="samples that a worker computes at once; auto is as many as fit"
    )
    gradients_per_rollout: Count = Field(
        1, description="gradient steps taken from one rollout, all in the same update: cheaper, but correlated"
    )
    weight_decay: float = Field(
        0.0, ge=0, description="decay pulls the embedding to zero, which is no meaningful point, so it is off"
    )
    betas: Annotated[tuple[float, float], AsTuple] = Field((0.9, 0.999), description="AdamW's averages")
    max_grad_norm: float = Field(0.0, ge=0, description="clip the gradient to this norm; 0 is off")
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="average the embedding over updates with this decay; 0 is off"
    )
    drift_penalty: float = Field(
        0.0, ge=0, description="weight of the mean squared distance from the initial embedding; 0 is off"
    )
    init: PathOrName = Field("null", description="start from: null, handwritten, or an embedding file")

    @field_validator("init", mode="before")
    @classmethod
    def _null_is_a_word_here(cls, value: object) -> object:
        return "null" if value is None else value  # what YAML makes of an unquoted null

    @model_validator(mode="after")
    def _batch_is_divisible(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas: {list(self.betas)} is not within 0 <= beta < 1; for example [0.9, 0.999]")
        if self.batch_size % self.timestep_groups:
            larger = -(-self.batch_size // self.timestep_groups) * self.timestep_groups
            raise ValueError(
                f"optim.batch_size: {self.batch_size} is not divisible by the {self.timestep_groups} groups "
                f"of optim.timestep_groups; give {larger}, or another number of groups"
            )
        return self


class RewardsConfig(Section):
    """What is trained against, and what is only looked at."""

    train: dict[str, float] = Field({"toy": 1.0}, description="rewards to ascend and their weights: {NAME: WEIGHT}")
    held_out: Annotated[tuple[Name, ...], AsTuple] = Field(
        ("toy_held_out",), description="rewards that see no gradient; the early stop watches them"
    )
    judges: Annotated[tuple[Name, ...], AsTuple] = Field((), description="other scores to report")
    checkpoints: dict[str, PathOrUri] = Field(
        {}, description="local copies of rewards' weights: {NAME: FILE or FOLDER}; others come from the Hub"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the rewards' image towers; auto is bfloat16 where the hardware has it, else float32"
    )

    @model_validator(mode="after")
    def _weights_and_names(self) -> Self:
        if not self.train:
            raise ValueError("rewards.train: {} names no reward to ascend; for example {toy: 1.0}")
        for name, weight in self.train.items():
            if weight <= 0:
                raise ValueError(
                    f"rewards.train: the weight {weight:g} of {name!r} is not above 0; leave the reward "
                    "out, or give it a positive weight"
                )
        for name in self.held_out:
            if name in self.train:
                raise ValueError(
                    f"rewards.held_out: {name!r} is trained against in rewards.train, so it is not held out; "
                    "leave it out of one of the two"
                )
        return self


class ValidationConfig(Section):
    """Full generations during training, on fixed prompts and seeds, to choose the best embedding by."""

    every: Count = Field(200, description="updates between validations; the first and last are always validated")
    num_prompts: Count = Field(64, description="validation prompts")
    seeds_per_prompt: Count = Field(1, description="images a prompt")
    patience: CountOrZero = Field(
        3,
        description="stop early after this many validations in a row with the held-out rewards below their "
        "best while the training reward rises; 0 is off",
    )
    batch_size: Count = Field(16, description="images made at once by a worker, here and in the test")
    num_images: CountOrZero = Field(8, description="columns of the image grids")


class TestConfig(Section):
    """The final comparison with null and handwritten on held-out prompts."""

    __test__ = False  # not a test class, whatever pytest thinks of its name
    num_pairs: Count = Field(256, description="prompt and seed pairs; fewer than 256 make uncertain win rates")


class CheckpointConfig(Section):
    """What a killed run goes on from."""

    every: Count = Field(100, description="updates between checkpoints")


class RunConfig(Section):
    """One run."""

    seed: CountOrZero = Field(0, description="of everything random: prompts, noise, steps")
    output_dir: Folder = Field(
        Path("outputs/run"), validate_default=True, description="folder of the results; default: outputs/JOB-DATE-TIME"
    )
    experiment: Name = Field("renege_ray", description="MLflow experiment")
    tracking_uri: TrackingUri | None = Field(
        None, description="MLflow store; default: an SQLite file beside the output folder"
    )
    memory: Literal["auto", "16gb", "24gb", "80gb"] = Field(
        "auto",
        description="of a worker's accelerator: how many samples it computes at once, and whether it recomputes "
        "activations; auto is what is free (on a CPU, no limit)",
    )
    model: ModelConfig = ModelConfig()
    prompts: PromptsConfig = PromptsConfig()
    sampling: SamplingConfig = SamplingConfig()
    optim: OptimConfig = OptimConfig()
    rewards: RewardsConfig = RewardsConfig()
    validation: ValidationConfig = ValidationConfig()
    test: TestConfig = TestConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tuning: TuningConfig = TuningConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    sweep: SweepConfig = SweepConfig()
    cluster: ClusterConfig = ClusterConfig()

    @field_validator("output_dir", mode="before")
    @classmethod
    def _named(cls, folder: object) -> object:
        if folder == "":
            raise ValueError("output_dir: is empty; for example outputs/run")  # and Path("") is the current folder
        return folder

    @model_validator(mode="before")
    @classmethod
    def _no_secrets(cls, data: Any) -> Any:
        """Before anything else is said of a value, since that would tell it."""
        check_no_secrets(data)
        return data

    @model_validator(mode="after")
    def _enough_steps_for_gradients(self) -> Self:
        check_gradients_per_rollout(self.sampling, self.optim.gradients_per_rollout, "optim.gradients_per_rollout")
        return self


def check_gradients_per_rollout(sampling: SamplingConfig, wanted: int, field: str) -> None:
    """Check that a rollout has as many steps to take gradients at. Raises UserError (a ValueError) naming `field`."""
    first, last = sampling.gradient_steps
    if wanted > last - first:
        raise UserError(
            f"{field}: {wanted} is more than the {last - first} steps of sampling.gradient_steps "
            f"[{first}, {last}]; give {last - first} or fewer"
        )


def check_work_for_everybody(config: RunConfig, workers: int = 0, field: str = "cluster.num_workers") -> None:
    """Check that every worker of a training has samples to compute.

    Args:
        config: of the training.
        workers: how many there are; 0: as many as `cluster.num_workers` says.
        field: the setting that says how many.

    Raises:
        UserError: some would have none.
    """
    group_size = config.optim.batch_size // config.optim.timestep_groups
    if (workers or config.cluster.worker_range[1]) > group_size:
        raise UserError(
            f"{field}: {workers or config.cluster.num_workers} is more than the {group_size} samples of a "
            f"timestep group (optim.batch_size {config.optim.batch_size} / optim.timestep_groups "
            f"{config.optim.timestep_groups}), so some workers would have nothing to do; "
            f"give {group_size} or fewer, or a larger batch"
        )


def parse_config(data: Mapping[str, Any]) -> RunConfig:
    """A configuration from nested maps; what is missing takes its default. UserError for the first fault."""
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise UserError(explain(error, RunConfig, data)) from None


def preset_names() -> list[str]:
    """The presets that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_preset(name_or_file: str | Path) -> RunConfig:
    """A preset of the package by name, or any YAML file of settings, such as a former run's config.yaml.

    The output folder of such a file is where that run was, not where the next one goes: it is not taken over.
    """
    text = str(name_or_file)
    is_file = isinstance(name_or_file, Path) or text.endswith((".yaml", ".yml")) or "/" in text
    if not is_file and text not in preset_names():
        known = preset_names()
        hint = did_you_mean(text, known)
        raise UserError(f"--preset: there is no preset {text!r}; {hint}known: {', '.join(known)}, or a YAML file")
    path = absolute_path(text) if is_file else PRESETS / f"{text}.yaml"
    if path.stem in preset_names() and not path.exists():
        raise UserError(f"--preset: there is no file {text}; did you mean --preset {path.stem}?")
    data = read_yaml(path)
    data.pop("output_dir", None)
    try:
        return parse_config(data)
    except UserError as error:
        raise UserError(f"{error} (in {text})" if is_file else str(error)) from None


def to_mapping(config: RunConfig) -> dict[str, Any]:
    """The configuration as nested maps, lists, texts and numbers."""
    return config.model_dump(mode="json")


def with_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """The configuration with the values given under dotted names; `rewards.train.NAME` is one weight.

    Raises:
        UserError: a value that does not fit.
    """
    data = to_mapping(config)
    for name, value in values.items():
        *sections, leaf = split_name(name)
        target = data
        for section in sections:
            target = target[section]
        target[leaf] = value
    return parse_config(data)


def split_name(name: str) -> list[str]:
    """The keys that a dotted name stands for; a reward's own name may have dots."""
    return name.split(".", 2)


def read_config(folder: Path) -> RunConfig:
    """The configuration of the run in `folder`, with `folder`, which may have moved, as its output folder."""
    return parse_config(read_yaml(folder / CONFIG_FILE) | {"output_dir": str(folder)})


def write_config(config: RunConfig, folder: Path) -> Path:
    """Write the whole effective configuration to `folder`/config.yaml, atomically. Returns its path."""
    path = folder / CONFIG_FILE
    write_yaml(path, to_mapping(config), f"The whole configuration of this run; repeat it with --preset {path}")
    return path
