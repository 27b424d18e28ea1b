"""The sparse forward against tools/reference.py, which masks the input and multiplies densely."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import pywina

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from reference import Reference

CASES = [("wina", "group", 0.4), ("wina", "projection", 0.5), ("teal", "group", 0.5)]
CASES += [("cats", "group", 0.3)]


@pytest.mark.parametrize(("method", "mask", "sparsity"), CASES)
def test_tiny_model(tiny_model: Path, method: str, mask: str, sparsity: float) -> None:
    tokens = [int(t) for t in np.random.default_rng(5).integers(0, 250, 40)]
    budget = "profile" if method == "wina" else "uniform"
    want = Reference(tiny_model).logits(
        tokens, sparsity=sparsity, method=method, mask=mask, budget=budget, n_dense=5, kv_f16=True
    )
    rule = pywina.Sparsity(sparsity, method, mask, exponent=1.0)
    with pywina.load(tiny_model, sparsity=rule) as model:
        got = model.logits(tokens, dense_prefix=5)
        dense = model.logits(tokens, method="dense")
    assert np.abs(got - want).max() < 1e-3 * np.abs(want).max()
    assert np.abs(got - dense).max() > 1e-2 * np.abs(want).max()  # sparsity does something
