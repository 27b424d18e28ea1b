"""Thresholds: the score above which as many inputs lie, on average, as the budget keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..info import Group
from ..model import Model
from ..sparsity import Sparsity
from ..tuning import GROUPS

_LOW, _HIGH, _PER_OCTAVE = -40, 24, 64  # bins of log2(score)
_N_BINS = (_HIGH - _LOW) * _PER_OCTAVE


class Histogram:
    """Scores by layer and group, in bins of a 64th of an octave (1%)."""

    def __init__(self, n_layer: int, weights: dict[str, NDArray[np.float32]]) -> None:
        self.counts = np.zeros((n_layer, 4, _N_BINS), dtype=np.int64)
        self.weights = weights

    def add(self, layer: int, group: Group, x: NDArray[np.float32]) -> None:
        score = np.abs(x) * self.weights[group][layer]
        octave = np.log2(np.maximum(score, 2.0**_LOW))
        index = np.clip(((octave - _LOW) * _PER_OCTAVE).astype(np.int64), 0, _N_BINS - 1)
        self.counts[layer, GROUPS.index(group)] += np.bincount(index.ravel(), minlength=_N_BINS)

    def threshold(self, layer: int, group: int, kept: float) -> float:
        """The score that a share `kept` reaches."""
        above = np.cumsum(self.counts[layer, group][::-1])[::-1]
        index = int(np.searchsorted(-above, -kept * above[0]))
        return float(2.0 ** (_LOW + index / _PER_OCTAVE))


def measure(
    model: Model,
    windows: Sequence[list[int]],
    weights: dict[str, NDArray[np.float32]],
    sparsity: Sparsity,
    kept: NDArray[np.float64],
    progress: Callable[[int], object] = lambda n: None,
) -> NDArray[np.float32]:
    """(n_layer, 4) thresholds for kept fractions (n_layer, 4), on what the sparse model computes.

    weights: (n_layer, n_in) by group, the factors of |x|."""
    histogram = Histogram(model.info.n_layer, weights)
    for window in windows:
        with model.tap(histogram.add):
            model.logits(window, start=len(window) - 1, dense_prefix=5, sparsity=sparsity)
        progress(1)
    n_layer = model.info.n_layer
    rows = [[histogram.threshold(i, g, kept[i, g]) for g in range(4)] for i in range(n_layer)]
    return np.array(rows, dtype=np.float32)
