"""Scalar decoding of every tensor type equals gguf-py's dequantiser, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from pywina._native import check, ffi, lib

#: type, and where its blocks hold half floats (byte offsets)
TYPES: dict[Type, tuple[int, ...]] = {
    Type.F32: (),
    Type.F16: (0,),
    Type.BF16: (),
    Type.Q4_0: (0,),
    Type.Q4_1: (0, 2),
    Type.Q5_0: (0,),
    Type.Q5_1: (0, 2),
    Type.Q8_0: (0,),
    Type.Q4_K: (0, 2),
    Type.Q5_K: (0, 2),
    Type.Q6_K: (208,),
    Type.Q2_K: (80, 82),
    Type.Q3_K: (108,),
    Type.IQ4_NL: (0,),
    Type.IQ4_XS: (0,),
    Type.MXFP4: (),
    Type.TQ1_0: (52,),
    Type.TQ2_0: (64,),
}
N_BLOCKS = 4096


@contextmanager
def opened(path: Path) -> Iterator[object]:
    """The model handle of a file, loaded with meta_only."""
    params = ffi.new("wina_model_params *")
    lib.wina_model_params_init(params)
    params.meta_only = 1
    out = ffi.new("wina_model **")
    check(lib.wina_model_load(str(path).encode(), params, out))
    try:
        yield out[0]
    finally:
        lib.wina_model_free(out[0])


def read_rows(model: object, name: str, row0: int, n_rows: int, n_cols: int) -> np.ndarray:
    """Rows [row0, row0 + n_rows) as bit patterns, shape (n_rows, n_cols)."""
    out = np.full((n_rows, n_cols), np.nan, dtype=np.float32)
    buffer = ffi.cast("float *", out.ctypes.data)
    check(lib.wina_model_read_rows(model, name.encode(), row0, n_rows, buffer))
    return out.view(np.uint32)


def random_blocks(kind: Type, halves: np.ndarray, seed: int) -> np.ndarray:
    """Random bytes, shape (n_halves, block bytes), with halves[i] as the first scale of block i and
    the others drawn from halves."""
    rng = np.random.default_rng(seed)
    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (len(halves), block_bytes), dtype=np.uint8)
    for i, at in enumerate(TYPES[kind]):
        scales = halves if i == 0 else rng.permutation(halves)
        blocks[:, at : at + 2] = scales.astype(np.uint16).view(np.uint8).reshape(-1, 2)
    if kind in (Type.F32, Type.BF16):  # random bytes hold NaNs, whose payload numpy need not keep
        top = blocks[:, -2:].view(np.uint16)
        top[(top & 0x7F80) == 0x7F80] &= 0xBFFF
    return blocks


def finite_halves(seed: int) -> np.ndarray:
    """N_BLOCKS bit patterns of finite half floats; a quarter of them subnormal or zero."""
    halves = np.random.default_rng(seed).integers(0, 1 << 16, N_BLOCKS, dtype=np.uint16)
    halves[(halves & 0x7C00) == 0x7C00] &= 0xBFFF
    halves[: N_BLOCKS // 4] &= 0x83FF
    halves[:4] = 0x0000, 0x8000, 0x0001, 0x83FF
    return halves


def write_blocks(path: Path, tensors: dict[Type, np.ndarray], n_rows: int) -> None:
    """One tensor per type, named as the type, of shape (n_rows, all weights / n_rows)."""
    writer = gguf.GGUFWriter(path, "llama")
    for kind, blocks in tensors.items():
        rows = np.ascontiguousarray(blocks).reshape(n_rows, -1)
        writer.add_tensor(kind.name, rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def expected_bits(blocks: np.ndarray, kind: Type) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return gguf.quants.dequantize(blocks, kind).astype(np.float32, copy=False).view(np.uint32)


@pytest.fixture(scope="module")
def random_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Type, np.ndarray]]:
    tensors = {kind: random_blocks(kind, finite_halves(i), 100 + i) for i, kind in enumerate(TYPES)}
    path = tmp_path_factory.mktemp("dequant") / "random.gguf"
    write_blocks(path, tensors, n_rows=16)
    return path, tensors


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_random_blocks(random_file: tuple[Path, dict[Type, np.ndarray]], kind: Type) -> None:
    path, tensors = random_file
    want = expected_bits(tensors[kind], kind).reshape(16, -1)
    with opened(path) as model:
        got = read_rows(model, kind.name, 0, 16, want.shape[1])
        np.testing.assert_array_equal(got, want)
        some = read_rows(model, kind.name, 5, 3, want.shape[1])
        np.testing.assert_array_equal(some, want[5:8])
    assert len(np.unique(want)) > 250  # the comparison was about something


@pytest.mark.parametrize("kind", [k for k in TYPES if TYPES[k]], ids=lambda kind: kind.name)
def test_every_half_as_scale(tmp_path: Path, kind: Type) -> None:
    """All 65536 bit patterns. Infinities and NaNs must come out as such where gguf-py says so."""
    halves = np.arange(1 << 16, dtype=np.uint16)
    blocks = random_blocks(kind, halves, 7)
    write_blocks(tmp_path / "halves.gguf", {kind: blocks}, n_rows=256)
    want = expected_bits(blocks, kind).reshape(256, -1)
    with opened(tmp_path / "halves.gguf") as model:
        got = read_rows(model, kind.name, 0, 256, want.shape[1])
    is_nan = np.isnan(want.view(np.float32))
    np.testing.assert_array_equal(np.isnan(got.view(np.float32)), is_nan)
    np.testing.assert_array_equal(got[~is_nan], want[~is_nan])


def test_quantised_values(tmp_path: Path) -> None:
    """What gguf-py quantises from ordinary weights, as converters do."""
    weights = np.random.default_rng(3).normal(0, 0.05, (64, 512)).astype(np.float32)
    kinds = [Type.F32, Type.F16, Type.BF16]
    kinds += [Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0]
    tensors = {kind: gguf.quants.quantize(weights, kind) for kind in kinds}
    write_blocks(
        tmp_path / "weights.gguf", {k: t.view(np.uint8) for k, t in tensors.items()}, n_rows=64
    )
    with opened(tmp_path / "weights.gguf") as model:
        for kind, tensor in tensors.items():
            got = read_rows(model, kind.name, 0, 64, 512)
            np.testing.assert_array_equal(got, expected_bits(tensor, kind), err_msg=kind.name)
            assert np.abs(got.view(np.float32) - weights).max() < 0.02, kind.name


def compare_file(path: Path, max_rows: int) -> set[str]:
    """Compares the first, middle and last rows of every tensor; returns the types seen."""
    seen = set()
    with opened(path) as model:
        for tensor in gguf.GGUFReader(path).tensors:
            n_cols = int(tensor.shape[0])
            rows = tensor.data.reshape(-1, tensor.data.shape[-1])
            n_rows = min(max_rows, len(rows))
            for row0 in {0, (len(rows) - n_rows) // 2, len(rows) - n_rows}:
                want = expected_bits(rows[row0 : row0 + n_rows], tensor.tensor_type)
                got = read_rows(model, tensor.name, row0, n_rows, n_cols)
                np.testing.assert_array_equal(got, want.reshape(n_rows, n_cols), tensor.name)
            seen.add(tensor.tensor_type.name)
    return seen


def test_smollm2(smollm2_path: Path) -> None:
    assert {"F32", "Q4_1"} <= compare_file(smollm2_path, max_rows=64)


def test_qwen(qwen_path: Path) -> None:
    assert {"F32", "Q4_K", "Q6_K"} <= compare_file(qwen_path, max_rows=64)
