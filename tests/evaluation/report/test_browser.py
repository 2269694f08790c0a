"""The report in a real browser: from disk and from MLflow's artifact page."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from renege_ray.evaluation.report.write import write_report
from renege_ray.output.numbers import number
from tests.evaluation.report.browser import console, open_browser
from tests.evaluation_tables import STRANGE, evaluation_table, made_up_scores
from tests.mlflow_server import free_port, server

pytestmark = pytest.mark.browser

METHODS = ["null", "handwritten", "global", "prompt"]
STYLES = ("anime", "photo")
PAIRS, PAGE = 60, 24
FIRST_SCREEN = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
SHOWN = """return [...document.querySelectorAll("#cards img")].every((image) => image.complete
    && image.naturalWidth === 32
    && getComputedStyle(image).imageRendering === "pixelated")"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with open_browser(tmp_path_factory.mktemp("browser") / "chromedriver.log") as found:
        yield found


def report(folder: Path, table: pd.DataFrame, methods: list[str] = METHODS, scores: tuple[str, ...] = ()) -> Path:
    written = write_report(
        folder / "report",
        table,
        methods=methods,
        scores=["toy", "held_out", *scores],
        train_score="toy",
        held_out_scores=["held_out"],
        judge_scores=[],
        title=f"Report {STRANGE}",
        notes=[STRANGE],
        images_root=str(folder),
    )
    return written["report"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """60 pairs with pictures; the first prompt is hostile, one image is black, one row is a fallback."""
    folder = tmp_path_factory.mktemp("evaluation")
    prompts = [STRANGE, *(f"a prompt about {['cats', 'dogs', 'owls'][i % 3]} {i}" for i in range(1, PAIRS))]
    made = evaluation_table(made_up_scores(PAIRS), styles=STYLES, prompts=prompts, images=folder)
    made.loc[(made["method"] == "global") & (made["prompt"] == STRANGE), "status"] = "black"
    made.loc[(made["method"] == "prompt") & (made["prompt"] == STRANGE), "marks"] = "fallback: global"
    made.attrs["folder"] = str(folder)
    return made


@pytest.fixture(scope="module")
def page(table: pd.DataFrame) -> Path:
    return report(Path(table.attrs["folder"]), table)


@pytest.fixture
def opened(browser: Chrome, page: Path) -> Iterator[Chrome]:
    """The report from disk. Whatever the test does, the console has nothing to say."""
    open_page(browser, page)
    yield browser
    assert console(browser) == []


def open_page(browser: Chrome, page: Path) -> None:
    """From disk; what pages before it have said is forgotten."""
    browser.get("about:blank")
    console(browser)
    browser.get(page.as_uri())


def on_page(browser: Chrome) -> list[str]:
    """The prompts of the cards of the page, in their order."""
    return list(browser.execute_script("return [...document.querySelectorAll('.card h3')].map((e) => e.textContent)"))


def listed(browser: Chrome) -> list[str]:
    """The prompts of the cards of all pages."""
    found: list[str] = []
    while True:
        found += on_page(browser)
        following = browser.find_element(By.ID, "next")
        if not following.is_enabled():
            return found
        following.click()


def order_by(browser: Chrome, name: str) -> None:
    browser.find_element(By.CSS_SELECTOR, f"[data-order={name}]").click()


def choose(browser: Chrome, name: str, text: str) -> None:
    Select(browser.find_element(By.ID, name)).select_by_visible_text(text)


def gains(table: pd.DataFrame, score: str, method: str, other: str) -> pd.Series:
    """By prompt, from the largest; black images have none."""
    scores = table[f"score/{score}"].where(table["status"] == "ok")
    wide = table.assign(score=scores).pivot(index="prompt", columns="method", values="score")
    return (wide[method] - wide[other]).sort_values(ascending=False)


def test_every_picture_is_shown_on_its_page(opened: Chrome) -> None:
    seen = 0
    for place in range(3):
        WebDriverWait(opened, 60).until(lambda browser: browser.execute_script(SHOWN))
        assert opened.execute_script("return [...document.images].every((image) => image.alt)")
        seen += opened.execute_script("return document.querySelectorAll('#cards img').length")
        if place < 2:
            opened.find_element(By.ID, "next").click()
    assert seen == PAIRS * len(METHODS)
    assert "Page 3 of 3" in opened.find_element(By.CLASS_NAME, "pager").text


def test_the_telling_pairs_stand_beside_the_answer(opened: Chrome, table: pd.DataFrame) -> None:
    """Six of the largest gains, two of the largest losses, before and after, on the first screen; each is a button."""
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", FIRST_SCREEN)
    by_gain = gains(table, "toy", "prompt", "null")
    expected = [*by_gain.index[:6], *by_gain.index[:-3:-1]]
    tiles = opened.find_elements(By.CLASS_NAME, "tile")
    shown = [tile.find_element(By.TAG_NAME, "p").get_attribute("title") for tile in tiles]
    assert shown == expected
    for tile, prompt in zip(tiles, expected, strict=True):
        named = [image.get_attribute("alt") for image in tile.find_elements(By.TAG_NAME, "img")]
        assert [str(name).split(", “")[0] for name in named] == ["null", "prompt"]
        assert tile.find_element(By.CLASS_NAME, "gain").text == number(by_gain[prompt], 3, signed=True)
    bottom = "return [...document.querySelectorAll('.tile')].at(-1).getBoundingClientRect().bottom"
    assert 0 < opened.execute_script(bottom) <= FIRST_SCREEN["height"]
    assert opened.find_element(By.CLASS_NAME, "headline").text.startswith("Yes. prompt wins over null on ")
    tiles[1].find_element(By.TAG_NAME, "button").click()
    assert opened.find_element(By.ID, "enlarged-title").text == expected[1]
    assert opened.find_element(By.ID, "enlarged-place").text == "2 of 8"
    ActionChains(opened).send_keys(Keys.ARROW_RIGHT).perform()
    assert opened.find_element(By.ID, "enlarged-title").text == expected[2]
    ActionChains(opened).send_keys(Keys.ESCAPE).perform()
    WebDriverWait(opened, 60).until(lambda b: not b.find_element(By.ID, "enlarged-title").is_displayed())
    assert expected[1] in str(opened.switch_to.active_element.get_attribute("aria-label"))


def test_a_phone_shows_it_without_scrolling_sideways(opened: Chrome) -> None:
    try:
        opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
        assert opened.execute_script("return document.documentElement.scrollWidth") == PHONE["width"]
        answer, pictures = (opened.find_element(By.CLASS_NAME, name).rect["y"] for name in ("headline", "tile"))
        assert 0 < answer < pictures < PHONE["height"]
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_it_sorts_by_gain_and_disagreement(opened: Chrome, table: pd.DataFrame) -> None:
    by_gain = gains(table, "toy", "prompt", "null")
    assert listed(opened) == list(by_gain.index)
    order_by(opened, "worst")
    assert listed(opened) == list(by_gain.index[::-1])

    choose(opened, "score", "held_out")
    choose(opened, "method", "global")
    choose(opened, "other", "handwritten")
    order_by(opened, "best")
    other = gains(table, "held_out", "global", "handwritten")
    assert listed(opened) == [*other.dropna().index, STRANGE], "what has no gain comes last"

    choose(opened, "score", "toy")
    order_by(opened, "disagreement")
    first, second = gains(table, "toy", "global", "handwritten"), other
    apart = (first / first.std() - second / second.std()).abs().sort_values(ascending=False)
    assert listed(opened) == [*apart.dropna().index, STRANGE]


def test_it_filters_by_style_and_words(opened: Chrome, table: pd.DataFrame) -> None:
    choose(opened, "style", "photo")
    found = table[(table["method"] == "null") & (table["style"] == "photo")]
    assert sorted(listed(opened)) == sorted(found["prompt"])
    opened.find_element(By.ID, "search").send_keys("OWLS prompt")
    assert sorted(listed(opened)) == sorted(prompt for prompt in found["prompt"] if "owls" in prompt)
    assert opened.find_element(By.ID, "count").text == f"{len(listed(opened))} of {PAIRS} pairs"
    opened.find_element(By.ID, "search").send_keys("nothing has this")
    assert listed(opened) == []


def test_the_keyboard_enlarges_moves_and_comes_back(opened: Chrome, table: pd.DataFrame) -> None:
    best = list(gains(table, "toy", "prompt", "null").index)
    opened.find_element(By.ID, "search").send_keys(Keys.TAB)
    assert opened.switch_to.active_element.get_attribute(
        "aria-label"
    ) == f"Enlarge: null, “{best[0]}”, seed " + seed_of(table, best[0])
    opened.switch_to.active_element.send_keys(Keys.ENTER)
    title = opened.find_element(By.ID, "enlarged-title")
    assert title.text == best[0]
    keys = ActionChains(opened)
    for _ in range(PAGE):
        keys.send_keys(Keys.ARROW_RIGHT)
    keys.send_keys(Keys.ARROW_LEFT).send_keys(Keys.ARROW_RIGHT).perform()
    assert title.text == best[PAGE]
    scores = opened.find_element(By.ID, "enlarged-scores").text
    row = table[(table["prompt"] == best[PAGE]) & (table["method"] == "prompt")].iloc[0]
    assert number(row["score/toy"], 3) in scores
    pictures = opened.find_elements(By.CSS_SELECTOR, "#enlarged-pictures img")
    assert [picture.get_attribute("alt").split(",")[0] for picture in pictures] == METHODS
    ActionChains(opened).send_keys(Keys.ESCAPE).perform()
    WebDriverWait(opened, 60).until(lambda browser: not title.is_displayed())
    assert best[PAGE] in str(opened.switch_to.active_element.get_attribute("aria-label"))
    assert "Page 2" in opened.find_element(By.ID, "page").text


def seed_of(table: pd.DataFrame, prompt: str) -> str:
    return str(table.loc[table["prompt"] == prompt, "seed"].iloc[0])


def test_texts_are_texts_and_everything_has_a_name(opened: Chrome) -> None:
    assert opened.find_element(By.TAG_NAME, "h1").text == f"Report {STRANGE}"
    assert STRANGE in opened.find_element(By.ID, "notes").text
    opened.find_element(By.ID, "search").send_keys("DROP")
    card = opened.find_element(By.CLASS_NAME, "card")
    assert card.find_element(By.TAG_NAME, "h3").text == STRANGE
    assert "black" in card.text and "fallback: global" in card.text
    assert "global: 1 black of 60 images; they are in no average." in opened.find_element(By.ID, "notes").text
    unnamed = """
        const named = (e) => e.labels?.length || e.getAttribute("aria-label") || e.textContent.trim();
        return [...document.querySelectorAll("select, input, button, a")].filter((e) => !named(e)).length"""
    assert opened.execute_script(unnamed) == 0
    untitled = "return [...document.querySelectorAll('main table')].filter((e) => !e.caption || !e.tHead).length"
    assert opened.execute_script(untitled) == 0
    assert opened.execute_script("return document.querySelectorAll('svg[role=img][aria-label]').length") == 2


@pytest.mark.server
def test_mlflow_shows_it_among_the_artifacts(browser: Chrome, page: Path, tmp_path: Path) -> None:
    from renege_ray.cluster.tracking.runs import open_run

    output_dir = page.parents[1]
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    with server(tmp_path, port):
        with open_run(output_dir, job="evaluate", experiment="report", params={}, tracking_uri=uri) as log:
            log.artifact(page)
            log.finish()
        browser.get(f"{uri}/#/experiments/1/runs/{log.run_id}/artifacts")
        file = (By.XPATH, "//*[text()='report.html']")
        WebDriverWait(browser, 150).until(lambda b: b.find_elements(*file))
        browser.find_element(*file).click()
        frame = WebDriverWait(browser, 150).until(lambda b: b.find_element(By.CLASS_NAME, "mlflow-html-iframe"))
        browser.switch_to.frame(frame)
        WebDriverWait(browser, 60).until(lambda b: len(b.find_elements(By.CLASS_NAME, "card")) == PAGE)
        browser.find_element(By.LINK_TEXT, "Gallery").click()
        order_by(browser, "worst")
        browser.find_element(By.CSS_SELECTOR, ".card button").click()
        assert browser.find_element(By.ID, "enlarged-title").is_displayed()
        WebDriverWait(browser, 60).until(lambda b: b.execute_script(SHOWN))
        ActionChains(browser).send_keys(Keys.ESCAPE).perform()
        assert [message for message in console(browser) if "blob:" in message] == []
        browser.switch_to.default_content()


def test_two_thousand_pairs_open_at_once(browser: Chrome, tmp_path: Path) -> None:
    """8,000 pictures that cannot be compressed, 3 kB each."""
    pictures = evaluation_table(made_up_scores(4), images=tmp_path, noise=True)["image"]
    table = evaluation_table(made_up_scores(2000), styles=STYLES)
    table["image"] = np.resize(pictures.to_numpy(), len(table))
    page = report(tmp_path, table)
    assert 20 * 2**20 < page.stat().st_size < 50 * 2**20
    open_page(browser, page)
    timing = "return performance.getEntriesByType('navigation')[0].loadEventEnd"
    assert 0 < browser.execute_script(timing) < 3000
    order_by(browser, "worst")
    assert on_page(browser) == list(gains(table, "toy", "prompt", "null").index[::-1][:PAGE])
    assert console(browser) == []
