"""The report in the system's Chromium: everything draws, nothing is fetched, nothing hostile runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hand_made_study import RECOMMENDED, evidence, hostile_evidence, hostile_study, recommendation, study
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
PATIENCE_MS = 900_000
"""A browser on a busy machine takes its time."""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no {CHROMIUM}: apt-get install chromium"),
    pytest.mark.skipif(not os.access(CHROMIUM, os.X_OK), reason=f"{CHROMIUM} cannot be run"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE_MS)
        yield running
        running.close()


class Visit:
    """An opened report with everything that it said and asked for."""

    def __init__(self, browser: Browser, path: Path) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        context = browser.new_context(viewport={"width": 1200, "height": 900})
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        context.set_default_timeout(PATIENCE_MS)
        self.page: Page = context.new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-plots]")

    def scrolled_through(self) -> None:
        """Until every figure is drawn: each is when it comes near."""
        for place in self.page.query_selector_all(".plot"):
            place.scroll_into_view_if_needed()
            self.page.wait_for_selector(f"#{place.get_attribute('id')} svg.main-svg")


@pytest.fixture(scope="module")
def report(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    path = tmp_path_factory.mktemp("browser") / "report.html"
    write_report(study(), recommendation(study()), path, evidence(study()))
    visit = Visit(browser, path)
    yield visit
    visit.page.close()


def test_report_draws_without_a_word_or_a_request(report: Visit) -> None:
    report.scrolled_through()
    assert report.complaints == []
    assert report.requests == [report.page.url]
    places = report.page.query_selector_all(".plot")
    assert len(places) > 18 and all(place.query_selector("svg.main-svg") for place in places)
    for name in ("pareto", "tail"):
        points = report.page.query_selector_all(f"#plot-{name} .points path.point")
        assert len(points) == 12 + 1 + 2, "one marker a measured trial, what the search saw of one, and two rings"
    buttons = [one.get_attribute("data-title") for one in report.page.query_selector_all("#plot-pareto .modebar-btn")]
    assert buttons and not [title for title in buttons if title and "Share" in title]


def test_a_figure_is_drawn_when_it_comes_near(browser: Browser, report: Visit) -> None:
    fresh = Visit(browser, Path(report.page.url.removeprefix("file://")))
    assert fresh.page.query_selector("#plot-timeline svg") is None
    fresh.page.locator("#plot-timeline").scroll_into_view_if_needed()
    fresh.page.wait_for_selector("#plot-timeline svg.main-svg")
    fresh.page.close()


def on_marker(page: Page) -> tuple[float, float]:
    """Where the first marker of the front is, which lies under the area that takes the mouse."""
    page.locator("#plot-pareto").scroll_into_view_if_needed()
    page.wait_for_selector("#plot-pareto .points path.point")
    box = page.locator("#plot-pareto .points path.point").first.bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_a_marker_tells_its_whole_configuration(report: Visit) -> None:
    report.page.mouse.move(*on_marker(report.page))
    told = report.page.wait_for_selector("#plot-pareto .hoverlayer .hovertext").text_content()
    knobs = [f"{name}: " for name in study().trials[1].knobs]
    assert told and told.startswith("trial 1 infeasible") and all(knob in told for knob in knobs) and "goodput" in told
    report.page.mouse.move(0, 0)


def side_by_side(page: Page) -> list[list[str]]:
    rows = page.locator("#compared-trials tr")
    return [row.split("\t") for row in rows.all_inner_texts()]


def test_two_trials_are_selected_and_compared(report: Visit) -> None:
    page = report.page
    assert side_by_side(page)[0] == ["", "trial 0, baseline", "trial 9, recommended"]
    page.locator("#trials button.select", has_text="14").click()
    table = side_by_side(page)
    assert table[0] == ["", "trial 9, recommended", "trial 14"], "the one selected first makes room"
    assert ["kv_cache_dtype", "int8", "float16"] in table and ["kv_window", "none", "none"] in table
    assert page.locator("#compared-trials tr.differs").count() < len(table) - 1
    assert page.locator("#trials button.select[aria-pressed=true]").count() == 2
    page.locator("#trials button.select", has_text="9 recommended").click()
    assert side_by_side(page)[0] == ["", "trial 14"], "a second click lets go"
    ring = "document.querySelector('#plot-pareto').data.find(t => t.name === 'selected')"
    assert page.evaluate(f"[{ring}.x, {ring}.y]") == [[3.9], [1.0]]
    page.mouse.click(*on_marker(page))
    page.wait_for_function("document.querySelectorAll('#compared-trials thead th').length === 3")
    assert "trial 14" in side_by_side(page)[0]


def test_configurations_are_copied_as_yaml(report: Visit) -> None:
    page = report.page
    page.locator("header button.copy").click()
    page.locator("header button.copy", has_text="Copied").wait_for()
    values = yaml.safe_load(page.evaluate("navigator.clipboard.readText()"))
    assert values == {"model": "/studies/mini", **study().trials[RECOMMENDED].knobs}


def test_headings_sort_the_trials(report: Visit) -> None:
    heading = report.page.locator("#trials table.sortable thead th", has_text="in the search (requests")
    first = report.page.locator("#trials table.sortable tbody tr").first
    heading.click()
    assert first.inner_text().startswith("1\t"), "least goodput first"
    heading.click()
    assert first.inner_text().startswith("10\t"), "most goodput first"
    assert heading.get_attribute("aria-sort") == "descending"


def test_paper_gets_every_figure_in_light(report: Visit) -> None:
    report.page.emulate_media(color_scheme="dark")
    pages = report.page.pdf(format="A4")
    assert pages.startswith(b"%PDF") and len(pages) > 50_000
    assert report.page.evaluate("document.querySelectorAll('.plot:not(:has(svg.main-svg))').length") == 0
    assert report.page.evaluate("document.documentElement.classList.contains('print')") is False
    report.page.emulate_media(color_scheme="light")
    assert report.complaints == []


def test_phone_width_scrolls_in_one_direction_only(report: Visit) -> None:
    report.page.set_viewport_size({"width": 375, "height": 800})
    narrow = "document.querySelector('#plot-pareto .main-svg').clientWidth <= 375"
    look = f"const look = () => {narrow} ? done() : setTimeout(look, 50); look()"
    report.page.evaluate(f"new Promise(done => {{ {look} }})")
    assert report.page.evaluate("document.documentElement.scrollWidth") == 375


def test_hostile_strings_run_nothing(browser: Browser, tmp_path: Path) -> None:
    hostile, payloads = hostile_study()
    path = tmp_path / "report.html"
    write_report(hostile, recommendation(hostile), path, hostile_evidence(hostile))
    visit = Visit(browser, path)
    visit.scrolled_through()
    for button in visit.page.locator("button.select").all()[:4]:
        button.click()
    visit.page.mouse.move(*on_marker(visit.page))
    told = visit.page.wait_for_selector("#plot-pareto .hoverlayer .hovertext").text_content() or ""
    assert all(payload in told for payload in payloads[:8]), "names are told as they are"
    assert visit.page.evaluate("window.pwned") is None
    assert visit.complaints == []
    assert visit.requests == [path.as_uri()]
    forbidden = "img, iframe, object, embed, form, base, input, details, link:not([rel=icon]), a[href]:not([href^='#'])"
    assert visit.page.query_selector_all(forbidden) == []
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
