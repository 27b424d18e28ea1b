"""Files that must be refused, by name: a valid model of about 2 KB, and one thing wrong at a time.

    python tests/bad/make_bad.py DIR      writes DIR/NAME.gguf for each, and the good ones

Each case states the error it must end in: the class in :mod:`pywina.errors` and words of its text.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
_FORMS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B",
          U64: "Q", I64: "q", F64: "d"}  # fmt: skip
TOP = 2**64 - 1
NAN, INF = math.nan, math.inf


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, content: object) -> bytes:
    """A scalar with its type."""
    if kind == STR:
        return struct.pack("<I", STR) + text(content)
    return struct.pack("<I" + _FORMS[kind], kind, content)


def array(kind: int, items: list, count: int | None = None) -> bytes:
    """An array with its type; count: what it says of its length, if not the truth."""
    body = b"".join(text(i) if kind == STR else struct.pack("<" + _FORMS[kind], i) for i in items)
    return struct.pack("<IIQ", ARR, kind, len(items) if count is None else count) + body


@dataclass
class Tensor:
    ne: list[int]
    kind: int = 0
    data: bytes = b""
    offset: int | None = None  # None: behind the one before
    n_dims: int | None = None


def weights(*ne: int) -> Tensor:
    n = math.prod(ne)
    return Tensor(list(ne), 0, struct.pack(f"<{n}f", *(((i * 7) % 13 - 6) / 16 for i in range(n))))


@dataclass
class File:
    """What a file consists of; every part can be wrong."""

    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int | None = None  # None: the truth
    n_keys: int | None = None
    keys: list[tuple[str | bytes, bytes]] = field(default_factory=list)
    tensors: list[tuple[str | bytes, Tensor]] = field(default_factory=list)
    cut: int | None = None  # bytes that stay
    tail: bytes = b""

    def set(self, key: str, raw: bytes) -> None:
        self.keys = [(k, raw if k == key else v) for k, v in self.keys]
        if key not in dict(self.keys):
            self.keys.append((key, raw))

    def drop(self, key: str) -> None:
        self.keys = [(k, v) for k, v in self.keys if k != key]

    def tensor(self, name: str) -> Tensor:
        return dict(self.tensors)[name]

    def header(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        parts = [self.magic, struct.pack("<IQQ", self.version, n_tensors, n_keys)]
        parts += [text(key) + raw for key, raw in self.keys]
        offset = 0
        for name, t in self.tensors:
            at = offset if t.offset is None else t.offset
            n_dims = len(t.ne) if t.n_dims is None else t.n_dims
            parts.append(text(name) + struct.pack(f"<I{len(t.ne)}QIQ", n_dims, *t.ne, t.kind, at))
            offset += -(-len(t.data) // 32) * 32
        return b"".join(parts)

    def encode(self) -> bytes:
        raw = self.header()
        raw += bytes(-len(raw) % 32)
        for _, t in self.tensors:
            raw += t.data + bytes(-len(t.data) % 32)
        raw += self.tail
        return raw if self.cut is None else raw[: self.cut]


TOKENS = ["<unk>", "a", "b", "c", "ab", "Ġ", "Ġa", "abc", "<|end|>", "d"]


def good() -> File:
    """A llama of one layer, 4 wide, that loads and runs."""
    f = File()
    f.keys = [
        ("general.architecture", value(STR, "llama")),
        ("general.alignment", value(U32, 32)),
        ("llama.context_length", value(U32, 16)),
        ("llama.embedding_length", value(U32, 4)),
        ("llama.block_count", value(U32, 1)),
        ("llama.feed_forward_length", value(U32, 4)),
        ("llama.attention.head_count", value(U32, 2)),
        ("llama.attention.head_count_kv", value(U32, 1)),
        ("llama.rope.freq_base", value(F32, 10000.0)),
        ("llama.attention.layer_norm_rms_epsilon", value(F32, 1e-5)),
        ("tokenizer.ggml.model", value(STR, "gpt2")),
        ("tokenizer.ggml.pre", value(STR, "gpt-2")),
        ("tokenizer.ggml.tokens", array(STR, TOKENS)),
        ("tokenizer.ggml.token_type", array(I32, [2, 1, 1, 1, 1, 1, 1, 1, 3, 1])),
        ("tokenizer.ggml.merges", array(STR, ["a b", "Ġ a", "ab c"])),
        ("tokenizer.ggml.bos_token_id", value(U32, 8)),
        ("tokenizer.ggml.eos_token_id", value(U32, 8)),
    ]
    f.tensors = [
        ("token_embd.weight", weights(4, 10)),
        ("output_norm.weight", weights(4)),
        ("blk.0.attn_norm.weight", weights(4)),
        ("blk.0.attn_q.weight", weights(4, 4)),
        ("blk.0.attn_k.weight", weights(4, 2)),
        ("blk.0.attn_v.weight", weights(4, 2)),
        ("blk.0.attn_output.weight", weights(4, 4)),
        ("blk.0.ffn_norm.weight", weights(4)),
        ("blk.0.ffn_gate.weight", weights(4, 4)),
        ("blk.0.ffn_up.weight", weights(4, 4)),
        ("blk.0.ffn_down.weight", weights(4, 4)),
    ]
    return f


def good_mixture() -> File:
    """The same with three experts, of which two are chosen. Not a case: a seed for mutations."""
    f = good()
    f.set("llama.expert_count", value(U32, 3))
    f.set("llama.expert_used_count", value(U32, 2))
    f.tensors = [(name, t) for name, t in f.tensors if name.split(".")[-2] not in _FFN]
    f.tensors.append(("blk.0.ffn_gate_inp.weight", weights(4, 3)))
    f.tensors += [(f"blk.0.{role}_exps.weight", weights(4, 4, 3)) for role in _FFN]
    return f


_FFN = ("ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True)
class Case:
    name: str
    data: bytes
    error: str  # class in pywina.errors
    words: str  # part of its text


def _made(change: Callable[[File], object]) -> bytes:
    f = good()
    change(f)
    return f.encode()


def _replaced(f: File, name: str, **fields: object) -> None:
    for key, content in fields.items():
        setattr(f.tensor(name), key, content)


def _cuts() -> Iterator[Case]:
    whole, f = good().encode(), good()
    n_header = len(f.header())
    for name, n, words in (
        ("nothing", 0, "empty"),
        ("one-byte", 1, "cut short: magic"),
        ("magic-only", 4, "cut short: version"),
        ("version-only", 8, "cut short: tensor count"),
        ("half-a-count", 12, "cut short: tensor count"),
        ("one-count", 16, "tensor count 11, 0 bytes remain"),
        ("counts-only", 24, "cut short"),
        ("inside-a-key", 30, "cut short"),
        ("inside-the-keys", 600, "cut short"),
        ("inside-the-tensor-table", n_header - 40, "cut short"),
        ("inside-the-last-entry", n_header - 1, "cut short"),
        ("header-only", n_header, "cut short"),
        ("inside-the-data", len(whole) - 100, "cut short"),
        ("last-tensor-one-byte-short", len(whole) - 1, "cut short"),
    ):
        yield Case(f"cut-{name}", whole[:n], "FormatError", words)


def _heads() -> Iterator[Case]:
    def case(name: str, error: str, words: str, **fields: object) -> Case:
        f = good()
        for key, content in fields.items():
            setattr(f, key, content)
        return Case(f"head-{name}", f.encode(), error, words)

    yield case("magic-lower", "FormatError", "not a GGUF file", magic=b"gguf")
    yield case("magic-ggml", "FormatError", "not a GGUF file", magic=b"ggml")
    yield case("magic-zero", "FormatError", "not a GGUF file", magic=bytes(4))
    yield case("magic-elf", "FormatError", "not a GGUF file", magic=b"\x7fELF")
    for version in (0, 1, 4, 0xFFFF, 2**31, 2**32 - 1):
        words = "big-endian" if version and version & 0xFFFF == 0 else f"version {version}"
        yield case(f"version-{version}", "UnsupportedError", words, version=version)
    yield case("big-endian", "UnsupportedError", "big-endian", version=3 << 24)
    for n in (12, 10**6, 2**31, 2**32, 2**40, 2**61, 2**62 + 1, 2**63, TOP):
        words = "cut short" if n > 12 else "blk.0"
        yield case(f"tensors-{n}", "FormatError", "cut short" if n > 12 else "", n_tensors=n)
    for n in (18, 10**6, 2**32, 2**61, 2**63, TOP):
        yield case(f"keys-{n}", "FormatError", "cut short" if n > 18 else "", n_keys=n)
    yield case("keys-fewer", "UnsupportedError", "tensor type", n_keys=16)
    yield case("tensors-fewer", "FormatError", "missing", n_tensors=10)
    f = File(n_keys=16385, tail=bytes(16385 * 14))
    yield Case("head-too-many-keys", f.encode(), "UnsupportedError", "limit is 16384")
    f = File(n_tensors=65537, tail=bytes(65537 * 33))
    yield Case("head-too-many-tensors", f.encode(), "UnsupportedError", "limit is 65536")


def _keys() -> Iterator[Case]:
    def case(name: str, error: str, words: str, key: str | bytes, raw: bytes) -> Case:
        return Case(f"key-{name}", _made(lambda f: f.keys.append((key, raw))), error, words)

    one = value(U8, 1)
    yield case("empty", "FormatError", "empty", "", one)
    yield case("not-utf8", "FormatError", "not UTF-8", b"a\xff", one)
    yield case("surrogate", "FormatError", "not UTF-8", b"a\xed\xa0\x80", one)
    yield case("overlong", "FormatError", "not UTF-8", b"a\xc0\x80", one)
    yield case("nul", "FormatError", "control character", "a\0b", one)
    yield case("escape", "FormatError", "control character", "a\x1b[2J", one)
    yield case("too-long", "FormatError", "limit is 65536", "k" * 65537, one)
    yield case("twice", "FormatError", "appears twice", "llama.block_count", value(U32, 2))
    yield case("type-13", "FormatError", "unknown value type 13", "x", struct.pack("<IQ", 13, 0))
    yield case(
        "type-top", "FormatError", "unknown value type", "x", struct.pack("<IQ", 2**32 - 1, 0)
    )
    yield case("bool-2", "FormatError", "must be 0 or 1", "x", struct.pack("<IB", BOOL, 2))
    yield case("bool-array", "FormatError", "must be 0 or 1", "x", array(BOOL, [0, 1, 255]))
    yield case("array-of-arrays", "UnsupportedError", "arrays of arrays", "x",
               struct.pack("<IIQIQ", ARR, ARR, 1, U8, 0))  # fmt: skip
    nested = struct.pack("<IIQ", ARR, ARR, 1) + struct.pack("<IQ", ARR, 1) * 1000
    yield case("arrays-1000-deep", "UnsupportedError", "arrays of arrays", "x", nested)
    yield case("array-type-99", "FormatError", "unknown item type 99", "x",
               struct.pack("<IIQ", ARR, 99, 0))  # fmt: skip
    for kind in (U8, U64, STR, F64):
        for n in (2**20, 2**32, 2**61, 2**63, TOP):
            yield case(f"array-{kind}-of-{n}", "FormatError", "cut short", "x", array(kind, [], n))
    for n in (10**6, 2**32, 2**63, TOP, TOP - 7):
        yield case(f"string-of-{n}", "FormatError", "cut short", "x", struct.pack("<IQ", STR, n))
    yield case("string-in-array-too-long", "FormatError", "cut short", "x",
               struct.pack("<IIQQ", ARR, STR, 1, TOP))  # fmt: skip
    yield case(
        "string-16-MiB", "UnsupportedError", "limit is 16777216", "x", value(STR, "s" * (2**24 + 1))
    )
    yield case("array-4-Mi", "UnsupportedError", "limit is 4194304", "x",
               struct.pack("<IIQ", ARR, U8, 2**22 + 1) + bytes(2**22 + 1))  # fmt: skip
    for n in (0, 1, 3, 4, 24, 33, 2**17, 2**31, 2**32 - 1):
        yield Case(
            f"alignment-{n}",
            _made(lambda f, n=n: f.set("general.alignment", value(U32, n))),
            "FormatError",
            "power of two",
        )
    for kind, content in ((U64, 32), (STR, "32"), (F32, 32.0), (I32, 32)):
        raw = value(kind, content)
        yield Case(
            f"alignment-type-{kind}",
            _made(lambda f, raw=raw: f.set("general.alignment", raw)),
            "FormatError",
            "must be u32",
        )


def _tensors() -> Iterator[Case]:
    def case(name: str, error: str, words: str, tensor: str = "blk.0.attn_q.weight",
             **fields: object) -> Case:  # fmt: skip
        data = _made(lambda f: _replaced(f, tensor, **fields))
        return Case(f"tensor-{name}", data, error, words)

    def renamed(name: str, error: str, words: str, label: str | bytes) -> Case:
        data = _made(lambda f: f.tensors.append((label, weights(4))))
        return Case(f"tensor-{name}", data, error, words)

    yield renamed("name-empty", "FormatError", "empty", "")
    yield renamed("name-256", "FormatError", "limit is 255", "n" * 256)
    yield renamed("name-not-utf8", "FormatError", "not UTF-8", b"\xfe\xff")
    yield renamed("name-nul", "FormatError", "control character", "a\0")
    yield renamed("name-twice", "FormatError", "appears twice", "output_norm.weight")
    for n in (0, 5, 255, 2**31, 2**32 - 1):
        yield case(f"dims-{n}", "FormatError", "must be 1 to 4", n_dims=n)
    yield case("dim-zero", "FormatError", "dimension 1 is zero", ne=[4, 0])
    yield case("dim-zero-first", "FormatError", "dimension 0 is zero", ne=[0, 4])
    for ne in (
        [2**32, 2**32],
        [2**32, 2**32, 1, 1],
        [2**62, 4],
        [TOP, TOP],
        [2**63, 2],
        [1, 2**62],
        [TOP],
        [2**16] * 4,
        [4, 2**63, 2, 1],
        [2**32 + 1, 2**32 - 1],
        [4, 10**6],
    ):
        name = "x".join(str(n) for n in ne)
        yield case(f"shape-{name}", "FormatError", "more bytes than the file", ne=ne)
    for kind in (4, 5, 31, 32 + 9, 99, 2**31, 2**32 - 1):
        yield case(f"type-{kind}", "UnsupportedError", "tensor type", kind=kind)
    yield case("half-a-block", "FormatError", "not whole Q4_0 blocks", kind=2, ne=[16, 4])
    yield case("half-a-k-block", "FormatError", "not whole Q4_K blocks", kind=12, ne=[128, 1])
    yield case("offset-odd", "FormatError", "multiple of the alignment", offset=1)
    yield case("offset-8", "FormatError", "multiple of the alignment", offset=8)
    yield case("offset-behind", "FormatError", "cut short", offset=2**20)
    for n in (2**32, 2**63, TOP - 31, 2**64 - 64):
        yield case(f"offset-{n}", "FormatError", "cut short", offset=n)
    yield case("overlap", "FormatError", "overlaps", offset=0)
    f = good()
    n_data = sum(-(-len(t.data) // 32) * 32 for _, t in f.tensors)
    yield case("offset-last-row-outside", "FormatError", "cut short", offset=n_data - 32)


def _shapes() -> Iterator[Case]:
    def case(name: str, tensor: str, words: str, ne: list[int]) -> Case:
        data = _made(lambda f: _replaced(f, tensor, **vars(weights(*ne))))
        return Case(f"model-{name}", data, "FormatError", words)

    f = good()
    for name, _ in f.tensors:
        data = _made(lambda f, n=name: f.tensors.remove((n, f.tensor(n))))
        yield Case(f"model-without-{name}", data, "FormatError", name)
    yield case("embd-wide", "token_embd.weight", "token_embd.weight", [8, 10])
    yield case("embd-short", "token_embd.weight", "only 9", [4, 9])
    yield case("q-transposed", "blk.0.attn_q.weight", "attn_q", [2, 8])
    yield case("k-tall", "blk.0.attn_k.weight", "attn_k", [4, 4])
    yield case("v-3d", "blk.0.attn_v.weight", "attn_v", [4, 2, 2])
    yield case("norm-long", "blk.0.attn_norm.weight", "attn_norm", [8])
    yield case("norm-2d", "output_norm.weight", "output_norm", [4, 2])
    yield case("down-wide", "blk.0.ffn_down.weight", "ffn_down", [8, 4])


def _hyper() -> Iterator[Case]:
    def case(name: str, error: str, words: str, key: str, raw: bytes | None) -> Case:
        full = key if "." in key and key.split(".")[0] in ("general", "llama") else f"llama.{key}"
        data = _made(lambda f: f.set(full, raw) if raw is not None else f.drop(full))
        return Case(f"config-{name}", data, error, words)

    bad, no = "FormatError", "UnsupportedError"
    yield case("arch-missing", bad, "general.architecture", "general.architecture", None)
    yield case("arch-number", bad, "must be str", "general.architecture", value(U32, 1))
    yield case("arch-unknown", no, "nonesuch", "general.architecture", value(STR, "nonesuch"))
    yield case("arch-empty", no, "architecture", "general.architecture", value(STR, ""))
    long = value(STR, "x" * 10**6)
    yield case("arch-1-MB", no, "architecture", "general.architecture", long)
    counts = ("context_length", "embedding_length", "block_count", "feed_forward_length",
              "attention.head_count")  # fmt: skip
    for key in counts:
        yield case(f"{key}-missing", bad, "missing", key, None)
        yield case(f"{key}-0", bad, "must be in", key, value(U32, 0))
        yield case(f"{key}-top", bad, "must be in", key, value(U32, 2**32 - 1))
        yield case(f"{key}-negative", bad, "must not be negative", key, value(I32, -1))
        yield case(f"{key}-2^33", bad, "below 2^32", key, value(U64, 2**33))
        yield case(f"{key}-float", bad, "must be an integer", key, value(F32, 4.0))
        yield case(f"{key}-string", bad, "must be an integer", key, value(STR, "4"))
    heads = "attention.head_count_kv"
    yield case("kv-heads-0", bad, "must be in", heads, value(U32, 0))
    yield case("kv-heads-3", bad, "multiple", heads, value(U32, 3))
    yield case("heads-3", bad, "multiple", "attention.head_count", value(U32, 3))
    yield case("heads-4", bad, "must be in", "attention.head_count", value(U32, 4))
    yield case("key-length-0", bad, "must be in", "attention.key_length", value(U32, 0))
    yield case("key-length-odd", bad, "", "attention.key_length", value(U32, 3))
    yield case("value-length-8", no, "differs", "attention.value_length", value(U32, 8))
    yield case("rope-0", bad, "must be in", "rope.dimension_count", value(U32, 0))
    yield case("rope-wide", bad, "must be in", "rope.dimension_count", value(U32, 4))
    for name, number in (("nan", NAN), ("inf", INF), ("0", 0.0), ("negative", -1.0)):
        eps = "attention.layer_norm_rms_epsilon"
        yield case(f"eps-{name}", bad, "positive and finite", eps, value(F32, number))
        yield case(
            f"theta-{name}", bad, "positive and finite", "rope.freq_base", value(F32, number)
        )
    yield case("eps-missing", bad, "missing", "attention.layer_norm_rms_epsilon", None)
    yield case("theta-1e300", bad, "too large", "rope.freq_base", value(F64, 1e300))
    yield case("value-length-string", bad, "an integer", "attention.value_length", value(STR, "2"))
    f = good()
    f.set("llama.attention.key_length", value(U32, 4))
    f.set("llama.rope.dimension_count", value(U32, 3))
    yield Case("config-rope-odd", f.encode(), bad, "must be even")
    yield case("scaling-number", bad, "must be str", "rope.scaling.type", value(U32, 1))
    long = value(STR, "yarn" * 1000)
    yield case("scaling-long", no, "is not supported", "rope.scaling.type", long)
    yield case("scaling-unknown", no, "warp", "rope.scaling.type", value(STR, "warp"))
    yield case("experts", bad, "expert_used_count is missing", "expert_count", value(U32, 8))
    yield case("two-layers", bad, "blk.1", "block_count", value(U32, 2))


def _vocabulary() -> Iterator[Case]:
    def case(name: str, error: str, words: str, key: str, raw: bytes | None) -> Case:
        full = f"tokenizer.ggml.{key}"
        data = _made(lambda f: f.set(full, raw) if raw is not None else f.drop(full))
        return Case(f"vocab-{name}", data, error, words)

    bad, no = "FormatError", "UnsupportedError"
    yield case("model-missing", bad, "tokenizer.ggml.model", "model", None)
    yield case("model-unknown", no, "oracle", "model", value(STR, "oracle"))
    yield case("pre-unknown", no, "martian", "pre", value(STR, "martian"))
    yield case("pre-number", bad, "must be str", "pre", value(U32, 1))
    yield case("tokens-missing", bad, "missing", "tokens", None)
    yield case("tokens-none", bad, "tokens", "tokens", array(STR, []))
    yield case("tokens-numbers", bad, "must be array of str", "tokens", array(I32, [1] * 10))
    yield case("tokens-scalar", bad, "must be array of str", "tokens", value(STR, "a"))
    yield case("tokens-too-many", bad, "", "tokens", array(STR, [*TOKENS, "x"]))
    types = "token_type"
    yield case("types-short", bad, "must have 10", types, array(I32, [1] * 9))
    yield case("types-long", bad, "must have 10", types, array(I32, [1] * 11))
    yield case("types-floats", bad, "token_type", types, array(F32, [1.0] * 10))
    yield case("types-99", bad, "token_type", types, array(I32, [99] * 10))
    yield case("types-negative", bad, "token_type", types, array(I32, [-1] * 10))
    yield case("scores-short", bad, "must have 10", "scores", array(F32, [0.0] * 9))
    yield case("scores-ints", bad, "must be array of f32", "scores", array(I32, [0] * 10))
    for key in ("bos_token_id", "eos_token_id"):
        yield case(f"{key}-10", bad, key, key, value(U32, 10))
        yield case(f"{key}-top", bad, key, key, value(U32, 2**32 - 2))
        yield case(f"{key}-negative", bad, key, key, value(I32, -2))
        yield case(f"{key}-string", bad, key, key, value(STR, "8"))
    for key in ("eot_token_id", "unknown_token_id", "fim_pre_token_id", "separator_token_id"):
        yield case(f"{key}-10", bad, key, key, value(U32, 10))
    yield case("merges-missing", bad, "merges", "merges", None)
    yield case("merges-numbers", bad, "must be array of str", "merges", array(U32, [1, 2]))
    yield case("merges-one-half", bad, "merges", "merges", array(STR, ["ab"]))
    yield case("merges-empty", bad, "merges", "merges", array(STR, [""]))
    yield case("merges-space", bad, "merges", "merges", array(STR, [" "]))
    yield case("merges-unknown", bad, "merges", "merges", array(STR, ["q q"]))
    yield case(
        "special-64-KB", bad, "special token", "tokens", array(STR, [*TOKENS[:8], "x" * 65536, "d"])
    )
    yield case("add-bos-number", bad, "must be bool", "add_bos_token", value(U32, 1))

    def spm(tokens: list[str], kinds: list[int]) -> bytes:
        def change(f: File) -> None:
            f.set("tokenizer.ggml.model", value(STR, "llama"))
            f.set("tokenizer.ggml.tokens", array(STR, tokens))
            f.set("tokenizer.ggml.token_type", array(I32, kinds))
            f.set("tokenizer.ggml.scores", array(F32, [0.0] * len(tokens)))

        return _made(change)

    for wrong in ("<0xG1>", "<0x1>", "<0x123>", "0x12", "<0x12", "<0x+1>"):
        tokens = ["<unk>", wrong, *TOKENS[2:]]
        data = spm(tokens, [2, 6, 1, 1, 1, 1, 1, 1, 3, 1])
        name = "".join(c if c.isalnum() else "-" for c in wrong)
        yield Case(f"vocab-byte-{name}", data, bad, "byte")


def _mixtures() -> Iterator[Case]:
    """Counts, widths and routers of experts."""
    bad, no = "FormatError", "UnsupportedError"

    def case(name: str, error: str, words: str, key: str, raw: bytes, arch: str = "llama") -> Case:
        f = good_mixture()
        f.keys = [(k.replace("llama.", f"{arch}.", 1), v) for k, v in f.keys]
        f.set("general.architecture", value(STR, arch))
        f.set(f"{arch}.{key}", raw)
        return Case(f"mixture-{name}", f.encode(), error, words)

    yield case("count-string", bad, "must be an integer", "expert_count", value(STR, "3"))
    yield case("count-1025", bad, "must be in 0..1024", "expert_count", value(U32, 1025))
    yield case("count-0", bad, "must be in 1..1024", "expert_count", value(U32, 0), "qwen2moe")
    yield case("count-2", bad, "blk.0.ffn_gate_inp", "expert_count", value(U32, 2))
    yield case("elsewhere", no, "not supported there", "expert_count", value(U32, 3), "gemma3")
    yield case("used-0", bad, "must be in 1..3", "expert_used_count", value(U32, 0))
    yield case("used-4", bad, "must be in 1..3", "expert_used_count", value(U32, 4))
    width, shared = "expert_feed_forward_length", "expert_shared_feed_forward_length"
    yield case("width-0", bad, "must be in", width, value(U32, 0), "qwen3moe")
    yield case("width-string", bad, "must be an integer", width, value(STR, "4"), "qwen3moe")
    yield case("width-8", bad, "blk.0.", width, value(U32, 8), "qwen3moe")
    yield case("shared-0", bad, "must be in", shared, value(U32, 0), "qwen2moe")
    yield case("shared-top", bad, "must be in", shared, value(U32, 2**32 - 1), "granitemoe")
    yield case("norm-number", bad, "expert_weights_norm", "expert_weights_norm", value(U32, 1))
    yield case("gating-2", no, "only 1 (softmax)", "expert_gating_func", value(U32, 2))
    yield case("gating-string", bad, "expert_gating_func", "expert_gating_func", value(STR, "1"))
    yield case("scale-2.5", no, "expert_weights_scale 2.5", "expert_weights_scale", value(F32, 2.5))
    yield case("scale-nan", no, "expert_weights_scale", "expert_weights_scale", value(F32, NAN))
    yield case("scale-string", bad, "weights_scale", "expert_weights_scale", value(STR, "1"))
    yield case("groups-4", no, "expert_group_count 4", "expert_group_count", value(U32, 4))
    yield case("groups-float", bad, "expert_group_count", "expert_group_count", value(F32, 1.0))


def _traits() -> Iterator[Case]:
    """What single architectures have besides, and what a calibration adds."""
    bad = "FormatError"

    def case(name: str, words: str, arch: str, key: str, raw: bytes) -> Case:
        f = good()
        f.keys = [(k.replace("llama.", f"{arch}.", 1), v) for k, v in f.keys]
        f.set("general.architecture", value(STR, arch))
        f.set(f"{arch}.{key}", raw)
        return Case(f"trait-{name}", f.encode(), bad, words)

    scales = [("gemma2", "attn_logit_softcapping"), ("gemma2", "final_logit_softcapping"),
              ("granite", "embedding_scale"), ("granite", "residual_scale"),
              ("granite", "logit_scale"),
              ("granite", "attention.scale"), ("gemma3", "rope.freq_base_swa"),
              ("phi3", "rope.scaling.attn_factor")]  # fmt: skip
    for arch, key in scales:
        for name, number in (("nan", NAN), ("inf", INF), ("0", 0.0)):
            yield case(f"{arch}-{key}-{name}", "positive and finite", arch, key, value(F32, number))
        yield case(f"{arch}-{key}-string", "", arch, key, value(STR, "1"))
    window = "attention.sliding_window"
    yield case("window-top", "must be in", "gemma3", window, value(U32, 2**32 - 1))

    def linear(f: File, factor: float) -> None:
        f.set("llama.rope.scaling.type", value(STR, "linear"))
        f.set("llama.rope.scaling.factor", value(F32, factor))

    for number in (0.0, NAN, -2.0):
        data = _made(lambda f, n=number: linear(f, n))
        yield Case(f"trait-linear-{number}", data, bad, "positive and finite")
    missing = {"qwen2": "attn_q.bias", "qwen3": "attn_q_norm", "phi3": "attn_qkv",
               "gemma2": "post_attention_norm", "olmo2": "post_attention_norm"}  # fmt: skip
    for arch, words in missing.items():
        f = good()
        f.keys = [(k.replace("llama.", f"{arch}.", 1), v) for k, v in f.keys]
        f.set("general.architecture", value(STR, arch))
        yield Case(f"trait-{arch}-tensor-missing", f.encode(), bad, words)
    for name, tensor in (
        ("rope-freqs", "rope_freqs.weight"),
        ("rotation", "blk.0.attn_rot.weight"),
    ):
        data = _made(lambda f, t=tensor: f.tensors.append((t, weights(8))))
        yield Case(f"trait-{name}-shape", data, bad, tensor)

    def tuned(name: str, words: str, **changes: bytes | None) -> Case:
        f = good()
        content: dict[str, bytes | None] = {
            "targets": array(F32, [0.25, 0.5]), "kept": array(F32, [0.5] * 8),
            **{f"norms_{g}": array(F32, [1.0] * 4) for g in ("qkv", "o", "gate_up", "down")},
        }  # fmt: skip
        for key, raw in (content | changes).items():
            if raw is not None:
                f.set(f"wina.{key.replace('norms_', 'norms.')}", raw)
        return Case(f"tuning-{name}", f.encode(), bad, words)

    yield tuned("targets-none", "must have 1..64", targets=array(F32, []))
    yield tuned("targets-65", "must have 1..64", targets=array(F32, [i / 70 for i in range(1, 66)]))
    yield tuned("targets-falling", "not above", targets=array(F32, [0.5, 0.25]))
    yield tuned("targets-equal", "not above", targets=array(F32, [0.5, 0.5]))
    yield tuned("targets-one", "must be in", targets=array(F32, [0.5, 1.0]))
    yield tuned("targets-nan", "must be in", targets=array(F32, [0.5, NAN]))
    yield tuned("targets-doubles", "must be array of f32", targets=array(F64, [0.25, 0.5]))
    yield tuned("targets-alone", "needs wina.kept", kept=None)
    yield tuned("kept-short", "must have 8", kept=array(F32, [0.5] * 7))
    yield tuned("kept-long", "must have 8", kept=array(F32, [0.5] * 9))
    yield tuned("kept-none", "must have 8", kept=array(F32, []))
    yield tuned("kept-zero", "must be in", kept=array(F32, [0.5] * 7 + [0.0]))
    yield tuned("kept-2", "must be in", kept=array(F32, [2.0] * 8))
    yield tuned("kept-nan", "must be in", kept=array(F32, [NAN] * 8))
    yield tuned("thresholds-inf", "must be in", thresholds=array(F32, [INF] * 8))
    yield tuned("norms-negative", "must be in", norms_o=array(F32, [-1.0] * 4))
    yield tuned("norms-nan", "must be in", norms_down=array(F32, [1, 1, 1, NAN]))
    yield tuned("norms-short", "must have 4", norms_qkv=array(F32, [1.0] * 3))
    yield tuned("norms-of-some-groups", "all groups", norms_o=None)
    yield tuned("norms-scalar", "must be array of f32", norms_o=value(F32, 1.0))
    yield tuned("exponents-5", "must be in", exponents=array(F32, [5.0, 1, 1, 1]))
    yield tuned("exponents-nan", "must be in", exponents=array(F32, [NAN, 1, 1, 1]))
    yield tuned("exponents-short", "must have 4", exponents=array(F32, [1.0]))


def cases() -> list[Case]:
    makers = (_cuts, _heads, _keys, _tensors, _shapes, _hyper, _vocabulary, _mixtures, _traits)
    return [case for make in makers for case in make()]


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "good.gguf").write_bytes(good().encode())
    (folder / "good-mixture.gguf").write_bytes(good_mixture().encode())
    for case in cases():
        (folder / f"{case.name}.gguf").write_bytes(case.data)
    print(f"{len(cases())} bad files in {folder}")


if __name__ == "__main__":
    main()
