"""Which of llama.cpp's pre-tokenizers a tokenizer.json describes.

A description is the list of its steps: the regular expressions that cut, and what else does. It
must be one of those known in full: expressions that differ in one place (digits by three or one by
one, marks among the letters) cut almost every text alike, and a model that reads other tokens than
it was trained on is slightly wrong without a word.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from ..errors import UnsupportedError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_LINES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*"


def _modern(digits: str) -> str:
    return (
        rf"{_CONTRACTION}|{_BEFORE}\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_LINES}"
    )


def _cl100k(digits: str) -> str:
    """As tiktoken writes it; cuts as _modern does."""
    return (
        rf"'(?i:[sdmt]|ll|ve|re)|{_BEFORE}+\p{{L}}+|\p{{N}}{digits}"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    )


def _cased(digits: str, contraction: str) -> str:
    """Words end where an upper-case letter follows a lower-case one."""
    return (
        f"{_BEFORE}{_UPPER}*{_LOWER}+{contraction}|{_BEFORE}{_UPPER}+{_LOWER}*{contraction}"
        rf"|\p{{N}}{digits}{_SIGNS}{_LINES}"
    )


_QWEN35 = (
    rf"{_CONTRACTION}|{_BEFORE}[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*{_LINES}"
)
_DEEPSEEK3 = (
    '[!"#$%&'
    r"'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ONE_BY_ONE = "digits one by one"

#: steps: the name where words are made by merges, and where words of the vocabulary are taken whole
_NAMES: dict[tuple[str, ...], tuple[str | None, str | None]] = {
    (_GPT2,): ("gpt-2", None),
    (_ONE_BY_ONE, _GPT2): ("smollm", None),
    (_modern("{1,3}"),): ("dbrx", "llama-bpe"),
    (_cl100k("{1,3}"),): ("dbrx", "llama-bpe"),
    (_modern(""),): ("qwen2", None),
    (_cl100k(""),): ("qwen2", None),
    (_QWEN35,): ("qwen35", None),
    (_cased("{1,3}", f"{_CONTRACTION}?"),): ("gpt-4o", None),
    (_cased("", ""),): (None, "tekken"),
    (
        r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
        _ONE_BY_ONE,
    ): ("deepseek-coder", None),
    (r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK3):
        ("deepseek-v3", None),
}  # fmt: skip


def _step(part: dict[str, Any]) -> str | None:
    """One step; None: it cuts nothing."""
    kind = part.get("type")
    if kind == "ByteLevel" and not part.get("add_prefix_space", True):
        return _GPT2 if part.get("use_regex", True) else None
    if kind == "Digits" and part.get("individual_digits"):
        return _ONE_BY_ONE
    pattern = part.get("pattern")
    expression = pattern.get("Regex") if isinstance(pattern, dict) else None
    if isinstance(expression, str):  # line ends may stand there themselves
        expression = expression.replace("\r", r"\r").replace("\n", r"\n")
    if kind == "Split" and isinstance(expression, str):
        behavior = (part.get("behavior"), bool(part.get("invert")))
        # "What does not match is removed": nothing, where an expression matches all of a text.
        inverse = behavior == ("Removed", True) and expression.endswith(r"|\s+")
        if inverse or behavior == ("Isolated", False):
            return expression
    raise UnsupportedError(f"its pre-tokenizer has a step {part} that is not known")


def _merges_make_all(content: dict[str, Any]) -> bool:
    """Whether merges make each word of the vocabulary, so that it is the same whether words are
    taken whole or not. Added tokens do not count: they are cut out of texts before."""
    model = content.get("model") or {}
    try:
        added = {str(token["content"]) for token in content.get("added_tokens") or []}
        words = set(model["vocab"]) - added
        pairs = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
        ranks = {(left, right): rank for rank, (left, right) in enumerate(pairs)}
    except (KeyError, TypeError, ValueError):
        return False
    return bool(words) and all(_is_merged(word, ranks) for word in words)


def _is_merged(word: str, ranks: dict[tuple[str, str], int]) -> bool:
    parts = list(word)
    while len(parts) > 1:
        found = [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not found:
            return False
        at = min(found)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return True


def name_of(content: dict[str, Any]) -> str:
    """llama.cpp's name of the pre-tokenizer of a tokenizer.json. Raises UnsupportedError if there
    is none whose every step is known."""
    pre = content.get("pre_tokenizer")
    parts = pre.get("pretokenizers", [pre]) if isinstance(pre, dict) else []
    if not isinstance(parts, list) or not parts or not all(isinstance(p, dict) for p in parts):
        raise UnsupportedError("its pre-tokenizer is not understood")
    steps = tuple(step for part in parts if (step := _step(part)) is not None)
    if parts[-1].get("type") != "ByteLevel" or steps not in _NAMES:
        raise UnsupportedError(f"its pre-tokenizer {list(steps)} is not known")
    whole_words = bool((content.get("model") or {}).get("ignore_merges"))
    name = _NAMES[steps][whole_words]
    if name is None and _merges_make_all(content):
        name = _NAMES[steps][not whole_words]
    if name is None:
        raise UnsupportedError(
            f"its pre-tokenizer {list(steps)} is not known with ignore_merges {whole_words}"
        )
    return name
