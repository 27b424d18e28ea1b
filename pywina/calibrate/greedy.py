"""Budgets as TEAL finds them: inside each block, byte by byte where its output suffers least.

From dense, the block's groups take turns: each step skips the same number of bytes more in the
one group that leaves the block's output closest to the dense one. Blocks all end at the target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..info import Group
from ..model import Model
from ..tuning import GROUPS
from .graph import Graph, keep_largest

STEP = 0.025  # of the block's bytes
_TENSORS = {
    "qkv": ("attn_q", "attn_k", "attn_v"),
    "o": ("attn_output",),
    "gate_up": ("ffn_gate", "ffn_up"),
    "down": ("ffn_down",),
}


def group_bytes(model: Model) -> NDArray[np.float64]:
    """(n_layer, 4) bytes of the matrices of each group."""
    rows = [
        [
            sum(model.tensors[f"blk.{layer}.{name}.weight"].n_bytes for name in _TENSORS[group])
            for group in GROUPS
        ]
        for layer in range(model.info.n_layer)
    ]
    return np.array(rows, dtype=np.float64)


def _shares(model: Model, layer: int) -> NDArray[np.float64]:
    """(4,) part of the block's bytes by group."""
    sizes = group_bytes(model)[layer]
    return sizes / sizes.sum()


def greedy(
    model: Model,
    graph: Graph,
    windows: Sequence[list[int]],
    weights: dict[str, NDArray[np.float32]],
    targets: Sequence[float],
    progress: Callable[[int], object] = lambda n: None,
) -> NDArray[np.float32]:
    """(n_targets, n_layer, 4) kept fractions. weights: (n_layer, n_in) factors of |x| by group."""
    torch = graph.torch
    result = np.ones((len(targets), model.info.n_layer, 4), dtype=np.float32)
    factors = {group: torch.from_numpy(value).to(graph.device) for group, value in weights.items()}
    with torch.no_grad():
        streams = [graph.embed(window) for window in windows]
        for layer in range(model.info.n_layer):
            wanted = [graph.block(layer, x, lambda _layer, _group, h: h) for x in streams]

            def error(
                kept: NDArray[np.float64],
                layer: int = layer,
                streams: list[Any] = streams,
                wanted: list[Any] = wanted,
            ) -> float:
                def hook(_layer: int, group: Group, x: Any) -> Any:
                    n_keep = max(1, round(kept[GROUPS.index(group)] * x.shape[-1]))
                    return keep_largest(torch, x, x.abs() * factors[group][layer], n_keep)

                pairs = zip(streams, wanted, strict=True)
                return sum(float((graph.block(layer, x, hook) - y).pow(2).sum()) for x, y in pairs)

            result[:, layer] = _descend(error, _shares(model, layer), targets)
            streams = wanted
            progress(1)
    return result


def _descend(
    error: Callable[[NDArray[np.float64]], float],
    shares: NDArray[np.float64],
    targets: Sequence[float],
) -> NDArray[np.float64]:
    """(n_targets, 4) kept fractions on the way down; targets rise."""
    kept, rows, least = np.ones(4), [], 0.02
    for target in targets:
        while 1 - float(shares @ kept) < target - 1e-9:
            by = min(STEP, target - (1 - float(shares @ kept)))
            trials = []
            for i in range(4):
                trial = kept.copy()
                trial[i] -= by / shares[i]
                if trial[i] >= least:
                    trials.append((error(trial), i, trial))
            if not trials:
                break
            kept = min(trials, key=lambda t: t[:2])[2]
        rows.append(kept.copy())
    return np.stack(rows)
