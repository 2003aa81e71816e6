"""One engine process: started, awaited, judged when it fails, always stopped. Knows no HTTP and no knob."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tuner.errors import ConfigRejected, EngineCrashed, EngineOutOfMemory, LaunchError, ServingError

GUARD = Path(__file__).with_name("guard.py")
LISTENING = re.compile(rb"^listening (http://\S+)\r?$", re.MULTILINE)
POLL_SECONDS = 0.02
STOP_SECONDS = 5.0
"""How long the group may take after SIGTERM before SIGKILL."""
LOG_TAIL_BYTES = 16_384
DETAIL_CHARS = 300

PASSED_ON = frozenset({
    "PATH", "HOME", "LANG", "TMPDIR", "TZ", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH",
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
    "TRITON_CACHE_DIR", "XDG_CACHE_HOME", "CC", "SYSTEMROOT",
})  # fmt: skip
"""Environment variables an engine may need. No others are passed on: a user's tokens stay out of it and its logs."""

EXIT_BAD_CONFIG, EXIT_OUT_OF_MEMORY = 2, 3
_MEMORY_SIGNS = ("out of memory", "outofmemoryerror", "cannot allocate memory", "std::bad_alloc", "memoryerror")


class EngineProcess:
    """A running engine in its own session. Made by `launch`; `stop` must be called, and may be called twice."""

    def __init__(self, popen: subprocess.Popen[bytes], log_path: Path, log_start: int) -> None:
        self._popen = popen
        self._log_path = log_path
        self._log_start = log_start
        self.base_url = ""

    @property
    def pid(self) -> int:
        """Leader of the engine's process group."""
        return self._popen.pid

    def failure(self) -> ServingError | None:
        """Why the process ended, typed by exit status and last words; None while it runs."""
        status = self._popen.poll()
        if status is None:
            return None
        return _typed(status, self.last_words(), healthy=bool(self.base_url))

    async def await_failure(self, seconds: float) -> ServingError | None:
        """failure(), giving the process this long to end: a dying engine breaks connections before it exits."""
        deadline = time.monotonic() + seconds
        while (failure := self.failure()) is None and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)
        return failure

    async def await_listening(self, timeout: float) -> None:
        """Return when the engine has printed its address. Raises the typed failure, or LaunchError at the deadline."""
        deadline = time.monotonic() + timeout
        while True:
            if match := LISTENING.search(self._log()):
                self.base_url = match[1].decode()
                return
            if (failure := self.failure()) is not None:
                raise failure
            if time.monotonic() > deadline:
                raise LaunchError(f"not listening after {timeout:g} s; last log line: {self.last_words() or 'none'}")
            await asyncio.sleep(POLL_SECONDS)

    async def stop(self) -> None:
        """End the whole group: SIGTERM, SIGKILL when that takes too long. Nothing of it runs afterwards."""
        _signal_group(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while self._popen.poll() is None and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to the whole group: for what outlived the leader, and for callers who cannot wait."""
        _signal_group(self.pid, signal.SIGKILL)
        self._popen.wait()
        if self._popen.stdin is not None:
            self._popen.stdin.close()

    def last_words(self) -> str:
        """The last line that this process wrote to its log, at most DETAIL_CHARS characters."""
        lines = self._log()[-LOG_TAIL_BYTES:].decode("utf-8", errors="replace").splitlines()
        spoken = [line.strip() for line in lines if line.strip() and not line.startswith("listening ")]
        return spoken[-1][:DETAIL_CHARS] if spoken else ""

    def _log(self) -> bytes:
        with self._log_path.open("rb") as file:
            file.seek(self._log_start)
            return file.read()


def spawn(command: Sequence[str], env: Mapping[str, str], log_path: Path) -> EngineProcess:
    """Start `command` in its own session under the guard; both of its streams are appended to `log_path`.

    env: set besides the variables that are PASSED_ON.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        start = log.tell()
        popen = subprocess.Popen(
            [sys.executable, "-I", "-S", str(GUARD), *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**_environment(), **env},
            start_new_session=True,
        )
    return EngineProcess(popen, log_path, start)


async def launch(command: Sequence[str], env: Mapping[str, str], log_path: Path, timeout: float) -> EngineProcess:
    """Start an engine and wait until it listens, at most `timeout` seconds. Raises ServingError; nothing runs then."""
    process = spawn(command, env, log_path)
    try:
        await process.await_listening(timeout)
    except BaseException:
        process.kill()
        raise
    return process


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in PASSED_ON or name.startswith("LC_")}
    return {**kept, "PYTHONUNBUFFERED": "1"}


def _typed(status: int, last_words: str, healthy: bool) -> ServingError:
    detail = f"exit status {status}: {last_words or 'no last words'}"
    if status == EXIT_OUT_OF_MEMORY or any(sign in last_words.lower() for sign in _MEMORY_SIGNS):
        return EngineOutOfMemory(detail)
    if status == EXIT_BAD_CONFIG and not healthy:
        return ConfigRejected(last_words or detail)
    return EngineCrashed(detail) if healthy else LaunchError(detail)


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
