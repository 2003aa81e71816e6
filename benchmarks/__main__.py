"""python -m benchmarks: every benchmark once, one JSON object a line, with the environment it was measured in."""

from __future__ import annotations

import asyncio
import json

from benchmarks import engine_throughput, scheduler_steps, send_lag
from tuner.environment import environment

if __name__ == "__main__":
    print(json.dumps({"environment": environment()}))
    print(json.dumps({"send_lag": asyncio.run(send_lag.measure(rate=200.0, seconds=10.0, tokens=16))}))
    print(json.dumps({"scheduler_steps": scheduler_steps.measure()}))
    print(json.dumps({"engine_throughput": engine_throughput.measure()}))
