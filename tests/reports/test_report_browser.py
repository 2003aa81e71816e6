"""The report in the system's Chromium: everything draws, nothing is fetched, nothing hostile runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hand_made_study import hostile_study, recommendation, study
from playwright.sync_api import Browser, Page, sync_playwright

from reports.page import write_report

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no {CHROMIUM}: apt-get install chromium"),
    pytest.mark.skipif(not os.access(CHROMIUM, os.X_OK), reason=f"{CHROMIUM} cannot be run"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


class Visit:
    """An opened report with everything that it said and asked for."""

    def __init__(self, browser: Browser, path: Path) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page: Page = browser.new_page(viewport={"width": 1200, "height": 900})
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-plots]", timeout=60_000)


@pytest.fixture(scope="module")
def report(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    path = tmp_path_factory.mktemp("browser") / "report.html"
    write_report(study(), recommendation(study()), path)
    visit = Visit(browser, path)
    yield visit
    visit.page.close()


def test_report_draws_without_a_word_or_a_request(report: Visit) -> None:
    assert report.complaints == []
    assert report.requests == [report.page.url]
    for place in report.page.query_selector_all(".plot"):
        assert place.query_selector("svg.main-svg"), place.get_attribute("id")
    assert len(report.page.query_selector_all("#plot-pareto .points path")) == 12, "one marker a measured trial"
    buttons = [one.get_attribute("data-title") for one in report.page.query_selector_all("#plot-pareto .modebar-btn")]
    assert buttons and not [title for title in buttons if title and "Share" in title]


def test_headings_sort_the_trials(report: Visit) -> None:
    heading = report.page.locator("table.sortable th", has_text="goodput")
    first = report.page.locator("table.sortable tbody tr").first
    heading.click()
    assert first.inner_text().startswith("1\t"), "least goodput first"
    heading.click()
    assert first.inner_text().startswith("10\t"), "most goodput first"
    assert heading.get_attribute("aria-sort") == "descending"


def test_phone_width_scrolls_in_one_direction_only(report: Visit) -> None:
    report.page.set_viewport_size({"width": 375, "height": 800})
    narrow = "document.querySelector('#plot-pareto .main-svg').clientWidth <= 375"
    look = f"const look = () => {narrow} ? done() : setTimeout(look, 50); look()"
    report.page.evaluate(f"new Promise(done => {{ {look} }})")
    assert report.page.evaluate("document.documentElement.scrollWidth") == 375


def test_hostile_strings_run_nothing(browser: Browser, tmp_path: Path) -> None:
    hostile, _ = hostile_study()
    path = tmp_path / "report.html"
    write_report(hostile, recommendation(hostile), path)
    visit = Visit(browser, path)
    assert visit.page.evaluate("window.pwned") is None
    assert visit.complaints == []
    assert visit.requests == [path.as_uri()]
    assert visit.page.query_selector_all("img, iframe, object, embed, form, a[href^=http], a[href^=javascript]") == []
    visit.page.close()


def test_no_script_runs_but_the_pages_own(browser: Browser, tmp_path: Path) -> None:
    """The policy is the second wall: a script that did get into the file is refused."""
    path = tmp_path / "report.html"
    write_report(study(), recommendation(study()), path)
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace("</main>", "<script>window.pwned = 1</script></main>"), encoding="utf-8")
    visit = Visit(browser, path)
    assert visit.page.evaluate("window.pwned") is None
    assert any("Content Security Policy" in complaint for complaint in visit.complaints)
    visit.page.close()
