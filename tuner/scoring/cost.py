"""What goodput costs (formulas: docs/metrics.md)."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.scoring.metrics import Interval


@dataclass(frozen=True, slots=True)
class Cost:
    """price_per_hour: of one device, in `currency`. devices: how many the engine runs on."""

    price_per_hour: float
    devices: int = 1
    currency: str = "USD"

    def of(self, goodput: Interval) -> dict[str, Interval]:
        """Good requests per device-hour and per unit of currency. goodput: good requests per second."""
        hourly = 3600 / self.devices
        factors = {"device-hour": hourly, self.currency: hourly / self.price_per_hour}
        return {
            f"goodput per {name}": Interval(goodput.value * factor, goodput.low * factor, goodput.high * factor)
            for name, factor in factors.items()
        }
