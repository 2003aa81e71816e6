"""Servers that cheat score no better than the honest one, and where it can be seen a doubt says so.

Every server answers the same forty requests in closed form. The honest one falls behind: from the 26th request on the
first token is late.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from tests.fakes import cases
from tuner.scoring.doubts import disqualifying, doubts
from tuner.scoring.metrics import TrafficMetrics, tail_latency, traffic_metrics
from tuner.scoring.slo import SLO
from tuner.traffic.exchange import Exchange
from tuner.traffic.http1 import ResponseReader
from tuner.traffic.trace import Request, RequestRecord

COUNT, TOKENS, PACE, SPAN = 40, 20, 0.02, 4.0
SLOS = {"chat": SLO(ttft=0.61, tpot=0.05, attainment=0.6)}
REQUESTS = [Request(f"r{i}", 0.1 * i, "t", "chat", f"prompt {i}", TOKENS, output_tokens=TOKENS) for i in range(COUNT)]
Event = tuple[float, dict[str, Any]]
Server = Callable[[int], list[Event]]
"""The number of a request -> what is sent, and how many seconds after its arrival; nothing: 503."""


def token(text: str, ids: int | None = 1, finish: str | None = None) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": finish}
    return {"choices": [choice | ({} if ids is None else {"token_ids": [7] * ids})]}


def usage(count: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": count}}


def first_token(i: int) -> float:
    return 0.1 + 0.02 * i


def answer(i: int, count: int = TOKENS, start: float | None = None, pace: float = PACE, word: str = "") -> list[Event]:
    begin = first_token(i) if start is None else start
    events = [(begin + pace * j, token(word or f"w{i}-{j} ")) for j in range(count)]
    last = events[-1][0]
    return [*events, (last, token("", 0, "length")), (last, usage(count))]


def late(i: int) -> bool:
    return first_token(i) > 0.61


def held_until_the_end(i: int) -> list[Event]:
    end = answer(i)[-1][0]
    return [(end, event) for _, event in answer(i)]


def empty_first(i: int) -> list[Event]:
    """The first token at once and without text; the other nineteen as the honest server sends them."""
    return [(0.001, token("")), *answer(i)[1:]]


def claims(i: int) -> list[Event]:
    """Two tokens at once, said to be twenty."""
    return [(0.01, token("a")), (0.02, token("b", finish="length")), (0.02, usage(TOKENS))]


def without_text(i: int) -> list[Event]:
    tokens = [(0.01 + 0.001 * j, token("")) for j in range(TOKENS)]
    return [*tokens, (0.03, token("", 0, "length")), (0.03, usage(TOKENS))]


CHEATS: list[Any] = [
    # how it cheats, the server, doubts by name
    ("drops what would be late", lambda i: [] if late(i) else answer(i), {"requests_failed"}),
    ("holds its tokens, then sends all at once", held_until_the_end, {"chunks_collapsed"}),
    ("answers from a cache, at once", lambda i: answer(i, start=0.001, pace=0.0, word="ok "), {"chunks_collapsed"}),
    ("answers all prompts alike, at a pace", lambda i: answer(i, start=0.01, word="ok "), {"answers_repeated"}),
    ("stops early", lambda i: answer(i, count=2 if late(i) else TOKENS), {"requests_failed"}),
    ("sends tokens without text", without_text, {"answers_without_text"}),
    ("sends a first token without text", empty_first, set()),
    ("sends more than it was asked for", lambda i: answer(i, count=40, pace=0.01), {"requests_failed"}),
    ("claims tokens that it does not send", claims, {"requests_failed", "usage_disagrees"}),
]


def play(server: Server) -> list[RequestRecord]:
    """The records that the replay's client makes of these answers."""
    records = []
    for i, request in enumerate(REQUESTS):
        exchange, reader = Exchange(request, request.arrival, b""), ResponseReader()
        exchange.prepare(0.0, lambda exchange: None)
        exchange.begun(request.arrival)
        events = server(i)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" if events else b"HTTP/1.1 503 Busy\r\n\r\n"
        exchange.received(reader, reader.feed(head), request.arrival)
        for time, event in events:
            data = b"data: " + msgspec.json.encode(event) + b"\n\n"
            exchange.received(reader, reader.feed(data), request.arrival + time)
        exchange.ended(None, request.arrival + (events[-1][0] if events else 0.0))
        records.append(exchange.record())
    return records


def scores(server: Server) -> tuple[float, float, float, float]:
    """Larger is better: goodput, minus tail of TTFT, minus SLO violation, tokens per second."""
    records = play(server)
    metrics = traffic_metrics(records, SLOS, SPAN)
    tail = tail_latency(records, "ttft", 95, worst=14.0)
    return metrics.goodput.value, -tail, -metrics.classes["chat"].violation, metrics.output_tokens_per_second


def found(server: Server) -> tuple[TrafficMetrics, Any]:
    records = play(server)
    metrics = traffic_metrics(records, SLOS, SPAN)
    return metrics, doubts(records, metrics, SLOS)


def test_the_honest_server_is_not_doubted() -> None:
    metrics, doubted = found(answer)
    assert (metrics.classes["chat"].good, metrics.output_tokens_per_second) == (26, COUNT * TOKENS / SPAN)
    assert doubted == ()


DISQUALIFYING = {"chunks_collapsed", "answers_repeated", "answers_without_text"}


@pytest.mark.parametrize(("server", "names"), cases(CHEATS))
def test_a_cheating_server_scores_no_better(server: Server, names: set[str]) -> None:
    _, doubted = found(server)
    assert names <= {doubt.name for doubt in doubted}
    assert (disqualifying(doubted) is not None) == bool(names & DISQUALIFYING)
    if disqualifying(doubted) is not None:
        return  # no figure of it is compared
    assert all(cheat <= honest + 1e-9 for cheat, honest in zip(scores(server), scores(answer), strict=True))


def test_the_same_prompt_may_get_the_same_answer() -> None:
    records = [replace(record, prompt_digest=1) for record in play(lambda i: answer(i, start=0.1, word="ok "))]
    assert doubts(records, traffic_metrics(records, SLOS, SPAN), SLOS) == ()
