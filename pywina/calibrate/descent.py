"""Budgets for every group of every block, by descent on the real objective.

The objective's slope along a budget is read off one backward pass of the *sparse* model. Inputs in
a band around the last one kept are what a little more or less would change: with g the gradient at
an input x of the group (zero or not), the sum of -g x over the band says what the band is worth, to
first order and, since the band lies on both sides of the edge, to second. All groups are measured
at the point where they are, all of them sparse: how their losses interact is part of the slope.
(Gradients take what is kept elsewhere as given, though inputs of later groups come in and go out.
On a tiny random model they are half of what differences say and less, most so in early blocks, and
correlate with them by 0.75 at sparsity 0.5, 0.97 at 0.2. Their proportions are what is used.)

At the best budgets a byte is worth the same everywhere. So log-odds move by how far a group's worth
per byte is from the mean, shrunk where windows disagree about it, and bounded; a step is kept if it
lowers the objective on *other* windows of the text, else it is halved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..convert.convert import l2_norms
from ..eval.windows import mean_and_error
from ..info import Group
from ..sparsity import Sparsity
from ..tuning import GROUPS, Tuning
from .greedy import group_bytes
from .objective import TorchObjective
from .thresholds import N_DENSE

Table = NDArray[np.float64]

BAND = 0.05  # of a group's inputs, on each side of the edge
STEPS, FIRST_STEP, LIMIT = 6, 0.4, 1.5


#: by layer and group: (n_inputs,) worth of an input summed over the times that it was in the band,
#: these times, and how many inputs a band has
Sums = dict[tuple[int, Group], tuple[Any, Any, int]]


def band_sums(
    gradients: TorchObjective, tuning: Tuning, target: float
) -> Iterator[tuple[int, Sums]]:
    """What the inputs around each group's edge take off the objective (scored tokens' mean, summed
    over windows), part by part of the windows: the number of windows, and the sums."""
    sparse, torch = gradients.sparse, gradients.graph.torch
    found: Sums = {}

    def hook(layer: int, group: Group, x: Any) -> Any:
        out = sparse.hook(layer, group, x)
        n, n_keep = x.shape[-1], sparse.keep[layer, group]
        half = max(1, min(round(BAND * n), n_keep, n - n_keep))
        if n_keep >= n:
            return out
        with torch.no_grad():
            plain = x.detach()[..., N_DENSE:, :]
            order = sparse.score(layer, group, plain).topk(n_keep + half, dim=-1).indices
            band = order[..., n_keep - half :]
            values = plain.gather(-1, band)

        def add(gradient: Any) -> None:
            worth = -(gradient[..., N_DENSE:, :].gather(-1, band) * values).double().ravel()
            where = band.ravel()
            sums, hits = (torch.zeros(n, dtype=torch.float64, device=x.device) for _ in range(2))
            sums.scatter_add_(0, where, worth)
            hits.scatter_add_(0, where, torch.ones_like(worth))
            found[layer, group] = sums, hits, 2 * half

        out.register_hook(add)
        return out

    for n_windows in gradients.differentiated(tuning, Sparsity(target), hook):
        yield n_windows, found
        found.clear()


@dataclass
class Descent:
    """objective decides, slopes come from gradients, which is of other windows. exponents: (4,)
    powers of the norms, by group."""

    objective: TorchObjective
    gradients: TorchObjective
    norms: dict[str, NDArray[np.float32]]
    exponents: NDArray[np.float32]
    target: float
    get: Callable[[str, Callable[[], list[float]]], list[float]]
    note: Callable[[str], object] = lambda text: None

    def __post_init__(self) -> None:
        self.norms = self.norms or l2_norms(self.objective.model).norms

    def _tuning(self, odds: Table) -> Tuning:
        kept = (1 / (1 + np.exp(odds))).astype(np.float32)
        targets = np.array([self.target], np.float32)
        return Tuning(targets, kept[None], norms=self.norms, exponents=self.exponents)

    def value(self, odds: Table) -> Table:
        """The objective of every window."""
        return np.array(self.objective(self._tuning(odds), Sparsity(self.target)))

    def worth(self, odds: Table) -> tuple[Table, Table]:
        """(n_layer, 4) what one input more of each group takes off the objective, and its standard
        error."""
        rows: list[Table] = []
        for n_windows, found in band_sums(self.gradients, self._tuning(odds), self.target):
            row = np.zeros_like(odds)
            for (layer, group), (sums, _hits, width) in found.items():
                row[layer, GROUPS.index(group)] = float(sums.sum()) / (width * n_windows)
            rows.append(row)
        stack = np.stack(rows)
        error = stack.std(axis=0, ddof=1) / np.sqrt(len(stack)) if len(stack) > 1 else 0 * stack[0]
        return stack.mean(axis=0), error

    def step(self, odds: Table, size: float, bytes_of: Table) -> Table:
        """Log-odds after one step: down (less sparse) where a byte is worth more than the mean."""
        n_layer = len(odds)
        flat = self.get(
            f"{self.target:g} worth {_digest(odds)}",
            lambda: [float(x) for part in self.worth(odds) for x in part.ravel()],
        )
        worth, error = np.nan_to_num(np.array(flat), posinf=0, neginf=0).reshape(2, n_layer, 4)
        worth, error = worth / bytes_of, error / bytes_of
        # Bytes follow odds by kept (1 - kept): what the mean is over.
        kept = 1 / (1 + np.exp(odds))
        move = bytes_of * kept * (1 - kept)
        mean = max(float((worth * move).sum() / move.sum()), 1e-30)
        excess = worth / mean - 1
        sure = excess**2 / (excess**2 + (error / mean) ** 2 + 1e-12)
        return odds - size * np.clip(excess, -1, 1) * sure

    def run(self, start: Table, steps: int = STEPS) -> Table:
        """From kept fractions (n_layer, 4) to better ones."""
        bytes_of = group_bytes(self.objective.model)
        widths = [self.objective.model.width(group) for group in GROUPS]
        bytes_of = bytes_of / np.array(widths, dtype=np.float64)  # of one input
        first = np.log(1 / np.clip(start, 1e-3, 1 - 1e-3) - 1)
        best, size = first, FIRST_STEP
        least = self._known(best)
        for _ in range(steps):
            trial = np.clip(self.step(best, size, bytes_of), first - LIMIT, first + LIMIT)
            found = self._known(trial)
            mean, _error = mean_and_error(found - least)
            self.note(f"{self.target:g}: {found.mean():.4f} nats")
            if mean < 0:
                best, least = trial, found
            else:
                size /= 2
        return 1 / (1 + np.exp(best))

    def _known(self, odds: Table) -> Table:
        key = f"{self.target:g}: descent {_digest(odds)}"
        return np.array(self.get(key, lambda: list(self.value(odds))))


def _digest(odds: Table) -> str:
    """A name for a table in the log of a calibration."""
    return hashlib.sha256(np.round(odds, 5).tobytes()).hexdigest()[:16]
