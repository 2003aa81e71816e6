"""Numbers and values as a reader sees them: three significant digits, with their unit."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from tuner.scoring.metrics import Interval

NONE = "–"
MINUS = "−"
_MIB = 2**20


def number(value: float | None, digits: int = 3) -> str:
    """`value` with `digits` significant digits, without an exponent between 1e-4 and 1e15."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -4 or exponent > 14:
        return f"{value:.{digits - 1}e}".replace("-", MINUS)
    rounded = round(value, digits - 1 - exponent)
    places = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{places}f}".replace("-", MINUS)


def seconds(value: float | None) -> str:
    """Milliseconds below one second, seconds above."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{number(value * 1e3)} ms" if value < 1 else f"{number(value)} s"


def percent(share: float | None) -> str:
    """A share of 1 as per cent."""
    return NONE if share is None else f"{number(share * 100)} %"


def whole_percent(value: Interval) -> str:
    """Share with its 95 % interval, as whole per cent."""
    return f"{value.value * 100:.0f} % [{value.low * 100:.0f}, {value.high * 100:.0f}]"


def plain(value: float) -> str:
    """At most three significant digits, without trailing zeros: for settings, which are exact."""
    return f"{value:.3g}"


def interval(value: Interval, digits: int = 3) -> str:
    """Point estimate with its 95 % interval, no unit."""
    point, low, high = (number(one, digits) for one in (value.value, value.low, value.high))
    return f"{point} [{low}, {high}]"


def decimals(value: float | None) -> str:
    """Four decimals: a loss of quality below that is none."""
    return NONE if value is None else f"{value:.4f}".replace("-0.0000", "0.0000").replace("-", MINUS)


def quality(value: Interval | float) -> str:
    """Four decimals, the fewest that tell configurations apart, with the 95 % interval if there is one."""
    if isinstance(value, Interval):
        return f"{value.value:.4f} [{value.low:.4f}, {value.high:.4f}]"
    return decimals(value)


def percent_interval(value: Interval) -> str:
    """Share with its 95 % interval, as per cent."""
    return f"{percent(value.value)} [{number(value.low * 100)}, {number(value.high * 100)}]"


def knob_value(name: str, value: Any) -> str:
    """A knob's value; sizes in bytes as MiB."""
    if value is None:
        return "none"
    if name.endswith("_bytes") and isinstance(value, (int, float)):
        return f"{number(value / _MIB)} MiB"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def plotly_text(text: str) -> str:
    """`text` for a Plotly label, where tags are markup and dollar signs call for MathJax: names must bring neither."""
    return html.escape(text, quote=False).replace("$", "&#36;")


def wrapped(label: str, width: int = 24) -> str:
    """`label` for a Plotly axis, in lines of at most so many characters where its words allow it: phones are narrow."""
    return "<br>".join(map(plotly_text, textwrap.wrap(label, width, break_long_words=False, break_on_hyphens=False)))


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
