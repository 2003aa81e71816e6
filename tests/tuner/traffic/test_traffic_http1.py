"""Reading HTTP/1.1 responses: however they are cut up, against a parser that nobody here wrote."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.traffic.http1 import MalformedResponse, ResponseReader


def read(pieces: list[bytes], closed: bool = False) -> tuple[int | None, bytes, bool, bool]:
    reader = ResponseReader()
    body = b"".join(reader.feed(piece) for piece in pieces)
    if closed:
        reader.close()
    return reader.status, body, reader.complete, reader.reusable


def chunked(parts: list[bytes], extension: bytes = b"", trailer: bytes = b"") -> bytes:
    lines = b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts)
    return lines + b"0\r\n" + trailer + b"\r\n"


def response(parts: list[bytes], coding: str) -> bytes:
    """As a server writes it: "chunked", "length", or with an interim response, extensions and a trailer."""
    body = b"".join(parts)
    if coding == "length":
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    if coding == "chunked":
        return head + chunked(parts)
    return b"HTTP/1.1 100 Continue\r\n\r\n" + head + chunked(parts, b";name=value", b"X-Sum: 1\r\nX-More: 2\r\n")


def oracle(data: bytes) -> bytes:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    body = b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        assert event is not h11.NEED_DATA, "the response has no end"
        body += bytes(event.data) if isinstance(event, h11.Data) else b""
    return body


@given(
    st.lists(st.binary(min_size=1, max_size=40) | st.sampled_from([b"\r\n", b"0\r\n\r\n", b"\r\n0\r\n\r\n"])),
    st.sampled_from(["chunked", "length", "everything"]),
    st.lists(st.integers(0, 400), max_size=12),
)
def test_a_response_reads_the_same_however_it_is_cut(parts: list[bytes], coding: str, cuts: list[int]) -> None:
    data = response(parts, coding)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[start:end] for start, end in zip(places, places[1:], strict=False)]
    assert read(pieces) == (200, oracle(data), True, True)
    assert not read([data[:-1]])[2]


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDS = [
    ("no length: until the connection ends", b"HTTP/1.1 200 OK\r\n\r\nabc", (200, b"abc", True, False)),
    (
        "chunks that break off",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        (200, b"ab", False, False),
    ),
    ("a head that breaks off", b"HTTP/1.1 200 OK\r\nContent-Le", (None, b"", False, False)),
    ("no content", b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"", True, False)),
]


@pytest.mark.parametrize(("data", "expected"), [row[1:] for row in ENDS], ids=[row[0] for row in ENDS])
def test_the_end_of_the_connection(data: bytes, expected: tuple[int | None, bytes, bool, bool]) -> None:
    assert read([data], closed=True) == expected


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1", b"HTTP/1.0 200 OK"])
def test_a_server_that_will_close_gets_no_other_request(head: bytes) -> None:
    assert not read([head + b"\r\n\r\nx"])[3]


def test_bytes_after_the_end_make_a_connection_unusable() -> None:
    assert read([response([b"ab"], "length") + b"x"]) == (200, b"ab", True, False)
    assert read([response([b"ab"], "chunked") + b"x"]) == (200, b"ab", True, False)


MALFORMED = [
    ("another protocol", b"SSH-2.0-OpenSSH\r\n\r\n"),
    ("a status that is no number", b"HTTP/1.1 OK\r\n\r\n"),
    ("a header without a colon", b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n"),
    ("a length that is no number", b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"),
    ("another coding", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n"),
    ("a chunk size below 0", CHUNKED + b"-1\r\n"),
    ("a chunk longer than its size", CHUNKED + b"1\r\nabc"),
    ("a head without an end", b"HTTP/1.1 200 OK\r\n" + b"a" * 70_000),
    ("a chunk size without an end", CHUNKED + b"1" * 5000),
]


@pytest.mark.parametrize("data", [row[1] for row in MALFORMED], ids=[row[0] for row in MALFORMED])
def test_what_is_no_response_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(MalformedResponse):
        read([data])
