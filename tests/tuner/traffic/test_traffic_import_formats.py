"""Each format that is imported: a fixture of ours in its layout, and the published file where this machine has it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from typer.testing import CliRunner

from tuner.cli.__main__ import app
from tuner.cli.trace_import import FormatName
from tuner.traffic.importers.importer import FORMATS, Imported, import_trace
from tuner.traffic.importers.options import ImportOptions
from tuner.traffic.trace import Request, Trace
from tuner.traffic.trace_file import load_trace, save_trace

FIXTURES = Path(__file__).parent / "fixtures"
PUBLISHED = Path("/work/shared/traces")


def imported(name: str, format: str, **options: Any) -> Imported:
    return import_trace(FIXTURES / name, format, ImportOptions(**options))


def turns(trace: Trace) -> list[tuple[float, str | None, float | None]]:
    return [(round(r.arrival, 6), r.session, r.think_time) for r in trace.requests]


def lengths(trace: Trace) -> list[tuple[int | None, int | None]]:
    return [(r.prompt_tokens, r.output_tokens) for r in trace.requests]


def shared(first: Request, second: Request) -> int:
    """Leading tokens that two prompts have in common."""
    pairs = zip(first.prompt, second.prompt, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first.prompt), len(second.prompt)))


CSV_MAP = ["--map", "arrival=TIMESTAMP", "--unit", "arrival=iso", "--map", "prompt_tokens=ContextTokens"]
CSV_MAP += ["--map", "output_tokens=GeneratedTokens"]
JSON_MAP = ["--map", "arrival=msec", "--unit", "arrival=ms", "--map", "prompt_tokens=upstream.usage.in"]
TIMED_MAP = ["--map", "arrival=ts", "--unit", "arrival=s", "--map", "prompt_tokens=isl", "--map", "output_tokens=osl"]
EVERY = [
    # (fixture, format, options that it needs, requests)
    ("azure_small.csv", "azure", [], 4),
    ("azure_2024.csv", "azure", [], 3),
    ("mooncake_small.jsonl", "mooncake", [], 12),
    ("bailian_small.jsonl", "bailian", [], 5),
    ("burstgpt_v11.csv", "burstgpt", [], 4),
    ("burstgpt_v12.csv", "burstgpt", [], 5),
    ("servegen-trace.csv", "servegen", ["--window", "0:1800"], 450),
    ("weka_small", "weka", ["--rate", "0.1"], 7),
    ("sharegpt_small.json", "sharegpt", ["--rate", "1", "--max-tokens", "32"], 3),
    ("vllm_custom.jsonl", "vllm-custom", ["--rate", "1", "--max-tokens", "32"], 2),
    ("vllm_timed_trace.jsonl", "vllm-timed-trace", [*TIMED_MAP, "--block-tokens", "16"], 2),
    ("openai_batch.jsonl", "openai-batch", ["--rate", "1"], 2),
    ("litellm_small.csv", "litellm", [], 3),
    ("otel_otlp.json", "otel", [], 2),
    ("otel_older.jsonl", "otel", [], 2),
    ("lengths_small.csv", "lengths", ["--rate", "1"], 3),
    ("azure_small.csv", "csv", CSV_MAP, 4),
    ("gateway_log.jsonl", "jsonl", [*JSON_MAP, "--max-tokens", "9"], 2),
]


@pytest.mark.parametrize(("name", "format", "options", "count"), EVERY, ids=[f"{row[1]}: {row[0]}" for row in EVERY])
def test_each_format_comes_through_the_command_line(
    name: str, format: str, options: list[str], count: int, tmp_path: Path
) -> None:
    out = tmp_path / "trace.jsonl"
    command = ["trace", "import", str(FIXTURES / name), "--format", format, "--out", str(out), *options]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    trace = load_trace(out)
    assert len(trace.requests) == count
    assert trace.provenance["source"] == FORMATS[format].cite
    save_trace(trace, tmp_path / "again.jsonl")
    assert load_trace(tmp_path / "again.jsonl") == trace


def test_the_command_line_and_these_tests_know_every_format() -> None:
    assert set(get_args(FormatName)) == set(FORMATS) == {row[1] for row in EVERY}


def test_azure_2024_has_zones_and_may_be_out_of_order() -> None:
    found = imported("azure_2024.csv", "azure").trace
    assert [r.arrival for r in found.requests] == [0.0, 0.92007, 1.49107]
    assert lengths(found) == [(2162, 5), (300, 12), (40, 700)]


def test_bailian_shares_blocks_of_16_and_chains_turns() -> None:
    trace = imported("bailian_small.jsonl", "bailian").trace
    assert turns(trace) == [(0.0, "159", None), (0.386, None, None), (13.906, "159", None), (29.136, "159", None),
                            (29.886, None, None)]  # fmt: skip
    a, b, c, d, _ = trace.requests
    assert (shared(a, b), shared(a, c), shared(c, d)) == (16, 32, 48)


def test_burstgpt_goes_by_names_and_leaves_failures_out() -> None:
    first = imported("burstgpt_v11.csv", "burstgpt")
    assert lengths(first.trace) == [(472, 18), (1087, 230), (417, 276), (185, 215)]
    assert first.left_out == {"failed, no response tokens": 1}
    assert "1 s ticks" in str(first.trace.provenance["jitter"])
    second = imported("burstgpt_v12.csv", "burstgpt", columns={"tenant": "Model"}).trace
    assert turns(second) == [(0.0, "71", None), (0.75, None, None), (25.0, "71", 21.0), (27.5, None, None),
                             (54.5, None, None)]  # fmt: skip
    assert second.tenants == ("ChatGPT", "GPT-4")


def test_servegen_windows_hold_what_was_counted_with_their_own_lengths() -> None:
    trace = imported("servegen-trace.csv", "servegen", end=1800.0, seed=3).trace
    counts = np.histogram([r.arrival for r in trace.requests], bins=[0, 600, 1200, 1800])[0]
    assert counts.tolist() == [300, 0, 150]
    assert {r.prompt_tokens for r in trace.requests[:300]} == {10, 30}
    assert {r.prompt_tokens for r in trace.requests[300:]} == {500}
    ones = [r.output_tokens == 1 for r in trace.requests[300:]]
    assert np.mean(ones) == pytest.approx(0.25, abs=0.1)
    cut = imported("servegen-trace.csv", "servegen", start=1200.0, end=1800.0, seed=3).trace
    assert [r.arrival + 1200 for r in cut.requests] == pytest.approx([r.arrival for r in trace.requests[300:]])
    with pytest.raises(ValueError, match="--window START:END or --limit: expected one"):
        imported("servegen-trace.csv", "servegen")


@pytest.mark.parametrize(("family", "shape", "cv"), [("Gamma", 0.25, 2.0), ("Weibull", 0.5, 5**0.5), ("", 0, 1.0)])
def test_servegen_gaps_have_the_cv_of_their_family(family: str, shape: float, cv: float, tmp_path: Path) -> None:
    """scipy.stats is the oracle of the CVs: gamma(0.25), weibull_min(0.5), expon."""
    (tmp_path / "c-trace.csv").write_text(f"0,20,{cv},{family},{shape},9\n")
    (tmp_path / "c-dataset.json").write_text('{"0": {"input_tokens": "{9: 1.0}", "output_tokens": "{1: 1.0}"}}')
    trace = import_trace(tmp_path / "c-trace.csv", "servegen", ImportOptions(end=600.0)).trace
    gaps = np.diff([r.arrival for r in trace.requests])
    assert len(trace.requests) == 12_000
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.08)


def test_servegen_windows_of_one_kind_are_drawn_apart(tmp_path: Path) -> None:
    (tmp_path / "c-trace.csv").write_text("0,0.5,1,Gamma,1,9\n600,0.5,1,Gamma,1,9\n")
    (tmp_path / "c-dataset.json").write_text('{"0": {"input_tokens": "{9: 1.0}", "output_tokens": "{1: 1.0}"}}')
    found = import_trace(tmp_path / "c-trace.csv", "servegen", ImportOptions(end=1200.0)).trace.requests
    first, second = ([r.arrival - start for r in found if 0 <= r.arrival - start < 600] for start in (0, 600))
    assert len(first) == len(second) == 300
    assert not np.allclose(first, second)


def test_servegen_lengths_are_read_never_run(tmp_path: Path) -> None:
    (tmp_path / "c-trace.csv").write_text("0,1,1,Gamma,1,1\n")
    text = "__import__('os').system('touch ran')"
    (tmp_path / "c-dataset.json").write_text(json.dumps({"0": {"input_tokens": text, "output_tokens": text}}))
    with pytest.raises(ValueError, match="0.input_tokens: expected a text as"):
        import_trace(tmp_path / "c-trace.csv", "servegen", ImportOptions(end=600.0))


def test_weka_sessions_are_closed_loops_with_their_own_hashes() -> None:
    trace = imported("weka_small", "weka", rate=0.001).trace
    assert [(r.session, r.think_time) for r in trace.requests if r.session != "session_b"] == [
        ("session_a", None),
        ("session_a", 3.0),
        ("session_a/explore", None),
        ("session_a/explore", 1.0),
        ("session_a", 12.0),  # none is told: from 9, when the turn before ended, to 21
    ]
    a = [r for r in trace.requests if r.session == "session_a"]
    b = [r for r in trace.requests if r.session == "session_b"]
    assert [r.arrival - a[0].arrival for r in a] == [0.0, 6.0, 21.0]
    assert (a[1].output_tokens, a[1].prompt_tokens) == (1, 200)
    assert shared(a[0], a[1]) == 128, "two full blocks of 64 and not the tail"
    assert shared(a[1], a[2]) == 192
    assert shared(a[0], b[0]) < 4, "hash ids of different sessions mean different tokens"
    assert shared(b[0], b[1]) == 128


def test_one_weka_session_needs_no_rate() -> None:
    trace = imported("weka_small/session_b.json", "weka").trace
    assert turns(trace) == [(0.0, "session_b", None), (4.0, "session_b", 1.0)]


def test_sharegpt_turns_carry_what_was_said_before() -> None:
    found = imported("sharegpt_small.json", "sharegpt", rate=1.0, max_tokens=32, think_time=5.0)
    first, second, third = sorted(found.trace.requests, key=lambda r: (r.session is None, r.arrival))
    assert [m["role"] for m in second.prompt if isinstance(m, dict)] == ["user", "assistant", "user"]
    assert (first.reference, second.reference) == ("To the island.", "At nine, and again at noon.")
    assert (first.session, second.session, second.think_time, third.session) == ("c1_0", "c1_0", 5.0, None)
    assert second.arrival == first.arrival + 5.0
    assert [m["role"] for m in third.prompt if isinstance(m, dict)] == ["system", "user"]
    assert found.left_out == {"no question with an answer": 1}
    with pytest.raises(ValueError, match="item 1: tells neither max_tokens nor its answer's length"):
        imported("sharegpt_small.json", "sharegpt", rate=1.0)


def test_timed_trace_with_other_names() -> None:
    columns = {"arrival": "ts", "prompt_tokens": "isl", "output_tokens": "osl"}
    options: dict[str, Any] = {"columns": columns, "units": {"arrival": "s"}}
    trace = imported("vllm_timed_trace.jsonl", "vllm-timed-trace", block_tokens=16, **options).trace
    assert [r.arrival for r in trace.requests] == [0.0, 0.3]
    assert shared(*trace.requests) == 32
    with pytest.raises(ValueError, match="--block-tokens: expected"):
        imported("vllm_timed_trace.jsonl", "vllm-timed-trace", **options)


def test_openai_batch_keeps_what_its_bodies_ask_for() -> None:
    found = imported("openai_batch.jsonl", "openai-batch", rate=1.0)
    chat, plain = found.trace.requests
    assert chat.prompt == ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Greet me."})
    assert (chat.id, chat.tenant, chat.endpoint) == ("task-0", "acme", "chat")
    assert (chat.max_tokens, chat.temperature, chat.seed, chat.output_tokens) == (9, 0.2, 7, None)
    assert (plain.prompt, plain.endpoint, plain.temperature) == ("Once upon", "completions", 1.0)
    assert found.left_out == {"no completion": 1, "same id as a row before": 1}


def litellm_json(tmp_path: Path) -> Path:
    with (FIXTURES / "litellm_small.csv").open() as file:
        rows = [{**row, "prompt_tokens": int(row["prompt_tokens"])} for row in csv.DictReader(file)]
    path = tmp_path / "spend.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize("form", ["csv", "json"])
def test_litellm_gives_sessions_tenants_and_no_private_column(form: str, tmp_path: Path) -> None:
    path = FIXTURES / "litellm_small.csv" if form == "csv" else litellm_json(tmp_path)
    found = import_trace(path, "litellm", ImportOptions())
    assert turns(found.trace) == [(0.0, "s-1", None), (0.75, None, None), (7.0, "s-1", 5.0)]
    assert [(r.id, r.tenant) for r in found.trace.requests] == [("r-1", "red"), ("r-2", "blue"), ("r-3", "red")]
    assert found.left_out == {
        "failed": 1, "answered from the proxy's cache": 1, "no completion": 1, "same id as a row before": 1,
    }  # fmt: skip
    assert "ann@" not in str(found.trace)


def test_otlp_spans_with_current_names() -> None:
    found = imported("otel_otlp.json", "otel", columns={"tenant": "team"})
    first, second = found.trace.requests
    assert first.prompt == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it open?"})
    assert (first.prompt_tokens, first.output_tokens, first.reference, first.tenant) == (31, 12, "Until six.", "red")
    assert first.temperature == 0.5
    assert turns(found.trace) == [(0.0, "conv-9", None), (5.0, "conv-9", 3.0)]
    assert (second.prompt_tokens, second.max_tokens, second.output_tokens) == (55, 64, 3)
    assert isinstance(second.prompt[0], int), "a tool call is no text: the length stands alone"
    assert found.trace.provenance["lengths_only"] == 1
    assert found.left_out == {"failed": 1, "no completion": 1}


def test_spans_with_older_names_and_a_parent_instead_of_a_conversation() -> None:
    found = imported("otel_older.jsonl", "otel")
    first, second = found.trace.requests
    assert first.prompt == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"})
    assert lengths(found.trace) == [(12, 4), (20, 6)]
    assert turns(found.trace) == [(0.0, "0x01", None), (3.5, "0x01", 2.0)]
    assert first.reference == "Because."
    assert found.left_out == {"no completion": 1}


def test_a_turn_that_did_not_wait_becomes_a_session_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    calls = [(0, 10), (12, 20), (15, 30), (33, 40), (21, 25)]
    path.write_text("at,until,s,n\n" + "".join(f"{start},{end},x,4\n" for start, end in calls))
    columns = {"arrival": "at", "end": "until", "session": "s", "prompt_tokens": "n"}
    options = ImportOptions(columns=columns, units={"arrival": "s", "end": "s"}, max_tokens=1)
    trace = import_trace(path, "csv", options).trace
    assert turns(trace) == [
        (0.0, "x", None),
        (12.0, "x", 2.0),
        (15.0, "x#2", None),
        (21.0, "x", 1.0),
        (33.0, "x#2", 3.0),
    ]
    assert "parallel_turns" in trace.provenance


LENGTHS_ONLY, SERVEGEN = "lengths_only/{}_lengths_rows0-4999.csv", "servegen/language__m-large__chunk-34-trace.csv.gz"
TIMED = {"units": {"arrival": "ms"}, "block_tokens": 512}
AZURE_COLUMNS = {
    "columns": {"arrival": "TIMESTAMP", "prompt_tokens": "ContextTokens", "output_tokens": "GeneratedTokens"},
    "units": {"arrival": "iso"},
}
STATISTICS = [
    # file, format, options; then what README.md of /work/shared/traces says: requests, requests a second, CV of the
    # gaps (None: the file has no such clock), p50 and p90 of prompts and of answers (None: drawn from distributions)
    ("azure2023_code_rows0-3967.csv", "azure", {}, 3968, 2.93, 14.03, (1433, 5108), (13, 54)),
    ("azure2023_conv_rows0-8713.csv", "azure", {}, 8714, 5.37, 1.06, (1039, 4072), (160, 429)),
    ("mooncake_conversation_rows0-3608.jsonl.gz", "mooncake", {}, 3609, 3.046, None, (7906, 29089), (358, 605)),
    ("mooncake_synthetic_rows0-1196.jsonl.gz", "mooncake", {}, 1197, 3.647, 1.01, (2898, 35465), (172, 444)),
    ("mooncake_synthetic_rows0-1196.jsonl.gz", "vllm-timed-trace", TIMED, 1197, 3.647, 1.01, (2898, 35465), (172, 444)),
    ("azure2023_code_rows0-3967.csv", "csv", AZURE_COLUMNS, 3968, 2.93, 14.03, (1433, 5108), (13, 54)),
    ("weka_kv_cache_tester", "weka", {"rate": 0.1}, 320, None, None, (60060, 126094), (269, 960)),
    (LENGTHS_ONLY.format("sharegpt_8k"), "lengths", {"rate": 2.0}, 5000, 2.0, 1.0, (1737, 5684), (420, 848)),
    (LENGTHS_ONLY.format("bwb"), "lengths", {"rate": 2.0}, 5000, 2.0, 1.0, (1004, 1465), (1559, 2162)),
    (SERVEGEN, "servegen", {"end": 600.0}, 3890, 6.483, 0.934, None, None),
]
PROMPT_SCALE = 64
"""Lengths are cut to a 64th, so that the tests need neither the memory nor the time of the whole."""


@pytest.mark.parametrize("row", STATISTICS, ids=[f"{row[1]}: {row[0]}" for row in STATISTICS])
def test_published_files_have_their_published_statistics(row: tuple[Any, ...]) -> None:
    name, format, options, count, rate, cv, prompts, answers = row
    path = PUBLISHED / name
    if not path.exists():
        pytest.skip(f"{path} is not on this machine: the published traces are not committed")
    trace = import_trace(path, format, ImportOptions(length_scale=1 / PROMPT_SCALE, **options)).trace
    arrivals = np.array([r.arrival for r in trace.requests])
    assert len(trace.requests) == count
    if rate is not None:
        assert count / (arrivals[-1] - arrivals[0]) == pytest.approx(rate, rel=0.05 if "rate" in options else 0.01)
    if cv is not None:
        gaps = np.diff(arrivals)
        assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05 if "rate" in options else 0.02)
    for found, expected in ((0, prompts), (1, answers)):
        told = [pair[found] for pair in lengths(trace)]
        if expected is not None:
            assert np.percentile(told, [50, 90]) * PROMPT_SCALE == pytest.approx(expected, abs=PROMPT_SCALE)


def test_published_weka_sessions_have_their_published_think_times() -> None:
    path = PUBLISHED / "weka_kv_cache_tester"
    if not path.exists():
        pytest.skip(f"{path} is not on this machine: the published traces are not committed")
    trace = import_trace(path, "weka", ImportOptions(length_scale=0.001, rate=0.01)).trace
    sizes: dict[str | None, int] = {}
    for request in trace.requests:
        sizes[request.session] = sizes.get(request.session, 0) + 1
    assert (len(sizes), max(sizes.values()), np.median(list(sizes.values()))) == (20, 41, 13)
    thought = [r.think_time for r in trace.requests if r.think_time is not None]
    assert np.median([*thought, *[0.0] * 20]) == pytest.approx(11.0, abs=1.0)


SPANS = [
    ("parallel_requests", 5, 2),
    ("prefix_sharing_example", 7, 1),
    ("simple_chain", 3, 1),
    ("simple_chain_alt", 3, 1),
]


@pytest.mark.parametrize(("name", "count", "sessions"), SPANS, ids=[row[0] for row in SPANS])
def test_published_spans(name: str, count: int, sessions: int) -> None:
    path = PUBLISHED / f"otel_genai/{name}.json"
    if not path.exists():
        pytest.skip(f"{path} is not on this machine: the published traces are not committed")
    trace = import_trace(path, "otel", ImportOptions()).trace
    assert len(trace.requests) == count
    assert len({r.session for r in trace.requests} - {None}) == sessions
    assert all(r.endpoint == "chat" and r.reference for r in trace.requests)


PROMPTS = [
    # file, format, options, requests: README.md of /work/shared/traces
    ("humaneval_0-81.jsonl", "vllm-custom", {}, 82),
    ("gsm8k_test_0-399.jsonl", "jsonl", {"columns": {"prompt": "question"}}, 400),
]


@pytest.mark.parametrize(("name", "format", "options", "count"), PROMPTS, ids=[row[0] for row in PROMPTS])
def test_published_prompts(name: str, format: str, options: dict[str, Any], count: int) -> None:
    path = PUBLISHED / "prompts" / name
    if not path.exists():
        pytest.skip(f"{path} is not on this machine: the published traces are not committed")
    trace = import_trace(path, format, ImportOptions(rate=4.0, max_tokens=64, **options)).trace
    assert len(trace.requests) == count
    assert all(isinstance(request.prompt, str) and request.max_tokens == 64 for request in trace.requests)
