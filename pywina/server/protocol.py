"""What a connection may do before it is a request: uvicorn with deadlines, and a clean end.

uvicorn limits the time between requests, but not the time that a request's headers take; a client
that sends a byte a second would stay for ever. Here a connection without a whole header has
HEADER_SECONDS, and there are at most MAX_CONNECTIONS.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from .checks import CHUNK, HEADER_BYTES

HEADER_SECONDS = 10.0
MAX_CONNECTIONS = 2048
DRAIN_SECONDS = 30


def _write_chunk(cycle: RequestResponseCycle, data: bytes) -> bool:
    """One chunk (RFC 9112, 7.1) past the layers between a route and its connection, which cost as
    much as all else that a token costs here. h11's state is the same after a chunk as before it."""
    if (
        cycle.disconnected
        or not cycle.response_started
        or cycle.response_complete
        or cycle.flow.write_paused
        or cycle.transport.is_closing()
        or cycle.scope["http_version"] != "1.1"
    ):
        return False
    if data:  # an empty chunk would be the last one
        cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
    return True


class Protocol(H11Protocol):
    """HTTP/1.1 with a deadline for headers, and a short way for pieces of an answer."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._arm()

    def _arm(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._disarm()
        elif before is None or before.response_complete:
            self._arm()  # headers of a further request have begun

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:  # its task has not begun yet
            extensions: Any = self.scope.setdefault("extensions", {})
            extensions[CHUNK] = partial(_write_chunk, self.cycle)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)


def serve(app: Any, sock: socket.socket) -> None:
    """Answers on a listening socket until SIGINT or SIGTERM, then lets running answers end."""
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    # uvicorn sends itself the signal again once it has drained: that must not end us harshly.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run(sockets=[sock])
