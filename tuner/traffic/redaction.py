"""Replacing what must not be written down, by regular expressions."""

from __future__ import annotations

import re
from collections.abc import Iterable

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from tuner.traffic.trace_lines import Message, RequestLine

REPLACEMENT = "[redacted]"


class Redactor:
    """Replaces every match in prompts, answers and names. Raises ValueError for a pattern that is none."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = [_compiled(pattern) for pattern in patterns]

    def line(self, line: RequestLine) -> RequestLine:
        """The request with every match replaced. Of token ids, which cannot be searched, only the number is kept."""
        if not self._patterns:
            return line
        redacted = replace(line, tenant=self.text(line.tenant), slo_class=self.text(line.slo_class))
        for key in ("prompt", "reference", "session"):
            if not isinstance(value := getattr(line, key), UnsetType):
                setattr(redacted, key, self.text(value))
        if not isinstance(line.messages, UnsetType):
            redacted.messages = [Message(self.text(one.role), self.text(one.content)) for one in line.messages]
        if not isinstance(line.prompt_token_ids, UnsetType):
            redacted.prompt_token_ids, redacted.prompt_tokens = UNSET, len(line.prompt_token_ids)
        return redacted

    def text(self, text: str) -> str:
        """`text` with every match replaced."""
        for pattern in self._patterns:
            text = pattern.sub(REPLACEMENT, text)
        return text


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"redact {pattern}: no regular expression: {error}") from None
    if compiled.search(""):
        raise ValueError(f"redact {pattern}: matches nothing at all; expected a pattern that needs a character")
    return compiled
