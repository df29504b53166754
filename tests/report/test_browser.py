"""The report in a real browser: it loads nothing, its tables sort, and no text is cut."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeadapt.report.comparison import write_comparison
from edgeadapt.report.html import render_html
from tests.comparison.trials import document
from tests.report.test_report import DOCUMENT

pytest.importorskip("selenium")

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None, reason="chromium and chromedriver are not installed"
)

CUT = """
const cut = [];
const page = document.documentElement;
if (page.scrollWidth > page.clientWidth) cut.push(`the page, ${page.scrollWidth} wide`);
for (const element of document.querySelectorAll("body *")) {
  if (element.closest("svg") || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
  const style = getComputedStyle(element);
  if (style.overflowX === "auto") continue;  // can be scrolled
  if (element.scrollWidth > element.clientWidth + 1 && element.clientWidth > 0)
    cut.push(`${element.tagName} ${element.textContent.trim().slice(0, 40)}`);
}
for (const text of document.querySelectorAll("svg text")) {
  const inner = text.getBoundingClientRect();
  const outer = text.closest("svg").getBoundingClientRect();
  if (inner.left < outer.left - 1 || inner.right > outer.right + 1 ||
      inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1)
    cut.push(`in a chart: ${text.textContent.trim()}`);
}
return cut;
"""

COLUMN = """
const table = [...document.querySelectorAll("h2")]
  .find(h => h.textContent === arguments[0]).nextElementSibling.querySelector("table");
const head = table.tHead.rows[0].cells[arguments[1]];
if (arguments[2]) head.querySelector("button").click();
return [[...table.tBodies[0].rows].map(row => row.cells[arguments[1]].textContent.trim()),
        head.getAttribute("aria-sort")];
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium without a window, without a network, on the report."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=Service(str(DRIVER))) as driver:
        page = tmp_path_factory.mktemp("report") / "report.html"
        page.write_text(render_html(DOCUMENT), encoding="utf-8")
        driver.get(page.as_uri())
        yield driver


def resize(browser: Any, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def test_it_loads_nothing_and_complains_of_nothing(browser: Any) -> None:
    resources = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    assert browser.execute_script(resources) == []
    assert browser.get_log("browser") == []
    assert len(browser.find_elements("css selector", "svg")) == 6


@pytest.mark.parametrize("width", [400, 1400])
def test_a_comparison_loads_nothing_and_no_text_is_cut(
    browser: Any, width: int, tmp_path: Path
) -> None:
    before = browser.current_url
    write_comparison(document(), tmp_path)
    browser.get((tmp_path / "report.html").as_uri())
    try:
        resize(browser, width)
        resources = "return performance.getEntriesByType('resource').map(entry => entry.name)"
        assert browser.execute_script(resources) == []
        assert len(browser.find_elements("css selector", "svg")) == 4
        assert browser.execute_script(CUT) == []
    finally:
        browser.get(before)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_no_text_is_cut(browser: Any, width: int, scheme: str, tmp_path: Path) -> None:
    resize(browser, width)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    assert browser.execute_script("return innerWidth") == width
    assert browser.execute_script(CUT) == []


def test_tables_sort_by_numbers_and_by_text(browser: Any) -> None:
    numbers, order = browser.execute_script(COLUMN, "Artifacts", 3, True)
    assert (numbers, order) == (["105.0", "140.0"], "ascending")
    numbers, order = browser.execute_script(COLUMN, "Artifacts", 3, True)
    assert (numbers, order) == (["140.0", "105.0"], "descending")
    names, order = browser.execute_script(COLUMN, "Artifacts", 2, True)
    assert (names, order) == (["Q4_K_M", "Q8_0"], "ascending")
    assert browser.execute_script(COLUMN, "Artifacts", 3, False)[1] is None
