"""A server that others run, behind a URL: what it serves, whether it is still there, why it refuses a request."""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import Sequence

import aiohttp
import msgspec

from tuner.errors import EngineCrashed
from tuner.serving.api import EngineApi
from tuner.serving.testbed import BROKEN, Load
from tuner.traffic.client import open_session
from tuner.traffic.exchange import API_KEY_VARIABLE, PATHS, base_url, request_body
from tuner.traffic.replay import Replay, Stop, replay
from tuner.traffic.trace import Request

ANSWER_SECONDS = 10.0
_WORD = re.compile(r"[\w.-]{1,64}")


class ServerLost(EngineCrashed):
    """The server ended during a replay. replay: what was measured until then, and the failures since."""

    def __init__(self, message: str, replay: Replay) -> None:
        super().__init__(message)
        self.replay = replay


async def first_model(option: str, url: str) -> str:
    """The first model that the server lists. Raises ValueError naming the option."""
    try:
        async with EngineApi(base_url(url)) as api:
            return await api.model_name(ANSWER_SECONDS)
    except aiohttp.ClientResponseError as error:
        raise ValueError(f"{option} {url}: /v1/models answers HTTP {error.status}{_key_hint(error.status)}") from None
    except (aiohttp.ClientError, OSError, ValueError, KeyError, IndexError):
        raise ValueError(f"{option} {url}: no list of models at /v1/models; is the server running?") from None


def _key_hint(status: int) -> str:
    if status not in (401, 403):
        return ""
    return f"; {API_KEY_VARIABLE} holds {'another key' if os.environ.get(API_KEY_VARIABLE) else 'no key'}"


async def replay_remote(url: str, model: str, load: Load, stop: Stop | None) -> Replay:
    """Replay a load. Raises ServerLost when the server is gone, and ValueError when it refuses whatever it is asked:
    neither says how much it can serve."""
    done = await replay(
        load.requests, url, model, time_scale=load.time_scale, drain_timeout=load.drain_timeout, stop=stop,
        span=load.span,
    )  # fmt: skip
    errors = Counter(record.error for record in done.records if record.error is not None)
    answered = sum(record.finish_reason is not None for record in done.records)
    if errors.keys() & BROKEN and not await _still_there(url):
        counts = ", ".join(f"{error} {count}" for error, count in sorted(errors.items()))
        raise ServerLost(f"{url}: gone; {answered} of {len(done.records)} requests were answered ({counts})", done)
    if errors["http_4xx"] and not answered:
        refused = next(record.request_id for record in done.records if record.error == "http_4xx")
        request = next(request for request in load.requests if request.id == refused)
        if (reason := await _refusal(url, model, request)) is not None:
            raise ValueError(f"{url}: refuses every request of model {model!r}, {refused} with {reason}")
    return done


async def _still_there(url: str) -> bool:
    """Whether anything answers that is not about to end; what is too busy to say so in time is there."""
    try:
        async with open_session() as session, asyncio.timeout(ANSWER_SECONDS), session.get(f"{url}/health") as response:
            return response.status < 500
    except TimeoutError:
        return True
    except (aiohttp.ClientError, OSError):
        return False


async def _refusal(url: str, model: str, request: Request) -> str | None:
    """Status and error words of the answer to the request; None if it is not refused, or only for now (429).

    The message may quote the prompt, and is not told."""
    try:
        async with (
            open_session() as session,
            asyncio.timeout(ANSWER_SECONDS),
            session.post(url + PATHS[request.endpoint], data=request_body(model, request)) as response,
        ):
            if not 400 <= response.status < 500 or response.status == 429:
                return None
            words = _words(await response.read())
            return f"HTTP {response.status}{words and f' ({words})'}{_key_hint(response.status)}"
    except (TimeoutError, aiohttp.ClientError, OSError):
        return None


def _words(body: bytes) -> str:
    """Type, code and parameter of an error in OpenAI's shape, or nothing."""
    try:
        error = msgspec.json.decode(body)["error"]
        values: Sequence[object] = [error.get(key) for key in ("type", "code", "param")]
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        return ""
    return ", ".join(value for value in values if isinstance(value, str) and _WORD.fullmatch(value))
