"""A study of sixteen trials, written by hand: feasible, infeasible, stopped early and failed ones, and validations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuner.recommend import Recommendation
from tuner.results import StudyResults, TrialResult, ValidationResult
from tuner.scoring.metrics import ClassMetrics, Interval, TrafficMetrics
from tuner.scoring.quality import QualityScore, SliceQuality
from tuner.spec import StudySpec, parse_spec

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
    )


def validation(number: int, purpose: str, scale: float, share: float) -> ValidationResult:
    measured = traffic(4.0 if purpose == "holdout" else 1.4, 0.4, share)
    constraints = {f"slo:{name}": one.violation for name, one in measured.classes.items()}
    window = "holdout" if purpose == "holdout" else "tune"
    return ValidationResult(number, purpose, window, scale, measured, constraints)


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
    return Recommendation(chosen, verdict, reasons, deployable=True)


PAYLOADS = (
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
)  # fmt: skip


def hostile_study() -> tuple[StudyResults, tuple[str, ...]]:
    """The study with payloads wherever a string comes from a file, an engine or a user."""
    clean = study()
    nasty = iter(PAYLOADS * 40)

    def classes(metrics: TrafficMetrics) -> TrafficMetrics:
        renamed = dict(zip(PAYLOADS, metrics.classes.values(), strict=False))
        return replace(metrics, classes=renamed)

    trials = []
    for one in clean.trials:
        knobs = {**one.knobs, **{payload: next(nasty) for payload in PAYLOADS[:4]}, PAYLOADS[4]: one.number}
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
    facts = {payload: payload for payload in PAYLOADS}
    return replace(clean, trials=tuple(trials), validations=validations, environment=facts, provenance=facts), PAYLOADS
