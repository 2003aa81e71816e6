"""The URL of a server that runs, looked at before anything is asked of it."""

from __future__ import annotations

from urllib.parse import urlsplit

import typer


def http_url(parameter: typer.CallbackParam, url: str | None) -> str | None:
    """The callback of an option. Raises ValueError: whether HOST:PORT means http or https is nobody's to guess."""
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port above 65535, a bracket left open
        good = False
    if not good:
        hint = f"; did you mean http://{url}?" if url.strip() and "://" not in url else ""
        raise ValueError(f"{parameter.opts[0]} {url}: expected http://HOST:PORT{hint}")
    return url
