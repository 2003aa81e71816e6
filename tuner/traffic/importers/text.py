"""Prompt text measured in tokens, and replaced by other tokens that share what the texts shared."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from tuner.traffic.importers.row import Text

BLOCK_TOKENS = 16
"""Sharing is kept by blocks of as many, vLLM's default page."""


class TextMeasure:
    """Counts tokens by a tokenizer.json. Of messages it counts their contents, not what a chat template adds.

    Raises ValueError when the file is none.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            # the library raises bare Exception for a file that it cannot open or understand
            if type(error) is not Exception:
                raise
            raise ValueError(f"--tokenizer {path}: no tokenizer.json: {str(error).splitlines()[0]}") from None
        self._blocks: dict[tuple[int, tuple[int, ...]], int] = {}

    def ids(self, prompt: Text) -> list[int]:
        texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
        return [i for text in texts for i in self._tokenizer.encode(text, add_special_tokens=False).ids]

    def count(self, prompt: Text) -> int:
        return len(self.ids(prompt))

    def shared_blocks(self, ids: list[int]) -> tuple[int, ...]:
        """Numbers of the leading full blocks: equal for prompts exactly as far as these are equal, and counted in order
        of appearance, so that they tell nothing about the text."""
        before, found = 0, []
        for start in range(0, len(ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            before = self._blocks.setdefault((before, tuple(ids[start : start + BLOCK_TOKENS])), len(self._blocks) + 1)
            found.append(before)
        return tuple(found)
