"""Importance matrices: how much the inputs of each matrix matter to its quantisation.

What counts is the mean square of every input over a text. Files are llama.cpp's, of its two
formats: GGUF (sums of squares and counts as tensors), which is also written here, and the older
``.dat``.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._native import check, ffi, lib
from ..errors import FileError, FormatError
from ..info import Group
from ..model import Model
from . import gguffile
from .gguffile import GgufFile, Tensor

#: (n_matrices, n_cols) mean squares by the name of a tensor; several matrices: experts
Importance = dict[str, NDArray[np.float32]]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_LARGEST = 1 << 24  # entries, columns and bytes of a name in a .dat file
_ROLES: dict[Group, tuple[str, ...]] = {
    "qkv": ("attn_q", "attn_k", "attn_v", "attn_qkv"),
    "o": ("attn_output",),
    "gate_up": ("ffn_gate", "ffn_up"),
    "down": ("ffn_down",),
}


def validate(path: Path) -> None:
    """Raises unless the native reader accepts the file's header."""
    params, model = ffi.new("wina_model_params *"), ffi.new("wina_model **")
    lib.wina_model_params_init(params)
    params.meta_only = 1
    check(lib.wina_model_load(os.fsencode(path), params, model))
    lib.wina_model_free(model[0])


# ---- measuring -------------------------------------------------------------------------------


def measure(
    model: Model,
    windows: Sequence[list[int]],
    progress: Callable[[int], object] = lambda n: None,
) -> Importance:
    """Mean squares of the inputs of all matrices in blocks, dense, over windows of tokens."""
    sums: dict[tuple[int, Group], NDArray[np.float64]] = {}

    def add(layer: int, group: Group, x: NDArray[np.float32]) -> None:
        squares = np.einsum("ij,ij->j", x, x, dtype=np.float64)
        sums[layer, group] = sums.get((layer, group), 0.0) + squares

    for window in windows:
        with model.tap(add):
            model.logits(window, start=len(window) - 1, method="dense")
        progress(1)
    n_tokens = sum(map(len, windows))
    found: Importance = {}
    for (layer, group), total in sums.items():
        for role in _ROLES[group]:
            name = f"blk.{layer}.{role}.weight"
            if name in model.tensors:
                found[name] = (total / n_tokens).astype(np.float32)[None]
    return found


def save(path: Path, importance: Importance, text: str, n_windows: int, n_tokens: int) -> None:
    """Writes llama.cpp's GGUF format, whole or not at all. text: the name of what was measured on,
    in windows of n_tokens."""
    content = GgufFile({})
    content.set("general.type", "imatrix")
    content.values["imatrix.datasets"] = gguffile.encode_strings([text])
    content.set("imatrix.chunk_count", n_windows)
    content.set("imatrix.chunk_size", n_tokens)
    count = float(n_windows * n_tokens)
    for name, mean in importance.items():
        for suffix, values in (
            (_SUMS, mean * np.float32(count)),
            (_COUNTS, np.full((len(mean), 1), count, np.float32)),
        ):
            raw = values.astype("<f4").tobytes()

            def read(raw: bytes = raw) -> list[bytes]:
                return [raw]

            content.tensors.append(Tensor(name + suffix, values.shape, 0, len(raw), read))
    gguffile.write(path, content)


# ---- reading ---------------------------------------------------------------------------------


def load(path: Path) -> Importance:
    """Reads either format. FormatError names what is wrong."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error}") from error
    found = _load_gguf(path) if magic == b"GGUF" else _load_dat(path)
    if not found:
        raise FormatError(f"{path} holds no importance of any tensor")
    for name, mean in found.items():
        if not (np.isfinite(mean).all() and (mean >= 0).all()):
            raise FormatError(f"{path}: the importance of {name} is not all numbers >= 0")
    return found


def _floats(tensor: Tensor, path: Path) -> NDArray[np.float32]:
    if tensor.kind != 0:
        raise FormatError(f"{path}: tensor {tensor.name} is not F32")
    raw = b"".join(tensor.read())
    return np.frombuffer(raw, dtype="<f4").reshape(-1, tensor.shape[-1])


def _load_gguf(path: Path) -> Importance:
    validate(path)
    tensors = {tensor.name: tensor for tensor in gguffile.read(path).tensors}
    found: Importance = {}
    for name, tensor in tensors.items():
        if not name.endswith(_SUMS):
            continue
        own = name.removesuffix(_SUMS)
        if own + _COUNTS not in tensors:
            raise FormatError(f"{path}: tensor {own + _COUNTS} is missing")
        sums, counts = _floats(tensor, path), _floats(tensors[own + _COUNTS], path).reshape(-1, 1)
        if len(counts) != len(sums):
            raise FormatError(f"{path}: {own} has {len(sums)} sums and {len(counts)} counts")
        # An expert that the text never chose: nothing is known, all inputs count alike.
        found[own] = np.where(counts > 0, sums / np.maximum(counts, 1e-30), 1).astype(np.float32)
    return found


def _load_dat(path: Path) -> Importance:
    with path.open("rb") as file:

        def take(n: int) -> bytes:
            data = file.read(n)
            if len(data) != n:
                raise FormatError(f"{path} is no importance matrix, or ends early")
            return data

        def integer(least: int = 0) -> int:
            value: int = struct.unpack("<i", take(4))[0]
            if not least <= value <= _LARGEST:
                raise FormatError(f"{path} is no importance matrix: {value} is out of range")
            return value

        found: Importance = {}
        for _ in range(integer()):
            try:
                name = take(integer(1)).decode("utf-8")
            except UnicodeDecodeError as error:
                raise FormatError(f"{path} is no importance matrix: {error}") from error
            calls = integer()
            values: NDArray[Any] = np.frombuffer(take(4 * integer(1)), dtype="<f4")
            found[name] = (values / max(calls, 1)).astype(np.float32)[None]
    return found
