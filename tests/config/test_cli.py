import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from renege_ray.config.cli import Invocation, from_args
from renege_ray.config.faults import fields
from renege_ray.config.fingerprint import FOREIGN, fingerprint, is_foreign
from renege_ray.config.program import run_job
from renege_ray.config.run import RunConfig, load_preset, write_config
from renege_ray.errors import UserError, as_written
from renege_ray.output.folder import make_output_dir


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def parse(*argv: str) -> Invocation:
    return from_args(argv, "train_global")


def value_of(config: RunConfig, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def complaint(*argv: str) -> str:
    with pytest.raises(UserError) as raised:
        parse(*argv)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# Values


def test_no_flags_are_the_toy_preset_in_a_new_folder() -> None:
    invocation = parse()
    assert fingerprint(invocation.config) == fingerprint(load_preset("toy"))
    assert re.fullmatch(r"outputs/train_global-\d{8}-\d{6}", as_written(str(invocation.config.output_dir)))
    assert not invocation.resume and not invocation.dry_run
    assert not list(Path().iterdir()), "parsing makes nothing"


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--optim.lr", "5e-4"], "optim.lr", 5e-4),
        (["--optim.lr=5e-4"], "optim.lr", 5e-4),
        (["--optim.lr", "1", "--optim.lr", "2"], "optim.lr", 2.0),
        (["--sampling.guidance-scale", "3"], "sampling.guidance_scale", 3.0),
        (["--sampling.guidance_scale", "3"], "sampling.guidance_scale", 3.0),
        (["--sampling.gradient-steps", "2,9"], "sampling.gradient_steps", (2, 9)),
        (["--sampling.gradient-steps", "[2, 9]"], "sampling.gradient_steps", (2, 9)),
        (["--rewards.train", "{toy: 0.5, other: 2}"], "rewards.train", {"toy": 0.5, "other": 2.0}),
        (["--rewards.checkpoints", "{hpsv2: /a.pt}"], "rewards.checkpoints", {"hpsv2": "/a.pt"}),
        (["--rewards.held-out", "a,b"], "rewards.held_out", ("a", "b")),
        (["--rewards.held-out", "[]"], "rewards.held_out", ()),
        (["--rewards.held-out", ""], "rewards.held_out", ()),
        (["--prompts.handwritten", "blurry, dark"], "prompts.handwritten", ("blurry, dark",)),
        (["--prompts.handwritten", "['blurry, dark', dim]"], "prompts.handwritten", ("blurry, dark", "dim")),
        (["--num-workers", "1-4"], "cluster.num_workers", "1-4"),
        (["--num_workers", "2"], "cluster.num_workers", "2"),
        (["--cluster.num-workers", "2"], "cluster.num_workers", "2"),
        (["--prompts", "my_file.txt"], "prompts.train", "my_file.txt"),
        (["--prompts", "null"], "prompts.train", "null"),
        (["--init", "null"], "optim.init", "null"),
        (["--init", "handwritten"], "optim.init", "handwritten"),
        (["--model", "123"], "model.id", "123"),
        (["--model.compile", "true"], "model.compile", True),
        (["--model.revision", "5e3"], "model.revision", "5e3"),
        (["--cluster.use-gpu", "false"], "cluster.use_gpu", False),
        (["--cluster.use-gpu", "auto"], "cluster.use_gpu", "auto"),
        (["--optim.micro-batch-size", "4"], "optim.micro_batch_size", 4),
        (["--optim.betas", "0.8,0.9"], "optim.betas", (0.8, 0.9)),
        (["--seed", "3"], "seed", 3),
        (["--experiment", "no"], "experiment", "no"),
        (["--tracking-uri", "http://127.0.0.1:5000"], "tracking_uri", "http://127.0.0.1:5000"),
        (["--tracking-uri", "null"], "tracking_uri", None),
        (["--output-dir", "some_where/x_y"], "output_dir", Path("some_where/x_y")),
    ],
)
def test_flags(argv: list[str], name: str, value: Any) -> None:
    found = value_of(parse(*argv).config, name)
    assert (type(value)(as_written(str(found))) if name in ("output_dir", "prompts.train") else found) == value


@pytest.mark.parametrize("job", FOREIGN)
def test_every_field_of_a_job_has_a_flag_that_takes_its_own_value(job: str) -> None:
    preset = load_preset("toy")
    for name in fields(RunConfig):
        value = value_of(preset, name)
        if name == "output_dir" or value is None or is_foreign(name, job):
            continue
        text = str(list(value) if isinstance(value, tuple) else value)
        text = text.lower() if isinstance(value, bool) else text
        assert value_of(from_args([f"--{name}", text], job).config, name) == value, name


def test_flags_win_over_a_preset_file_over_defaults() -> None:
    Path("mine.yaml").write_text("seed: 4\noptim: {lr: 1.0, steps: 7}\n")
    config = parse("--preset", "mine.yaml", "--optim.lr", "2").config
    assert (config.seed, config.optim.lr, config.optim.steps, config.optim.batch_size) == (4, 2.0, 7, 64)


def test_dry_run() -> None:
    assert parse("--dry-run").dry_run
    assert parse("--dry_run", "--seed", "1").dry_run
    assert parse("--dry-run").gpu is None


def test_a_dry_run_on_a_named_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    for job in ("train_global", "tune_prompts", "evaluate", "sweep"):
        invocation = from_args(["--dry-run", "--gpu", "RTX 4090"], job)
        assert invocation.dry_run and invocation.gpu is not None and invocation.gpu.name == "RTX 4090"
    assert parse("--gpu=h100", "--dry-run").gpu is not None
    assert complaint("--dry-run", "--gpu", "h101").startswith("--gpu: 'h101' is not in the table; did you mean h100?")
    assert complaint("--gpu", "h100") == (
        "--gpu: says what a dry run is to be priced on, and chooses no hardware; add --dry-run"
    )
    with pytest.raises(SystemExit):
        parse("--help")
    assert "rtx4090" in capsys.readouterr().out


# Faults


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--optim.learning-rate", "1"], "--optim.learning-rate: there is no such flag; did you mean --optim.lr?"),
        (["--optim.learning-rate=1"], "--optim.learning-rate: there is no such flag; did you mean --optim.lr?"),
        (["--lr", "1"], "did you mean --optim.lr?"),
        (["--num-worker", "1"], "did you mean --num-workers?"),
        (["--preste", "toy"], "did you mean --preset?"),
        (["--dryrun"], "did you mean --dry-run?"),
        (["--guidance-scale", "2"], "did you mean --sampling.guidance-scale?"),
        (["--outputdir", "x"], "did you mean --output-dir?"),
        (["--optim.lr"], "--optim.lr: expected one argument"),
        (["--preset"], "--preset: expected one argument"),
        (["--dry-run=1"], "--dry-run: ignored explicit argument"),
        (["stray"], "stray: not expected here"),
        (["--optim.lr", "1", "2"], "2: not expected here"),
        (["--optim.lr", "-1"], "optim.lr: -1 is not allowed, it has to be above 0"),
        (["--optim.lr", "-1e-3"], "optim.lr: -0.001 is not allowed"),
        (["--optim.lr", "fast"], "optim.lr: 'fast' is not a number"),
        (["--sampling.gradient-steps", "[0, 13"], "--sampling.gradient-steps: not valid YAML"),
        (["--sampling.gradient-steps", "13,0"], "sampling.gradient_steps: [13, 0] is reversed"),
        (["--sampling.gradient-steps", "0"], "sampling.gradient_steps: [0] is not a pair"),
        (["--num-workers", "4-1"], "cluster.num_workers: 4-1 is reversed"),
        (["--num-workers", "0"], "cluster.num_workers: 0 workers"),
        (["--num-workers", "17"], "cluster.num_workers: 17 is more than the 16 samples"),
        (["--preset", "toi"], "there is no preset 'toi'; did you mean toy?"),
        (["--preset", "none.yaml"], "none.yaml: there is no such file"),
        (["--resume", "none"], "--resume: there is no folder none"),
        (["--resume", "."], "--resume: . holds no run"),
        (["--model.compile", "maybe"], "model.compile: 'maybe' is not auto or true or false"),
        (["--prompts", ""], "prompts.train: is empty"),
    ],
)
def test_faults(argv: list[str], message: str) -> None:
    assert message in complaint(*argv)


# Help


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("--help")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for name in fields(RunConfig):
        assert (f"--{name.replace('_', '-')} " in text) != is_foreign(name, "train_global")
    assert "renege-ray train-global --resume" in text
    assert "--model.size A,B " in text and "--model.lora TEXT " in text
    assert f"(default: {list(load_preset('toy').sampling.gradient_steps)})" in " ".join(text.split())


def test_help_shows_the_values_of_the_chosen_preset(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("sampling: {guidance_scale: 9.25}\n")
    with pytest.raises(SystemExit):
        parse("--help", "--preset", "mine.yaml")
    assert "9.25" in capsys.readouterr().out


# Output folders and resuming


def started(folder: str, *argv: str) -> RunConfig:
    config = parse("--output-dir", folder, *argv).config
    write_config(config, make_output_dir(config.output_dir))
    return config


def test_a_folder_holds_one_run() -> None:
    started("run")
    assert "run already holds a run; go on with it by --resume run" in complaint("--output-dir", "run")


def test_a_folder_without_a_run_may_have_other_files() -> None:
    Path("run").mkdir()
    Path("run/notes.txt").write_text("x")
    assert make_output_dir(parse("--output-dir", "run").config.output_dir) == Path("run").absolute()


@pytest.mark.parametrize("folder", ["file", "file/run", "file/a/b"])
def test_a_file_in_the_way(folder: str) -> None:
    Path("file").write_text("x")
    assert "--output-dir: " in complaint("--output-dir", folder)


def test_a_folder_that_cannot_be_written() -> None:
    with pytest.raises(UserError, match=r"--output-dir: /proc\S* cannot be .*; name another folder"):
        make_output_dir(Path("/proc/renege_ray/run"))


def test_resume_takes_the_stored_configuration() -> None:
    config = started("run", "--optim.lr", "1e-4", "--seed", "5")
    invocation = parse("--resume", "run")
    assert invocation.resume and invocation.config == config


def test_resume_works_after_the_folder_was_moved() -> None:
    started("run")
    Path("run").rename("moved")
    assert parse("--resume", "moved").config.output_dir == Path("moved").absolute()


def test_resume_may_change_what_leaves_the_result_alone() -> None:
    config = started("run")
    resumed = parse("--resume", "run", "--num-workers", "2", "--checkpoint.every", "5", "--tracking-uri", "x").config
    assert resumed.cluster.num_workers == "2"
    assert fingerprint(resumed) == fingerprint(config)


def test_resume_refuses_what_would_change_the_result() -> None:
    started("run", "--optim.lr", "5e-3")
    message = complaint("--resume", "run", "--num-workers", "2", "--optim.lr", "1")
    assert message.startswith("--optim.lr: the run in run has 0.005")
    assert parse("--resume", "run", "--optim.lr", "5e-3").resume, "the same value is no change"


def test_resume_refuses_another_folder_and_a_preset() -> None:
    started("run")
    assert "leave --output-dir out" in complaint("--resume", "run", "--output-dir", "other")
    assert "leave --preset or --resume out" in complaint("--resume", "run", "--preset", "toy")
    assert parse("--resume", "run", "--output-dir", "run").resume


def test_a_stored_configuration_repeats_a_run() -> None:
    config = started("run", "--seed", "8")
    repeated = parse("--preset", "run/config.yaml").config
    assert fingerprint(repeated) == fingerprint(config)
    assert repeated.output_dir != config.output_dir


# A job whose command is given again


def test_the_same_tuning_command_goes_on_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = from_args(["--tuning.lr", "1e-2"], "tune_prompts")
    assert not first.resume and first.config.output_dir.name.startswith("tune_prompts-")
    write_config(first.config, make_output_dir(first.config.output_dir))
    again = from_args(["--tuning.lr", "1e-2", "--num-workers", "1-8", "--max-failed", "3"], "tune_prompts")
    assert again.resume and again.config.output_dir == first.config.output_dir
    assert from_args(["--tuning.lr", "2e-3"], "tune_prompts").config.output_dir != first.config.output_dir
    with pytest.raises(UserError, match=r"tuning.lr is 0.01, not 0.002"):
        from_args(["--tuning.lr", "2e-3", "--output-dir", str(first.config.output_dir)], "tune_prompts")


def test_settings_of_another_job_are_refused_with_the_own_one() -> None:
    with pytest.raises(UserError, match=r"--optim.lr: is a setting of another job .* --tuning.lr\?"):
        from_args(["--optim.lr", "1e-2"], "tune_prompts")
    with pytest.raises(UserError, match=r"--tuning.lr: is a setting of another job .* --optim.lr\?"):
        from_args(["--tuning.lr", "1e-2"], "train_global")


@pytest.mark.parametrize("job", ["train_global", "tune_prompts"])
def test_the_examples_of_the_help_name_flags_that_there_are(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        from_args(["--help"], job)
    options, _, examples = capsys.readouterr().out.partition("examples:")
    named = set(re.findall(r"(?<= )--[a-z][\w.-]*", examples))
    assert {"--init", "--num-workers"} <= named
    assert named <= set(re.findall(r"(?<=[ ,])--[a-z][\w.-]*", options))


# How a job ends


def ended_with(error: BaseException | None, code: int | None = None) -> Any:
    def main(argv: Sequence[str]) -> int | None:
        if error:
            raise error
        return code

    with pytest.raises(SystemExit) as ended:
        run_job(main, [])
    return ended.value.code


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended_with(None) == 0
    assert ended_with(None, 3) == 3
    assert capsys.readouterr().err == ""
    assert ended_with(UserError("optim.lr: bad;\ngive another")) == 2
    assert capsys.readouterr().err == "error: optim.lr: bad; give another\n"
    assert ended_with(KeyboardInterrupt()) == 130
    stderr = capsys.readouterr().err
    assert "--resume" in stderr and stderr.count("\n") == 1


def test_a_bug_keeps_its_traceback() -> None:
    def main(argv: Sequence[str]) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_job(main, [])


# Evaluation


def test_methods_are_given_one_by_one_and_switches_bare() -> None:
    invocation = from_args(
        ["--method", "text=a, b", "--allow-missing", "--method=null", "--keep-images", "none"], "evaluate"
    )
    assert invocation.config.evaluation.methods == ("text=a, b", "null")
    assert invocation.config.evaluation.allow_missing and invocation.config.evaluation.keep_images == "none"


def test_an_evaluation_has_a_folder_of_its_own_that_methods_can_join() -> None:
    """Another selection gets another folder; named, the folder takes further methods, but no other settings."""
    one, other, again = (from_args(["--method", m], "evaluate").config.output_dir for m in ("null", "text=x", "null"))
    assert one == again != other
    write_config(from_args(["--output-dir", "here"], "evaluate").config, make_output_dir(Path("here")))
    assert from_args(["--output-dir", "here", "--method", "null", "--num-prompts", "3"], "evaluate").resume
    with pytest.raises(UserError, match=r"here holds a run whose sampling.guidance_scale is 2.5, not 3"):
        from_args(["--output-dir", "here", "--sampling.guidance-scale", "3"], "evaluate")
    from_args(["--sampling.num-inference-steps", "1"], "evaluate")  # no gradients: any number of steps will do
