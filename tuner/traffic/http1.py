"""HTTP/1.1 as far as a replay needs it: a response read piece by piece (RFC 9112). Knows no network."""

from __future__ import annotations

MAX_HEAD_BYTES = 64 * 2**10
MAX_CHUNK_LINE_BYTES = 4096


class MalformedResponse(ValueError):
    """What came is no HTTP/1.1 response."""


class ResponseReader:
    """One response. status: None until the head has come. complete: no more of the body will come. reusable: the
    connection may carry another request after it."""

    __slots__ = ("_chunked", "_left", "_rest", "_trailers", "complete", "content_type", "reusable", "status")

    def __init__(self) -> None:
        self.status: int | None = None
        self.content_type = ""
        self.complete = False
        self.reusable = True
        self._chunked = False
        self._trailers = False
        self._left: int | None = None
        """Bytes of the body, or of the current chunk with its line end, still to come; None: until the end."""
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """The bytes of the body that `data` holds. Raises MalformedResponse."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        at = 0
        while self.status is None:
            end = data.find(b"\r\n\r\n", at)
            if end < 0:
                if len(data) - at > MAX_HEAD_BYTES:
                    raise MalformedResponse("a head without an end")
                self._rest = data[at:]
                return b""
            self._read_head(data[at:end])
            at = end + 4
        return self._dechunk(data, at) if self._chunked else self._cut(data, at)

    def close(self) -> None:
        """The connection has ended: so does a body that says nothing of its length."""
        self.complete = self.complete or (self.status is not None and not self._chunked and self._left is None)
        self.reusable = False

    def _read_head(self, head: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        version, _, rest = first.partition(b" ")
        if version not in (b"HTTP/1.1", b"HTTP/1.0") or not rest[:3].isdigit():
            raise MalformedResponse("no HTTP/1.1 status line")
        status = int(rest[:3])
        if 100 <= status < 200:
            return  # an interim response: the real one follows
        fields = {}
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon:
                raise MalformedResponse("a header line without a colon")
            fields[name.lower()] = value.strip().lower()
        self.status = status
        self.content_type = fields.get(b"content-type", b"").partition(b";")[0].strip().decode("latin-1")
        self.reusable = fields.get(b"connection", b"keep-alive" if version == b"HTTP/1.1" else b"close") != b"close"
        self._read_framing(fields)

    def _read_framing(self, fields: dict[bytes, bytes]) -> None:
        if (coding := fields.get(b"transfer-encoding")) is not None:
            if coding != b"chunked":
                raise MalformedResponse("a transfer coding other than chunked")
            self._chunked, self._left = True, 0
        elif (length := fields.get(b"content-length")) is not None:
            if not length.isdigit():
                raise MalformedResponse("a content length that is no number")
            self._left = int(length)
        if self.status in (204, 304):
            self._chunked, self._left = False, 0

    def _cut(self, data: bytes, at: int) -> bytes:
        body = data[at:]
        if self._left is None:
            return body
        if len(body) > self._left:
            self.reusable = False
            body = body[: self._left]
        self._left -= len(body)
        self.complete = self._left == 0
        return body

    def _dechunk(self, data: bytes, at: int) -> bytes:
        pieces = []
        while not self.complete:
            assert self._left is not None
            if not self._left:
                end = data.find(b"\r\n", at)
                if end < 0:
                    if len(data) - at > MAX_CHUNK_LINE_BYTES:
                        raise MalformedResponse("a chunk without a size")
                    self._rest = data[at:]
                    break
                self._read_chunk_line(data[at:end])
                at = end + 2
                continue
            end = at + self._left
            if end <= len(data):
                if data[end - 2 : end] != b"\r\n":
                    raise MalformedResponse("a chunk longer than its size")
                pieces.append(data[at : end - 2])
                at, self._left = end, 0
                continue
            body = data[at : min(len(data), end - 2)]
            pieces.append(body)
            self._left -= len(body)
            self._rest = data[at + len(body) :]
            break
        if self.complete and at < len(data):
            self.reusable = False
        return b"".join(pieces)

    def _read_chunk_line(self, line: bytes) -> None:
        """The size of the next chunk, or a line of the trailer after the last one."""
        if self._trailers:
            self.complete = not line
            return
        size = line.partition(b";")[0].strip()
        try:
            count = int(size, 16) if size.isalnum() else -1
        except ValueError:
            count = -1
        if count < 0:
            raise MalformedResponse("a chunk size that is no number")
        self._trailers = count == 0
        self._left = count + 2 if count else 0
