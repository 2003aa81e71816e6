"""python -m engine.logged_process FILE FD: the step loop over the real model, each step written to FILE."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import IO

from engine.config import EngineConfig
from engine.core import main
from engine.model_runner import ModelRunner
from engine.step_log import CountedRunner, LoggedEngine


def load(file: IO[bytes], config: EngineConfig) -> LoggedEngine:
    """Like load_engine. On a CPU a step takes its thread's own time: others on the same cores do not bend the model."""
    runner = ModelRunner(config)
    timer = time.thread_time if runner.on_cpu else time.perf_counter
    return LoggedEngine(config, CountedRunner(runner, config, runner.compute_dtype, file), file, timer)


if __name__ == "__main__":
    with Path(sys.argv.pop(1)).open("wb") as log:
        sys.exit(main(partial(load, log)))
