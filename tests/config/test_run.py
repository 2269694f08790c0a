from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from renege_ray.config.faults import fields, nearest
from renege_ray.config.fingerprint import fingerprint
from renege_ray.config.run import (
    RunConfig,
    check_work_for_everybody,
    load_preset,
    parse_config,
    preset_names,
    read_config,
    to_mapping,
    write_config,
)
from renege_ray.config.yaml_files import parse_yaml, read_yaml, write_yaml
from renege_ray.errors import UserError


def nested(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def complaint(data: dict[str, Any]) -> str:
    with pytest.raises(UserError) as raised:
        parse_config(data)
    message = str(raised.value)
    assert "\n" not in message
    return message


# The settings


def test_defaults_are_the_papers() -> None:
    config = RunConfig()
    assert config.sampling.num_inference_steps == 30
    assert config.sampling.gradient_steps == (0, 10)
    assert config.sampling.guidance_scale == 7.5
    assert (config.optim.lr, config.optim.steps, config.optim.batch_size) == (5e-3, 4000, 64)
    assert config.optim.init == "null"


def test_every_preset_is_valid() -> None:
    assert preset_names() == [
        "chroma",
        "flux2-klein",
        "lumina2",
        "pixart",
        "qwen-image",
        "sana",
        "sd14",
        "sd15",
        "sd21",
        "sd35-medium",
        "sdxl",
        "toy",
        "z-image",
    ]
    for name in preset_names():
        assert load_preset(name).test.num_pairs >= 256
        assert len(load_preset(name).prompts.handwritten) >= 5


def test_every_field_is_described() -> None:
    assert all(info.description for info in fields(RunConfig).values())


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().optim.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "stored", "bounds"),
    [(2, "2", (2, 2)), ("2", "2", (2, 2)), ("1-4", "1-4", (1, 4)), (" 1 - 4 ", "1-4", (1, 4)), ("3-3", "3", (3, 3))],
)
def test_number_of_workers(given: int | str, stored: str, bounds: tuple[int, int]) -> None:
    cluster = parse_config({"cluster": {"num_workers": given}}).cluster
    assert cluster.num_workers == stored
    assert cluster.worker_range == bounds


def test_init_null_is_a_word_even_unquoted() -> None:
    assert parse_config(parse_yaml("optim: {init: null}", "test")).optim.init == "null"


def test_handwritten_candidates_are_not_repeated() -> None:
    config = parse_config({"prompts": {"handwritten": ["dark", "blurry", "dark"]}})
    assert config.prompts.handwritten == ("dark", "blurry")


# Bad settings


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("optim.lr", -1, ["optim.lr: -1", "above 0"]),
        ("optim.lr", 0, ["optim.lr: 0", "above 0"]),
        ("optim.lr", "fast", ["optim.lr: 'fast' is not a number", "0.005"]),
        ("optim.lr", True, ["optim.lr: true is not a number"]),
        ("optim.lr", None, ["optim.lr: null is not a number"]),
        ("optim.lr", float("nan"), ["optim.lr: nan is not a number"]),
        ("optim.steps", 1.5, ["optim.steps: 1.5 is not a whole number"]),
        ("optim.betas", [0.9, 1.0], ["optim.betas: [0.9, 1.0]", "0 <= beta < 1"]),
        ("optim.batch_size", 15, ["optim.batch_size: 15", "not divisible by the 4", "give 16"]),
        ("optim.micro_batch_size", 0, ["optim.micro_batch_size: 0", "auto or a positive whole number"]),
        ("optim.gradients_per_rollout", 11, ["optim.gradients_per_rollout: 11", "10 steps", "10 or fewer"]),
        ("optim.ema_decay", 1.0, ["optim.ema_decay: 1.0", "below 1"]),
        ("optim.weight_decay", -0.1, ["optim.weight_decay: -0.1", "at least 0"]),
        ("optim.init", "", ["optim.init: is empty"]),
        ("sampling.guidance_scale", 0, ["sampling.guidance_scale: 0 ", "above 0"]),
        ("sampling.guidance_options", {"a": "b"}, ["sampling.guidance_options"]),
        ("sampling.gradient_steps", [5, 5], ["sampling.gradient_steps: [5, 5] is empty"]),
        ("sampling.gradient_steps", [5, 2], ["sampling.gradient_steps: [5, 2] is reversed"]),
        ("sampling.gradient_steps", [-1, 2], ["sampling.gradient_steps: [-1, 2] leaves the 30 steps"]),
        ("sampling.gradient_steps", [5, 31], ["sampling.gradient_steps: [5, 31] leaves the 30 steps"]),
        ("sampling.gradient_steps", [0, 1, 2], ["[0, 1, 2] is not a pair of whole numbers"]),
        ("sampling.gradient_steps", [0, 1.5], ["[0, 1.5] is not a pair of whole numbers"]),
        ("cluster.num_workers", 0, ["cluster.num_workers: 0 workers", "1-4"]),
        ("cluster.num_workers", "0-2", ["cluster.num_workers: 0 workers"]),
        ("cluster.num_workers", "4-1", ["cluster.num_workers: 4-1 is reversed", "1-4"]),
        ("cluster.num_workers", "many", ["cluster.num_workers: 'many' is not a number of workers"]),
        ("cluster.num_workers", -2, ["cluster.num_workers: -2 is not a number of workers"]),
        ("cluster.num_workers", True, ["cluster.num_workers: True is not a number of workers"]),
        ("cluster.cpus_per_worker", 0, ["cluster.cpus_per_worker: 0", "auto or a positive number"]),
        ("cluster.use_gpu", "maybe", ["cluster.use_gpu: 'maybe'", "auto or true or false"]),
        ("rewards.train", {}, ["rewards.train: {}", "{toy: 1.0}"]),
        ("rewards.train", {"toy": -1}, ["rewards.train", "-1 of 'toy'", "not above 0"]),
        ("rewards.train", {"toy": "x"}, ["rewards.train: {toy: x} is not a map of names to numbers"]),
        ("rewards.train", {"toy_held_out": 1}, ["rewards.held_out: 'toy_held_out' is trained against"]),
        ("rewards.checkpoints", {"hpsv2": 3}, ["rewards.checkpoints: {hpsv2: 3} is not a map of names to texts"]),
        ("rewards.dtype", "fp16", ["rewards.dtype: 'fp16' is not one of auto, float32, bfloat16"]),
        ("rewards.held_out", "toy_held_out", ["rewards.held_out: 'toy_held_out' is not a list of texts"]),
        ("prompts.handwritten", [], ["prompts.handwritten: []", "at least one"]),
        ("prompts.handwritten", [" "], ["prompts.handwritten", "blank"]),
        ("prompts.train", 3, ["prompts.train: 3 is not a text"]),
        ("model.dtype", "fp16", ["model.dtype: 'fp16' is not one of auto, float32, bfloat16, float16"]),
        ("seed", -1, ["seed: -1", "at least 0"]),
        ("optim", 3, ["optim: 3 is no group of settings"]),
    ],
)
def test_bad_values_are_named_with_a_remedy(name: str, value: Any, parts: list[str]) -> None:
    message = complaint(nested(name, value))
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("optim.learning_rate", "optim.lr"),
        ("optim.batchsize", "optim.batch_size"),
        ("sampling.guidence_scale", "sampling.guidance_scale"),
        ("optimizer", "optim"),
        ("lr", "optim.lr"),
        ("seeed", "seed"),
        ("checkpoint.evry", "checkpoint.every"),
        ("validation.evry", "validation.every"),
        ("rewards.heldout", "rewards.held_out"),
        ("num_workers", "cluster.num_workers"),
    ],
)
def test_misspelt_fields_are_guessed(name: str, meant: str) -> None:
    assert complaint(nested(name, 1)) == f"{name}: there is no such field; did you mean {meant}?"


def test_nothing_is_guessed_where_nothing_is_alike() -> None:
    assert "the sections are model, prompts," in complaint({"zzzzzz": 1})
    assert nearest("zzzzzz", ["seed", "optim.lr"]) is None


# Files


@pytest.mark.parametrize("name", ["sd14", "sd15", "sd21", "sdxl", "pixart"])
def test_presets_of_real_models_have_the_papers_settings(name: str) -> None:
    config = load_preset(name)
    assert (config.optim.lr, config.optim.steps, config.optim.batch_size) == (5e-3, 4000, 64)
    assert (config.sampling.num_inference_steps, config.sampling.gradient_steps) == (30, (0, 10))
    assert config.sampling.guidance_scale == 7.5 and config.optim.init == "null"
    assert (config.rewards.train, config.rewards.held_out) == ({"hpsv2": 1.0}, ("pickscore",))
    splits = (config.prompts.train, config.prompts.validation, config.prompts.held_out)
    assert splits == ("imagereward-10k",) * 3
    assert config.memory == "auto" and config.optim.micro_batch_size == "auto"
    assert "/" in config.model.id and config.model.lora is None


@pytest.mark.parametrize(
    ("name", "steps", "scale"),
    [
        ("sana", 20, 4.5),
        ("lumina2", 30, 4.0),
        ("qwen-image", 50, 4.0),
        ("chroma", 40, 3.0),
        ("flux2-klein", 50, 4.0),
        ("sd35-medium", 40, 4.5),
        ("z-image", 50, 5.0),
    ],
)
def test_presets_of_flow_matching_models_are_sampled_as_their_pipelines_do(name: str, steps: int, scale: float) -> None:
    config, papers = load_preset(name), load_preset("sd15")
    assert (config.sampling.num_inference_steps, config.sampling.guidance_scale) == (steps, scale)
    first, last = config.sampling.gradient_steps
    assert first == 0 and last == round(steps / 3)
    assert (config.optim, config.rewards, config.memory) == (papers.optim, papers.rewards, "auto")


def test_memory_does_not_change_the_result() -> None:
    small, large = (parse_config({"memory": size}) for size in ("16gb", "80gb"))
    assert fingerprint(small) == fingerprint(large)
    assert fingerprint(parse_config({"model": {"lora": "some/lora"}})) != fingerprint(small)
    with pytest.raises(UserError, match=r"memory: '12gb' is not one of auto, 16gb, 24gb, 80gb"):
        parse_config({"memory": "12gb"})


def test_unknown_presets_are_guessed() -> None:
    with pytest.raises(UserError, match=r"there is no preset 'toi'; did you mean toy\? known: chroma, .*, toy, z-"):
        load_preset("toi")


def test_a_stored_configuration_is_read_back_as_it_was(tmp_path: Path) -> None:
    tricky = {
        "experiment": "no",
        "prompts": {"handwritten": ["null", "5e-3", "1:30", "a: b", "é, 漢字", "# x", "true"]},
        "optim": {"lr": 1e-05, "betas": [0.1, 0.30000000000000004]},
        "cluster": {"num_workers": 2},
        "output_dir": str(tmp_path),
    }
    config = parse_config(tricky)
    path = write_config(config, tmp_path)
    assert parse_config(read_yaml(path)) == config == read_config(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.yaml"]


def test_a_stored_configuration_repeats_a_run_in_another_folder(tmp_path: Path) -> None:
    config = parse_config(to_mapping(load_preset("toy")) | {"output_dir": str(tmp_path), "seed": 7})
    repeated = load_preset(write_config(config, tmp_path))
    assert repeated.output_dir != config.output_dir
    assert fingerprint(repeated) == fingerprint(config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"optim: {lr: 1", "not valid YAML in line 1"),
        (b"seed: 1\nseed: 2\n", "in line 2: the key 'seed' is given twice"),
        (b"", "holds no settings"),
        (b"- 1\n", "holds no settings"),
        (b"seed: \xff", "not UTF-8"),
        (b"seed: !!python/name:os.system x", "not valid YAML"),
        (b"optim: {lr: -1}", r"optim.lr: -1 .* \(in .*file.yaml\)"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        load_preset(path)
    assert "\n" not in str(raised.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        load_preset(tmp_path / "none.yaml")
    with pytest.raises(UserError, match=r"is a folder; name a YAML file"):
        load_preset(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-3", 0.005),
        ("no", "no"),
        ("1:30", "1:30"),
        ("010", 10),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("-1", -1),
    ],
)
def test_yaml_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    assert parse_yaml(text, "test") == value


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    write_yaml(path, {"seed": 1})
    with pytest.raises(Exception, match="cannot represent"):
        write_yaml(path, {"seed": object()})
    assert read_yaml(path) == {"seed": 1}


def test_checkpoints_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    paths = {"hpsv2": "a.pt", "clip": "~/clip", "pickscore": "/data"}
    found = parse_config(nested("rewards.checkpoints", paths)).rewards.checkpoints
    assert found == {"hpsv2": str(tmp_path / "a.pt"), "clip": str(tmp_path / "home" / "clip"), "pickscore": "/data"}


# The fingerprint


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("output_dir", "x"),
        ("experiment", "x"),
        ("tracking_uri", "x"),
        ("cluster.num_workers", 2),
        ("checkpoint.every", 9),
    ],
)
def test_fingerprint_ignores_what_has_no_effect(name: str, value: Any) -> None:
    assert fingerprint(parse_config(nested(name, value))) == fingerprint(RunConfig())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 1),
        ("optim.lr", 1e-3),
        ("sampling.guidance_scale", 3.0),
        ("rewards.train", {"toy": 2.0}),
        ("model.id", "x"),
    ],
)
def test_fingerprint_knows_what_has_an_effect(name: str, value: Any) -> None:
    assert fingerprint(parse_config(nested(name, value))) != fingerprint(RunConfig())


@pytest.mark.parametrize(
    ("name", "value", "training", "tuning"),
    [
        ("tuning.lr", 1e-3, False, True),
        ("tuning.tune_seeds", 3, False, True),
        ("tuning.slots", 3, False, False),
        ("tuning.num_prompts", 3, False, False),
        ("optim.lr", 1e-3, True, False),
        ("prompts.train", "x.txt", True, False),
        ("prompts.handwritten", ["x"], True, True),
        ("seed", 1, True, True),
    ],
)
def test_fingerprints_of_jobs_know_their_own_settings(name: str, value: Any, training: bool, tuning: bool) -> None:
    changed = parse_config(nested(name, value))
    assert (fingerprint(changed) != fingerprint(RunConfig())) == training
    assert (fingerprint(changed, "tune_prompts") != fingerprint(RunConfig(), "tune_prompts")) == tuning


@pytest.mark.parametrize("workers", [17, "1-17"])
def test_a_training_has_work_for_every_worker(workers: int | str) -> None:
    check_work_for_everybody(parse_config({"cluster": {"num_workers": 16}}))
    with pytest.raises(UserError, match=r"cluster.num_workers: .*17 .* 16 samples .*give 16 or fewer"):
        check_work_for_everybody(parse_config({"cluster": {"num_workers": workers}}))


def test_fingerprint_is_the_same_for_numbers_written_otherwise() -> None:
    assert fingerprint(parse_config({"sampling": {"guidance_scale": 3}})) == fingerprint(
        parse_config({"sampling": {"guidance_scale": 3.0}})
    )


@pytest.mark.parametrize("uri", ["http://somebody:hunter2@host:1/x", "postgresql://somebody:hunter2@db/mlflow"])
def test_a_password_is_refused_because_it_would_be_written_to_a_file(uri: str) -> None:
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI") as caught:
        parse_config({"tracking_uri": uri})
    assert "hunter2" not in str(caught.value)
    assert parse_config({"tracking_uri": "http://host:1/a@b"}).tracking_uri == "http://host:1/a@b"
