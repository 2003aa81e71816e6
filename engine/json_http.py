"""JSON in, JSON out, errors in OpenAI's shape: what every route of the API shares."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from engine.core_client import EngineDied, RequestRejected
from engine.protocol import ApiError, RequestT, parse_request

JSON = "application/json"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever a handler raises for the client, in OpenAI's error shape."""
    try:
        return await handler(request)
    except ApiError as caught:
        error = caught
    except RequestRejected as caught:
        error = ApiError(400, str(caught), code="request_rejected")
    except EngineDied as caught:
        error = ApiError(500, str(caught), code="engine_died")
    except web.RequestPayloadError:
        error = ApiError(400, "the body cannot be read; see Content-Encoding and Transfer-Encoding")
    except web.HTTPException as caught:
        error = ApiError(caught.status, f"{caught.reason}: {request.method} {request.path}")
    response = web.Response(status=error.status, body=error.body(), content_type=JSON, headers=error.headers)
    if request.body_exists and not request.content.is_eof():
        response.force_close()  # what is left of the body stands before the next request; the client must know
    return response


async def parse_body(model: type[RequestT], request: web.Request) -> RequestT:
    """Read and validate a body. Raises ApiError: 415 for another content type, 400 naming the field."""
    # A web page may post to a loopback address without asking, but not with this content type.
    if request.content_type != JSON:
        raise ApiError(415, f"expected Content-Type: {JSON}, found {request.content_type}")
    return parse_request(model, await request.read())


def json_response(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type=JSON)
