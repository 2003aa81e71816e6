"""Set before anything is imported: Triton chooses its interpreter when it is first imported, which transformers may do.

One thread a process: `make test` runs as many processes as there are cores, and tensors here are small. pytest-xdist
tells them a width, to which commands would wrap what they print.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)
