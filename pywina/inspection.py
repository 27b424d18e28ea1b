"""Looking into a model: its file, its norms, what a rule keeps, and what flows through it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _values
from ._native import check, ffi, lib
from .errors import ArgumentError
from .info import _GROUPS, Group, MemoryPlan, Tap, TensorInfo, _fields, _text
from .sparsity import Sparsity
from .tuning import Tuning

if TYPE_CHECKING:
    from .model import Model


class Inspection:
    """Mixed into :class:`pywina.Model`."""

    @property
    def _is_mixture(self: Model) -> bool:
        """Of experts: their norms and activations are their own, and not found by calibration."""
        return any(".ffn_gate_inp." in name for name in self.tensors)

    # ---- calibration -------------------------------------------------------------------------

    def set_tuning(self: Model, tuning: Tuning | None) -> None:
        """Budgets, norms and thresholds in place of the file's; None: the file's again."""
        with self._handle.run() as session:
            self._begin(session, Sparsity())  # one that any tuning can follow
            if tuning is None:
                check(lib.wina_session_set_tuning(session, ffi.NULL))
                self._tuning = None
                return
            native, alive = tuning._struct(self)
            check(lib.wina_session_set_tuning(session, native))
            self._tuning = tuning
            del alive

    @contextmanager
    def tap(self: Model, function: Tap) -> Iterator[None]:
        """Shows the inputs of all groups while the ``with`` lasts: ``function(layer, group, x)``
        with x (n_tokens, n_inputs), dense and valid during the call only. An exception in it is
        raised at the end."""
        names = tuple(_GROUPS)
        failed: list[BaseException] = []

        def call(layer: int, group: int, x: Any, n_tokens: int, n_in: int, _user: Any) -> None:
            if not failed:
                data = np.frombuffer(ffi.buffer(x, n_tokens * n_in * 4), dtype=np.float32)
                function(layer, names[group], data.reshape(n_tokens, n_in))

        def on_error(_kind: type, error: BaseException, _trace: Any) -> None:
            failed.append(error)

        callback = ffi.callback("wina_tap_fn", call, onerror=on_error)
        with self._handle.run() as session:
            check(lib.wina_session_set_tap(session, callback, ffi.NULL))
            try:
                yield
            finally:
                check(lib.wina_session_set_tap(session, ffi.NULL, ffi.NULL))
        if failed:
            raise failed[0]

    def plan_memory(self: Model) -> MemoryPlan:
        """The memory of this model and its session: what was known before they were loaded."""
        plan = ffi.new("wina_memory_plan *")
        with self._handle.borrow() as model:
            check(lib.wina_model_plan_memory(model, self._session.native(), plan))
        return MemoryPlan(**_fields(plan, MemoryPlan.__dataclass_fields__))

    def describe_rule(self: Model, sparsity: float | Sparsity | None = None) -> str:
        """The rule that a sparsity amounts to for this file, in words."""
        native, text = ffi.new("wina_sparsity *"), ffi.new("char[512]")
        self.sparsity.replace(sparsity=sparsity)._store(native[0])
        with self._handle.borrow() as model:
            check(lib.wina_model_describe_rule(model, native, text, len(text)))
        return _text(text)

    def keep_counts(self: Model, sparsity: float | Sparsity | None = None) -> NDArray[np.int32]:
        """Inputs kept, (n_layer, 4, 3): by layer, group and kept list; 0 where there is none."""
        out = np.empty((self.info.n_layer, 4, 3), dtype=np.int32)
        with self._handle.run() as session:
            self._begin(session, self.sparsity.replace(sparsity=sparsity))
            check(lib.wina_session_get_keep(session, ffi.from_buffer("int32_t[]", out)))
        return out

    def kept_fractions(
        self: Model, sparsity: float | Sparsity | None = None
    ) -> NDArray[np.float64]:
        """(n_layer, 4) share of its inputs that each group keeps, with group masks."""
        widths = np.array([self.width(group) for group in _GROUPS], dtype=np.float64)
        return self.keep_counts(sparsity)[:, :, 0] / widths

    def width(self: Model, group: Group) -> int:
        """Number of inputs of a group."""
        if group == "down":
            return self.info.n_ff
        return self.info.n_head * self.info.head_dim if group == "o" else self.info.n_embd

    # ---- inside the file ---------------------------------------------------------------------

    @functools.cached_property
    def metadata(self: Model) -> dict[str, str]:
        """Keys of the file and their values as text; long arrays are shortened."""
        key, value = ffi.new("char[256]"), ffi.new("char[]", 1 << 16)
        result = {}
        with self._handle.borrow() as model:
            for i in range(lib.wina_model_meta_count(model)):
                check(lib.wina_model_get_meta(model, i, key, len(key), value, len(value)))
                result[_text(key)] = _text(value)
        return result

    @functools.cached_property
    def tensors(self: Model) -> dict[str, TensorInfo]:
        """The tensors of the file by name."""
        info = ffi.new("wina_tensor_info *")
        result = {}
        with self._handle.borrow() as model:
            for i in range(lib.wina_model_tensor_count(model)):
                check(lib.wina_model_get_tensor(model, i, info))
                shape = tuple(reversed(ffi.unpack(info.ne, info.n_dims)))
                name = _text(info.name)
                result[name] = TensorInfo(name, _text(info.type), shape, info.n_bytes)
        return result

    def read_tensor(self: Model, name: str) -> NDArray[np.float32]:
        """A tensor decoded to float32, in its shape (rows, cols)."""
        if name not in self.tensors:
            raise ArgumentError(f"{self.path} has no tensor {name!r}")
        shape = self.tensors[name].shape
        out = np.empty(shape, dtype=np.float32)
        rows = out.size // shape[-1]
        with self._handle.borrow() as model:
            buffer = ffi.from_buffer("float[]", out)
            check(lib.wina_model_read_rows(model, name.encode("utf-8"), 0, rows, buffer))
        return out

    def norms(
        self: Model, layer: int, group: Group, projection: str | None = None
    ) -> NDArray[np.float32]:
        """l2 norms of the columns of a group's stacked matrix, shape (n_inputs,).

        projection: ``"q"``, ``"k"``, ``"v"``, ``"gate"`` or ``"up"`` for one matrix of the group.
        """
        _values.integer("layer", layer, 0, self.info.n_layer - 1)
        if group not in _GROUPS:
            raise ArgumentError(f"group is {group!r}; choose one of {', '.join(_GROUPS)}")
        number, projections = _GROUPS[group]
        if projection is not None and projection not in projections:
            raise ArgumentError(
                f"projection is {projection!r}; {group} has {', '.join(projections)}"
            )
        index = -1 if projection is None else projections.index(projection)
        width = self.width(group)
        out = np.empty(width, dtype=np.float32)
        with self._handle.borrow() as model:
            buffer = ffi.from_buffer("float[]", out)
            check(lib.wina_model_get_norms(model, layer, number, index, buffer, width))
        return out
