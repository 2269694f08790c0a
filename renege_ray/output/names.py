"""Names of files, folders and keys that are made of texts: readable in any script, and never the same for two texts."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

# In bytes of UTF-8. File systems take names of 255, eCryptfs of 143; a name here may be two of these with numbers
# between, and is longer while the file is written.
LONGEST = 48
_HASH = 8  # hex digits
_SURROGATE = re.compile("[\ud800-\udfff]")
# What Windows takes for devices, whatever stands behind a dot.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in "0123456789¹²³")}


def file_names(texts: Iterable[str]) -> dict[str, str]:
    """{text: name} for files that lie in one folder, without suffix: no two alike (see `alike`) for different texts.

    A name is what can be read of its text (see `readable`), with a piece of the text's hash where that is also, or
    looks like, the name of another one.
    """
    plain = {text: readable(text) or "text" for text in texts}
    hashed = {text: with_hash(name, text, LONGEST) for text, name in plain.items()}
    count = Counter(map(alike, [*plain.values(), *hashed.values()]))
    return {text: name if count[alike(name)] == 1 else hashed[text] for text, name in plain.items()}


def readable(text: str, longest: int = LONGEST) -> str:
    """The letters, marks and digits of a text, in its own script, with dashes for all between; "" where it has none.

    At most `longest` bytes of UTF-8, in the normal form NFC. Dots and underscores stay where they are inside a word.
    """
    kept = ""
    for character in unicodedata.normalize("NFC", text):
        kind = unicodedata.category(character)
        inside = kept[-1:] not in ("", *"-._")  # where a mark is a letter's (Devanagari's vowels) and not an emoji's
        if kind[0] in "LN" or character == "_" or (inside and (kind[0] == "M" or character == ".")):
            kept += character
        elif kind != "Cf" and kept[-1:] not in ("", "-"):  # Cf: what only steers the writing, such as its direction
            kept = kept.rstrip(".") + "-"
    name = _cut(kept, longest)
    return _cut(f"_{name}", longest) if name.casefold().partition(".")[0] in _DEVICES else name


def alike(text: str) -> str:
    """The same for texts that a file system or a database may take for one: of other case, or another normal form."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def is_in_words(character: str) -> bool:
    """Whether it is a letter, a mark on one, or a digit, of any script."""
    return unicodedata.category(character)[0] in "LMN"


def is_unicode(text: str) -> bool:
    """Whether a text can be written: a command line's bytes that are no UTF-8 are surrogates in it."""
    return _SURROGATE.search(text) is None


def with_hash(name: str, text: str, longest: int) -> str:
    """A name of at most `longest` bytes that ends in a piece of the text's hash."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH]
    return f"{_cut(name, longest - _HASH - 1)}-{digest}".lstrip("-")


def _cut(name: str, longest: int) -> str:
    """As many whole characters as there is room for, without what would stand alone at an end."""
    return name.encode("utf-8")[:longest].decode("utf-8", "ignore").strip("-.")
