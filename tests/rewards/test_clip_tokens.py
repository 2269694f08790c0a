"""CLIP's tokens beside open_clip's tokenizer and transformers' CLIPTokenizer."""

import gzip
import json
import random
from pathlib import Path

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from transformers import CLIPTokenizer

from renege_ray.errors import UserError
from renege_ray.prompts.sources import load_prompts
from renege_ray.rewards import hpsv2, pickscore
from renege_ray.rewards.clip_tokens import (
    BEGIN,
    END,
    NUM_MERGES,
    ClipTokenizer,
    clean_as_open_clip,
    clean_as_transformers,
    read_merges,
)
from tests.rewards.conformance import ODD_PROMPTS, PROMPTS
from tests.rewards.open_clip_models import VOCABULARY

TRICKY = (
    *PROMPTS,
    *ODD_PROMPTS,
    "it's what they've said: I'm here, we'll see, he'd go, you're 'round",
    "IT'S A FOX!!! ... (8k, f/1.8, 35mm) 100% --ar 16:9 :: [red|blue]",
    "“curly” ‘quotes’ – dashes… ﬁligature ＦＵＬＬ ｗｉｄｔｈ",
    "&lt;b&gt; &amp;amp; &quot;x&quot; caf&eacute; &nbsp; &#39;",
    "schÃ¶n (mojibake), schön, scho\u0308n, İstanbul ΣΊΣΥΦΟΣ Straße ǅ",
    "a\u00a0b\u2003c\u200bd\u3000e\x85f\x1cg\vh",
    "１２３ 一二三 ²³ ½ Ⅷ ٣",
    "👩‍👩‍👧 ❤️ 🇫🇷 é́́",
    "x" * 400,
    "don''t ''s '' ' 's' \"'s\"",
    "_under_score_ #hash @at $1,000.00 a_b-c.d",
)


@pytest.fixture(scope="module")
def merges() -> list[tuple[str, str]]:
    return read_merges(VOCABULARY)


def fuzz(count: int) -> list[str]:
    """Texts of letters, digits, signs, blanks and other scripts at random."""
    draw = random.Random(0)
    alphabet = "abcXYZ'’\"&;<>|#0123 \t\n.,!?-_éßΣσςДжя中文日本語한글हिन्दीعرب🦊❤️‍½ﬁ\u200b\u0301\xa0"
    return ["".join(draw.choices(alphabet, k=draw.randint(1, 60))) for _ in range(count)]


def real_prompts() -> list[str]:
    """Of people: the project's data where they are at hand, and the embedded model's."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "prompts"
    found = [*load_prompts("toy", "train").prompts][:200]
    if (folder / "refl_data.json").is_file():
        found += [entry["text"] for entry in json.loads((folder / "refl_data.json").read_text(encoding="utf-8"))][:2000]
    return found


@pytest.mark.slow
def test_open_clips_tokens() -> None:
    """Padding and cutting included."""
    ours = ClipTokenizer(VOCABULARY, hpsv2.MARKERS, clean_as_open_clip, 77)
    theirs = SimpleTokenizer()
    texts = [*TRICKY, *real_prompts(), *fuzz(2000), "a <start_of_text> b <end_of_text> c"]
    for text, expected in zip(texts, theirs(texts), strict=True):
        ids, cut = ours(text)
        assert torch.equal(torch.tensor(ids), expected), repr(text)
        assert cut == (len(theirs.encode(text)) > 75), repr(text)


def test_transformers_tokens(merges: list[tuple[str, str]]) -> None:
    """Up to the padding, which comes after the token that is read."""
    ours = ClipTokenizer(VOCABULARY, pickscore.MARKERS, clean_as_transformers, 77)
    theirs = transformers_tokenizer(merges)
    for text in [*TRICKY, *real_prompts(), *fuzz(2000)]:
        expected = theirs(text, truncation=True, max_length=77)["input_ids"]
        ids, _ = ours(text)
        assert ids[: len(expected)] == expected, repr(text)
        assert ids[len(expected) :] == [0] * (77 - len(expected)), repr(text)


def transformers_tokenizer(merges: list[tuple[str, str]]) -> CLIPTokenizer:
    """OpenAI's vocabulary lists the bytes in its own order, which is that of `SimpleTokenizer`."""
    words = dict(SimpleTokenizer().encoder)
    for name, marker in (("<start_of_text>", "<|startoftext|>"), ("<end_of_text>", "<|endoftext|>")):
        words[marker] = words.pop(name)
    return CLIPTokenizer(vocab=words, merges=[*merges], model_max_length=77)


def test_the_shape_of_the_ids() -> None:
    tokenizer = ClipTokenizer(VOCABULARY, hpsv2.MARKERS, clean_as_open_clip, 77)
    assert tokenizer("") == ([BEGIN, END, *[0] * 75], False)
    exactly, _ = tokenizer("a " * 75)
    assert len(exactly) == 77 and exactly[-1] == END and not tokenizer("a " * 75)[1]
    over, cut = tokenizer("a " * 76)
    assert cut and over == exactly


def test_every_form_of_the_vocabulary(merges: list[tuple[str, str]], tmp_path: Path) -> None:
    assert len(merges) == NUM_MERGES
    lines = [" ".join(pair) for pair in merges]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")
    transformers_tokenizer(merges).save_pretrained(tmp_path)
    strings = {"model": {"merges": lines}}
    (tmp_path / "old.json").write_text(json.dumps(strings), encoding="utf-8")
    for name in ("merges.txt", "tokenizer.json", "old.json"):
        assert read_merges(tmp_path / name) == merges, name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("merges.txt", b"#version: 0.2\ni n\nt h\n", "another model's"),
        ("merges.txt", b"\xff\xfe", "damaged"),
        ("tokenizer.json", b"{", "damaged"),
        ("tokenizer.json", b'{"model": {}}', "damaged"),
        ("list.txt.gz", gzip.compress(b"x", mtime=0)[:9], "damaged"),
    ],
)
def test_bad_vocabularies(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_merges(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)
