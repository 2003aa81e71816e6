"""The file that a command writes, looked at before the work begins."""

from __future__ import annotations

from pathlib import Path


def check_output(option: str, out: Path, *read: Path | None) -> None:
    """Raises ValueError where `out` cannot be a new file, or would replace one of those that are read."""
    if out.is_dir():
        raise ValueError(f"{option} {out}: is a directory; expected a file")
    if not out.parent.is_dir():
        raise ValueError(f"{option} {out}: {out.parent} is no directory; make it, or choose another")
    if any(path is not None and path.resolve() == out.resolve() for path in read):
        raise ValueError(f"{option} {out}: would replace what is read; choose another file")
