"""Length-prefixed MessagePack frames on a stream socket: 4 bytes big-endian length, then the body."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import msgspec

from engine.messages import ToEngine

HEADER_BYTES = 4
RECEIVE_BYTES = 1 << 18

_encode = msgspec.msgpack.Encoder().encode
_decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode


def pack(message: Any) -> bytes:
    """One frame holding `message`."""
    body = _encode(message)
    return len(body).to_bytes(HEADER_BYTES, "big") + body


class FrameSplitter:
    """Cuts a byte stream into frame bodies, whatever pieces it arrives in."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The bodies that `data` completes. Exhaust the iterator before the next call."""
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= HEADER_BYTES:
            body = start + HEADER_BYTES
            end = body + int.from_bytes(self._buffer[start:body], "big")
            if len(self._buffer) < end:
                break
            yield bytes(self._buffer[body:end])
            start = end
        del self._buffer[:start]


class Connection:
    """The step loop's end of the socket: blocking sends, receives that wait only when told to."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._splitter = FrameSplitter()

    def send(self, message: Any) -> None:
        """Raises BrokenPipeError or ConnectionResetError when the other end is gone."""
        self._socket.sendall(pack(message))

    def receive_first(self) -> bytes:
        """The body of the first frame; nothing else may have been sent with it. Raises EOFError."""
        bodies: list[bytes] = []
        while not bodies:
            bodies = list(self._splitter.feed(self._read(wait=True)))
        return bodies[0]

    def receive(self, wait: bool) -> list[ToEngine]:
        """All messages that have arrived; with `wait`, at least one. Raises EOFError when the other end closed."""
        messages: list[ToEngine] = []
        while True:
            try:
                data = self._read(wait=wait and not messages)
            except BlockingIOError:
                return messages
            messages += map(_decode_to_engine, self._splitter.feed(data))

    def _read(self, wait: bool) -> bytes:
        try:
            data = self._socket.recv(RECEIVE_BYTES, 0 if wait else socket.MSG_DONTWAIT)
        except ConnectionResetError:
            data = b""
        if not data:
            raise EOFError("the API process closed the connection")
        return data
