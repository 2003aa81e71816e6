"""A timer finer than the event loop's: epoll waits whole milliseconds, and asyncio rounds them up, to 2 ms too late."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from collections.abc import Callable

_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1
_NANOSECONDS = 1_000_000_000


class _TimerSpec(ctypes.Structure):
    """struct itimerspec, see timerfd_settime(2); an interval of 0 fires once."""

    _fields_ = [(name, ctypes.c_long) for name in ("interval_s", "interval_ns", "value_s", "value_ns")]


class Timer:
    """Calls `wake` some 0.1 ms after the time it was set to, once for each setting. On Linux a timerfd, elsewhere the
    event loop's own timer."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._wake = wake
        self._handle: asyncio.TimerHandle | None = None
        self._descriptor: int | None = None
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            descriptor = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
            if descriptor >= 0:
                self._descriptor = descriptor
                self._loop.add_reader(descriptor, self._fired)

    def set(self, time: float) -> None:
        """Wake at `time` on the loop's clock (seconds), instead of at any earlier setting."""
        if self._descriptor is None:
            if self._handle is not None:
                self._handle.cancel()
            self._handle = self._loop.call_at(time, self._wake)
            return
        # All zeros would disarm it; what is past fires at once.
        seconds, nanoseconds = divmod(max(1, int(time * _NANOSECONDS)), _NANOSECONDS)
        spec = _TimerSpec(0, 0, seconds, nanoseconds)
        failed = self._libc.timerfd_settime(self._descriptor, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None)
        assert not failed, f"timerfd_settime: errno {ctypes.get_errno()}"

    def close(self) -> None:
        """Never wake again."""
        if self._handle is not None:
            self._handle.cancel()
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    def _fired(self) -> None:
        assert self._descriptor is not None
        try:
            os.read(self._descriptor, 8)
        except BlockingIOError:
            return  # set again since it became readable
        self._wake()
