"""The custom dataset of `vllm bench serve --dataset-name custom`: JSON lines with `prompt`, and `output_tokens` or not.

github.com/vllm-project/vllm, vllm/benchmarks/datasets/custom.py and docs/benchmarking/cli.md. vLLM puts the prompt into
the chat template as one user message unless told not to; here it goes to /v1/completions as it stands. No arrivals.
"""

from __future__ import annotations

from collections.abc import Iterator

from tuner.traffic.importers.columns import Columns, read_json
from tuner.traffic.importers.row import Row
from tuner.traffic.importers.source import Source

COLUMNS = Columns({"prompt": "prompt", "output_tokens": "output_tokens"}, {}, ("prompt",))


def read(source: Source) -> Iterator[Row]:
    return read_json(source, COLUMNS)
