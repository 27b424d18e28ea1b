"""Tensors of a Hugging Face checkpoint: one safetensors file, or several with an index.

A file is a little-endian u64 length, that many bytes of JSON (name -> dtype, shape, data_offsets),
and data. Everything in the header is checked against the file's size before it is used.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import FileError, FormatError, UnsupportedError

_MAX_HEADER = 100 << 20
_DTYPES = {"F32": ("<f4", 4), "F16": ("<f2", 2), "BF16": ("<u2", 2)}


@dataclass(frozen=True)
class Entry:
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int  # from the start of the file
    n_bytes: int


def _header(path: Path) -> Iterator[tuple[str, Entry]]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, _MAX_HEADER):
                raise FormatError(f"{path}: a header of {length} bytes in a file of {size}")
            content = json.loads(file.read(length))
    except OSError as error:
        raise FileError(f"cannot read {path}: {error}") from error
    except (ValueError, struct.error) as error:
        raise FormatError(f"{path} is no safetensors file: {error}") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path}: its header is no table")
    for name, value in content.items():
        if name == "__metadata__":
            continue
        try:
            begin, end = map(int, value["data_offsets"])
            shape = tuple(int(n) for n in value["shape"])
            dtype = str(value["dtype"])
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{path}: tensor {name!r} is not described: {error!r}") from error
        if dtype not in _DTYPES:
            raise UnsupportedError(f"{path}: tensor {name!r} has type {dtype}")
        wanted = int(np.prod(shape, dtype=object)) * _DTYPES[dtype][1] if shape else 0
        if min(shape, default=0) < 1 or begin < 0 or end - begin != wanted:
            raise FormatError(f"{path}: tensor {name!r} of shape {shape} has {end - begin} bytes")
        if end > size - 8 - length:
            raise FormatError(f"{path}: tensor {name!r} lies outside the file")
        yield name, Entry(path, dtype, shape, 8 + length + begin, end - begin)


class Checkpoint:
    """All tensors of a folder by name."""

    def __init__(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            try:
                names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
                files = sorted({str(name) for name in names})
            except (OSError, ValueError, KeyError, AttributeError) as error:
                raise FormatError(f"{index} is not understood: {error!r}") from error
            for name in files:
                if Path(name).name != name:
                    raise FormatError(f"{index}: {name!r} is no file of this folder")
        else:
            files = ["model.safetensors"]
        self.entries: dict[str, Entry] = {}
        for name in files:
            self.entries.update(_header(folder / name))

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor as float32."""
        entry = self.entries[name]
        kind, _ = _DTYPES[entry.dtype]
        count = entry.n_bytes // np.dtype(kind).itemsize
        try:
            raw = np.fromfile(entry.path, dtype=kind, count=count, offset=entry.offset)
        except OSError as error:
            raise FileError(f"cannot read {entry.path}: {error}") from error
        if raw.size != count:
            raise FormatError(f"{entry.path} ends inside tensor {name}")
        if entry.dtype == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float32, copy=False).reshape(entry.shape)
