"""The page of a trace: offline, escaped, drawn by the system's Chromium."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, sync_playwright
from test_report_browser import CHROMIUM, FLAGS, PATIENCE_MS, Visit
from test_report_browser import pytestmark as needs_chromium
from test_report_page import Page
from typer.testing import CliRunner

from reports import trace_arrivals, trace_lengths
from reports.trace_page import verdict
from tests.fakes import cases
from tuner.cli.__main__ import app
from tuner.traffic.inspection import Inspection, inspect_trace

HOSTILE = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned=1'>$$x$$"


def lines(count: int, **values: Any) -> list[dict[str, Any]]:
    rng = np.random.default_rng(3)
    arrivals = np.sort(rng.uniform(0, 300, size=count)).tolist()
    return [
        {"id": f"r{i}", "arrival": at, "max_tokens": 900, "prompt_tokens": int(p), "output_tokens": int(o), **values}
        for i, (at, p, o) in enumerate(
            zip(arrivals, rng.integers(1, 9000, count), rng.integers(1, 900, count), strict=True)
        )
    ]


def trace(path: Path, requests: list[dict[str, Any]], **header: Any) -> Path:
    head = {"servetune_trace": 1, "provenance": {"source": HOSTILE}, "seconds": 300, **header}
    path.write_text("\n".join(map(json.dumps, [head, *requests])) + "\n")
    return path


def inspected(directory: Path, requests: list[dict[str, Any]], **header: Any) -> Inspection:
    return inspect_trace(trace(directory / "t.jsonl", requests, **header))


def written(directory: Path, requests: list[dict[str, Any]]) -> Path:
    out = directory / "pages" / "t.html"
    path = trace(directory / "t.jsonl", requests)
    result = CliRunner().invoke(app, ["trace", "inspect", str(path), "--html", str(out)])
    assert result.exit_code == 0 and f"wrote {out}" in result.stdout
    return out


def test_pictures_show_every_request(tmp_path: Path) -> None:
    requests = [{**line, "slo_class": f"c{i % 7}"} for i, line in enumerate(lines(700))]
    found = inspected(tmp_path, requests)
    rates = trace_arrivals.rates_info(found)
    assert [row.name for row in rates] == ["c0", "c1", "c2", "c3", "other classes"]
    assert sum(sum(row.rates) * row.width for row in rates) == pytest.approx(700)
    gaps = trace_arrivals.gaps_info(found)
    assert gaps is not None and sum(gaps.counts) + gaps.zero == 699
    assert sum(gaps.expected) == pytest.approx(699, rel=0.02)
    for row in trace_lengths.info(found):
        assert sum(row.counts) == 700 and len(row.counts) == len(row.edges) - 1


def test_length_bins_are_whole_tokens(tmp_path: Path) -> None:
    requests = [{**line, "prompt_tokens": 1 + i % 3, "output_tokens": 5} for i, line in enumerate(lines(30))]
    prompt, answer = trace_lengths.info(inspected(tmp_path, requests))
    assert (prompt.edges, prompt.counts) == ((0.5, 1.5, 2.5, 3.5, 4.5), (10, 10, 10, 0))
    assert 5 in answer.edges or answer.edges[0] == 4.5 and answer.counts[0] == 30


VERDICTS = [
    # (the case, arrivals, words)
    ("one request", [0.0], "1 requests over 300 s"),
    ("bursts", [float(100 * (i // 100)) for i in range(300)], "burstier than independent users"),
    ("a metronome", [float(i) for i in range(300)], "more regular than independent users"),
]


@pytest.mark.parametrize(("arrivals", "words"), cases(VERDICTS))
def test_verdict(arrivals: list[float], words: str, tmp_path: Path) -> None:
    requests = [{"id": str(i), "arrival": at, "max_tokens": 9, "prompt_tokens": 9} for i, at in enumerate(arrivals)]
    assert words in verdict(inspected(tmp_path, requests))


@pytest.mark.parametrize("count", [1, 2, 300])
def test_one_file_that_names_no_other(count: int, tmp_path: Path) -> None:
    page = Page(written(tmp_path, lines(count)).read_text(encoding="utf-8"))
    for tag, attributes in page.tags:
        assert "src" not in attributes and (attributes.get("href") or "data:").startswith("data:"), tag
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'") and "connect-src 'none'" in policy
    for heading in ("Arrivals", "Lengths", "Shared prefixes and sessions", "Classes and tenants", "Doubts"):
        assert f"\n{heading}\n" in page.text
    labels = [a["aria-label"] for _, a in page.tags if a.get("role") == "img"]
    assert len(labels) == len(list(page.figures())) == (4 if count == 300 else len(labels))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE_MS)
        yield running
        running.close()


@pytest.mark.browser
@needs_chromium[1]
def test_page_draws_and_hostile_names_run_nothing(browser: Browser, tmp_path: Path) -> None:
    path = written(tmp_path, lines(300, tenant=HOSTILE, slo_class=HOSTILE))
    visit = Visit(browser, path)
    visit.scrolled_through()
    assert visit.complaints == [] and visit.requests == [path.as_uri()]
    assert visit.page.evaluate("window.pwned") is None
    plots = visit.page.query_selector_all(".plot")
    assert [place.get_attribute("id") for place in plots] == [
        "plot-rates", "plot-gaps", "plot-length-prompt", "plot-length-answer"
    ]  # fmt: skip
    assert all(place.query_selector("svg.main-svg .bars path") for place in plots)
    assert visit.page.query_selector_all("img, iframe, object, embed, form") == []
    visit.page.set_viewport_size({"width": 375, "height": 800})
    narrow = "document.querySelector('#plot-rates .main-svg').clientWidth <= 375"
    look = f"const look = () => {narrow} ? done() : setTimeout(look, 50); look()"
    visit.page.evaluate(f"new Promise(done => {{ {look} }})")
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 375
    visit.page.close()
