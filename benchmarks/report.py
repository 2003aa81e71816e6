"""A report of many trials in the system's Chromium: python -m benchmarks.report [TRIALS].

One JSON object: bytes of the page; seconds to write it, until a fresh tab shows it with the figures in view (if any),
and until the first figure was drawn, each with what its main thread had of the processor by then; and until all figures
were drawn, one after the other.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from playwright.sync_api import CDPSession, sync_playwright

from reports.page import write_report
from tests.reports.hand_made_study import TRIALS, evidence, recommendation, study, trial
from tuner.results import StudyResults

CHROMIUM = Path("/usr/bin/chromium")


def many(count: int) -> StudyResults:
    """The hand-made study with trials whose knobs and figures all differ."""
    rng, few = random.Random(0), study()
    made = list(few.trials[: len(TRIALS)])
    for number in range(len(TRIALS), count):
        _, state, knobs, goodput, quality, tail, reason = rng.choice(TRIALS[1:])
        values = (rng.randint(4, 96), rng.randint(128, 1024), *knobs[2:])
        factor = rng.uniform(0.9, 1.0)
        made.append(trial(number, state, values, goodput * factor, quality * factor, tail * factor, reason))
    return replace(few, trials=tuple(replace(one, on_front=one.on_front and one.number < 16) for one in made))


def measure(count: int) -> dict[str, Any]:
    results = many(count)
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        path, start = Path(directory) / "report.html", time.perf_counter()
        write_report(results, recommendation(results), path, evidence(results))
        written = time.perf_counter() - start
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        opened, processor, first, first_processor, drawn = [], [], [], [], []
        for _ in range(3):
            page = browser.new_page(viewport={"width": 1200, "height": 900})
            inspector = page.context.new_cdp_session(page)
            inspector.send("Performance.enable", {"timeDomain": "threadTicks"})
            start = time.perf_counter()
            page.goto(path.as_uri())
            page.wait_for_selector("html[data-plots]")
            opened.append(time.perf_counter() - start)
            processor.append(_processor(inspector))
            for number, place in enumerate(page.query_selector_all(".plot")):
                place.scroll_into_view_if_needed()
                page.wait_for_selector(f"#{place.get_attribute('id')} svg.main-svg")
                if not number:
                    first.append(time.perf_counter() - start)
                    first_processor.append(_processor(inspector))
            drawn.append(time.perf_counter() - start)
            page.close()
        browser.close()
        return {
            "trials": count,
            "bytes": path.stat().st_size,
            "write_seconds": round(written, 2),
            "open_seconds": [round(seconds, 2) for seconds in opened],
            "open_processor_seconds": [round(seconds, 2) for seconds in processor],
            "first_figure_seconds": [round(seconds, 2) for seconds in first],
            "first_figure_processor_seconds": [round(seconds, 2) for seconds in first_processor],
            "all_figures_seconds": [round(seconds, 2) for seconds in drawn],
        }


def _processor(inspector: CDPSession) -> float:
    """Seconds of the page's main thread so far."""
    metrics = inspector.send("Performance.getMetrics")["metrics"]
    return float(next(one["value"] for one in metrics if one["name"] == "TaskDuration"))


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)))
