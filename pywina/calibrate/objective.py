"""What a calibration minimises: the divergence of the sparse model from the dense one.

The KL divergence over whole distributions tells two budgets apart with far fewer tokens than the
likelihood of the text does, because it does not depend on which token happened to follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..eval.windows import log_probabilities
from ..model import Model
from ..sparsity import Sparsity
from ..tuning import Tuning

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
