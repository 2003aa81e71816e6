"""Ctrl-C before a command has begun and after it has ended: nothing can be lost, so the process leaves with one line.

As KeyboardInterrupt it would come out of whatever is being imported, as a traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
STDERR = 2
_seen: list[int] = []
"""Reads the numbers of the signals that came."""


def leave_at_once() -> None:
    """From now on. Where Ctrl-C is ignored, as in a shell's background job, it stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_interrupt)


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """leave_at_once for a while."""
    leave_at_once()
    try:
        yield
    finally:
        _raise()


@contextmanager
def raising() -> Iterator[None]:
    """Within leave_at_once Ctrl-C is KeyboardInterrupt again, after which a command can clear up."""
    left = _raise()
    try:
        yield
    finally:
        if left:
            leave_at_once()


def watch() -> None:
    """For interrupted()."""
    reader, writer = os.pipe()
    for end in (reader, writer):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _seen.append(reader)
    sys.unraisablehook = _on_dropped


def interrupted() -> bool:
    """Whether Ctrl-C came since watch(), whatever became of its KeyboardInterrupt: what a module written in C makes of
    it while it is imported is an ImportError."""
    try:
        return any(signal.SIGINT in os.read(reader, 4096) for reader in _seen)
    except BlockingIOError:
        return False


def check() -> None:
    """Raises KeyboardInterrupt where Ctrl-C came and was lost on its way, as it is in _on_dropped."""
    if interrupted():
        raise KeyboardInterrupt


def leave() -> NoReturn:
    """With INTERRUPTED, which CPython makes a death by SIGINT once a KeyboardInterrupt came out of exec() of text."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):
            stream.flush()
    os._exit(INTERRUPTED)


def _raise() -> bool:
    """Whether it was to leave at once."""
    if signal.getsignal(signal.SIGINT) is not _on_interrupt:
        return False
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return True


def _on_dropped(dropped: sys.UnraisableHookArgs) -> None:
    """Python drops what comes out of a finalizer or of a weak reference's callback, and prints its traceback. Of Ctrl-C
    interrupted() knows all the same."""
    if not issubclass(dropped.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(dropped)


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    with suppress(OSError):
        os.write(STDERR, b"tune: interrupted\n")
    os._exit(INTERRUPTED)
