"""Means with standard errors, and comparisons of two rules on the same items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mean:
    value: float
    error: float  # standard error; nan for a single item
    n: int


def mean(values: Sequence[float]) -> Mean:
    """Of a share (zeros and ones) the error is that of lm-eval: sqrt(p (1 - p) / (n - 1))."""
    data = np.asarray(values, dtype=np.float64)
    n = len(data)
    error = float(data.std(ddof=1) / math.sqrt(n)) if n > 1 else float("nan")
    return Mean(float(data.mean()), error, n)


def paired(values: Sequence[float], others: Sequence[float]) -> Mean:
    """Of the differences, item by item: values minus others."""
    return mean(np.subtract(values, others).tolist())


def mcnemar(values: Sequence[float], others: Sequence[float]) -> float:
    """Two-sided exact p that two rules are right equally often, from the items on which one is
    right and the other wrong."""
    wins = sum(a > b for a, b in zip(values, others, strict=True))
    losses = sum(a < b for a, b in zip(values, others, strict=True))
    n, k = wins + losses, min(wins, losses)
    if n == 0:
        return 1.0
    log_half = -n * math.log(2)
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + log_half
        for i in range(k + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))
