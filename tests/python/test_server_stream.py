"""The way of a streamed token out of the server: the bell that wakes the event loop, and the short
way past the layers between a route and its connection."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs starlette (extra server)")
pytest.importorskip("uvicorn", reason="needs uvicorn (extra server)")

from test_server import TEMPLATE, Server, raw

import pywina
from pywina.server.bell import Bell


@pytest.fixture(scope="module")
def model_path(write_model: Any) -> Path:
    return write_model(chat_template=TEMPLATE, n_ctx=4096)


@pytest.fixture(scope="module")
def server(model_path: Path) -> Iterator[Server]:
    running = Server(model_path, "--slots", "2")
    yield running
    assert running.stop() == 0


def test_calls_arrive_in_order_from_many_threads() -> None:
    n_threads, n_calls = 8, 2000

    async def main() -> list[tuple[int, int]]:
        bell, found, here = Bell(asyncio.get_running_loop()), [], threading.get_ident()

        def note(value: tuple[int, int]) -> None:
            assert threading.get_ident() == here
            found.append(value)

        def ring(thread: int) -> None:
            for i in range(n_calls):
                bell.call(note, (thread, i))

        await asyncio.gather(*(asyncio.to_thread(ring, i) for i in range(n_threads)))
        bell.close()  # what has not been called yet is called now
        bell.call(note, (-1, -1))  # and later calls are nothing
        await asyncio.sleep(0)
        return found

    found = asyncio.run(main())
    assert len(found) == n_threads * n_calls
    for thread in range(n_threads):
        assert [i for t, i in found if t == thread] == list(range(n_calls))


def test_who_rings_goes_on_computing() -> None:
    """The interpreter's lock stays with the thread that has called: the loop gets it when that
    thread lets go of it by itself."""

    async def main() -> list[str]:
        bell, order = Bell(asyncio.get_running_loop()), []

        def compute() -> None:
            bell.call(order.append, "told")
            end = time.perf_counter() + 0.1
            while time.perf_counter() < end:
                pass
            order.append("computed")

        await asyncio.to_thread(compute)
        bell.close()
        return order

    interval = sys.getswitchinterval()
    sys.setswitchinterval(100)
    try:
        assert asyncio.run(main()) == ["computed", "told"]
    finally:
        sys.setswitchinterval(interval)


def parts_of(body: bytes) -> list[dict[str, Any]]:
    lines = [line for line in body.split(b"\n") if line]
    assert lines[-1] == b"data: [DONE]"
    return [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]


def unchunk(data: bytes) -> bytes:
    """A body in chunks; it must have an end."""
    body = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        n = int(size, 16)
        assert data[n : n + 2] == b"\r\n"
        body, data = body + data[:n], data[n + 2 :]
        if n == 0:
            assert data == b""
            return body


@pytest.fixture(scope="module")
def wanted(model_path: Path) -> dict[str, Any]:
    """A request for an answer that does not end by itself."""
    with pywina.load(model_path) as model:
        bias = {str(i): -100 for i in range(model.info.n_vocab) if model.is_eog(i)}
    return {"prompt": "abc", "max_tokens": 3000, "temperature": 1.5, "seed": 3, "logit_bias": bias}


@pytest.fixture(scope="module")
def whole(server: Server, wanted: dict[str, Any]) -> str:
    return server.text(**wanted)["choices"][0]["text"]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("reader", ["quick", "slow"])
def test_a_stream_is_the_answer_in_pieces(
    server: Server, wanted: dict[str, Any], whole: str, version: str, reader: str
) -> None:
    """For old clients, too, and for those whose buffers fill up in the middle."""
    request = raw("/v1/completions", wanted | {"stream": True}).replace(
        b"HTTP/1.1", f"HTTP/{version}".encode(), 1
    )
    request = request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
    with socket.socket() as sock:
        if reader == "slow":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(60)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall(request)
        data = b""
        if reader == "slow":  # the server has made the answer, and cannot be rid of it
            end = time.monotonic() + 60
            while server.get("/health")[1]["busy"] and time.monotonic() < end:
                time.sleep(0.02)
        while part := sock.recv(65536 if reader == "quick" else 3000):
            data += part
    head, _, body = data.partition(b"\r\n\r\n")
    assert (b"chunked" in head) == (version == "1.1")
    parts = parts_of(unchunk(body) if version == "1.1" else body)
    assert "".join(part["choices"][0]["text"] for part in parts) == whole
    assert len(parts) > 1000 and parts[-1]["choices"][0]["finish_reason"] == "length"
