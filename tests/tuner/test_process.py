"""An engine's process: what it is given, how its end is typed, and that nothing of it outlives the tuner."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fakes import PATIENCE, cases
from tuner.errors import ConfigRejected, EngineCrashed, EngineOutOfMemory, LaunchError, ServingError
from tuner.serving.process import GUARD, launch, spawn

LISTEN = "print('listening http://127.0.0.1:9', flush=True); "
WAIT = "import time; time.sleep(3600)"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def gone(pid: int) -> bool:
    """Whether the process ends."""
    deadline = time.monotonic() + PATIENCE
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


SILENCE = "not listening after 0.5 s"
ENDS = [
    ("configuration refused", "import sys; print('bad key', file=sys.stderr); sys.exit(2)", ConfigRejected, "bad key"),
    ("out of memory by status", "import sys; sys.exit(3)", EngineOutOfMemory, "exit status 3"),
    ("out of memory by words", "raise MemoryError('no')", EngineOutOfMemory, "MemoryError: no"),
    ("a crash before it listens", "import sys; sys.exit(4)", LaunchError, "exit status 4"),
    ("killed", "import os; os.kill(os.getpid(), 9)", LaunchError, "exit status 137"),
    ("silence", WAIT, LaunchError, SILENCE),
]


@pytest.mark.parametrize(("code", "error", "detail"), cases(ENDS))
async def test_a_failed_start_is_typed(tmp_path: Path, code: str, error: type[ServingError], detail: str) -> None:
    with pytest.raises(error, match=detail):
        await launch(python(code), {}, tmp_path / "engine.log", timeout=0.5 if detail == SILENCE else PATIENCE)


async def test_a_command_that_does_not_exist_is_a_failed_start(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="cannot be started"):
        await launch(["/no/such/engine"], {}, tmp_path / "engine.log", timeout=PATIENCE)


DEATHS = [
    ("crash", 4, EngineCrashed),
    ("bad status after listening", 2, EngineCrashed),
    ("out of memory", 3, EngineOutOfMemory),
]


@pytest.mark.parametrize(("status", "error"), cases(DEATHS))
async def test_a_death_after_listening_is_typed(tmp_path: Path, status: int, error: type[ServingError]) -> None:
    code = LISTEN + f"import sys, time; time.sleep(0.3); print('last words', file=sys.stderr); sys.exit({status})"
    process = await launch(python(code), {}, tmp_path / "engine.log", timeout=PATIENCE)
    failure = await process.await_failure(PATIENCE)
    assert type(failure) is error
    assert "last words" in str(failure)
    await process.stop()


async def test_each_launch_reads_its_own_part_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    first = await launch(python(LISTEN + WAIT), {}, log, timeout=PATIENCE)
    await first.stop()
    with pytest.raises(LaunchError):
        await launch(python("import sys; sys.exit(4)"), {}, log, timeout=PATIENCE)
    assert log.read_text().count("listening") == 1


async def test_secrets_are_not_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hush")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    code = "import os; print(sorted(os.environ)); " + LISTEN + WAIT
    process = await launch(python(code), {"EXTRA": "1"}, tmp_path / "engine.log", timeout=PATIENCE)
    await process.stop()
    said = (tmp_path / "engine.log").read_text()
    assert "OMP_NUM_THREADS" in said and "EXTRA" in said
    assert "HF_TOKEN" not in said


async def test_stop_ends_what_the_engine_started_and_what_ignores_sigterm(tmp_path: Path) -> None:
    child = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); {WAIT}"
    code = (
        f"import subprocess; child = subprocess.Popen({python(child)!r}, stdout=subprocess.PIPE); "
        f"child.stdout.readline(); print(child.pid); {LISTEN}{WAIT}"
    )
    process = await launch(python(code), {}, tmp_path / "engine.log", timeout=PATIENCE)
    grandchild = int((tmp_path / "engine.log").read_text().split()[0])
    assert alive(grandchild)
    await process.stop()
    await process.stop()
    assert gone(grandchild) and gone(process.pid)


def test_kill_9_of_the_tuner_leaves_no_process(tmp_path: Path) -> None:
    """The tuner dies without a chance to clean up; the kernel closes its end of the guard's pipe."""
    log = tmp_path / "engine.log"
    engine = f"import subprocess, sys; print(subprocess.Popen({python(WAIT)!r}).pid, flush=True); {WAIT}"
    tuner = (
        "import time; from pathlib import Path; from tuner.serving.process import spawn\n"
        f"print(spawn({python(engine)!r}, {{}}, Path({str(log)!r})).pid, flush=True)\n"
        "time.sleep(3600)"
    )
    with subprocess.Popen(python(tuner), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        guard = int(process.stdout.readline())
        while not log.exists() or not log.read_text().endswith("\n"):
            time.sleep(0.02)
        grandchild = int(log.read_text())
        assert alive(guard) and alive(grandchild)
        process.kill()
    assert gone(guard) and gone(grandchild)


def test_the_guard_hands_on_the_status(tmp_path: Path) -> None:
    for code, status in (("import sys; sys.exit(7)", 7), ("import os; os.kill(os.getpid(), 15)", 143)):
        with subprocess.Popen([sys.executable, str(GUARD), *python(code)], stdin=subprocess.PIPE) as process:
            assert process.wait(PATIENCE) == status


def test_kill_closes_the_pipe(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    process = spawn(python(WAIT), {}, tmp_path / "engine.log")
    process.kill()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
