"""Triton chooses its interpreter when it is first imported, which transformers may do: so before anything else."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
