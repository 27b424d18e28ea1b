"""Thresholds: the score above which as many inputs lie, on average, as the budget keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from ..info import Group
from ..model import Model
from ..sparsity import Sparsity
from ..tuning import GROUPS, Tuning

if TYPE_CHECKING:
    from .objective import TorchObjective

_LOW, _HIGH, _PER_OCTAVE = -40, 24, 64  # bins of log2(score)
_N_BINS = (_HIGH - _LOW) * _PER_OCTAVE
N_DENSE = 5  # tokens of a window that are dense


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

    def thresholds(self, kept: NDArray[np.float64]) -> NDArray[np.float32]:
        """The same for kept fractions (n_layer, 4)."""
        rows = [[self.threshold(i, g, kept[i, g]) for g in range(4)] for i in range(len(kept))]
        return np.array(rows, dtype=np.float32)


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
            model.logits(window, start=len(window) - 1, dense_prefix=N_DENSE, sparsity=sparsity)
        progress(1)
    return histogram.thresholds(kept)


def measure_by_graph(
    objective: TorchObjective, tuning: Tuning, sparsity: Sparsity, kept: NDArray[np.float64]
) -> NDArray[np.float32]:
    """The same by torch, over an objective's windows but for their dense tokens."""
    sparse, torch = objective.sparse, objective.graph.torch
    n_layer = objective.model.info.n_layer
    counts = torch.zeros(n_layer, 4, _N_BINS, dtype=torch.int64, device=objective.graph.device)

    def watch(layer: int, group: Group, x: Any) -> Any:
        score = sparse.score(layer, group, x[..., N_DENSE:, :])
        octave = score.clamp(min=2.0**_LOW).log2()
        index = ((octave - _LOW) * _PER_OCTAVE).long().clamp(0, _N_BINS - 1)
        counts[layer, GROUPS.index(group)] += torch.bincount(index.ravel(), minlength=_N_BINS)
        return sparse.hook(layer, group, x)

    sparse.use(tuning, sparsity)
    for part in objective.parts():
        sparse.logs(part, first=len(part[0]) - 2, hook=watch)
    histogram = Histogram(n_layer, {})
    histogram.counts = counts.cpu().numpy()
    return histogram.thresholds(kept)


def at(tuning: Tuning, sparsity: float) -> NDArray[np.float32]:
    """(n_layer, 4) thresholds for a sparsity, as the library finds them: straight between the
    targets, 0 at sparsity 0."""
    if tuning.targets is None or tuning.thresholds is None:
        raise ArgumentError("selection by threshold needs a calibrated model")
    sparsity = float(np.float32(sparsity))  # as targets are
    if sparsity > tuning.targets[-1]:
        raise ArgumentError(
            f"thresholds are calibrated up to sparsity {tuning.targets[-1]:g}, not {sparsity:g}"
        )
    targets = np.concatenate(([0], tuning.targets))
    rows = np.concatenate((np.zeros_like(tuning.thresholds[:1]), tuning.thresholds))
    i = int(np.searchsorted(targets[1:], sparsity))
    share = (sparsity - targets[i]) / (targets[i + 1] - targets[i])
    return np.asarray(rows[i] + (rows[i + 1] - rows[i]) * share, dtype=np.float32)
