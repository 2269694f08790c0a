"""A real Chromium without a window, driven through chromedriver, and what a page says of itself."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

ADVICE = "the tests of the report need Chromium and its driver: apt-get install chromium chromium-driver"
REQUIRED = "RENEGE_RAY_REQUIRE_BROWSER"  # set where a skipped test would hide that something is missing


@contextmanager
def open_browser(log: Path) -> Iterator[Chrome]:
    """The browser. Where there is none the test is skipped, or fails if `REQUIRED` is set. Nothing is downloaded."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(ADVICE)
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new",
        "--no-sandbox",  # its own sandbox does not work for root
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--disable-background-networking",
        "--window-size=1300,1000",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options, ChromeService(driver, log_output=str(log)))
    try:
        yield browser
    finally:
        browser.quit()


def console(browser: Chrome) -> list[str]:
    """What the console has said since the last call."""
    return [entry["message"] for entry in browser.get_log("browser")]
