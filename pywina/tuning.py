"""What calibration finds: budgets, norms and thresholds, as arrays and as metadata of GGUF files.

docs/method.md says what each of them means, native/src/tuning.h how files hold them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._native import ffi
from .errors import ArgumentError

if TYPE_CHECKING:
    from .model import Model

Array = NDArray[np.float32]

GROUPS = ("qkv", "o", "gate_up", "down")
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
_GROUP_OF = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}
_TABLES = ("targets", "kept", "kept_projections", "thresholds")


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

    def _array(self, name: str, value: Any, shape: tuple[int, ...], alive: list[Any]) -> Any:
        """A pointer to a float32 copy of value, which must have this shape."""
        data = np.array(value, dtype=np.float32, order="C")
        if data.shape != shape:
            raise ArgumentError(f"{name} has shape {data.shape}, must have {shape}")
        alive.append(ffi.from_buffer("float[]", data))
        return alive[-1]

    def _struct(self, model: Model) -> tuple[Any, list[Any]]:
        """A wina_tuning, and what must stay alive while it is used."""
        native, alive = ffi.new("wina_tuning *"), []
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
            shape = (n_layer, model.width(_GROUP_OF.get(name, name)))
            pointer = self._array(f"norms of {name}", norms, shape, alive)
            if name in GROUPS:
                native.norms[GROUPS.index(name)] = pointer
            else:
                native.projection_norms[PROJECTIONS.index(name)] = pointer
        for i, exponent in enumerate(np.asarray(self.exponents, dtype=np.float32)):
            native.exponents[i] = float(exponent)
        return native, alive
