"""The files that a command writes, looked at before the work begins."""

from __future__ import annotations

import os
from pathlib import Path


def check_output(option: str, out: Path, *read: Path | None, makes_directory: bool = False) -> None:
    """Raises ValueError where `out` cannot be a new file, or would replace one of those that are read."""
    if out.is_dir():
        raise ValueError(f"{option} {out}: is a directory; expected a file")
    if makes_directory:
        check_output_directory(option, out.parent)
    elif not out.parent.is_dir():
        raise ValueError(f"{option} {out}: {out.parent} is no directory; make it, or choose another")
    if out.parent.is_dir():
        _check_writable(option, out, out.parent)
    if any(path is not None and path.resolve() == out.resolve() for path in read):
        raise ValueError(f"{option} {out}: would replace what is read; choose another file")


def check_output_directory(option: str, out: Path) -> None:
    """Raises ValueError where `out` is no directory and cannot be made one."""
    there = next(path for path in (out, *out.parents) if path.exists())
    if not there.is_dir():
        what = "is a file" if there == out else f"{there} is a file"
        raise ValueError(f"{option} {out}: {what}; expected a directory, old or new: move the file, or choose another")
    _check_writable(option, out, there)


def _check_writable(option: str, out: Path, directory: Path) -> None:
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ValueError(f"{option} {out}: no permission to write into {directory}; choose another")
