"""CLIP's tokens: byte pairs, begin, end, zeros up to the context length.

All CLIPs share one vocabulary, but not the cleaning of a text before it is cut up: open_clip (so HPSv2, and OpenAI's
own CLIP) repairs it with ftfy and resolves HTML entities, transformers (so PickScore) does neither.

transformers' CLIPTokenizer cannot do the first: it splits at "<|endoftext|>", which to open_clip is a text like any
other. So the tokenizer is put together here from the same library's parts.
"""

import gzip
import hashlib
import html
import json
from collections.abc import Callable
from pathlib import Path

import ftfy
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from renege_ray.errors import UserError

BEGIN, END = 49406, 49407
NUM_MERGES = 48894
_MERGES_SHA256 = "f61f2adf497e6f5357c347aeb4646fabe82f341e946de5bdec5d2858e41bef4a"
# English clitics, words, single digits, runs of anything else.
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_AS_TRANSFORMERS = normalizers.Sequence(
    [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
)


def clean_as_open_clip(text: str) -> str:
    """Repaired, without HTML entities (of two levels), blanks single, lower case."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


def clean_as_transformers(text: str) -> str:
    """Unicode's NFC, blanks single, lower case."""
    return str(_AS_TRANSFORMERS.normalize_str(text))


class ClipTokenizer:
    """A prompt -> the ids of its tokens."""

    def __init__(
        self, vocabulary: Path, markers: tuple[str, str], clean: Callable[[str], str], context_length: int
    ) -> None:
        """Read the vocabulary.

        Args:
            vocabulary: see `read_merges`.
            markers: the words that a prompt may, by accident or not, write for begin and end.
            clean: what is done to a prompt first.
            context_length: all prompts are cut or filled up to this.

        Raises:
            UserError: the file is damaged, or holds another vocabulary.
        """
        merges = read_merges(vocabulary)
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), *markers]
        model = BPE({word: i for i, word in enumerate(words)}, merges, end_of_word_suffix="</w>")
        self._pieces = Tokenizer(model)
        self._pieces.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        self._pieces.add_special_tokens([*markers])
        self._clean = clean
        self._context_length = context_length

    def __call__(self, prompt: str) -> tuple[list[int], bool]:
        """The ids, `context_length` of them, and whether the prompt had to be cut for it."""
        ids = self._pieces.encode(self._clean(prompt)).ids
        room = self._context_length - 2
        padding = [0] * (room - len(ids))
        return [BEGIN, *ids[:room], END, *padding], len(ids) > room


def read_merges(path: Path) -> list[tuple[str, str]]:
    """CLIP's 48,894 merges, from transformers' merges.txt or tokenizer.json, or from OpenAI's gzipped list.

    Raises:
        UserError: the file is damaged, or its merges are others.
    """
    try:
        if path.suffix == ".json":
            listed = json.loads(path.read_text(encoding="utf-8"))["model"]["merges"]
            merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in listed]
        else:
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            # The first line is a heading; OpenAI's list goes on, with merges that CLIP does not use.
            merges = [tuple(line.split(" ")) for line in content.decode("utf-8").split("\n")[1 : NUM_MERGES + 1]]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"CLIP vocabulary {path} is damaged ({error}): download it again") from error
    joined = "\n".join(" ".join(pair) for pair in merges)
    if hashlib.sha256(joined.encode()).hexdigest() != _MERGES_SHA256:
        raise UserError(f"CLIP vocabulary {path} is another model's: give merges.txt of openai/clip-vit-large-patch14")
    return [(first, second) for first, second in merges]
