"""The command line of the analyses, and what each leaves in its output folder."""

import argparse
import csv
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from renege_ray.config.argument_parser import ArgumentParser, help_text
from renege_ray.config.paths import place, prompt_source
from renege_ray.config.run import RunConfig, write_config
from renege_ray.config.sampling_flags import add_sampling_flags, sampling_config, whole
from renege_ray.errors import UserError
from renege_ray.evaluation.analyses import distance, efficiency, pseudo_positive, sampler_error
from renege_ray.evaluation.analyses.base import Findings, Subject
from renege_ray.models.load import check_model, load_model
from renege_ray.output.console import say
from renege_ray.output.folder import make_output_dir, write_summary, write_text
from renege_ray.output.hold import hold
from renege_ray.output.pictures import save_png, text_table
from renege_ray.prompts.sources import load_prompts
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.negative import read_start


@dataclass(frozen=True)
class Analysis:
    """A command: the module that computes it (`analyse`), what it is for, and what it needs."""

    module: ModuleType
    about: str
    needs_prompts: bool = False
    needs_file: bool = False


_ANALYSES = {
    "efficiency": Analysis(
        efficiency, "how far images move with the embedding, LoRAs and all weights (Table 1)", needs_prompts=True
    ),
    "sampler-error": Analysis(
        sampler_error, "the error of x_0 predicted from x_t, DDIM against DDPM (Figure 3)", needs_prompts=True
    ),
    "pseudo-positive": Analysis(pseudo_positive, "the embedding drawn as a prompt (Figure 6)", needs_file=True),
    "distance": Analysis(distance, "distance from null and handwritten, token by token", needs_file=True),
}


def main(argv: Sequence[str], say: Callable[[str], None] = say) -> None:
    """Run an analysis; the last line is the path of what to look at.

    Raises:
        UserError: for anything wrong with the flags or the files, before a model is loaded.
    """
    started = time.monotonic()
    given = _parser().parse_args(list(argv))
    name: str = given.analysis
    analysis = _ANALYSES[name]
    if analysis.needs_file and not Path(given.embedding).is_file():
        raise UserError(f"--embedding: there is no file {given.embedding!r}; give an embedding file, such as a run's")
    settings = {"seed": given.seed} if given.seed is not None else {}
    config = sampling_config(given, name, settings)
    check_model(config.model, config.sampling, gradients=False)
    negative = read_start(given.embedding, "--embedding", config)
    source = getattr(given, "prompts", None) or config.prompts.held_out
    prompts = load_prompts(source, "held_out", "--prompts").prompts if analysis.needs_prompts else ()

    model = load_model(config.model)
    encoded = EncodedPrompts(model)
    handwritten = getattr(given, "handwritten", None) or config.prompts.handwritten[0]
    label = given.embedding if negative.embedding is None else "learned"
    subject = Subject(config, model, encoded, negative.packed(encoded), label, handwritten, prompts, given, say)
    with hold(config.output_dir):
        folder = make_output_dir(config.output_dir)
        findings: Findings = analysis.module.analyse(subject)
        table, pictures = _write(config, folder, name, findings, started)
    say(table)
    for path in pictures:
        say(str(path))


def _write(config: RunConfig, folder: Path, name: str, findings: Findings, started: float) -> tuple[str, list[Path]]:
    """Write everything; the summary is the last. Returns the table of results and the pictures' paths."""
    table = f"{findings.words}\n\n{text_table(findings.header, findings.rows)}\n"
    file = name.replace("-", "_")
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([findings.header, *findings.rows])
    artifacts = {
        "config": write_config(config, folder),
        "table": write_text(folder / "results.txt", table),
        "csv": write_text(folder / f"{file}.csv", lines.getvalue()),
    }
    pictures = {picture: folder / "images" / f"{picture}.png" for picture in findings.pictures}
    for picture, path in pictures.items():
        save_png(findings.pictures[picture], path)
    write_summary(folder, name, time.monotonic() - started, artifacts | pictures, findings.metrics)
    return table, list(pictures.values())


def _parser() -> argparse.ArgumentParser:
    description = "Look into a negative embedding and its model as the paper does."
    parser = ArgumentParser(prog="renege-ray analyses", description=description, epilog=help_text("analyses"))
    commands = parser.add_subparsers(dest="analysis", metavar="|".join(_ANALYSES))
    for name, analysis in _ANALYSES.items():
        command = commands.add_parser(
            name, help=analysis.about, description=analysis.module.__doc__, epilog=help_text("analyses")
        )
        add = command.add_argument
        words = "an embedding file, or null, or handwritten"
        if analysis.needs_file:
            add("--embedding", type=place, required=True, metavar="FILE", help="an embedding file")
            text = "the handwritten negative to compare with (default: the preset's first)"
            add("--handwritten", metavar="TEXT", help=text)
        else:
            add(
                "--embedding",
                type=place,
                default="null",
                metavar="FILE|null|handwritten",
                help=f"{words} (default: null)",
            )
        add_sampling_flags(command, name)
        add("--seed", type=whole, metavar="N", help="of everything random (default: the preset's)")
        if analysis.needs_prompts:
            text = "as in the jobs: a set, or a file (default: the held-out ones)"
            add("--prompts", type=prompt_source, metavar="SOURCE", help=text)
        analysis.module.add_flags(command)
    return parser
