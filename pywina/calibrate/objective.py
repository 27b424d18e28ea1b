"""What a calibration minimises: the divergence of the sparse model from the dense one.

The KL divergence over whole distributions tells two budgets apart with far fewer tokens than the
likelihood of the text does, because it does not depend on which token happened to follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..convert.convert import l2_norms
from ..eval.windows import log_probabilities
from ..model import Group, Model
from ..sparsity import Sparsity
from ..tuning import GROUPS, Tuning
from .graph import Graph, keep_largest

N_DENSE = 5
FIRST = 16  # tokens of a window that are not scored


class Objective:
    """Mean divergence per window, in nats a token. Keeps the dense distributions in float16."""

    def __init__(
        self,
        model: Model,
        windows: Sequence[list[int]],
        progress: Callable[[int], object] = lambda n: None,
    ) -> None:
        self.model, self.windows = model, windows
        self._dense: list[NDArray[np.float16]] = []
        for window in windows:
            logs = log_probabilities(model, window, Sparsity(), first=FIRST, n_dense=N_DENSE)
            self._dense.append(logs.astype(np.float16))
            progress(1)

    def __call__(self, tuning: Tuning | None, sparsity: Sparsity) -> list[float]:
        """Divergence of every window."""
        self.model.set_tuning(tuning)
        result = []
        for window, dense in zip(self.windows, self._dense, strict=True):
            own = log_probabilities(self.model, window, sparsity, first=FIRST, n_dense=N_DENSE)
            known = dense.astype(np.float32)
            result.append(float((np.exp(known) * (known - own)).sum(1, dtype=np.float64).mean()))
        return result


class TorchObjective:
    """The same by the float32 graph, on its device: for a GPU, where this is much faster.

    The library says how many inputs each group keeps; which ones is decided here by the same
    scores, so that results differ from :class:`Objective`'s only by the rounding of activations."""

    def __init__(self, model: Model, graph: Graph, windows: Sequence[list[int]]) -> None:
        self.model, self.graph, self.windows = model, graph, windows
        self._l2 = l2_norms(model).norms
        with graph.torch.no_grad():
            self._dense = [self._logs([window], {}, {}).half() for window in windows]

    def _logs(self, windows: Sequence[list[int]], keep: dict[tuple[int, str], int],
              factors: dict[str, Any]) -> Any:  # fmt: skip
        """(n_windows, n - 1 - FIRST, n_vocab) log p; keep: by layer and group, empty for dense."""
        torch, graph = self.graph.torch, self.graph

        def hook(layer: int, group: Group, x: Any) -> Any:
            if not keep or keep[layer, group] >= x.shape[-1]:
                return x
            score = x.abs() if not factors else x.abs() * factors[group][layer]
            sparse = keep_largest(torch, x, score, keep[layer, group])
            return torch.cat((x[..., :N_DENSE, :], sparse[..., N_DENSE:, :]), -2)

        x = graph.embed([window[:-1] for window in windows])
        for layer in range(graph.info.n_layer):
            x = graph.block(layer, x, hook)
        return graph.logits(x[..., FIRST:, :]).log_softmax(-1)

    def __call__(self, tuning: Tuning | None, sparsity: Sparsity) -> list[float]:
        """Divergence of every window."""
        self.model.set_tuning(tuning)
        counts = self.model.keep_counts(sparsity)[:, :, 0]
        keep = {
            (layer, group): int(counts[layer, i])
            for layer in range(len(counts))
            for i, group in enumerate(GROUPS)
        }
        torch, result = self.graph.torch, []
        with torch.no_grad():
            factors = {
                group: torch.from_numpy(norms).to(self.graph.device) ** (sparsity.exponent or 0.0)
                for group, norms in ((tuning and tuning.norms) or self._l2).items()
                if sparsity.exponent
            }
            for window, dense in zip(self.windows, self._dense, strict=True):
                known, own = dense.float(), self._logs([window], keep, factors)
                result.append(float((known.exp() * (known - own)).sum(-1).mean()))
        return result
