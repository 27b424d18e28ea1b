"""Checkpoints with SentencePiece vocabularies: tokenizer.model or tokenizer.json becomes a GGUF
file that gives llama.cpp's vectors of the vocabulary it was made from."""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from tinycheckpoint import write_checkpoint

import pywina
from pywina.cli import main
from pywina.convert.sentencepiece import _read_model
from pywina.errors import FormatError

SEPARATOR = "\n__ggml_vocab_test__\n"
SPACE = "\u2581"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
Piece = tuple[str, float, int]  # text, score, type
#: the smallest vocabulary that shows every kind of token
SMALL: list[Piece] = [
    ("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *((text, 0.0, 6) for text in BYTES),
    (SPACE * 2, -1e9, 1), (f"{SPACE}a", -1.0, 1), ("bc", -2.0, 1), ("ab", -3.0, 1),
    ("abc", -4.0, 1), (f"{SPACE}abc", -5.0, 1), ("a", -6.0, 1), ("b", -7.0, 1), ("c", -8.0, 1),
    (SPACE, -9.0, 1), ("\u00e9", -10.0, 1), (SPACE * 3, 0.0, 4), ("<t>", 0.0, 4),
]  # fmt: skip


# ---- folders ---------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def message(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def model_bytes(
    pieces: list[Piece], *, kind: int = 2, prefix: int = 1, normalizer: bytes = b"identity"
) -> bytes:
    """tokenizer.model: pieces, the trainer's model type, the normaliser."""
    out = b""
    for text, score, piece_type in pieces:
        piece = message(1, text.encode()) + b"\x15" + struct.pack("<f", score)
        out += message(1, piece + (b"\x18" + varint(piece_type) if piece_type != 1 else b""))
    out += message(2, message(1, b"some/text.txt") + b"\x18" + varint(kind))
    return out + message(3, message(1, normalizer) + b"\x18" + varint(prefix))


def json_content(pieces: list[Piece], *, prefix: bool, metaspace: bool) -> dict[str, Any]:
    """tokenizer.json as Hugging Face's converters write it: a merge for every cut of a piece into
    two others, in the order of the pieces' scores."""
    vocab = {text: i for i, (text, _, _) in enumerate(pieces)}
    merges = []
    for text, score, kind in pieces:
        for cut in range(1, len(text) if kind == 1 else 0):
            left, right = text[:cut], text[cut:]
            if left in vocab and right in vocab:
                merges.append((-score, vocab[left], vocab[right], [left, right]))
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    ]
    if prefix:
        steps.insert(0, {"type": "Prepend", "prepend": SPACE})
    pre = {
        "type": "Metaspace", "replacement": SPACE, "split": False,
        "prepend_scheme": "first" if prefix else "never",
    }  # fmt: skip
    return {
        "normalizer": None if metaspace else {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": pre if metaspace else None,
        "added_tokens": [
            {"id": i, "content": text, "special": kind != 4}
            for i, (text, _, kind) in enumerate(pieces)
            if kind in (2, 3, 4)
        ],
        "model": {
            "type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "vocab": vocab,
            "merges": [pair for *_, pair in sorted(merges)],
        },
    }  # fmt: skip


def folder_with(folder: Path, pieces: list[Piece], files: dict[str, bytes | dict]) -> Path:
    """A tiny llama with these tokenizer files in place of its own."""
    write_checkpoint(folder, "llama", len(pieces))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    for name, content in files.items():
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).write_bytes(raw)
    return folder


SIDE = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": True}


def files_of(pieces: list[Piece], form: str, prefix: bool = True) -> dict[str, bytes | dict]:
    if form == "model":
        return {
            "tokenizer.model": model_bytes(pieces, prefix=prefix),
            "tokenizer_config.json": SIDE,
        }
    content = json_content(pieces, prefix=prefix, metaspace=form == "metaspace")
    return {"tokenizer.json": content, "tokenizer_config.json": SIDE}


def converted(folder: Path, pieces: list[Piece], files: dict[str, bytes | dict]) -> Path:
    target = folder / "x.gguf"
    assert main(["convert", str(folder_with(folder / "c", pieces, files)), str(target)]) == 0
    return target


# ---- real vocabularies -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def vectors(data_dir: Path) -> Callable[[str], tuple[list[Piece], list[str], list[list[int]]]]:
    @functools.cache  # reading a vocabulary takes seconds
    def get(name: str) -> tuple[list[Piece], list[str], list[list[int]]]:
        base = data_dir / "tokenizer-vectors" / f"ggml-vocab-{name}.gguf"
        if not base.is_file():
            pytest.skip(f"no vocabulary: {base} is not there")
        fields = gguf.GGUFReader(base).fields
        columns = [
            fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "scores", "token_type")
        ]
        texts = base.with_suffix(".gguf.inp").read_bytes().decode().split(SEPARATOR)[:-1]
        lines = base.with_suffix(".gguf.out").read_text().split("\n")[:-1]
        return (
            list(zip(*columns, strict=True)),
            texts,
            [[int(token) for token in line.split()] for line in lines],
        )

    return get


@pytest.mark.parametrize("form", ["model", "json", "metaspace"])
def test_llama_vectors(
    form: str,
    vectors: Callable[..., tuple[list[Piece], list[str], list[list[int]]]],
    tmp_path: Path,
) -> None:
    pieces, texts, wanted = vectors("llama-spm")
    assert len(texts) == len(wanted) > 40
    with pywina.load(converted(tmp_path, pieces, files_of(pieces, form))) as model:
        for text, ids in zip(texts, wanted, strict=True):
            assert model.tokenize(text, add_special=False, parse_special=False) == ids, ascii(text)
        assert model.tokenize("a", add_special=True)[0] == 1  # the beginning of a text


# ---- every kind of token ---------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("form", ["model", "json", "metaspace"])
def test_small_vocabulary(form: str, prefix: bool, tmp_path: Path) -> None:
    """Expected pieces by hand: the best score is merged first, what is no piece becomes bytes."""
    path = converted(tmp_path, SMALL, files_of(SMALL, form, prefix))
    texts = [text for text, _, _ in SMALL]
    cases = {
        "abc": [f"{SPACE}abc"] if prefix else ["abc"],
        "a abc": [f"{SPACE}a" if prefix else "a", f"{SPACE}abc"],
        "\u00e9\u00fc": [*[SPACE][: int(prefix)], "\u00e9", "<0xC3>", "<0xBC>"],
        # As in llama.cpp a text begins again behind such a token.
        "b<t>c": ["b", "<t>", "c"] if not prefix else [SPACE, "b", "<t>", SPACE, "c"],
    }
    with pywina.load(path) as model:
        for text, wanted in cases.items():
            ids = model.tokenize(text, add_special=False, parse_special=False)
            assert [texts[i] for i in ids] == wanted
        spaces = [texts[i] for i in model.tokenize("b   c", add_special=False)]
        assert SPACE * 3 in spaces and spaces[-1] == "c"
    fields = gguf.GGUFReader(path).fields
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert kinds == [kind for _, _, kind in SMALL]
    assert fields["tokenizer.ggml.model"].contents() == "llama"
    assert fields["tokenizer.ggml.add_space_prefix"].contents() is prefix
    assert fields["tokenizer.ggml.unknown_token_id"].contents() == 0
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 2


def test_added_tokens(tmp_path: Path) -> None:
    """Tokens beside tokenizer.model, from the two other places."""
    files = files_of(SMALL, "model")
    n = len(SMALL)
    side = {**SIDE, "added_tokens_decoder": {str(n): {"content": "<|im|>", "special": True}}}
    files |= {"tokenizer_config.json": side, "added_tokens.json": {"<|im|>": n, "<u>": n + 1}}
    more = [*SMALL, ("<|im|>", 0.0, 3), ("<u>", 0.0, 4)]
    path = converted(tmp_path, more, files)
    assert gguf.GGUFReader(path).fields["tokenizer.ggml.token_type"].contents()[-2:] == [3, 4]
    with pywina.load(path) as model:
        assert model.tokenize("b<u><|im|>", add_special=False, parse_special=True)[-2:] == [
            n + 1,
            n,
        ]
        assert n not in model.tokenize("b<|im|>", add_special=False, parse_special=False)


# ---- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tokenizer.model": model_bytes(SMALL, kind=1)}, "only SentencePiece models of type BPE"),
        ({"tokenizer.model": model_bytes(SMALL, normalizer=b"nmt_nfkc")}, "nmt_nfkc"),
        ({"tokenizer.model": b""}, "holds no pieces"),
        ({"tokenizer.model": model_bytes(SMALL)[:-3]}, "is no SentencePiece model"),
        ({"tokenizer.model": b"\xff" * 40}, "is no SentencePiece model"),
        ({"tokenizer.model": model_bytes([*SMALL, ("x", 0.0, 1)])}, "embeddings"),
        ({"tokenizer.model": model_bytes([("x", 0.0, 9)])}, "is no SentencePiece model"),
        ({"tokenizer.json": {"model": {"type": "BPE", "byte_fallback": True}}}, "not understood"),
        (
            {"tokenizer.json": {**json_content(SMALL, prefix=True, metaspace=False),
                                "normalizer": {"type": "NFKC"}}},
            "normalizer NFKC",
        ),
        (
            {"tokenizer.json": {**json_content(SMALL, prefix=True, metaspace=False),
                                "pre_tokenizer": {"type": "Digits"}}},
            "pre-tokenizer Digits",
        ),
        (
            {"tokenizer.json": {**json_content(SMALL, prefix=True, metaspace=False),
                                "pre_tokenizer": {"type": "Metaspace", "replacement": SPACE}}},
            "splits words",
        ),
        ({}, "cannot read"),
    ],
)  # fmt: skip
def test_refused(
    files: dict, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_with(tmp_path / "c", SMALL, files)
    target = tmp_path / "x.gguf"
    assert main(["convert", str(folder), str(target)]) == 2
    assert words in capsys.readouterr().err and not target.exists()


def test_damaged_models_are_told(tmp_path: Path) -> None:
    """One byte changed anywhere: read, or refused as what it is."""
    raw, path = model_bytes(SMALL[:6] + SMALL[-6:]), tmp_path / "tokenizer.model"
    n_refused = 0
    for at in range(len(raw)):
        for value in (0, 255, raw[at] ^ 4):
            path.write_bytes(raw[:at] + bytes([value]) + raw[at + 1 :])
            try:
                _read_model(path)
            except (FormatError, pywina.UnsupportedError):
                n_refused += 1
    assert n_refused > len(raw)
