"""Norms fitted to what keeping an input is worth.

A score decides which inputs lie above the edge, so the norms are right if, at the edge, every input
of a group is worth the same: else one that is worth more than its neighbours should come in sooner.
The band around the edge that :mod:`.descent` reads budgets from says, input by input, what each was
worth when it lay there. So the log of each norm moves up where an input was worth more than the
group's mean and down where it was worth less, shrunk by how uncertain that is, in bounded steps
that are kept if they lower the objective on *other* windows. Where they start (loss-weighted norms
with their exponents) is a first guess of the same thing: a gradient's mean square without regard to
where the input lies, how it goes along with the input, and what the sparse model makes of it.

Norms belong to the file, not to a target: all targets are asked, each counting alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..eval.windows import mean_and_error
from ..sparsity import Sparsity
from ..tuning import GROUPS, Tuning
from .descent import band_sums
from .objective import TorchObjective

Logs = dict[str, NDArray[np.float64]]  # (n_layer, n_inputs) by group

STEPS, FIRST_STEP, INERTIA, LIMIT = 16, 0.15, 0.5, 2.0


@dataclass
class NormFit:
    """objective decides, what inputs are worth comes from gradients, which is of other windows.
    targets: (n_targets,), kept: (n_targets, n_layer, 4)."""

    objective: TorchObjective
    gradients: TorchObjective
    targets: NDArray[np.float32]
    kept: NDArray[np.float32]
    get: Callable[[str, Callable[[], list[float]]], list[float]]
    note: Callable[[str], object] = lambda text: None

    def _tuning(self, logs: Logs) -> Tuning:
        norms = {group: np.exp(value).astype(np.float32) for group, value in logs.items()}
        return Tuning(self.targets, self.kept, norms=norms)

    def values(self, logs: Logs) -> NDArray[np.float64]:
        """(n_targets, n_windows) of the objective."""

        def measure() -> list[float]:
            tuning = self._tuning(logs)
            return [
                value
                for target in self.targets
                for value in self.objective(tuning, Sparsity(float(target)))
            ]

        flat = self.get(f"fit {_digest(logs)}", measure)
        return np.array(flat).reshape(len(self.targets), -1)

    def excess(self, logs: Logs) -> Logs:
        """By how much of the group's mean each input is worth more at the edge, in [-1, 1], the
        less sure the nearer to 0; the mean over the targets."""
        result = {group: np.zeros_like(value) for group, value in logs.items()}
        tuning = self._tuning(logs)
        for target in self.targets:
            moments: dict[Any, Any] = {}
            for _, found in band_sums(self.gradients, tuning, float(target)):
                for key, (sums, hits, _width) in found.items():
                    new = sums, hits, sums**2, sums * hits, hits**2
                    old = moments.get(key)
                    moments[key] = new if old is None else _added(old, new)
            for (layer, group), parts in moments.items():
                sums, hits, squares, mixed, hits2 = (part.cpu().numpy() for part in parts)
                result[group][layer] += _shrunk(sums, hits, squares, mixed, hits2)
        return {group: value / len(self.targets) for group, value in result.items()}

    def run(self, start: Logs, steps: int = STEPS) -> Logs:
        """From logs of norms to better ones."""
        best, size = start, FIRST_STEP
        least = self.values(start)
        scale = least.mean(axis=1, keepdims=True)
        along = {group: np.zeros_like(value) for group, value in start.items()}
        for _ in range(steps):
            excess = self.excess(best)
            along = {group: INERTIA * along[group] + excess[group] for group in best}
            while True:
                trial = {
                    g: np.clip(best[g] + size * along[g], start[g] - LIMIT, start[g] + LIMIT)
                    for g in best
                }
                found = self.values(trial)
                mean, _error = mean_and_error(((found - least) / scale).mean(axis=0))
                shown = " ".join(f"{value:.4f}" for value in found.mean(axis=1))
                self.note(f"norms: {shown} nats")
                if mean < 0:
                    best, least = trial, found
                    break
                along, size = excess, size / 2
                if size < FIRST_STEP / 16:
                    return best
        return best


def _added(one: Any, other: Any) -> list[Any]:
    return [a + b for a, b in zip(one, other, strict=True)]


def _shrunk(sums: Any, hits: Any, squares: Any, mixed: Any, hits2: Any) -> NDArray[np.float64]:
    """(n_inputs,) from sums over parts of the windows: of worth, of times in the band, and of
    their squares and products."""
    total = hits.sum()
    mean = sums.sum() / total if total else 0.0
    if mean <= 0:  # the whole band is noise
        return np.zeros_like(sums)
    seen = np.maximum(hits, 1)
    each = sums / seen
    # The variance of a ratio of sums over parts.
    variance = np.maximum(squares - 2 * each * mixed + each**2 * hits2, 0) / seen**2
    excess, error2 = each / mean - 1, variance / mean**2
    sure = excess**2 / (excess**2 + error2 + 1e-12)
    return np.where(hits > 0, np.clip(excess, -1, 1) * sure, 0.0)


def _digest(logs: Logs) -> str:
    """A name for norms in the log of a calibration."""
    rounded = b"".join(np.round(logs[group], 4).tobytes() for group in GROUPS)
    return hashlib.sha256(rounded).hexdigest()[:16]
