"""Budgets from a bounded search over few numbers, on the real objective.

A budget's shape is given by log-odds of sparsity: one offset per kind of group (that of gate_up is
0, since a common shift is what equal bytes take away), a slope and a curve over the depth of the
model, and the exponent of the norms, which may then differ by group. Each is tried a step up, a
step down, and at the vertex of the parabola through these and where it stood; steps halve from
round to round. A move is kept if it lowers the mean of the objective by more than the standard
error of the paired difference over windows.
(Sparse models are chaotic: other rounding in a kernel moved the mean of six windows of smollm2 by
0.016 of 0.44 nats.) Measured once, adding up losses of single groups and blocks was a disaster:
losses interact, and an optimum over many noisy numbers picks the noise.

What may follow is an offset for every block, bounded and accepted in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from ..eval.windows import mean_and_error
from ..sparsity import Sparsity
from ..tuning import Tuning, write_text
from .objective import Objective, TorchObjective

#: log-odds of sparsity of the built-in profile against gate_up
_PROFILE = {"qkv": 0.041, "o": 0.687, "down": 1.118}
_LIMITS = {"qkv": 2.5, "o": 2.5, "down": 2.5, "slope": 1.0, "curve": 1.0}
BUDGETS = ("curve", "slope", "down", "o", "qkv")
ALL = ("exponent", *BUDGETS)
ROUNDS, FIRST_STEP = 2, 0.5
BLOCK_STEP, BLOCK_LIMIT = 0.3, 1.0


@dataclass(frozen=True)
class Shape:
    """One point of the search."""

    qkv: float = _PROFILE["qkv"]
    o: float = _PROFILE["o"]
    down: float = _PROFILE["down"]
    slope: float = 0.0
    curve: float = 0.0
    exponent: float = 1.0
    blocks: tuple[float, ...] = ()  # by layer; none: 0
    exponents: tuple[float, ...] = ()  # by group, in place of the one for all

    def kept(self, n_layer: int) -> NDArray[np.float32]:
        """(1, n_layer, 4) kept fractions, before they are moved to the wanted bytes."""
        depth = np.linspace(-1, 1, n_layer) if n_layer > 1 else np.zeros(1)
        bend = self.slope * depth + self.curve * (1.5 * depth**2 - 0.5)
        if self.blocks:
            bend = bend + np.array(self.blocks)
        odds = np.array([self.qkv, self.o, 0.0, self.down]) + bend[:, None]
        return (1 / (1 + np.exp(odds)))[None].astype(np.float32)

    def powers(self) -> NDArray[np.float32]:
        """(4,) exponents by group."""
        return np.array(self.exponents or (self.exponent,) * 4, dtype=np.float32)

    def key(self, target: float) -> str:
        names = ("qkv", "o", "down", "slope", "curve", "exponent")
        key = f"{target:g}: " + " ".join(f"{n}={getattr(self, n):.4f}" for n in names)
        if any(self.blocks):
            key += " blocks=" + ",".join(f"{offset:.3f}" for offset in self.blocks)
        if self.exponents:
            key += " exponents=" + ",".join(f"{power:.4f}" for power in self.exponents)
        return key


class Log:
    """Results by key in a JSON file: what was measured once is not measured again."""

    def __init__(self, path: Path, setting: dict[str, Any]) -> None:
        self.path, self.setting = path, setting
        self.results: dict[str, list[float]] = {}
        if path.exists():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                same = content["setting"] == setting
                if same:
                    self.results = dict(content["results"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ArgumentError(f"{path} cannot be resumed ({error!r}); remove it") from error
            if not same:
                raise ArgumentError(f"{path} is of another calibration; remove it, or use another")

    def get(self, key: str, measure: Callable[[], list[float]]) -> list[float]:
        if key not in self.results:
            self.results[key] = measure()
            content = {"setting": self.setting, "results": self.results}
            write_text(self.path, json.dumps(content, indent=1))
        return self.results[key]


class Search:
    """Looks for the best shape for a target. norms may be empty (l2 norms)."""

    def __init__(
        self,
        objective: Objective | TorchObjective,
        norms: dict[str, NDArray[np.float32]],
        target: float,
        log: Log,
        note: Callable[[str], object] = lambda text: None,
    ) -> None:
        self.objective, self.norms, self.target = objective, norms, target
        self.log, self.note = log, note
        self.n_layer = objective.model.info.n_layer

    def value(self, shape: Shape) -> NDArray[np.float64]:
        """Divergence of every window."""

        def measure() -> list[float]:
            tuning = Tuning(
                np.array([self.target], np.float32), shape.kept(self.n_layer), norms=self.norms,
                exponents=shape.powers(),
            )  # fmt: skip
            # Only norms in a tuning come with powers of their own; those of l2 norms are asked for.
            exponent = None if self.norms else float(shape.powers()[0])
            found = self.objective(tuning, Sparsity(self.target, exponent=exponent))
            self.note(f"{self.target:g}: {np.mean(found):.4f} nats")
            return found

        return np.array(self.log.get(shape.key(self.target), measure))

    def shape(self, start: Shape, names: Sequence[str] = ALL, rounds: int = ROUNDS) -> Shape:
        """Offsets of groups, slope, curve and exponent, or those named, from a first guess."""
        best, least = start, self.value(start)
        step = FIRST_STEP
        for _ in range(rounds):
            for name in names:
                up, down = _moved(best, name, step), _moved(best, name, -step)
                values = [self.value(up), least, self.value(down)]
                turn = vertex([v.mean() for v in values])
                trials = [up, down, _moved(best, name, step * turn)]
                found = [values[0], values[2], self.value(trials[2])]
                i = int(np.argmin([v.mean() for v in found]))
                if _is_better(found[i], least):
                    best, least = trials[i], found[i]
            step /= 2
        return best

    def exponents(self, start: Shape) -> Shape:
        """An exponent for the norms of each group, one after the other."""
        best = replace(start, exponents=tuple(float(power) for power in start.powers()))
        least = self.value(best)
        for group in range(4):
            trials = []
            for by in (FIRST_STEP / 2, -FIRST_STEP / 2):
                powers = list(best.exponents)
                powers[group] = float(np.clip(powers[group] + by, 0, 2))
                trials.append(replace(best, exponents=tuple(powers)))
            found = [self.value(trial) for trial in trials]
            i = int(np.argmin([v.mean() for v in found]))
            if _is_better(found[i], least):
                best, least = trials[i], found[i]
        return best

    def blocks(self, start: Shape) -> Shape:
        """An offset for each block on top of a shape, one after the other."""
        best = replace(start, blocks=start.blocks or (0.0,) * self.n_layer)
        least = self.value(best)
        for layer in range(self.n_layer):
            trials = []
            for by in (BLOCK_STEP, -BLOCK_STEP):
                offsets = list(best.blocks)
                offsets[layer] = float(np.clip(offsets[layer] + by, -BLOCK_LIMIT, BLOCK_LIMIT))
                trials.append(replace(best, blocks=tuple(offsets)))
            found = [self.value(trial) for trial in trials]
            i = int(np.argmin([v.mean() for v in found]))
            if _is_better(found[i], least):
                best, least = trials[i], found[i]
        return best


def vertex(values: Sequence[float]) -> float:
    """Where the parabola through values at 1, 0 and -1 is lowest, in [-1, 1]; 0 if it is not."""
    bend = values[0] + values[2] - 2 * values[1]
    return float(np.clip((values[2] - values[0]) / (2 * bend), -1, 1)) if bend > 0 else 0.0


def _is_better(new: NDArray[np.float64], old: NDArray[np.float64]) -> bool:
    """Lower by more than chance: one standard error of the differences."""
    mean, error = mean_and_error(new - old)
    return mean < -(error if len(new) > 1 else 0.0)


def _moved(shape: Shape, name: str, by: float) -> Shape:
    if name == "exponent":
        return replace(shape, exponent=float(np.clip(shape.exponent + by / 2, 0, 2)))
    limit = _LIMITS[name]
    return replace(shape, **{name: float(np.clip(getattr(shape, name) + by, -limit, limit))})
