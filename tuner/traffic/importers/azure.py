"""Azure LLM inference traces 2023 and 2024 (Patel et al., Splitwise, ISCA 2024; Stojkovic et al., DynamoLLM, HPCA
2025).

CSV, github.com/Azure/AzurePublicDataset, AzureLLMInferenceDataset2023.md and 2024.md: TIMESTAMP with seven decimals,
2024's with a zone (+00:00); ContextTokens; GeneratedTokens. No text, no sessions.
"""

from __future__ import annotations

from collections.abc import Iterator

from tuner.traffic.importers.columns import Columns, read_csv
from tuner.traffic.importers.row import Row
from tuner.traffic.importers.source import Source

COLUMNS = Columns(
    {"arrival": "TIMESTAMP", "prompt_tokens": "ContextTokens", "output_tokens": "GeneratedTokens"},
    {"arrival": "iso"},
    ("arrival", "prompt_tokens", "output_tokens"),
)


def read(source: Source) -> Iterator[Row]:
    return read_csv(source, COLUMNS)
