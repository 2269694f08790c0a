"""The images that a ControlNet is shown: one for all prompts, or one for each.

A folder has them in the format of Hugging Face's `imagefolder`: image files, and `metadata.jsonl` with a line
`{"file_name": "1.png", "text": "a red fox"}` for each. They are shown as they are: edges or poses are found beforehand.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from renege_ray.errors import UserError

METADATA = "metadata.jsonl"
FIELD = "model.control"


class ControlImages:
    """Files of images, read when they are asked for."""

    def __init__(self, files: dict[str, Path] | Path) -> None:
        """`files`: one file for all prompts, or {prompt: file}."""
        self._files = files

    @classmethod
    def read(cls, path: str) -> "ControlImages":
        """A file, or a folder with its metadata.

        Raises:
            UserError: there is no such file or folder, or the metadata is missing, damaged, or names files that are
                not there.
        """
        place = Path(path).expanduser()
        if place.is_file():
            return cls(place)
        metadata = place / METADATA
        if not metadata.is_file():
            what = f"the folder {path!r} has no {METADATA}" if place.is_dir() else f"there is no {path!r}"
            raise UserError(f"{FIELD}: {what}; give an image file, or a folder with images and {METADATA}")
        files: dict[str, Path] = {}
        # Not by splitlines(), which would also cut at rare separators inside a prompt.
        for number, line in enumerate(metadata.read_text(encoding="utf-8-sig").rstrip().split("\n"), start=1):
            try:
                entry = json.loads(line)
                text, file = str(entry["text"]), place / entry["file_name"]
            except (ValueError, KeyError, TypeError):
                wanted = '{"file_name": "1.png", "text": "the prompt"}'
                raise UserError(f"{FIELD}: line {number} of {metadata} is not like {wanted}") from None
            if files.setdefault(text, file) != file:
                raise UserError(
                    f"{FIELD}: line {number} of {metadata} has the text {text!r} of another line, with another image; "
                    "give each text one image"
                )
        for file in files.values():
            if not file.is_file():
                raise UserError(f"{FIELD}: {metadata} names {file.name}, which is not there")
        return cls(files)

    def check(self, prompts: Sequence[str]) -> None:
        """Check that each of the prompts has an image.

        Raises:
            UserError: some have none; the message says how many, and names one.
        """
        missing = [] if isinstance(self._files, Path) else [p for p in dict.fromkeys(prompts) if p not in self._files]
        if missing:
            raise UserError(
                f"{FIELD}: {len(missing)} of {len(set(prompts))} prompts have no image, such as {missing[0]!r}; add "
                f"them to {METADATA}"
            )

    def open(self, prompts: Sequence[str]) -> Iterator[Image.Image]:
        """The image of each prompt, in colour.

        Raises:
            UserError: one has no image, or its file cannot be read.
        """
        self.check(prompts)
        for prompt in prompts:
            file = self._files if isinstance(self._files, Path) else self._files[prompt]
            try:
                yield Image.open(file).convert("RGB")
            except (OSError, UnidentifiedImageError) as error:
                raise UserError(f"{FIELD}: {file} cannot be read as an image ({type(error).__name__})") from error
