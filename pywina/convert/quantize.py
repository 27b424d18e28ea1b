"""The same model with its matrices in a smaller type.

mixture.py says which tensor gets which type. Types of 256 weights a block are written by the
library, and with an importance matrix those of 32, too; the others by gguf-py, whose bytes are
llama.cpp's. Weights that are quantised already are refused, because their errors would add up.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from .._native import check, ffi, lib
from ..errors import ArgumentError, FormatError, UnsupportedError
from . import gguffile
from .convert import Plan
from .gguffile import GgufFile, Tensor
from .imatrix import Importance, validate
from .mixture import MIXTURES, Mixture

Array = NDArray[np.float32]

_SOURCES = {Type.F32: "<f4", Type.F16: "<f2", Type.BF16: "<u2"}
_CHUNK = 1 << 20  # weights that are in memory as floats at a time
_LARGEST = 65504.0  # of float16, which scales are stored in
_SEARCHED = (Type.Q4_K, Type.Q5_K, Type.Q6_K)
_WEIGHTED = (*_SEARCHED, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1)
#: least importance of an input, of the mean: one that a text never moved is not worth nothing
_FLOOR = 1e-6


def _floats(raw: bytes, kind: Type) -> Array:
    values = np.frombuffer(raw, dtype=_SOURCES[kind])
    if kind == Type.BF16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def _rows(tensor: Tensor) -> Iterator[Array]:
    """The tensor's rows as floats, a megaweight at a time, the matrices of a stack apart."""
    kind, cols = Type(tensor.kind), tensor.shape[-1]
    n_rows = tensor.shape[-2] if len(tensor.shape) > 1 else 1
    row_bytes = cols * np.dtype(_SOURCES[kind]).itemsize
    step, left = max(1, _CHUNK // cols), n_rows
    waiting = bytearray()
    for piece in tensor.read():
        waiting += piece
        while len(waiting) >= (size := min(step, left) * row_bytes):
            yield _floats(bytes(waiting[:size]), kind).reshape(-1, cols)
            del waiting[:size]
            left = left - min(step, left) or n_rows


def quantize_rows(values: Array, kind: Type, importance: Array | None, n_threads: int = 0) -> bytes:
    """The blocks of (n_rows, n_cols) floats. importance: (n_cols) or None."""
    if kind not in (_SEARCHED if importance is None else _WEIGHTED):
        return bytes(gguf.quants.quantize(values, kind).tobytes())
    values = np.ascontiguousarray(values, dtype=np.float32)
    out = bytearray(gguffile.tensor_bytes(values.shape, kind))
    weights = ffi.NULL
    if importance is not None:
        weights = ffi.from_buffer("float[]", np.ascontiguousarray(importance, dtype=np.float32))
    check(lib.wina_quantize_rows(
        int(kind), ffi.from_buffer("float[]", values), *values.shape, weights, n_threads,
        ffi.from_buffer(out),
    ))  # fmt: skip
    return bytes(out)


def _encode(
    tensor: Tensor, kind: Type, importance: Array | None, n_threads: int
) -> Iterator[bytes]:
    n_rows, row = tensor.shape[-2] if len(tensor.shape) > 1 else 1, 0
    for values in _rows(tensor):
        top = float(np.abs(values).max())
        if not np.isfinite(top):
            raise FormatError(f"tensor {tensor.name} holds weights that are no finite numbers")
        if top > _LARGEST and kind not in (Type.F32, Type.BF16):
            raise FormatError(
                f"tensor {tensor.name} holds a weight of {top:.3g}, too large for {kind.name}"
            )
        own = None if importance is None else importance[row // n_rows % len(importance)]
        yield quantize_rows(values, kind, own, n_threads)
        row += len(values)


def _importance_of(tensor: Tensor, importance: Importance) -> Array | None:
    """(n_matrices, n_cols) of a tensor, or None."""
    found = importance.get(tensor.name)
    if found is None:
        return None
    stack = int(np.prod(tensor.shape[:-2], dtype=np.int64))
    if found.shape[1] != tensor.shape[-1] and found.shape == (1, stack * tensor.shape[-1]):
        found = found.reshape(stack, -1)  # as the older files hold experts
    if found.shape[1] != tensor.shape[-1] or len(found) not in (1, stack):
        raise FormatError(
            f"the importance of {tensor.name} has shape {found.shape}, the tensor {tensor.shape}"
        )
    mean = found.mean(axis=1, keepdims=True)
    if not (mean > 0).all():
        return None
    return np.maximum(found / mean, np.float32(_FLOOR))


def plan_quantized(
    source: Path, kind: str, importance: Importance | None = None, n_threads: int = 0
) -> Plan:
    """The file at source with its matrices in another type; see quantize."""
    validate(source)
    return quantize(gguffile.read(source), kind, importance, n_threads)


def quantize(
    content: GgufFile, kind: str, importance: Importance | None = None, n_threads: int = 0
) -> Plan:
    """Plans a file with the matrices of content, all F32, F16 or BF16, in mixture kind (a key of
    MIXTURES). importance: how much each input matters, by tensor. Metadata stays, with the names of
    the file's types corrected."""
    mixture = Mixture(kind, content, importance is not None)
    result = GgufFile(dict(content.values))
    result.set("general.file_type", MIXTURES[kind])
    result.set("general.quantization_version", gguf.GGML_QUANT_VERSION)
    counts: dict[str, int] = {}
    n_known = 0
    for tensor in content.tensors:
        if tensor.kind not in _SOURCES:
            raise UnsupportedError(
                f"tensor {tensor.name} is {Type(tensor.kind).name} already; "
                "quantise from a file of F32, F16 or BF16"
            )
        own = mixture.type_of(tensor)
        n_bytes = gguffile.tensor_bytes(tensor.shape, own)
        known = _importance_of(tensor, importance) if importance and own in _WEIGHTED else None
        n_known += known is not None
        read: Any = tensor.read
        if own != tensor.kind:
            read = partial(_encode, tensor, own, known, n_threads)
        result.tensors.append(Tensor(tensor.name, tensor.shape, int(own), n_bytes, read))
        counts[own.name] = counts.get(own.name, 0) + 1
    before = sum(tensor.n_bytes for tensor in content.tensors)
    after = sum(tensor.n_bytes for tensor in result.tensors)
    lines = ["weights: " + ", ".join(f"{n} x {name}" for name, n in counts.items())]
    if importance is not None:
        if not n_known and kind.startswith("Q") and kind != "Q8_0":
            raise ArgumentError("the importance matrix is of other tensors than the model's")
        lines.append(f"importance: of {n_known} tensors")
    lines.append(f"tensors: {after / 1e6:.1f} MB, before {before / 1e6:.1f} MB")
    return Plan(lines, result)
