"""What a request may say: JSON within bounds, and a table of fields with their ranges.

Fields that the table does not know are ignored, as other servers do; a known field with a wrong
value is an error that names it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
MAX_DEPTH = 64
_INT_MAX = 2**63 - 1


class RequestError(Exception):
    """Becomes OpenAI's error object. status: of HTTP; param: the field that is wrong."""

    def __init__(
        self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


def _refuse(text: str) -> Any:
    raise RequestError(f"the body holds the number {text[:40]}, which is out of range")


def _check(root: object) -> None:
    """Depth, characters and numbers; a stack instead of recursion, since the depth is not trusted.
    One loop over whole lists: a body may hold a million tokens, and all clients wait meanwhile."""
    stack: list[tuple[Any, int]] = [([root], 0)]
    while stack:
        items, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise RequestError(f"the body is nested deeper than {MAX_DEPTH} levels")
        for item in items:
            kind = type(item)
            if kind is int:
                if not -_INT_MAX <= item <= _INT_MAX:
                    _refuse(str(item))
            elif kind is str:
                try:
                    item.encode("utf-8")
                except UnicodeEncodeError as error:
                    raise RequestError("the body holds half of a surrogate pair") from error
            elif kind is float:
                if not math.isfinite(item):
                    _refuse(str(item))
            elif kind is list:
                stack.append((item, depth + 1))
            elif kind is dict:
                stack.append(([*item, *item.values()], depth + 1))


def parse(body: bytes) -> Json:
    """The JSON object of a body."""
    try:
        text = body.decode("utf-8")
        value = json.loads(text, parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise RequestError("the body is not valid UTF-8") from error
    except RecursionError as error:
        raise RequestError(f"the body is nested deeper than {MAX_DEPTH} levels") from error
    except json.JSONDecodeError as error:
        raise RequestError(f"the body is not valid JSON: {error}") from error
    except ValueError as error:  # Python's own limit of an integer's digits
        raise RequestError("the body holds a number that is out of range") from error
    if not isinstance(value, dict):
        raise RequestError("the body must be a JSON object")
    _check(value)
    return value


def _number(low: float, high: float, kind: type = float, below: bool = False) -> Callable[..., Any]:
    def check(name: str, value: object) -> Any:
        fits = (int,) if kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, fits):
            raise RequestError(f"{name} must be {'an integer' if kind is int else 'a number'}")
        if not low <= value <= high or (below and value == high):
            least = f"{name} must be at least {low:g} and "
            raise RequestError(least + f"{'less than' if below else 'at most'} {high:g}")
        return value

    return check


def _of(*kinds: type) -> Callable[..., Any]:
    def check(name: str, value: object) -> Any:
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            names: dict[type, str] = {str: "text", dict: "an object", list: "a list"}
            wanted = " or ".join(names.get(kind, "true or false") for kind in kinds)
            raise RequestError(f"{name} must be {wanted}")
        return value

    return check


def _stop(name: str, value: object) -> Any:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > 16 or not all(
        isinstance(text, str) and 0 < len(text) <= 1024 and "\0" not in text for text in texts
    ):  # fmt: skip
        raise RequestError("stop must be a text or up to 16 texts, each of 1 to 1024 characters")
    return texts


def _bias(name: str, value: object) -> Any:
    if not isinstance(value, dict) or len(value) > 1024:
        raise RequestError("logit_bias must be an object of at most 1024 tokens")
    for token, bias in value.items():
        if not token.isascii() or not token.isdigit() or len(token) > 9:
            raise RequestError(f"logit_bias: {token[:40]!r} is not a token id")
        _number(-100, 100)("logit_bias", bias)
    return {int(token): float(bias) for token, bias in value.items()}


def _messages(name: str, value: object) -> Any:
    if not isinstance(value, list) or not value or len(value) > 4096:
        raise RequestError("messages must be a list of 1 to 4096 messages")
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestError(f"messages[{i}] must be an object with a role")
        content = message.get("content")
        if isinstance(content, list):  # OpenAI's parts; we know text only
            if not all(isinstance(p, dict) and p.get("type") == "text"
                       and isinstance(p.get("text"), str) for p in content):  # fmt: skip
                raise RequestError(f"messages[{i}].content may hold parts of type text only")
            message["content"] = "".join(part["text"] for part in content)
        elif content is None and message.get("tool_calls"):
            message["content"] = ""
        elif not isinstance(content, str):
            raise RequestError(f"messages[{i}].content must be text")
    return value


def _prompt(name: str, value: object) -> Any:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], (str, list)):
        value = value[0]
    tokens = isinstance(value, list) and all(type(token) is int for token in value)
    if not (tokens or isinstance(value, str)) or not value:
        raise RequestError(f"{name} must be one text or one list of token ids, and not empty")
    return value


_COMMON: dict[str, Callable[..., Any]] = {
    "model": _of(str),
    "max_tokens": _number(1, 1 << 20, int),
    "max_completion_tokens": _number(1, 1 << 20, int),
    "temperature": _number(0, 100),
    "top_p": _number(0, 1),
    "top_k": _number(0, 1 << 20, int),
    "min_p": _number(0, 1),
    "typical_p": _number(0, 1),
    "frequency_penalty": _number(-100, 100),
    "presence_penalty": _number(-100, 100),
    "repeat_penalty": _number(0.001, 100),
    "seed": _number(0, _INT_MAX, int),
    "stop": _stop,
    "logit_bias": _bias,
    "stream": _of(bool),
    "stream_options": _of(dict),
    "n": _number(1, 1, int),
    "sparsity": _number(0, 1, below=True),
    "stats": _of(bool),
}
CHAT = _COMMON | {
    "messages": _messages,
    "tools": _of(list),
    "tool_choice": _of(str, dict),
    "response_format": _of(dict),
    "logprobs": _of(bool),
    "top_logprobs": _number(0, 20, int),
}
TEXT = _COMMON | {"prompt": _prompt, "echo": _of(bool), "logprobs": _number(0, 20, int)}
SPARSITY: dict[str, Callable[..., Any]] = {"sparsity": _COMMON["sparsity"]}


def fields(body: Json, table: dict[str, Callable[..., Any]], required: str) -> Json:
    """The known fields, checked; null is as good as absent."""
    result: Json = {}
    for name, check in table.items():
        if body.get(name) is None:
            continue
        try:
            result[name] = check(name, body[name])
        except RequestError as error:
            error.param = name
            raise
    if required not in result:
        raise RequestError(f"{required} is missing", param=required)
    return result


def embedding_inputs(body: Json, n_embd: int) -> list[str | list[int]]:
    """The texts or token lists of a request for embeddings."""
    value = body.get("input")
    given = value if isinstance(value, list) and value and type(value[0]) is not int else [value]
    if len(given) > 256:
        raise RequestError("input may hold at most 256 texts", param="input")
    if body.get("dimensions") not in (None, n_embd):
        raise RequestError(f"dimensions can only be {n_embd} here", param="dimensions")
    if body.get("encoding_format") not in (None, "float", "base64"):
        raise RequestError("encoding_format must be float or base64", param="encoding_format")
    try:
        return [_prompt("input", item) for item in given]
    except RequestError as error:
        error.param = "input"
        raise
