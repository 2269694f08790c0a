"""Use case: make images of the same prompts and seeds under several negatives, side by side."""

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from renege_ray.config.argument_parser import ArgumentParser, command_of, help_text
from renege_ray.config.run import RunConfig
from renege_ray.config.sampling_flags import add_sampling_flags, sampling_config, whole
from renege_ray.embeddings.names import open_table
from renege_ray.errors import UserError
from renege_ray.models.load import check_model, identify_text_encoder, load_model
from renege_ray.output.console import say
from renege_ray.output.folder import make_output_dir, write_summary
from renege_ray.output.hold import hold
from renege_ray.output.names import file_names, is_unicode, readable
from renege_ray.output.paths import URI, absolute
from renege_ray.output.pictures import image_grid, save_png, to_pil
from renege_ray.rewards.video.frames import frames_of, middle_frame
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.images import Pair, generate_all
from renege_ray.sampling.negative import EMBEDDING_SUFFIXES, Negative, kind_of, read_negative


@dataclass(frozen=True)
class GenerateRequest:
    """What to make: an image of each prompt with each seed under each negative."""

    config: RunConfig
    """Model, sampling and output folder; the rest of it is not used."""
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    negatives: tuple[str, ...]
    """As the user named them."""

    @property
    def pairs(self) -> list[Pair]:
        """All prompts with all seeds: the columns of the grid."""
        return [Pair(prompt, seed) for prompt in self.prompts for seed in self.seeds]


def parse_request(argv: Sequence[str]) -> GenerateRequest:
    """The command line of `renege-ray generate`. `--help` prints and exits.

    Raises:
        UserError: for anything wrong with it.
    """
    command = command_of("generate")
    parser = ArgumentParser(
        prog=command,
        description="Images of the same prompts and seeds under several negatives, and a grid of them all.",
        epilog=help_text("generate", command),
    )
    add = parser.add_argument
    add("--prompt", action="append", required=True, metavar="TEXT", help="repeat it for more images")
    add(
        "--negative",
        action="append",
        type=_path_or_text,
        metavar="FILE|DIR|null|handwritten|TEXT",
        help="an embedding file, the output folder of tune-prompts (each prompt has its own embedding there), "
        "null (what the pipeline takes without one), handwritten (the preset's first one) or any text; repeat it to "
        "compare (default: null)",
    )
    add("--seed", action="append", type=whole, metavar="N", help="of the initial noise; may be repeated (default: 0)")
    add_sampling_flags(parser, "generate")
    given = parser.parse_args(list(argv))
    config = sampling_config(given, "generate")
    if any(not prompt.strip() for prompt in given.prompt):
        raise UserError("--prompt: an empty prompt shows nothing of a negative; give a text")
    foreign = next((prompt for prompt in given.prompt if not is_unicode(prompt)), None)
    if foreign is not None:
        raise UserError(f"--prompt: {foreign!r} is not UTF-8; give it from a terminal or a script that is")
    return GenerateRequest(
        config,
        tuple(dict.fromkeys(given.prompt)),
        tuple(dict.fromkeys(given.seed or [0])),
        tuple(dict.fromkeys(given.negative or ["null"])),
    )


def _path_or_text(text: str) -> str:
    """A path that is there, a URI, or any text: a negative prompt may begin as it likes."""
    return absolute(text) if URI.match(text) or os.path.exists(os.path.expanduser(text)) else text


def generate(request: GenerateRequest, say: Callable[[str], None] = say) -> list[Path]:
    """Write one PNG an image (animated for a video), a grid where there is more than one, and summary.json.
    Returns the files' paths.

    Raises:
        UserError: an embedding that cannot be read or does not fit (before the model is loaded), or the
            model.
    """
    with hold(request.config.output_dir):
        return _generate(request, say)


def _generate(request: GenerateRequest, say: Callable[[str], None]) -> list[Path]:
    started = time.monotonic()
    config = request.config
    check_model(config.model, config.sampling, gradients=False)
    negatives = _read_negatives(request, say)
    model = load_model(config.model)
    folder = make_output_dir(config.output_dir)
    encoded = EncodedPrompts(model)
    words = file_names(pair.prompt for pair in request.pairs)
    rows, files = {}, []
    labels, size = _labels(negatives), config.validation.batch_size
    with model.encoding():
        encoded.prepare(request.prompts)
        embeddings = [negative.packed(encoded) for negative in negatives.values()]
    for number, (name, embedding) in enumerate(zip(negatives, embeddings, strict=True)):
        images = generate_all(model, embedding, request.pairs, config.sampling, encoded, size)
        rows[labels[number]] = middle_frame(images)
        for pair, image in zip(request.pairs, images, strict=True):
            path = (
                folder / "images" / f"{number}_{readable(_short(name)) or 'text'}_{words[pair.prompt]}_{pair.seed}.png"
            )
            first, *following = (to_pil(frame) for frame in frames_of(image))
            save_png(first, path, following)
            files.append(path)
    if len(files) > 1:
        captions = [f"{pair.prompt} (seed {pair.seed})" for pair in request.pairs]
        files.append(folder / "grid.png")
        save_png(image_grid(rows, captions), files[-1])
    cut = model.count_truncated(request.prompts)
    if cut:
        say(f"{cut} prompts are too long for the text encoder and were cut")
    write_summary(folder, "generate", time.monotonic() - started, {path.stem: path for path in files}, {})
    return files


def _read_negatives(request: GenerateRequest, say: Callable[[str], None]) -> dict[str, Negative]:
    """What the negatives stand for, each checked against the model's text encoder; of a folder, an embedding a pair."""
    encoder = cache(partial(identify_text_encoder, request.config.model))
    found = {}
    for words in request.negatives:
        kind, value = kind_of(words)
        if kind != "prompt":
            found[words] = read_negative(kind, value, request.config, encoder)
            continue
        with open_table(value, encoder) as table, warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found[words] = Negative(embedding=table.batch([pair.prompt for pair in request.pairs]))
        for line in dict.fromkeys(str(warning.message) for warning in told):
            say(line)
    return found


def _labels(negatives: Mapping[str, Negative]) -> list[str]:
    """What the grid's rows are called; files of one name, in several folders, by the numbers of their images, too."""
    labels = [f"handwritten\n{n.text}" if name == "handwritten" else _short(name) for name, n in negatives.items()]
    return [f"{label}\n({i})" if labels.count(label) > 1 else label for i, label in enumerate(labels)]


def _short(name: str) -> str:
    """A negative's name without its folders, where it is a file or a folder."""
    if Path(name).suffix.lower() in EMBEDDING_SUFFIXES:
        return Path(name).stem
    return Path(name.partition("?")[0] if URI.match(name) else name).name if kind_of(name)[0] == "prompt" else name
