"""The command `renege-ray`: what it offers, and what it says of mistakes."""

import subprocess
import sys
from pathlib import Path

import pytest

from renege_ray import __main__ as command
from renege_ray import __version__
from renege_ray.errors import UserError

Capture = pytest.CaptureFixture[str]
PROGRAMS = [*command.PROGRAMS]


def complaint(argv: list[str]) -> str:
    with pytest.raises(UserError) as raised:
        command.main(argv)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_teaches_where_to_begin_and_names_all_commands(argv: list[str], capsys: Capture) -> None:
    assert command.main(argv) == 0
    text = capsys.readouterr().out
    begin, _, listed = text.partition("commands:\n")
    assert begin.index("train-global") < begin.index("generate") < begin.index("evaluate")
    assert [line.split()[0] for line in listed.splitlines()] == PROGRAMS
    assert max(len(line) for line in text.splitlines()) <= 120


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_command_has_a_help_of_its_own(name: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: renege-ray {name} ")


def test_the_version(capsys: Capture) -> None:
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian-global"], "renege-ray: there is no command 'trian-global'; did you mean train-global?"),
        (["train_global"], "did you mean train-global?"),
        (["embeddings"], "did you mean embedding?"),
        (["nonsense"], "'nonsense'; known: train-global, tune-prompts, sweep"),
        (["embedding", "inspcet"], "renege-ray embedding: there is no command 'inspcet'; did you mean inspect?"),
        (["rewards", "lst"], "did you mean list?"),
        (["analyses", "eficiency"], "did you mean efficiency?"),
        (["toy", "xport"], "did you mean export?"),
        (["tracking", "sned"], "did you mean send?"),
        (["--preset", "toy"], "--preset comes after the command; for example renege-ray train-global --preset"),
        (["generate"], "required: --prompt"),
        (["embedding"], "required: inspect|convert|export|check"),
        (["embedding", "inspect"], "required: FILE"),
        (["embedding", "convert", "a.bin"], "required: OUT.safetensors"),
        (["embedding", "export", "a.bin"], "required: --hub"),
        (["rewards"], "required: score|list"),
        (["rewards", "score"], "required: IMAGE, --reward"),
        (["analyses"], "required: efficiency|sampler-error"),
        (["analyses", "distance"], "required: --embedding"),
        (["toy"], "required: export"),
        (["toy", "export"], "required: DIR"),
        (["tracking", "send"], "required: OUTPUT_DIR"),
        (["vbench"], "required: FOLDER"),
        (["train-global", "--optim.lrr", "1"], "did you mean --optim.lr?"),
        (["train-global", "--preset", "renege_ray/presets/sd15.yaml"], "did you mean --preset sd15?"),
        (["sweep", "--space", "search_spaces/none.yaml"], "none.yaml"),
    ],
)
def test_mistakes_are_one_line(argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in complaint(argv)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("sweep: {space: gone/paper.yaml}", "there is no file gone/paper.yaml; did you mean --space paper?"),
        ("prompts: {train: gone.txt}", "prompts.train: there is no file gone.txt"),
        ("optim: {init: gone.safetensors}", "optim.init: 'gone.safetensors'"),
        ("rewards: {train: {hpsv2: 1.0}, checkpoints: {hpsv2: gone.pt}}", "gone.pt"),
        ("model: {id: ./gone}", "model './gone'"),
        ("model: {lora: ./gone.safetensors}", "model.lora: './gone.safetensors'"),
    ],
)
def test_an_old_path_in_a_preset_is_one_line(
    preset: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(preset)
    assert message in complaint(["sweep" if "space" in preset else "train-global", "--preset", "mine.yaml"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_an_analysis_is_also_reached_from_the_evaluation() -> None:
    assert complaint(["evaluate", "distance"]) == complaint(["analyses", "distance"])


@pytest.mark.slow
def test_from_the_shell(tmp_path: Path) -> None:
    module = [sys.executable, "-m", "renege_ray"]
    installed = [str(Path(sys.executable).with_name("renege-ray"))]
    for program in (module, installed):
        done = subprocess.run([*program, "swep"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: renege-ray: there is no command 'swep'; did you mean sweep?")
        assert len(done.stderr.splitlines()) == 1
