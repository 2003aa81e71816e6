"""The file being imported: its lines, and the account of those that were left out."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import itertools
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from tuner.traffic.importers.options import ImportOptions
from tuner.traffic.importers.row import BadLine, LeftOut

MAX_LINE_BYTES = 16 * 2**20
MAX_DOCUMENT_BYTES = 2**30
"""Of a source that is one JSON value, unpacked. ShareGPT's file has 642 MB."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Record = TypeVar("Record")
Found = TypeVar("Found")


class Source:
    """path: a file, plain or gzip, or a folder where the format is one file a session.

    notes: what the importer did that a reader of the trace should know; it goes into the provenance. bad: (number, why)
    of bad lines. left_out: reason -> count of requests that are none to replay. word: what `number` counts.
    block_tokens: prompt tokens under one prefix hash; the importer sets it where the format says.
    """

    def __init__(self, path: Path, options: ImportOptions) -> None:
        self.path, self.options, self.word = path, options, "line"
        self.notes: dict[str, object] = {}
        self.bad: list[tuple[int, str]] = []
        self.left_out: Counter[str] = Counter()
        self.files: list[Path] = []
        self.block_tokens = options.block_tokens

    def rows(self, records: Iterable[tuple[int, Record]], parse: Callable[[int, Record], Found]) -> Iterator[Found]:
        """parse(number, record) of each record, without those for which it raises BadLine or LeftOut.

        Raises ValueError at the first bad line past max_bad_lines.
        """
        for number, record in records:
            try:
                yield parse(number, record)
            except BadLine as error:
                self.count_bad(number, str(error))
            except LeftOut as reason:
                self.left_out[str(reason)] += 1

    def count_bad(self, number: int, why: str) -> None:
        self.bad.append((number, why))
        if len(self.bad) > self.options.max_bad_lines:
            more = f"; more than {self.options.max_bad_lines} bad lines" if self.options.max_bad_lines else ""
            raise ValueError(f"{self.path}: {self.word} {number}: {why}{more}")

    def lines(self, blank: bool = False) -> Iterator[tuple[int, bytes]]:
        """(number, line) of the lines that are not blank, or of all."""
        with self.opened(self.path) as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise ValueError(f"{self.path}: line {number}: longer than {MAX_LINE_BYTES} bytes")
                line = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
                if blank or not line.isspace():
                    yield number, line

    def csv_records(self, required: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, str | None]]]:
        """(number, columns by name) of a CSV file with a header, which must name the required ones."""
        # With its blank lines: a quoted field may hold some. DictReader passes over blank rows itself.
        numbered = itertools.dropwhile(lambda pair: pair[1].isspace(), self.lines(blank=True))
        first, header = next(numbered, (1, b""))
        lines = itertools.chain((header,), (line for _, line in numbered))
        reader = csv.DictReader(line.decode("utf-8", errors="surrogateescape") for line in lines)
        try:
            present = tuple(reader.fieldnames or ())
            missing = [name for name in required if name not in present]
            if missing:
                raise ValueError(
                    f"{self.path}: line 1: expected the columns {', '.join(required)}; {missing[0]} is missing"
                )
            for record in reader:
                yield reader.line_num + first - 1, record
        except csv.Error as error:
            raise ValueError(f"{self.path}: line {reader.line_num + first - 1}: no CSV: {error}") from None

    def json_records(self) -> Iterator[tuple[int, Any]]:
        """(number, value) of JSON lines, or of the items of one JSON array. A line that is no JSON is bad."""
        if self.first_byte() == b"[":
            self.word = "item"
            try:
                items = msgspec.json.decode(self.document(self.path), type=list[msgspec.Raw])
            except msgspec.DecodeError as error:
                raise ValueError(f"{self.path}: expected a JSON array: {error}") from None
            records: Iterable[tuple[int, Any]] = enumerate(items, start=1)
        else:
            records = self.lines()
        for number, record in records:
            try:
                yield number, msgspec.json.decode(record)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self.count_bad(number, "expected one JSON value; this is no JSON, or is cut off")

    def first_byte(self) -> bytes:
        """The first byte that is no space: "[" opens a JSON array, "{" a JSON object."""
        with self.opened(self.path) as file:
            return file.read(4096).removeprefix(BYTE_ORDER_MARK).lstrip()[:1]

    def document(self, path: Path) -> bytes:
        """All of a file, at most MAX_DOCUMENT_BYTES."""
        with self.opened(path) as file:
            content = file.read(MAX_DOCUMENT_BYTES + 1)
        if len(content) > MAX_DOCUMENT_BYTES:
            raise ValueError(f"{path}: longer than {MAX_DOCUMENT_BYTES} bytes")
        return content.removeprefix(BYTE_ORDER_MARK)

    @contextmanager
    def opened(self, path: Path) -> Iterator[IO[bytes]]:
        """A plain or a gzip file, which is known by its first two bytes; damage becomes a ValueError."""
        if path not in self.files:
            self.files.append(path)
        try:
            with path.open("rb") as raw:
                packed = raw.read(2) == b"\x1f\x8b"
                raw.seek(0)
                yield io.BufferedReader(gzip.GzipFile(fileobj=raw)) if packed else raw
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: damaged: {type(error).__name__}") from None
        except OSError as error:
            raise ValueError(f"{path}: cannot be read: {error.strerror}") from None

    def digest(self) -> str:
        """SHA-256 of the files that were read, in the order of reading."""
        found = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while block := file.read(2**20):
                    found.update(block)
        return found.hexdigest()
