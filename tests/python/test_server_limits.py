"""Bounds of the HTTP server, over real sockets: time for a body, connections, sizes of headers,
when to come back, what a browser on another site gets, and a key that shows nowhere."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

pytest.importorskip("starlette", reason="needs starlette (extra server)")
pytest.importorskip("uvicorn", reason="needs uvicorn (extra server)")

KEY = "open-sesame-4711"
#: the server as it is, but for two numbers that a test cannot wait for or open
START = """
import sys
from pywina.cli import main
from pywina.server import checks, protocol

assert (checks.BODY_SECONDS, protocol.HEADER_SECONDS, protocol.MAX_CONNECTIONS) == (30, 10, 2048)
assert (checks.BODY_BYTES, checks.HEADER_BYTES) == (8 << 20, 32 << 10)
checks.BODY_SECONDS, protocol.MAX_CONNECTIONS = 1.0, 24
sys.exit(main(sys.argv[1:]))
"""


class Server:
    def __init__(self, model: Path, log: Path, key_file: Path) -> None:
        self.log = log
        command = [sys.executable, "-c", START, "serve", "-m", str(model), "--port", "0", "-t", "1",
                   "--slots", "1", "--queue", "1", "--api-key-file", str(key_file)]  # fmt: skip
        env = os.environ | {"PYTHONPATH": str(ROOT), "PYWINA_API_KEY": ""}
        with log.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=env)
        end = time.monotonic() + 60
        while "127.0.0.1:" not in log.read_text() and time.monotonic() < end:
            assert self.process.poll() is None, log.read_text()
            time.sleep(0.05)
        self.port = int(log.read_text().split("127.0.0.1:")[1].split("/")[0])

    def open(self, data: bytes = b"") -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        sock.sendall(data)
        return sock

    def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of what is answered; 0 if the connection just ends."""
        reply = b""
        with self.open() as sock, contextlib.suppress(ConnectionError):
            sock.sendall(data)
            while part := sock.recv(65536):
                reply += part
        head, _, body = reply.partition(b"\r\n\r\n")
        if not head:
            return 0, {}, b""
        first, *rest = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in rest)
        return int(first.split()[1]), headers, body

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        return self.ask(_head("GET", path, **headers) + b"\r\n")

    def health(self) -> dict[str, Any]:
        return json.loads(self.get("/health")[2])


def _head(method: str, path: str, **headers: str) -> bytes:
    given = {"Host": "localhost", "Authorization": f"Bearer {KEY}", "Connection": "close"}
    given |= {name.replace("_", "-"): text for name, text in headers.items()}
    lines = "".join(f"{name}: {text}\r\n" for name, text in given.items() if text)
    return f"{method} {path} HTTP/1.1\r\n{lines}".encode()


def _post(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    length = str(len(data))
    head = _head("POST", "/v1/completions", Content_Type="application/json", Content_Length=length)
    return head + b"\r\n" + data


@pytest.fixture(scope="module")
def server(write_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("limits")
    key_file = folder / "key"
    key_file.write_text(KEY + "\n")
    made = Server(write_model(n_ctx=4096), folder / "log", key_file)
    yield made
    made.process.send_signal(signal.SIGTERM)
    assert made.process.wait(60) == 0
    assert KEY not in made.log.read_text(), "a key is never logged"


def test_a_body_that_does_not_come(server: Server) -> None:
    head = _head("POST", "/v1/completions", Content_Type="application/json", Content_Length="100")
    for start in (b"", b'{"prompt": "a"'):
        began = time.monotonic()
        status, _, body = server.ask(head + b"\r\n" + start)
        assert status == 408 and b"took too long" in body
        assert 0.9 < time.monotonic() - began < 10
    assert server.health()["busy"] == 0


def test_a_body_that_is_longer_or_shorter_than_it_says(server: Server) -> None:
    head = _head("POST", "/v1/completions", Content_Type="application/json")
    chunked = _head(
        "POST", "/v1/completions", Content_Type="application/json", Transfer_Encoding="chunked"
    )
    too_large = chunked + b"\r\n" + (b"10000\r\n" + b" " * 65536 + b"\r\n") * 129 + b"0\r\n\r\n"
    assert server.ask(too_large)[0] == 413
    assert server.ask(head + b"Content-Length: -1\r\n\r\n{}")[0] == 400
    assert server.ask(head + b"Content-Length: 1e400\r\n\r\n{}")[0] == 400
    assert server.ask(head + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}")[0] == 400
    both = b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert server.ask(head + both)[0] == 400
    assert server.ask(chunked + b"\r\nxyz\r\n{}\r\n0\r\n\r\n")[0] == 400
    assert server.health()["busy"] == 0


def test_headers_up_to_a_size(server: Server) -> None:
    """headers_in_one_piece: those that came within one read were once taken at any size."""
    assert server.get("/health", X="a" * (30 << 10))[0] == 200
    assert server.get("/health", X="a" * (33 << 10))[0] == 431
    assert server.get("/health?" + "a" * (33 << 10))[0] == 431
    assert server.get("/health", **{f"X{i}": "a" for i in range(4000)})[0] == 431
    assert server.get("/health", X="a" * (300 << 10))[0] in (400, 431, 0)
    assert server.get("/health")[0] == 200


def test_connections_have_a_limit(server: Server) -> None:
    """Those beyond it end at once; when the others are gone all is as before."""
    held = [server.open() for _ in range(24)]
    try:
        with server.open() as more:
            more.settimeout(5)
            assert more.recv(1) == b""
    except ConnectionError:
        pass
    finally:
        for sock in held:
            sock.close()
    end = time.monotonic() + 10
    while server.get("/health")[0] != 200 and time.monotonic() < end:
        time.sleep(0.05)
    assert server.get("/health")[0] == 200


def test_a_full_queue_says_when_to_come_back(server: Server) -> None:
    ask = _post({"prompt": "abc", "max_tokens": 4000, "stream": True})
    held = []
    try:
        for name in ("busy", "queue"):
            for _ in range(200):  # an answer may end by itself: then another one is asked for
                held.append(server.open(ask))
                end = time.monotonic() + 2
                while not (full := server.health()[name] == 1) and time.monotonic() < end:
                    time.sleep(0.01)
                if full:
                    break
        status, headers, body = server.ask(_post({"prompt": "a"}))
        assert status == 503 and int(headers["retry-after"]) >= 1
        assert json.loads(body)["error"]["type"] == "overloaded_error"
    finally:
        for sock in held:
            sock.close()


def test_other_sites_get_no_permission(server: Server) -> None:
    """No header of CORS, ever: not to a preflight, not with the key, not on errors."""
    for method in ("OPTIONS", "GET", "POST"):
        for origin in ("https://evil.example", "null", "http://localhost", ""):
            _, headers, _ = server.ask(
                _head(method, "/v1/models", Origin=origin,
                      Access_Control_Request_Method="POST") + b"\r\n"
            )  # fmt: skip
            assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize("given", ["", KEY, f"Bearer {KEY[:-1]}", f"Bearer {KEY}é", "Bearer ",
                                   f"Basic {KEY}", "Bearer " + "x" * 20_000])  # fmt: skip
def test_the_key_of_a_file(server: Server, given: str) -> None:
    assert server.get("/v1/models", Authorization=given)[0] == 401
    assert server.get("/v1/models")[0] == 200
    assert server.get("/v1/models", Authorization=f"bearer   {KEY}")[0] == 200
    twice = _head("GET", "/v1/models") + f"Authorization: Bearer {KEY}\r\n\r\n".encode()
    assert server.ask(twice)[0] == 401


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hmac's comparison, whole keys each time, wherever the first difference is."""
    from pywina.server import checks

    compared = []

    def compare(given: bytes, key: bytes) -> bool:
        compared.append((given, key))
        return given == key

    monkeypatch.setattr(checks.hmac, "compare_digest", compare)
    inner = checks.Checks(None, key=KEY)
    for given in (KEY, "", "x", KEY[:-1], KEY + "x"):
        headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {given}".encode())]
        scope = {"path": "/v1/models", "raw_path": b"", "query_string": b"", "headers": headers}
        with contextlib.ExitStack() as stack:
            if given != KEY:
                stack.enter_context(pytest.raises(checks.RequestError, match="API key"))
            inner._check(scope)
    assert compared == [(x.encode(), KEY.encode()) for x in (KEY, "", "x", KEY[:-1], KEY + "x")]


def test_no_request_names_a_path(server: Server) -> None:
    """A model, adapter or file in a request is a name to compare, never a file to open."""
    for path in ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/v1/../key"):
        status, _, body = server.get(path)
        assert status in (400, 404) and b"root:" not in body and KEY.encode() not in body
    for name in ("model", "lora", "grammar_file", "state", "prompt_cache"):
        _, _, body = server.ask(_post({"prompt": "a", "max_tokens": 1, name: "/etc/passwd"}))
        assert b"root:" not in body
    assert server.get("/health")[0] == 200
