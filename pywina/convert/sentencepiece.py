"""Vocabularies of SentencePiece's BPE in checkpoints: Llama 2, Mistral, Gemma and their like.

They come as tokenizer.model, a protocol buffer that has every piece with its score and type, or as
tokenizer.json with byte fallback, whose order of merges stands for the scores. What tokenizer.json,
added_tokens.json or tokenizer_config.json add to a vocabulary counts in both.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import TokenType

from ..errors import FormatError, UnsupportedError
from . import gguffile

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "\u2581"
#: of tokens that are never the result of a merge
_NO_SCORE = -1000.0


@dataclass
class Vocabulary:
    """Tokens by number; adds_space: text gets a space in front."""

    texts: dict[int, str]
    kinds: dict[int, int]
    scores: dict[int, float]
    adds_space: bool

    def add(self, number: int, text: str, special: bool) -> None:
        """A token that is looked for in the text before anything is merged."""
        self.texts[number] = text if special else text.replace(_SPACE, " ")
        kind = TokenType.CONTROL if special else TokenType.USER_DEFINED
        if self.kinds.get(number) != TokenType.UNKNOWN:
            self.kinds[number] = int(kind)
        self.scores.setdefault(number, _NO_SCORE)


def applies(folder: Path, content: dict[str, Any]) -> bool:
    """Whether the folder, with tokenizer.json's content, holds such a vocabulary."""
    model = content.get("model") or {}
    if not content:
        return (folder / "tokenizer.model").is_file()
    return model.get("type") == "BPE" and bool(model.get("byte_fallback"))


# ---- tokenizer.model -------------------------------------------------------------------------


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than ten bytes")


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of the fields of a message: int, or bytes (of 4 and 8 bytes, too)."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if size > len(data) - at:
            raise ValueError(f"a field of {size} bytes where {len(data) - at} are left")
        yield key >> 3, data[at : at + size]
        at += size


def _read_model(path: Path) -> Vocabulary:
    """Pieces (field 1: text, score, type), the trainer's model type (2.3) and the normaliser's
    name, dummy prefix and removal of spaces (3.1, 3.3, 3.4). Types are numbered as in GGUF."""
    result = Vocabulary({}, {}, {}, True)
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        for field, value in _fields(path.read_bytes()):
            if field == 1:
                piece: dict[int, Any] = dict(_fields(value))
                number = len(result.texts)
                result.texts[number] = piece[1].decode("utf-8")
                result.scores[number] = struct.unpack("<f", piece.get(2, bytes(4)))[0]
                result.kinds[number] = int(TokenType(piece.get(3, 1)))
            elif field in (2, 3):
                (trainer if field == 2 else normalizer).update(_fields(value))
    except (ValueError, KeyError, IndexError, AttributeError, TypeError, struct.error) as error:
        raise FormatError(f"{path} is no SentencePiece model: {error!r}") from error
    if not result.texts:
        raise FormatError(f"{path} holds no pieces")
    name = normalizer.get(1, b"")
    if trainer.get(3, 1) != 2:
        raise UnsupportedError(f"{path}: only SentencePiece models of type BPE can be converted")
    if name not in (b"", b"identity"):
        raise UnsupportedError(f"{path}: its normalizer {name.decode('utf-8', 'replace')!r} is not "
                               "supported")  # fmt: skip
    for number, kind in result.kinds.items():
        if kind == TokenType.USER_DEFINED:
            result.texts[number] = result.texts[number].replace(_SPACE, " ")
    result.adds_space = bool(normalizer.get(3, 1))
    return result


# ---- tokenizer.json --------------------------------------------------------------------------


def _parts(node: Any, key: str) -> list[dict[str, Any]]:
    """A step of the pipeline, or the steps of a sequence."""
    if not node:
        return []
    return list(node.get(key, [])) if node.get("type") == "Sequence" else [node]


def _adds_space(content: dict[str, Any], path: Path) -> bool:
    """Whether the pipeline puts a space before the text; what else it does must be to write spaces
    as U+2581, or it is refused."""
    adds = False
    for part in _parts(content.get("normalizer"), "normalizers"):
        kind, pattern = part.get("type"), (part.get("pattern") or {}).get("String")
        if kind == "Prepend" and part.get("prepend") == _SPACE:
            adds = True
        elif (kind, pattern, part.get("content")) != ("Replace", " ", _SPACE):
            raise UnsupportedError(f"{path}: its normalizer {kind} is not known")
    for part in _parts(content.get("pre_tokenizer"), "pretokenizers"):
        if part.get("type") == "Metaspace":
            if part.get("split", True):
                raise UnsupportedError(f"{path}: a Metaspace that splits words is not supported")
            scheme = part.get("prepend_scheme")
            adds |= scheme != "never" if scheme else bool(part.get("add_prefix_space", True))
        elif part.get("type") != "Split" or part.get("pattern") != {"String": " "}:
            raise UnsupportedError(f"{path}: its pre-tokenizer {part.get('type')} is not known")
    return adds


def _read_json(content: dict[str, Any], path: Path) -> Vocabulary:
    result = Vocabulary({}, {}, {}, _adds_space(content, path))
    model = content["model"]
    try:
        result.texts = {int(i): str(text) for text, i in model["vocab"].items()}
        merges = [m.split(" ") if isinstance(m, str) else list(m) for m in model["merges"]]
        ranks: dict[str, int] = {}
        for rank, (left, right) in enumerate(merges):
            ranks.setdefault(left + right, rank)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{path} is not understood: {error!r}") from error
    for number, text in result.texts.items():
        kind = TokenType.BYTE if _BYTE.fullmatch(text) else TokenType.NORMAL
        if text == model.get("unk_token"):
            kind = TokenType.UNKNOWN
        result.kinds[number] = int(kind)
        result.scores[number] = -float(ranks[text]) if text in ranks else -float(len(merges))
    return result


# ---- both ------------------------------------------------------------------------------------


def _added(content: dict[str, Any], extra: dict[str, Any]) -> Iterator[tuple[int, str, bool]]:
    for token in content.get("added_tokens", []):
        yield int(token["id"]), str(token["content"]), bool(token["special"])
    for number, token in (extra.get("added_tokens_decoder") or {}).items():
        yield int(number), str(token["content"]), bool(token.get("special"))


def read(
    folder: Path, content: dict[str, Any], extra: dict[str, Any], more: dict[str, Any]
) -> Vocabulary:
    """The folder's vocabulary. content, extra, more: tokenizer.json, tokenizer_config.json and
    added_tokens.json, empty where there is none. tokenizer.model goes first: it has the scores."""
    path = folder / "tokenizer.model"
    if path.is_file():
        result = _read_model(path)
    else:
        path = folder / "tokenizer.json"
        result = _read_json(content, path)
    try:
        for text, number in more.items():
            result.add(int(number), str(text), False)
        for token in _added(content, extra):
            result.add(*token)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{folder}: its added tokens are not understood: {error!r}") from error
    if isinstance(extra.get("add_prefix_space"), bool):
        result.adds_space = extra["add_prefix_space"]
    return result


def store(vocabulary: Vocabulary, n_vocab: int, values: dict[str, bytes]) -> None:
    """The metadata that only these vocabularies have."""
    scores = [vocabulary.scores.get(i, _NO_SCORE) for i in range(n_vocab)]
    head = np.array([9, 6], "<u4").tobytes() + np.array([n_vocab], "<u8").tobytes()
    values["tokenizer.ggml.model"] = gguffile.encode("llama")
    values["tokenizer.ggml.pre"] = gguffile.encode("default")
    values["tokenizer.ggml.scores"] = head + np.array(scores, "<f4").tobytes()
    values["tokenizer.ggml.add_space_prefix"] = gguffile.encode(vocabulary.adds_space)
    unknown = [i for i, kind in vocabulary.kinds.items() if kind == TokenType.UNKNOWN]
    if unknown:
        values["tokenizer.ggml.unknown_token_id"] = gguffile.encode(unknown[0])
