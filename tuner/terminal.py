"""What commands print on: as wide as the terminal, and unwrapped where a file or another program reads it."""

from __future__ import annotations

import os
from typing import Any

from rich.console import Console

UNWRAPPED = 10_000
"""Characters in a line; no table of ours is wider."""


class Output(Console):
    """A console that says when nobody reads it any more, where Rich would end the program."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def output(stderr: bool = False, **options: Any) -> Console:
    """A console without highlighting, plain where it is not a terminal or NO_COLOR is set (Rich sees to both)."""
    console = Output(stderr=stderr, highlight=False, **options)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = UNWRAPPED
    return console
