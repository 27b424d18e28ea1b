"""From one GGUF file to another: norms and budgets as metadata, and transformed weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gguf
import numpy as np

from ..errors import ArgumentError, FileError
from ..hub.catalog import CATALOG
from ..info import _GROUPS, Group
from ..model import Model
from ..tuning import Tuning
from . import gguffile
from .gguffile import GgufFile, Tensor
from .transform import Rotation

#: tensor types that weights can be written in, and llama.cpp's number for files of them
TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "BF16": 32}


@dataclass(frozen=True)
class Plan:
    """What a conversion will write; lines of text for people, and the file."""

    lines: list[str]
    content: GgufFile

    @property
    def n_bytes(self) -> int:
        return sum(tensor.n_bytes for tensor in self.content.tensors)


def l2_norms(model: Model) -> Tuning:
    """The norms that the library computes at load, by group and by projection, with the exponent
    that it gives them."""
    norms = {}
    groups: dict[Group, tuple[str, ...]] = {g: names for g, (_, names) in _GROUPS.items()}
    for group, projections in groups.items():
        layers = range(model.info.n_layer)
        norms[group] = np.stack([model.norms(layer, group) for layer in layers])
        for name in projections if len(projections) > 1 else ():
            norms[name] = np.stack([model.norms(layer, group, name) for layer in layers])
    return Tuning(norms=norms, exponents=np.zeros(4, dtype=np.float32))


def check_paths(source: Path, target: Path) -> None:
    """The target's folder is there, and the target is not the source under any name."""
    if str(target) in CATALOG:
        raise ArgumentError(
            f"{target} is the name of a known model: give the file one of its own, such as "
            f"{target}-converted.gguf"
        )
    if not target.parent.is_dir():
        raise FileError(f"{target.parent} is not a folder")
    if target.is_dir():
        raise FileError(f"{target} is a folder")
    if target.exists() and target.samefile(source):
        raise ArgumentError(f"{target} is the input itself; give another name")


def plan_copy(source: Path) -> Plan:
    """The same weights and metadata, in one file."""
    content = gguffile.read(source)
    return Plan([f"weights: copied as they are, {len(content.tensors)} tensors"], content)


def plan_tuned(model: Model, tuning: Tuning | None) -> Plan:
    """The same weights with a tuning as metadata, or with l2 norms if there is none."""
    content = gguffile.read(Path(model.path))
    _store(content, tuning or l2_norms(model))
    lines = [f"weights: copied as they are, {len(content.tensors)} tensors"]
    return Plan(lines + _describe(content), content)


def plan_rotated(
    model: Model, rotation: Rotation, transform: str, kind: str, tuning: Tuning | None
) -> Plan:
    """All matrices rotated and written in one type (vectors stay F32)."""
    if kind not in TYPES:
        raise ArgumentError(f"type {kind!r} cannot be written; choose one of {', '.join(TYPES)}")
    content = gguffile.read(Path(model.path))
    content.drop("wina.")
    content.set("general.file_type", TYPES[kind])
    content.set("wina.transform", transform)
    content.tensors = []
    for name, shape in rotation.shapes().items():
        own = type_for(shape, kind)
        size = gguffile.tensor_bytes(shape, own)
        read = partial(_encode, rotation, name, own)
        content.tensors.append(Tensor(name, shape, own, size, read))
    if tuning is not None:
        _store(content, tuning)
    lines = [
        f"weights: rotated ({transform}), matrices as {kind}, {len(content.tensors)} tensors",
        f"changes of basis at run time: {len(rotation.changes())}"
        + (" (llama.cpp cannot load such a file)" if rotation.changes() else ""),
    ]
    return Plan(lines + _describe(content), content)


def type_for(shape: tuple[int, ...], kind: str) -> int:
    """ggml's number of the type that a tensor is written in: vectors in F32, and rows that are no
    whole number of blocks in F16."""
    number = gguf.GGMLQuantizationType[kind]
    if len(shape) < 2:
        return int(gguf.GGMLQuantizationType.F32)
    block, _ = gguf.GGML_QUANT_SIZES[number]
    return int(number if shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16)


def _encode(rotation: Rotation, name: str, kind: int) -> Iterator[bytes]:
    values = rotation.tensor(name)
    yield gguf.quants.quantize(values, gguf.GGMLQuantizationType(kind)).tobytes()


def _store(content: GgufFile, tuning: Tuning) -> None:
    for key in [key for key in content.values if key.startswith("wina.")]:
        if key != "wina.transform":
            del content.values[key]
    for key, values in tuning.metadata():
        content.set(key, values)


def _describe(content: GgufFile) -> list[str]:
    keys = {key: len(raw) for key, raw in content.values.items() if key.startswith("wina.")}
    lines = [f"metadata: {key}, {size} bytes" for key, size in keys.items()]
    return [*lines, f"tensors: {sum(t.n_bytes for t in content.tensors) / 1e6:.1f} MB"]


def run(plan: Plan, target: Path, progress: Callable[[int], object] = lambda n: None) -> None:
    """Writes the planned file, whole or not at all."""
    gguffile.write(target, plan.content, progress)
