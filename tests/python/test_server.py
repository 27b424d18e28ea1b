"""The HTTP server over real sockets: answers, limits, who may ask, and clients that leave."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

import pywina

pytest.importorskip("starlette", reason="needs starlette (extra server)")
uvicorn = pytest.importorskip("uvicorn", reason="needs uvicorn (extra server)")

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
)
KEY = "sesame"


class Server:
    """`pywina serve` in a process of its own. It starts while others do something else: the first
    use of the port waits for it."""

    def __init__(self, model: Path, *options: str, key: str = "") -> None:
        env = os.environ | {"PYTHONPATH": str(ROOT), "PYWINA_API_KEY": key}
        command = [sys.executable, "-m", "pywina", "serve", "-m", str(model), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "-t", "1", *options], stderr=subprocess.PIPE, text=True, env=env
        )

    @functools.cached_property
    def port(self) -> int:
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert " at http://127.0.0.1:" in line, line + self.process.stderr.read()
        assert " on the CPU, 1 thread (" in line and " slots of " in line, line
        return int(line.split("127.0.0.1:")[1].split("/")[0])

    def send(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and JSON (or text) of one request. body: bytes as they are, else JSON."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            base = {"Content-Type": "application/json"} if data is not None else {}
            connection.request(method, path, data, base | (headers or {}))
            reply = connection.getresponse()
            text = reply.read().decode()
        finally:
            connection.close()
        return reply.status, json.loads(text) if text[:1] == "{" else text

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        return self.send("GET", path, None, headers)

    def post(self, path: str, body: object) -> tuple[int, Any]:
        return self.send("POST", path, body)

    def text(self, **body: Any) -> dict[str, Any]:
        status, reply = self.post("/v1/completions", {"prompt": "abc", "max_tokens": 8, **body})
        assert status == 200, reply
        return reply

    def open(self, data: bytes) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        sock.sendall(data)
        return sock

    def idle(self) -> bool:
        health = self.get("/health")[1]
        return health["busy"] == 0 and health["queue"] == 0

    def stop(self) -> int:
        if self.process.poll() is None:
            self.get("/health")  # before it has started, a signal just ends it
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def raw(path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return head.encode() + f"Content-Length: {len(data)}\r\n\r\n".encode() + data


def wait_for(condition: Any, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())


@pytest.fixture(scope="module")
def model_path(write_model: Any) -> Path:
    return write_model(chat_template=TEMPLATE, n_ctx=4096)


@pytest.fixture(scope="module")
def no_end(model_path: Path) -> dict[str, int]:
    """A logit_bias with which an answer never ends by itself."""
    with pywina.load(model_path) as model:
        return {str(i): -100 for i in range(model.info.n_vocab) if model.is_eog(i)}


class Lingerer(threading.Thread):
    """A client that sends a header, byte by byte, for as long as it may."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self.server, self.seconds = server, 0.0

    def run(self) -> None:
        with self.server.open(b"POST /v1/completions HTTP/1.1\r\nHost: loc") as sock:
            started = time.monotonic()
            sock.settimeout(1)
            with contextlib.suppress(ConnectionError):
                while time.monotonic() - started < 60:
                    sock.sendall(b"a")
                    try:
                        if not sock.recv(100):
                            break
                    except TimeoutError:
                        continue
            self.seconds = time.monotonic() - started


@pytest.fixture(scope="module")
def servers(model_path: Path, request: pytest.FixtureRequest) -> Iterator[dict[str, Server]]:
    """All of them, started at the same time."""
    made = {
        "common": Server(model_path, "--slots", "2", "--queue", "64"),
        "small": Server(model_path, "--slots", "1", "--queue", "1"),
        "locked": Server(model_path, "--slots", "1", key=KEY),
    }
    with contextlib.suppress(pytest.skip.Exception):  # test_json_schema says so itself
        path = request.getfixturevalue("smollm2_path")
        made["real"] = Server(path, "--slots", "1", "--ctx", "256")
    yield made
    codes = {name: server.stop() for name, server in made.items()}
    assert codes == dict.fromkeys(made, 0)
    for server in made.values():  # asyncio says so of each write to a client that has left
        assert server.process.stderr is not None
        assert "socket.send()" not in server.process.stderr.read(1 << 16)


@pytest.fixture(scope="module")
def server(servers: dict[str, Server]) -> Server:
    return servers["common"]


@pytest.fixture(scope="module", autouse=True)
def lingerer(server: Server) -> Lingerer:
    """Runs while other tests do: its wait costs nothing."""
    client = Lingerer(server)
    client.start()
    return client


# ---- answers -------------------------------------------------------------------------------------


def test_completion_is_that_of_the_library(server: Server, model_path: Path) -> None:
    wanted = {"max_tokens": 12, "seed": 3, "temperature": 0.8, "sparsity": 0.4}
    with pywina.load(model_path) as model:
        whole = model.create_completion("abc", logprobs=2, **wanted)
    reply = server.text(logprobs=2, **wanted)
    assert reply["choices"] == whole["choices"]
    assert reply["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert reply["usage"]["pywina"]["kept_fraction"] == whole["usage"]["pywina"]["kept_fraction"]


def test_stream_is_the_whole_answer(server: Server) -> None:
    body = {"prompt": "abc", "max_tokens": 12, "seed": 3, "ignored_field": 1}
    with server.open(raw("/v1/completions", body | {"stream": True,
                         "stream_options": {"include_usage": True}})) as sock:  # fmt: skip
        data = b""
        while b"[DONE]" not in data:
            data += sock.recv(65536)
    parts = [json.loads(line[6:]) for line in data.split(b"\n") if line.startswith(b"data: {")]
    assert parts[-1]["choices"] == [] and parts[-1]["usage"]["prompt_tokens"] > 0
    text = "".join(part["choices"][0]["text"] for part in parts[:-1])
    assert text == server.text(max_tokens=12, seed=3)["choices"][0]["text"]


def test_answers_do_not_depend_on_company(server: Server) -> None:
    alone = [server.text(seed=seed, max_tokens=16)["choices"] for seed in range(8)]
    with ThreadPoolExecutor(16) as pool:
        together = list(
            pool.map(lambda i: server.text(seed=i % 8, max_tokens=16)["choices"], range(64))
        )
    assert together == [alone[i % 8] for i in range(64)]


def test_sparsity_changes_in_mid_stream(server: Server, no_end: Any) -> None:
    body = {"prompt": "abc", "max_tokens": 3000, "stream": True, "stats": True, "seed": 1,
            "temperature": 0, "logit_bias": no_end}  # fmt: skip
    with server.open(raw("/v1/completions", body)) as sock, sock.makefile("rb") as lines:
        parts = (json.loads(line[6:]) for line in lines if line.startswith(b"data: {"))
        first = next(parts)
        status, reply = server.post(f"/v1/answers/{first['id']}/sparsity", {"sparsity": 0.6})
        assert (status, reply["sparsity"]) == (200, 0.6)
        seen = []
        for part in parts:
            seen.append(part["pywina"]["sparsity"])
            if seen[-1] == 0.6:
                break
    assert seen[-1] == 0.6 and len(seen) < 2900, "changed while it ran"
    assert server.post("/v1/answers/nobody/sparsity", {"sparsity": 0.6})[0] == 404


def test_embeddings(server: Server, model_path: Path) -> None:
    status, reply = server.post("/v1/embeddings", {"input": ["abc", "de"]})
    assert status == 200
    with pywina.load(model_path) as model:
        assert reply["data"][1]["embedding"] == pytest.approx(model.embed("de").tolist())
    assert reply["usage"]["prompt_tokens"] > 0


def test_openai_client(server: Server) -> None:
    openai = pytest.importorskip("openai", reason="needs the openai package (extra dev)")
    client = openai.OpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1", api_key="x", max_retries=0
    )
    assert len(client.models.list().data) == 1
    messages: Any = [{"role": "user", "content": "abc"}]
    options: Any = {"model": "any", "messages": messages, "max_tokens": 10, "seed": 5}
    whole = client.chat.completions.create(**options, logprobs=True, top_logprobs=2)
    assert whole.usage.completion_tokens == len(whole.choices[0].logprobs.content) > 0
    parts = list(client.chat.completions.create(**options, stream=True))
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    assert text == whole.choices[0].message.content
    vector = client.embeddings.create(model="any", input="abc").data[0].embedding
    assert len(vector) > 0 and all(isinstance(value, float) for value in vector)
    stream = client.chat.completions.create(**options | {"max_tokens": 3000}, stream=True)
    next(iter(stream))
    stream.close()
    assert wait_for(server.idle)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(**options, temperature=-1)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_company_of_other_sparsity(server: Server) -> None:
    """Answers that step together keep their own sparsity."""
    bodies = [{"seed": i, "max_tokens": 24, "sparsity": 0.3 * (i % 3)} for i in range(6)]

    def answer(body: dict[str, Any]) -> Any:
        reply = server.text(**body)
        return reply["choices"], reply["usage"]["pywina"]["kept_fraction"]

    alone = [answer(body) for body in bodies]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(answer, bodies * 4)) == alone * 4


LONG = [66 + i % 20 for i in range(1000)]
LONG_WORK: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt": ("/v1/completions", {"prompt": LONG, "max_tokens": 4, "seed": 1}),
    "scored prompt": ("/v1/completions", {"prompt": LONG, "max_tokens": 4, "seed": 1,
                                          "echo": True, "logprobs": 1}),
    "embedding": ("/v1/embeddings", {"input": [LONG, "abc"]}),
}  # fmt: skip


@pytest.mark.parametrize("kind", LONG_WORK)
def test_long_work_does_not_stall_others(server: Server, no_end: Any, kind: str) -> None:
    """Between two pieces of it, an answer under way gets a token; it is what it is alone."""
    answer = {"prompt": "abc", "max_tokens": 3000, "stream": True, "logit_bias": no_end}
    path, asked = LONG_WORK[kind]
    with server.open(raw("/v1/completions", answer)) as sock, sock.makefile("rb") as lines:
        parts = (line for line in lines if line.startswith(b"data: {"))
        next(parts)
        n_before = 0
        with server.open(raw(path, asked)) as other:
            assert wait_for(lambda: server.get("/health")[1]["busy"] == 2)
            other.setblocking(False)
            data = b""
            for n_before, _ in enumerate(parts):  # noqa: B007
                with contextlib.suppress(BlockingIOError):
                    data += other.recv(65536)
                if data:
                    break
            other.setblocking(True)
            other.settimeout(60)
            while b"\r\n\r\n" not in data or not data.rstrip().endswith(b"}"):
                data += other.recv(65536)
    together = json.loads(data[data.index(b"\r\n\r\n") :])
    assert n_before > 15, "1000 tokens in pieces of 32 are 32 rounds"
    assert wait_for(server.idle)
    alone = server.post(path, asked)[1]
    key = "data" if kind == "embedding" else "choices"
    assert together[key] == alone[key] and len(alone[key]) > 0


def test_leaving_in_mid_embedding_frees_the_slot(server: Server) -> None:
    text = [66 + i % 20 for i in range(4000)]
    wanted = server.post("/v1/embeddings", {"input": "abc"})[1]["data"]
    for delay in (0.0, 0.05, 0.3):
        with server.open(raw("/v1/embeddings", {"input": [text] * 200})):
            assert wait_for(lambda: server.get("/health")[1]["busy"] == 1, 60)
            time.sleep(delay)
        assert wait_for(server.idle, 5)
    assert server.post("/v1/embeddings", {"input": "abc"})[1]["data"] == wanted


def test_embeddings_that_do_not_fit(server: Server) -> None:
    status, reply = server.post("/v1/embeddings", {"input": ["abc", [66] * 5000]})
    assert status == 400 and "n_ctx" in reply["error"]["message"]


def test_echo_with_log_probabilities(server: Server, model_path: Path) -> None:
    wanted = {"max_tokens": 5, "seed": 3, "temperature": 0.8, "echo": True, "logprobs": 2}
    with pywina.load(model_path) as model:
        whole = model.create_completion("abcabc", **wanted)["choices"]
    assert server.text(**wanted | {"prompt": "abcabc"})["choices"] == whole
    with server.open(raw("/v1/completions", wanted | {"prompt": "abcabc", "stream": True})) as sock:
        data = b""
        while b"[DONE]" not in data:
            data += sock.recv(65536)
    parts = [json.loads(line[6:]) for line in data.split(b"\n") if line.startswith(b"data: {")]
    assert "".join(part["choices"][0]["text"] for part in parts) == whole[0]["text"]
    assert parts[0]["choices"][0]["text"] == "abcabc"
    status, reply = server.post("/v1/completions", wanted | {"prompt": [66] * 5000})
    assert status == 400 and "n_ctx" in reply["error"]["message"]


def test_tools_are_shown_to_the_model(server: Server, model_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    messages = [{"role": "user", "content": "abc"}]
    options = {"max_tokens": 5, "seed": 2, "temperature": 0.8}
    body = {"messages": messages, **options}
    plain = server.post("/v1/chat/completions", body)[1]
    status, told = server.post("/v1/chat/completions", body | {"tools": tools})
    assert status == 200 and told["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + 20
    with pywina.load(model_path) as model:
        wanted = model.create_chat_completion(messages, tools=tools, **options)
    assert told["choices"][0]["message"] == wanted["choices"][0]["message"]
    unshown = server.post("/v1/chat/completions", body | {"tools": tools, "tool_choice": "none"})
    assert unshown[1]["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]
    status, reply = server.post("/v1/chat/completions", body | {"tool_choice": "required"})
    assert status == 400 and "tool_choice" in reply["error"]["message"]


def test_json_schema(servers: dict[str, Server], smollm2_path: Path) -> None:
    pytest.importorskip("llguidance", reason="needs llguidance (extra grammar)")
    schema = {"type": "object", "properties": {"n": {"type": "boolean"}}, "required": ["n"],
              "additionalProperties": False}  # fmt: skip
    status, reply = servers["real"].post("/v1/chat/completions", {
        "messages": [{"role": "user", "content": "Give JSON."}], "seed": 1,
        "max_tokens": 40, "temperature": 0,
        "response_format": {"type": "json_schema", "json_schema": {"schema": schema}},
    })  # fmt: skip
    assert status == 200, reply
    assert isinstance(json.loads(reply["choices"][0]["message"]["content"])["n"], bool)


# ---- what is refused -----------------------------------------------------------------------------

NUMBERS = [
    ("temperature", "-1"), ("temperature", "NaN"), ("temperature", "1e400"), ("top_p", "1.5"),
    ("temperature", "Infinity"), ("temperature", "true"), ("temperature", '"1"'), ("seed", "-1"),
    ("max_tokens", "0"), ("max_tokens", "-5"), ("max_tokens", "9223372036854775808"),
    ("max_tokens", "1.5"), ("seed", "9223372036854775808"), ("seed", "1" * 5000), ("top_k", "-1"),
    ("sparsity", "1"), ("sparsity", "-0.1"), ("n", "2"), ("logprobs", "21"), ("stop", '[""]'),
    ("stop", "[1]"), ("logit_bias", '{"x": 1}'), ("logit_bias", '{"1": 1e9}'), ("stream", "1"),
    ("logit_bias", '{"99999999": 1}'), ("presence_penalty", "-1e308"), ("prompt", '""'),
    ("prompt", "[]"), ("prompt", "[-1]"), ("prompt", "[99999999]"), ("prompt", '["a","b"]'),
    ("prompt", '"\\ud800"'), ("prompt", "{}"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), NUMBERS)
def test_value_out_of_range(server: Server, name: str, value: str) -> None:
    rest = "" if name == "prompt" else '"prompt": "a", '
    status, reply = server.post("/v1/completions", f'{{{rest}"{name}": {value}}}'.encode())
    assert status == 400 and reply["error"]["type"] == "invalid_request_error", reply


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400), (b"{", 400), (b"[]", 400), (b"null", 400), (b"{}", 400), (b"\xff", 400),
        (b'{"prompt": "\xc3\x28"}', 400), (b'{"prompt": "a", "x": ' + b"[" * 63 + b"]" * 63 + b"}",
         200), (b'{"prompt": "a", "x": ' + b"[" * 64 + b"]" * 64 + b"}", 400),
        (b"[" * 100_000, 400), (b'{"a":' * 100_000, 400), (b" " * ((8 << 20) + 1), 413),
    ],
    ids=range(12),
)  # fmt: skip
def test_body(server: Server, body: bytes, status: int) -> None:
    assert server.post("/v1/completions", body)[0] == status


def test_messages(server: Server) -> None:
    for messages in ([], [1], [{}], [{"role": "user", "content": 1}], "x", [{"role": 1}],
                     [{"role": "user", "content": [{"type": "image_url"}]}]):  # fmt: skip
        status, reply = server.post("/v1/chat/completions", {"messages": messages})
        assert (status, reply["error"]["param"]) == (400, "messages")


def test_prompt_that_does_not_fit(server: Server) -> None:
    for stream in (False, True):
        status, reply = server.post("/v1/completions", {"prompt": "a " * 9000, "stream": stream})
        assert status == 400 and "n_ctx" in reply["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200), ({"Host": "localhost:1"}, 200), ({"Host": "[::1]:80"}, 200),
        ({"Host": "evil.example"}, 403), ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": ""}, 403), ({"Host": "localhost@evil.example"}, 403),
        ({"Host": "localhost", "Origin": "http://localhost"}, 200),
        ({"Host": "localhost", "Origin": "http://localhost:81"}, 403),
        ({"Origin": "null"}, 403), ({"Origin": "https://evil.example"}, 403),
    ],
    ids=range(11),
)  # fmt: skip
def test_host_and_origin(server: Server, headers: dict[str, str], status: int) -> None:
    assert server.get("/v1/models", headers)[0] == status


def test_other_content_types_are_refused(server: Server) -> None:
    body, headers = b'{"prompt": "a"}', {"Content-Type": "text/plain"}
    assert server.send("POST", "/v1/completions", body, headers)[0] == 415


def test_large_headers_are_refused(server: Server) -> None:
    with server.open(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000) as sock:
        reply = b""
        with contextlib.suppress(ConnectionError):
            while part := sock.recv(65536):
                reply += part
    assert reply.startswith(b"HTTP/1.1 400") or reply == b""


def test_key(servers: dict[str, Server]) -> None:
    locked = servers["locked"]
    for given, status in (("", 401), (KEY, 401), ("Bearer wrong", 401), ("Basic " + KEY, 401),
                          ("Bearer " + KEY, 200), ("Bearer " + KEY + "x", 401)):  # fmt: skip
        assert locked.get("/v1/models", {"Authorization": given})[0] == status, given
    assert locked.get("/metrics")[0] == 401
    assert locked.get("/")[0] == 200 and locked.get("/health")[0] == 200


def test_other_addresses_need_a_key(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pywina.cli import main

    monkeypatch.delenv("PYWINA_API_KEY", raising=False)
    assert main(["serve", "-m", str(model_path), "--host", "0.0.0.0", "--port", "0"]) == 2


def test_a_port_that_is_taken(model_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pywina.cli import main

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "-m", str(model_path), "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert f"port {port}: another program uses it; --port 0 takes any" in said


# ---- slow and leaving clients --------------------------------------------------------------------


def test_leaving_frees_the_slot(server: Server, no_end: Any) -> None:
    body = {"prompt": "abc", "max_tokens": 3500, "stream": True, "logit_bias": no_end}
    for n_tokens in (0, 1, 2, 5, 20, 50):
        with server.open(raw("/v1/completions", body)) as sock, sock.makefile("rb") as lines:
            for _ in range(n_tokens):
                while not lines.readline().startswith(b"data: "):
                    pass
        assert wait_for(server.idle, 5), n_tokens
    server.text()


def test_slow_clients_do_not_hold_up_others(server: Server, lingerer: Lingerer) -> None:
    slow = [server.open(b"POST /v1/completions HTTP/1.1\r\nHost: loc") for _ in range(100)]
    try:
        started = time.monotonic()
        server.text()
        assert time.monotonic() - started < 1
    finally:
        for sock in slow:
            sock.close()
    lingerer.join(30)
    assert 5 < lingerer.seconds < 12, "headers that do not end are cut off after 10 s"


def test_full_queue_and_a_stop_that_drains(servers: dict[str, Server], no_end: Any) -> None:
    small = servers["small"]
    body = {"prompt": "abc", "max_tokens": 4000, "stream": True, "logit_bias": no_end}
    held = [small.open(raw("/v1/completions", body))]
    assert wait_for(lambda: small.get("/health")[1]["busy"] == 1)
    held.append(small.open(raw("/v1/completions", body)))
    assert wait_for(lambda: small.get("/health")[1]["queue"] == 1)
    status, reply = small.post("/v1/completions", {"prompt": "a"})
    assert (status, reply["error"]["type"]) == (503, "overloaded_error")
    for sock in held:
        sock.close()
    assert wait_for(small.idle)
    assert "pywina_rejected_total 1" in small.get("/metrics")[1]

    replies: list[dict[str, Any]] = []
    ask = threading.Thread(target=lambda: replies.append(
        small.text(max_tokens=1500, logit_bias=no_end)))  # fmt: skip
    ask.start()
    assert wait_for(lambda: small.get("/health")[1]["busy"] == 1)
    assert small.stop() == 0
    ask.join()
    assert replies[0]["usage"]["completion_tokens"] == 1500


def test_page_asks_nobody_else(server: Server) -> None:
    status, page = server.get("/")
    assert status == 200 and "http://" not in page and "https://" not in page


def test_shared_weights(model_path: Path) -> None:
    """A second context over the same weights lives longer than the first."""
    first = pywina.load(model_path)
    text = first.generate("abc", max_tokens=8, seed=1)
    second = first.share()
    stream = first.stream("abc", max_tokens=8, seed=1)
    next(stream)
    assert second.generate("abc", max_tokens=8, seed=1) == text
    first.close()
    assert second.generate("abc", max_tokens=8, seed=1) == text
    second.close()
    with pytest.raises(pywina.StateError):
        first.share()
