"""What there is to know about a model: facts, tensors, counters, groups of projections."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ._native import ffi, lib

Group = Literal["qkv", "o", "gate_up", "down"]
Tap = Callable[[int, Group, NDArray[np.float32]], object]
_GROUPS: dict[Group, tuple[int, tuple[str, ...]]] = {
    "qkv": (lib.WINA_GROUP_QKV, ("q", "k", "v")),
    "o": (lib.WINA_GROUP_O, ("o",)),
    "gate_up": (lib.WINA_GROUP_GATE_UP, ("gate", "up")),
    "down": (lib.WINA_GROUP_DOWN, ("down",)),
}


@dataclass(frozen=True)
class ModelInfo:
    """Facts about a model; sizes in bytes. bos_token and eos_token are None if there is none."""

    architecture: str
    name: str
    n_vocab: int
    n_ctx_train: int
    n_embd: int
    n_layer: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    bos_token: int | None
    eos_token: int | None
    add_bos: bool
    tied_output: bool
    n_params: int
    file_bytes: int
    weight_bytes: int
    sparse_bytes: int
    kv_bytes_per_token: int
    backend: str  # "cpu" or "cuda"
    device: str  # name of the GPU, "" without one
    backend_note: str  # why the model is not on a GPU although that was wanted
    gpu_bytes: int
    packed: bool  # the file holds weights as they are in memory
    cache_type_k: str  # how keys are kept: "f16", "q8_0", "f32"
    cache_type_v: str
    n_ctx: int
    n_threads: int


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the file. shape is (rows, cols) = (outputs, inputs)."""

    name: str
    type: str
    shape: tuple[int, ...]
    n_bytes: int


@dataclass(frozen=True)
class Stats:
    """What the last generation or evaluation did; wina_stats in wina.h says more."""

    n_prefill: int
    n_decode: int
    prefill_s: float
    decode_s: float
    sparse_read: int
    sparse_total: int
    kept_fraction: float
    bytes_per_token: float
    session_bytes: int


@dataclass(frozen=True)
class MemoryPlan:
    """What a model and its session take, in bytes; wina_memory_plan in wina.h says more."""

    weight_bytes: int
    cache_bytes: int
    buffer_bytes: int
    other_bytes: int
    peak_bytes: int
    gpu_weight_bytes: int
    gpu_cache_bytes: int
    gpu_buffer_bytes: int


def _fields(struct: Any, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in names}


def _text(buffer: Any) -> str:
    data: bytes = ffi.string(buffer)
    return data.decode("utf-8", "replace")
