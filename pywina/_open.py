"""How a model is opened: what the library is asked for, and the native objects that it gives."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from . import _values
from ._handle import Handle, Weights
from ._native import check, ffi, lib
from .errors import ArgumentError
from .sparsity import Sparsity

Backend = Literal["auto", "cpu", "cuda"]
#: how keys, or values, of the context are kept
CacheType = Literal["f16", "q8_0", "f32"]

_BACKENDS: dict[str, int] = {
    "auto": lib.WINA_BACKEND_AUTO,
    "cpu": lib.WINA_BACKEND_CPU,
    "cuda": lib.WINA_BACKEND_CUDA,
}

_CACHE_TYPES: dict[str, int] = {
    "f16": lib.WINA_CACHE_F16,
    "q8_0": lib.WINA_CACHE_Q8_0,
    "f32": lib.WINA_CACHE_F32,
}


class Progress:
    """Calls a Python function during a load. An exception in it, Ctrl-C too, stops the load."""

    def __init__(self, function: Callable[[float], object] | None) -> None:
        self._function = function
        self.error: BaseException | None = None
        self.callback = ffi.callback(
            "wina_progress_fn", self._call, error=1, onerror=self._on_error
        )

    def _call(self, progress: float, _user: Any) -> int:
        if self._function is not None:
            self._function(progress)
        return 0

    def _on_error(self, _kind: type, error: BaseException, _trace: Any) -> None:
        self.error = error


def _backend(name: str) -> int:
    if name not in _BACKENDS:
        raise ArgumentError(f"backend is {name!r}; it must be one of {', '.join(_BACKENDS)}")
    return _BACKENDS[name]


@dataclass(frozen=True)
class SessionOptions:
    """What a session is made with; 0: the library's default."""

    n_ctx: int
    n_threads: int
    n_batch: int
    sparsity: Sparsity
    cache_type_k: CacheType
    cache_type_v: CacheType

    def native(self) -> Any:
        """A wina_session_params."""
        params = ffi.new("wina_session_params *")
        lib.wina_session_params_init(params)
        params.n_ctx, params.n_threads, params.n_batch = self.n_ctx, self.n_threads, self.n_batch
        for name in ("cache_type_k", "cache_type_v"):
            kind = getattr(self, name)
            if kind not in _CACHE_TYPES:
                raise ArgumentError(
                    f"{name} is {kind!r}; it must be one of {', '.join(_CACHE_TYPES)}"
                )
            setattr(params, name, _CACHE_TYPES[kind])
        self.sparsity._store(params.sparsity)
        return params


def open_model(
    path: str,
    options: SessionOptions,
    progress: Callable[[float], object] | None,
    backend: Backend,
    n_gpu_layers: int | None,
    mem_limit: int | str | None,
    resident: int | str | None = None,
) -> Handle:
    params = ffi.new("wina_model_params *")
    lib.wina_model_params_init(params)
    report = Progress(progress)
    params.n_threads = options.n_threads
    params.progress = report.callback
    params.backend = _backend(backend)
    session = options.native()
    params.session = session
    if mem_limit is not None:
        params.mem_limit = _values.size("mem_limit", mem_limit)
    if resident is not None:
        params.resident = _values.size("resident", resident)
    if n_gpu_layers is not None:
        params.n_gpu_layers = _values.integer("n_gpu_layers", n_gpu_layers, 0, 1 << 20)
    model = ffi.new("wina_model **")
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ArgumentError(f"the path {path!r} holds a NUL character")
    status = lib.wina_model_load(encoded, params, model)
    if report.error is not None:
        lib.wina_model_free(model[0])
        raise report.error
    check(status)
    try:
        return open_session(path, Weights(model[0]), options)
    except BaseException:
        lib.wina_model_free(model[0])
        raise


def open_session(path: str, weights: Weights, options: SessionOptions) -> Handle:
    session = ffi.new("wina_session **")
    check(lib.wina_session_create(weights.model, options.native(), session))
    return Handle(path, weights, session[0])


def trained_context(path: str) -> int:
    """The context length in the file's metadata; weights are not read."""
    params, model = ffi.new("wina_model_params *"), ffi.new("wina_model **")
    lib.wina_model_params_init(params)
    params.meta_only = 1
    info = ffi.new("wina_model_info *")
    check(lib.wina_model_load(os.fsencode(path), params, model))
    try:
        check(lib.wina_model_get_info(model[0], info))
        return int(info.n_ctx_train)
    finally:
        lib.wina_model_free(model[0])
