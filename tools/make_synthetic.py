"""Writes Llama GGUF files with random weights and real dimensions, for speed measurements.

    python tools/make_synthetic.py --size 1b --type Q4_0 model.gguf
    python tools/make_synthetic.py --layers 4 --embd 512 --ff 1024 --heads 8 --kv-heads 2 \\
        --vocab 1024 --type Q8_0 model.gguf

Speed does not depend on the weights' values, only on their being there: for each type one pool of
random blocks is made, and every matrix is cut from it at random places, so that the file is
written as fast as the disk takes it and the model is never in memory. Scales are such that
activations stay of order one through the layers. The vocabulary is byte-level BPE (all bytes, a few
merges) filled up with unused tokens, so other programs load the files too.

Sizes (weights): 1b = 16 layers, 2048 wide, tied vocabulary of 28,672: 1.03e9;
8b = 32 layers, 4096 wide, untied vocabulary of 128,256: 8.03e9 (Llama-3-8B's own dimensions).
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

TYPES = ("F32", "F16", "BF16", "Q4_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
POOL_WEIGHTS = 1 << 22
ALIGNMENT = 32
MERGES = ("Ġ t", "h e", "Ġt he", "i n", "e r", "Ġ a", "r e", "o n", "Ġ s", "a t", "e n", "in g")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Shape:
    """Dimensions of a Llama model; head_dim 0 means embd / heads."""

    layers: int
    embd: int
    ff: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    context: int = 8192

    @property
    def width(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.embd // self.heads


SIZES = {
    "tiny": Shape(2, 256, 512, 4, 2, 0, 512, True, 2048),
    "1b": Shape(16, 2048, 8192, 32, 8, 0, 28672, True),
    "8b": Shape(32, 4096, 14336, 32, 8, 128, 128256, False),
}


def tensors(shape: Shape) -> list[tuple[str, int, int, float]]:
    """(name, rows, cols, standard deviation) in file order; rows 0: a vector of ones."""
    d, q, kv = shape.embd, shape.heads * shape.width, shape.kv_heads * shape.width
    inward = d**-0.5
    # What a block adds to the residual stream is kept small, so that 2 x layers of them stay sane.
    back = (2 * shape.layers) ** -0.5
    out = [("token_embd.weight", shape.vocab, d, inward if shape.tied else 1.0)]
    for i in range(shape.layers):
        out += [
            (f"blk.{i}.attn_norm.weight", 0, d, 0.0),
            (f"blk.{i}.attn_q.weight", q, d, inward),
            (f"blk.{i}.attn_k.weight", kv, d, inward),
            (f"blk.{i}.attn_v.weight", kv, d, inward),
            (f"blk.{i}.attn_output.weight", d, q, back * q**-0.5),
            (f"blk.{i}.ffn_norm.weight", 0, d, 0.0),
            (f"blk.{i}.ffn_gate.weight", shape.ff, d, inward),
            (f"blk.{i}.ffn_up.weight", shape.ff, d, inward),
            (f"blk.{i}.ffn_down.weight", d, shape.ff, back * shape.ff**-0.5),
        ]
    out.append(("output_norm.weight", 0, d, 0.0))
    if not shape.tied:
        out.append(("output.weight", shape.vocab, d, inward))
    return out


class Pool:
    """Random blocks of one type; slices of it are matrices."""

    def __init__(self, kind: Type, rng: np.random.Generator) -> None:
        self.kind = kind
        self.block, self.block_bytes = gguf.GGML_QUANT_SIZES[kind]
        n = POOL_WEIGHTS // self.block
        self.blocks: np.ndarray  # (n, block_bytes) uint8, or (n) floats
        self.scales: dict[int, np.ndarray] = {}  # byte offset of a float16 in the block: (n)
        if kind in (Type.F32, Type.F16, Type.BF16):
            self.blocks = rng.standard_normal(n, dtype=np.float32)
            return
        self.blocks = rng.integers(0, 256, (n, self.block_bytes), dtype=np.uint8)
        # A random sign keeps the mean of the weights at zero where the integers' mean is not.
        scale = rng.uniform(0.75, 1.25, n) * rng.choice([-1.0, 1.0], n)
        if kind == Type.Q8_0:  # -128 does not occur in files that were quantised from floats
            quants = self.blocks[:, 2:].view(np.int8)
            np.maximum(quants, -127, out=quants)
        if kind in (Type.Q4_0, Type.Q8_0):
            self.scales = {0: scale}
        elif kind == Type.Q6_K:
            self.scales = {208: scale}
        else:  # d * scale * q - dmin * min, both factors 6 bits: centred if dmin = mean(q) * d
            self.scales = {0: scale, 2: scale * (7.5 if kind == Type.Q4_K else 15.5)}

    def scaled(self, deviation: float) -> np.ndarray:
        """(n, block_bytes) uint8: the pool as weights of that standard deviation."""
        if self.kind == Type.F32:
            return (self.blocks * np.float32(deviation)).view(np.uint8).reshape(-1, 4)
        if self.kind == Type.F16:
            values = (self.blocks * np.float32(deviation)).astype(np.float16)
            return values.view(np.uint8).reshape(-1, 2)
        if self.kind == Type.BF16:
            bits = (self.blocks * np.float32(deviation)).view(np.uint32)
            return (bits >> 16).astype(np.uint16).view(np.uint8).reshape(-1, 2)
        self._store_scales(1 / 1024)
        sample = gguf.dequantize(self.blocks[:4096], self.kind)
        self._store_scales(deviation / float(sample.std()) / 1024)
        return self.blocks

    def _store_scales(self, factor: float) -> None:
        for offset, values in self.scales.items():
            half = (values * factor).astype(np.float16)
            self.blocks[:, offset : offset + 2] = half.view(np.uint8).reshape(-1, 2)


def write_matrix(file: BinaryIO, pool: np.ndarray, n_blocks: int, rng: np.random.Generator) -> None:
    """n_blocks blocks from random places of the pool (n, block_bytes)."""
    while n_blocks:
        start = int(rng.integers(0, len(pool) // 2))
        part = pool[start : start + min(n_blocks, len(pool) - start)]
        file.write(part.data)
        n_blocks -= len(part)


def vocabulary(size: int) -> tuple[list[str], list[int]]:
    """Texts and types of size tokens: bytes, merges, control tokens, then unused ones."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in visible]
    letters = {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    texts = [letters[b] for b in range(256)] + [m.replace(" ", "") for m in MERGES]
    kinds = [gguf.TokenType.NORMAL] * len(texts)
    texts += SPECIAL
    kinds += [gguf.TokenType.CONTROL] * len(SPECIAL)
    if size < len(texts):
        raise ValueError(f"a vocabulary of {size} is too small, at least {len(texts)} are needed")
    n_unused = size - len(texts)
    texts += [f"<unused{i}>" for i in range(n_unused)]
    kinds += [gguf.TokenType.UNUSED] * n_unused
    return texts, [int(kind) for kind in kinds]


def write_header(path: Path, shape: Shape, kind: Type) -> None:
    """Metadata and the table of tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(f"random llama {kind.name}")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.embd)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ff)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.width)
    writer.add_value_length(shape.width)
    writer.add_rope_dimension_count(shape.width)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab)
    texts, kinds = vocabulary(shape.vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(texts.index(SPECIAL[0]))
    writer.add_eos_token_id(texts.index(SPECIAL[2]))
    writer.add_add_bos_token(False)
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    for name, rows, cols, _ in tensors(shape):
        if rows == 0:
            writer.add_tensor_info(name, (cols,), np.dtype(np.float32), cols * 4)
        else:
            if cols % block:
                raise ValueError(f"{name}: {cols} inputs are not a multiple of {block}")
            n_bytes = rows * cols // block * block_bytes
            bytes_shape = (rows, cols // block * block_bytes)  # gguf-py derives ne from bytes
            writer.add_tensor_info(name, bytes_shape, np.dtype(np.uint8), n_bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def write_synthetic(path: Path, shape: Shape, type_name: str, seed: int = 1) -> int:
    """Writes the file and returns its number of weights; the same arguments, the same bytes.

    Raises ValueError for a shape that the type cannot hold.
    """
    kind, rng = Type[type_name], np.random.default_rng(seed)
    part = path.with_name(path.name + ".part")
    write_header(part, shape, kind)
    pool, deviation, blocks = Pool(kind, rng), None, np.empty(0, np.uint8)
    n_weights = 0
    with part.open("ab") as file:
        for name, rows, cols, wanted in tensors(shape):
            file.write(bytes(-file.tell() % ALIGNMENT))
            n_weights += max(rows, 1) * cols
            if rows == 0:
                file.write(np.ones(cols, dtype=np.float32).data)
                continue
            if wanted != deviation:
                blocks, deviation = pool.scaled(wanted), wanted
            if sys.stderr.isatty():
                print(f"\r{name:40s} {file.tell() / 1e9:6.2f} GB", end="", file=sys.stderr)
            write_matrix(file, blocks, rows * cols // pool.block, rng)
        file.write(bytes(-file.tell() % ALIGNMENT))
    part.replace(path)
    return n_weights


def main() -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny", help="start from these")
    parser.add_argument("--type", choices=TYPES, default="Q4_0", help="of every matrix")
    for field in ("layers", "embd", "ff", "heads", "kv_heads", "head_dim", "vocab", "context"):
        parser.add_argument(f"--{field.replace('_', '-')}", type=int)
    parser.add_argument("--tied", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--seed", type=int, default=1)
    args = vars(parser.parse_args())
    path, size, type_name, seed = (args.pop(key) for key in ("path", "size", "type", "seed"))
    given = {key: value for key, value in args.items() if value is not None}
    start = time.perf_counter()
    shape = replace(SIZES[size], **given)
    try:
        n_weights = write_synthetic(path, shape, type_name, seed)
    except ValueError as error:
        sys.exit(f"{path}: {error}")
    seconds, n_bytes = time.perf_counter() - start, path.stat().st_size
    text = f"{path}: {n_weights / 1e9:.3f}e9 weights, {n_bytes / 1e9:.2f} GB, {seconds:.0f} s"
    print(f"\r{text:70s}" if sys.stderr.isatty() else text, file=sys.stderr)


if __name__ == "__main__":
    main()
