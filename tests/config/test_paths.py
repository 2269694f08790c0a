"""One rule for all paths: `~` is the home folder, relative ones are absolute from the start, names stay names."""

import os
from pathlib import Path
from typing import Any

import pytest

from renege_ray.__main__ import main
from renege_ray.cluster.tracking.uris import sqlite_file
from renege_ray.config.cli import from_args
from renege_ray.config.faults import fields
from renege_ray.config.fingerprint import fingerprint
from renege_ray.config.run import RunConfig, load_preset, parse_config, to_mapping, with_values, write_config
from renege_ray.config.sampling_flags import absolute_path
from renege_ray.errors import UserError, as_written
from renege_ray.output.folder import make_output_dir

# How a path is written into each field that takes one; {} is the path.
FORMS: dict[str, Any] = {
    "output_dir": "{}",
    "tracking_uri": "sqlite:///{}",
    "model.id": "{}",
    "model.lora": "{}",
    "model.controlnet": "{}",
    "model.control": "{}",
    "prompts.train": "{}",
    "prompts.validation": "{}:caption",
    "prompts.held_out": "parti={}",
    "optim.init": "{}",
    "rewards.checkpoints": {"hpsv2": "{}"},
    "tuning.prompts": "hpsv2={}",
    "tuning.init": "{}",
    "evaluation.methods": [
        "null", "global={}", "prompt={},as=mine", "model={}:null", "model={}:global={},as=x", "model=acme/m:prompt={}",
        "handwritten=~ugly", "text=./ugly", "model=acme/m:null",
    ],
    "evaluation.prompts": "{}:text",
    "evaluation.refiners": {"promptist": "{}"},
    "sweep.space": "{}",
    "cluster.storage_path": "{}",
}  # fmt: skip
NAMES = {
    "model.id": ("toy", "toy2", "acme/model", "acme"),
    "model.lora": ("acme/lora",),
    "model.controlnet": ("acme/net",),
    "prompts.train": ("toy", "parti", "imagereward-10k"),
    "optim.init": ("null", "handwritten"),
    "tuning.init": ("null", "handwritten"),
    "sweep.space": ("paper", "wide"),
    "cluster.storage_path": ("s3://bucket/x", "file:///mnt/x"),
    "tracking_uri": ("http://127.0.0.1:5000",),
}


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home, work = tmp_path / "home", tmp_path / "work"
    for folder in (home, work):
        (folder / "a").mkdir(parents=True)
        (folder / "a/b.yaml").write_text("x")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    return tmp_path


def filled(form: Any, path: str) -> Any:
    if isinstance(form, dict):
        return {name: filled(item, path) for name, item in form.items()}
    if isinstance(form, list):
        return [filled(item, path) for item in form]
    return form.replace("{}", path)


def of(config: RunConfig, name: str) -> Any:
    found: Any = to_mapping(config)
    for part in name.split("."):
        found = found[part]
    return found


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(("written", "meant"), [("~/a/b.yaml", "home/a/b.yaml"), ("a/b.yaml", "work/a/b.yaml")])
def test_every_path_is_absolute_and_told_as_written(name: str, written: str, meant: str, folders: Path) -> None:
    base = load_preset("toy")
    if name == "model.controlnet":
        base = with_values(base, {"model.control": "x.png"})
    found = of(with_values(base, {name: filled(FORMS[name], written)}), name)
    assert found == filled(FORMS[name], str(folders / meant))
    if name != "tracking_uri":  # a URI of an absolute path has a slash more, so it is told as it is
        assert as_written(str(found)) == str(filled(FORMS[name], written))


def test_the_table_of_fields_is_complete() -> None:
    words = ("file", "folder", "path", "URI", "likewise")
    told = {n for n, info in fields(RunConfig).items() if any(word in str(info.description) for word in words)}
    assert told - set(FORMS) <= {"model.revision", "model.variant", "evaluation.keep_images"}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NAMES.items() for value in values])
def test_a_name_stays_a_name(name: str, value: str) -> None:
    assert of(with_values(load_preset("toy"), {"model.control": "x.png", name: value}), name) == value


def test_names_of_the_package_win_over_folders_of_that_name() -> None:
    for name in ("toy", "null", "paper"):
        Path(name).mkdir()
    config = parse_config({"model": {"id": "toy"}, "optim": {"init": "null"}, "sweep": {"space": "paper"}})
    assert (config.model.id, config.optim.init, config.sweep.space) == ("toy", "null", "paper")


def test_an_existing_folder_is_a_path_whatever_its_name(folders: Path) -> None:
    Path("acme/model").mkdir(parents=True)
    assert parse_config({"model": {"id": "acme/model"}}).model.id == str(folders / "work/acme/model")


def test_flags_written_with_an_equals_sign(folders: Path) -> None:
    config = from_args(["--output-dir=~/runs"], "train_global").config
    assert config.output_dir == folders / "home/runs"
    assert not Path("~").exists()


def test_a_preset_and_a_run_in_the_home_folder(folders: Path) -> None:
    (folders / "home/mine.yaml").write_text("seed: 7\n")
    config = from_args(["--preset", "~/mine.yaml", "--output-dir", "~/run"], "train_global").config
    assert config.seed == 7
    write_config(config, make_output_dir(config.output_dir))
    assert from_args(["--resume", "~/run"], "train_global").config.output_dir == folders / "home/run"


def test_a_run_goes_on_from_another_folder(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("prompts.csv").write_text("caption\na fox\n")
    config = from_args(["--prompts", "prompts.csv:caption", "--output-dir", "run"], "train_global").config
    write_config(config, make_output_dir(config.output_dir))
    monkeypatch.chdir(folders)
    resumed = from_args(["--resume", "work/run", "--prompts", "work/prompts.csv:caption"], "train_global")
    assert resumed.config.prompts.train == f"{folders}/work/prompts.csv:caption"


def test_a_link_to_a_file_is_no_other_file(folders: Path) -> None:
    Path("link").symlink_to("a")
    real, link = (parse_config({"model": {"lora": f"{folder}/b.yaml"}}) for folder in ("a", "link"))
    assert fingerprint(real) == fingerprint(link)


def test_the_folder_of_a_relative_store_is_quoted(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folders / "why?").mkdir()
    monkeypatch.chdir(folders / "why?")
    found = parse_config({"tracking_uri": "sqlite:///m.db"}).tracking_uri
    assert found is not None and sqlite_file(found) == folders / "why?/m.db"


def test_a_user_that_does_not_exist() -> None:
    with pytest.raises(UserError, match=r"^output_dir: '~nobody-of-this-name/x' is in the home folder of a user"):
        from_args(["--output-dir", "~nobody-of-this-name/x"], "train_global")


def test_what_is_told_has_whole_names_only(folders: Path) -> None:
    absolute_path("run")
    assert as_written(f"{folders}/work/run: {folders}/work/run2 sqlite:///{folders}/work/run/m.db") == (
        f"run: {folders}/work/run2 sqlite:///{folders}/work/run/m.db"
    )
    assert as_written(f"{os.sep}") == os.sep


SECRETS = (
    "s3://KEY:hunter2@bucket/x",
    "s3://KEY:hun/hunter2@bucket/x",
    "S3://hunter2@bucket",
    "s3://bucket/x?region=a&secret_key=hunter2",
    "abfs://container:hunter2@account/x",
    "https://me:hunter2@host/x.csv",
    "https://host/x.csv?token=hunter2",
)


@pytest.mark.parametrize("uri", SECRETS)
@pytest.mark.parametrize("name", [*FORMS, "model.revision", "experiment", "optim.lr", "seed"])
def test_a_password_is_refused_in_every_field(name: str, uri: str) -> None:
    value = filled(FORMS.get(name, "{}"), uri) if name != "tracking_uri" else uri
    with pytest.raises(UserError, match=rf"^{name}[.\w]*: .*in the environment") as raised:
        with_values(load_preset("toy"), {name: value})
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "argv",
    [
        ["embedding", "check"],
        ["embedding", "inspect"],
        ["embedding", "export", "--hub", "out"],
        ["generate", "--prompt", "a fox", "--negative"],
        ["generate", "--prompt", "a fox", "--model"],
        ["rewards", "score", "--reward", "toy", "x.png", "--prompt", "x", "--checkpoint"],
        ["analyses", "distance", "--embedding"],
        ["toy", "export"],
        ["tracking", "send", "run", "--tracking-uri"],
        ["vbench"],
        ["train-global", "--resume"],
        ["train-global", "--preset"],
        ["train-global", "--no-such-flag"],
        ["train-global"],
    ],
)
def test_a_password_is_in_no_message(argv: list[str]) -> None:
    for uri in SECRETS:
        with pytest.raises(UserError) as raised:
            main([*argv, uri])
        assert "hunter2" not in str(raised.value) and "\n" not in str(raised.value)
