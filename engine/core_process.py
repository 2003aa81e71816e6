"""python -m engine.core_process FD: the step loop over the real model, the only process that loads torch."""

from __future__ import annotations

import sys

from engine.core import main
from engine.model_runner import load_engine

if __name__ == "__main__":
    sys.exit(main(load_engine))
