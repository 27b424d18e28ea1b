"""Scores over windows of a text: the same windows for every rule, so that rules compare in pairs.

Every window starts an empty context; its first tokens are dense (they take in attention that
belongs nowhere else) and all others sparse; scores are those of the tokens from ``first`` on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from ..model import Model
from ..sparsity import Sparsity

Array = NDArray[np.float32]


@dataclass(frozen=True)
class WindowScore:
    """Means over the scored tokens of a window.

    nll: -log p of the token that follows, in nats.
    kld: KL divergence of the sparse from the dense distribution; 0 for the dense one.
    agreement: share of tokens whose likeliest successor is the dense model's.
    kept: share of the sparsified bytes that was read.
    """

    nll: float
    kld: float
    agreement: float
    kept: float


def cut_windows(model: Model, text: str, size: int, count: int | None = None) -> list[list[int]]:
    """The first `count` windows of `size` tokens, each beginning with BOS where the model wants
    it. A text that is shorter than asked for gives fewer; one too short for any is an error."""
    tokens = model.tokenize(text, add_special=True)
    windows = [tokens[i : i + size] for i in range(0, len(tokens) - size + 1, size)]
    if not windows:
        raise ArgumentError(f"the text has {len(tokens)} tokens, one window needs {size}")
    if model.info.add_bos and model.info.bos_token is not None:
        windows = [[model.info.bos_token, *window[1:]] for window in windows]
    return windows[:count]


def log_softmax(logits: Array) -> Array:
    """Row-wise, in place; returns its argument."""
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return logits


def log_probabilities(
    model: Model, window: Sequence[int], sparsity: Sparsity, *, first: int, n_dense: int = 5
) -> Array:
    """(n - 1 - first, n_vocab) log p after tokens [first, n - 1)."""
    return log_softmax(
        model.logits(window[:-1], start=first, dense_prefix=n_dense, sparsity=sparsity)
    )


class Scorer:
    """Compares distributions, with numpy or, where vocabularies are large and a GPU is at hand,
    with torch. device: "cpu" (numpy) or what torch calls another."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self._torch: Any = None
        if device != "cpu":
            from ..calibrate.graph import import_torch

            self._torch = import_torch()

    def logs(self, model: Model, window: Sequence[int], sparsity: Sparsity, *, first: int,
             n_dense: int = 5) -> Any:  # fmt: skip
        """(n - 1 - first, n_vocab) log p after tokens [first, n - 1), where it is compared."""
        if self._torch is None:
            return log_probabilities(model, window, sparsity, first=first, n_dense=n_dense)
        logits = model.logits(window[:-1], start=first, dense_prefix=n_dense, sparsity=sparsity)
        return self._torch.from_numpy(logits).to(self.device).log_softmax(-1)

    def score(self, model: Model, window: Sequence[int], own: Any, dense: Any, *,
              first: int) -> WindowScore:  # fmt: skip
        """own, dense: what :meth:`logs` gives; the model was last used for own."""
        targets = np.asarray(window[first + 1 :])
        if isinstance(own, np.ndarray):
            kld = (np.exp(dense) * (dense - own)).sum(axis=1, dtype=np.float64).mean()
            nll = -own[np.arange(len(own)), targets].mean(dtype=np.float64)
            agreement = (own.argmax(axis=1) == dense.argmax(axis=1)).mean()
        else:
            index = self._torch.from_numpy(targets).to(self.device)
            kld = (dense.exp() * (dense - own)).sum(-1).double().mean()
            nll = -own.gather(-1, index[:, None]).double().mean()
            agreement = (own.argmax(-1) == dense.argmax(-1)).double().mean()
        return WindowScore(float(nll), float(kld), float(agreement), model.stats.kept_fraction)


def mean_and_error(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """Mean and its standard error; of differences between paired windows, those of the pair."""
    data = np.asarray(values, dtype=np.float64)
    error = data.std(ddof=1) / np.sqrt(len(data)) if len(data) > 1 else float("nan")
    return float(data.mean()), float(error)
