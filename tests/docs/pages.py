"""The pages, and what is in them: fenced blocks, commands, links, paragraphs."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")), "CONTRIBUTING.md",
         "integrations/comfyui/README.md")  # fmt: skip
_FENCE = re.compile(r"^(`{3,})(\w*)\n(.*?)^\1$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`]+)`")
_NAMED = re.compile(r"# (\S+\.(?:yaml|py))\n")


@dataclass(frozen=True)
class Block:
    """A fenced block. line: of its first line of content."""

    page: str
    line: int
    language: str
    text: str

    @property
    def file(self) -> str:
        """The file that the block is, where its first line names one."""
        named = _NAMED.match(self.text)
        return named[1] if named else ""


@dataclass(frozen=True)
class Command:
    """A command without its comment, in words."""

    page: str
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {shlex.join(self.words)}"


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    text = read(page)
    return [Block(page, text.count("\n", 0, found.start(3)) + 1, found[2], found[3]) for found in _FENCE.finditer(text)]


def commands_of(block: Block) -> Iterator[Command]:
    """Those of a bash block, continued lines joined."""
    lines = block.text.splitlines()
    start = 0
    for number, line in enumerate(lines):
        if line.endswith("\\"):
            continue
        joined = " ".join(part.removesuffix("\\") for part in lines[start : number + 1])
        if words := shlex.split(joined, comments=True):
            yield Command(block.page, block.line + start, tuple(words))
        start = number + 1


def commands(page: str) -> list[Command]:
    return [command for block in blocks(page) if block.language == "bash" for command in commands_of(block)]


def prose(page: str) -> str:
    """The page without its blocks."""
    return _FENCE.sub("", read(page))


def links(page: str) -> list[str]:
    """Targets of links and pictures that are not on the web."""
    return [target for target in _LINK.findall(prose(page)) if "://" not in target]


def inline_code(page: str) -> list[str]:
    return [code.replace("\n", " ") for code in _CODE.findall(prose(page))]


def anchors(page: str) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def paragraphs(page: str) -> list[str]:
    """Of text and of tables, on one line each, without the line breaks that another width would put elsewhere."""
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", read(page)) if part.strip()]
