"""A command line that is wrong, in one line; Ctrl-C wherever it comes, in one line too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.fakes import cases
from tuner.cli.__main__ import app

ROOT = Path(__file__).parents[2]
FORMATS = "azure, mooncake, bailian, burstgpt, servegen, weka"
WRONG = [
    ("a command misspelt", "rnu", "no such command rnu; did you mean run? (tune --help)"),
    ("a command of a group", "import x", "no such command import; did you mean trace import? (tune --help)"),
    ("a command of a group misspelt", "trace impotr", "trace: no such command impotr; did you mean import? (tune"),
    ("a command like no other", "space zzz", "space: no such command zzz; expected one of show (tune space --help)"),
    ("an option misspelt", "verify x --tracee y", "verify: no such option --tracee; did you mean --trace? (tune"),
    ("an option like no other", "run --zzz", "run: no such option --zzz; expected one of --out, --resume, --fresh, --"),
    ("a short option", "init -x", "init: no such option -x; expected one of --model, --trace, "),
    ("an option before the command", "--jsno status x", "no such option --jsno; expected one of "),
    ("an option without its value", "run --out", "run: option '--out' requires an argument (tune run --help)"),
    ("the same in a group", "trace import --out", "trace import: option '--out' requires an argument (tune trace"),
    ("a flag with a value", "run --fresh=3 x", "run: option '--fresh' does not take a value (tune run --help)"),
    ("no argument", "run", "run: missing STUDY: The study file. (tune run --help)"),
    ("no option that must be", "export x --to vllm", "export: missing --out: Directory for the files. (tune export"),
    ("no choice made", "trace import x --out y", f"trace import: missing --format: .* One of {FORMATS}"),
    ("a choice misspelt", "trace import x --format azur --out y", "--format: no such choice azur; did you mean azure?"),
    ("a choice like no other", "trace import x --format z --out y", f"no such choice z; expected one of {FORMATS}"),
    ("an argument too many", "run a b", "run: got unexpected extra argument(s) (b), expected tune run [OPTIONS]"),
    ("a number that is text", "init --trials many", "init: --trials: Input should be a valid integer.*(given: many)"),
    ("a number too small", "init --trials 0", "init: --trials: Input should be greater than or equal to 1 (given: 0)"),
    ("a number with a unit", "verify x --time-scale 2x", "verify: --time-scale: Input should be a valid number.*: 2x)"),
    ("half a number of rounds", "verify x --rounds 1.5", "verify: --rounds: Input should be a valid integer, .*: 1.5)"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), cases(WRONG))
def test_a_wrong_command_line_is_told_in_one_line(line: str, message: str) -> None:
    found = CliRunner().invoke(app, line.split())
    assert found.exit_code == 2 and found.stdout == ""
    assert found.stderr.startswith("tune: ") and found.stderr.endswith(" --help)\n") and found.stderr.count("\n") == 1
    begin, _, end = message.partition(".*")
    assert begin in found.stderr and end in found.stderr


@pytest.mark.parametrize("line", ["", "trace", "studies", "space"])
def test_a_group_alone_shows_its_help(line: str) -> None:
    found = CliRunner().invoke(app, line.split())
    assert found.exit_code == 2 and found.stderr.startswith("Usage: ") and "Commands:" in found.stderr


RAISE = "import signal; signal.raise_signal(signal.SIGINT)"
INTERRUPTED = [
    ("while the commands are imported", "typer", RAISE),
    ("while a command imports", "sqlalchemy", RAISE),
    ("in what a library executes", "sqlalchemy", f"exec({RAISE!r})"),
    (
        "in a module written in C, which makes something else of it", "sqlalchemy",
        f"try:\n    {RAISE}\nexcept KeyboardInterrupt:\n    raise ImportError('initialization failed') from None",
    ),
    (
        "in the callback of a weak reference, out of which Python drops it", "sqlalchemy",
        "import signal, weakref\nobject = set()\n"
        "kept = weakref.ref(object, lambda gone: signal.raise_signal(signal.SIGINT))\ndel object",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("library", "text"), cases(INTERRUPTED))
def test_an_interruption_is_one_line(tmp_path: Path, library: str, text: str) -> None:
    (tmp_path / f"{library}.py").write_text(text)
    (tmp_path / "runs/one").mkdir(parents=True)
    (tmp_path / "runs/one/study.db").touch()
    command = [sys.executable, "-m", "tuner.cli", "studies", "list", "--runs", str(tmp_path / "runs")]
    path = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    # A shell's background job, which a CI run may be, ignores SIGINT, and its children inherit that.
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "tune: interrupted\n")
