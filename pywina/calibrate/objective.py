"""What a calibration minimises.

"kl": the divergence of the sparse model from the dense one. Over whole distributions it tells two
budgets apart with far fewer tokens than the likelihood of the text does, because it does not depend
on which token happened to follow. "loss": that likelihood itself, -log p of the next token, which
is what a text is judged by; it wants more windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..convert.convert import l2_norms
from ..eval.windows import log_probabilities
from ..info import Group
from ..model import Model
from ..sparsity import Sparsity
from ..tuning import GROUPS, Tuning
from .graph import Graph, keep_largest
from .greedy import group_bytes
from .thresholds import N_DENSE, at

FIRST = 16  # tokens of a window that are not scored
_STACK = 4  # windows that torch computes at a time on a GPU

Kind = Literal["kl", "loss"]


class Objective:
    """Mean per window, in nats a token. Keeps the dense distributions in float16 for "kl"."""

    def __init__(
        self,
        model: Model,
        windows: Sequence[list[int]],
        kind: Kind = "kl",
        progress: Callable[[int], object] = lambda n: None,
    ) -> None:
        self.model, self.windows, self.kind = model, windows, kind
        self._dense: list[NDArray[np.float16]] = []
        for window in windows if kind == "kl" else ():
            logs = log_probabilities(model, window, Sparsity(), first=FIRST, n_dense=N_DENSE)
            self._dense.append(logs.astype(np.float16))
            progress(1)

    def __call__(self, tuning: Tuning | None, sparsity: Sparsity) -> list[float]:
        """The objective of every window."""
        self.model.set_tuning(tuning)
        result = []
        for i, window in enumerate(self.windows):
            own = log_probabilities(self.model, window, sparsity, first=FIRST, n_dense=N_DENSE)
            if self.kind == "loss":
                followers = own[np.arange(len(own)), window[FIRST + 1 :]]
                result.append(float(-followers.mean(dtype=np.float64)))
                continue
            known = self._dense[i].astype(np.float32)
            result.append(float((np.exp(known) * (known - own)).sum(1, dtype=np.float64).mean()))
        return result


Hook = Callable[[int, Group, Any], Any]


class TorchSparse:
    """The sparse model as the float32 graph computes it, on the graph's device.

    The library says how many inputs each group keeps; which ones is decided here by the same
    scores, so that results differ from the library's only by the rounding of activations."""

    def __init__(self, model: Model, graph: Graph) -> None:
        self.model, self.graph = model, graph
        self._l2 = l2_norms(model).norms
        self.keep: dict[tuple[int, str], int] = {}  # by layer and group; empty: dense
        self.least: dict[tuple[int, str], float] = {}  # thresholds in place of numbers, or empty
        self.n_kept: dict[tuple[int, str], Any] = {}  # inputs that thresholds kept, and all of them
        self.n_seen: dict[tuple[int, str], int] = {}
        self._factors: dict[str, Any] = {}  # of |x|, (n_layer, n_inputs) by group; empty: 1

    def use(self, tuning: Tuning | None, sparsity: Sparsity) -> None:
        """The rule that follows: group masks, exact numbers or thresholds. Without an exponent:
        the tuning's."""
        self.model.set_tuning(tuning)
        counts = self.model.keep_counts(sparsity)[:, :, 0]
        self.keep = {
            (layer, group): int(counts[layer, i])
            for layer in range(len(counts))
            for i, group in enumerate(GROUPS)
        }
        self.least, self.n_kept, self.n_seen = {}, {}, {}
        if sparsity.select == "threshold":
            table = at(tuning or Tuning(), sparsity.sparsity)
            self.least = {key: float(table[key[0], GROUPS.index(key[1])]) for key in self.keep}
        torch, self._factors = self.graph.torch, {}
        norms, exponents = self._l2, np.zeros(4)
        if tuning is not None and tuning.norms:
            norms, exponents = tuning.norms, np.asarray(tuning.exponents)
        if sparsity.exponent is not None:
            exponents = np.full(4, sparsity.exponent)
        for i, group in enumerate(GROUPS):
            if sparsity.method == "wina" and exponents.any():
                on_device = torch.from_numpy(norms[group]).to(self.graph.device)
                self._factors[group] = on_device ** float(exponents[i])

    def use_dense(self) -> None:
        """No input is skipped."""
        self.keep, self.least, self._factors = {}, {}, {}

    def score(self, layer: int, group: Group, x: Any) -> Any:
        """What inputs are chosen by."""
        return x.abs() * self._factors[group][layer] if self._factors else x.abs()

    def hook(self, layer: int, group: Group, x: Any, n_dense: int = N_DENSE) -> Any:
        """The inputs of a group (..., n_tokens, width) with zeros where they are skipped."""
        if not self.keep or self.keep[layer, group] >= x.shape[-1]:
            return x
        torch = self.graph.torch
        score = self.score(layer, group, x)
        if self.least:
            least = score.amax(-1, keepdim=True).clamp(max=self.least[layer, group])
            kept = score >= least  # one at least
            self._count(layer, group, kept[..., n_dense:, :])
            sparse = torch.where(kept, x, torch.zeros_like(x))
        else:
            sparse = keep_largest(torch, x, score, self.keep[layer, group])
        return torch.cat((x[..., :n_dense, :], sparse[..., n_dense:, :]), -2)

    def _count(self, layer: int, group: Group, kept: Any) -> None:
        key = layer, group
        self.n_kept[key] = self.n_kept.get(key, 0) + kept.sum()
        self.n_seen[key] = self.n_seen.get(key, 0) + kept.numel()

    def kept_fraction(self) -> float:
        """Share of the sparsified bytes that thresholds have kept since the rule was set."""
        bytes_of = group_bytes(self.model)
        kept = sum(
            bytes_of[layer, GROUPS.index(group)] * float(n) / self.n_seen[layer, group]
            for (layer, group), n in self.n_kept.items()
        )
        # Groups that keep all of their inputs were not counted.
        all_kept = sum(
            bytes_of[layer, GROUPS.index(group)]
            for layer, group in self.keep.keys() - self.n_kept.keys()
        )
        return float((kept + all_kept) / bytes_of.sum())

    def logs(self, window: Sequence[Any], first: int, hook: Hook | None = None) -> Any:
        """(..., n - 1 - first, n_vocab) log p after tokens [first, n - 1) of one window, or of
        several of the same length. A hook of one's own may watch every group."""
        graph = self.graph
        with graph.torch.no_grad():
            x = graph.embed(_starts(window))
            for layer in range(graph.info.n_layer):
                x = graph.block(layer, x, hook or self.hook)
            return graph.logits(x[..., first:, :]).log_softmax(-1)


def _starts(window: Sequence[Any]) -> list[Any]:
    """All tokens of a window, or of each of several, but the last."""
    if isinstance(window[0], int):
        return list(window[:-1])
    return [one[:-1] for one in window]


class TorchObjective:
    """What :class:`Objective` is, by the graph: for a GPU, where this is much faster."""

    def __init__(
        self, model: Model, graph: Graph, windows: Sequence[list[int]], kind: Kind = "kl"
    ) -> None:
        self.model, self.windows, self.kind = model, windows, kind
        self.graph, self.sparse = graph, TorchSparse(model, graph)
        self._dense: list[Any] = [
            self.sparse.logs(part, FIRST).half() if kind == "kl" else None for part in self.parts()
        ]

    def parts(self) -> Iterator[Sequence[list[int]]]:
        """Windows as many as are computed at a time."""
        step = 1 if self.graph.device.type == "cpu" else _STACK
        for i in range(0, len(self.windows), step):
            yield self.windows[i : i + step]

    def per_token(self, part: Sequence[list[int]], own: Any, dense: Any) -> Any:
        """The objective after every scored token: (n_windows, n_tokens) of log p of all tokens."""
        if self.kind == "kl":
            known = dense.float()
            return (known.exp() * (known - own)).sum(-1)
        targets = self.graph.torch.tensor(
            [one[FIRST + 1 :] for one in part], device=self.graph.device
        )
        return -own.gather(-1, targets[..., None])[..., 0]

    def __call__(self, tuning: Tuning | None, sparsity: Sparsity) -> list[float]:
        """The objective of every window."""
        self.sparse.use(tuning, sparsity)
        result: list[float] = []
        for part, dense in zip(self.parts(), self._dense, strict=True):
            own = self.sparse.logs(part, FIRST)
            result += self.per_token(part, own, dense).double().mean(-1).tolist()
        return result

    def differentiated(
        self, tuning: Tuning | None, sparsity: Sparsity, hook: Hook
    ) -> Iterator[int]:
        """Runs backward through every part of the windows, with a hook of one's own in every group
        (of :attr:`sparse`, which follows the rule); gives the number of windows of each part."""
        self.sparse.use(tuning, sparsity)
        for part, dense in zip(self.parts(), self._dense, strict=True):
            x = self.graph.embed(_starts(part)).requires_grad_()
            for layer in range(self.graph.info.n_layer):
                x = self.graph.block(layer, x, hook)
            own = self.graph.logits(x[..., FIRST:, :]).log_softmax(-1)
            self.per_token(part, own, dense).mean(-1).sum().backward()
            yield len(part)
