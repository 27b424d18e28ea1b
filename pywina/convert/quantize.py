"""The same model with its matrices in a smaller type, by gguf-py's quantisers.

The mixture is llama.cpp's for these types: vectors and routers of experts stay F32, the output
matrix (the embeddings, if they are tied) is written better than the rest, every other matrix in
the type asked for. llama.cpp gives the output Q6_K, which gguf-py cannot write: here it is Q8_0.
Weights that are quantised already are refused, because their errors would add up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from .._native import check, ffi, lib
from ..errors import FormatError, UnsupportedError
from . import gguffile
from .convert import TYPES, Plan, type_for
from .gguffile import GgufFile, Tensor

_SOURCES = {Type.F32: "<f4", Type.F16: "<f2", Type.BF16: "<u2"}
_CHUNK = 1 << 20  # weights that are in memory as floats at a time
_LARGEST = 65504.0  # of float16, which scales are stored in


def _floats(raw: bytes, kind: Type) -> NDArray[np.float32]:
    values = np.frombuffer(raw, dtype=_SOURCES[kind])
    if kind == Type.BF16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def _rows(tensor: Tensor) -> Iterator[NDArray[np.float32]]:
    """The tensor's rows as floats, a megaweight at a time."""
    kind = Type(tensor.kind)
    cols = tensor.shape[-1]
    step = max(1, _CHUNK // cols) * cols * np.dtype(_SOURCES[kind]).itemsize
    waiting = bytearray()
    for piece in tensor.read():
        waiting += piece
        while len(waiting) >= step:
            yield _floats(bytes(waiting[:step]), kind).reshape(-1, cols)
            del waiting[:step]
    if waiting:
        yield _floats(bytes(waiting), kind).reshape(-1, cols)


def _encode(tensor: Tensor, kind: Type) -> Iterator[bytes]:
    for values in _rows(tensor):
        top = float(np.abs(values).max())
        if not np.isfinite(top):
            raise FormatError(f"tensor {tensor.name} holds weights that are no finite numbers")
        if top > _LARGEST and kind not in (Type.F32, Type.BF16):
            raise FormatError(
                f"tensor {tensor.name} holds a weight of {top:.3g}, too large for {kind.name}"
            )
        yield gguf.quants.quantize(values, kind).tobytes()


def _type_of(tensor: Tensor, head: str, kind: str) -> Type:
    """The type that a tensor is written in."""
    if "ffn_gate_inp" in tensor.name or not tensor.name.endswith(".weight"):
        return Type.F32
    better = tensor.name == head and kind not in ("F32", "F16", "BF16")
    return Type(type_for(tensor.shape, "Q8_0" if better else kind))


def _validate(path: Path) -> None:
    """Raises unless the native reader accepts the file's header."""
    params, model = ffi.new("wina_model_params *"), ffi.new("wina_model **")
    lib.wina_model_params_init(params)
    params.meta_only = 1
    check(lib.wina_model_load(os.fsencode(path), params, model))
    lib.wina_model_free(model[0])


def plan_quantized(source: Path, kind: str) -> Plan:
    """The file at source with its matrices in another type; see quantize."""
    _validate(source)
    return quantize(gguffile.read(source), kind)


def quantize(content: GgufFile, kind: str) -> Plan:
    """Plans a file with the matrices of content, all F32, F16 or BF16, in type kind (a key of
    TYPES). Metadata stays, with the names of the file's types corrected."""
    names = {tensor.name for tensor in content.tensors}
    head = "output.weight" if "output.weight" in names else "token_embd.weight"
    result = GgufFile(dict(content.values))
    result.set("general.file_type", TYPES[kind])
    result.set("general.quantization_version", gguf.GGML_QUANT_VERSION)
    counts: dict[str, int] = {}
    for tensor in content.tensors:
        if tensor.kind not in _SOURCES:
            raise UnsupportedError(
                f"tensor {tensor.name} is {Type(tensor.kind).name} already; "
                "quantise from a file of F32, F16 or BF16"
            )
        own = _type_of(tensor, head, kind)
        n_bytes = gguffile.tensor_bytes(tensor.shape, own)
        read: Any = tensor.read if own == tensor.kind else partial(_encode, tensor, own)
        result.tensors.append(Tensor(tensor.name, tensor.shape, int(own), n_bytes, read))
        counts[own.name] = counts.get(own.name, 0) + 1
    before = sum(tensor.n_bytes for tensor in content.tensors)
    after = sum(tensor.n_bytes for tensor in result.tensors)
    lines = ["weights: " + ", ".join(f"{n} x {name}" for name, n in counts.items())]
    if "Q8_0" in counts and kind != "Q8_0":
        lines.append(f"{head}: Q8_0 (where llama.cpp writes Q6_K)")
    lines.append(f"tensors: {after / 1e6:.1f} MB, before {before / 1e6:.1f} MB")
    return Plan(lines, result)
