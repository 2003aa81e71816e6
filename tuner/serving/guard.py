"""Between the tuner and an engine: runs a command, and kills its process group when the tuner is gone.

    python guard.py COMMAND...

Standard input is a pipe that only the tuner holds open. However the tuner ends, kill -9 included, the kernel closes
it and this process kills the group it leads: the engine and whatever the engine started. Exits with the command's
status, 128 + n after signal n, 127 when it cannot be started. Standard library only: it runs with -I -S, in 20 ms.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

NICENESS = 10
"""The engine gives way to the tuner's load generator, which takes little CPU but must take it on time. Where cores are
free this changes nothing; on two cores it cuts the send lag to a third."""


def main(command: list[str]) -> int:
    """Run `command` until it ends or standard input does."""
    # A handler, not SIG_IGN: the command must get the default back on exec. The guard outlives it to tell its status.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    os.nice(NICENESS)
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        print(f"{command[0]}: cannot be started: {error.strerror}", file=sys.stderr)
        return 127
    threading.Thread(target=_kill_group_at_end_of_input, daemon=True).start()
    status = process.wait()
    return status if status >= 0 else 128 - status


def _kill_group_at_end_of_input() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
