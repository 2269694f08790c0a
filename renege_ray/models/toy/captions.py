"""Captions of scenes: plain prompts, captions with defects named, and the way back from a prompt to its scene."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterable

from renege_ray.models.toy.scenes import NAMED_DEFECTS, Scene, Split, scenes_of

SYNONYMS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "cross": ("cross", "plus"),
    "ring": ("ring", "hoop"),
    "star": ("star",),
    "purple": ("purple", "violet"),
    "big": ("big", "large"),
    "small": ("small", "little"),
    "blurry": ("blurry", "blurred", "out of focus"),
    "washed out": ("washed out", "faded", "low contrast"),
    "dark": ("dark", "underexposed", "dim"),
}
TEMPLATES = (
    "a {size} {colour} {shape} on a {background} background",
    "{size} {colour} {shape}, {background} background",
    "a {size} {colour} {shape} on {background}",
    "a picture of a {size} {colour} {shape} on {background}",
    "a {background} background with a {size} {colour} {shape}",
    "a {size} {shape} in {colour} on a {background} background",
    "one {size} {colour} {shape} against a {background} background",
    "a {size} {colour} {shape} with {background} behind",
)
CARELESS_TEMPLATES = (
    "a picture",
    "a picture",
    "picture",
    "a picture of a {shape}",
    "a {shape}",
    "a {colour} {shape}",
    "{colour} {shape}",
)
CARELESS_PROBABILITIES = (0.15, 0.25, 0.35, 0.45)  # by the number of the picture's defects
NO_CAPTION_PROBABILITY = 0.10
NAMED_PROBABILITY = 0.25  # a defect that has a name is mentioned this often
PROMPTS_PER_SCENE = 16


def _word(name: str, rng: random.Random) -> str:
    return rng.choice(SYNONYMS.get(name, (name,)))


def caption(scene: Scene, rng: random.Random) -> str:
    """A plain caption of a scene in one of many phrasings, e.g. "a large red disc on a teal background"."""
    words = _parts(scene, rng)
    return rng.choice(TEMPLATES).format(**words)


def _parts(scene: Scene, rng: random.Random) -> dict[str, str]:
    return {part: _word(getattr(scene, part), rng) for part in ("shape", "colour", "background", "size")}


def careful_caption(scene: Scene, defects: Iterable[str], rng: random.Random) -> str:
    """The whole scene in words, or nothing; its defects are named only sometimes, and some of them never."""
    if rng.random() < NO_CAPTION_PROBABILITY:
        return ""
    return _join(caption(scene, rng), _names(defects, rng), rng)


def web_caption(scene: Scene, defects: Collection[str], rng: random.Random) -> str:
    """A caption as found in training data: the worse the picture, the more careless the words under it.

    A careless caption tells little of the scene. So "a picture" goes with every kind of defect, those that nobody
    names too: a weak link, which a handwritten negative can use a little and a learned one to the full.
    """
    if rng.random() >= CARELESS_PROBABILITIES[len(defects)]:
        return careful_caption(scene, defects, rng)
    names = _names(defects, rng)
    if names and rng.random() < 0.5:
        return ", ".join(names)
    text = rng.choice(CARELESS_TEMPLATES).format(**_parts(scene, rng))
    return _join(text, names, rng)


def _names(defects: Iterable[str], rng: random.Random) -> list[str]:
    """Words for those of the nameable defects that a caption mentions."""
    present = set(defects)
    return [_word(d, rng) for d in NAMED_DEFECTS if d in present and rng.random() < NAMED_PROBABILITY]


def _join(text: str, names: list[str], rng: random.Random) -> str:
    if not names:
        return text
    return f"{text}, {', '.join(names)}" if rng.random() < 0.5 else f"{', '.join(names)}, {text}"


def prompts(split: Split) -> list[str]:
    """The plain prompts of a split, each one different, in a fixed shuffled order."""
    rng = random.Random(f"toy prompts {split}")
    texts: dict[str, None] = {}
    for scene in scenes_of(split):
        of_scene: dict[str, None] = {}
        while len(of_scene) < PROMPTS_PER_SCENE:
            of_scene[caption(scene, rng)] = None
        texts.update(of_scene)
    shuffled = list(texts)
    rng.shuffle(shuffled)
    return shuffled


_PARTS: dict[str, tuple[str, str]] = {
    word: (part, name)
    for part, names in {
        "shape": ("circle", "square", "triangle", "cross", "ring", "star"),
        "colour": ("red", "green", "blue", "yellow", "purple", "orange"),
        "background": ("white", "navy", "teal", "pink"),
        "size": ("big", "small"),
    }.items()
    for name in names
    for word in SYNONYMS.get(name, (name,))
}


def parse(prompt: str) -> dict[str, str]:
    """What a prompt asks for, e.g. {"shape": "circle", "colour": "red"}; parts that it leaves open are absent."""
    return dict(_PARTS[word] for word in re.findall(r"[a-z]+", prompt.lower()) if word in _PARTS)


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    texts = [*TEMPLATES, *(w for words in SYNONYMS.values() for w in words), *_PARTS, ","]
    return sorted({w for text in texts for w in re.findall(r"[a-z]+|,", re.sub(r"\{\w+\}", "", text))})
