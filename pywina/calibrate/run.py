"""A calibration from beginning to end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..convert.convert import l2_norms
from ..errors import ArgumentError, UnsupportedError
from ..eval.windows import cut_windows
from ..model import Model
from ..sparsity import Sparsity
from ..tuning import GROUPS, Tuning
from . import descent, thresholds
from .descent import Descent
from .fit import NormFit
from .graph import Graph
from .greedy import greedy
from .norms import loss_norms
from .objective import Kind, Objective, TorchObjective
from .search import ALL, BUDGETS, Log, Search, Shape

Allocate = Literal["uniform", "profile", "greedy", "global", "block", "descent"]
NormKind = Literal["l2", "loss", "fitted"]

Array = NDArray[np.float32]
#: exponents of norms where they are not searched: l2 as published, loss-weighted against ones
_EXPONENTS = {"l2": 1.0, "loss": 0.5, "fitted": 0.5}


@dataclass(frozen=True)
class Settings:
    """targets: sparsities, rising. windows of size tokens from the text's beginning; gradients use
    as many windows after these. allocate "block" is "global" with an offset for each block,
    "descent" finds budgets for every group of every block by gradients. objective: "kl", the
    divergence from the dense model, or "loss", that of the text. norms "fitted" begin as "loss" and
    are then moved by what inputs are worth at the edge; this needs the gradients of "descent".
    device: of what torch computes; on
    "cpu" the library measures the objective (but for "descent"), elsewhere torch."""

    targets: tuple[float, ...] = (0.5,)
    allocate: Allocate = "global"
    norms: NormKind = "l2"
    windows: int = 8
    size: int = 256
    thresholds: bool = False
    device: str = "cpu"
    objective: Kind = "kl"

    def __post_init__(self) -> None:
        if self.allocate not in get_args(Allocate) or self.norms not in get_args(NormKind):
            raise ArgumentError(f"unknown allocation {self.allocate!r} or norms {self.norms!r}")
        if self.objective not in get_args(Kind):
            raise ArgumentError(f"objective is {self.objective!r}; choose kl or loss")
        if self.norms == "fitted" and self.allocate != "descent":
            raise ArgumentError("fitted norms come with budgets by descent (--allocate descent)")
        if not self.targets or not all(0 < t < 1 for t in self.targets):
            raise ArgumentError(f"targets are {self.targets}; give sparsities in (0, 1)")
        if list(self.targets) != sorted(set(self.targets)):
            raise ArgumentError(f"targets are {self.targets}; give each once, rising")
        if self.windows < 1 or self.size < 64:
            raise ArgumentError("at least one window of 64 tokens is needed")


@dataclass
class Result:
    tuning: Tuning
    notes: dict[str, Any]


def _check_mixture(model: Model, settings: Settings) -> None:
    """Budgets of a layer hold for all of its experts together, and the library measures what they
    cost. Norms, thresholds and torch's graph would need each expert's own activations."""
    wrong = {
        f"norms {settings.norms!r}": settings.norms != "l2",
        f"allocation {settings.allocate!r}": settings.allocate in ("greedy", "descent"),
        "thresholds": settings.thresholds,
        f"device {settings.device!r}": settings.device != "cpu",
    }
    for name, is_wrong in wrong.items():
        if is_wrong:
            raise UnsupportedError(
                f"{model.path} is a mixture of experts, which have norms and activations of their "
                f"own: budgets for it can be found, but not with {name}"
            )


class _Run:
    """One calibration under way."""

    def __init__(
        self, model: Model, text: str, settings: Settings, log: Path, note: Callable[[str], object]
    ) -> None:
        if model._is_mixture:
            _check_mixture(model, settings)
        self.model, self.settings, self.note = model, settings, note
        both = cut_windows(model, text, min(settings.size, model.info.n_ctx), 2 * settings.windows)
        self.windows, rest = both[: settings.windows], both[settings.windows :]
        self.gradient_windows = rest or self.windows
        file = Path(model.path)
        key = asdict(settings) | {
            "model": file.name,
            "model_bytes": file.stat().st_size,
            "text": hashlib.sha256(text.encode()).hexdigest(),
        }
        key["targets"] = list(settings.targets)
        self.log = Log(log, key)
        # Norms of experts cannot be stored, and an exponent only with norms.
        self.finds_exponent = not model._is_mixture
        self._graph: Graph | None = None
        self._torch: tuple[TorchObjective, TorchObjective] | None = None

    def graph(self) -> Graph:
        if self._graph is None:
            self._graph = Graph(self.model, self.settings.device)
        return self._graph

    def norms(self) -> dict[str, Array]:
        """Norms to store; none for l2, which the library has."""
        if self.settings.norms == "l2":
            return {}
        n_layer = self.model.info.n_layer
        widths = [self.model.width(group) for group in GROUPS]
        ends = np.cumsum([n_layer * width for width in widths])[:-1]

        def measure() -> list[float]:
            self.note("gradients")
            found = loss_norms(self.graph(), self.gradient_windows)
            return [float(x) for group in GROUPS for x in found[group].ravel()]

        flat = np.array(self.log.get("loss norms", measure), dtype=np.float32)
        parts = zip(GROUPS, np.split(flat, ends), widths, strict=True)
        return {group: part.reshape(n_layer, width) for group, part, width in parts}

    @property
    def descends(self) -> bool:
        return self.settings.allocate == "descent"

    def torch_objectives(self) -> tuple[TorchObjective, TorchObjective]:
        """What decides, and what gradients are taken of."""
        kind = self.settings.objective
        if self._torch is None:
            self._torch = (
                TorchObjective(self.model, self.graph(), self.windows, kind),
                TorchObjective(self.model, self.graph(), self.gradient_windows, kind),
            )
        return self._torch

    def objective(self) -> Objective | TorchObjective:
        """By the library on the CPU, by torch where that is faster or gradients are needed."""
        if self.settings.device == "cpu" and not self.descends:
            return Objective(self.model, self.windows, self.settings.objective)
        return self.torch_objectives()[0]

    def budgets(
        self, norms: dict[str, Array]
    ) -> tuple[Array | None, dict[str, Array], Array, list[Shape]]:
        """(n_targets, n_layer, 4), norms, their exponents by group, and the shapes searched for."""
        settings, exponent = self.settings, _EXPONENTS[self.settings.norms]
        n_targets, n_layer = len(settings.targets), self.model.info.n_layer
        exponents = np.full(4, exponent, dtype=np.float32)
        if settings.allocate == "uniform":
            rows = [np.full((n_layer, 4), 1 - target) for target in settings.targets]
            return np.array(rows, dtype=np.float32), norms, exponents, []
        if settings.allocate == "profile":
            return None, norms, exponents, []
        if settings.allocate == "greedy":
            weights = {g: w**exponent for g, w in (norms or l2_norms(self.model).norms).items()}
            self.note("greedy")
            shape = (n_targets, n_layer, 4)

            def measure() -> list[float]:
                few = [window[:128] for window in self.windows[:2]]
                table = greedy(self.model, self.graph(), few, weights, settings.targets)
                return [float(x) for x in table.ravel()]

            table = np.array(self.log.get("greedy", measure)).reshape(shape)
            return table.astype(np.float32), norms, exponents, []
        objective = self.objective()
        targets, n = settings.targets, len(settings.targets)
        # One set of exponents serves all targets: what is best for the one in the middle.
        middle = Search(objective, norms, targets[n // 2], self.log, self.note)
        shape = Shape(exponent=exponent if norms else 0.0)
        if not self.descends:
            shape = middle.shape(shape, ALL if self.finds_exponent else BUDGETS)
        elif norms:  # budgets are left to the descent
            shape = middle.shape(shape, ("exponent",), 1)
        if norms:
            shape = middle.exponents(shape)
        if self.descends:
            table, norms, powers = self.descend(shape, norms)
            return table, norms, powers, [shape] * n
        shapes, tables = [], []
        for target in targets:
            search = Search(objective, norms, target, self.log, self.note)
            own = shape if target == middle.target else search.shape(shape, BUDGETS)
            if settings.allocate == "block":
                own = search.blocks(own)
            shapes.append(own)
            tables.append(own.kept(n_layer)[0])
        powers = shape.powers() if self.finds_exponent else exponents
        return np.stack(tables), norms, powers, shapes

    def descend(
        self, shape: Shape, norms: dict[str, Array]
    ) -> tuple[Array, dict[str, Array], Array]:
        """Budgets by gradients, and if asked for norms, from a shape: kept fractions, norms and
        their exponents."""
        objective, gradients = self.torch_objectives()
        targets = np.array(self.settings.targets, np.float32)
        powers, start = shape.powers(), shape.kept(self.model.info.n_layer)[0].astype(np.float64)

        def budgets(starts: Sequence[Any], steps: int) -> Array:
            rows = [
                Descent(objective, gradients, norms, powers, target, self.log.get, self.note).run(
                    first.astype(np.float64), steps
                )
                for target, first in zip(self.settings.targets, starts, strict=True)
            ]
            return np.stack(rows).astype(np.float32)

        kept = budgets([start] * len(targets), descent.STEPS)
        if self.settings.norms == "fitted":
            logs = {
                group: float(power) * np.log(np.maximum(norms[group].astype(np.float64), 1e-9))
                for group, power in zip(GROUPS, powers, strict=True)
            }
            fit = NormFit(objective, gradients, targets, kept, self.log.get, self.note)
            norms = {g: np.exp(v).astype(np.float32) for g, v in fit.run(logs).items()}
            powers = np.ones(4, dtype=np.float32)
            kept = budgets(kept, descent.STEPS // 2)
        return kept, norms, powers

    def thresholds(self, tuning: Tuning) -> Array:
        """(n_targets, n_layer, 4)"""
        norms = tuning.norms or l2_norms(self.model).norms
        powers = dict(zip(GROUPS, tuning.exponents, strict=True))
        weights = {group: norms[group] ** powers[group] for group in GROUPS}
        self.model.set_tuning(tuning)
        rows = []
        for target in self.settings.targets:
            self.note(f"thresholds at {target:g}")
            rule = Sparsity(target)
            kept = self.model.kept_fractions(rule)
            if self._torch:
                rows.append(thresholds.measure_by_graph(self._torch[0], tuning, rule, kept))
            else:
                rows.append(thresholds.measure(self.model, self.windows, weights, rule, kept))
        return np.stack(rows)


def calibrate(
    model: Model,
    text: str,
    settings: Settings,
    log: Path,
    note: Callable[[str], object] = lambda text: None,
) -> Result:
    """Finds a tuning. What was measured is kept in the JSON file `log` as it comes, so that a
    calibration that was stopped goes on where it was."""
    run = _Run(model, text, settings, log, note)
    norms = run.norms()
    kept, norms, exponents, shapes = run.budgets(norms)
    if not norms and ((exponents != 1).any() or settings.thresholds):
        norms = l2_norms(model).norms
    tuning = Tuning(
        targets=None if kept is None else np.array(settings.targets, dtype=np.float32),
        kept=kept,
        norms=norms,
        exponents=exponents,
    )
    if settings.thresholds and kept is not None:
        tuning.thresholds = run.thresholds(tuning)
    model.set_tuning(None)
    notes = {"settings": asdict(settings), "shapes": [asdict(shape) for shape in shapes]}
    notes["divergence"] = {
        key: float(np.mean(v)) for key, v in run.log.results.items() if ":" in key
    }
    return Result(tuning, notes)
