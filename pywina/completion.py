"""Completions in OpenAI's shape, under llama-cpp-python's names: what most programs expect.

:class:`Completions` is the part of :class:`pywina.Model` that does this. A reply is one
dictionary, or with ``stream=True`` an iterator of chunks; both have the form of OpenAI's HTTP
interface, so a server hands them out as they are.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .chat import Message
from .errors import ArgumentError, UnsupportedError
from .generation import Chunk, FinishReason, Stream
from .params import GenerateOptions, LogitsProcessor, split_options
from .sparsity import Sparsity

if TYPE_CHECKING:
    from .model import Model

Json = dict[str, Any]

#: OpenAI knows two ends of an answer
_FINISH: dict[FinishReason, str] = {
    "eog": "stop", "stop": "stop", "length": "length", "context": "length",
}  # fmt: skip


@dataclass
class _Piece:
    """Text that may be shown, and the tokens that belong to it."""

    text: str
    tokens: list[Chunk] = field(default_factory=list)
    finish: str | None = None


def _pieces(stream: Stream) -> Iterator[_Piece]:
    """The stream without empty pieces; closes it at the end, whatever happens."""
    waiting: list[Chunk] = []
    with stream:
        for chunk in stream:
            if chunk.token is not None and chunk.finish_reason != "eog":
                waiting.append(chunk)
            finish = _FINISH[chunk.finish_reason] if chunk.finish_reason else None
            if chunk.text or finish:
                yield _Piece(chunk.text, waiting, finish)
                waiting = []


@dataclass(frozen=True)
class _Reply:
    """What all parts of one reply have in common."""

    model: Model
    object: str
    id: str
    created: int
    name: str

    def frame(self, choice: Json, usage: Json | None = None) -> Json:
        result = {
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.name,
            "choices": [{"index": 0, **choice}],
        }
        return result if usage is None else result | {"usage": usage}

    def token_text(self, token: int) -> str:
        return self.model.detokenize([token], special=True)

    def text_logprobs(self, tokens: Sequence[Chunk], offset: int) -> Json:
        """The form of /v1/completions. offset: of the first token's text."""
        texts = [self.token_text(chunk.token or 0) for chunk in tokens]
        offsets = [offset + sum(map(len, texts[:i])) for i in range(len(texts))]
        return {
            "tokens": texts,
            "text_offset": offsets,
            "token_logprobs": [chunk.logprob for chunk in tokens],
            "top_logprobs": [self._top(chunk) for chunk in tokens],
        }

    def _top(self, chunk: Chunk) -> dict[str, float] | None:
        """The likeliest tokens and the chosen one; None for a prompt's first token."""
        if chunk.logprob is None:
            return None
        values = [*chunk.top_logprobs, (chunk.token or 0, chunk.logprob)]
        return {self.token_text(token): value for token, value in values}

    def chat_logprobs(self, tokens: Sequence[Chunk]) -> Json:
        """The form of /v1/chat/completions."""

        def entry(token: int, value: float | None) -> Json:
            data = self.model.detokenize_bytes([token], special=True)
            return {"token": self.token_text(token), "logprob": value, "bytes": list(data)}

        return {
            "content": [
                entry(chunk.token or 0, chunk.logprob)
                | {"top_logprobs": [entry(token, value) for token, value in chunk.top_logprobs]}
                for chunk in tokens
            ],
            "refusal": None,
        }


def _echoed(made: Stream) -> list[Chunk]:
    """The prompt's tokens with their log probabilities, if those were wanted."""
    if not made.scores_prompt:
        return []
    return [Chunk("", made.prompt[0])] + [
        Chunk("", token, logprob=value, top_logprobs=top)
        for token, (value, top) in zip(made.prompt[1:], made.prompt_logprobs, strict=True)
    ]


def usage_of(stream: Stream) -> Json:
    """Token counts, and what OpenAI's form has no name for under ``"pywina"``."""
    n_prompt = len(stream.prompt)
    timings = stream.timings
    n = timings.tokens if timings else len(stream.tokens)
    result: Json = {
        "prompt_tokens": n_prompt,
        "completion_tokens": n,
        "total_tokens": n_prompt + n,
    }
    if timings:
        result["pywina"] = {
            "sparsity": stream.sparsity.sparsity,
            "kept_fraction": timings.kept_fraction,
            "prefill_tok_s": timings.prefill_tok_s,
            "decode_tok_s": timings.decode_tok_s,
        }
    return result


def _limit(max_tokens: int | None) -> int | None:
    """llama-cpp-python's: None, 0 and -1 go on until the context is full."""
    return None if max_tokens is None or max_tokens in (0, -1) else max_tokens


def _bias(given: Mapping[Any, float] | None) -> dict[int, float] | None:
    """Keys may be strings, as they are in JSON."""
    if not given:
        return None
    try:
        return {int(token): float(value) for token, value in given.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise ArgumentError(f"logit_bias is {given!r}; give numbers by token id") from error


class Completions:
    """Mixed into :class:`pywina.Model`."""

    def create_completion(
        self: Model,
        prompt: str | Sequence[int],
        *,
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        logits_processor: Sequence[LogitsProcessor] | LogitsProcessor | None = None,
        grammar: object = None,
        logit_bias: Mapping[Any, float] | None = None,
        sparsity: float | Sparsity | None = None,
        **options: Any,
    ) -> Any:
        """Text that continues prompt, as a dictionary of the form of OpenAI's /v1/completions.

        prompt: text that is trusted (control tokens in it are recognised), or token ids.
        max_tokens: None, 0 or -1: until the context is full.
        logprobs: so many likeliest tokens, and the chosen one, with their log probabilities for
            every token. Offsets count characters from the beginning of the prompt.
        echo: the prompt's text comes first, with ``logprobs`` those of its tokens, too.
        stream: an iterator of chunks instead of one dictionary.
        model: the name that the reply gives; default: the file's.
        grammar: a :class:`pywina.Grammar`.
        sparsity: of this call; other options as in :class:`pywina.Params`.
        Raises ArgumentError for values out of range, ContextError if the prompt does not fit.
        """
        if suffix is not None:
            raise UnsupportedError("suffix: filling in between two texts is not supported")
        made = self._make_stream(
            self._prompt_tokens(prompt), grammar, logits_processor, echo and logprobs is not None,
            max_tokens=_limit(max_tokens), temperature=temperature, top_p=top_p, min_p=min_p,
            typical_p=typical_p, logprobs=logprobs, stop=stop, frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty, repeat_penalty=repeat_penalty, top_k=max(top_k, 0),
            seed=seed, mirostat=mirostat_mode, mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta, logit_bias=_bias(logit_bias), sparsity=sparsity, **options,
        )  # fmt: skip
        first = prompt if isinstance(prompt, str) else self.detokenize(made.prompt, special=True)
        reply = self._reply("cmpl", "text_completion", model)
        if stream:
            return self._text_chunks(reply, made, first, echo)
        text, offset = (first, 0) if echo else ("", len(first))
        tokens, finish = [], None
        with self._handle.run():
            for piece in _pieces(made):
                text, finish = text + piece.text, piece.finish
                tokens += piece.tokens
        probabilities = None
        if logprobs is not None:
            probabilities = reply.text_logprobs([*_echoed(made), *tokens], offset)
        choice = {"text": text, "logprobs": probabilities, "finish_reason": finish}
        return reply.frame(choice, usage_of(made))

    def create_chat_completion(
        self: Model,
        messages: Sequence[Message],
        *,
        tools: Sequence[Json] | None = None,
        tool_choice: object = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        stream: bool = False,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        response_format: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        logits_processor: Sequence[LogitsProcessor] | LogitsProcessor | None = None,
        grammar: object = None,
        logit_bias: Mapping[Any, float] | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
        sparsity: float | Sparsity | None = None,
        template: str | None = None,
        template_vars: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """The answer to messages, as a dictionary of the form of OpenAI's /v1/chat/completions.

        tools: shown to the model by the file's template; a call that it writes is part of the text.
        response_format: ``{"type": "json_object"}``, or ``"json_schema"`` with a schema: the answer
            is JSON of that form (needs llguidance: the extra ``grammar``).
        template: jinja text in place of the file's.
        template_vars: further names for the template, such as ``enable_thinking``.
        Everything else as in :meth:`create_completion`.
        """
        if tool_choice not in (None, "auto", "none"):
            raise UnsupportedError(f"tool_choice is {tool_choice!r}; only auto and none are known")
        if grammar is None and response_format is not None:
            from .grammar import grammar_of

            grammar = grammar_of(self, response_format)
        variables = dict(template_vars or {})
        if tools and tool_choice != "none":
            variables["tools"] = list(tools)
        wanted = (top_logprobs or 0) if logprobs or top_logprobs else None
        made = self._make_stream(
            self.chat_tokens(messages, template=template, **variables), grammar, logits_processor,
            False, max_tokens=_limit(max_tokens), temperature=temperature, top_p=top_p, min_p=min_p,
            typical_p=typical_p, logprobs=wanted, stop=stop, frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty, repeat_penalty=repeat_penalty, top_k=max(top_k, 0),
            seed=seed, mirostat=mirostat_mode, mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta, logit_bias=_bias(logit_bias), sparsity=sparsity, **options,
        )  # fmt: skip
        if stream:
            return self._chat_chunks(self._reply("chatcmpl", "chat.completion.chunk", model), made)
        reply = self._reply("chatcmpl", "chat.completion", model)
        text, tokens, finish = "", [], None
        with self._handle.run():
            for piece in _pieces(made):
                text, finish = text + piece.text, piece.finish
                tokens += piece.tokens
        choice = {
            "message": {"role": "assistant", "content": text},
            "logprobs": None if wanted is None else reply.chat_logprobs(tokens),
            "finish_reason": finish,
        }
        return reply.frame(choice, usage_of(made))

    # ---- parts -------------------------------------------------------------------------------

    def _reply(self: Model, prefix: str, kind: str, name: str | None) -> _Reply:
        number = f"{prefix}-{uuid.uuid4()}"
        return _Reply(self, kind, number, int(time.time()), name or Path(self.path).name)

    def _make_stream(
        self: Model,
        tokens: list[int],
        grammar: object,
        processors: Sequence[LogitsProcessor] | LogitsProcessor | None,
        score_prompt: bool,
        **options: Any,
    ) -> Stream:
        functions: list[Callable[..., Any]] = []
        if processors is not None:
            functions += [processors] if callable(processors) else list(processors)
        if grammar is not None:
            from .grammar import Grammar

            if not isinstance(grammar, Grammar):
                raise ArgumentError(f"grammar is {grammar!r}; make one with pywina.Grammar")
            functions.append(grammar.processor(self, len(tokens)))
        wanted = cast(GenerateOptions, {"logits_processors": functions, **options})
        params, sparsity = split_options(wanted, self.sparsity)
        return Stream(self, tokens, params, sparsity, score_prompt)

    def _text_chunks(
        self: Model,
        reply: _Reply,
        made: Stream,
        first: str,
        echo: bool,
    ) -> Iterator[Json]:
        def frame(text: str, probabilities: Json | None = None) -> Json:
            return reply.frame({"text": text, "logprobs": probabilities, "finish_reason": None})

        offset, finish = len(first), None
        if echo:
            made.score()
            shown = _echoed(made)
            yield frame(first, reply.text_logprobs(shown, 0) if shown else None)
        for piece in _pieces(made):
            finish, probabilities = piece.finish, None
            if made.params.logprobs is not None and piece.tokens:
                probabilities = reply.text_logprobs(piece.tokens, offset)
                offset += sum(map(len, probabilities["tokens"]))
            if piece.text or probabilities:
                yield frame(piece.text, probabilities)
        choice: Json = {"text": "", "logprobs": None, "finish_reason": finish}
        yield reply.frame(choice, usage_of(made))

    def _chat_chunks(self: Model, reply: _Reply, made: Stream) -> Iterator[Json]:
        def frame(delta: Json, probabilities: Json | None = None) -> Json:
            return reply.frame({"delta": delta, "logprobs": probabilities, "finish_reason": None})

        yield frame({"role": "assistant", "content": ""})
        finish = None
        for piece in _pieces(made):
            finish = piece.finish
            probabilities = None
            if made.params.logprobs is not None and piece.tokens:
                probabilities = reply.chat_logprobs(piece.tokens)
            if piece.text or probabilities:
                yield frame({"content": piece.text}, probabilities)
        choice: Json = {"delta": {}, "logprobs": None, "finish_reason": finish}
        yield reply.frame(choice, usage_of(made))
