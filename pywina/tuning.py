"""What calibration finds: budgets, norms and thresholds, as arrays and as metadata of GGUF files.

docs/method.md says what each of them means, native/src/tuning.h how files hold them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ._native import ffi
from ._replace import replacing
from .errors import ArgumentError, FileError
from .info import Group

if TYPE_CHECKING:
    from .model import Model

Array = NDArray[np.float32]

GROUPS = ("qkv", "o", "gate_up", "down")
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
_GROUP_OF = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}
_TABLES = ("targets", "kept", "kept_projections", "thresholds")


def _packed(norms: Array) -> dict[str, Any]:
    data = np.ascontiguousarray(norms, dtype="<f4")
    return {"shape": list(data.shape), "float32": base64.b64encode(data.tobytes()).decode()}


def _unpacked(content: dict[str, Any]) -> Array:
    data = np.frombuffer(base64.b64decode(content["float32"], validate=True), dtype="<f4")
    return data.reshape(content["shape"]).astype(np.float32)


def write_text(path: Path, text: str) -> None:
    """Replaces a file, whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


@dataclass
class Tuning:
    """All of it is optional.

    targets: (n_targets,) sparsities in (0, 1), rising; rows of the following tables.
    kept: (n_targets, n_layer, 4) kept fractions in (0, 1] of qkv, o, gate_up, down. Only their
        proportions matter: they are moved to the bytes that a sparsity asks for.
    kept_projections: (n_targets, n_layer, 7), the same for q, k, v, o, gate, up, down.
    thresholds: (n_targets, n_layer, 4) least scores that are kept.
    norms: (n_layer, n_inputs) by name of group (all four) and of projection.
    exponents: (4,) powers of these norms by group.
    """

    targets: Array | None = None
    kept: Array | None = None
    kept_projections: Array | None = None
    thresholds: Array | None = None
    norms: dict[str, Array] = field(default_factory=dict)
    exponents: Array = field(default_factory=lambda: np.ones(4, dtype=np.float32))

    def metadata(self) -> Iterator[tuple[str, Array]]:
        """Keys and values for a GGUF file; every value is one flat float32 array."""
        for name in _TABLES:
            table = getattr(self, name)
            if table is not None:
                yield f"wina.{name}", np.ascontiguousarray(table, dtype=np.float32).ravel()
        for name, norms in self.norms.items():
            yield f"wina.norms.{name}", np.ascontiguousarray(norms, dtype=np.float32).ravel()
        if self.norms:
            yield "wina.exponents", np.asarray(self.exponents, dtype=np.float32)

    def save(self, path: Path, notes: dict[str, Any] | None = None) -> None:
        """Writes a JSON file that :meth:`load` reads; notes go into it as they are."""
        content: dict[str, Any] = {"version": 1, "notes": notes or {}}
        for name in _TABLES:
            table = getattr(self, name)
            if table is not None:
                content[name] = np.asarray(table, dtype=np.float64).round(6).tolist()
        content["norms"] = {name: _packed(norms) for name, norms in self.norms.items()}
        content["exponents"] = [float(e) for e in self.exponents]
        write_text(path, json.dumps(content, indent=1))

    @classmethod
    def load(cls, path: Path) -> Tuning:
        """Reads what :meth:`save` wrote."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            tables = {
                name: np.array(content[name], np.float32) for name in _TABLES if name in content
            }
            norms = {name: _unpacked(norms) for name, norms in content["norms"].items()}
            return cls(**tables, norms=norms, exponents=np.array(content["exponents"], np.float32))
        except OSError as error:
            raise FileError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArgumentError(f"{path} holds no tuning: {error!r}") from error

    def _array(self, name: str, value: Any, shape: tuple[int, ...], alive: list[Any]) -> Any:
        """A pointer to a float32 copy of value, which must have this shape."""
        data = np.array(value, dtype=np.float32, order="C")
        if data.shape != shape:
            raise ArgumentError(f"{name} has shape {data.shape}, must have {shape}")
        alive.append(ffi.from_buffer("float[]", data))
        return alive[-1]

    def _struct(self, model: Model) -> tuple[Any, list[Any]]:
        """A wina_tuning, and what must stay alive while it is used."""
        native = ffi.new("wina_tuning *")
        alive: list[Any] = []
        rows = 0 if self.targets is None else len(self.targets)
        n_layer = model.info.n_layer
        shapes = {"targets": (rows,), "kept": (rows, n_layer, 4), "thresholds": (rows, n_layer, 4)}
        shapes["kept_projections"] = (rows, n_layer, 7)
        native.n_targets = rows
        for name, shape in shapes.items():
            if getattr(self, name) is not None:
                setattr(native, name, self._array(name, getattr(self, name), shape, alive))
        for name, norms in self.norms.items():
            if name not in GROUPS and name not in PROJECTIONS:
                raise ArgumentError(f"norms of {name!r}: there is no such group or projection")
            shape = (n_layer, model.width(cast(Group, _GROUP_OF.get(name, name))))
            pointer = self._array(f"norms of {name}", norms, shape, alive)
            if name in GROUPS:
                native.norms[GROUPS.index(name)] = pointer
            else:
                native.projection_norms[PROJECTIONS.index(name)] = pointer
        for i, exponent in enumerate(np.asarray(self.exponents, dtype=np.float32)):
            native.exponents[i] = float(exponent)
        return native, alive
