"""The command line that all jobs share: flags generated from the configuration."""

import argparse
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from renege_ray.config.argument_parser import ArgumentParser, command_of, help_text
from renege_ray.config.faults import expected, fields, shown_value, unknown_field
from renege_ray.config.fingerprint import fingerprint, has_effect, is_foreign
from renege_ray.config.gpus import GPUS, Gpu, gpu_of
from renege_ray.config.jobs import EvaluationConfig, SweepConfig
from renege_ray.config.paths import same_place
from renege_ray.config.preset_choice import DEFAULT_PRESET, check_rewards, choose_preset, preset_for
from renege_ray.config.run import (
    RunConfig,
    check_work_for_everybody,
    load_preset,
    preset_names,
    read_config,
    to_mapping,
    with_values,
)
from renege_ray.config.yaml_files import parse_yaml
from renege_ray.errors import UserError
from renege_ray.output.folder import CONFIG_FILE, check_output_dir
from renege_ray.output.paths import absolute_path

_COMMON_ALIASES = {"cluster.num_workers": "num-workers", "model.id": "model"}
_ALIASES = {
    "train_global": _COMMON_ALIASES | {"prompts.train": "prompts", "optim.init": "init"},
    "tune_prompts": _COMMON_ALIASES
    | {f"tuning.{name}": name.replace("_", "-") for name in ("prompts", "num_prompts", "init", "max_failed")},
    "evaluate": _COMMON_ALIASES
    | {f"evaluation.{name}": name.replace("_", "-") for name in EvaluationConfig.model_fields if name != "batch_size"}
    | {"evaluation.methods": "method"},
    "sweep": {"model.id": "model", "prompts.train": "prompts"}
    | {f"sweep.{name}": name.replace("_", "-") for name in SweepConfig.model_fields},
}
_REPEATED = ("evaluation.methods",)  # flags that are given once for each item, in which commas are no separators
# The same command given again goes on in the same folder.
_REPEATABLE = ("tune_prompts", "evaluate", "sweep")
_OTHER_FLAGS = ("--preset", "--resume", "--dry-run", "--gpu", "--help")

# No gradients are taken in an evaluation: any number of steps will do.
_NO_GRADIENTS = {"sampling.gradient_steps": [0, 1], "optim.gradients_per_rollout": 1}


@dataclass(frozen=True)
class Invocation:
    """What a job was asked to do. `config.output_dir` has been checked, but not made yet."""

    config: RunConfig
    resume: bool = False
    dry_run: bool = False
    gpu: Gpu | None = None
    """That the hours of a dry run are wanted on."""


def from_args(argv: Sequence[str], job: str) -> Invocation:
    """Parse a job's flags. `--help` prints and exits with 0.

    Raises:
        UserError: for anything wrong with the flags, the preset, the configuration or the output folder.
    """
    texts = vars(_parser(job, _base_config(argv)).parse_args(_tokens(argv)))
    gpu = gpu_of(texts.pop("gpu")) if "gpu" in texts else None
    if gpu is not None and not texts.get("dry_run"):
        raise UserError("--gpu: says what a dry run is to be priced on, and chooses no hardware; add --dry-run")
    return replace(_invocation(texts, job), gpu=gpu)


def _invocation(texts: dict[str, Any], job: str) -> Invocation:
    """What the flags, as texts, ask for."""
    preset, resume = texts.pop("preset", None), texts.pop("resume", None)
    dry_run = texts.pop("dry_run", False)
    # Not by argparse's `type`, which would replace the message of a ValueError by one of its own.
    known = fields(RunConfig)
    given = {name: _value(name, known[name], text) for name, text in texts.items()}
    if job == "evaluate":
        given |= _NO_GRADIENTS
    if resume is not None:
        resume = absolute_path(resume)
        if preset is not None:
            raise UserError("--preset: a resumed run has its configuration already; leave --preset or --resume out")
        return Invocation(_resumed(resume, given, job), resume=True, dry_run=dry_run)
    base = load_preset(preset or choose_preset(given.get("model.id")))
    if job in _REPEATABLE:
        return _repeatable(base, given, job, dry_run)
    given.setdefault("output_dir", f"outputs/{job}-{datetime.now():%Y%m%d-%H%M%S}")
    config = with_values(base, given)
    check_rewards(config, job)
    check_work_for_everybody(config)
    check_output_dir(config.output_dir, resume=False)
    return Invocation(config, dry_run=dry_run)


def _repeatable(preset: RunConfig, given: dict[str, Any], job: str, dry_run: bool) -> Invocation:
    """An invocation of a job whose command, given again, goes on in its folder: named by the settings, unless the
    user names it. Tuned prompts are one table; a report is of one selection of methods and prompts.
    """
    config = with_values(preset, given)
    check_rewards(config, job)
    if "output_dir" not in given:
        mark = fingerprint(config, job, selection=job == "evaluate")[:8]
        config = with_values(config, {"output_dir": f"outputs/{job}-{mark}"})
    resume = (config.output_dir / CONFIG_FILE).exists()
    check_output_dir(config.output_dir, resume=resume)
    if resume:
        stored = read_config(config.output_dir)
        if name := _changed(stored, config, job, fields(RunConfig)):
            old, new = (shown_value(_get(to_mapping(c), name)) for c in (stored, config))
            raise UserError(
                f"--output-dir: {config.output_dir} holds a run whose {name} is {old}, not {new}; "
                "name another folder, or leave it out"
            )
    return Invocation(config, resume=resume, dry_run=dry_run)


def _resumed(folder: Path, given: dict[str, Any], job: str) -> RunConfig:
    """The configuration of the run in `folder`, with such changes as leave its result alone."""
    check_output_dir(folder, resume=True)
    if absolute_path(str(given.pop("output_dir", folder))) != folder:
        raise UserError("--output-dir: a resumed run goes on in its own folder; leave --output-dir out")
    stored = read_config(folder)
    config = with_values(stored, given)
    if name := _changed(stored, config, job, given):
        raise UserError(
            f"{_flag(name)}: the run in {folder} has {shown_value(_get(to_mapping(stored), name))}, and changing "
            f"it would change the result; leave the flag out, or start a new run "
            f"with --preset {folder / CONFIG_FILE}"
        )
    return config


def _changed(stored: RunConfig, config: RunConfig, job: str, names: Iterable[str]) -> str:
    """The first of the names whose setting differs and has an effect on the result of a job; "" if none has."""
    old, new = to_mapping(stored), to_mapping(config)
    return next(
        (
            name
            for name in names
            if has_effect(name, job) and same_place(_get(old, name)) != same_place(_get(new, name))
        ),
        "",
    )


def _get(data: Any, name: str) -> Any:
    for part in name.split("."):
        data = data[part]
    return data


def _base_config(argv: Sequence[str]) -> RunConfig:
    """The preset (or the run to resume) that --help shows the values of."""
    early = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    early.add_argument("--preset", default=None)
    early.add_argument("--model", "--model.id", default=None)
    early.add_argument("--resume", default=None)
    known, _ = early.parse_known_args(_tokens(argv))
    if known.resume is not None:
        folder = absolute_path(known.resume)
        check_output_dir(folder, resume=True)
        return read_config(folder)
    by_model = preset_for(known.model, download=False)[0] if known.model else DEFAULT_PRESET
    return load_preset(known.preset or by_model)


class _Parser(ArgumentParser):
    """Raises UserError instead of printing usage, with the nearest flag for one that does not exist."""

    job = ""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = self.parse_known_args(args, namespace)
        for token in unknown:
            flag = token.split("=")[0]
            if flag.startswith("--"):
                name = flag.removeprefix("--").replace("-", "_")
                if name in fields(RunConfig):
                    hint = _alike(name, self.job)
                    raise UserError(f"{flag}: is a setting of another job and has no effect here{hint}")
                others = [*_OTHER_FLAGS, *(f"--{alias}" for alias in _aliases(self.job).values())]
                raise UserError(unknown_field(name, RunConfig, flag=flag, other_flags=others))
        if unknown:
            raise UserError(f"{unknown[0]}: not expected here; flags start with --, and values with spaces need quotes")
        return found


def _aliases(job: str) -> dict[str, str]:
    return _ALIASES.get(job, _ALIASES["train_global"])


def _alike(name: str, job: str) -> str:
    """A field of this job's that ends in the same word."""
    leaf = name.rpartition(".")[2]
    alike = [other for other in fields(RunConfig) if other.endswith(f".{leaf}") and not is_foreign(other, job)]
    return f"; did you mean {_flag(alike[0])}?" if alike else ""


def _parser(job: str, base: RunConfig) -> argparse.ArgumentParser:
    command = command_of(job)
    parser = _Parser(
        prog=command,
        usage="%(prog)s [--preset NAME|FILE] [--output-dir DIR | --resume DIR] [--dry-run [--gpu NAME]] [--FIELD X]",
        epilog=help_text(job, command),
        argument_default=argparse.SUPPRESS,
    )
    parser.job = job
    run = parser.add_argument_group("run")
    presets = ", ".join(preset_names())
    run.add_argument(
        "--preset",
        metavar="NAME|FILE",
        help=f"{presets}, or a YAML file (default: {DEFAULT_PRESET}, or that of the family of --model)",
    )
    run.add_argument("--resume", metavar="DIR", help="go on from the last checkpoint of the run in DIR")
    run.add_argument("--dry-run", action="store_true", help="check everything, print the plan, start nothing")
    run.add_argument(
        "--gpu", metavar="NAME", help=f"with --dry-run: the hours on one such GPU, as an estimate ({', '.join(GPUS)})"
    )
    values = to_mapping(base)
    known = fields(RunConfig)
    for name in RunConfig.model_fields:
        if name in known:
            default = None if name == "output_dir" else values[name]
            _add_flag(run, name, known[name], default, _aliases(job))
    for section, info in RunConfig.model_fields.items():
        model = info.annotation
        if isinstance(model, type) and issubclass(model, BaseModel) and not is_foreign(section, job):
            group = parser.add_argument_group(section, inspect.cleandoc(model.__doc__ or "").replace("%", "%%"))
            for leaf in model.model_fields:
                name = f"{section}.{leaf}"
                if not is_foreign(name, job):
                    _add_flag(group, name, known[name], values[section][leaf], _aliases(job))
    return parser


def _add_flag(group: Any, name: str, info: FieldInfo, default: Any, aliases: dict[str, str]) -> None:
    flags = [f"--{aliases[name]}"] if name in aliases else []
    shown = "" if default is None else f" (default: {shown_value(default)})"
    options: dict[str, Any] = {"action": "append"} if name in _REPEATED else {}
    if info.annotation is bool:
        options = {"nargs": "?", "const": "true"}
    group.add_argument(
        *flags,
        _flag(name),
        dest=name,
        metavar="METHOD" if name == "evaluation.methods" else _metavar(info),
        help=f"{info.description}{shown}".replace("%", "%%"),
        **options,
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _metavar(info: FieldInfo) -> str:
    words = {
        "a whole number": "N", "a number": "X", "true or false": "true|false", "a path": "DIR",
        "a text": "TEXT", "a list of texts": "LIST",
        "a pair of whole numbers": "A,B", "a pair of positive whole numbers": "A,B", "a pair of numbers": "A,B",
        "a map of names to numbers": "MAP", "a map of names to texts": "MAP",
        "auto or a positive whole number": "auto|N",
        "auto or a positive number": "auto|X", "auto or true or false": "auto|true|false",
    }  # fmt: skip
    kind = expected(info).removesuffix(" or null")
    return words.get(kind, kind.removeprefix("one of ").replace(", ", "|"))


def _value(name: str, info: FieldInfo, text: str | list[str]) -> Any:
    """The value that a flag's text (or texts) stands for; whether it fits the field is for the configuration to say."""
    if isinstance(text, list):
        return [item for one in text for item in (parse_yaml(one, _flag(name)) if one.startswith("[") else [one])]
    kind = expected(info)
    if kind in {"a text", "a path"}:
        return text
    if kind == "a text or null":
        return None if text == "null" else text
    if text == "null" and kind.endswith(" or null"):
        return None
    if kind.startswith(("a pair", "a list")) and not text.lstrip().startswith("["):
        if name == "prompts.handwritten":  # a negative prompt has commas of its own
            return [text]
        return parse_yaml(f"[{text}]", _flag(name))
    return parse_yaml(text, _flag(name))


def _tokens(argv: Sequence[str]) -> list[str]:
    """Flags in kebab-case, each joined to its value, so that argparse takes -1e-3 for a value, not a flag."""
    tokens: list[str] = []
    pending = False
    for token in argv:
        if pending and not token.startswith("--"):
            tokens[-1] += f"={token}"
            pending = False
            continue
        flag, equals, value = token.partition("=")
        is_flag = token.startswith("--") and len(token) > 2
        tokens.append(flag.replace("_", "-") + equals + value if is_flag else token)
        pending = is_flag and not equals and flag not in {"--help", "--dry-run", "--dry_run"}
    return tokens
