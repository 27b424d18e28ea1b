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
from ..info import Group
from ..model import Model
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


class TorchSparse:
    """The sparse model as the float32 graph computes it, on the graph's device.

    The library says how many inputs each group keeps; which ones is decided here by the same
    scores, so that results differ from the library's only by the rounding of activations."""

    def __init__(self, model: Model, graph: Graph) -> None:
        self.model, self.graph = model, graph
        self._l2 = l2_norms(model).norms
        self._keep: dict[tuple[int, str], int] = {}  # by layer and group; empty: dense
        self._factors: dict[str, Any] = {}  # of |x|, (n_layer, n_inputs) by group; empty: 1

    def use(self, tuning: Tuning | None, sparsity: Sparsity) -> None:
        """The rule that follows: group masks and exact numbers. The exponent must be given."""
        self.model.set_tuning(tuning)
        counts = self.model.keep_counts(sparsity)[:, :, 0]
        self._keep = {
            (layer, group): int(counts[layer, i])
            for layer in range(len(counts))
            for i, group in enumerate(GROUPS)
        }
        torch, self._factors = self.graph.torch, {}
        if sparsity.exponent and sparsity.method == "wina":
            for group, norms in ((tuning and tuning.norms) or self._l2).items():
                on_device = torch.from_numpy(norms).to(self.graph.device)
                self._factors[group] = on_device**sparsity.exponent

    def use_dense(self) -> None:
        """No input is skipped."""
        self._keep, self._factors = {}, {}

    def logs(self, window: Sequence[int], first: int, n_dense: int = N_DENSE) -> Any:
        """(n - 1 - first, n_vocab) log p after tokens [first, n - 1)."""
        torch, graph = self.graph.torch, self.graph

        def hook(layer: int, group: Group, x: Any) -> Any:
            if not self._keep or self._keep[layer, group] >= x.shape[-1]:
                return x
            score = x.abs()
            if self._factors:
                score = score * self._factors[group][layer]
            sparse = keep_largest(torch, x, score, self._keep[layer, group])
            return torch.cat((x[..., :n_dense, :], sparse[..., n_dense:, :]), -2)

        with torch.no_grad():
            x = graph.embed(window[:-1])
            for layer in range(graph.info.n_layer):
                x = graph.block(layer, x, hook)
            return graph.logits(x[first:]).log_softmax(-1)


class TorchObjective:
    """What :class:`Objective` is, by the graph: for a GPU, where this is much faster."""

    def __init__(self, model: Model, graph: Graph, windows: Sequence[list[int]]) -> None:
        self.model, self.windows, self.sparse = model, windows, TorchSparse(model, graph)
        self._dense = [self.sparse.logs(window, FIRST).half() for window in windows]

    def __call__(self, tuning: Tuning | None, sparsity: Sparsity) -> list[float]:
        """Divergence of every window."""
        self.sparse.use(tuning, sparsity)
        result = []
        for window, dense in zip(self.windows, self._dense, strict=True):
            known, own = dense.float(), self.sparse.logs(window, FIRST)
            result.append(float((known.exp() * (known - own)).sum(-1).mean()))
        return result
