"""Generation: parameters, the pieces that a stream yields, and the stream itself.

A stream owns its model's session from its first piece to its last. It is advanced one native call
at a time (one token, or one batch of the prompt), so Python runs between the calls and Ctrl-C
takes effect there.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from . import _values
from ._native import check, ffi, lib
from .errors import StateError
from .sparsity import Mask, Method, Sparsity

if TYPE_CHECKING:
    from .model import Model

FinishReason = Literal["eog", "stop", "length", "context"]

_FINISH: dict[int, FinishReason] = {
    lib.WINA_FINISH_EOG: "eog",
    lib.WINA_FINISH_STOP: "stop",
    lib.WINA_FINISH_LENGTH: "length",
    lib.WINA_FINISH_CONTEXT: "context",
}


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of every call that generates text. :class:`Params` gives the defaults;
    the sparsity arguments default to what the model was loaded with."""

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_last_n: int
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int | None
    stop: str | Sequence[str] | None
    ignore_eog: bool
    special: bool
    sparsity: float | Sparsity | None
    method: Method | None
    mask: Mask | None
    sparse_prefill: bool | None


@dataclass(frozen=True)
class Params:
    """How text is generated. Names and defaults of the samplers are those of llama.cpp.

    max_tokens: stop after this many tokens; None: go on until the context is full.
    temperature: 0 always takes the likeliest token.
    top_k: sample from the k likeliest tokens; 0: off.
    top_p: sample from the likeliest tokens that together have this probability; 1: off.
    min_p: leave out tokens less likely than this share of the likeliest; 0: off.
    repeat_last_n: how many tokens the penalties look back at; 0: off, -1: all.
    repeat_penalty: divides the logits of tokens that occurred; 1: off.
    presence_penalty, frequency_penalty: subtracted once, and once per occurrence; 0: off.
    seed: the same seed gives the same text; None: a random one.
    stop: one or more strings that end the text and are not part of it.
    ignore_eog: go on when the model says that its answer has ended (for measurements).
    special: control tokens appear in the text.
    """

    max_tokens: int | None = 256
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_last_n: int = 64
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    ignore_eog: bool = False
    special: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            _values.integer("max_tokens", self.max_tokens, 1)
        _values.real("temperature", self.temperature, 0)
        _values.integer("top_k", self.top_k, 0)
        _values.real("top_p", self.top_p, 0, 1)
        _values.real("min_p", self.min_p, 0, 1)
        _values.integer("repeat_last_n", self.repeat_last_n, -1)
        if _values.real("repeat_penalty", self.repeat_penalty, 0) == 0:
            _values.real("repeat_penalty", self.repeat_penalty, 1e-3)
        _values.real("presence_penalty", self.presence_penalty, -1e6, 1e6)
        _values.real("frequency_penalty", self.frequency_penalty, -1e6, 1e6)
        if self.seed is not None:
            _values.integer("seed", self.seed, 0, _values.INT64_MAX)
        _values.stop_strings(self.stop)

    def _create(self, tokens: Sequence[int]) -> tuple[Any, list[Any]]:
        """A filled wina_stream_params, and what must stay alive while it is used."""
        params = ffi.new("wina_stream_params *")
        lib.wina_stream_params_init(params)
        prompt = ffi.new("int32_t[]", tokens)
        stops = [ffi.new("char[]", text) for text in _values.stop_strings(self.stop)]
        stop_array = ffi.new("char *[]", stops)
        params.tokens, params.n_tokens = prompt, len(tokens)
        params.max_tokens = -1 if self.max_tokens is None else self.max_tokens
        params.stop, params.n_stop = stop_array, len(stops)
        params.special, params.ignore_eog = int(self.special), int(self.ignore_eog)
        sampler = params.sampler
        sampler.temperature = self.temperature
        sampler.top_k = self.top_k
        sampler.top_p = self.top_p
        sampler.min_p = self.min_p
        sampler.repeat_last_n = self.repeat_last_n
        sampler.repeat_penalty = self.repeat_penalty
        sampler.presence_penalty = self.presence_penalty
        sampler.frequency_penalty = self.frequency_penalty
        sampler.seed = -1 if self.seed is None else self.seed
        return params, [prompt, stops, stop_array]


def split_options(options: GenerateOptions, base: Sparsity) -> tuple[Params, Sparsity]:
    """Keyword arguments as parameters and as the sparsity to use; base fills what is not given."""
    rest: dict[str, Any] = dict(options)
    sparsity = base.replace(
        sparsity=rest.pop("sparsity", None),
        method=rest.pop("method", None),
        mask=rest.pop("mask", None),
        prefill=rest.pop("sparse_prefill", None),
    )
    return Params(**rest), sparsity


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
    """

    text: str
    token: int | None
    finish_reason: FinishReason | None = None
    timings: Timings | None = None


class Stream(Iterator[Chunk]):
    """The pieces of one answer; made by :meth:`Model.stream`. Iterate, or use it in a ``with``.

    While it is unfinished, other generations on the same model raise ``StateError``; ``close``
    (or dropping the last reference) makes the model free again.
    """

    def __init__(
        self, model: Model, tokens: Sequence[int], params: Params, sparsity: Sparsity
    ) -> None:
        self._model: Model | None = model
        self._tokens = tokens
        self._params = params
        self._sparsity = sparsity
        self._pointer: Any = None
        self._finalizer: weakref.finalize[..., Stream] | None = None
        self._started = 0.0
        self._prompt_tokens = len(tokens)
        self.finish_reason: FinishReason | None = None
        self.timings: Timings | None = None
        #: the tokens of the answer so far
        self.tokens: list[int] = []

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Chunk:
        model = self._model
        if model is None:
            raise StopIteration
        try:
            with model._handle.run(self._pointer) as session:
                if self._pointer is None:
                    self._start(model, session)
                chunk = self._step(model, session)
        except BaseException:
            self.close()
            raise
        if chunk.finish_reason is not None:
            self.close()
        return chunk

    def _start(self, model: Model, session: Any) -> None:
        self._started = time.perf_counter()
        model._begin(session, self._sparsity)
        params, alive = self._params._create(self._tokens)
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
            check(lib.wina_stream_next(self._pointer, native))
            if native.finish != lib.WINA_FINISH_NONE or native.token >= 0 or native.n_bytes:
                break
        text = _values.text_of(ffi.buffer(native.text, native.n_bytes)[:])
        token = native.token if native.token >= 0 else None
        if token is not None:
            self.tokens.append(token)
        if native.finish != lib.WINA_FINISH_NONE:
            self.finish_reason = _FINISH[native.finish]
            self.timings = model._timings(
                session,
                self._prompt_tokens,
                native.n_generated,
                time.perf_counter() - self._started,
            )
        return Chunk(text, token, self.finish_reason, self.timings)

    def close(self) -> None:
        """Ends the stream; the model can then be used again. May be called any number of times."""
        model, self._model = self._model, None
        if model is None:
            return
        if self._finalizer is not None:
            self._finalizer()

    def __enter__(self) -> Stream:
        if self._model is None:
            raise StateError("this stream has ended; ask the model for a new one")
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
