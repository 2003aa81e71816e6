"""The file that a recording grows: private, whole lines only, and never in the way of the traffic."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from types import TracebackType
from typing import Self

log = logging.getLogger(__name__)


class RecordingFile:
    """A new file of mode 0600. Raises ValueError when it exists or cannot be created.

    A line is handed to the operating system whole before append() returns, so the end of this process loses none that
    was acknowledged. Each is written where the last whole one ended: what a full disk left of a line is cut away, or
    overwritten by the next.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = 0
        self._failing = False
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise ValueError(f"{path}: already exists; expected a new file") from None
        except OSError as error:
            raise ValueError(f"{path}: cannot be created: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # a full disk may say so again here
            os.fsync(self._file)
        os.close(self._file)

    def append(self, line: bytes) -> str | None:
        """Write one line; None, or the system's reason why it could not be. The first failure in a row is logged."""
        try:
            self._write(line)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            reason = error.strerror or type(error).__name__
            if not self._failing:
                log.error("%s: %s; requests pass on unrecorded until it can be written again", self.path, reason)
            self._failing = True
            return reason
        if self._failing:
            log.error("%s: can be written again; recording goes on", self.path)
        self._failing = False
        self._size += len(line)
        return None

    def _write(self, line: bytes) -> None:
        done = 0
        while done < len(line):
            done += os.pwrite(self._file, line[done:], self._size + done)
