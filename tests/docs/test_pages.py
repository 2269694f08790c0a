"""The README and the pages as texts: short enough, no dead link, nothing said twice, no flag that is not there."""

import re
from functools import cache
from itertools import combinations

import pytest

from renege_ray.__main__ import PROGRAMS
from tests.docs.pages import PAGES, ROOT, anchors, blocks, commands, inline_code, links, paragraphs, prose, read

MOST_LINES = 150
SAID_TWICE = 200
# Flags of other programs that pages mention.
FOREIGN_FLAGS = {"--working-dir", "--install", "--second"}


@cache
def known_flags() -> frozenset[str]:
    """Every flag of every command, from their helps."""
    import contextlib
    import io

    texts = io.StringIO()
    subcommands = {
        "embedding": ("inspect", "convert", "export", "check"),
        "rewards": ("score", "list"),
        "analyses": ("efficiency", "sampler-error", "pseudo-positive", "distance"),
        "toy": ("export",),
        "tracking": ("send",),
    }
    with contextlib.redirect_stdout(texts):
        for name, program in PROGRAMS.items():
            for words in ([], *([word] for word in subcommands.get(name, ()))):
                with pytest.raises(SystemExit):
                    program([*words, "--help"])
    return frozenset(re.findall(r"--[a-z][a-z0-9.-]*[a-z0-9]", texts.getvalue()))


def test_the_readme_is_short() -> None:
    assert len(read("README.md").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    assert page == "integrations/comfyui/README.md" or links(page), "a page that leads nowhere"
    for target in links(page):
        file, _, anchor = target.partition("#")
        path = ((ROOT / page).parent / file).resolve() if file else ROOT / page
        assert path.exists(), f"{page}: there is no {target}"
        if anchor:
            assert anchor in anchors(str(path.relative_to(ROOT))), f"{page}: {file} has no heading {anchor}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_every_page_is_led_to(page: str) -> None:
    others = [other for other in PAGES if other != page]
    leading = [
        other
        for other in others
        if any(((ROOT / other).parent / link.split("#")[0]).resolve() == ROOT / page for link in links(other))
    ]
    assert "README.md" in leading and len(leading) >= 2, f"{page} is led to by {leading} alone"


def test_nothing_is_said_twice() -> None:
    for one, other in combinations(PAGES, 2):
        common = set(paragraphs(one)) & set(paragraphs(other))
        assert not [text for text in common if len(text) > SAID_TWICE], f"{one} and {other} say the same"


@pytest.mark.parametrize("page", PAGES)
def test_what_is_mentioned_in_passing_exists(page: str) -> None:
    """Flags and commands in running text, which nothing runs."""
    for code in inline_code(page):
        for flag in re.findall(r"(?:^|\s)(--[\w.-]+)", code):
            assert flag in known_flags() | FOREIGN_FLAGS, f"{page}: no command has {flag}"
        if named := re.match(r"renege-ray ([\w-]+)", code):
            assert named[1] in PROGRAMS, f"{page}: `{code}`"


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_in_blocks_that_are_run(page: str) -> None:
    outside = re.findall(r"^ {4,}(?:renege-ray|python|make|ray|mlflow) .*$", prose(page), re.MULTILINE)
    assert not outside, f"{page}: in no ```bash block, so no test runs them: {outside}"
    old = [command for command in commands(page) if "renege_ray" in command.words[:3] and command.words[0] == "python"]
    assert not old, f"{page}: say renege-ray: {old}"


def test_blocks_are_of_languages_that_are_run_or_read() -> None:
    assert {block.language for page in PAGES for block in blocks(page)} <= {"bash", "python", "yaml"}
