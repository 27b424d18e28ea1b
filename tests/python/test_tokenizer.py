"""Tokens of real vocabularies: llama.cpp's vectors, golden ids of other tokenizers, round trips."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import pytest

from pywina._native import check, ffi, lib
from pywina.convert import checkpoint, gguffile

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "tokenizer.json").read_text())
SEPARATOR = "\n__ggml_vocab_test__\n"
ADD, PARSE = lib.WINA_TOKENIZE_ADD_SPECIAL, lib.WINA_TOKENIZE_PARSE_SPECIAL
VOCABULARIES = ["gpt-2", "starcoder", "deepseek-coder", "llama-spm", "phi-3", "smollm2", "qwen2"]
BPE = [name for name in VOCABULARIES if name not in ("llama-spm", "phi-3")]
# Folders by vocabulary with the tokenizer.json of a model whose licence keeps it out of here.
TOKENIZERS = Path(os.environ.get("PYWINA_TOKENIZERS") or Path.home() / ".cache/pywina/tokenizers")
# These bytes have no token there (F1, F2: planes 4 to 11): the models' own
# tokenizers leave them out, and so do we.
LACKS = {"smollm2": {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2}, "starcoder": {0xF1}}


class Vocabulary:
    """A file loaded with vocab_only."""

    def __init__(self, path: Path) -> None:
        params = ffi.new("wina_model_params *")
        lib.wina_model_params_init(params)
        params.vocab_only = 1
        out = ffi.new("wina_model **")
        check(lib.wina_model_load(str(path).encode(), params, out))
        self._model = ffi.gc(out[0], lib.wina_model_free)

    def encode(self, text: str | bytes, flags: int = 0) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        capacity = 3 * len(data) + 8
        tokens, n = ffi.new("int32_t[]", capacity), ffi.new("size_t *")
        check(lib.wina_tokenize(self._model, data, len(data), flags, tokens, capacity, n))
        return ffi.unpack(tokens, n[0]) if n[0] else []

    def decode(self, tokens: list[int], special: bool = False) -> bytes:
        capacity = 1024 * len(tokens) + 8
        text, n = ffi.new("char[]", capacity), ffi.new("size_t *")
        check(lib.wina_detokenize(self._model, tokens, len(tokens), special, text, capacity, n))
        return bytes(ffi.buffer(text, n[0]))

    def is_eog(self, token: int) -> bool:
        return bool(lib.wina_token_is_eog(self._model, token))

    @cached_property
    def info(self) -> ffi.CData:
        info = ffi.new("wina_model_info *")
        check(lib.wina_model_get_info(self._model, info))
        return info


def converted(folder: Path, target: Path) -> Path:
    """The vocabulary of a checkpoint folder as a GGUF file without weights."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = [*content["model"]["vocab"].values(), *(t["id"] for t in content["added_tokens"])]
    file = gguffile.GgufFile({})
    file.set("general.architecture", "llama")
    checkpoint._tokenizer(folder, max(ids) + 1, file.values)
    gguffile.write(target, file)
    return target


@pytest.fixture(scope="session")
def vocabulary(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Vocabulary]:
    """vocabulary(name): loaded on first use, or the test is skipped."""
    loaded: dict[str, Vocabulary] = {}

    def get(name: str) -> Vocabulary:
        if name not in loaded:
            if name == "smollm2":
                path = request.getfixturevalue("smollm2_path")
            elif name == "qwen2":
                path = request.getfixturevalue("qwen_path")
            else:
                folder = request.getfixturevalue("data_dir") / "tokenizer-vectors"
                path = folder / f"ggml-vocab-{name}.gguf"
                own = TOKENIZERS / name
                if not path.is_file() and (own / "tokenizer.json").is_file():
                    path = converted(own, tmp_path_factory.mktemp("vocabulary") / f"{name}.gguf")
                elif not path.is_file():
                    pytest.skip(f"no vocabulary: neither {path} nor {own}/tokenizer.json is there")
            loaded[name] = Vocabulary(path)
        return loaded[name]

    return get


Get = Callable[[str], Vocabulary]


@pytest.mark.parametrize("name", [*(x for x in VOCABULARIES if x != "smollm2"), "llama-bpe"])
def test_vectors(name: str, vocabulary: Get, data_dir: Path) -> None:
    base = data_dir / "tokenizer-vectors" / f"ggml-vocab-{name}.gguf"
    texts = base.with_suffix(".gguf.inp").read_bytes().decode().split(SEPARATOR)
    lines = base.with_suffix(".gguf.out").read_text().split("\n")
    assert texts.pop() == "" and lines.pop() == ""
    assert len(texts) == len(lines) > 40
    vocab = vocabulary(name)
    for text, line in zip(texts, lines, strict=True):
        assert vocab.encode(text) == [int(token) for token in line.split()], text


@pytest.mark.parametrize("name", VOCABULARIES)
def test_golden_ids(name: str, vocabulary: Get) -> None:
    vocab = vocabulary(name)
    for text, ids in zip(GOLDEN["texts"], GOLDEN[name]["ids"], strict=True):
        assert vocab.encode(text) == ids, ascii(text)


@pytest.mark.parametrize("name", BPE)
def test_golden_ids_with_special_tokens(name: str, vocabulary: Get) -> None:
    vocab = vocabulary(name)
    for text, ids in GOLDEN[name]["special"]:
        assert vocab.encode(text, PARSE) == ids, ascii(text)
        if LACKS.get(name, set()).isdisjoint(text.encode()):
            assert vocab.decode(ids, special=True) == text.encode()


def random_texts(n: int) -> Iterator[str]:
    """Texts of characters from all planes, ASCII more often than its share."""
    rng = random.Random(7)

    def character() -> str:
        limit = rng.choice([0x80, 0x80, 0x800, 0x10000, 0x110000])
        cp = rng.randrange(limit)
        return " " if 0xD800 <= cp < 0xE000 else chr(cp)

    for _ in range(n):
        yield "".join(character() for _ in range(rng.randint(0, 40)))


@pytest.mark.parametrize("name", VOCABULARIES)
def test_round_trip(name: str, vocabulary: Get) -> None:
    vocab = vocabulary(name)
    lacks = LACKS.get(name, set())
    for text in random_texts(1000):
        want = text.encode()
        if not lacks.isdisjoint(want):
            continue
        assert vocab.decode(vocab.encode(text)) == want, ascii(text)
        assert vocab.decode(vocab.encode(text, ADD)) == want, ascii(text)


@pytest.mark.parametrize("name", ["gpt-2", "qwen2", "llama-spm"])
def test_invalid_utf8(name: str, vocabulary: Get) -> None:
    """BPE reads U+FFFD where Python's errors="replace" does; SPM keeps every byte."""
    vocab, rng = vocabulary(name), random.Random(8)
    starts = [b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf5", b"\x80"]
    for _ in range(1000):
        pieces = [rng.choice([*starts, rng.randbytes(1), b"a", "ä€😁".encode()]) for _ in range(8)]
        data = b"".join(pieces)
        back = vocab.decode(vocab.encode(data))
        assert back == (data if name == "llama-spm" else data.decode(errors="replace").encode())


CHATML = "<|im_start|>user\nHi<|im_end|>"


@pytest.mark.parametrize(("name", "start", "end"), [("smollm2", 1, 2), ("qwen2", 151644, 151645)])
def test_chat_markers(name: str, start: int, end: int, vocabulary: Get) -> None:
    vocab = vocabulary(name)
    parsed = vocab.encode(CHATML, PARSE)
    assert parsed[0] == start and parsed[-1] == end
    assert vocab.is_eog(end) and not vocab.is_eog(start)
    assert vocab.decode(parsed) == b"user\nHi"
    assert vocab.decode(parsed, special=True) == CHATML.encode()
    # The same words typed by a user are text.
    plain = vocab.encode(CHATML)
    assert start not in plain and end not in plain
    assert vocab.decode(plain) == CHATML.encode()


@pytest.mark.parametrize(
    ("name", "bos", "eos", "add_bos"),
    [
        ("gpt-2", 50256, 50256, False),
        ("deepseek-coder", 32013, 32014, True),
        ("llama-spm", 1, 2, True),
        ("phi-3", 1, 32000, True),
        ("smollm2", 1, 2, False),
        ("qwen2", 151643, 151645, False),
    ],
)
def test_bos_and_eos(name: str, bos: int, eos: int, add_bos: bool, vocabulary: Get) -> None:
    vocab = vocabulary(name)
    assert (vocab.info.bos_token, vocab.info.eos_token) == (bos, eos)
    assert bool(vocab.info.add_bos) == add_bos
    assert vocab.is_eog(eos)
    assert vocab.encode("a b", ADD) == ([bos] if add_bos else []) + vocab.encode("a b")


@pytest.mark.parametrize("name", ["qwen2", "llama-spm"])
def test_user_text_never_ends_a_generation(name: str, vocabulary: Get) -> None:
    vocab, rng = vocabulary(name), random.Random(9)
    words = ["</s>", "<s>", "<|im_end|>", "<|endoftext|>", "</", "s>", "<|", "|>", " ", "s"]
    for _ in range(500):
        text = "".join(rng.choice(words) for _ in range(8))
        assert not any(vocab.is_eog(token) for token in vocab.encode(text)), text


def test_a_large_vocabulary_loads_fast(qwen_path: Path) -> None:
    times = []
    for _ in range(3):
        start = time.process_time()  # other programs do not count
        Vocabulary(qwen_path)
        times.append(time.process_time() - start)
    print(f"151,936 tokens: {1000 * min(times):.0f} ms", file=sys.stderr)
    assert min(times) < 0.2
