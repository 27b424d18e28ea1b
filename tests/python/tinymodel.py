"""Tiny random models as GGUF files, for tests.

A model is described by :class:`TinySpec` and written by :func:`write_tiny`; the same spec gives the
same bytes. Weights are random and scaled so that activations stay of order one; the vocabulary is
byte-level BPE with every byte, a few merges, three control tokens, one user-defined token and a
chat template, so anything that runs on a real model runs here too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_PAIRS = (
    "Ġ t|h e|Ġt he|i n|Ġ a|e r|o n|r e|Ġ s|a t|e n|o r|Ġ w|i s|Ġ c|in g|Ġa n|Ġan d|o u|l l|"
    "Ġ b|Ġ f|Ġ m|e s|Ġ o|Ġo f|a l|Ġ p|e d|Ġt o"
)
MERGES = _PAIRS.split("|")
ENDOFTEXT, IM_START, IM_END, TOOL = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>"

#: roles of matrices; the keys of TinySpec.types
ROLES = ("embd", "output", "q", "k", "v", "o", "gate", "up", "down")

#: types that gguf-py does not quantise: weights of a block, and its bytes
_BLOCKS = {
    Type.Q4_K: (256, 144), Type.Q5_K: (256, 176), Type.Q6_K: (256, 210), Type.Q2_K: (256, 84),
    Type.Q3_K: (256, 110), Type.IQ4_XS: (256, 136), Type.IQ4_NL: (32, 18),
}  # fmt: skip


@dataclass(frozen=True)
class TinySpec:
    """What to write. types: tensor type per role of :data:`ROLES`, "F32" where not given. Widths
    must be multiples of the block size of the types that use them as inputs (32; 256 for K)."""

    architecture: str = "llama"  # or "qwen2": has q, k, v biases
    n_embd: int = 64
    n_layer: int = 2
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int | None = None  # default n_embd / n_head
    n_ff: int = 128
    n_ctx: int = 512
    rope_theta: float = 10000.0
    tied: bool = True
    add_bos: bool = False
    pre: str | None = None  # default: "gpt-2" for llama, "qwen2" for qwen2
    chat_template: str | None = CHAT_TEMPLATE
    types: dict[str, str] = field(default_factory=dict)
    #: more metadata; tuples become arrays of float32
    extra: dict[str, int | float | str | bool | tuple[float, ...]] = field(default_factory=dict)
    seed: int = 1

    @property
    def width(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.n_embd // self.n_head


def byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level BPE vocabularies."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters, extra = {}, 0
    for byte in range(256):
        if byte in printable:
            letters[byte] = chr(byte)
        else:
            letters[byte] = chr(256 + extra)
            extra += 1
    return [letters[byte] for byte in range(256)]


def vocabulary() -> tuple[list[str], list[int]]:
    """Texts and types of all tokens."""
    kinds = gguf.TokenType
    texts = byte_letters() + [pair.replace(" ", "") for pair in MERGES]
    types = [kinds.NORMAL] * len(texts)
    texts += [ENDOFTEXT, IM_START, IM_END, TOOL]
    types += [kinds.CONTROL] * 3 + [kinds.USER_DEFINED]
    return texts, [int(kind) for kind in types]


def _random_blocks(kind: Type, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Random bytes as blocks, with float16 scales that keep the weights small."""
    rows, cols = shape
    n_weights, n_bytes = _BLOCKS[kind]
    blocks = rng.integers(0, 256, (rows, cols // n_weights, n_bytes), dtype=np.uint8)

    def store(offset: int, scale: float) -> None:
        values = rng.uniform(0.5 * scale, scale, blocks.shape[:2]).astype(np.float16)
        blocks[:, :, offset : offset + 2] = values[..., None].view(np.uint8)

    unit = 1 / np.sqrt(cols)
    if kind == Type.Q6_K:  # d * int8 * (q - 32)
        store(208, unit / (64 * 16))
    elif kind == Type.Q3_K:  # d * (scale - 32) * (q - 4)
        store(108, unit / (16 * 2))
    elif kind == Type.Q2_K:  # d * scale * q - dmin * min, with 4-bit scales and mins
        store(80, unit / 8)
        store(82, 1.5 * unit / 8)
    elif kind == Type.IQ4_NL:  # d * one of 16 integers
        store(0, unit / 64)
    elif kind == Type.IQ4_XS:  # d * (scale - 32) * one of 16 integers
        store(0, unit / (64 * 16))
    else:  # d * scale * q - dmin * min, with 6-bit scales and mins
        top = 15 if kind == Type.Q4_K else 31
        store(0, 2 * unit / (32 * top))
        store(2, unit / 32)
    return blocks.reshape(rows, cols // n_weights * n_bytes)


def random_matrix(kind: Type, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(rows, cols) random weights of about unit gain, as stored bytes (floats for F32, F16)."""
    if kind in _BLOCKS:
        return _random_blocks(kind, shape, rng)
    values = rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[1]))
    if kind == Type.F32:
        return values
    if kind == Type.F16:
        return values.astype(np.float16)
    return gguf.quants.quantize(values, kind)


def _write_metadata(writer: gguf.GGUFWriter, spec: TinySpec) -> None:
    writer.add_name(f"tiny {spec.architecture}")
    writer.add_context_length(spec.n_ctx)
    writer.add_embedding_length(spec.n_embd)
    writer.add_block_count(spec.n_layer)
    writer.add_feed_forward_length(spec.n_ff)
    writer.add_head_count(spec.n_head)
    writer.add_head_count_kv(spec.n_head_kv)
    if spec.head_dim is not None:
        writer.add_key_length(spec.head_dim)
        writer.add_value_length(spec.head_dim)
    writer.add_rope_dimension_count(spec.width)
    writer.add_rope_freq_base(spec.rope_theta)
    writer.add_layer_norm_rms_eps(1e-5)
    texts, types = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(spec.pre or ("qwen2" if spec.architecture == "qwen2" else "gpt-2"))
    writer.add_token_list(texts)
    writer.add_token_types(types)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(texts.index(ENDOFTEXT))
    writer.add_eos_token_id(texts.index(IM_END))
    writer.add_add_bos_token(spec.add_bos)
    if spec.chat_template is not None:
        writer.add_chat_template(spec.chat_template)
    for key, value in spec.extra.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, tuple):
            writer.add_key_value(
                key, list(value), gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.FLOAT32
            )
        else:
            writer.add_string(key, value)


def write_tiny(path: Path, spec: TinySpec | None = None) -> Path:
    """Writes the model of a spec to path."""
    spec = spec or TinySpec()
    rng = np.random.default_rng(spec.seed)
    writer = gguf.GGUFWriter(path, spec.architecture)
    _write_metadata(writer, spec)
    n_vocab = len(vocabulary()[0])
    q, kv = spec.n_head * spec.width, spec.n_head_kv * spec.width

    def matrix(name: str, role: str, rows: int, cols: int) -> None:
        kind = Type[spec.types.get(role, "F32")]
        writer.add_tensor(name, random_matrix(kind, (rows, cols), rng), raw_dtype=kind)

    def vector(name: str, size: int, mean: float) -> None:
        values = mean + 0.1 * rng.standard_normal(size, dtype=np.float32)
        writer.add_tensor(name, values.astype(np.float32))

    matrix("token_embd.weight", "embd", n_vocab, spec.n_embd)
    for i in range(spec.n_layer):
        vector(f"blk.{i}.attn_norm.weight", spec.n_embd, 1.0)
        matrix(f"blk.{i}.attn_q.weight", "q", q, spec.n_embd)
        matrix(f"blk.{i}.attn_k.weight", "k", kv, spec.n_embd)
        matrix(f"blk.{i}.attn_v.weight", "v", kv, spec.n_embd)
        if spec.architecture == "qwen2":
            vector(f"blk.{i}.attn_q.bias", q, 0.0)
            vector(f"blk.{i}.attn_k.bias", kv, 0.0)
            vector(f"blk.{i}.attn_v.bias", kv, 0.0)
        matrix(f"blk.{i}.attn_output.weight", "o", spec.n_embd, q)
        vector(f"blk.{i}.ffn_norm.weight", spec.n_embd, 1.0)
        matrix(f"blk.{i}.ffn_gate.weight", "gate", spec.n_ff, spec.n_embd)
        matrix(f"blk.{i}.ffn_up.weight", "up", spec.n_ff, spec.n_embd)
        matrix(f"blk.{i}.ffn_down.weight", "down", spec.n_embd, spec.n_ff)
    vector("output_norm.weight", spec.n_embd, 1.0)
    if not spec.tied:
        matrix("output.weight", "output", n_vocab, spec.n_embd)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
