"""EngineApi against a server that answers what a broken engine would."""

from __future__ import annotations

import math

from aiohttp import web

from tuner.scoring.probes import Probe, ProbeRecord
from tuner.serving.api import EngineApi
from tuner.stored import pack, unpack


async def test_a_log_probability_that_is_no_number_can_be_stored_and_read_back() -> None:
    async def score(request: web.Request) -> web.Response:
        return web.json_response({"items": [{"tokens": [5, 6], "logprobs": [-0.5, None], "top_tokens": [5, 7]}]})

    app = web.Application()
    app.router.add_post("/score", score)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with EngineApi(f"http://127.0.0.1:{runner.addresses[0][1]}") as api:
        records = await api.ask("m", [Probe("a", "text", "forced", "x", "y")])
    await runner.cleanup()
    read = unpack(pack(records), tuple[ProbeRecord, ...], "test")
    assert read[0].tokens == (5, 6)
    assert read[0].logprobs[0] == -0.5 and math.isnan(read[0].logprobs[1])
