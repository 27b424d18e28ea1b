"""GGUF files for editing: a header that can be changed, and tensor data that is copied as it is.

Metadata that is not touched keeps its bytes. A file is written under a temporary name in the
target's folder, flushed to disk and renamed, so a target is either whole or as it was before.
Files are validated by the native reader before they come here.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, BinaryIO

import gguf
import numpy as np
from numpy.typing import NDArray

from .._replace import replacing
from ..errors import ArgumentError, FileError, FormatError

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _FLOAT32 = 8, 9, 6
_CHUNK = 8 << 20

Value = str | int | bool | float | NDArray[np.float32]


@dataclass
class Tensor:
    """shape is (rows, cols) = (outputs, inputs), without leading ones; kind is ggml's number."""

    name: str
    shape: tuple[int, ...]
    kind: int
    n_bytes: int
    read: Callable[[], Iterable[bytes]]  # its bytes in pieces


@dataclass
class GgufFile:
    """Metadata as raw values (type and content) by key, in order, and the tensors."""

    values: dict[str, bytes]
    tensors: list[Tensor] = field(default_factory=list)

    def alignment(self) -> int:
        raw = self.values.get("general.alignment")
        return 32 if raw is None else int(struct.unpack("<I", raw[4:8])[0])

    def set(self, key: str, value: Value) -> None:
        """Adds a key, or replaces its value."""
        self.values[key] = encode(value)

    def drop(self, prefix: str) -> None:
        """Removes all keys that begin so."""
        self.values = {k: v for k, v in self.values.items() if not k.startswith(prefix)}


def encode(value: Value) -> bytes:
    """A metadata value with its type: strings, bools, ints (u32), floats and float32 arrays."""
    if isinstance(value, str):
        data = value.encode("utf-8")
        return struct.pack("<IQ", _STRING, len(data)) + data
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    data = np.ascontiguousarray(value, dtype="<f4")
    return struct.pack("<IIQ", _ARRAY, _FLOAT32, data.size) + data.tobytes()


def encode_strings(values: Sequence[str]) -> bytes:
    """An array of strings as a metadata value."""
    parts = [struct.pack("<IIQ", _ARRAY, _STRING, len(values))]
    for value in values:
        data = value.encode("utf-8")
        parts += [struct.pack("<Q", len(data)), data]
    return b"".join(parts)


class _Cursor:
    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file, self.name = file, name
        self.end = os.fstat(file.fileno()).st_size

    def take(self, n: int) -> bytes:
        if n > self.end - self.file.tell():
            raise FormatError(f"{self.name} ends inside its header")
        return self.file.read(n)

    def number(self, form: str) -> int:
        return int(struct.unpack("<" + form, self.take(struct.calcsize(form)))[0])

    def string(self) -> str:
        return self.take(self.number("Q")).decode("utf-8")

    def skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self.take(self.number("Q"))
        elif kind == _ARRAY:
            item, count = self.number("I"), self.number("Q")
            if item in _SIZES:
                self.take(_SIZES[item] * count)
            else:
                for _ in range(count):
                    self.skip_value(item)
        elif kind in _SIZES:
            self.take(_SIZES[kind])
        else:
            raise FormatError(f"{self.name} has a value of unknown type {kind}")


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file, for reading; FileError if the system fails while it is open."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error


def _pieces(path: Path, offset: int, n_bytes: int) -> Iterator[bytes]:
    with _opened(path) as file:
        file.seek(offset)
        while n_bytes > 0:
            piece = file.read(min(_CHUNK, n_bytes))
            if not piece:
                raise FormatError(f"{path} ends inside its tensors")
            n_bytes -= len(piece)
            yield piece


def tensor_bytes(shape: Sequence[int], kind: int) -> int:
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    return int(np.prod(shape, dtype=np.int64)) // block * size


def read(path: Path) -> GgufFile:
    """The header of a file; tensor data is read when it is asked for. path may be the first part of
    a split file: what comes is the whole."""
    result = read_part(path)
    count = _integer(result.values.get("split.count"))
    result.drop("split.")
    if count > 1:
        stem = path.name.removesuffix(f"-00001-of-{count:05}.gguf")
        for no in range(2, count + 1):
            part = read_part(path.with_name(f"{stem}-{no:05}-of-{count:05}.gguf"))
            result.tensors += part.tensors
    return result


def _integer(raw: bytes | None) -> int:
    """A metadata value that the native reader took for an integer; 0 if there is none."""
    return 0 if raw is None else int.from_bytes(raw[4:], "little")


def read_part(path: Path) -> GgufFile:
    """The header of one file, part of a split one or not."""
    with _opened(path) as file:
        at = _Cursor(file, str(path))
        if at.take(4) != b"GGUF" or at.number("I") not in (2, 3):
            raise FormatError(f"{path} is no GGUF file of version 2 or 3")
        n_tensors, n_values = at.number("Q"), at.number("Q")
        values: dict[str, bytes] = {}
        for _ in range(n_values):
            key, start = at.string(), file.tell()
            at.skip_value(at.number("I"))
            end = file.tell()
            file.seek(start)
            values[key] = at.take(end - start)
        if "wina.pack.version" in values:
            raise ArgumentError(f"{path} is a packed file; use the file that it was made from")
        result = GgufFile(values)
        entries = []
        for _ in range(n_tensors):
            name = at.string()
            ne = [at.number("Q") for _ in range(at.number("I"))]
            entries.append((name, tuple(reversed(ne)), at.number("I"), at.number("Q")))
        base = _padded(file.tell(), result.alignment())
    for name, shape, kind, offset in entries:
        n_bytes = tensor_bytes(shape, kind)

        def pieces(start: int = base + offset, n: int = n_bytes) -> Iterator[bytes]:
            return _pieces(path, start, n)

        result.tensors.append(Tensor(name, shape, kind, n_bytes, pieces))
    return result


def _padded(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment


def _header(content: GgufFile) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(content.tensors), len(content.values))]
    for key, value in content.values.items():
        name = key.encode("utf-8")
        parts += [struct.pack("<Q", len(name)), name, value]
    offset = 0
    for tensor in content.tensors:
        name = tensor.name.encode("utf-8")
        ne = tuple(reversed(tensor.shape))
        parts += [struct.pack("<Q", len(name)), name]
        parts.append(struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, tensor.kind, offset))
        offset = _padded(offset + tensor.n_bytes, content.alignment())
    header = b"".join(parts)
    return header + bytes(_padded(len(header), content.alignment()) - len(header))


def _write(file: IO[bytes], content: GgufFile, progress: Callable[[int], object]) -> None:
    file.write(_header(content))
    for tensor in content.tensors:
        written = 0
        for piece in tensor.read():
            file.write(piece)
            written += len(piece)
            progress(len(piece))
        if written != tensor.n_bytes:
            raise FormatError(f"tensor {tensor.name} gave {written} bytes, not {tensor.n_bytes}")
        file.write(bytes(_padded(written, content.alignment()) - written))


def write(
    path: Path, content: GgufFile, progress: Callable[[int], object] = lambda n: None
) -> None:
    """Writes a file, whole or not at all. progress gets the bytes of tensors as they are done."""
    with replacing(path) as file:
        _write(file, content, progress)
