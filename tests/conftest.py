"""Set before anything is imported: Triton chooses its interpreter when it is first imported, which transformers may do.

One thread a process: `make test` runs as many processes as there are cores, and tensors here are small. pytest-xdist
tells them a width, to which commands would wrap what they print. Hypothesis fails an example that takes 0.2 s, and a
strategy that draws slowly: on a busy machine any does.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)
settings.register_profile("any machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
