"""A Hugging Face hub on this machine: what huggingface_hub asks for of one repository. HF_ENDPOINT
is its address."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class LocalHub:
    """Serves files, by their names in the repository. token: what clients must send; "": nothing.

    requests: method, path and bearer token of each.
    """

    def __init__(self, files: dict[str, Path], repo: str = "owner/repo", token: str = "") -> None:
        self.files, self.repo, self.token = files, repo, token
        self.requests: list[tuple[str, str, str]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub._answer(self, body=False)

            def do_GET(self) -> None:
                hub._answer(self, body=True)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> LocalHub:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = urlsplit(request.path).path
        sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
        self.requests.append((request.command, path, sent))
        headers: dict[str, str] = {"X-Repo-Commit": COMMIT}
        data, status = b"", 200
        tree = f"/api/models/{self.repo}/tree/"
        resolve = f"/{self.repo}/resolve/"
        if self.token and sent != self.token:
            status = 401
            headers |= {"X-Error-Code": "GatedRepo", "X-Error-Message": "no access"}
        elif path.startswith(tree):
            data = json.dumps([
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": COMMIT}
                for name, file in self.files.items()
            ]).encode()  # fmt: skip
            headers["Content-Type"] = "application/json"
        elif path.startswith(resolve) and path.split("/", 5)[-1] in self.files:
            data = self.files[path.split("/", 5)[-1]].read_bytes()
            headers["ETag"] = f'"{hashlib.sha256(data).hexdigest()}"'
        else:
            status = 404
            headers |= {"X-Error-Code": "RepoNotFound"}
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if body:
            request.wfile.write(data)
