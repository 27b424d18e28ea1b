"""Who may ask: the checks before any route. Pure ASGI, so that they cost next to nothing.

A page of another site can make a browser send requests here; what it cannot do is choose the Host
and Origin headers. So both are compared with what we answer to, and no CORS header is ever sent.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from .schema import RequestError

HEADER_BYTES = 32 << 10
BODY_BYTES = 8 << 20
BODY_SECONDS = 30.0
#: an extension of the scope: write(data) puts a piece of the body that has begun into the
#: connection at once, or says False
CHUNK = "pywina.chunk"
_OPEN = frozenset({"/", "/health"})  # without a key: the page asks for it
_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
          404: "not_found_error", 503: "overloaded_error"}  # fmt: skip


def error_response(error: RequestError, headers: dict[str, str] | None = None) -> JSONResponse:
    """OpenAI's form of an error."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    body = {"message": str(error), "type": kind, "param": error.param, "code": error.code}
    return JSONResponse({"error": body}, error.status, headers)


def _host_name(value: str) -> str:
    """The host of a Host header, without port; brackets of IPv6 stay."""
    if value.startswith("["):
        return value[: value.find("]") + 1].lower()
    return value.rpartition(":")[0].lower() if ":" in value else value.lower()


class Checks:
    """Host, Origin and key of every request, then the inner application."""

    def __init__(
        self, app: Any, *, hosts: Iterable[str] = (), origins: Iterable[str] = (), key: str = ""
    ) -> None:
        self._app, self._key = app, key.encode()
        self._hosts = {"localhost", "127.0.0.1", "[::1]", *(host.lower() for host in hosts)}
        self._origins = {origin.rstrip("/").lower() for origin in origins}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope)
            except RequestError as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Any) -> None:
        found: dict[bytes, list[str]] = {b"host": [], b"origin": [], b"authorization": []}
        # h11 bounds what it waits for; headers that come in one piece are as long as they are.
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if size > HEADER_BYTES:
            raise RequestError(f"the headers are larger than {HEADER_BYTES} bytes", status=431)
        for name, value in scope["headers"]:
            if name in found:
                found[name].append(value.decode("latin-1"))
        hosts, origins = found[b"host"], found[b"origin"]
        if len(hosts) != 1 or _host_name(hosts[0]) not in self._hosts:
            raise RequestError("this Host is not served here; see --allow-host", status=403)
        own = {f"http://{hosts[0].lower()}", f"https://{hosts[0].lower()}"}
        if any(origin.lower() not in own | self._origins for origin in origins):
            raise RequestError("this Origin is not allowed; see --allow-origin", status=403)
        if self._key and scope["path"] not in _OPEN:
            given = found[b"authorization"][0] if len(found[b"authorization"]) == 1 else ""
            scheme, _, key = given.partition(" ")
            same = hmac.compare_digest(key.strip().encode("latin-1"), self._key)
            if scheme.lower() != "bearer" or not same:
                raise RequestError(
                    "the API key is missing or wrong", status=401, code="invalid_api_key"
                )


async def read_body(request: Request) -> bytes:
    """The whole body of a JSON request, within its bounds of size and time."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise RequestError("the Content-Type must be application/json", status=415)
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > BODY_BYTES:
        raise RequestError(f"the body is larger than {BODY_BYTES} bytes", status=413)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > BODY_BYTES:
                    raise RequestError(f"the body is larger than {BODY_BYTES} bytes", status=413)
    except TimeoutError as error:
        raise RequestError("the body took too long", status=408) from error
    return bytes(body)
