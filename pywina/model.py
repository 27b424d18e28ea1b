"""Models: load a GGUF file, turn text into tokens, generate text, evaluate."""

from __future__ import annotations

import copy
import functools
import os
import struct
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self, Unpack, overload

import numpy as np

from . import _values
from ._native import check, ffi, lib
from ._open import Backend, CacheType, Progress, SessionOptions, open_model, open_session
from .chat import ChatTemplate, Message
from .completion import Completions
from .errors import ArgumentError, FormatError, TemplateError
from .evaluation import Evaluations
from .generation import Stream, Timings
from .hub.fetch import resolve
from .hub.pretrained import fetch_pretrained
from .info import ModelInfo, Stats, _fields, _text
from .inspection import Inspection
from .params import GenerateOptions, split_options
from .sparsity import Mask, Method, Sparsity
from .tuning import Tuning
from .variants import Variants

_STATE = struct.Struct("<8sII")  # magic, tokens, their CRC-32
_STATE_MAGIC = b"PYWINAS1"


class Model(Inspection, Completions, Evaluations, Variants):
    """A loaded model with room for one sequence of tokens; see :func:`pywina.load`.

    Calls from several threads wait for one another. Every call starts with an empty context.
    Close it, or use it in a ``with``; after that every use raises ``StateError``.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        n_ctx: int | None = None,
        n_threads: int | None = None,
        n_batch: int | None = None,
        sparsity: float | Sparsity = 0.0,
        method: Method | None = None,
        mask: Mask | None = None,
        sparse_prefill: bool | None = None,
        progress: Callable[[float], object] | None = None,
        backend: Backend = "auto",
        n_gpu_layers: int | None = None,
        cache_type_k: CacheType = "f16",
        cache_type_v: CacheType = "f16",
        mem_limit: int | str | None = None,
        resident: int | str | None = None,
    ) -> None:
        started = time.perf_counter()
        self._n_batch = 128 if n_batch is None else _values.integer("n_batch", n_batch, 1, 1 << 16)
        ctx = 0 if n_ctx is None else _values.integer("n_ctx", n_ctx, 1)
        threads = 0 if n_threads is None else _values.integer("n_threads", n_threads, 1, 1024)
        #: what is skipped unless a call says otherwise
        self.sparsity = Sparsity().replace(
            sparsity=sparsity, method=method, mask=mask, prefill=sparse_prefill
        )
        self.path = str(resolve(path))
        self._session = SessionOptions(
            ctx, threads, self._n_batch, self.sparsity, cache_type_k, cache_type_v
        )
        self._handle = open_model(
            self.path, self._session, progress, backend, n_gpu_layers, mem_limit, resident
        )
        self._prepare(time.perf_counter() - started)

    def _prepare(self, load_s: float) -> None:
        self._finalizer = weakref.finalize(self, self._handle.close)
        self._finalizer.atexit = False
        self._compiled: ChatTemplate | None = None  # the chat template used last
        self._tuning: Tuning | None = None  # in place of the file's
        self._held: list[int] = []  # tokens in the context, as far as they may be used again
        self._batches = (0, 0)  # of them, those evaluated in batches: see _exact
        self.load_s = load_s
        self.info = self._read_info()

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_dir: str | Path | None = None,
        **options: Any,
    ) -> Self:
        """A model from the Hugging Face hub, fetched into its cache on first use.

        filename: a name or a pattern such as ``"*Q4_K_M.gguf"``, which must match one file;
            default: the only GGUF file. revision: a branch, tag or commit.
        token: default: ``HF_TOKEN``, or what was logged in with. local_dir: not into the cache.
        options: as in :func:`pywina.load`.
        Raises ModelNotFoundError, FetchError, and ArgumentError if several files match.
        """
        path = fetch_pretrained(
            repo_id, filename, revision=revision, token=token, cache_dir=cache_dir,
            local_dir=local_dir,
        )  # fmt: skip
        return cls(path, **options)

    def share(self) -> Self:
        """A second model over the same weights with a context of its own: both generate
        independently, and each is closed by itself. Costs a KV cache, not a load."""
        other, tuning = copy.copy(self), self._tuning
        weights = self._handle.share()
        try:
            options = replace(self._session, sparsity=self.sparsity)
            other._handle = open_session(self.path, weights, options)
        except BaseException:
            weights.release()
            raise
        other._prepare(0.0)
        if tuning is not None:
            other.set_tuning(tuning)
        return other

    def _read_info(self) -> ModelInfo:
        info = ffi.new("wina_model_info *")
        with self._handle.run() as session, self._handle.borrow() as model:
            check(lib.wina_model_get_info(model, info))
            values = _fields(info, (name for name, _ in ffi.typeof("wina_model_info").fields))
            values |= {
                "architecture": _text(info.architecture),
                "name": _text(info.name),
                "bos_token": info.bos_token if info.bos_token >= 0 else None,
                "eos_token": info.eos_token if info.eos_token >= 0 else None,
                "add_bos": bool(info.add_bos),
                "tied_output": bool(info.tied_output),
                "packed": bool(info.packed),
                "backend": _text(info.backend),
                "device": _text(info.device),
                "backend_note": _text(info.backend_note),
                "cache_type_k": self._session.cache_type_k,
                "cache_type_v": self._session.cache_type_v,
                "n_ctx": lib.wina_session_n_ctx(session),
                "n_threads": lib.wina_session_n_threads(session),
            }
        return ModelInfo(**values)

    def write_packed(
        self, path: str | PathLike[str], progress: Callable[[float], object] | None = None
    ) -> None:
        """Writes the model as a packed file, which is mapped at load; whole or not at all.

        progress: called with 0.0 to 1.0; an exception in it stops the writing.
        """
        report = Progress(progress)
        with self._handle.borrow() as model:
            status = lib.wina_model_write_packed(
                model, os.fsencode(path), report.callback, ffi.NULL
            )
        if report.error is not None:
            raise report.error
        check(status)

    # ---- life --------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        return self._handle.closed

    def close(self) -> None:
        """Frees the model; a generation under way in another thread is stopped. May be called any
        number of times."""
        self._handle.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.info.architecture}, n_ctx={self.info.n_ctx}"
        return f"<pywina.Model {self.path!r} ({state})>"

    # ---- text and tokens ---------------------------------------------------------------------

    def tokenize(
        self, text: str | bytes, *, add_special: bool = False, parse_special: bool = False
    ) -> list[int]:
        """Token ids of text.

        add_special: begin (and end) with BOS (EOS) where the model asks for it.
        parse_special: text such as ``<|im_end|>`` becomes the control token; leave it off for
            text that somebody typed.
        """
        data = _values.utf8("text", text)
        flags = lib.WINA_TOKENIZE_PLAIN
        flags |= lib.WINA_TOKENIZE_ADD_SPECIAL if add_special else 0
        flags |= lib.WINA_TOKENIZE_PARSE_SPECIAL if parse_special else 0
        count = ffi.new("size_t *")
        capacity = len(data) + 16
        with self._handle.borrow() as model:
            while True:
                tokens = ffi.new("int32_t[]", capacity)
                status = lib.wina_tokenize(model, data, len(data), flags, tokens, capacity, count)
                if status != lib.WINA_E_SPACE:
                    check(status)
                    return ffi.unpack(tokens, count[0]) if count[0] else []
                capacity = count[0]

    def detokenize_bytes(self, tokens: Iterable[int], *, special: bool = False) -> bytes:
        """Text of tokens as bytes, which may begin or end inside a character.

        special: control tokens appear in the text.
        """
        ids = _values.token_ids("tokens", tokens, self.info.n_vocab)
        count = ffi.new("size_t *")
        capacity = 8 * len(ids) + 16
        with self._handle.borrow() as model:
            while True:
                text = ffi.new("char[]", capacity)
                status = lib.wina_detokenize(
                    model, ids, len(ids), int(special), text, capacity, count
                )
                if status != lib.WINA_E_SPACE:
                    check(status)
                    return bytes(ffi.buffer(text, count[0]))
                capacity = count[0]

    def detokenize(self, tokens: Iterable[int], *, special: bool = False) -> str:
        """Text of tokens. Bytes that are no whole character become U+FFFD, one for each."""
        return _values.text_of(self.detokenize_bytes(tokens, special=special))

    def is_eog(self, token: int) -> bool:
        """True if the token ends an answer."""
        (token,) = _values.token_ids("token", [token], self.info.n_vocab)
        with self._handle.borrow() as model:
            return bool(lib.wina_token_is_eog(model, token))

    def end_token(self) -> int:
        """A token that ends an answer: EOS, or the first other one. ArgumentError if none does."""
        eos = self.info.eos_token
        for token in [eos] if eos is not None else range(self.info.n_vocab):
            if self.is_eog(token):
                return token
        raise ArgumentError(f"{self.path} has no token that ends an answer")

    @functools.cached_property
    def control_tokens(self) -> dict[str, int]:
        """Text to id of every control token, those that are never shown in an answer."""
        with self._handle.borrow() as model:
            special = [
                token
                for token in range(self.info.n_vocab)
                if lib.wina_token_is_special(model, token)
            ]
        return {
            self.detokenize([token], special=True): token
            for token in special
            if not self.detokenize_bytes([token])
        }

    def tokens_with(self, strings: Sequence[str]) -> list[int]:
        """Tokens whose text holds one of the strings."""
        wanted = [text.encode("utf-8") for text in strings]
        return [i for i, text in enumerate(self._pieces) if any(w in text for w in wanted)]

    @functools.cached_property
    def _pieces(self) -> list[bytes]:
        """The text of every token."""
        return [self.detokenize_bytes([token]) for token in range(self.info.n_vocab)]

    # ---- generation --------------------------------------------------------------------------

    def _set_sparsity(self, session: Any, sparsity: Sparsity) -> None:
        native = ffi.new("wina_sparsity *")
        sparsity._store(native[0])
        check(lib.wina_session_set_sparsity(session, native))

    def _begin(self, session: Any, sparsity: Sparsity) -> None:
        """Empties the context and the counters; inside Handle.run."""
        self._held = []
        check(lib.wina_session_truncate(session, 0))
        lib.wina_session_reset_stats(session)
        self._set_sparsity(session, sparsity)

    def _begin_prompt(
        self, session: Any, prompt: Sequence[int], sparsity: Sparsity, *, reset: bool = True
    ) -> int:
        """The same for a prompt that is evaluated next: what the context holds of its beginning
        stays. Returns the number of tokens. reset: the counters, too."""
        n_same = 0
        if not sparsity.prefill:
            past = lib.wina_session_n_past(session)
            for old, new in zip(self._held[:past], prompt[:-1], strict=False):
                if old != new:
                    break
                n_same += 1
        n_same = int(lib.wina_session_n_keepable(session, self._exact(n_same)))
        check(lib.wina_session_truncate(session, n_same))
        if reset:
            lib.wina_session_reset_stats(session)
        self._set_sparsity(session, sparsity)
        # Kept for the next prompt: what a dense prompt computes.
        self._held = [] if sparsity.prefill else list(prompt)
        self._batches = (min(self._batches[0], n_same), len(prompt))
        return n_same

    def _exact(self, n_same: int) -> int:
        """How many of so many held tokens are what the next prompt would compute itself. On a GPU
        the bits of a token depend on which are evaluated together: whole batches are the same
        again, the tokens of a loaded state are as they came."""
        begin, end = self._batches
        if self.info.backend == "cpu" or n_same <= begin:
            return n_same
        return begin + max(min(n_same, end) - begin, 0) // self._n_batch * self._n_batch

    def _hold_more(self, tokens: Sequence[int]) -> None:
        """What was generated densely after the prompt may be used again, too."""
        self._held += tokens if self._held else ()

    def _timings(self, session: Any, n_prompt: int, n_tokens: int, total_s: float) -> Timings:
        stats = ffi.new("wina_stats *")
        check(lib.wina_session_get_stats(session, stats))
        return Timings(
            load_s=self.load_s,
            prefill_s=stats.prefill_s,
            decode_s=stats.decode_s,
            total_s=total_s,
            prompt_tokens=n_prompt,
            tokens=n_tokens,
            prefill_tok_s=stats.n_prefill / stats.prefill_s if stats.prefill_s > 0 else 0.0,
            decode_tok_s=stats.n_decode / stats.decode_s if stats.decode_s > 0 else 0.0,
            kept_fraction=stats.kept_fraction,
        )

    def _prompt_tokens(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, (str, bytes)):
            if not prompt:
                raise ArgumentError("the prompt is empty; give at least one character")
            tokens = self.tokenize(prompt, add_special=True, parse_special=True)
        else:
            tokens = _values.token_ids("prompt", prompt, self.info.n_vocab)
        if not tokens:
            raise ArgumentError("the prompt has no tokens; give at least one")
        return tokens

    def stream(self, prompt: str | Sequence[int], **options: Unpack[GenerateOptions]) -> Stream:
        """Like :meth:`generate`, piece by piece: an iterator of :class:`Chunk`. The texts of the
        pieces together are what ``generate`` returns. Nothing is computed before the first one."""
        tokens = self._prompt_tokens(prompt)
        params, sparsity = split_options(options, self.sparsity)
        return Stream(self, tokens, params, sparsity)

    def generate(self, prompt: str | Sequence[int], **options: Unpack[GenerateOptions]) -> str:
        """Text that continues prompt.

        prompt: text, to be trusted: control tokens in it are recognised, and BOS is added where
            the model asks for it. Or token ids, which are used as they are. For text that somebody
            typed use :meth:`chat`, or ``tokenize`` it yourself.
        options: see :class:`pywina.Params`; besides ``sparsity``, ``method``, ``mask`` and
            ``sparse_prefill`` for this call only.
        """
        return self._read(self.stream(prompt, **options))

    def _read(self, stream: Stream) -> str:
        with self._handle.run(), stream:
            return "".join(chunk.text for chunk in stream)

    @functools.cached_property
    def chat_template(self) -> str | None:
        """The jinja text in the file; None if it has none."""
        text, size = ffi.new("char **"), ffi.new("size_t *")
        with self._handle.borrow() as model:
            status = lib.wina_model_get_meta_string(model, b"tokenizer.chat_template", text, size)
            if status == lib.WINA_E_ARGUMENT:
                return None
            check(status)
            return bytes(ffi.buffer(text[0], size[0])).decode("utf-8", "replace")

    def _token_text(self, token: int | None) -> str:
        return "" if token is None else self.detokenize([token], special=True)

    def _template(self, source: str | None) -> ChatTemplate:
        source = source or self.chat_template
        if not source:
            raise TemplateError(
                f"{self.path} has no chat template; pass template=..., or use generate()"
            )
        compiled = self._compiled
        if compiled is None or compiled.source != source:
            compiled = self._compiled = ChatTemplate(
                source,
                self.control_tokens,
                bos_token=self._token_text(self.info.bos_token),
                eos_token=self._token_text(self.info.eos_token),
            )
        return compiled

    def chat_tokens(
        self, messages: Sequence[Message], *, template: str | None = None, **variables: Any
    ) -> list[int]:
        """Prompt tokens of messages: the file's own template, or the one given. Text in messages
        never becomes a control token. variables: more names for the template, such as tools."""
        return self._template(template).encode(messages, self.tokenize, **variables)

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        *,
        stream: Literal[False] = False,
        template: str | None = None,
        template_vars: Mapping[str, Any] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> str: ...

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        *,
        stream: Literal[True],
        template: str | None = None,
        template_vars: Mapping[str, Any] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Stream: ...

    def chat(
        self,
        messages: Sequence[Message],
        *,
        stream: bool = False,
        template: str | None = None,
        template_vars: Mapping[str, Any] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> str | Stream:
        """The answer to messages, ``[{"role": "user", "content": "..."}, ...]``; with
        ``stream=True`` an iterator of :class:`Chunk`. Options as in :meth:`generate`."""
        tokens = self.chat_tokens(messages, template=template, **(template_vars or {}))
        result = self.stream(tokens, **options)
        return result if stream else self._read(result)

    @property
    def stats(self) -> Stats:
        """Counters of the last generation or evaluation."""
        stats = ffi.new("wina_stats *")
        with self._handle.run(self._handle.owner) as session:
            check(lib.wina_session_get_stats(session, stats))
        return Stats(**_fields(stats, Stats.__dataclass_fields__))

    # ---- state -------------------------------------------------------------------------------

    def save_state(self) -> bytes:
        """What the context holds: its tokens and their keys and values. :meth:`load_state`, in this
        process or another, goes on from there: a prompt that begins with these tokens is not
        evaluated again. Only what is computed densely is kept. States of the CPU can be loaded on
        a GPU and the other way."""
        size = ffi.new("size_t *")
        with self._handle.run() as session:
            held = self._held[: lib.wina_session_n_past(session)]
            held = held[: lib.wina_session_n_keepable(session, len(held))]
            check(lib.wina_session_truncate(session, len(held)))
            status = lib.wina_session_save_state(session, ffi.NULL, 0, size)
            if status != lib.WINA_E_SPACE:
                check(status)
            native = bytearray(size[0])
            check(lib.wina_session_save_state(session, ffi.from_buffer(native), len(native), size))
        tokens = np.array(held, dtype="<i4").tobytes()
        return _STATE.pack(_STATE_MAGIC, len(held), zlib.crc32(tokens)) + tokens + native

    def load_state(self, state: bytes) -> list[int]:
        """Takes over what :meth:`save_state` gave, and returns the tokens. FormatError if it is
        damaged, or of another model; the context is then empty."""
        view = memoryview(state)
        magic, n_tokens, checksum = (
            _STATE.unpack(view[: _STATE.size]) if len(view) >= _STATE.size else (b"", 0, 0)
        )
        end = _STATE.size + 4 * n_tokens
        if magic != _STATE_MAGIC or len(view) < end:
            raise FormatError("this is no saved state of pywina")
        tokens = np.frombuffer(view[_STATE.size : end], dtype="<i4")
        if zlib.crc32(tokens.tobytes()) != checksum:
            raise FormatError("the state is damaged: its tokens have another checksum")
        native = ffi.from_buffer(view[end:]) if len(view) > end else ffi.NULL
        with self._handle.run() as session:
            self._begin(session, Sparsity())
            check(lib.wina_session_load_state(session, native, len(view) - end))
            if lib.wina_session_n_past(session) != n_tokens:
                self._begin(session, Sparsity())
                raise FormatError(f"the state holds other than its {n_tokens} tokens")
            self._held = tokens.tolist()
            self._batches = (n_tokens, n_tokens)
        return list(self._held)
