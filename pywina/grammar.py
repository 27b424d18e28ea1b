"""Answers of a given form: JSON schemas, regular expressions and Lark grammars, by llguidance.

llguidance is the optional extra ``pywina[grammar]``. Before every token it names those that can go
on; all others are forbidden.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import ArgumentError, LibraryError
from .params import LogitsProcessor

if TYPE_CHECKING:
    from .model import Model

_tokenizers: weakref.WeakKeyDictionary[Model, Any] = weakref.WeakKeyDictionary()


def _llguidance() -> Any:
    try:
        import llguidance
        import llguidance.numpy
    except ImportError as error:
        raise LibraryError(
            "grammars and JSON schemas need llguidance: pip install 'pywina[grammar]'"
        ) from error
    return llguidance


class _Vocabulary:
    """The vocabulary in the form that llguidance takes."""

    def __init__(self, model: Model) -> None:
        info, eos = model.info, model.info.eos_token
        self.eos_token_id = eos if eos is not None else next(
            (i for i in range(info.n_vocab) if model.is_eog(i)), 0
        )  # fmt: skip
        self.bos_token_id = info.bos_token
        self.special_token_ids = sorted(model.control_tokens.values())
        self.tokens = [
            model.detokenize_bytes([token], special=True) for token in range(info.n_vocab)
        ]
        self._tokenize = model.tokenize

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenize(text)


def _tokenizer(model: Model) -> Any:
    if model not in _tokenizers:
        library = _llguidance()
        wrapped = library.TokenizerWrapper(_Vocabulary(model))
        _tokenizers[model] = library.LLTokenizer(wrapped, n_vocab=model.info.n_vocab)
    return _tokenizers[model]


class Grammar:
    """What an answer must look like. A class method makes one; it serves any number of calls."""

    def __init__(self, source: str) -> None:
        """source: in llguidance's own form."""
        self.source = source

    @classmethod
    def from_json_schema(cls, schema: Mapping[str, Any] | str) -> Grammar:
        """schema: a JSON schema, as a dictionary or as text. ``{}`` is any JSON."""
        text = schema if isinstance(schema, str) else json.dumps(schema)
        try:
            return cls(_llguidance().LLMatcher.grammar_from_json_schema(text))
        except ValueError as error:
            raise ArgumentError(f"the JSON schema cannot be used: {error}") from error

    @classmethod
    def from_regex(cls, pattern: str) -> Grammar:
        """pattern: a regular expression that the whole answer matches."""
        return cls(_llguidance().LLMatcher.grammar_from_regex(pattern))

    @classmethod
    def from_lark(cls, text: str) -> Grammar:
        """text: a grammar in Lark's notation, with llguidance's extensions."""
        return cls(_llguidance().LLMatcher.grammar_from_lark(text))

    @classmethod
    def from_gbnf(cls, text: str) -> Grammar:
        """text: a grammar in GBNF, llama.cpp's notation, beginning at ``root``."""
        _llguidance()
        from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

        try:
            return cls.from_lark(gbnf_to_lark(text))
        except (GbnfToLarkError, ValueError) as error:
            raise ArgumentError(f"the GBNF grammar cannot be used: {error}") from error

    def processor(self, model: Model, n_prompt: int) -> LogitsProcessor:
        """A logits processor for one answer after a prompt of n_prompt tokens."""
        library = _llguidance()
        matcher = library.LLMatcher(_tokenizer(model), self.source)
        if matcher.is_error():
            raise ArgumentError(f"the grammar cannot be used: {matcher.get_error()}")
        bitmask = library.numpy.allocate_token_bitmask(1, model.info.n_vocab)
        seen = n_prompt

        def process(tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> NDArray[np.float32]:
            nonlocal seen
            for token in tokens[seen:].tolist():
                matcher.consume_token(token)
            seen = len(tokens)
            if matcher.is_error():
                raise ArgumentError(f"the grammar failed: {matcher.get_error()}")
            library.numpy.fill_next_token_bitmask(matcher, bitmask)
            allowed = np.unpackbits(bitmask.view(np.uint8)[0], bitorder="little")[: len(logits)]
            logits[allowed == 0] = -np.inf
            return logits

        return process


def grammar_of(model: Model, response_format: Mapping[str, Any]) -> Grammar | None:
    """The grammar that an OpenAI ``response_format`` asks for; None for plain text."""
    if not isinstance(response_format, Mapping):
        raise ArgumentError(f"response_format is {response_format!r}; give a dictionary")
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_object":  # llama-cpp-python takes a schema here
        return Grammar.from_json_schema(response_format.get("schema") or {"type": "object"})
    if kind == "json_schema":
        described = response_format.get("json_schema")
        schema = described.get("schema") if isinstance(described, Mapping) else None
        if not isinstance(schema, Mapping):
            raise ArgumentError("response_format has no json_schema.schema")
        return Grammar.from_json_schema(schema)
    raise ArgumentError(f"response_format.type is {kind!r}; give text, json_object or json_schema")
