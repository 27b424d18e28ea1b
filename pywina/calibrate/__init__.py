"""Calibration: budgets, norms and thresholds from a text, for a model whose weights stay."""
