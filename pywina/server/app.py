"""The routes: OpenAI's, the page, health and metrics."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .._task import Task
from ..errors import (
    ArgumentError,
    CancelledError,
    ContextError,
    LibraryError,
    TemplateError,
    UnsupportedError,
    WinaError,
)
from ..model import Model
from . import schema
from .checks import CHUNK, Checks, error_response, read_body
from .engine import Busy, Engine, Job, Slot
from .schema import RequestError

Json = dict[str, Any]
_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'unsafe-inline'; style-src "
    "'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_BAD_INPUT = (ArgumentError, ContextError, TemplateError, UnsupportedError)


def _dump(part: Json) -> bytes:
    return _encoder.encode(part).encode("utf-8")


class Events(Response):
    """Server-sent events of a job. The job is cancelled as soon as the client leaves."""

    media_type = "text/event-stream"

    def __init__(
        self,
        first: list[Json],
        job: Job,
        include_usage: bool,
        chunk: Callable[[bytes], bool] | None,
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache"}, media_type=self.media_type)
        del self.headers["content-length"]
        self._first, self._job, self._include_usage = first, job, include_usage
        self._chunk = chunk

    def _lines(self, part: Json) -> bytes:
        usage = None
        if "usage" in part:
            part = dict(part)
            usage = part.pop("usage")
        data = b"data: " + _dump(part) + b"\n\n"
        if usage is not None and self._include_usage:
            data += b"data: " + _dump(part | {"choices": [], "usage": usage}) + b"\n\n"
        return data

    async def _write(self, send: Any) -> None:
        async def body(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        await body(b"".join(map(self._lines, self._first)))
        if (chunk := self._chunk) is not None:
            self._job.sink = lambda part: chunk(self._lines(part))
        try:
            async for part in self._job:
                # All parts that are ready at once: asyncio logs each write to a lost connection,
                # and this loop would write them without a look at whether anybody still reads.
                await body(b"".join(map(self._lines, [part, *self._job.ready()])))
        except CancelledError:
            return
        except Exception as error:  # the status is out already: the stream says it
            content = {"error": {"message": str(error), "type": "api_error", "code": None}}
            await body(b"data: " + _dump(content) + b"\n\n")
        await body(b"data: [DONE]\n\n", more=False)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        try:
            await _watched(self._job, receive, self._write(send))
        finally:
            self._job.sink = None
            self._job.cancel()  # nothing is left to end if it ended by itself


async def _watched(job: Job, receive: Any, work: Any) -> Any:
    """The result of work; if the client leaves first, the job is cancelled and work fails."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        job.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        return await work
    finally:
        watcher.cancel()


def _as_response(error: BaseException) -> BaseException:
    """What a failure of the engine is to the client."""
    if isinstance(error, CancelledError):
        return ClientDisconnect()
    if isinstance(error, _BAD_INPUT):
        return RequestError(str(error))
    if isinstance(error, LibraryError):  # an optional package is not installed here
        return RequestError(str(error), status=501)
    if isinstance(error, WinaError):
        return RequestError(str(error), status=500)
    return error


def _merge(parts: list[Json], chat: bool) -> Json:
    """One reply of the chunks of a stream."""
    text = ""
    probabilities: Json = {}
    for part in parts:
        choice = part["choices"][0]
        text += choice["delta"].get("content", "") if chat else choice["text"]
        found = choice.get("logprobs")
        for name, value in (found or {}).items():
            if isinstance(value, list):
                probabilities[name] = probabilities.get(name, []) + value
            else:
                probabilities[name] = value
    choice = {"index": 0, "logprobs": probabilities or None,
              "finish_reason": parts[-1]["choices"][0]["finish_reason"]}  # fmt: skip
    choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    kind = "chat.completion" if chat else "text_completion"
    return parts[-1] | {"object": kind, "choices": [choice]}


class Routes:
    """The handlers, over one engine."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine, self.name, self.created = engine, name, int(time.time())
        self._page = resources.files(__package__).joinpath("page.html").read_text("utf-8")

    # ---- generation --------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        body = schema.fields(schema.parse(await read_body(request)), schema.CHAT, "messages")
        return await self._generate(request, body, chat=True)

    async def text(self, request: Request) -> Response:
        body = schema.fields(schema.parse(await read_body(request)), schema.TEXT, "prompt")
        return await self._generate(request, body, chat=False)

    async def _generate(self, request: Request, body: Json, chat: bool) -> Response:
        stream, stats = body.pop("stream", False), body.pop("stats", False)
        usage = bool(body.pop("stream_options", {}).get("include_usage"))
        body.pop("n", None)
        if (limit := body.pop("max_completion_tokens", None)) is not None:
            body["max_tokens"] = limit
        if any(token >= self.engine.model.info.n_vocab for token in body.get("logit_bias", ())):
            raise RequestError("logit_bias: a token is not in the vocabulary", param="logit_bias")
        body.setdefault("temperature", 0.8)
        body["model"] = self.name
        first = body.pop("messages") if chat else body.pop("prompt")

        def work(slot: Slot) -> Iterator[Json | Task]:
            model = slot.model
            create = model.create_chat_completion if chat else model.create_completion
            parts = create(first, stream=True, **body)
            return _with_stats(slot, parts) if stats else parts

        # What opens a reply comes before anything is computed: see whether more follows. An echo
        # with log probabilities needs the evaluated prompt.
        n_ahead = 1 if chat or (body.get("echo") and "logprobs" not in body) else 0
        job = self._submit(work, n_ahead)
        parts = await self._first(request, job, n_ahead + 1)
        if stream:
            chunk = request.scope.get("extensions", {}).get(CHUNK)
            return Events(parts, job, usage, chunk)

        async def collect() -> None:
            async for part in job:
                parts.append(part)

        try:
            await _watched(job, request.receive, collect())
        except BaseException as error:
            job.cancel()
            raise _as_response(error) from error
        return Response(_dump(_merge(parts, chat)), media_type="application/json")

    def _submit(self, work: Any, n_ahead: int = 0) -> Job:
        try:
            return self.engine.submit(work, n_ahead)
        except Busy as error:
            raise RequestError("the server is busy; try again", status=503) from error

    async def _first(self, request: Request, job: Job, n_ahead: int = 1) -> list[Json]:
        """The first parts: until they are there, an error can still be a status."""

        async def first() -> list[Json]:
            return [await anext(job) for _ in range(n_ahead)]

        try:
            parts: list[Json] = await _watched(job, request.receive, first())
            return parts
        except BaseException as error:
            job.cancel()
            raise _as_response(error) from error

    async def sparsity(self, request: Request) -> Response:
        """Sparsity of a running answer, from its next token on."""
        body = schema.fields(schema.parse(await read_body(request)), schema.SPARSITY, "sparsity")
        job = self.engine.find(request.path_params["id"])
        if job is None:
            raise RequestError("no running answer has this id", status=404)
        job.sparsity = body["sparsity"]
        return JSONResponse({"id": job.id, "sparsity": job.sparsity})

    async def embeddings(self, request: Request) -> Response:
        body = schema.parse(await read_body(request))
        inputs = schema.embedding_inputs(body, self.engine.model.info.n_embd)
        packed = body.get("encoding_format") == "base64"

        def tokenize() -> list[list[int]]:
            texts = [self.engine.model._prompt_tokens(text) for text in inputs]
            for tokens in texts:  # nothing is evaluated if one does not fit
                self.engine.model._check_room(len(tokens))
            return texts

        try:
            texts = await asyncio.to_thread(tokenize)
        except WinaError as error:
            raise _as_response(error) from error

        def work(slot: Slot) -> Iterator[Json | Task]:
            for i, tokens in enumerate(texts):
                embedding = slot.model.begin_embedding(tokens)
                yield embedding
                vector = embedding.result()
                value = base64.b64encode(vector.astype("<f4").tobytes()).decode() if packed else (
                    vector.tolist())  # fmt: skip
                yield {"object": "embedding", "index": i, "embedding": value, "n": len(tokens)}

        job = self._submit(work)
        parts = await self._first(request, job, len(inputs))
        n = sum(part.pop("n") for part in parts)
        usage = {"prompt_tokens": n, "total_tokens": n}
        return JSONResponse({"object": "list", "data": parts, "model": self.name, "usage": usage})

    # ---- facts -------------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        info = self.engine.model.info
        entry = {"id": self.name, "object": "model", "created": self.created, "owned_by": "pywina"}
        facts = {"n_ctx": info.n_ctx, "n_params": info.n_params, "architecture": info.architecture,
                 "sparsity": self.engine.model.sparsity.sparsity}  # fmt: skip
        return JSONResponse({"object": "list", "data": [entry | {"pywina": facts}]})

    async def health(self, request: Request) -> Response:
        engine = self.engine
        state = {"slots": engine.n_slots, "busy": engine.n_busy, "queue": engine.n_waiting}
        return JSONResponse({"status": "ok"} | state)

    async def metrics(self, request: Request) -> Response:
        text = self.engine.metrics.text(self.engine)
        return Response(text, media_type="text/plain; version=0.0.4")

    async def page(self, request: Request) -> Response:
        return Response(self._page, media_type="text/html", headers=_PAGE_HEADERS)

    def table(self) -> list[Route]:
        return [
            Route("/", self.page),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/v1/models", self.models),
            Route("/v1/completions", self.text, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/v1/answers/{id}/sparsity", self.sparsity, methods=["POST"]),
        ]


def _with_stats(slot: Slot, parts: Iterator[Json]) -> Iterator[Json]:
    """Adds to every part what the page draws: tokens, their speed and what was read for them."""
    read = total = n_shown = 0
    before = time.perf_counter()
    for part in parts:
        stream = slot.stream
        if stream is not None and len(stream.tokens) > n_shown:
            now, tokens = time.perf_counter(), stream.tokens[n_shown:]
            n_shown += len(tokens)
            entry: Json = {"tokens": tokens, "sparsity": stream.sparsity.sparsity,
                           "tok_s": len(tokens) / max(now - before, 1e-9)}  # fmt: skip
            if stream.finish_reason is None:
                stats = slot.model.stats
                if stats.sparse_total > total:
                    kept = (stats.sparse_read - read) / (stats.sparse_total - total)
                    entry["kept_fraction"] = kept
                read, total = stats.sparse_read, stats.sparse_total
            part["pywina"], before = entry, now
        yield part


def _on_error(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)
    if isinstance(error, RequestError):
        return error_response(error, {"retry-after": "1"} if error.status == 503 else None)
    status = getattr(error, "status_code", 500)
    text = getattr(error, "detail", "") or "the server failed; its log may say more"
    return error_response(RequestError(f"{request.url.path}: {text}", status=status))


class _Count:
    """Counts responses by route and status."""

    def __init__(self, app: Any, engine: Engine, known: set[str]) -> None:
        self._app, self._responses, self._known = app, engine.metrics.responses, known

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in self._known else "other"
                self._responses[path, message["status"]] += 1
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)


def make_app(
    model: Model,
    *,
    n_slots: int = 4,
    n_queue: int = 64,
    api_key: str = "",
    hosts: Iterable[str] = (),
    origins: Iterable[str] = (),
    name: str | None = None,
) -> Any:
    """An ASGI application over a model, which must outlive it.

    n_slots: answers made at the same time; each has a KV cache of its own.
    n_queue: requests that may wait; more get 503.
    api_key: what clients send as a bearer token; empty: none is needed.
    hosts, origins: names besides localhost that Host and Origin headers may give.
    """
    engine = Engine(model, n_slots=n_slots, n_queue=n_queue)
    routes = Routes(engine, name or Path(model.path).stem)

    @contextlib.asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)
        engine.hang_up()

    table = routes.table()
    handlers: Any = dict.fromkeys((RequestError, ClientDisconnect, 404, 405), _on_error)
    inner = Starlette(routes=table, lifespan=life, exception_handlers=handlers)
    app = Checks(inner, hosts=hosts, origins=origins, key=api_key)
    return _Count(app, engine, {route.path for route in table})
