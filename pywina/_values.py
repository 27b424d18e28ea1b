"""Checks of what callers pass in: everything that reaches the native library is in range. And text
that comes out of it."""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterable, Sequence
from numbers import Integral, Real

from .errors import ArgumentError

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1


def integer(name: str, value: object, low: int, high: int = INT32_MAX) -> int:
    """value as an int in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ArgumentError(f"{name} is {value!r}; give a whole number")
    number = int(value)
    if not low <= number <= high:
        limit = f"at least {low}" if high >= INT32_MAX and number < low else f"{low} to {high}"
        raise ArgumentError(f"{name} is {number}; it must be {limit}")
    return number


def size(name: str, value: object) -> int:
    """Bytes, from a whole number or a text such as ``"800M"`` or ``"1.5G"`` (powers of 1024)."""
    if not isinstance(value, str):
        return integer(name, value, 1, INT64_MAX)
    match = re.fullmatch(r"(\d+(?:\.\d*)?)([KMG]?)", value.strip(), re.IGNORECASE)
    bytes_ = int(float(match[1]) * 1024 ** " KMG".index(match[2].upper() or " ")) if match else 0
    if not 1 <= bytes_ <= INT64_MAX:
        raise ArgumentError(f"{name} is {value!r}; give bytes, or a text such as 800M or 1.5G")
    return bytes_


def real(name: str, value: object, low: float, high: float = math.inf) -> float:
    """value as a finite float in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ArgumentError(f"{name} is {value!r}; give a number")
    number = float(value)
    if not math.isfinite(number):
        raise ArgumentError(f"{name} is {number}; give a finite number")
    if not low <= number <= high:
        limit = f"at least {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"
        raise ArgumentError(f"{name} is {number:g}; it must be {limit}")
    return number


def utf8(name: str, text: object) -> bytes:
    """text as UTF-8. bytes pass through as they are."""
    if isinstance(text, bytes):
        return text
    if not isinstance(text, str):
        raise ArgumentError(f"{name} is of type {type(text).__name__}; give a str")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ArgumentError(
            f"{name} has a lone surrogate at character {error.start}: it is not valid text"
        ) from error


def _replace_bytes(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("pywina.bytes", _replace_bytes)


def text_of(data: bytes) -> str:
    """UTF-8 as text, each invalid byte as U+FFFD: the rule of the native streams."""
    return data.decode("utf-8", "pywina.bytes")


def token_ids(name: str, tokens: Iterable[int], n_vocab: int) -> list[int]:
    """tokens as a list of ints in [0, n_vocab); empty lists pass."""
    if isinstance(tokens, (str, bytes)):
        raise ArgumentError(f"{name} is text; give a sequence of token ids")
    result: list[int] = []
    for i, token in enumerate(tokens):
        if isinstance(token, bool) or not isinstance(token, Integral):
            raise ArgumentError(f"{name}[{i}] is {token!r}; give token ids, whole numbers")
        if not 0 <= token < n_vocab:
            raise ArgumentError(f"{name}[{i}] is {token}; this model has ids 0 to {n_vocab - 1}")
        result.append(int(token))
    return result


def stop_strings(stop: str | Sequence[str] | None) -> list[bytes]:
    """Stop strings as UTF-8; none may be empty or hold a NUL."""
    if stop is None:
        return []
    result = []
    for text in [stop] if isinstance(stop, str) else stop:
        encoded = utf8("stop", text)
        if not encoded:
            raise ArgumentError("stop holds an empty string, which would stop at once")
        if b"\0" in encoded:
            raise ArgumentError(f"stop holds {text!r}: NUL characters are not supported")
        result.append(encoded)
    return result
