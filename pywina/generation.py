"""Generation: the pieces that a stream yields, and the stream itself.

A stream is a task: it owns its model's session from its first piece to its last, and is advanced
one native call at a time (one token, or one batch of the prompt).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import _values
from ._native import check, ffi, lib
from ._task import Task
from .errors import ArgumentError, StateError
from .params import LogitsProcessor, Params
from .sparsity import Sparsity

if TYPE_CHECKING:
    from .model import Model

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


class Stream(Task, Iterator[Chunk]):
    """The pieces of one answer; made by :meth:`Model.stream`. Iterate, or use it in a ``with``.

    While it is unfinished, other generations on the same model raise ``StateError``; ``close``
    (or dropping the last reference) makes the model free again.
    """

    def __init__(
        self,
        model: Model,
        tokens: Sequence[int],
        params: Params,
        sparsity: Sparsity,
        score_prompt: bool = False,
    ) -> None:
        super().__init__(model)
        #: prompt tokens, the options, and what is skipped
        self.prompt, self.params, self.sparsity = list(tokens), params, sparsity
        self._pointer: Any = None
        #: the tokens of the answer so far
        self.tokens: list[int] = []
        #: log probabilities of the prompt's tokens from the second on, and of the likeliest in
        #: their places; complete when the prompt is evaluated, and only if they were asked for
        self.prompt_logprobs: list[LogProbabilities] = []
        self.scores_prompt = score_prompt
        self._to_score = len(self.prompt) if score_prompt else 0
        functions = params.processors
        self._processors = _Processors(functions, self.prompt, self.tokens) if functions else None
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

    def score(self) -> None:
        """Evaluates the prompt as far as its log probabilities were asked for and are not there."""
        while self._to_score:
            if not self.prefill(len(self.prompt)):
                raise StateError("this stream has ended; ask the model for a new one")

    def _ended(self) -> BaseException:
        return StopIteration()

    def prefill(self, max_tokens: int) -> int:
        """Evaluates at most so many further tokens of the prompt, and says how many are left. What
        is left when a piece is asked for is evaluated then: this is for those who have something
        else to do in between."""
        _values.integer("max_tokens", max_tokens, 1)
        if self._model is None:
            return 0

        def step(model: Model, session: Any) -> int:
            if self._to_score:
                self._score(model, session, max_tokens)
                return max(self._to_score, 1)  # the last one is evaluated by the native stream
            left = ffi.new("int32_t *")
            check(lib.wina_stream_prefill(self._native(model, session), max_tokens, left))
            return int(left[0])

        return self._advance(step)

    def _begin(self, model: Model, session: Any) -> None:
        self._started = time.perf_counter()
        if self._to_score:
            model._check_room(len(self.prompt))
            model._begin(session, self.sparsity)

    def _score(self, model: Model, session: Any, max_tokens: int) -> None:
        """Evaluates so many tokens of the prompt and keeps the log probabilities after them."""
        first = len(self.prompt) - self._to_score
        part = self.prompt[first : first + min(max_tokens, model._n_batch)]
        rows = np.empty((len(part), model.info.n_vocab), dtype=np.float32)
        n_dense = 0 if self.sparsity.prefill else len(self.prompt)
        model._eval(session, part, first, first, n_dense, rows)
        following = self.prompt[first + 1 : first + 1 + len(part)]
        n_top = self.params.logprobs or 0
        self.prompt_logprobs += [
            log_probabilities(row, token, n_top)
            for row, token in zip(rows, following, strict=False)
        ]
        self._to_score -= len(part)
        if self._to_score == 0 and n_dense:
            model._held, model._batches = list(self.prompt), (0, 0)

    def _native(self, model: Model, session: Any) -> Any:
        """The wina_stream, created on first use."""
        if self._pointer is None:
            held = model._begin_prompt(
                session, self.prompt, self.sparsity, reset=not self.scores_prompt
            )
            params, alive = self.params._create(model, self.prompt)
            params.n_held = held
            if self._processors is not None:
                params.process = self._processors.callback
            out = ffi.new("wina_stream **")
            check(lib.wina_stream_create(session, params, out))
            del alive
            self._pointer = out[0]
            model._handle.own_stream(self._pointer)
        return self._pointer

    def _step(self, model: Model, session: Any) -> Chunk:
        native = ffi.new("wina_chunk *")
        while True:
            self._check_cancelled()
            model._handle.check_open()
            if self._to_score:
                self._score(model, session, model._n_batch)
                if self.progress is not None:
                    self.progress(len(self.prompt) - self._to_score, len(self.prompt))
                continue
            status = lib.wina_stream_next(self._native(model, session), native)
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
        if model is not None and self._finalizer is not None:
            with model._handle.run(self._key) as session:
                model._set_sparsity(session, self.sparsity)

    def _finish(self, model: Model) -> None:
        if self._dense:
            model._hold_more(self.tokens)


def decode_together(streams: Sequence[Stream]) -> None:
    """Evaluates in one step what the next pieces of these streams need: each then comes without an
    evaluation of its own, and is what it would have been. For streams of models that share their
    weights (:meth:`Model.share`); those that have nothing to evaluate yet are left alone."""
    if len(streams) < 2:
        return
    with ExitStack() as held:
        pointers = []
        # In one order everywhere, so that two callers never wait for each other.
        for stream in sorted(streams, key=id):
            model = stream._model
            if model is None or stream._pointer is None or stream._cancelled:
                continue
            stream._refuse_inside(model, "advanced")
            held.enter_context(model._handle.run(stream._key))
            if stream._model is not None:
                pointers.append(stream._pointer)
        if len(pointers) > 1:
            check(lib.wina_stream_decode_batch(pointers, len(pointers)))
