"""Puts load on `pywina serve` and checks what it promises; prints one line per check.

python tools/server_load.py [--requests 10000] [--leave 1000]
python tools/server_load.py --only-overhead --overhead model.gguf [--threads 2] [--rounds 9]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests/python")]

import tinymodel  # noqa: E402

import pywina  # noqa: E402

PATH = "/v1/completions"
HEADERS = {"Content-Type": "application/json"}
Json = dict[str, Any]


class Server:
    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port

    def connect(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, connection: HTTPConnection, body: Json) -> Json:
        connection.request("POST", PATH, json.dumps(body), HEADERS)
        reply = connection.getresponse()
        data: Json = json.loads(reply.read())
        assert reply.status == 200, data
        return data

    def health(self) -> Json:
        connection = self.connect()
        connection.request("GET", "/health")
        data: Json = json.loads(connection.getresponse().read())
        connection.close()
        return data

    def memory(self) -> tuple[float, int]:
        """Resident MiB and open descriptors."""
        proc = Path(f"/proc/{self.process.pid}")
        rss = next(x for x in (proc / "status").read_text().splitlines() if x.startswith("VmRSS"))
        return int(rss.split()[1]) / 1024, len(list((proc / "fd").iterdir()))


@contextmanager
def serving(model: Path, *options: str) -> Iterator[Server]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYWINA_API_KEY": ""}
    command = [sys.executable, "-m", "pywina", "serve", "-m", str(model), "--port", "0", *options]
    with tempfile.TemporaryFile("a+") as log:  # a pipe that nobody reads would fill up
        process = subprocess.Popen(command, stderr=log, text=True, env=env)
        try:
            line = ""
            while not line.endswith("\n") and process.poll() is None:
                time.sleep(0.05)
                log.seek(0)
                line = log.readline()
            assert "127.0.0.1:" in line, line
            server = Server(process, int(line.split("127.0.0.1:")[1].split("/")[0]))
            server.health()
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
        log.seek(0)
        lines = log.read().splitlines()
        assert len(lines) < 10, f"the server wrote {len(lines)} lines, such as {lines[1:4]}"


def check_clients(server: Server, n_clients: int, n_requests: int) -> str:
    bodies = [{"prompt": "abc", "max_tokens": 4, "seed": seed} for seed in range(8)]
    connection = server.connect()
    alone = [server.ask(connection, body)["choices"] for body in bodies]
    connection.close()

    def client(number: int) -> int:
        own = server.connect()
        turns = [(number + i) % 8 for i in range(n_requests)]
        same = sum(server.ask(own, bodies[i])["choices"] == alone[i] for i in turns)
        own.close()
        return same

    started = time.perf_counter()
    with ThreadPoolExecutor(n_clients) as pool:
        same = sum(pool.map(client, range(n_clients)))
    total, seconds = n_clients * n_requests, time.perf_counter() - started
    assert same == total, f"{total - same} of {total} answers differ"
    return f"{n_clients} clients x {n_requests}: {same} equal answers in {seconds:.1f} s"


def check_slow(server: Server, n_slow: int) -> str:
    slow = []
    try:
        for _ in range(n_slow):
            sock = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            sock.sendall(b"POST / HTTP/1.1\r\nHost: loc")
            slow.append(sock)
        times = []
        for _ in range(20):
            started = time.perf_counter()
            connection = server.connect()
            server.ask(connection, {"prompt": "abc", "max_tokens": 4})
            connection.close()
            times.append(time.perf_counter() - started)
            for sock in slow[:50]:
                sock.sendall(b"a")
    finally:
        for sock in slow:
            sock.close()
    assert max(times) < 1, times
    return f"{n_slow} slow connections: slowest of 20 good requests {max(times) * 1e3:.0f} ms"


def check_leaving(server: Server, model: Path, n_leave: int) -> str:
    with pywina.load(model) as loaded:
        bias = {str(i): -100 for i in range(loaded.info.n_vocab) if loaded.is_eog(i)}
    body = {"prompt": "abc", "max_tokens": 3500, "stream": True, "logit_bias": bias}
    data = json.dumps(body).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data
    slowest = 0.0
    for i in range(n_leave):
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock,
            sock.makefile("rb") as lines,
        ):
            sock.sendall(request)
            for _ in range(i % 51):
                line = lines.readline()
                while line and not line.startswith(b"data: "):
                    line = lines.readline()
                assert line, "the stream ended before the client left"
        left = time.perf_counter()
        while (state := server.health())["busy"] or state["queue"]:
            assert time.perf_counter() - left < 5, f"slot not free after token {i % 51}"
        slowest = max(slowest, time.perf_counter() - left)
    return f"{n_leave} disconnects at token 0..50: slot free after at most {slowest * 1e3:.0f} ms"


def check_growth(server: Server, n_requests: int) -> str:
    def some(n: int) -> None:
        for i in range(n):
            connection = server.connect()
            server.ask(connection, {"prompt": "abc", "max_tokens": 2, "seed": i})
            connection.close()

    some(200)
    time.sleep(0.2)
    rss, files = server.memory()
    some(n_requests)
    time.sleep(0.2)
    rss2, files2 = server.memory()
    assert rss2 - rss < 4 and files2 <= files, (rss, rss2, files, files2)
    return f"{n_requests} requests: {rss2 - rss:+.2f} MiB resident, {files2 - files:+d} descriptors"


class Took(NamedTuple):
    """Seconds per token."""

    mean: float  # by the clock
    median: float  # from one token to the next: without what other programs do now and then
    processor: float  # of all threads of the process
    loop: float  # of its first thread, which in a server is the event loop's


def thread_seconds(pid: int) -> dict[str, float]:
    """What each thread of a process has used, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {task.name: int((task / "schedstat").read_text().split()[0]) / 1e9 for task in tasks}


def per_token(lines: Iterator[Any], pid: int) -> Took:
    """From the first token on, in process pid."""
    next(lines)
    used = thread_seconds(pid)
    times = [time.perf_counter()]
    times += [time.perf_counter() for _ in lines]
    used_then, n = thread_seconds(pid), len(times) - 1
    gaps = [after - before for before, after in itertools.pairwise(times)]
    processor = sum(used_then.values()) - sum(used.values())
    loop = used_then[str(pid)] - used[str(pid)]
    return Took(sum(gaps) / n, statistics.median(gaps), processor / n, loop / n)


def check_overhead(path: Path, n_rounds: int, n_tokens: int, n_threads: int) -> Iterator[str]:
    """Time between first and last token, in this process and through the server. They take turns,
    each round gives one ratio, and the median of the ratios counts: what else the machine does
    comes and goes more slowly than a round takes."""
    options: Json = {"max_tokens": n_tokens, "temperature": 0}

    def direct(model: pywina.Model) -> Took:
        stream = model.stream("The sea is", **options, logit_bias=no_end)
        return per_token((chunk for chunk in stream if chunk.text), os.getpid())

    def served(server: Server) -> Took:
        connection = server.connect()
        bias = {str(token): value for token, value in no_end.items()}
        body = {"prompt": "The sea is", "stream": True, "logit_bias": bias, **options}
        connection.request("POST", PATH, json.dumps(body), HEADERS)
        lines = connection.getresponse()
        parts = (line for line in lines if line.startswith(b"data: {") and b'"text":""' not in line)
        took = per_token(parts, server.process.pid)
        connection.close()
        return took

    with (
        serving(path, "-t", str(n_threads), "--slots", "1") as server,
        pywina.load(path, n_threads=n_threads) as model,
    ):
        no_end = {i: -100.0 for i in range(model.info.n_vocab) if model.is_eog(i)}
        direct(model)  # the first ones are not counted
        served(server)
        rounds = []
        for i in range(n_rounds):
            if i % 2:
                through = served(server)
                rounds.append((direct(model), through))
            else:
                rounds.append((direct(model), served(server)))
    busy = f"{n_threads} thread{'s' * (n_threads > 1)}, load {os.getloadavg()[0]:.1f}"
    yield f"server / Model.stream per token, {busy}:"
    for name, what in (
        ("mean", "clock"), ("median", "clock, median token"), ("processor", "processor time"),
    ):  # fmt: skip
        values = [(getattr(one, name), getattr(two, name)) for one, two in rounds]
        ratios = sorted(two / one for one, two in values)
        ms = [statistics.median(pair[side] for pair in values) * 1e3 for side in (0, 1)]
        yield (
            f"  {what}: median of {n_rounds} ratios {statistics.median(ratios):.3f}, all "
            f"{' '.join(f'{r:.3f}' for r in ratios)}; "
            f"{ms[1]:.3f} / {ms[0]:.3f} ms, {ms[1] - ms[0]:+.3f}"
        )
    loop = statistics.median(two.loop for _, two in rounds) * 1e3
    yield f"  of that the event loop's thread: {loop:.3f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--each", type=int, default=100, help="requests per client")
    parser.add_argument("--slow", type=int, default=500)
    parser.add_argument("--leave", type=int, default=102, help="disconnects")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--overhead", type=Path, metavar="MODEL",
                        help="a model to measure overhead with; tiny: the one of the other checks, "
                        "which shows the server's own work")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=9, help="of --overhead")
    parser.add_argument("--threads", type=int, default=1, help="that decode, for --overhead")
    parser.add_argument("--only-overhead", action="store_true", help="nothing else")
    args = parser.parse_args()
    if not args.only_overhead:
        check_load(args)
    with tempfile.TemporaryDirectory() as folder:
        path, n_tokens = args.overhead, 48
        if path == Path("tiny"):
            path = tinymodel.write_tiny(Path(folder, "tiny.gguf"), tinymodel.TinySpec())
            n_tokens = 400
        if path:
            for line in check_overhead(path, args.rounds, n_tokens, args.threads):
                print(line, flush=True)


def check_load(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = tinymodel.write_tiny(Path(folder, "tiny.gguf"), tinymodel.TinySpec(n_ctx=4096))
        with serving(model, "-t", "1") as server:
            print(check_slow(server, args.slow), flush=True)
            print(check_leaving(server, model, args.leave), flush=True)
            print(check_growth(server, args.requests), flush=True)
            print(check_clients(server, args.clients, args.each), flush=True)


if __name__ == "__main__":
    main()
