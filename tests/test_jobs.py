"""The jobs from outside: bad input is one clear line and exit code 2, before a model is loaded or Ray
started.
"""

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file

from renege_ray.config.run import load_preset, parse_config, write_config
from renege_ray.errors import UserError
from renege_ray.evaluation.generate import generate, parse_request
from renege_ray.method.embedding import EmbeddingMetadata, NegativeEmbedding
from renege_ray.models.layout import EmbeddingLayout
from renege_ray.models.text_encoder import hash_text_encoder
from renege_ray.training.inputs import read_inputs, record_inputs
from renege_ray.tuning.table import PromptToTune, TuningTable, make_row, table_schema
from renege_ray.tuning.tune import TunedPrompt

ROOT = Path(__file__).resolve().parents[1]


def job(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"job_{name}", ROOT / "jobs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to load a model or to start Ray is an error of another kind than the one expected."""
    import ray

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("started something in spite of bad input")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", refuse)


def prompts_file(folder: Path, content: bytes) -> str:
    path = folder / "prompts.txt"
    path.write_bytes(content)
    return str(path)


BAD_FLAGS: dict[str, tuple[list[str], str]] = {
    "unknown preset": (["--preset", "tyo"], "did you mean toy"),
    "misspelt field": (["--optim.lrr", "1e-3"], "--optim.lr"),
    "wrong type": (["--optim.steps", "many"], "optim.steps"),
    "negative rate": (["--optim.lr", "-1e-3"], "optim.lr"),
    "no guidance": (["--sampling.guidance-scale", "1"], "sampling.guidance_scale"),
    "empty range": (["--sampling.gradient-steps", "5,5"], "is empty"),
    "reversed range": (["--sampling.gradient-steps", "9,2"], "is reversed"),
    "range outside": (["--sampling.gradient-steps", "0,99"], "leaves the"),
    "more steps than the schedule": (
        ["--sampling.num-inference-steps", "2000"],
        "sampling.num_inference_steps: 2000 is more than the 1000",
    ),
    "no output folder": (["--output-dir", ""], "output_dir: is empty"),
    "a name that is too long": (["--output-dir", "x" * 300], "cannot be made"),
    "a folder that nobody can write": (["--output-dir", "/proc/run"], "cannot be written"),
    "indivisible batch": (["--optim.batch-size", "15", "--optim.timestep-groups", "4"], "not divisible"),
    "zero workers": (["--num-workers", "0"], "0 workers"),
    "too many workers for the machine": (["--num-workers", "4", "--cluster.cpus-per-worker", "4096"], "room for 0"),
    "unknown reward": (["--rewards.train", "{toyy: 1.0}"], "did you mean 'toy'"),
    "reward twice": (
        ["--rewards.train", "{hpsv2: 1}", "--rewards.held-out", "hpsv2-v2.1"],
        "'hpsv2-v2.1' is named twice",
    ),
    "no reward weights": (["--rewards.train", "{hpsv2: 1}", "--rewards.checkpoints", "{hpsv2: none.pt}"], "none.pt"),
    "weights of no reward": (["--rewards.checkpoints", "{hpsv: x.pt}"], "did you mean 'hpsv2'"),
    "no prompts file": (["--prompts", "none.txt"], "none.txt"),
    "no initial embedding": (["--init", "none.safetensors"], "optim.init"),
    "tracking to nowhere": (["--tracking-uri", "ftp://somewhere"], "tracking_uri"),
    "no such run": (["--resume", "nowhere"], "--resume"),
}


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_bad_flags(case: str, nothing_starts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags, expected = BAD_FLAGS[case]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        job("train_global").main(flags)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir()), "bad input leaves nothing behind"


BAD_TUNING: dict[str, tuple[list[str], str]] = {
    "no prompts file": (["--prompts", "none.txt"], "tuning.prompts: there is no file none.txt"),
    "no embedding": (["--init", "none.safetensors"], "tuning.init: 'none.safetensors'"),
    "no seeds": (["--tuning.tune-seeds", "0"], "tuning.tune_seeds: 0"),
    "no fresh seeds": (["--tuning.eval-seeds", "0"], "tuning.eval_seeds: 0"),
    "no patience": (["--tuning.patience", "0"], "tuning.patience: 0"),
    "bad averages": (["--tuning.betas", "0.9,1"], "tuning.betas: [0.9, 1.0]"),
    "too many gradients": (
        ["--tuning.gradients-per-rollout", "3", "--sampling.gradient-steps", "0,2"],
        "tuning.gradients_per_rollout: 3",
    ),
    "the other job's rate": (["--optim.lr", "1e-3"], "did you mean --tuning.lr?"),
    "reversed workers": (["--num-workers", "8-1"], "8-1 is reversed"),
    "too many workers for the machine": (["--num-workers", "4", "--cluster.cpus-per-worker", "4096"], "room for 0"),
    "no such run": (["--resume", "nowhere"], "--resume"),
    "unknown reward": (["--rewards.train", "{toyy: 1.0}"], "did you mean 'toy'"),
}


@pytest.mark.parametrize("case", BAD_TUNING)
def test_bad_flags_of_tuning(case: str, nothing_starts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags, expected = BAD_TUNING[case]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        job("tune_prompts").main(flags)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir()), "bad input leaves nothing behind"


BAD_EVALUATION: dict[str, tuple[list[str], str]] = {
    "no method": (["--evaluation.methods", "[]"], "evaluation.methods: [] compares nothing"),
    "unknown method": (["--method", "nul"], "did you mean null?"),
    "no embedding": (["--method", "global=none.safetensors"], "--method global=none.safetensors: negative embedding"),
    "no table": (["--method", "prompt=nowhere"], "--method prompt=nowhere: nowhere: there is no such folder"),
    "no other model": (["--method", "model=./nowhere:null"], "--method model=./nowhere:null: model './nowhere'"),
    "no prompts file": (["--prompts", "none.txt"], "evaluation.prompts: there is no file none.txt"),
    "no seeds": (["--seeds-per-prompt", "0"], "evaluation.seeds_per_prompt: 0"),
    "unknown reward": (
        ["--rewards", "toy,picscore"],
        "evaluation.rewards: 'picscore' is not known: did you mean 'pickscore'",
    ),
    "reward twice": (["--rewards", "toy,toy"], "evaluation.rewards: 'toy' is named twice"),
    "unknown judge": (["--rewards.judges", "jugde"], "did you mean 'judge'"),
    "unknown form": (["--keep-images", "jpeg"], "evaluation.keep_images: 'jpeg' is not one of webp, png, none"),
    "no refiner": (["--method", "null,refine=gpt"], "there is no refiner 'gpt'"),
    "no refiner's folder": (
        ["--method", "null,refine=promptist", "--refiners", "{promptist: nowhere}"],
        "config.json is missing",
    ),
    "another job's setting": (["--optim.lr", "1"], "is a setting of another job"),
    "misspelt flag": (["--metod", "null"], "did you mean --method?"),
    "no such analysis": (["eficiency"], "eficiency"),
    "too many workers for the machine": (["--num-workers", "4", "--cluster.cpus-per-worker", "4096"], "room for 0"),
}


@pytest.mark.parametrize("case", BAD_EVALUATION)
def test_bad_flags_of_evaluation(
    case: str, nothing_starts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags, expected = BAD_EVALUATION[case]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        job("evaluate").main(flags)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir()), "bad input leaves nothing behind"


def test_the_plan_of_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--method", "null", "--method", "text=dark, dim,as=mine", "--num-prompts", "1", "--seeds-per-prompt", "3"]
    assert job("evaluate").main([*flags, "--output-dir", str(tmp_path / "o"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "2 methods on 1 prompts from toy with 3 seed(s) each: 6 images" in printed
    assert "mine: 'dark, dim'" in printed and "one prompt: what is found holds for it alone" in printed
    assert "240 denoiser forward" in printed and "dry run" in printed and not (tmp_path / "o").exists()


def test_the_folder_of_another_job_is_refused(nothing_starts: None, tmp_path: Path) -> None:
    write_config(load_preset("toy").model_copy(update={"output_dir": tmp_path}), tmp_path)
    (tmp_path / "tracking.json").write_text('{"job": "train_global"}')
    with pytest.raises(UserError, match="holds a run of train_global"):
        job("tune_prompts").main(["--output-dir", str(tmp_path)])


def test_the_plan_of_tuning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Repeated prompts are tuned once, whatever their spacing; strange ones are prompts like others."""
    content = "a fox\na  fox\n\n'; DROP TABLE x\n../../etc\n\x1b[2J\n🦊 狐\n" + "word " * 10_000
    prompts = prompts_file(tmp_path, content.encode())
    assert job("tune_prompts").main(["--prompts", prompts, "--output-dir", str(tmp_path / "o"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "6 prompts from" in printed and "1 repeated prompt is tuned once" in printed and "dry run" in printed
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("content", "expected"), [(b"", "is empty"), (b"\n \n", "no prompt"), (b"caf\xe9\n", "not UTF-8")]
)
def test_bad_prompt_files(content: bytes, expected: str, nothing_starts: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=expected):
        job("train_global").main(["--prompts", prompts_file(tmp_path, content), "--output-dir", str(tmp_path / "out")])


def test_an_output_folder_with_another_run(nothing_starts: None, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(UserError, match="already holds a run"):
        job("train_global").main(["--output-dir", str(tmp_path)])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_that_cannot_be_written(nothing_starts: None, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="not writable"):
        job("train_global").main(["--output-dir", str(tmp_path / "out")])


def test_a_dry_run_names_all_that_is_missing(nothing_starts: None, tmp_path: Path, capsys: Any) -> None:
    """The plan is shown as far as it is known: what it will cost is asked before gigabytes are downloaded."""
    rewards = ["--rewards.train", "{hpsv2: 1}", "--rewards.held-out", "pickscore"]
    local = ["--rewards.checkpoints", "{hpsv2: none.pt, pickscore: none}"]
    flags = [*rewards, *local, "--model", "./no_model", "--prompts", "none.txt", "--init", "none.pt"]
    with pytest.raises(UserError, match=r"hpsv2-v2.1: there is no .*\(and 4 more, see above\)$"):
        job("train_global").main([*flags, "--output-dir", str(tmp_path / "out"), "--dry-run"])
    plan = capsys.readouterr().out
    assert "denoiser forward" in plan and "nothing was started" in plan
    missing = [line for line in plan.splitlines() if line.startswith("not ready: ")]
    for line, part in zip(missing, ("hpsv2-v2.1", "pickscore", "./no_model", "none.txt", "none.pt"), strict=True):
        assert part in line
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["tune_prompts", "evaluate", "sweep"])
def test_a_dry_run_names_all_weights_that_are_missing(
    name: str, nothing_starts: None, tmp_path: Path, capsys: Any
) -> None:
    rewards = ["--rewards.train", "{hpsv2: 1}", "--rewards.checkpoints", "{hpsv2: none.pt}"]
    with pytest.raises(UserError, match=r"hpsv2-v2.1: there is no .*\(and 1 more, see above\)$"):
        job(name).main([*rewards, "--model", "./none", "--output-dir", str(tmp_path / "out"), "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    for line, part in zip(lines, ("hpsv2-v2.1: there is no", "model './none'"), strict=True):
        assert line.startswith("not ready: ") and part in line
    assert not any(tmp_path.iterdir())


def test_a_resumed_run_with_a_changed_prompt_file(nothing_starts: None, tmp_path: Path) -> None:
    path = prompts_file(tmp_path, b"a fox\n")
    config = parse_config({"prompts": {"train": path}, "output_dir": str(tmp_path)})
    write_config(config, tmp_path)
    record_inputs(read_inputs(config), tmp_path)
    prompts_file(tmp_path, b"a hen\n")
    with pytest.raises(UserError, match=r"^prompts.train: the content is not what the run"):
        job("train_global").main(["--resume", str(tmp_path)])


def embedding_file(folder: Path, shape: tuple[int, ...], encoder_hash: str) -> str:
    metadata = EmbeddingMetadata(text_encoder_hash=encoder_hash, text_encoder="AnotherEncoder")
    path = folder / "embedding.safetensors"
    NegativeEmbedding({"negative_prompt_embeds": torch.zeros(shape)}, metadata).save(path)
    return str(path)


@pytest.fixture
def model_folder(tiny_pipeline: Callable[..., Any], tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny_pipeline().save_pretrained(folder)
    return folder


def test_embeddings_that_do_not_fit(nothing_starts: None, tmp_path: Path, model_folder: Path) -> None:
    corrupt, evil = tmp_path / "corrupt.safetensors", tmp_path / "evil.pt"
    corrupt.write_bytes(b"\x10\0\0\0\0\0\0\0{broken")
    evil.write_bytes(pickle.dumps(subprocess.Popen))
    cases = {
        embedding_file(tmp_path, (1, 7, 16), ""): r"\(7, 16\).*\(\d+, \d+\)",
        str(corrupt): "corrupt.safetensors",
        str(evil): "evil.pt",
    }
    for path, expected in cases.items():
        for name, flags in {
            "train_global": ["--init", path],
            "tune_prompts": ["--init", path],
            "generate": ["--prompt", "a fox", "--negative", path],
        }.items():
            common = ["--output-dir", str(tmp_path / "out")]
            if name == "generate":
                common += ["--model", str(model_folder)]
            with pytest.raises(UserError, match=expected) as caught:
                job(name).main([*flags, *common])
            assert "\n" not in str(caught.value)
            assert name == "generate" or ".init: " in str(caught.value), "the field is named"
    other = embedding_file(tmp_path, (1, 12, 16), "f" * 16)
    with pytest.raises(UserError, match=r"AnotherEncoder.*f{16}.*CLIPTextModel"):
        job("generate").main(["--prompt", "a fox", "--negative", other, *common])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "--prompt"),
        (["--prompt", " "], "--prompt"),
        (["--prompt", "a fox", "--seed", "-1"], "--seed"),
        (["--prompt", "a fox", "--guidance-scale", "1"], "guidance_scale"),
        (["--prompt", "a fox", "--num-inference-steps", "0"], "num_inference_steps"),
        (["--prompt", "a fox", "--negatives", "null"], "--negatives"),
        (["--prompt", "a fox", "--negative", "none.safetensors"], "none.safetensors"),
        (["--prompt", "a fox", "--model", "./no/such/folder"], "no/such/folder"),
        (["--prompt", "a fox", "--prompt", "a \udcfcox"], "'a \\udcfcox' is not UTF-8"),
        (["--prompt", "a fox", "--negative", "tr\udcfcb"], "the negative prompt 'tr\\udcfcb' is not UTF-8"),
    ],
)
def test_bad_requests_to_generate(flags: list[str], expected: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        job("generate").main(flags)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_generate_makes_the_images_of_diffusers(model_folder: Path, tmp_path: Path, capsys: Any) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(model_folder, safety_checker=None)
    learned = torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(0)).half()
    path = tmp_path / "learned.safetensors"
    metadata = EmbeddingMetadata(hash_text_encoder(pipeline.text_encoder))
    NegativeEmbedding({"negative_prompt_embeds": learned}, metadata).save(path)
    out = tmp_path / "out"
    code = job("generate").main(
        ["--model", str(model_folder), "--prompt", "a fox", "--seed", "5", "--seed", "6", "--negative", "null",
         "--negative", "handwritten", "--negative", "ugly, dark", "--negative", str(path),
         "--num-inference-steps", "3", "--guidance-scale", "4", "--output-dir", str(out)]
    )  # fmt: skip
    assert code == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out / "grid.png")
    assert len(list((out / "images").glob("*.png"))) == 8
    grid = Image.open(out / "grid.png")
    assert grid.width > 2 * 128 and grid.height > 4 * 128
    expected = pipeline(
        "a fox", negative_prompt_embeds=learned.float(), num_inference_steps=3, guidance_scale=4.0,
        generator=torch.Generator().manual_seed(6), height=16, width=16, output_type="pil",
    ).images[0]  # fmt: skip
    made = Image.open(out / "images" / "3_learned_a-fox_6.png")
    difference = torch.tensor(list(made.tobytes())).int() - torch.tensor(list(expected.tobytes())).int()
    assert difference.abs().max() <= 1
    with pytest.raises(UserError):
        job("generate").main(["--prompt", "a fox", "--negative", str(path), "--output-dir", str(tmp_path / "o")])


def test_generate_keeps_every_image_whatever_the_prompts(model_folder: Path, tmp_path: Path) -> None:
    """Texts of one beginning, of any script or none, different by case or normal form alone; files of one name."""
    beginning = "a very long description of a landscape with hills and "
    prompts = ["红色的星星", "蓝色的圆", f"{beginning}rain", f"{beginning}snow", "🦊", "🐱", "A fox", "a fox", "a fox!"]
    prompts += ["caf\u00e9", "cafe\u0301", "con", "../x"]
    negatives = ["坏", "丑", "，", "…"]
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "negative_embedding.safetensors"
        NegativeEmbedding({"negative_prompt_embeds": torch.randn(1, 12, 16).half()}, EmbeddingMetadata("")).save(path)
        negatives.append(str(path))
    flags = ["--model", str(model_folder), "--output-dir", str(tmp_path / "out"), "--num-inference-steps", "2"]
    flags += [part for prompt in prompts for part in ("--prompt", prompt)]
    flags += [part for negative in negatives for part in ("--negative", negative)]
    files = generate(parse_request([*flags, "--guidance-scale", "4"]), print)
    count = len(prompts) * len(negatives)
    assert len({str(file).casefold() for file in files}) == count + 1 and all(file.is_file() for file in files)
    assert len(list((tmp_path / "out" / "images").iterdir())) == count
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert len(summary["artifacts"]) == count + 1
    assert all((tmp_path / "out" / file).is_file() for file in summary["artifacts"].values())
    assert (tmp_path / "out" / "images" / "0_坏_红色的星星_0.png").is_file()
    assert Image.open(tmp_path / "out" / "grid.png").height > len(negatives) * 128, "a row for each negative"


def test_a_folder_of_tuned_prompts_is_a_negative(model_folder: Path, tmp_path: Path, tiny_pipeline: Any) -> None:
    """Each prompt has its own embedding; one that has none says whose it is given."""
    pipeline = tiny_pipeline().to(torch.float32)
    embeddings = {text: torch.randn(1, 12, 16).half() for text in ("a red fox", "a hen")}
    header = EmbeddingMetadata(text_encoder_hash=hash_text_encoder(pipeline.text_encoder)).to_header()
    rows = [
        make_row(PromptToTune(text), TunedPrompt(text, n, 0, 0, False, (), {}, 0.0), {}, ([1], [2]), False)
        for text, n in embeddings.items()
    ]
    TuningTable(str(tmp_path / "run" / "prompts-x")).write(rows, table_schema([], EmbeddingLayout(12, 16), header))
    told: list[str] = []
    request = parse_request(
        [
            *("--prompt", "a red fox", "--prompt", "a hen", "--prompt", "a green fox", "--seed", "6"),
            *(
                "--negative",
                str(tmp_path / "run"),
                "--negative",
                "low quality, " * 400,
                "--model",
                str(model_folder),
                "--output-dir",
                str(tmp_path / "out"),
            ),
            *("--num-inference-steps", "3", "--guidance-scale", "4"),
        ]
    )
    generate(request, told.append)
    assert any("'a green fox' has not been tuned; using the embedding of 'a red fox'" in line for line in told)
    for prompt, own in (("a red fox", "a red fox"), ("a hen", "a hen"), ("a green fox", "a red fox")):
        expected = pipeline(
            prompt, negative_prompt_embeds=embeddings[own].float(), num_inference_steps=3, guidance_scale=4.0,
            generator=torch.Generator().manual_seed(6), height=16, width=16, output_type="pil",
        ).images[0]  # fmt: skip
        made = Image.open(tmp_path / "out" / "images" / f"0_run_{prompt.replace(' ', '-')}_6.png")
        difference = torch.tensor(list(made.tobytes())).int() - torch.tensor(list(expected.tobytes())).int()
        assert difference.abs().max() <= 1
    with pytest.raises(UserError, match="holds no tuned prompts"):
        generate(
            parse_request(["--prompt", "x", "--negative", str(tmp_path / "out"), "--output-dir", str(tmp_path / "p")])
        )


@pytest.mark.slow
def test_from_the_shell(tmp_path: Path) -> None:
    """One process for each job: exit code 2, one line on stderr, nothing on stdout, from any folder."""
    for command in (["train_global.py", "--optim.lr", "0"], ["generate.py", "--prompt", "a fox", "--seed", "-1"]):
        done = subprocess.run(
            [sys.executable, str(ROOT / "jobs" / command[0]), *command[1:]],
            cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert done.stdout == "" and len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")
    assert not any(tmp_path.iterdir())


def test_a_tensor_file_of_another_program(tmp_path: Path) -> None:
    """A foreign file without metadata is judged by its shape alone."""
    path = tmp_path / "foreign.safetensors"
    save_file({"negative_prompt_embeds": torch.zeros(1, 20, 128)}, path)
    NegativeEmbedding.load(path).check_fits({"negative_prompt_embeds": (1, 20, 128)}, "0" * 16, "CLIPTextModel")
