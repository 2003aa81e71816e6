"""Single requests outside a replay: one streamed completion, one whole one."""

from __future__ import annotations

import asyncio

import aiohttp
import msgspec

from tuner.traffic.connections import IDLE_SECONDS, Connections
from tuner.traffic.exchange import PATHS, Exchange, authorization, request_bytes
from tuner.traffic.sse import decode_chunk
from tuner.traffic.trace import Prompt, Request, RequestRecord


def open_session() -> aiohttp.ClientSession:
    """A session without a connection limit or a time limit; sends $SERVETUNE_API_KEY as bearer token if set."""
    headers = {"Accept-Encoding": "identity", "Content-Type": "application/json", **authorization()}
    connector = aiohttp.TCPConnector(limit=0, limit_per_host=0, keepalive_timeout=IDLE_SECONDS)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(), headers=headers)


async def send(
    base_url: str, model: str, request: Request, start: float, *, token_ids: bool = False, timeout: float | None = None
) -> RequestRecord:
    """Send one request now and follow its stream to the end. Never raises for what the server or network does.

    start: origin of the record's times on the event loop's clock (seconds). timeout: seconds for the whole exchange.
    """
    loop = asyncio.get_running_loop()
    connections = Connections(base_url)
    exchange = Exchange(request, loop.time() - start, request_bytes(connections, model, request, token_ids))
    over: asyncio.Future[None] = loop.create_future()
    exchange.prepare(start, lambda exchange: over.set_result(None))
    try:
        async with asyncio.timeout(timeout):
            await carry(connections, exchange)
            await over
    except TimeoutError:
        exchange.error = "timeout"
    finally:
        await connections.close()
    return exchange.record()


async def carry(connections: Connections, exchange: Exchange) -> None:
    """Begin the exchange on a connection of its own making; one that cannot be made ends it."""
    loop = asyncio.get_running_loop()
    try:
        connection = await connections.open()
    except OSError as error:
        exchange.begun(loop.time())
        exchange.ended("refused" if isinstance(error, ConnectionRefusedError) else "connection", loop.time())
        return
    connection.carry(exchange)


async def complete(session: aiohttp.ClientSession, base_url: str, model: str, prompt: Prompt, max_tokens: int) -> str:
    """Greedy text after `prompt`, not streamed. Raises aiohttp.ClientError, also for an answer that is none."""
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0}
    async with session.post(base_url.rstrip("/") + PATHS["completions"], data=msgspec.json.encode(body)) as response:
        response.raise_for_status()
        answer = await response.read()
    try:
        return decode_chunk(answer).choices[0].content
    except (msgspec.DecodeError, IndexError):
        raise aiohttp.ClientPayloadError("the answer is no completion") from None
