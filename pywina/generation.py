"""Generation: the pieces that a stream yields, and the stream itself.

A stream owns its model's session from its first piece to its last. It is advanced one native call
at a time (one token, or one batch of the prompt), so Python runs between the calls and Ctrl-C
takes effect there.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import _values
from ._native import check, ffi, lib
from .errors import ArgumentError, CancelledError, StateError
from .params import LogitsProcessor, Params
from .sparsity import Sparsity

if TYPE_CHECKING:
    from .model import Model

T = TypeVar("T")
FinishReason = Literal["eog", "stop", "length", "context"]

_FINISH: dict[int, FinishReason] = {
    lib.WINA_FINISH_EOG: "eog",
    lib.WINA_FINISH_STOP: "stop",
    lib.WINA_FINISH_LENGTH: "length",
    lib.WINA_FINISH_CONTEXT: "context",
}


@dataclass(frozen=True)
class Timings:
    """What one generation took. Rates are 0 where nothing was measured.

    kept_fraction: bytes of the sparsified weights that were read, over their total; counted.
    """

    load_s: float
    prefill_s: float
    decode_s: float
    total_s: float
    prompt_tokens: int
    tokens: int
    prefill_tok_s: float
    decode_tok_s: float
    kept_fraction: float


@dataclass(frozen=True)
class Chunk:
    """One piece of an answer.

    text: whole characters, may be empty: a token can end inside a character or inside what may
        become a stop string.
    token: the token just chosen; None on a last piece that only flushes text.
    finish_reason: None while there is more to come, else ``"eog"`` (the model ended its answer),
        ``"stop"`` (a stop string), ``"length"`` (max_tokens) or ``"context"`` (it is full).
    timings: on the last piece, else None.
    logprob, top_logprobs: with ``logprobs``, the natural logarithm of the token's probability
        (before any sampler), and the likeliest tokens with theirs, best first.
    """

    text: str
    token: int | None
    finish_reason: FinishReason | None = None
    timings: Timings | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


#: log p of a token, and the likeliest tokens with theirs
LogProbabilities = tuple[float, tuple[tuple[int, float], ...]]


def log_probabilities(logits: NDArray[np.float32], token: int, n_top: int) -> LogProbabilities:
    """log p of a token, and the n_top likeliest tokens with theirs. logits: (n_vocab,)."""
    shifted = logits.astype(np.float64) - logits.max()
    logs = shifted - np.log(np.exp(shifted).sum())
    n_top = min(n_top, len(logs))
    best = np.argpartition(-logs, n_top - 1)[:n_top] if n_top else np.empty(0, dtype=int)
    order = sorted(best.tolist(), key=lambda i: (-logs[i], i))
    return float(logs[token]), tuple((i, float(logs[i])) for i in order)


class _Processors:
    """Calls Python functions on the logits inside the library; an exception ends the call.

    Knows the stream's lists, not the stream: dropping the stream must free it at once.
    """

    def __init__(
        self, functions: Sequence[LogitsProcessor], prompt: list[int], tokens: list[int]
    ) -> None:
        self._functions, self._prompt, self._tokens = functions, prompt, tokens
        self.error: BaseException | None = None
        self.callback = ffi.callback(
            "wina_logits_fn", self._call, error=lib.WINA_E_CANCELLED, onerror=self._on_error
        )

    def _call(self, pointer: Any, n_vocab: int, _user: Any) -> int:
        logits = np.frombuffer(ffi.buffer(pointer, n_vocab * 4), dtype=np.float32)
        tokens = np.array([*self._prompt, *self._tokens], dtype=np.int32)
        for processor in self._functions:
            changed = np.asarray(processor(tokens, logits))
            if changed.shape != logits.shape:
                raise ArgumentError(
                    f"a logits processor returned shape {changed.shape}, not {logits.shape}"
                )
            logits[:] = changed
        return int(lib.WINA_OK)

    def _on_error(self, _kind: type, error: BaseException, _trace: Any) -> None:
        self.error = error


class Stream(Iterator[Chunk]):
    """The pieces of one answer; made by :meth:`Model.stream`. Iterate, or use it in a ``with``.

    While it is unfinished, other generations on the same model raise ``StateError``; ``close``
    (or dropping the last reference) makes the model free again.
    """

    def __init__(
        self, model: Model, tokens: Sequence[int], params: Params, sparsity: Sparsity
    ) -> None:
        self._model: Model | None = model
        #: prompt tokens, the options, and what is skipped
        self.prompt, self.params, self.sparsity = list(tokens), params, sparsity
        self._pointer: Any = None
        self._finalizer: weakref.finalize[..., Stream] | None = None
        #: the tokens of the answer so far
        self.tokens: list[int] = []
        functions = params.processors
        self._processors = _Processors(functions, self.prompt, self.tokens) if functions else None
        self._inside = False  # a thread is in __next__ and holds the session
        self._cancelled = False
        self._dense = sparsity.sparsity == 0  # so far: what was generated is as a prompt would be
        self._started = 0.0
        self.finish_reason: FinishReason | None = None
        self.timings: Timings | None = None
        #: called between the batches of a long prompt with how many of its tokens are evaluated,
        #: and how many there are; must leave the model alone
        self.progress: Callable[[int, int], object] | None = None

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Chunk:
        chunk = self._advance(self._step)
        if chunk.finish_reason is not None:
            self.close()
        return chunk

    def _advance(self, step: Callable[[Model, Any], T]) -> T:
        """step(model, session) of the started stream; an error ends it."""
        model = self._model
        if model is None:
            raise StopIteration
        self._refuse_inside(model, "advanced")
        try:
            with model._handle.run(self._pointer) as session:
                if self._model is None:  # closed by another thread while this one waited
                    raise StopIteration
                self._inside = True
                try:
                    if self._pointer is None:
                        self._start(model, session)
                    return step(model, session)
                finally:
                    self._inside = False
        except BaseException:
            self.close()
            raise

    def prefill(self, max_tokens: int) -> int:
        """Evaluates at most so many further tokens of the prompt, and says how many are left. What
        is left when a piece is asked for is evaluated then: this is for those who have something
        else to do in between."""
        _values.integer("max_tokens", max_tokens, 1)
        if self._model is None:
            return 0

        def step(model: Model, _session: Any) -> int:
            if self._cancelled:
                raise CancelledError("the generation was cancelled")
            left = ffi.new("int32_t *")
            check(lib.wina_stream_prefill(self._pointer, max_tokens, left))
            return int(left[0])

        return self._advance(step)

    def _refuse_inside(self, model: Model, what: str) -> None:
        if self._inside and model._handle.runs_here:
            raise StateError(f"a stream cannot be {what} from inside its own computation")

    def _start(self, model: Model, session: Any) -> None:
        self._started = time.perf_counter()
        held = model._begin_prompt(session, self.prompt, self.sparsity)
        params, alive = self.params._create(model, self.prompt)
        params.n_held = held
        if self._processors is not None:
            params.process = self._processors.callback
        out = ffi.new("wina_stream **")
        check(lib.wina_stream_create(session, params, out))
        del alive
        handle, self._pointer = model._handle, out[0]
        handle.own_stream(self._pointer)
        self._finalizer = weakref.finalize(self, handle.free_stream, self._pointer)
        self._finalizer.atexit = False

    def _step(self, model: Model, session: Any) -> Chunk:
        native = ffi.new("wina_chunk *")
        while True:
            if self._cancelled:
                raise CancelledError("the generation was cancelled")
            model._handle.check_open()
            status = lib.wina_stream_next(self._pointer, native)
            if self._processors is not None and self._processors.error is not None:
                raise self._processors.error
            check(status)
            if native.finish != lib.WINA_FINISH_NONE or native.token >= 0 or native.n_bytes:
                break
            if self.progress is not None:
                self.progress(native.n_prompt, len(self.prompt))
        text = _values.text_of(ffi.buffer(native.text, native.n_bytes)[:])
        token = native.token if native.token >= 0 else None
        logprob: float | None = None
        top: tuple[tuple[int, float], ...] = ()
        if token is not None:
            self.tokens.append(token)
            if self.params.logprobs is not None:
                pointer = lib.wina_session_logits(session)
                logits = np.frombuffer(ffi.buffer(pointer, model.info.n_vocab * 4), np.float32)
                logprob, top = log_probabilities(logits, token, self.params.logprobs)
        if native.finish != lib.WINA_FINISH_NONE:
            self.finish_reason = _FINISH[native.finish]
            self.timings = model._timings(
                session, len(self.prompt), native.n_generated, time.perf_counter() - self._started
            )
        return Chunk(text, token, self.finish_reason, self.timings, logprob, top)

    def set_sparsity(self, sparsity: float | Sparsity) -> None:
        """What the following tokens skip; from any thread, between two pieces."""
        self.sparsity = self.sparsity.replace(sparsity=sparsity)
        self._dense &= self.sparsity.sparsity == 0
        model = self._model
        if model is not None and self._pointer is not None:
            with model._handle.run(self._pointer) as session:
                model._set_sparsity(session, self.sparsity)

    def cancel(self) -> None:
        """Ends the generation, from any thread and at any moment: the one who reads the stream gets
        ``CancelledError``."""
        self._cancelled = True
        model = self._model
        if model is not None and self._pointer is not None:
            model._handle.cancel(self._pointer)

    def close(self) -> None:
        """Ends the stream; the model can then be used again. May be called any number of times,
        but not from inside its own computation (a logits processor): StateError."""
        model = self._model
        if model is None:
            return
        self._refuse_inside(model, "closed")
        self._model = None
        if self._finalizer is not None:
            if self._dense:
                model._hold_more(self.tokens)
            self._finalizer()

    def __enter__(self) -> Stream:
        if self._model is None:
            raise StateError("this stream has ended; ask the model for a new one")
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def decode_together(streams: Sequence[Stream]) -> None:
    """Evaluates in one step what the next pieces of these streams need: each then comes without an
    evaluation of its own, and is what it would have been. For streams of models that share their
    weights (:meth:`Model.share`); those that have nothing to evaluate yet are left alone."""
    with ExitStack() as held:
        pointers = []
        # In one order everywhere, so that two callers never wait for each other.
        for stream in sorted(streams, key=id):
            model = stream._model
            if model is None or stream._pointer is None or stream._cancelled:
                continue
            stream._refuse_inside(model, "advanced")
            held.enter_context(model._handle.run(stream._pointer))
            if stream._model is not None:
                pointers.append(stream._pointer)
        if len(pointers) > 1:
            check(lib.wina_stream_decode_batch(pointers, len(pointers)))
