"""A study of sixteen trials, written by hand: feasible, infeasible, stopped early and failed ones, and validations."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from reports.evidence import Evidence
from tests.tuner.builders import answered, failed, measurement
from tuner.alternatives import Alternative, Label
from tuner.recommend import Gain, Recommendation
from tuner.results import StudyResults, TrialResult, ValidationResult
from tuner.scoring.metrics import ClassMetrics, Interval, TrafficMetrics
from tuner.scoring.probes import ProbeRecord
from tuner.scoring.quality import QualityScore, SliceQuality
from tuner.scoring.speculation import DomainSpeculation
from tuner.serving.adapters import Memory
from tuner.serving.config import ServingConfig
from tuner.spec import StudySpec, parse_spec
from tuner.stored import Failure, StoredMeasurement, StoredVerification, ValidationFailure
from tuner.traffic.trace import RequestRecord
from tuner.worth import proven

RECOMMENDED = 9
SLOS = {"chat": {"ttft": 0.5, "tpot": 0.05, "attainment": 0.95}, "documents": {"ttft": 2.0, "attainment": 0.9}}

# number, state, (seqs, batched tokens, chunk, kv dtype, window, speculative tokens), goodput, quality, tail, reason
TRIALS: list[tuple[int, str, tuple[Any, ...], float, float, float, str | None]] = [
    (0, "infeasible", (16, 512, None, "auto", None, 0), 3.2, 1.0, 1.42, None),
    (1, "infeasible", (4, 128, 64, "int8", None, 2), 2.1, 0.9991, 2.6, None),
    (2, "failed", (64, 512, 128, "float32", None, 6), 0, 0, 0, "out_of_memory"),
    (3, "feasible", (32, 256, 64, "int8", None, 0), 4.4, 0.9987, 0.48, None),
    (4, "infeasible", (32, 256, 64, "int8", 128, 0), 5.3, 0.71, 0.31, None),
    (5, "feasible", (48, 512, 64, "bfloat16", None, 2), 4.9, 0.9996, 0.44, None),
    (6, "infeasible", (8, 128, 32, "fp8_e4m3", None, 4), 2.6, 0.994, 1.9, "hopeless_replay"),
    (7, "failed", (64, 1024, None, "fp8_e4m3", None, 0), 0, 0, 0, "engine_crashed"),
    (8, "feasible", (64, 256, 32, "fp8_e4m3", None, 2), 5.2, 0.9936, 0.39, None),
    (9, "feasible", (64, 256, 64, "int8", None, 3), 5.6, 0.9985, 0.36, None),
    (10, "infeasible", (64, 256, 64, "int8", 256, 3), 5.8, 0.83, 0.29, None),
    (11, "feasible", (48, 256, 64, "int8", 512, 3), 5.4, 0.992, 0.35, None),
    (12, "failed", (96, 1024, 256, "int8", None, 3), 0, 0, 0, "engine_hung"),
    (13, "feasible", (64, 384, 96, "bfloat16", None, 3), 5.1, 0.9997, 0.42, None),
    (14, "infeasible", (96, 384, 128, "float16", None, 6), 3.9, 1.0, 0.98, None),
    (15, "failed", (96, 768, 128, "float32", None, 6), 0, 0, 0, "out_of_memory"),
]
KNOBS = ("max_num_seqs", "max_num_batched_tokens", "prefill_chunk_size", "kv_cache_dtype", "kv_window",
         "num_speculative_tokens")  # fmt: skip
FRONT = {5, 9, 13}


def spec(**changes: Any) -> StudySpec:
    values: dict[str, Any] = {
        "name": "demo",
        "model": "mini",
        "traffic": {"trace": "trace.jsonl"},
        "slos": SLOS,
        "quality": {"probes": "probes.jsonl"},
        "search_space": {},
        "tail": {"slo_class": "chat"},
    }
    return parse_spec({**values, **changes}, source="test", base=Path("/studies"))


def slo_class(name: str, share: float, tail: float, offered: int = 240) -> ClassMetrics:
    target = SLOS[name]["attainment"]
    good = round(share * offered)
    spread = 1.96 * (share * (1 - share) / offered) ** 0.5
    attainment = Interval(good / offered, max(0.0, share - spread), min(1.0, share + spread))
    table = {"ttft": {50: tail / 3, 95: tail, 99: tail * 1.3}, "tpot": {50: 0.021, 95: 0.02 + tail / 40, 99: 0.07}}
    return ClassMetrics(name, offered, offered - 3, good, {"timeout": 3}, attainment, target, target - share, table)


def traffic(goodput: float, tail: float, share: float) -> TrafficMetrics:
    classes = {
        "chat": slo_class("chat", share, tail),
        "documents": slo_class("documents", min(1.0, share + 0.02), tail * 3, 41),
    }
    rates = Interval(goodput, goodput * 0.96, goodput * 1.03)
    return TrafficMetrics(48.0, 6.1, rates, goodput * 31, classes, classes, {50: 0.0004, 95: 0.0011, 99: 0.0031})


def quality(value: float) -> QualityScore:
    loss = (1 - value) / 2
    forced = [
        SliceQuality(name, "forced", 24, loss * weight + 0.002 - 0.02, 0.02, loss * weight, loss * weight + 0.002, 0.01)
        for name, weight in (("chat", 1.0), ("code", 1.6), ("story", 0.8))
    ]
    kept = max(0.0, 1 - 4 * (1 - value))
    missed = 0.9 - kept + 0.03
    recall = SliceQuality("recall", "recall", 60, missed, 0.9, None, None, None, kept, 0.98, kept, kept - 0.03)
    return QualityScore(value, value - 0.002, min(1.0, value + 0.001), (*forced, recall))


def trial(
    number: int, state: str, values: tuple[Any, ...], goodput: float, quality_: float, tail: float, reason: str | None
) -> TrialResult:
    knobs = dict(zip(KNOBS, values, strict=True))
    if state == "failed":
        detail = f"the engine ended with {reason}"
        return TrialResult(number, "failed", knobs, None, {}, None, None, reason, detail, {"reconfigure": 1.2})
    share = 0.975 if state == "feasible" else (0.55 if quality_ > 0.9 else 0.96)
    measured, answers = traffic(goodput, tail, share), quality(quality_)
    constraints = {f"slo:{name}": one.violation for name, one in measured.classes.items()}
    constraints |= {f"quality:{one.name}": one.violation for one in answers.slices}
    return TrialResult(
        number,
        "feasible" if state == "feasible" else "infeasible",
        knobs,
        (goodput, quality_, tail),
        constraints,
        measured,
        answers,
        reason,
        "stopped after 40 of 281 requests" if reason else None,
        {"reconfigure": 0.4, "replay": 9.5, "quality": 1.3},
        ("few_requests: 41 requests of documents; 59 are needed to prove 0.95",) if number in (0, RECOMMENDED) else (),
        number in FRONT,
        time_scale=4.0,
        missed_scale=4.6 if number == RECOMMENDED else None,
    )


def validation(number: int, purpose: str, scale: float, share: float) -> ValidationResult:
    measured = traffic(4.0 if purpose == "holdout" else 1.4, 0.4, share)
    constraints = {f"slo:{name}": one.violation for name, one in measured.classes.items()}
    window = "holdout" if purpose == "holdout" else "tune"
    return ValidationResult(number, purpose, window, scale, measured, constraints, 0.4)


def varied(purpose: str, name: str, scale: float, share: float) -> ValidationResult:
    """A variation of the recommendation."""
    rate = {4.0: 5.6, 3.5: 4.8}[scale]
    like = validation(RECOMMENDED, purpose, scale, share)
    return replace(like, window=name, traffic=traffic(rate * share, 0.4, share))


def study(**changes: Any) -> StudyResults:
    values: Mapping[str, Any] = {
        "spec": spec(),
        "trials": tuple(trial(*row) for row in TRIALS),
        "validations": (
            validation(0, "calibration", 2.0, 0.99),
            validation(0, "calibration", 4.0, 0.6),
            validation(0, "holdout", 4.0, 0.52),
            validation(RECOMMENDED, "holdout", 4.0, 0.962),
            validation(0, "recorded_rate", 1.0, 0.995),
            validation(RECOMMENDED, "recorded_rate", 1.0, 0.998),
            varied("ablation", "without kv_cache_dtype", 4.0, 0.5),
            varied("ablation", "without kv_cache_dtype", 3.5, 0.97),
            varied("ablation", "without num_speculative_tokens", 4.0, 0.98),
            varied("ablation", "without max_num_seqs", 4.0, 0.3),
            varied("scenario", "the requests in another order", 4.0, 0.96),
            varied("scenario", "next to it: max_num_seqs 32", 4.0, 0.4),
        ),
        "time_scale": 4.0,
        "environment": {"cpu": "2 cores", "python": "3.11.7", "versions": {"torch": "2.13.0", "optuna": "5.0.0"}},
        "provenance": {"trace": "sha256 4f1c…", "commit": "bf0b3f6"},
    }
    return StudyResults(**{**values, **changes})


def recommendation(results: StudyResults, number: int | None = RECOMMENDED) -> Recommendation:
    if number is None:
        return Recommendation(
            None,
            "No recommendation: nothing is feasible.",
            ("slo:chat is missed by all trials.",),
            least_violating=results.trials[3],
            binding_constraint="slo:chat",
            binding_violation=0.21,
        )
    chosen = next(t for t in results.trials if t.number == number)
    reasons = ("It meets all 6 constraints.", "Quality 0.9985 (0.9965 to 0.9995) of the full-precision reference.")
    verdict = "Deploy trial 9: 5.60 good requests/s (5.38 to 5.77) where the baseline serves 3.20."
    gains = (
        Gain("goodput", "requests/s", 3.2, 5.6, Interval(3.2, 3.07, 3.3), Interval(5.6, 5.38, 5.77)),
        Gain("chat p95 ttft at the recorded rate", "s", 1.42, 0.36),
        Gain("quality", "", None, 0.9985, None, Interval(0.9985, 0.9965, 0.9995)),
    )
    sizes = {9: 37_000, 13: 74_000, 11: 21_000}
    labels: dict[int, tuple[Label, ...]] = {
        9: ("knee",),
        13: ("best quality",),
        11: ("lowest latency", "lowest memory"),
    }
    others = tuple(
        Alternative(one, labels[one.number], proven(results, one),
                    Memory(7_000_000, 6_000_000, sizes[one.number]), tested=one.number == 9)
        for one in (chosen, *(t for t in results.trials if t.number in labels and t is not chosen))
        if one.traffic is not None and one.number in labels
    )  # fmt: skip
    return Recommendation(chosen, verdict, reasons, gains=gains, deployable=True, alternatives=others)


def records(ttft: float, classes: tuple[str, ...] = ("chat", "documents")) -> tuple[RequestRecord, ...]:
    """Forty answered requests of each class, the i-th after (i + 1) / 20 times `ttft`, and one that failed."""
    answers = [
        answered(ttft * (i + 1) / 20, gaps=(0.01, 0.02 + i / 1000), name=f"{name}-{i}", slo_class=name)
        for name in classes
        for i in range(40)
    ]
    return (*answers, failed(name="lost", slo_class=classes[0]))


def needles(kept: int) -> tuple[ProbeRecord, ...]:
    """Twelve needles, at three depths of prompts of 200 and 500 tokens each; the first `kept` are found."""
    places = [(depth, length) for depth in (0.0, 0.2, 0.95) for length in (200, 500) for _ in range(2)]
    return tuple(
        ProbeRecord(f"n{i}", "recall", "recall", correct=i < kept, depth=depth, length=length)
        for i, (depth, length) in enumerate(places)
    )


def stored(
    results: StudyResults, number: int | None, purpose: str, scale: float, minute: int, **changes: Any
) -> StoredMeasurement:
    """Minute: of the hour in which the study ran, when the measurement was stored."""
    knobs = results.trials[number or 0].knobs
    made = measurement(
        records(0.3 if number == RECOMMENDED else 1.2), config=ServingConfig("bundled", {}, knobs), purpose=purpose,
        time_scale=scale, seconds={"reconfigure": 1.0, "replay": 20.0, "quality": 9.0}, **changes,
    )  # fmt: skip
    return StoredMeasurement(minute, number, made, None, f"2026-11-21T12:{minute:02}:00.000+00:00")


def evidence(results: StudyResults) -> Evidence:
    """Raw records of baseline and recommendation, of a climb, of failures and of speculation."""
    guesses = (DomainSpeculation("code", 4, 4, 0, 3, 300, 240, 0.02, 0.01),
               DomainSpeculation("prose", 4, 3, 1, 3, 300, 60, 0.02, 0.01))  # fmt: skip
    measured = (
        stored(results, None, "calibration", 2.0, 1),
        stored(results, 0, "baseline", 4.0, 3, probes=needles(12)),
        stored(results, RECOMMENDED, "trial", 4.0, 6, probes=needles(9)),
        stored(results, RECOMMENDED, "trial", 4.6, 7, stopped="slo_unreachable"),
        stored(results, 0, "recorded_rate", 1.0, 8),
        stored(results, RECOMMENDED, "recorded_rate", 1.0, 9, speculation=guesses),
    )
    lost = [t for t in results.trials if t.state == "failed"]
    failures = tuple(
        Failure(t.number, t.reason or "", t.detail or "", {"total": 12.0}, ServingConfig("bundled", {}, t.knobs),
                f"2026-11-21T12:{4 + i // 30:02}:{i % 30 + 10}.000+00:00")
        for i, t in enumerate(lost)
    )  # fmt: skip
    return Evidence(measured, failures, needles(11), **verified(results))


def verified(results: StudyResults) -> dict[str, Any]:
    """Two verifications: a week later all is well, two weeks later the traffic's answers come late."""
    replays = (
        stored(results, 0, "verify", 4.0, 50),
        stored(results, RECOMMENDED, "verify", 4.0, 51),
        stored(results, 0, "verify", 3.5, 52),
        stored(results, RECOMMENDED, "verify", 3.5, 53, probes=needles(3)),
    )
    early, late = (
        replace(one, measurement=replace(one.measurement, records=records(ttft)))
        for one, ttft in ((replays[1], 0.2), (replays[3], 4.0))
    )
    asked = (
        StoredVerification(RECOMMENDED, "holdout", 4.0, "/traces/trace.jsonl", "aa", "no probes", (50, 51), None,
                           "2026-11-28T08:00:00.000+00:00"),
        StoredVerification(RECOMMENDED, "new", 3.5, "/traces/week-2.jsonl", "bb", "key", (52, 53), None,
                           "2026-12-05T08:30:00.000+00:00"),
    )  # fmt: skip
    return {
        "verifications": asked,
        "verified": (replays[0], early, replays[2], late),
        "references": {"key": needles(11)},
    }


VECTORS = (
    "<script>window.pwned=1</script>",
    "</script><script>window.pwned=2</script>",
    "<img src=x onerror=window.pwned=3>",
    "\"><svg onload=window.pwned=4>",
    "' onmouseover='window.pwned=5",
    "<a href=\"javascript:window.pwned=6\">x</a>",
    "<a href=\"https://example.com/\">x</a>",
    "<!--<script>",
    "{{ 7 * 7 }}{% raw %}",
    "%{customdata[0]}<extra></extra>",
    "&lt;script&gt;window.pwned=7&lt;/script&gt;",
    "$\\href{javascript:window.pwned=8}{x}$",
    "</title><iframe src=//example.com>",
    "]]><script>window.pwned=9</script>",
    "javascript:window.pwned=10",
    "<svg><script>window.pwned=11</script></svg>",
    "<math><mtext></mtext><mglyph><style><img src onerror=window.pwned=12>",
    "<details open ontoggle=window.pwned=13>",
    "<input autofocus onfocus=window.pwned=14>",
    "<style>@import '//example.com/x.css';</style>",
    "<link rel=stylesheet href=//example.com/x.css>",
    "<base href=//example.com/>",
    "<meta http-equiv=refresh content='0;url=//example.com'>",
    "<object data=//example.com></object>",
    "<form action=//example.com><button>go</button></form>",
    "\\u003cscript>window.pwned=15\\u003c/script>",
    "${window.pwned=16}",
    "\u2028window.pwned=17//",
    "\u202e<b onclick=window.pwned=18>",
)  # fmt: skip


WRAPPINGS = ("{}", "a{}", '">{}', "'>{}", "-->{}", "</title>{}", "]]>{}", "{}\\")
PAYLOADS = tuple(dict.fromkeys(wrapping.replace("{}", vector) for wrapping in WRAPPINGS for vector in VECTORS))
"""More than two hundred strings that mean harm where they are not escaped."""


def hostile_study() -> tuple[StudyResults, tuple[str, ...]]:
    """The study with payloads wherever a string comes from a file, an engine or a user."""
    clean = study()
    nasty = itertools.cycle(PAYLOADS)
    first, second = PAYLOADS[:2]
    names = {"chat": first, "documents": second}

    def classes(metrics: TrafficMetrics) -> TrafficMetrics:
        renamed = {names[name]: replace(one, name=names[name]) for name, one in metrics.classes.items()}
        some = next(iter(metrics.tenants.values()))
        tenants = {name: replace(some, name=name) for name in (next(nasty) for _ in range(9))}
        return replace(metrics, classes=renamed, tenants=tenants)

    trials = []
    for one in clean.trials:
        knobs = {**one.knobs, **{payload: next(nasty) for payload in PAYLOADS[:7]}, PAYLOADS[7]: one.number}
        slices = one.quality and tuple(replace(s, name=next(nasty)) for s in one.quality.slices)
        trials.append(
            replace(
                one,
                knobs=knobs,
                constraints={next(nasty): value for value in one.constraints.values()},
                reason=next(nasty),
                detail=next(nasty),
                doubts=(next(nasty),),
                traffic=one.traffic and classes(one.traffic),
                quality=one.quality and replace(one.quality, slices=slices or ()),
            )
        )
    validations = tuple(
        replace(v, window=next(nasty), traffic=classes(v.traffic), constraints={next(nasty): 1.0})
        for v in clean.validations
    )
    broken = ValidationFailure(RECOMMENDED, "repeat", next(nasty), 4.0, next(nasty), next(nasty))
    facts = {payload: payload for payload in PAYLOADS}
    hostile = spec(
        model=PAYLOADS[5], slos={names[name]: slo for name, slo in SLOS.items()}, tail={"slo_class": first},
        engine={"settings": {PAYLOADS[6]: PAYLOADS[7]}},
    )  # fmt: skip
    return replace(clean, spec=hostile, trials=tuple(trials), validations=validations, environment=facts,
                   provenance=facts, validation_failures=(broken,)), PAYLOADS  # fmt: skip


def hostile_evidence(results: StudyResults) -> Evidence:
    """Raw records of which every string means harm."""
    clean, nasty = evidence(results), itertools.cycle(PAYLOADS)

    def spoiled(one: StoredMeasurement) -> StoredMeasurement:
        guesses = tuple(replace(domain, slice=next(nasty)) for domain in one.measurement.speculation)
        answers = records(0.4, PAYLOADS[:2])
        made = replace(one.measurement, records=answers, speculation=guesses, window=next(nasty), stopped=next(nasty))
        return replace(one, measurement=made)

    failures = tuple(replace(one, reason=next(nasty), detail=next(nasty)) for one in clean.failures)
    asked = tuple(replace(one, trace=next(nasty), window="new", failure=next(nasty)) for one in clean.verifications)
    spoilt = (tuple(map(spoiled, measured)) for measured in (clean.measured, clean.verified))
    return Evidence(*(next(spoilt), failures, clean.reference, asked, next(spoilt), clean.references))
