"""pywina serve: an HTTP server in OpenAI's form."""

from __future__ import annotations

import argparse
import errno
import ipaddress
import os
import socket
from pathlib import Path

from ..errors import ArgumentError, LibraryError
from .common import dial_of, load_model, note, placement
from .options import environment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument(
        "--host",
        default=environment("PYWINA_HOST", "127.0.0.1"),
        help="address to listen on; default $PYWINA_HOST, else 127.0.0.1",
    )
    group.add_argument("--port", type=int, default=environment("PYWINA_PORT", 8080),
                       help="0: any; default $PYWINA_PORT, else 8080")  # fmt: skip
    group.add_argument("--slots", type=int, default=4, metavar="N",
                       help="answers at the same time; default %(default)s")  # fmt: skip
    group.add_argument("--queue", type=int, default=64, metavar="N",
                       help="requests that may wait; default %(default)s")  # fmt: skip
    group.add_argument("--api-key-file", type=Path, metavar="FILE",
                       help="its first line is the API key; or set PYWINA_API_KEY")  # fmt: skip
    group.add_argument("--allow-host", action="append", default=[], metavar="NAME",
                       help="a further name that clients may use for this server")  # fmt: skip
    group.add_argument("--allow-origin", action="append", default=[], metavar="URL",
                       help="a web page's origin that may send requests")  # fmt: skip


def _api_key(path: Path | None) -> str:
    if path is None:
        return os.environ.get("PYWINA_API_KEY", "").strip()
    try:
        key = path.read_text("utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"cannot read the API key from {path}: {error}") from error
    if not key:
        raise ArgumentError(f"{path} holds no API key")
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            why = "another program uses it; --port 0 takes any that is free"
        else:
            why = getattr(error, "strerror", None) or str(error)
        raise ArgumentError(f"cannot listen on {host}, port {port}: {why}") from error


def main(args: argparse.Namespace) -> int:
    try:
        from ..server.app import make_app
        from ..server.protocol import serve
    except ImportError as error:
        raise LibraryError(f"{error.name} is missing: pip install 'pywina[server]'") from error
    key = _api_key(args.api_key_file)
    if not _is_loopback(args.host) and not key:
        raise ArgumentError(
            f"--host {args.host} can be reached by others; set PYWINA_API_KEY or --api-key-file"
        )
    if args.slots < 1 or args.queue < 0:
        raise ArgumentError("--slots must be at least 1 and --queue at least 0")
    with _listen(args.host, args.port) as sock, load_model(args) as model:
        shown = f"[{args.host}]" if ":" in args.host else args.host
        app = make_app(
            model,
            n_slots=args.slots,
            n_queue=args.queue,
            api_key=key,
            hosts=[shown, *args.allow_host],
            origins=args.allow_origin,
        )
        url = f"http://{shown}:{sock.getsockname()[1]}/"
        note(
            f"{Path(model.path).name} at {url} on {placement(model)}, {args.slots} slots of "
            f"{model.info.n_ctx} tokens, sparsity {dial_of(model)}"
        )
        serve(app, sock)
    return 0
