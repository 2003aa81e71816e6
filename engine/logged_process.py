"""python -m engine.logged_process FILE FD: the step loop over the real model, each step written to FILE."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import IO

from engine.config import EngineConfig
from engine.core import main
from engine.model_runner import ModelRunner
from engine.step_log import CountedRunner, LoggedEngine


def load(file: IO[bytes], config: EngineConfig) -> LoggedEngine:
    """Like load_engine."""
    runner = ModelRunner(config)
    return LoggedEngine(config, CountedRunner(runner, config, runner.compute_dtype, file), file)


if __name__ == "__main__":
    with Path(sys.argv.pop(1)).open("wb") as log:
        sys.exit(main(partial(load, log)))
