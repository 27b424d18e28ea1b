"""Loss-weighted norms: how much the loss moves with each input of each group.

norm_i = sqrt(mean over tokens of (dL / dx_i)^2), L the summed negative log likelihood of the text.
The l2 norm of a weight column is the same thing with the identity in place of the loss's metric:
it says how far the group's output moves, whether or not anything behind it cares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..info import Group
from .graph import Graph


def loss_norms(
    graph: Graph,
    windows: Sequence[list[int]],
    progress: Callable[[int], object] = lambda n: None,
) -> dict[str, NDArray[np.float32]]:
    """(n_layer, n_inputs) by group. Each group's norms have mean square 1: only their proportions
    matter."""
    squares: dict[tuple[int, Group], Any] = {}

    def watch(layer: int, group: Group, x: Any) -> Any:
        def add(gradient: Any) -> None:
            total = gradient.double().pow(2).sum(0)
            squares[layer, group] = squares.get((layer, group), 0) + total

        x.register_hook(add)
        return x

    for window in windows:
        graph.loss(window, watch).backward()
        progress(1)
    groups: tuple[Group, ...] = ("qkv", "o", "gate_up", "down")
    result = {}
    for group in groups:
        rows = [squares[layer, group].cpu().numpy() for layer in range(graph.info.n_layer)]
        mean = np.stack(rows)
        mean /= mean.mean(axis=1, keepdims=True) + 1e-300
        result[group] = np.sqrt(mean).astype(np.float32)
    return result
